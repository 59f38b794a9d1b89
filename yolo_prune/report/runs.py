"""Finished runs side by side: ``compare.json``, its table, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_prune.device.stopwatch import Speedup
from yolo_prune.report.records import Stage
from yolo_prune.report.versions import versions
from yolo_prune.utils.files import write_json
from yolo_prune.utils.text import aligned, count, megabytes, milliseconds, score

SCHEMA = 1


@dataclass
class FinishedRun:
    """One run.

    Attributes:
        name: Of its folder.
        target: What was to go, as ``prune=`` takes it; None for a run without pruning.
        epochs: That it was to train for, or None if nothing was trained.
        start: What it began with: a checkpoint, or a model's YAML.
        seed: Of its random numbers.
        dense: The network before the first cut; None for a run without pruning.
        final: What came out.
        timed: Where latencies of both were measured, or None.
    """

    name: str
    target: str | None
    epochs: int | None
    start: str
    seed: int | None
    dense: Stage | None
    final: Stage
    timed: dict[str, Any] | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether anything was cut."""
        return self.dense is not None


@dataclass
class Comparison:
    """What `compare` found, as it is in ``compare.json``.

    Attributes:
        data: The data set of all of them.
        task: Ultralytics' name of the task.
        imgsz: Height and width in pixels.
        runs: The largest network first.
        scales: Official scales next to them in size, by name; they have random weights, so no accuracy.
        left_out: Folder -> why it is not among them.
        folder: Where ``compare.json`` and its page are.
    """

    data: str
    task: str
    imgsz: list[int]
    runs: list[FinishedRun] = field(default_factory=list)
    scales: dict[str, Stage] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def front(self) -> list[str]:
        """Names of the runs than which no other is both as small and as accurate, the largest first."""
        known = [run for run in self.runs if run.final.fitness is not None and run.final.macs is not None]
        return [run.name for run in known if not any(_beats(other.final, run.final) for other in known)]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {"schema": SCHEMA, **data, "front": self.front, "versions": versions()}

    def save(self, folder: Path) -> Path:
        """Write ``compare.json`` into a folder; a reader never sees half of it."""
        path = folder / "compare.json"
        write_json(path, self.to_dict())
        return path

    def table(self) -> str:
        """Return the table that the command prints."""
        rows: list[tuple[str, ...]] = [
            ("run", "prune", "epochs", "MACs", "params", "file", "latency", "speed-up", "fitness", "dense", "")
        ]
        front = self.front
        for run in self.runs:
            f = run.final
            sizes = (count(f.macs), count(f.params), megabytes(f.bytes), milliseconds(f.latency), faster(f.speedup))
            dense = "" if run.dense is None else dense_told(run.dense)
            epochs = "" if run.epochs is None else str(run.epochs)
            at_front = "*" if run.name in front else ""
            rows.append((run.name, run.target or "", epochs, *sizes, score(f.fitness), dense, at_front))
        rows += [
            (name, "", "", count(s.macs), count(s.params), "", "", "", "", "", "") for name, s in self.scales.items()
        ]
        told = ["* no other run is both as small and as accurate"] * bool(front)
        told += [f"left out: {folder}: {why}" for folder, why in self.left_out.items()]
        return "\n".join([aligned(rows), *told])


def faster(speedup: Speedup | None) -> str:
    """Return ``1.79x``, a range where one figure does not have all of it, or nothing where nothing can be told."""
    if speedup is None or not (speedup.settled or speedup.is_range):
        return ""
    low, high = f"{speedup.low:.2f}", f"{speedup.high:.2f}"
    return f"{low}x" if low == high else f"{low}\N{EN DASH}{high}x"


def dense_told(dense: Stage, tell: Callable[[float | None], str] = score) -> str:
    """Return the fitness of a dense network, and why nothing is compared with it where nothing is."""
    told = tell(dense.reference)
    if dense.finished is None:
        return f"{told} (finished?)"
    return told if dense.finished else f"{told} (not finished)"


def _beats(a: Stage, b: Stage) -> bool:
    """Whether a network is as small and as accurate as another one, and better in one of both."""
    assert a.fitness is not None and b.fitness is not None and a.macs is not None and b.macs is not None
    return a.macs <= b.macs and a.fitness >= b.fitness and (a.macs < b.macs or a.fitness > b.fitness)
