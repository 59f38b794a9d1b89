"""What a checkpoint is and what was done to it, from its file alone, like Ultralytics' ``info()``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import guess_model_task

from yolo_prune.config.settings import PruneConfig
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.formats import compressed_size
from yolo_prune.errors import UnsupportedError
from yolo_prune.graph.image import height_and_width, image_size
from yolo_prune.graph.trace import trace
from yolo_prune.graph.zeros import sparse_layers, zeros_of
from yolo_prune.host import checkpoint
from yolo_prune.report import zeros
from yolo_prune.report.records import Report
from yolo_prune.utils.files import write_json
from yolo_prune.utils.text import aligned, count, megabytes


@dataclass(frozen=True)
class Inspection:
    """The figures of a checkpoint.

    Attributes:
        checkpoint: The file.
        task: As Ultralytics names it.
        classes: Number of classes.
        imgsz: Height and width in pixels for which multiply-adds are counted.
        layers: Convolutions and linear layers.
        macs: Multiply-adds for one image, or None where the network cannot be traced.
        params: Parameters.
        bytes: Size of the file.
        compressed: The same after zlib's best compression.
        zeros: Layer path -> figures of its weights, as in the report.
        pruned: Whether yolo_prune has cut the network, or let weights be zero.
        target: What was asked for, or None where the file does not say.
        run: The part of ``report.json`` that the file carries, empty for one that no run of yolo_prune has made.
    """

    checkpoint: str
    task: str
    classes: int
    imgsz: tuple[int, int]
    layers: int
    macs: int | None
    params: int
    bytes: int
    compressed: int
    zeros: Mapping[str, Mapping[str, Any]]
    pruned: bool
    target: str | float | None = None
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the weights of convolutions and linear layers without groups."""
        return zeros.share(self.zeros)

    def text(self, *, with_layers: bool = False) -> str:
        """Return the figures as lines, with a row per layer that may have zeros where that is asked for."""
        size = " x ".join(map(str, self.imgsz))
        weights = sum(of["weights"] for of in self.zeros.values())
        rows: list[tuple[str, ...]] = [
            ("task", f"{self.task}, {self.classes} classes"),
            ("layers", str(self.layers)),
            (
                "MACs",
                f"{count(self.macs)} at {size} pixels" if self.macs else "not known: the network cannot be traced",
            ),
            ("parameters", count(self.params)),
            ("file", f"{megabytes(self.bytes)}, compressed {megabytes(self.compressed)}"),
            ("zeros", f"{self.sparsity:.1%} of {count(weights)} weights in {len(self.zeros)} layers"),
            ("pruned", self._pruned()),
        ]
        parts = [self.checkpoint, aligned([(f"  {name}", value) for name, value in rows])]
        if self.run.get("cuts"):
            parts.append(Report.from_dict(dict(self.run)).table())
        if self.pruned and any(of["zeros"] for of in self.zeros.values()):
            parts += zeros.lines(self.zeros, self.checkpoint)
        if with_layers:
            parts.append(zeros.table(self.zeros))
        return "\n".join(parts)

    def _pruned(self) -> str:
        if not self.pruned:
            return "not by yolo_prune" if self.target is None else f"not yet; {self.target} was asked for"
        if self.target is None:
            return "yes, at once; what was asked for, the file does not say"
        cuts = len(self.run.get("cuts", ()))
        return f"to {self.target}, in {cuts} cut{'s' * (cuts != 1)}"

    def save(self, path: Path) -> None:
        """Write the figures as JSON; a reader never sees half of it."""
        write_json(path, {**asdict(self), "sparsity": self.sparsity})


def inspect_checkpoint(path: str | Path, imgsz: Any = None) -> Inspection:
    """Look at a checkpoint of Ultralytics, pruned or not; nothing runs.

    Args:
        path: A ``.pt`` file.
        imgsz: Image size in pixels, or (height, width); by default the checkpoint's own.

    Raises:
        CheckpointError: If it is no checkpoint of Ultralytics, or a damaged one.
        ConfigError: If the image size is none.
    """
    network = checkpoint.load_network(path)
    size = image_size(network, imgsz)
    macs = None
    with suppress(UnsupportedError):
        macs = CostModel(trace(network, size)).macs()
    noted = checkpoint.run_record(network.yaml) or {}
    config = PruneConfig.from_dict(noted["config"]) if noted else None
    layers = sparse_layers(network, config.is_ignored if config else lambda path: None)
    return Inspection(
        checkpoint=str(path),
        task=guess_model_task(network),
        classes=len(getattr(network, "names", ())),
        imgsz=height_and_width(size),
        layers=len(sparse_layers(network)),
        macs=macs,
        params=sum(p.numel() for p in network.parameters()),
        bytes=Path(path).stat().st_size,
        compressed=compressed_size(Path(path)),
        zeros=zeros_of(layers),
        pruned=checkpoint.is_pruned(network.yaml),
        target=config.target if config else None,
        run=noted.get("report", {}),
    )
