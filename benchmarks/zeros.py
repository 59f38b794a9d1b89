"""Zeros among the weights: what is left of the accuracy at 50, 70 and 90 % and at 2:4, and what the files weigh.

    python benchmarks/zeros.py --shared ../shared            # every row that is not there yet
    python benchmarks/zeros.py --only yolov8n,coco-part      # rows with all of this in their names
    python benchmarks/zeros.py --table                       # print the tables of what is there

Without training each row is one `prune_model`: with its defaults ("solved"), or with weights chosen by magnitude, the
same share of every layer, and the others left as they are. With training it is a run of 25 epochs on bccd from the
dense model that `accuracy.py` makes. Results are validated in a process that cannot import yolo_prune, and "compressed"
is zlib at its best level on the bytes of ``best.pt``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import TRAIN, Case
from training import ALONE, data_of, make_missing, prune, rows_of, train
from validation import validate

from yolo_prune.deploy.formats import compressed_size

RESULTS = Path(__file__).parent / "results" / "zeros.json"
MODELS = ("yolov8n", "yolo11n")
TARGETS = ("50% sparsity", "70% sparsity", "90% sparsity", "2:4")
IMGSZ, EPOCHS = {"coco-part": 416, "bccd": 224}, 25
WAYS: dict[str, dict[str, Any]] = {
    "solved": {},
    "magnitude": {"importance": "l2", "allocation": "uniform", "reconstruction": False},
}
"""Name -> options of `prune_model`."""
METRIC = "mAP50-95(B)"


@dataclass(frozen=True)
class Row:
    """One network with zeros.

    Attributes:
        model: Ultralytics' name of the model.
        data: Folder in ``shared/data``.
        target: As it is typed.
        way: One of `WAYS`.
        epochs: For which it is trained; 0 for none.
    """

    model: str
    data: str
    target: str
    way: str = "solved"
    epochs: int = 0

    def __str__(self) -> str:
        words = (self.model, self.data, self.target.replace("% sparsity", "").replace(":", "of"), self.way)
        return "-".join((*words, *([f"{self.epochs}epochs"] * bool(self.epochs))))


def rows() -> Iterator[Row]:
    """Yield all rows, the most important first."""
    for way in WAYS:
        for target in TARGETS:
            yield from (Row(model, data, target, way) for data in IMGSZ for model in MODELS)
    for target in ("90% sparsity", "2:4", "70% sparsity", "50% sparsity"):
        yield from (Row(model, "bccd", target, way, EPOCHS) for way in WAYS for model in MODELS)


def main() -> None:
    """Make the rows that are missing, and print the tables."""
    make_missing(__doc__, RESULTS, rows(), made, table, seed=0)


def made(row: Row, shared: Path, runs: Path) -> dict[str, Any]:
    """Make a network, and return its row."""
    start = shared / "weights" / f"{row.model}-from-int8.pt" if row.data == "coco-part" else None
    start, data = start or Case(row.model, row.data).start(runs), data_of(shared, row.data)
    folder, imgsz = runs / f"zeros-{row}", IMGSZ[row.data]
    if row.epochs:
        options = [f"prune_{name}={value}" for name, value in WAYS[row.way].items()]
        settings = (*TRAIN, f"epochs={row.epochs}", f"imgsz={imgsz}", "seed=0")
        cut = (f"prune={row.target}", "prune_benchmark=False", *ALONE, *options)
        train((f"model={start}", f"data={data}", *settings, *cut), folder, shared)
    else:
        prune(start, data, imgsz, row.target, folder, **WAYS[row.way])
    report = json.loads((folder / "pruning" / "report.json").read_text())
    best = folder / "weights" / "best.pt"
    return {
        "model": row.model,
        "data": row.data,
        "imgsz": imgsz,
        "target": row.target,
        "way": row.way,
        "epochs": row.epochs,
        "sparsity": report["cuts"][-1]["sparsity"],
        "dense": validate(start, str(data), imgsz)["metrics"][METRIC],
        "dense_bytes": start.stat().st_size,
        "dense_compressed": compressed_size(start),
        "pruned": validate(best, str(data), imgsz)["metrics"][METRIC],
        "bytes": best.stat().st_size,
        "compressed": compressed_size(best),
        "seconds_cut": sum(cut["seconds"] for cut in report["cuts"]),
    }


def table() -> str:
    """Return the tables of the documentation: accuracy without training and after it, and bytes."""
    there = rows_of(RESULTS)
    lines = ["| model, data | way | dense | " + " | ".join(TARGETS) + " |", "|---" * (3 + len(TARGETS)) + "|"]
    groups = [(model, data, 0) for data in IMGSZ for model in MODELS] + [(model, "bccd", EPOCHS) for model in MODELS]
    for (model, data, epochs), way in product(groups, WAYS):
        found = [there.get(str(Row(model, data, target, way, epochs))) for target in TARGETS]
        if any(found):
            dense = next(of for of in found if of)["dense"]
            cells = ("" if of is None else f"{of['pruned']:.3f}" for of in found)
            after = f", {epochs} epochs" * bool(epochs)
            lines.append(f"| {model}, {data}{after} | {way} | {dense:.3f} | {' | '.join(cells)} |")
    lines += ["", "| model | target | file | compressed | dense, compressed |", "|---" * 5 + "|"]
    for model in MODELS:
        for row in (there[name] for t in TARGETS if (name := str(Row(model, "bccd", t))) in there):
            lines.append(
                f"| {model} | {row['target']} | {row['bytes'] / 1e6:.2f} MB | {row['compressed'] / 1e6:.2f} MB "
                f"| {row['dense_compressed'] / 1e6:.2f} MB |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
