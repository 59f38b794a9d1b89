"""How far ``prune=auto`` goes within a drop, and what is left of the accuracy, beside runs of one target.

    python benchmarks/auto.py --shared ../shared        # every run whose result is not there yet
    python benchmarks/auto.py --only nuclei             # runs with this in their names
    python benchmarks/auto.py --table                   # print the table of what is there

Each run has 48 epochs from a dense model that is trained as the one that runs of one target start from. The pretrained
network on coco-part, whose 80 classes have 128 training images, is where nothing is expected to go; the digits, with
1,000 of ten, are where most is. Each result is validated in a process that cannot import yolo_prune.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import stdev
from typing import Any

import sizes
from accuracy import LABELS_ALONE, TRAIN, Case, Run, result, trained_start
from training import data_of, make_missing, rows_of, train
from validation import INTERVAL, validate

RESULTS = Path(__file__).parent / "results" / "auto.json"
EPOCHS = 48
DROPS = (0.01, 0.02, 0.005)
CASES = (
    Case("yolov8n", "bccd"),
    Case("yolov8n-seg", "nuclei-seg"),
    Case("yolov8n-cls", "sign-digits-cls"),
    Case("yolov8n", "deeppcb"),
)
HARD = Case("yolov8n", "coco-part")
IMGSZ = {HARD: 416}
ONE_TARGET = (70, 50, 30)
"""Per cent of the multiply-adds that runs of one target keep."""


@dataclass(frozen=True)
class Search:
    """One run.

    Attributes:
        case: Model and data.
        drop: Of the fitness, as a share of the dense one.
    """

    case: Case
    drop: float

    def __str__(self) -> str:
        return f"{self.case}-{self.drop:g}"

    def start(self, shared: Path, runs: Path) -> Path:
        """Return the dense model, trained where it is not there yet."""
        if self.case == HARD:
            return shared / "weights" / f"{self.case.model}-from-int8.pt"
        return trained_start(self.case, shared, runs)


def searches() -> list[Search]:
    """Return all runs, the most important first."""
    return [*(Search(case, drop) for case, drop in product(CASES, DROPS)), Search(HARD, DROPS[0])]


def made(search: Search, shared: Path, runs: Path) -> dict[str, Any]:
    """Train, and return what was reached."""
    case, data, start = search.case, data_of(shared, search.case.data), search.start(shared, runs)
    imgsz = IMGSZ.get(case, case.imgsz)
    settings = (f"model={start}", f"data={data}", f"epochs={EPOCHS}", f"imgsz={imgsz}", f"seed={case.seed}", *TRAIN)
    options = ("prune=auto", f"prune_max_drop={search.drop:g}", "prune_benchmark=False")
    found = train((*settings, *options), runs / f"auto-{search}", shared)
    report, dense, pruned = found["report"], validate(start, str(data), imgsz), found["plain_process"]
    return {
        "imgsz": imgsz,
        "macs_kept": report["final"]["macs"] / report["dense"]["macs"],
        "params_kept": report["final"]["params"] / report["dense"]["params"],
        "guard": report["guard"],
        "dense": dense["metrics"]["fitness"],
        "pruned": pruned["metrics"]["fitness"],
        "error": drop_error(dense["resampled"], pruned["resampled"]),
        "seconds": found["seconds"],
    }


def drop_error(dense: Mapping[str, Sequence[float]], pruned: Mapping[str, Sequence[float]]) -> float:
    """Return the standard error of a drop, of both networks' accuracies on the same resampled images.

    Ultralytics' fitness goes with the sum of what is resampled: the mAP50-95 of boxes, and of masks or keypoints, or
    both accuracies of classification.
    """
    fitness = [[sum(draw) for draw in zip(*of.values(), strict=True)] for of in (dense, pruned)]
    return stdev(1 - after / before for before, after in zip(*fitness, strict=True))


def main() -> None:
    """Make the runs that are missing, and print the table."""
    make_missing(__doc__, RESULTS, searches(), made, table, epochs=EPOCHS)


def table() -> str:
    """Return the table of the documentation."""
    rows = rows_of(RESULTS)
    lines = [
        "| model, data | drop allowed | cuts that held, and not | MACs kept | params kept | fitness, dense | pruned "
        "| drop | single runs |",
        "|---" * 9 + "|",
    ]
    cases = [*CASES, HARD]
    there = [search for search in searches() if str(search) in rows]
    for search in sorted(there, key=lambda search: (cases.index(search.case), search.drop)):
        row = rows[str(search)]
        drop, interval = 1 - row["pruned"] / row["dense"], INTERVAL * row["error"]
        cells = [
            f"{search.case.model}, {search.case.data}",
            f"{search.drop:.1%}",
            f"{len(row['guard']['tried'])}, {len(row['guard']['failures'])}",
            f"{row['macs_kept']:.0%}",
            f"{row['params_kept']:.0%}",
            f"{row['dense']:.3f}",
            f"{row['pruned']:.3f}",
            f"{100 * drop:.1f} ± {100 * interval:.1f} %",
            beside(search.case, row["macs_kept"], row["dense"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def beside(case: Case, kept: float, dense: float) -> str:
    """Return what single runs have lost, the best of the next larger size and of the next smaller one.

    Args:
        case: Model and data.
        kept: Share of the multiply-adds that the search kept.
        dense: Fitness of the dense model that it started from, as runs of `sizes` do.
    """
    best = {}
    for share in ONE_TARGET:
        made = sizes.found(case, "whole", round(1 - share / 100, 1))
        drops = [(1 - row["pruned"] / dense, sizes.EPOCHS) for seed, row in made.items() if seed == case.seed]
        drops += [(drop, case.epochs)] if (drop := _drop(case, share)) is not None else []
        if drops:
            best[share] = min(drops)
    around = [min((share for share in best if share >= 100 * kept), default=None)]
    around += [max((share for share in best if share < 100 * kept), default=None)]
    return "; ".join(f"{share} %: {100 * best[share][0]:.1f} %, {best[share][1]} epochs" for share in around if share)


def _drop(case: Case, share: int) -> float | None:
    """Return what a run of `accuracy` has lost of the dense model that it started from."""
    made, dense = result(Run(case, LABELS_ALONE, share)), result(Run(case, "start"))
    if not (made and dense):
        return None
    before, after = (of["plain_process"]["metrics"]["fitness"] for of in (dense, made))
    return 1 - after / before


if __name__ == "__main__":
    main()
