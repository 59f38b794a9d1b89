"""Accuracy of a network that is cut to several sizes without training: ``curve.json``, its table, and its knee."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_prune.config.targets import BYTES, LATENCY, MACS, PARAMS
from yolo_prune.report.versions import versions
from yolo_prune.utils.files import write_json
from yolo_prune.utils.text import aligned, change, count, megabytes, milliseconds, score

SCHEMA = 1
FLAT, STRAIGHT = 0.02, 0.05
"""Share of the dense fitness that the smallest size may lose without a knee, and share of that loss by which a knee
lies above a straight line."""
NEAR = 0.1
"""Of two sizes that are so near to each other above that line, relative to the farther one, the larger is the knee:
fitness without training is noisy."""


@dataclass
class CurvePoint:
    """The network at one size.

    Attributes:
        target: What was asked for, as ``prune=`` takes it; empty for the dense network.
        macs: Multiply-adds for one image.
        params: Parameters.
        bytes: Size of the checkpoint file, without optimizer.
        fitness: Ultralytics' fitness, without any training since the cut; None without validation.
        latency: Seconds for one image, as predicted from what was measured, or None.
        plan_sha256: Hash of the plan; empty for the dense network.
        seconds: Wall time of plan, cut and validation.
    """

    target: str
    macs: int
    params: int
    bytes: int
    fitness: float | None
    latency: float | None = None
    plan_sha256: str = ""
    seconds: float = 0.0

    def amount(self, quantity: str) -> float:
        """Return how much it has of one of `targets.QUANTITIES`."""
        amounts = {MACS: self.macs, PARAMS: self.params, BYTES: self.bytes, LATENCY: self.latency}
        return float(amounts[quantity] or 0)


@dataclass
class Curve:
    """What `curve` found, as it is in ``curve.json``.

    Attributes:
        model: The model's file.
        data: The data set.
        task: Ultralytics' name of the task.
        imgsz: Height and width in pixels.
        quantity: What the sizes are of, one of `targets.QUANTITIES`.
        dense: The network as it is.
        points: The sizes, the largest first, as far as they are done.
        out_of_reach: Why sizes are missing, or None.
        timed: Where latencies were measured, or None.
        folder: Where ``curve.json`` and its page are.
    """

    model: str
    data: str
    task: str
    imgsz: list[int]
    quantity: str
    dense: CurvePoint
    points: list[CurvePoint] = field(default_factory=list)
    out_of_reach: str | None = None
    timed: dict[str, Any] | None = None
    folder: Path | None = None

    @property
    def knee(self) -> CurvePoint | None:
        """The size at which the curve bends: it lies farthest above the line from the dense network to the smallest.

        That is the rule of Satopaa et al. 2011, "Finding a Kneedle in a Haystack", section 3; of several that lie about
        as far (`NEAR`) it is the largest. There is none where the smallest size loses less than `FLAT` of the dense
        fitness, or where the curve is about straight (`STRAIGHT`).
        """
        known = [p for p in (self.dense, *self.points) if p.fitness is not None]
        if len(known) < 3 or known[0] is not self.dense:
            return None
        (x0, y0), *inner, (x1, y1) = ((p.amount(self.quantity), p.fitness or 0.0) for p in known)
        lost = y0 - y1
        if self.is_flat or not y0 or x0 <= x1:
            return None
        above = [y - (y1 + lost * (x - x1) / (x0 - x1)) for x, y in inner]
        best = next(i for i, distance in enumerate(above) if distance >= (1 - NEAR) * max(above) or max(above) <= 0)
        return known[1 + best] if max(above) > STRAIGHT * lost else None

    @property
    def is_flat(self) -> bool:
        """Whether the smallest size loses next to nothing."""
        known = [p.fitness for p in (self.dense, *self.points) if p.fitness is not None]
        return len(known) > 1 and known[0] > 0 and known[0] - known[-1] <= FLAT * known[0]

    @property
    def advice(self) -> str:
        """What to type next, and why, in a line."""
        if not self.points or self.dense.fitness is None or self.points[-1].fitness is None:
            return "no fitness was measured, so there is no knee"
        if not self.dense.fitness:
            return "the model has learned nothing of this data set, so there is no knee"
        if self.knee:
            return f"the knee is at {self.knee.target}; next: {self.command(self.knee.target)}"
        if self.is_flat:
            smallest = self.points[-1].target
            return f"no knee: even {smallest} loses next to nothing; next: {self.command(smallest)}, or smaller sizes="
        return "no knee: what is lost grows evenly, so the size is a matter of what you can spare"

    def command(self, target: str) -> str:
        """Return the training that prunes to a size."""
        words = ["yolo", "train", f"model={self.model}", f"data={self.data}", "epochs=50", f"imgsz={max(self.imgsz)}"]
        return shlex.join([*words, f"prune={target}"])

    def table(self) -> str:
        """Return a row for each size, with its change from the dense network."""
        has_latency = self.dense.latency is not None
        rows: list[tuple[str, ...]] = [("size", "MACs", "params", "file", *["predicted"] * has_latency, "fitness", "")]
        for p in (self.dense, *self.points):
            latency = [milliseconds(p.latency) + change(p.latency, self.dense.latency)] * has_latency
            sizes = (
                count(p.macs) + change(p.macs, self.dense.macs),
                count(p.params) + change(p.params, self.dense.params),
                megabytes(p.bytes) + change(p.bytes, self.dense.bytes),
            )
            cells = (*sizes, *latency, score(p.fitness) + change(p.fitness, self.dense.fitness))
            if p is self.dense:
                cells = tuple(cell.removesuffix(" (+0.0%)") for cell in cells)
            rows.append((p.target or "dense", *cells, "knee" if p is self.knee else ""))
        return "\n".join([aligned(rows), *filter(None, [self.out_of_reach])])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = {name: value for name, value in asdict(self).items() if name != "folder"}
        knee = self.knee
        return {"schema": SCHEMA, **data, "knee": knee and knee.target, "advice": self.advice, "versions": versions()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Curve:
        """Read what ``to_dict`` wrote."""
        names = ("model", "data", "task", "imgsz", "quantity", "out_of_reach", "timed")
        points = [CurvePoint(**of) for of in data["points"]]
        return cls(**{name: data[name] for name in names}, dense=CurvePoint(**data["dense"]), points=points)

    def save(self, folder: Path) -> Path:
        """Write ``curve.json`` into a folder; a reader never sees half of it."""
        path = folder / "curve.json"
        write_json(path, self.to_dict())
        return path
