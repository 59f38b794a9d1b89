"""Accuracy after pruning: ours, its ingredients, and what one would do otherwise, trained for equally long.

    python benchmarks/accuracy.py --shared ../shared             # all runs: most of a day on two cores
    python benchmarks/accuracy.py --jobs 2                       # two at a time, a core each: in half of that
    python benchmarks/accuracy.py --only yolov8n-bccd-s0         # runs with this in their names
    python benchmarks/accuracy.py --table                        # print the tables of what is there

Every case starts from a dense model, fine-tuned for 25 epochs from pretrained weights. The contenders get 25 more:

    dense     the dense model, trained on
    usual     the usual recipe: one uniform cut by L2 norm, the whole head left as it is, then a new training run
    ours      yolo_prune with its defaults; or with one ingredient removed or added (see INGREDIENTS)

Two contenders get all 50 epochs at once:

    narrow    the model built with uniformly fewer channels for the same MACs, from random weights
    one-run   yolo_prune in one run from the pretrained weights, with the cuts inside

Each run writes a file of its own to ``benchmarks/results/accuracy/``; runs whose file is there are skipped.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from training import ENVIRONMENT, data_yaml, parser_of, train, write

RESULTS = Path(__file__).parent / "results" / "accuracy"
EPOCHS = 25
TRAIN = ("batch=16", "workers=0", "plots=False", "imgsz=224")
INGREDIENTS: dict[str, tuple[str, ...]] = {
    "without reconstruction": ("prune_reconstruction=False",),
    "recalibration": ("prune_bn_recalibration=True",),
    "recalibration instead": ("prune_reconstruction=False", "prune_bn_recalibration=True"),
    "one cut": ("prune_schedule=one-shot",),
    "same share everywhere": ("prune_allocation=uniform",),
    "isomorphic": ("prune_allocation=isomorphic",),
    "Taylor": ("prune_importance=taylor", "prune_allocation=isomorphic"),
    "L2, same share": ("prune_importance=l2", "prune_allocation=uniform"),
    "whole head left": ("prune_ignored_layers=model.22.*",),
    "searched allocation": ("prune_allocation=search",),
    "multiples of sixteen": ("prune_round_to=16",),
    "distillation": ("prune_distill=True",),
    "sparsity learning": ("prune_sparsity=group_lasso",),
    "re-warmed learning rate": ("prune_lr_after_cut=rewarm",),
    "rewound learning rate": ("prune_lr_after_cut=rewind",),
}
"""Name -> arguments that take one ingredient away from the defaults, or add one; Taylor goes with isomorphic groups."""
CONTENDERS = ("dense", "usual", "narrow", "ours", "one-run")
"""Columns of the comparison."""
REMOVED = {"recalibration", "recalibration instead", "searched allocation", "re-warmed learning rate"}
"""Ingredients whose options are gone, because of what was measured of them; no run is made of them any more."""
BEYOND = {
    "recalibration instead",
    "L2, same share",
    "searched allocation",
    "multiples of sixteen",
    "rewound learning rate",
}
"""Ingredients that are looked at with one seed only."""


@dataclass(frozen=True)
class Case:
    """A dense model and a data set.

    Attributes:
        model: Ultralytics' name of the model.
        data: Folder in ``shared/data``.
        seed: Seed of all its runs.
    """

    model: str
    data: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.model}-{self.data}-s{self.seed}"

    @property
    def metric(self) -> str:
        """Key of Ultralytics' results that is compared."""
        return "mAP50-95(M)" if self.model.endswith("-seg") else "mAP50-95(B)"

    def start(self, runs: Path) -> Path:
        """Return the dense model that all contenders start from."""
        return runs / f"{self}-start" / "weights" / "best.pt"

    def pretrained(self, shared: Path) -> tuple[str, ...]:
        """Return the arguments for the pretrained weights; other tasks than detection take what fits."""
        weights = shared / "weights" / f"{self.model.partition('-')[0]}-from-int8.pt"
        return (f"model={self.model}.yaml", f"pretrained={weights}") if "-" in self.model else (f"model={weights}",)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        case: Model, data and seed.
        contender: ``start``, or one of those above; ``ours`` may have an ingredient: ``ours:one cut``.
        kept: Percent of the dense model's MACs that are kept.
    """

    case: Case
    contender: str
    kept: int = 100

    @property
    def name(self) -> str:
        """Name of its folder and file."""
        plain = re.sub(r"[^a-z]+", "-", self.contender.lower())
        return "-".join((str(self.case), plain, *([str(self.kept)] * (self.kept < 100))))

    def arguments(self, shared: Path, runs: Path) -> tuple[str, ...]:
        """Return what follows ``yolo train``; prepare the checkpoint that it starts from."""
        epochs, removed = EPOCHS, f"{1 - self.kept / 100:.2f}"
        start = self.case.start(runs)
        model: tuple[str, ...] = (f"model={start}",)
        prune: tuple[str, ...] = ()
        kind, _, ingredient = self.contender.partition(":")
        if kind == "start":
            model = self.case.pretrained(shared)
        elif kind in ("usual", "narrow"):
            prepared = runs / f"{self.name}.pt"
            here = [sys.executable, __file__, "--prepare", kind, str(start), removed, str(prepared)]
            subprocess.run(here, check=True, env=ENVIRONMENT)
            model, prune = (f"model={prepared}",), ("prune=0",)
            epochs *= 2 if kind == "narrow" else 1
        elif kind == "one-run":
            model, prune = self.case.pretrained(shared), (f"prune={removed}",)
            epochs *= 2
        elif kind == "ours":
            prune = (f"prune={removed}", *(INGREDIENTS[ingredient] if ingredient else ()))
        if prune:
            prune = (*prune, "prune_benchmark=False")  # no stopwatch while other runs go on
        data = f"data={data_yaml(shared, self.case.data)}"
        return (*model, data, f"epochs={epochs}", f"seed={self.case.seed}", *TRAIN, *prune)


MAIN = [Case(model, "bccd", seed) for seed in range(3) for model in ("yolov8n", "yolo11n")]
OTHERS = [Case("yolo26n", "bccd"), Case("yolov8n", "raccoon"), Case("yolov8n-seg", "nuclei-seg")]
TIMED = [MAIN[-1], *OTHERS]
"""Cases of which all runs were made side by side on one machine, two at a time."""


def planned() -> list[Run]:
    """Return all runs, in an order in which each finds what it starts from: the comparison, then the ablation."""
    runs = []
    for case in (*MAIN, *OTHERS):
        runs.append(Run(case, "start"))
        runs += [Run(case, "dense"), *(Run(case, c, 50) for c in ("ours", "usual", "narrow"))]
        if case in MAIN:
            runs.append(Run(case, "one-run", 50))
        if case in MAIN[:2]:
            runs += [Run(case, c, kept) for kept in (70, 30) for c in ("ours", "usual", "narrow")]
    for seed, names in ((0, INGREDIENTS.keys() - BEYOND), (1, INGREDIENTS.keys() - BEYOND), (0, BEYOND)):
        runs += [Run(Case("yolov8n", "bccd", seed), f"ours:{name}", 50) for name in INGREDIENTS if name in names]
    return runs


def prepare(kind: str, start: str, removed: str, path: str) -> None:
    """Write the checkpoint that a baseline trains on.

    ``usual`` is what Torch-Pruning's YOLO example does: the same share of every layer's channels by L2 norm, nothing in
    the head, any width, and nothing done about the weights and statistics that stay.
    """
    from ultralytics import YOLO

    from yolo_prune import prune_model
    from yolo_prune.cost.model import CostModel
    from yolo_prune.graph.trace import trace

    model, share = YOLO(start), float(removed)
    uniform = {"importance": "l2", "allocation": "uniform", "imgsz": 224}
    if kind == "usual":
        prune_model(model, share, ignored_layers=[f"model.{len(model.model.model) - 1}.*"], round_to=1, **uniform)
    else:
        macs = CostModel(trace(model.model, 224)).macs() * (1 - share)
        yaml = model.model.yaml
        model.model = type(model.model)(yaml["yaml_file"], nc=yaml["nc"], verbose=False)
        prune_model(model, 1 - macs / CostModel(trace(model.model, 224)).macs(), **uniform)
    model.save(path)


def table() -> str:
    """Return the comparison: per case and share of MACs kept, what each contender reached, over the seeds of ours."""
    lines = [
        "| model, data | seeds | MACs kept | " + " | ".join(CONTENDERS) + " |",
        "|---" * (3 + len(CONTENDERS)) + "|",
    ]
    for model, data, seeds, kept, means in comparison():
        cells = ("" if mean is None else f"{mean:.3f}" for mean in means.values())
        lines.append(f"| {model}, {data} | {seeds} | {kept} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary() -> str:
    """Return the rows of the comparison that the README shows, without what is trained in one run."""
    lines = [
        "| model, data | MACs kept | dense | usual recipe | narrower model | yolo_prune |",
        "|---|---|---|---|---|---|",
    ]
    for model, data, _, kept, means in comparison():
        if kept == 50 or (model, kept) == ("yolov8n", 30):
            cells = (f"{means[contender]:.3f}" for contender in ("dense", "usual", "narrow", "ours"))
            lines.append(f"| {model}, {data} | {kept} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison() -> Iterator[tuple[str, str, int, int, dict[str, float | None]]]:
    """Yield model, data, number of seeds, percent of the MACs kept, and each contender's mean where all are made."""
    rows: dict[tuple[str, str, int], list[Case]] = {}
    for run in planned():
        if run.contender == "ours" and score(run) is not None:
            rows.setdefault((run.case.model, run.case.data, run.kept), []).append(run.case)
    order = list(dict.fromkeys(row[:2] for row in rows))
    for (model, data, kept), cases in sorted(rows.items(), key=lambda row: (order.index(row[0][:2]), -row[0][2])):
        means: dict[str, float | None] = {}
        for contender in CONTENDERS:
            scores = [score(Run(case, contender, 100 if contender == "dense" else kept)) for case in cases]
            made = [s for s in scores if s is not None]
            means[contender] = mean(made) if len(made) == len(cases) else None
        yield model, data, len(cases), kept, means


def ablation() -> str:
    """Return what each ingredient brings: the lowest accuracy right after a cut, the final one, and its change."""
    lines = ["| ours at 50 % of the MACs | seeds | right after a cut | mAP50-95 | change |", "|---|---|---|---|---|"]
    runs = [run for run in planned() if run.contender.startswith("ours:")]
    for name in ("", *INGREDIENTS):
        cases = [run.case for run in runs if run.contender == f"ours:{name or next(iter(INGREDIENTS))}"]
        made = [run for case in cases if score(run := Run(case, f"ours:{name}" if name else "ours", 50)) is not None]
        if made:
            lowest = mean(min(cut["fitness_cut"] for cut in (result(run) or {})["report"]["cuts"]) for run in made)
            final, default = (
                mean(score(run) or 0 for run in of) for of in (made, [replace(run, contender="ours") for run in made])
            )
            cell = f"{final - default:+.3f}" if name else ""
            lines.append(f"| {name or 'defaults'} | {len(made)} | {lowest:.3f} | {final:.3f} | {cell} |")
    return "\n".join(lines)


def make(run: Run, shared: Path, runs: Path, start: Future[None] | None = None) -> None:
    """Train, unless the result is there, and for a dense model that others ``start`` from its checkpoint as well."""
    if start:
        start.result()
    file = RESULTS / f"{run.name}.json"
    there = file.exists() and (run.contender != "start" or run.case.start(runs).exists())
    if not there:
        write(file, train(run.arguments(shared, runs), runs / run.name, shared))


def time_table() -> str:
    """Return what training took: seconds per epoch, and minutes in total, with what is done between the epochs."""
    lines = ["| model, data | " + " | ".join(CONTENDERS) + " |", "|---" * (1 + len(CONTENDERS)) + "|"]
    for case in TIMED:
        cells = []
        for contender in CONTENDERS:
            made = result(Run(case, contender, 100 if contender == "dense" else 50))
            cells.append(f"{made['seconds']['per_epoch']} s ({made['seconds']['total'] / 60:.1f} min)" if made else "")
        lines.append(f"| {case.model}, {case.data} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def score(run: Run) -> float | None:
    """Return a run's accuracy, or None where it has not been made."""
    made = result(run)
    return made and made["plain_process"]["metrics"][run.case.metric]


def result(run: Run) -> dict[str, Any] | None:
    """Return what a run has left, or None where it has not been made."""
    file = RESULTS / f"{run.name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--prepare", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(*args.prepare)
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    shared, runs = args.shared.resolve(), args.runs.resolve()
    possible = [run for run in planned() if run.contender.partition(":")[2] not in REMOVED]
    wanted = [] if args.table else [run for run in possible if any(part in run.name for part in args.only)]
    with ThreadPoolExecutor(args.jobs) as pool:
        starts = {r.case: pool.submit(make, r, shared, runs) for r in wanted if r.contender == "start"}
        others = [pool.submit(make, r, shared, runs, starts.get(r.case)) for r in wanted if r.contender != "start"]
        for made in (*starts.values(), *others):
            made.result()  # raises what went wrong
    print(table(), ablation(), time_table(), sep="\n\n")


if __name__ == "__main__":
    main()
