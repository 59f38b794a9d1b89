"""One cut without any training: what is left of the accuracy at 85, 70 and 50 % of the MACs.

    python benchmarks/accuracy.py --only bccd-s0-start              # the dense models of bccd that it starts from
    python benchmarks/without_training.py --shared ../shared        # every cut whose result is not there yet
    python benchmarks/without_training.py --only yolov8n,coco-part  # cuts with all of this in their names
    python benchmarks/without_training.py --table                   # print the tables of what is there

Each cut is `prune_model` with defaults, or with one ingredient taken away (see `INGREDIENTS`), in a process of its own;
the result is validated in a process that cannot import yolo_prune. On coco-part models have pretrained weights, and all
of its 128 training images calibrate, or the number that an ingredient says.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy import Case
from training import data_of, make_missing, rows_of
from validation import ENVIRONMENT, validate

RESULTS = Path(__file__).parent / "results" / "without_training.json"
MODELS = ("yolov8n", "yolo11n", "yolo26n")
STATISTICS = "from yolo_prune.importance import statistics"
INGREDIENTS: dict[str, str] = {
    "classes count as in training": "from yolo_prune.importance import objective; objective.CLASS_EMPHASIS = 1.0",
    "positions drawn uniformly": f"{STATISTICS}; statistics.UNIFORM = 1.0",
    "covariance of inputs, not of taps": f"{STATISTICS}; statistics.MOST_UNFOLDED = 0",
    "Fisher of each output alone": f"{STATISTICS}; whole = statistics.LayerStatistics.fisher; "
    "statistics.LayerStatistics.fisher = lambda seen: whole(seen).diagonal().diag()",
    "smaller iterations": "from yolo_prune.planning import planner; planner.MAX_REDUCTION_PER_ITERATION = 0.22",
    "64 images": "options['calibration'] = 64",
    "64 images drawn at random": "options['calibration'] = 64; from yolo_prune.host import calibration_images; "
    "calibration_images.SHOWN = 0",
    "32 images": "options['calibration'] = 32",
    "without reconstruction": "options['reconstruction'] = False",
    "same share everywhere": "options['allocation'] = 'uniform'",
}
"""Name -> what is done before the cut to take it away from the defaults."""
CUT = """
import json, sys
from yolo_prune import prune_model
from ultralytics import YOLO
start, data, imgsz, target, folder, before = sys.argv[1:]
options = {"val": False, "benchmark": False}  # what is left is validated elsewhere
exec(before)
where = {"project": folder.rpartition("/")[0], "name": folder.rpartition("/")[2], "exist_ok": True}
prune_model(YOLO(start), float(target), data=data, imgsz=int(imgsz), workers=0, seed=0, **where, **options)
"""


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        model: Ultralytics' name of the model.
        data: Folder in ``shared/data``.
        imgsz: Size of the images in pixels.
        kept: Per cent of the MACs that stay.
        without: The ingredient that is taken away, or nothing.
    """

    model: str
    data: str
    imgsz: int
    kept: int
    without: str = ""

    def __str__(self) -> str:
        ingredient = f"-{self.without.replace(' ', '-').replace(',', '')}" if self.without else ""
        return f"{self.model}-{self.data}-{self.imgsz}-{self.kept}{ingredient}"


def cuts() -> Iterator[Cut]:
    """Yield all cuts, the most important first."""
    for kept in (85, 70, 50):
        yield from (Cut(model, "coco-part", 416, kept) for model in MODELS)
        yield from (Cut(model, "bccd", 224, kept) for model in MODELS)
    yield from (Cut("yolo11n", "coco-part", 640, kept) for kept in (85, 70, 50))
    for kept in (70, 85):
        for without in INGREDIENTS:
            yield from (Cut(model, "coco-part", 416, kept, without) for model in MODELS[:2])


def main() -> None:
    """Make the cuts whose result is missing, and print the tables."""
    make_missing(__doc__, RESULTS, cuts(), made, table, seed=0)


def made(cut: Cut, shared: Path, runs: Path) -> dict[str, Any]:
    """Make a cut, and return its row."""
    is_pretrained = cut.data == "coco-part"
    start = shared / "weights" / f"{cut.model}-from-int8.pt" if is_pretrained else Case(cut.model, cut.data).start(runs)
    metric, data = "mAP50-95(B)", str(data_of(shared, cut.data))
    folder = runs / f"without-training-{cut}"
    before = INGREDIENTS.get(cut.without, "")
    arguments = (start, data, cut.imgsz, 1 - cut.kept / 100, folder, before)
    subprocess.run([sys.executable, "-c", CUT, *map(str, arguments)], check=True, env=ENVIRONMENT)
    report = json.loads((folder / "pruning" / "report.json").read_text())
    dense = next((r["dense"] for r in rows_of(RESULTS).values() if _of(r) == (cut.model, cut.data, cut.imgsz)), None)
    found = validate(folder / "weights" / "best.pt", data, cut.imgsz)["metrics"]
    return {
        "model": cut.model,
        "data": cut.data,
        "imgsz": cut.imgsz,
        "without": cut.without,
        "macs_kept": report["final"]["macs"] / report["dense"]["macs"],
        "params_kept": report["final"]["params"] / report["dense"]["params"],
        "dense": validate(start, data, cut.imgsz)["metrics"][metric] if dense is None else dense,
        "pruned": found[metric],
        "pruned_mAP50": found["mAP50(B)"],
        "seconds_cut": report["cuts"][0]["seconds"],
    }


def _of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["data"], row["imgsz"]


def table() -> str:
    """Return the tables of the documentation: cuts with defaults, and what each ingredient brings."""
    rows = rows_of(RESULTS)
    lines = [
        "| model, data, pixels | MACs kept | params kept | dense | pruned, not trained | kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in (rows[str(cut)] for cut in cuts() if not cut.without and str(cut) in rows):
        lines.append(
            f"| {row['model']}, {row['data']}, {row['imgsz']} | {row['macs_kept']:.0%} | {row['params_kept']:.0%} "
            f"| {row['dense']:.3f} | {row['pruned']:.3f} | {row['pruned'] / row['dense']:.0%} |"
        )
    shown = [(model, kept) for model in MODELS[:2] for kept in (85, 70)]
    lines += ["", "| coco-part, 416 px | " + " | ".join(f"{m}, {k} %" for m, k in shown) + " |", "|---" * 5 + "|"]
    for without in ("", *INGREDIENTS):
        names = [str(Cut(model, "coco-part", 416, kept, without)) for model, kept in shown]
        if any(name in rows for name in names):
            cells = (f"{rows[n]['pruned']:.3f}" if n in rows else "" for n in names)
            lines.append(f"| {without or 'defaults'} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
