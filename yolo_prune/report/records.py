"""Records of a run: ``pruning/report.json`` and the printed table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from yolo_prune.config.targets import MACS, PARAMS
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.report.given import Given
from yolo_prune.report.versions import versions
from yolo_prune.utils.files import write_json
from yolo_prune.utils.text import aligned, change, count, epochs, megabytes, milliseconds, score

SCHEMA = 1


@dataclass
class Stage:
    """The network at one point of the run.

    Attributes:
        macs: Multiply-adds for one image (Ultralytics prints GFLOPs, two per multiply-add), or None if not counted.
        params: Parameters.
        bytes: Size of the checkpoint file, without optimizer, or None.
        fitness: Ultralytics' fitness of the saved (FP16) file, or None without validation.
        checkpoint: Path of the file, or None.
        latency: Seconds for one image where ``timed`` says, measured in turns at the end, or None.
        speedup: Over the dense network, from the same measurement, or None.
        epochs: Of this run, for which the dense network was trained; None for others.
        finished: Whether the dense network was: it began with weights that had learned the data's classes, or nothing
            was trained. If not, its fitness is that of the middle of a training, and nothing is compared with it. None
            for others, and in reports of earlier versions, where nobody knows.
        fitness_at_start: Fitness of the weights that the run began with, if they had learned the data's classes; None
            for others, and where the first cut is before the first epoch. Some epochs later the dense network may be
            worse.
        sparsity: Share of zeros among the weights that may be zero, where that was asked for, or None.
        compressed: Bytes of the checkpoint file after zlib's best compression, likewise.
    """

    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    fitness: float | None = None
    checkpoint: str | None = None
    latency: float | None = None
    speedup: Speedup | None = None
    epochs: int | None = None
    finished: bool | None = None
    fitness_at_start: float | None = None
    sparsity: float | None = None
    compressed: int | None = None

    @property
    def reference(self) -> float | None:
        """The fitness that others are compared with: the better one of the dense network and of what it began with."""
        return max((f for f in (self.fitness, self.fitness_at_start) if f is not None), default=None)

    @property
    def was_better(self) -> bool:
        """Whether the weights that the run began with were better than the dense network just before the first cut."""
        return None not in (self.fitness, self.fitness_at_start) and self.reference != self.fitness

    @property
    def unfinished(self) -> str:
        """Why no fitness is compared with the dense network's; empty for one that was finished."""
        if self.finished is False:
            return f"was not finished ({epochs(self.epochs or 0)} of this run)"
        return "" if self.finished else "may not have been finished (this report does not say)"


@dataclass
class CutRecord:
    """One cut.

    Attributes:
        epoch: The cut fell before the batches of this epoch, counted from 0.
        macs: Multiply-adds after it.
        params: Parameters after it.
        bytes: Size of the network as a checkpoint without optimizer.
        fitness_cut: Fitness right after it, after recalibration and before any training.
        fitness_recovered: Best fitness before the next cut, the step to INT8, or the end.
        plan_sha256: Hash of the plan, which lies in ``pruning/plan-<n>.json``.
        locked: What could not be cut, and why.
        seconds: Wall time of the cut, with recalibration and validation.
        latency: Predicted seconds for one image, or None without a latency target; in the end relative to the measured
            time of the dense network.
        sparsity: Share of zeros among the weights that may be zero, where that was asked for, or None.
        blocks: Paths of the inner blocks that it removed.
    """

    epoch: int
    macs: int | None
    params: int
    bytes: int
    fitness_cut: float | None
    fitness_recovered: float | None
    plan_sha256: str
    locked: list[dict[str, str]]
    seconds: float
    latency: float | None = None
    sparsity: float | None = None
    blocks: list[str] = field(default_factory=list)


@dataclass
class EpochRecord:
    """The end of one epoch.

    Attributes:
        epoch: Counted from 0.
        macs: Multiply-adds of the network in it, or None if not counted.
        fitness: Ultralytics' fitness of the EMA.
    """

    epoch: int
    macs: int | None
    fitness: float


@dataclass
class QuantizationRecord:
    """The step to INT8 of a run with ``quantize=8``.

    Attributes:
        epoch: It fell before the batches of this epoch, counted from 0.
        fitness_float: Best fitness of the float network before it, since the last cut.
        fitness_quantized: Fitness right after it, before any training.
        fitness_recovered: Best fitness from then on.
        seconds: Wall time, with calibration and validation.
    """

    epoch: int
    fitness_float: float | None
    fitness_quantized: float | None
    fitness_recovered: float | None
    seconds: float


@dataclass
class ExportRecord:
    """One export.

    Attributes:
        format: Ultralytics' name of the format.
        precision: Ultralytics' ``quantize`` as text: "32", "16", "8", "w8a16" or "w8a32".
        path: The file or folder, or None if there is none.
        bytes: Size of all of it, or None.
        max_abs_diff: Largest absolute difference of a score to the checkpoint's, or None if not compared.
        max_abs_diff_boxes: The same for box coordinates, in pixels.
        fitness: Ultralytics' fitness on the validation set, run in this format, or None if not run or without data.
        fitness_checkpoint: The same of the checkpoint with the same settings (image by image, padded to squares).
        inspected: What the file says of itself where it cannot be run (Core ML off macOS), or None.
        ok: Whether the export was made and agrees: in its outputs with precision 32, in its fitness below that.
        reason: Why not, or a remark.
    """

    format: str
    precision: str = "32"
    path: str | None = None
    bytes: int | None = None
    max_abs_diff: float | None = None
    max_abs_diff_boxes: float | None = None
    fitness: float | None = None
    fitness_checkpoint: float | None = None
    inspected: dict[str, Any] | None = None
    ok: bool = False
    reason: str | None = None


@dataclass
class SizeRecord(Stage):
    """One of several models that a run hands over, beside the figures of a `Stage`.

    Attributes:
        size: Its target, as it was typed.
        cut: Number of the cut that landed on it, counted from 1.
        exports: One per asked format; those of the last size are the run's.
    """

    size: str = ""
    cut: int = 0
    exports: list[ExportRecord] = field(default_factory=list)


@dataclass
class Report:
    """The contract of ``report.json``; each record describes its own fields.

    Attributes:
        imgsz: Height and width in pixels.
        dense: Before the first cut.
        config: The run's options.
        cuts: In their order.
        final: What is handed over.
        scales: Official scales of the family next to dense and final in size, by name, with random weights.
        timed: Where latencies were measured: runtime, its version, device and threads; None if they were not.
        exports: One per asked format.
        guard: State of ``max_drop``, where it was asked for.
        sizes: Models that were handed over, the largest first, where several were asked for; the last is ``final``.
        quantization: The step to INT8, or None.
        epochs: One per epoch that was validated, those of cuts that were taken back included.
        layers: Layer path -> output width of its convolution or linear layer, ``{"before": dense, "after": final}``; 0
            where its block was removed.
        samples: A few validation images, which the page shows.
        maps: Channels of the maps that a detection head reads in the final network, else nothing. Trackers that take
            the features of objects from them need multiples of the smallest (option ``reid``).
        given: The network before levels and classes of it were removed, or None where none were.
        start: What the run began with: a checkpoint, or a model's YAML; empty in reports of earlier versions.
        zeros: Where zeros were asked for: layer path -> its ``weights``, how many ``zeros`` are among them in the final
            network, its ``inputs`` (channels times taps) and ``outputs``, and whether it has ``two_of_four``.
    """

    NOTED: ClassVar = ("imgsz", "dense", "config", "cuts", "quantization", "epochs", "given", "sizes", "start")
    """Fields that an interrupted run needs."""

    imgsz: list[int]
    dense: Stage
    config: dict[str, Any]
    cuts: list[CutRecord] = field(default_factory=list)
    final: Stage | None = None
    scales: dict[str, Stage] = field(default_factory=dict)
    timed: dict[str, Any] | None = None
    exports: list[ExportRecord] = field(default_factory=list)
    guard: dict[str, Any] | None = None
    sizes: list[SizeRecord] = field(default_factory=list)
    quantization: QuantizationRecord | None = None
    epochs: list[EpochRecord] = field(default_factory=list)
    layers: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)
    given: Given | None = None
    start: str = ""
    zeros: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"schema": SCHEMA, **asdict(self), "versions": versions()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Read what ``to_dict`` wrote, to go on with an interrupted run."""
        quantization, given = data["quantization"], data.get("given")
        return cls(
            imgsz=data["imgsz"],
            dense=Stage(**data["dense"]),
            config=data["config"],
            cuts=[CutRecord(**c) for c in data["cuts"]],
            quantization=QuantizationRecord(**quantization) if quantization else None,
            epochs=[EpochRecord(**e) for e in data["epochs"]],
            given=Given(**given) if given else None,
            sizes=[SizeRecord(**size) for size in data.get("sizes", ())],
            start=data.get("start", ""),
        )

    def save(self, folder: Path) -> Path:
        """Write ``report.json`` into a folder; a reader never sees half of it."""
        path = folder / "report.json"
        write_json(path, self.to_dict())
        return path

    def table(self) -> str:
        """Return the table that a run prints: one row per step, each figure with its change from the dense model.

        A change is given where it is one: not of the fitness of a dense model that was in the middle of its training,
        nor of latencies that noise can make. Where the run began with a better model, fitness is compared with that.
        """
        dense = self.dense
        sizes = [count(dense.macs), count(dense.params), megabytes(dense.bytes)]
        sizes += [_share(dense.sparsity)] * self._has_zeros + [milliseconds(dense.latency)] * self._is_timed
        latency = (*("zeros",) * self._has_zeros, *("latency",) * self._is_timed)
        rows: list[tuple[str, ...]] = [
            ("", "epoch", "MACs", "params", "file", *latency, "fitness cut", "fitness recovered"),
            *self._given(len(sizes)),
            *[("start", "", *sizes, "", score(dense.fitness_at_start))] * dense.was_better,
            ("dense", "", *sizes, "", self._fitness(dense.fitness) if dense.was_better else score(dense.fitness)),
        ]
        for n, cut in enumerate(self.cuts, 1):
            fitness = (self._fitness(f) for f in (cut.fitness_cut, cut.fitness_recovered))
            rows.append((f"cut {n}/{len(self.cuts)}", str(cut.epoch), *self._sizes(cut), *fitness))
        if q := self.quantization:
            fitness = (self._fitness(f) for f in (q.fitness_quantized, q.fitness_recovered))
            rows.append(("int8", str(q.epoch), *[""] * len(sizes), *fitness))
        rows += [(size.size, "", *self._sizes(size), "", self._fitness(size.fitness)) for size in self.sizes[:-1]]
        if self.final:
            rows.append(("final", "", *self._sizes(self.final), "", self._fitness(self.final.fitness)))
        rows += [(name, "", *self._sizes(scale), "", "") for name, scale in self.scales.items()]
        is_judged = dense.fitness is not None and len(rows) > 2 + dense.was_better
        return "\n".join([aligned(rows), *[_UNFAIR.format(dense.unfinished)] * bool(is_judged and dense.unfinished)])

    def _given(self, columns: int) -> list[tuple[str, ...]]:
        """Return the row of a network that levels were removed from."""
        if not (self.given and self.given.levels):
            return []
        sizes = [count(round(self.given.amounts[quantity])) for quantity in (MACS, PARAMS)]
        return [("given", "", *sizes, *[""] * (columns - len(sizes)), "", "")]

    @property
    def _is_timed(self) -> bool:
        return self.dense.latency is not None

    @property
    def _has_zeros(self) -> bool:
        return any(cut.sparsity is not None for cut in self.cuts)

    def _sizes(self, stage: Stage | CutRecord) -> list[str]:
        """Return the costs of a stage, with the change from the dense model; zeros and latency where asked for."""
        sizes = [
            count(stage.macs) + change(stage.macs, self.dense.macs),
            count(stage.params) + change(stage.params, self.dense.params),
            megabytes(stage.bytes) + change(stage.bytes, self.dense.bytes),
            *[_share(stage.sparsity)] * self._has_zeros,
        ]
        of = self.final if isinstance(stage, CutRecord) else stage  # those of cuts are predicted until it is timed
        is_told = self.timed is None or (of and of.speedup and of.speedup.is_told)
        latency = milliseconds(stage.latency) + (change(stage.latency, self.dense.latency) if is_told else "")
        return [*sizes, latency] if self._is_timed else sizes

    def _fitness(self, fitness: float | None) -> str:
        return score(fitness) + ("" if self.dense.unfinished else change(fitness, self.dense.reference))

    def export_table(self) -> str:
        """Return the table of exports: differences of outputs, and the fitness with its change, to the checkpoint."""
        rows: list[tuple[str, ...]] = [
            ("export", "precision", "ok", "scores", "boxes (px)", "fitness", "size", "file or reason")
        ]
        for e in self.exports:
            diffs = ("" if d is None else f"{d:.2g}" for d in (e.max_abs_diff, e.max_abs_diff_boxes))
            fitness = score(e.fitness) + change(e.fitness, e.fitness_checkpoint)
            rest = (fitness, megabytes(e.bytes), e.reason or e.path or "")
            rows.append((e.format, e.precision, "yes" if e.ok else "no", *diffs, *rest))
        return aligned(rows)


def _share(sparsity: float | None) -> str:
    return "" if sparsity is None else f"{sparsity:.1%}"


_UNFAIR = "dense {}, so no fitness is compared with its; a run as long without pruning would be a fair comparison"
