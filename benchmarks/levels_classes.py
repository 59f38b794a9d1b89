"""Detection levels that are removed, and classes that are kept: accuracy on what stays, untrained and trained.

    python benchmarks/accuracy.py --only bccd-s0-start           # the dense models of bccd that it starts from
    python benchmarks/levels_classes.py --shared ../shared       # every row whose result is not there yet
    python benchmarks/levels_classes.py --only yolo11n,untrained # rows with all of this in their names
    python benchmarks/levels_classes.py --table                  # print the tables of what is there

Levels: bccd at 224 px, as it is without training, and after 10 epochs, with and without a cut to half of the
multiply-adds that the whole network had. Classes: pretrained networks on coco-part at 416 px, of whose 80 classes two
are kept, as they are and cut to half, without training and after 10 epochs on its 128 images; once the others are kept
until after the cut. All is validated in a process that cannot import yolo_prune.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy import TRAIN, Case
from training import ALONE, data_of, finish, make_missing, prune, rows_of
from validation import validate

RESULTS = Path(__file__).parent / "results" / "levels_classes.json"
EPOCHS = 10
CLASSES = "person,car"
METRIC = "mAP50-95(B)"


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        model: Ultralytics' name of the model.
        levels: Levels that go, as typed, or nothing.
        target: Share of the multiply-adds that goes.
        trained: Whether it is trained.
        classes: For coco-part: when the other classes go, ``first``, ``last`` or, without a cut, ``only``.
    """

    model: str
    levels: str = ""
    target: float = 0.0
    trained: bool = False
    classes: str = ""

    def __str__(self) -> str:
        what = f"classes-{self.classes}" if self.classes else f"levels-{self.levels or 'all'}"
        return f"{self.model}-{what}-{100 - round(100 * self.target)}-{'trained' if self.trained else 'untrained'}"


def rows() -> Iterator[Row]:
    """Yield all rows, the most important first."""
    models = ("yolo11n", "yolov8n", "yolo26n")
    for model in models:
        yield from (Row(model, levels) for levels in ("", "5", "3"))
    for model in models[:2]:
        yield from (Row(model, target=target, classes=when) for target, when in _WHEN)
    yield from (Row(models[0], target=target, classes=when, trained=True) for target, when in _WHEN[:2])
    for model in models[:2]:
        yield from (Row(model, levels, trained=True) for levels in ("", "5", "3"))
        yield from (Row(model, levels, 0.5, trained=True) for levels in ("", "5"))


_WHEN = ((0.0, "only"), (0.5, "first"), (0.5, "last"))


def main() -> None:
    """Make the rows that are missing, and print the tables."""
    make_missing(__doc__, RESULTS, rows(), made, level_table, class_table, seed=0, epochs=EPOCHS)


def made(row: Row, shared: Path, runs: Path) -> dict[str, Any]:
    """Return what a network without levels, or with kept classes, has and can."""
    return (of_classes if row.classes else of_levels)(row, shared, runs)


def of_levels(row: Row, shared: Path, runs: Path) -> dict[str, Any]:
    """Return what a network without levels has and can."""
    start, data, folder = Case(row.model, "bccd").start(runs), data_of(shared), runs / f"levels-classes-{row}"
    options = {"drop_levels": row.levels} if row.levels else {}
    (trained if row.trained else prune)(start, data, 224, row.target, folder, **options)
    return figures(folder, folder / "weights" / "best.pt", data, 224)


def trained(start: Path, data: Path, imgsz: int, target: float, folder: Path, **options: str) -> None:
    """Do what `prune` does in a training."""
    settings = (f"model={start}", f"data={data}", f"epochs={EPOCHS}", f"imgsz={imgsz}", "seed=0", *TRAIN)
    given = (f"prune_{name}={of}" for name, of in options.items())
    finish((*settings, f"prune={target:g}", "prune_benchmark=False", *ALONE, *given), folder)


def of_classes(row: Row, shared: Path, runs: Path) -> dict[str, Any]:
    """Return what a network of two of its classes has and can."""
    start, data = shared / "weights" / f"{row.model}-from-int8.pt", data_of(shared, "coco-part")
    folder = runs / f"levels-classes-{row}"
    kept = {} if row.classes == "last" else {"keep_classes": CLASSES}
    (trained if row.trained else prune)(start, data, 416, row.target, folder, **kept)
    best = folder / "weights" / "best.pt"
    if row.classes == "last":  # it loses nothing but the other classes, and is judged by the same images and labels
        folder = folder.with_name(f"{folder.name}-kept")
        prune(best, data, 416, 0.0, folder, keep_classes=CLASSES)
        best = folder / "weights" / "best.pt"
    return figures(folder, best, folder / "pruning" / "data" / "data.yaml", 416)


def figures(folder: Path, checkpoint: Path, data: Path, imgsz: int) -> dict[str, Any]:
    """Return the size of a run's result, and its accuracy on a data set."""
    final = json.loads((folder / "pruning" / "report.json").read_text())["final"]
    metrics = validate(checkpoint, str(data), imgsz)["metrics"]
    return {"macs": final["macs"], "params": final["params"], "mAP50-95": metrics[METRIC], "mAP50": metrics["mAP50(B)"]}


def level_table() -> str:
    """Return the table of the documentation on levels."""
    found = rows_of(RESULTS)
    lines = [
        f"| bccd, 224 px | levels | GMACs | params | mAP50-95, not trained | after {EPOCHS} epochs |",
        "|---|---|---|---|---|---|",
    ]
    for model in ("yolo11n", "yolov8n", "yolo26n"):
        for levels, target in (("", 0.0), ("5", 0.0), ("3", 0.0), ("", 0.5), ("5", 0.5)):
            both = [found.get(str(Row(model, levels, target, trained))) for trained in (False, True)]
            if some := next((row for row in both[::-1] if row), None):
                stay = ", ".join(f"P{n}" for n in (3, 4, 5) if str(n) not in levels)
                cut = f"{model}, half of the MACs" if target else model
                scores = (f"{row['mAP50-95']:.3f}" if row else "" for row in both)
                size = f"{some['macs'] / 1e9:.2f} | {some['params'] / 1e6:.2f}M"
                lines.append(f"| {cut} | {stay} | {size} | {' | '.join(scores)} |")
    return "\n".join(lines)


def class_table() -> str:
    """Return the table of the documentation on classes."""
    found, names = rows_of(RESULTS), CLASSES.replace(",", " and ")
    told = {
        "only": f"{names} kept, nothing cut",
        "first": f"{names} kept, then cut to half",
        "last": f"cut to half, then {names} kept",
    }
    lines = [
        f"| coco-part, 416 px | | GMACs | params | mAP50-95 of {names}, not trained | after {EPOCHS} epochs |",
        "|---|---|---|---|---|---|",
    ]
    for model in ("yolo11n", "yolov8n"):
        for target, when in _WHEN:
            cases = (Row(model, target=target, classes=when, trained=trained) for trained in (False, True))
            if row := (both := [found.get(str(case)) for case in cases])[0]:
                size = f"{row['macs'] / 1e9:.2f} | {row['params'] / 1e6:.2f}M"
                scores = (f"{of['mAP50-95']:.3f}" if of else "" for of in both)
                lines.append(f"| {model} | {told[when]} | {size} | {' | '.join(scores)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
