"""Results of `bench`: a row per network and runtime, and the table of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_prune.config.targets import BYTES, MACS, PARAMS, in_units
from yolo_prune.device.stopwatch import QUIET, TRIES
from yolo_prune.utils.files import write_json
from yolo_prune.utils.text import aligned


@dataclass
class Row:
    """One network in one runtime.

    Attributes:
        model: File, or name of an official scale.
        runtime: One of `config.RUNTIMES`, or Ultralytics' name of another format; with a precision as in ``onnx:8``.
        macs: Multiply-adds for one image, where the checkpoint is known.
        params: Parameters, likewise.
        bytes: Size of the file or folder; None for an official scale.
        seconds: Times for one image: lower quartile, median, upper quartile; None where it could not be timed.
        speedup: How many times as fast as the first model that was timed in this runtime, by the lower quartiles (see
            `stopwatch.typical`): medians change more when the machine is busy for a part of the rounds.
        spread: Of the speed-up: its quartiles over parts of the measurement, or what it came to at least and at most
            if it has not settled.
        settled: Whether the speed-up can be told; the table has the spread alone if not.
        fitness: Ultralytics' fitness of this very file on the validation split, where data was given.
        reason: Why it could not be timed, or not be judged.
    """

    model: str
    runtime: str
    macs: int | None = None
    params: int | None = None
    bytes: int | None = None
    seconds: tuple[float, float, float] | None = None
    speedup: float | None = None
    spread: tuple[float, float] | None = None
    settled: bool | None = None
    fitness: float | None = None
    reason: str | None = None


@dataclass
class Bench:
    """Results of `bench`.

    Attributes:
        imgsz: Height and width in pixels.
        rounds: Times that each network ran, in turns with the others; in runtimes that did not settle, each time anew.
        where: Runtime -> its version, device and threads.
        shares: Runtime -> what the slowest thread got of its processor meanwhile (1: all), or None if nobody looked.
        rows: By runtime; models in the order in which they were given, official scales last.
        corrected: Pruned model -> how many times as long as predicted it takes, where a latency file was corrected.
    """

    imgsz: tuple[int, int]
    rounds: int
    where: dict[str, dict[str, Any]] = field(default_factory=dict)
    shares: dict[str, float | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    corrected: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        """Return the table that the command prints."""
        is_judged = any(row.fitness is not None or (row.seconds and row.reason) for row in self.rows)
        cells: list[tuple[str, ...]] = [
            ("model", "runtime", "MACs", "params", "file", "ms (quartiles)", "speed-up", *["fitness"] * is_judged)
        ]
        for row in self.rows:
            amounts = ((MACS, row.macs), (PARAMS, row.params), (BYTES, row.bytes))
            sizes = ("" if amount is None else in_units(quantity, amount) for quantity, amount in amounts)
            low, median, high = (f"{1e3 * s:.1f}" for s in row.seconds or (0.0, 0.0, 0.0))
            timed = (f"{median} ({low}-{high})", _spread(row)) if row.seconds else (row.reason or "", "")
            failed = (row.reason or "") if row.seconds else ""
            fitness = failed if row.fitness is None else f"{row.fitness:.4f}"
            cells.append((row.model, row.runtime, *sizes, *timed, *[fitness] * is_judged))
        told = [f"{name} {w['version']}: {w['device']}, {w['threads']} threads" for name, w in self.where.items()]
        size = f"{self.imgsz[0]}x{self.imgsz[1]} pixels, batch 1"
        how = f"{self.rounds} rounds in turns, speed-ups by lower quartiles"
        return "\n".join([aligned(cells), f"{size}, {how}", *told, *self._warnings(), *self._corrections()])

    def _warnings(self) -> Iterator[str]:
        """Yield which speed-ups not to go by, and why."""
        for name in self.where:
            restless = [row.model for row in self.rows if row.runtime == name and row.settled is False]
            share = self.shares.get(name)
            if share is not None and share < QUIET:
                yield (
                    f"{name}: something else kept this machine busy (a thread got {share:.0%} of its processor), which "
                    "makes speed-ups wrong: do not go by these ranges, and time it again when it is idle"
                )
            elif restless:
                yield f"{name}: {', '.join(restless)} did not settle in {TRIES} measurements, hence a range"

    def _corrections(self) -> Iterator[str]:
        for name, over in self.corrected.items():
            yield f"{name} takes {over:.2f} times as long as predicted, which the next plan by that file allows for"

    def save(self, path: Path) -> None:
        """Write everything as JSON; a reader never sees half of it."""
        write_json(path, asdict(self))


def _spread(row: Row) -> str:
    """Return a speed-up with its spread, or the spread alone if it has not settled."""
    low, high = row.spread or (1.0, 1.0)
    if row.settled is False:
        return f"{low:.2f}x-{high:.2f}x"
    return f"{row.speedup:.2f}x" + (f" ({low:.2f}-{high:.2f})" if low < high else "")
