"""Three sizes from one run, beside three runs: of the same epochs in all, and of as many each.

    python benchmarks/sizes.py --shared ../shared                 # every run whose result is not there yet
    python benchmarks/sizes.py --only bccd-s0,family              # runs with all of this in their names
    python benchmarks/sizes.py --table                            # print the tables of what is there

All runs of a data set start from one dense model, trained where it is not there yet, with a seed of their own.
``family`` is one run of 45 epochs with ``prune_sizes=0.3,0.5,0.7`` and its default, the whole learning-rate curve for
each size; ``family, keep`` leaves the run's curve as it is. ``third`` is three runs of 15 epochs, ``whole`` three of
45. Each model is validated in a process that cannot import yolo_prune.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import TRAIN, Case, trained_start
from training import ALONE, data_of, make_missing, rows_of, train
from validation import Judged, accuracy, difference, validate

RESULTS = Path(__file__).parent / "results" / "sizes.json"
CASES = {Case("yolov8n", "bccd"): 3, Case("yolov8n", "deeppcb"): 1}
"""What the runs start from -> how many seeds they have."""
SIZES, EPOCHS = (0.3, 0.5, 0.7), 45
WAYS = {
    "family": (),
    "family, keep": ("prune_lr_after_cut=keep",),
    "third": (),
    "whole": (),
}
"""Name -> options of the pruning."""


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        start: The dense model, and its data.
        seed: Of the training.
        way: One of `WAYS`.
        size: Share of the MACs that goes; None for all of `SIZES` in one run.
    """

    start: Case
    seed: int
    way: str
    size: float | None = None

    def __str__(self) -> str:
        kept = "" if self.size is None else f"-{100 - round(100 * self.size)}"
        return f"{self.start.model}-{self.start.data}-s{self.seed}-{self.way.replace(', ', '-')}{kept}"

    @property
    def epochs(self) -> int:
        """How long it trains."""
        return EPOCHS // len(SIZES) if self.way == "third" else EPOCHS


def trainings() -> Iterator[Training]:
    """Yield all trainings, seed by seed."""
    for start, seeds in CASES.items():
        for seed, way in product(range(seeds), WAYS):
            for size in (None,) if way.startswith("family") else SIZES:
                yield Training(start, seed, way, size)


def made(training: Training, shared: Path, runs: Path) -> dict[str, Any]:
    """Train, and return the accuracy of each size."""
    start, folder, data = training.start, runs / f"sizes-{training}", data_of(shared, training.start.data)
    length = (f"epochs={training.epochs}", f"imgsz={start.imgsz}", f"seed={training.seed}")
    sizes = f"prune={training.size}" if training.size is not None else f"prune_sizes={','.join(map(str, SIZES))}"
    options = (sizes, "prune_benchmark=False", *ALONE, *WAYS[training.way])
    found = train(
        (f"model={trained_start(start, shared, runs)}", f"data={data}", *length, *TRAIN, *options), folder, shared
    )
    report, judged = found["report"], found["plain_process"]
    if training.size is not None:
        reached = {str(training.size): (report["final"], judged)}
    else:
        *before, last = report["sizes"]  # the last one's file is best.pt as well
        files = [(size, folder / "weights" / f"best-{size['size']}.pt") for size in before]
        reached = {size["size"]: (size, validate(file, str(data), start.imgsz)) for size, file in files}
        reached[last["size"]] = (last, judged)
    return {
        "epochs": training.epochs,
        "imgsz": start.imgsz,
        "seed": training.seed,
        "seconds": found["seconds"],
        "sizes": {
            name: {
                "macs_kept": of["macs"] / report["dense"]["macs"],
                "pruned": judgement["metrics"][start.metric],
                "resampled": judgement["resampled"][start.metric],
            }
            for name, (of, judgement) in reached.items()
        },
    }


def main() -> None:
    """Make the runs that are missing, and print the tables."""
    make_missing(__doc__, RESULTS, trainings(), made, table, difference_table)


def found(start: Case, way: str, size: float) -> dict[int, dict[str, Any]]:
    """Return what a way has made of a size, by seed."""
    rows = rows_of(RESULTS)
    there = (t for t in trainings() if (t.start, t.way) == (start, way) and t.size in {None, size})
    return {t.seed: rows[str(t)]["sizes"][str(size)] for t in there if str(t) in rows}


def table() -> str:
    """Return the mean accuracy of each way at each size, with its standard error, over the seeds that are there."""
    lines = [
        "| model, data | way | seeds | epochs in all | " + " | ".join(f"{size:.0%} removed" for size in SIZES) + " |",
        "|---" * (4 + len(SIZES)) + "|",
    ]
    for start, way in product(CASES, WAYS):
        sizes = [found(start, way, size) for size in SIZES]
        if any(sizes):
            cells = (accuracy(_judged(of)) for of in sizes)
            epochs = EPOCHS * len(SIZES) if way == "whole" else EPOCHS
            seeds = " to ".join(map(str, sorted({len(of) for of in sizes if of})))
            lines.append(f"| {start.model}, {start.data} | {way} | {seeds} | {epochs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table() -> str:
    """Return by how many points one run for all sizes is above the other ways, over the seeds that both have."""
    lines = [
        "| family, in points above | | " + " | ".join(f"{size:.0%} removed" for size in SIZES) + " |",
        "|---" * (2 + len(SIZES)) + "|",
    ]
    for start, way in product(CASES, list(WAYS)[1:]):
        cells = [_difference(found(start, "family", size), found(start, way, size)) for size in SIZES]
        if any(cells):
            lines.append(f"| {start.model}, {start.data} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(ours: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> str:
    seeds = ours.keys() & others.keys()
    return difference(*(_judged({seed: of[seed] for seed in seeds}) for of in (ours, others)))


def _judged(of: dict[int, dict[str, Any]]) -> Judged:
    rows = [of[seed] for seed in sorted(of)]
    return Judged([row["pruned"] for row in rows], [row["resampled"] for row in rows])


if __name__ == "__main__":
    main()
