"""What recovers a cut to half of the MACs: learning rates, where cuts fall, distillation, and what stays.

    python benchmarks/recovery.py --shared ../shared            # every row that is not there yet
    python benchmarks/recovery.py --only yolo11n,s0             # rows with all of this in their names
    python benchmarks/recovery.py --table                       # print the tables of what is there

Each run starts from the dense model that `accuracy.py` makes on bccd, 224 px. The first learns from no teacher and has
all else as it is by default; of the others `WAYS` says what is changed. Dense models are trained in the same ways, for
as long. Validated in a process that cannot import yolo_prune.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import TRAIN, Case, trained_start
from training import ALONE, data_of, make_missing, rows_of, train
from validation import accuracy, difference, judged

RESULTS = Path(__file__).parent / "results" / "recovery.json"
KEPT, EPOCHS, LONGER, METRIC = 50, 25, (50, 100), "mAP50-95(B)"
MODELS = ("yolo11n", "yolov8n")
OF_CUTS = ("epoch", "macs", "params", "fitness_cut", "fitness_recovered")
"""What is kept of a report's cuts."""
GENTLY = ("optimizer=AdamW", "momentum=0.9", "warmup_bias_lr=0")
"""What ``optimizer=auto`` chooses of so little data, of which the rate alone can then be given."""
TAUGHT, USUAL = ("prune_distill=True",), "nothing else"
"""What a way has that learns from the dense model, and the way that changes nothing and learns from labels alone."""
WAYS: dict[str, tuple[str, ...]] = {
    USUAL: ALONE,
    "no more than 60 % of a layer": (*ALONE, "prune_max_pruning_ratio=0.6"),
    "same share everywhere": (*ALONE, "prune_allocation=uniform"),
    "by importance alone": (*ALONE, "prune_per_cost=False"),
    "without reconstruction": (*ALONE, "prune_reconstruction=False"),
    "all at once, first": (*ALONE, "prune_schedule=one-shot", "prune_start=0"),
    "a third of the learning rate": (*ALONE, *GENTLY, "lr0=0.0005"),
    "a tenth of the learning rate": (*ALONE, *GENTLY, "lr0=0.00015"),
    "no mosaic": (*ALONE, "mosaic=0"),
    "features": (*TAUGHT, "prune_distill_loss=features"),
    "cwd": (*TAUGHT, "prune_distill_loss=cwd"),
    "outputs": TAUGHT,
    "outputs of the start": ("prune_distill={start}",),
    "outputs, twice the weight": (*TAUGHT, "dis=12"),
    "outputs, four times the weight": (*TAUGHT, "dis=24"),
    "outputs, no more than 60 % of a layer": (*TAUGHT, "prune_max_pruning_ratio=0.6"),
}
"""Name -> arguments, where ``{start}`` is the dense model that the run starts from."""
DENSE = (USUAL, "a third of the learning rate", "a tenth of the learning rate", "no mosaic")
"""Ways in which a dense model is trained, too."""
OF_BOTH, OF_LONGER = (USUAL, "outputs", "outputs of the start"), (USUAL, "outputs")
"""Ways of YOLOv8n, too; of longer runs."""


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        case: Model, data and seed.
        way: One of `WAYS`.
        epochs: For which it is trained.
        is_dense: Whether nothing is cut.
    """

    case: Case
    way: str
    epochs: int = EPOCHS
    is_dense: bool = False

    def __str__(self) -> str:
        way = re.sub(r"[^a-z0-9.]+", "-", self.way.lower()).strip("-")
        return "-".join((str(self.case), *(["dense"] * self.is_dense), way, str(self.epochs)))


def rows() -> Iterator[Row]:
    """Yield all rows, the most important first."""
    for seed, model in product(range(3), MODELS):
        case, is_first = Case(model, "bccd", seed), model == MODELS[0]
        yield from (Row(case, way) for way in WAYS if is_first or way in OF_BOTH)
        yield from (Row(case, way, is_dense=True) for way in DENSE if is_first or way == USUAL)
        for epochs in LONGER if is_first else ():
            yield from (Row(case, way, epochs) for way in OF_LONGER)
            yield Row(case, USUAL, epochs, is_dense=True)


def main() -> None:
    """Make the rows that are missing, and print the tables."""
    make_missing(__doc__, RESULTS, rows(), made, table)


def made(row: Row, shared: Path, runs: Path) -> dict[str, Any]:
    """Train a network, and return its row."""
    start, folder = trained_start(row.case, shared, runs), runs / f"recovery-{row}"
    length = (f"epochs={row.epochs}", f"imgsz={row.case.imgsz}", f"seed={row.case.seed}")
    way = [argument.format(start=start) for argument in WAYS[row.way]]
    if row.is_dense:
        way = [argument for argument in way if not argument.startswith("prune")]
    else:
        way = [f"prune={1 - KEPT / 100}", "prune_benchmark=False", *way]
    data = f"data={data_of(shared, row.case.data)}"
    found = train((f"model={start}", data, *length, *TRAIN, *way), folder, shared)
    cuts = [{key: cut[key] for key in OF_CUTS} for cut in found["report"].get("cuts", ())]
    return {**{key: found[key] for key in ("plain_process", "seconds", "by_epoch")}, "cuts": cuts}


def table() -> str:
    """Return what each way reaches, its difference to nothing else for as many epochs, and a dense model trained so."""
    lines = [
        "| half of the MACs, and | model | epochs | seeds | mAP50-95 | against that, in points | dense, so |",
        "|---" * 7 + "|",
    ]
    there = rows_of(RESULTS)
    for model, epochs, way in product(MODELS, (EPOCHS, *LONGER), WAYS):
        key = (model, epochs, way)
        found = [row for row in rows() if (row.case.model, row.epochs, row.way) == key and str(row) in there]
        if cut := [row for row in found if not row.is_dense]:
            usual = [row for row in (replace(row, way=USUAL) for row in cut) if str(row) in there]
            dense = [row for row in found if row.is_dense]
            validated = ([there[str(row)]["plain_process"] for row in of] for of in (cut, usual, dense))
            mine, theirs, of_dense = (judged(of, METRIC) for of in validated)
            gain = difference(mine, theirs) if way != USUAL and len(cut) == len(usual) else ""
            cells = (way, model, epochs, len(cut), accuracy(mine), gain, accuracy(of_dense))
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
