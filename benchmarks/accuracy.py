"""Accuracy after pruning: ours, its ingredients, and what one would do otherwise, trained for equally long.

    python benchmarks/accuracy.py --shared ../shared             # all runs: some days on two cores
    python benchmarks/accuracy.py --jobs 2                       # two at a time, a core each: in half of that
    python benchmarks/accuracy.py --only yolov8n-bccd-s0         # runs with this in their names
    python benchmarks/accuracy.py --list                         # print which runs are made and which are not
    python benchmarks/accuracy.py --table                        # print the tables of what is there

Every case starts from a dense model, fine-tuned from pretrained weights: for 25 epochs at 224 px, on deeppcb for 50 at
320 px. The contenders get as many more:

    dense     the dense model, trained on
    usual     the usual recipe: one uniform cut by L2 norm, the whole head left as it is, then a new training run
    cwd       one uniform cut by L1 norm, of the head, too, then a training run that learns from the dense model's maps,
              channel by channel (Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction")
    ours      yolo_prune with its defaults; or without distillation, and one ingredient removed or added (INGREDIENTS)

Others get both at once:

    narrow    the model built with uniformly fewer channels for the same MACs, from random weights
    scratch   the network that ours ends with, from random weights
    one-run   yolo_prune in one run from the pretrained weights, with the cuts inside

What ours leaves of 30 % of the MACs is small already, and shows where pruning has nothing more to give:

    small     that network, trained on
    smaller   yolo_prune with its defaults, to half of that network's MACs

Each run writes a file of its own to ``benchmarks/results/accuracy/``; runs whose file is there are skipped, and one
that was interrupted goes on where it was. To make one anew, delete its file and its folder.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import ALONE, ENVIRONMENT, data_of, finish, parser_of, train, write

RESULTS = Path(__file__).parent / "results" / "accuracy"
TRAIN = ("batch=16", "workers=0", "plots=False")
BEST, LAST = "plain_process", "last"
"""What of a result tells of the best epoch, as Ultralytics validates, and of the last, on images as exports have."""
JUDGES = {"deeppcb": LAST}
"""Data set -> what of its results is compared, where it is not the best epoch: see `docs/benchmarks.md`."""
USUALLY, SETTINGS = (25, 224), {"deeppcb": (50, 320), "sign-digits-cls": (25, 96)}
"""Epochs and size of the images in pixels; data set -> the same, where it has its own."""
WITHOUT_TEACHER, BY_FEATURES = "without distillation", "distillation by features"
"""Ingredients: the one that nothing else is taken from, or added to, and the other one that has a teacher."""
INGREDIENTS: dict[str, tuple[str, ...]] = {
    WITHOUT_TEACHER: (),
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
    BY_FEATURES: ("prune_distill=True", "prune_distill_loss=features"),
    "sparsity learning": ("prune_sparsity=group_lasso",),
    "re-warmed learning rate": ("prune_lr_after_cut=rewarm",),
    "rewound learning rate": ("prune_lr_after_cut=rewind",),
    "random channels": ("prune_importance=random", "prune_allocation=uniform"),
}
"""Name -> what takes an ingredient away, or adds one, all without distillation; Taylor goes with isomorphic groups."""
WAYS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "a finished teacher": (50, ("yolo11n",), ("prune_distill={start}/last.pt",)),
    "twice the weight of the teacher": (50, ("yolo11n",), ("dis=12",)),
    "a quarter of each layer stays": (30, ("yolov8n", "yolo11n"), ("prune_max_pruning_ratio=0.75",)),
    "all at once, first": (30, ("yolo11n",), ("prune_schedule=one-shot", "prune_start=0")),
}
"""Name -> percent of the MACs, models, and what is not by default; ``{start}`` has the dense model."""
LABELS_ALONE = f"ours:{WITHOUT_TEACHER}"
"""Ours that learns from labels alone, as the ingredients do."""
CONTENDERS = ("dense", "usual", "cwd", "narrow", "scratch", "ours:random channels", LABELS_ALONE, "ours", "one-run")
"""Columns of the comparison."""
PREPARED = ("usual", "cwd", "narrow", "scratch")
"""Contenders that train on a checkpoint which is made for them."""
SMALL = {"small": 30, "smaller": 15}
"""Contenders that begin with what ours leaves at the first of these percents of the MACs -> what they end with."""
LONG = ("narrow", "scratch", "one-run")
"""Contenders that train for as long as the dense model and its contenders together."""
REMOVED = {"recalibration", "recalibration instead", "searched allocation", "re-warmed learning rate"}
"""Ingredients whose options are gone, because of what was measured of them; no run is made of them any more."""
BEYOND = {
    "recalibration instead",
    "L2, same share",
    "searched allocation",
    "multiples of sixteen",
    "rewound learning rate",
    "random channels",
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
    def epochs(self) -> int:
        """Epochs of the dense model, and as many of its contenders."""
        return SETTINGS.get(self.data, USUALLY)[0]

    @property
    def imgsz(self) -> int:
        """Size of the images in pixels."""
        return SETTINGS.get(self.data, USUALLY)[1]

    @property
    def metric(self) -> str:
        """Key of Ultralytics' results that is compared."""
        return "mAP50-95(M)" if self.model.endswith("-seg") else "mAP50-95(B)"

    @property
    def judge(self) -> str:
        """What of a result is compared."""
        return JUDGES.get(self.data, BEST)

    def start(self, runs: Path) -> Path:
        """Return the dense model that all contenders start from."""
        return runs / f"{self}-start" / "weights" / "best.pt"

    def pretrained(self, shared: Path) -> tuple[str, ...]:
        """Return the arguments for the pretrained weights; segmentation takes what fits of those for detection."""
        if self.model.endswith("-cls"):
            return (f"model={shared / 'weights' / f'{self.model}-from-int8.pt'}",)
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
        start, removed = self.case.start(runs), f"{1 - self.kept / 100:.2f}"
        model: tuple[str, ...] = (f"model={start}",)
        prune: tuple[str, ...] = ()
        kind, _, ingredient = self.contender.partition(":")
        if kind == "start":
            model = self.case.pretrained(shared)
        elif kind in PREPARED:
            like = start if kind != "scratch" else self.pruned(runs, self.kept)
            prepared = runs / f"{self.name}.pt"
            here = [sys.executable, __file__, "--prepare", kind, str(like), removed, str(prepared)]
            subprocess.run(here, check=True, env=ENVIRONMENT)
            model, prune = (f"model={prepared}",), ("prune=0",)
            if kind == "cwd":
                prune = (*prune, f"prune_distill={start}", "prune_distill_loss=cwd")
        elif kind in SMALL:
            model = (f"model={self.pruned(runs, SMALL['small'])}",)
            prune = ("prune=0.5",) if kind == "smaller" else ("prune=0",)
        elif kind == "one-run":
            model, prune = self.case.pretrained(shared), (f"prune={removed}",)
        elif kind == "ours":
            if ingredient in WAYS:
                prune = tuple(argument.format(start=start.parent) for argument in WAYS[ingredient][-1])
            elif ingredient:
                prune = (*(ALONE if ingredient != BY_FEATURES else ()), *INGREDIENTS[ingredient])
            prune = (f"prune={removed}", *prune)
        if prune:
            prune = (*prune, "prune_benchmark=False")  # no stopwatch while other runs go on
        length = (f"epochs={self.case.epochs * (2 if kind in LONG else 1)}", f"imgsz={self.case.imgsz}")
        data = f"data={data_of(shared, self.case.data)}"
        return (*model, data, *length, f"seed={self.case.seed}", *TRAIN, *prune)

    def pruned(self, runs: Path, kept: int) -> Path:
        """Return the network that ours ends with at a share of the MACs."""
        path = runs / Run(self.case, "ours", kept).name / "weights" / "best.pt"
        if not path.exists():
            raise SystemExit(f"{self.name}: {path} is not there, and this begins with its network; train it first.")
        return path


def trained_start(case: Case, shared: Path, runs: Path) -> Path:
    """Return the dense model that a case starts from, trained where it is not there yet."""
    run = Run(case, "start")
    finish(run.arguments(shared, runs), runs / run.name)
    return case.start(runs)


MAIN = [Case(model, "bccd", seed) for seed in range(3) for model in ("yolov8n", "yolo11n")]
PCB = [Case("yolov8n", "deeppcb"), Case("yolo11n", "deeppcb"), Case("yolo26n", "deeppcb")]
AGAIN = [Case(case.model, case.data, 1) for case in PCB[:2]]
"""Second seeds of what is claimed."""
OTHERS = [Case("yolo26n", "bccd"), Case("yolov8n", "raccoon"), Case("yolov8n-seg", "nuclei-seg")]
TIMED = [MAIN[-1], *OTHERS]
"""Cases of which all runs were made side by side on one machine, two at a time."""


def planned() -> list[Run]:
    """Return all runs, in an order in which each finds what it starts from: the comparison, then the ablation."""
    runs = []
    for case in (*MAIN, *PCB, *OTHERS):
        peers = ("usual", "cwd", "narrow") if case in (*MAIN, *PCB) else ("usual", "narrow")
        runs += [Run(case, "start"), Run(case, "dense"), *(Run(case, c, 50) for c in ("ours", LABELS_ALONE, *peers))]
        if case in PCB[:2]:
            runs += [Run(case, c, 30) for c in ("ours", LABELS_ALONE, *peers)]
            runs += [Run(case, f"ours:{name}", of[0]) for name, of in WAYS.items() if case.model in of[1]]
            runs += [Run(case, c, 50) for c in ("scratch", "ours:random channels")]
        if case in MAIN:
            runs.append(Run(case, "one-run", 50))
        if case in MAIN[:2]:
            runs += [Run(case, c, kept) for kept in (70, 30) for c in ("ours", LABELS_ALONE, *peers)]
            runs += [Run(case, c, kept) for c, kept in SMALL.items()]
    for case in AGAIN:
        runs += [Run(case, "start"), Run(case, "dense"), *(Run(case, c, 50) for c in ("ours", "usual", "cwd"))]
    usual = INGREDIENTS.keys() - BEYOND - {WITHOUT_TEACHER}
    for seed, names in ((0, usual), (1, usual), (0, BEYOND)):
        runs += [Run(Case("yolov8n", "bccd", seed), f"ours:{name}", 50) for name in INGREDIENTS if name in names]
    return runs


def prepare(kind: str, start: str, removed: str, path: str) -> None:
    """Write the checkpoint that a contender trains on.

    ``usual`` is what Torch-Pruning's YOLO example does: the same share of every layer's channels by L2 norm, nothing in
    the head, any width, and nothing done about the weights and statistics that stay.
    """
    from ultralytics import YOLO
    from ultralytics.nn.modules.block import DFL

    from yolo_prune import prune_model
    from yolo_prune.cost.model import CostModel
    from yolo_prune.graph.trace import trace

    model, share = YOLO(start), float(removed)
    uniform = {"allocation": "uniform", "imgsz": 224}
    if kind == "usual":
        head = f"model.{len(model.model.model) - 1}.*"
        prune_model(model, share, importance="l2", ignored_layers=[head], round_to=1, **uniform)
    elif kind == "cwd":
        prune_model(model, share, importance="l1", **uniform)
    elif kind == "narrow":
        macs = CostModel(trace(model.model, 224)).macs() * (1 - share)
        yaml = model.model.yaml
        model.model = type(model.model)(yaml["yaml_file"], nc=yaml["nc"], verbose=False)
        prune_model(model, 1 - macs / CostModel(trace(model.model, 224)).macs(), importance="l2", **uniform)
    else:
        constants = {module.conv for module in model.model.modules() if isinstance(module, DFL)}
        for module in set(model.model.modules()) - constants:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        model.model.model[-1].bias_init()
    model.save(path)


def make(run: Run, shared: Path, runs: Path, start: Future[None] | None = None) -> None:
    """Train, unless the result is there, and for a dense model that others ``start`` from its checkpoint as well."""
    if start:
        start.result()
    file = RESULTS / f"{run.name}.json"
    there = file.exists() and (run.contender != "start" or run.case.start(runs).exists())
    if not there:
        write(file, train(run.arguments(shared, runs), runs / run.name, shared))


def score(run: Run) -> float | None:
    """Return a run's accuracy, or None where it has not been made."""
    made = result(run)
    return made and made[run.case.judge]["metrics"][run.case.metric]


def result(run: Run) -> dict[str, Any] | None:
    """Return what a run has left, or None where it has not been made."""
    file = RESULTS / f"{run.name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def main() -> None:
    """Make the runs that are missing and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--list", action="store_true", help="only print which runs are made")
    parser.add_argument("--prepare", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(*args.prepare)
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    shared, runs = args.shared.resolve(), args.runs.resolve()
    possible = [run for run in planned() if run.contender.partition(":")[2] not in REMOVED]
    wanted = [] if args.table else [run for run in possible if any(part in run.name for part in args.only)]
    if args.list:
        print(*(f"{'made' if result(run) else 'to do':6} {run.name}" for run in wanted), sep="\n")
        return
    with ThreadPoolExecutor(args.jobs) as pool:
        starts = {r.case: pool.submit(make, r, shared, runs) for r in wanted if r.contender == "start"}
        others = [pool.submit(make, r, shared, runs, starts.get(r.case)) for r in wanted if r.contender != "start"]
        for made in (*starts.values(), *others):
            made.result()  # raises what went wrong
    from accuracy_tables import tables  # which needs this module

    print(tables())


if __name__ == "__main__":
    main()
