"""What one cut to half of the MACs costs: seconds of user and system time, and peak memory, at 640 px.

    python benchmarks/cut_cost.py --shared ../shared        # every model whose result is not there yet
    python benchmarks/cut_cost.py --only yolo11n            # models with this in their names
    python benchmarks/cut_cost.py --table                   # print the table of what is there

Models have random weights. A cut is calibration images of coco-part, the plan, the slices and the reconstruction of one
network, in a process of its own. `second_wall` is what a training run needs on top, which cuts the EMA and the model
itself. `peak_before_MB` is what that process has needed before, to import torch and to build the model. `epoch_wall` is
what training on 2,000 images would take, from the forward and backward passes of two batches in the same process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from training import ENVIRONMENT, data_of, is_missing, parser_of, rows_of, write

RESULTS = Path(__file__).parent / "results" / "cut_cost.json"
CASES = (
    *((f"yolo11{scale}", 64) for scale in "nsm"),
    *((f"yolo11{scale}", 16) for scale in "nsmlx"),
    *(("yolo11n", images) for images in (32, 128)),
    ("yolov8n", 64),
    ("yolo26n", 64),
)
"""Models, and how many calibration images."""
IMGSZ = 640
CUT = """
import json, resource, sys, time, torch
torch.set_num_threads(2)
from ultralytics import YOLO
from yolo_prune.config.settings import PruneConfig
from yolo_prune.host.trainer import calibration_batches, set_up, training_batches
from yolo_prune.importance.statistics import sampled_outputs
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.planner import plan_cut
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import cut
from yolo_prune.utils.memory import borrowed_memory
name, images, data, imgsz, folder = sys.argv[1:]
config = PruneConfig(target=0.5, calibration=int(images))

def used():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime, r.ru_stime, time.time(), r.ru_maxrss

trainer = set_up(YOLO(f"{name}.yaml"), {"data": data, "imgsz": int(imgsz), "batch": 4, "workers": 0, "seed": 0,
    "device": "cpu", "project": folder, "name": name, "exist_ok": True})
network = trainer.ema.ema
before = used()
with borrowed_memory():
    batches = calibration_batches(trainer, config.calibration)
    known = CalibrationData(network, batches)
    plan = plan_cut(network, config, int(imgsz), known)
    dense, pictures = known.statistics, known.images
    undo = cut(plan, [network])
    reconstruct(undo, network, plan, dense, pictures)
after = used()
found = {"user": after[0] - before[0], "system": after[1] - before[1], "wall": after[2] - before[2],
    "peak_before_MB": before[3] / 1024, "peak_MB": after[3] / 1024,
    "params": plan.params["before"], "macs_kept": plan.macs["after"] / plan.macs["before"]}
with borrowed_memory():
    made = sampled_outputs(trainer.model, pictures, dense)
    live = cut(plan, [trainer.model])
    reconstruct(live, trainer.model, plan, dense, pictures, targets=made)
found["second_wall"] = time.time() - after[2]
undo.undo(), live.undo()
started = time.time()
model, count = trainer.model.train(), 0
for batch in training_batches(trainer, 2):
    model(batch)[0].sum().backward()
    count += len(batch["img"])
found["epoch_wall"] = (time.time() - started) / count * 2000
print(json.dumps(found))
"""


def main() -> None:
    """Make the cuts whose result is missing, and print the table."""
    parser = parser_of(__doc__, "runs/cut_cost")
    parser.add_argument("--only", default="", help="part of a name, e.g. yolo11n-64")
    args = parser.parse_args()
    if not args.table:
        for model, images in CASES:
            name = f"{model}-{images}"
            if is_missing(name, RESULTS, args.only):
                row = made(model, images, args.shared.resolve(), args.runs.resolve())
                write(RESULTS, {"imgsz": IMGSZ, "seed": 0, "rows": {**rows_of(RESULTS), name: row}})
    print(table())


def made(model: str, images: int, shared: Path, runs: Path) -> dict[str, Any]:
    """Make a cut, and return its row."""
    arguments = (model, images, data_of(shared, "coco-part"), IMGSZ, runs)
    done = subprocess.run(
        [sys.executable, "-c", CUT, *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "2"},
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    return {"model": model, "images": images, **{k: round(v, 3) for k, v in figures.items()}}


def table() -> str:
    """Return the table of the documentation."""
    lines = [
        "| model | params | images | user | system | wall | peak memory | of an epoch of 2,000 images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows_of(RESULTS).values(), key=lambda row: (row["images"], row["params"])):
        lines.append(
            f"| {row['model']} | {row['params'] / 1e6:.1f} M | {row['images']} | {row['user']:.0f} s "
            f"| {row['system']:.0f} s | {row['wall']:.0f} s | {row['peak_MB'] / 1024:.1f} GB "
            f"| {(row['wall'] + row['second_wall']) / row['epoch_wall']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
