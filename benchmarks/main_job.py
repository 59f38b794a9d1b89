"""The main job on real data: dense and pruned fine-tuning of the same length, through the stock ``yolo`` command.

    python benchmarks/main_job.py --weights ../shared/weights --data ../shared/data/bccd/data.yaml

For each family two runs: ``yolo train …`` and the same with ``prune=0.5 prune_export=onnx``. Each checkpoint is then
loaded safely and validated in a process that cannot import yolo_prune. Every run writes a file of its own to
``benchmarks/results/main_job/``; runs whose file is there are skipped, so an interrupted benchmark goes on where it
stopped. ``--table`` only prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "main_job"
FAMILIES = ("yolov8n", "yolo11n", "yolo26n")
TRAIN = ("imgsz=224", "epochs=30", "batch=16", "workers=0", "seed=0", "plots=False")
KINDS: dict[str, tuple[str, ...]] = {"dense": (), "pruned": ("prune=0.5", "prune_export=onnx")}
PLAIN_LOAD = """
import json, sys
sys.modules["yolo_prune"] = None  # importing it now raises
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load
checkpoint, data, imgsz = sys.argv[1:]
torch_safe_load(checkpoint, safe_only=True)
box = YOLO(checkpoint).val(data=data, imgsz=int(imgsz), batch=16, workers=0, plots=False, verbose=False).box
print(json.dumps({"map50_95": box.map, "map50": box.map50}))
"""


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder with <family>-from-int8.pt")
    parser.add_argument("--data", type=Path, help="data.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/main_job"), help="folder for the runs")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--kinds", nargs="+", default=tuple(KINDS), choices=tuple(KINDS))
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for family in () if args.table else args.families:
        for kind in args.kinds:
            file = RESULTS / f"{family}-{kind}.json"
            if not file.exists():
                folder = args.runs.resolve() / f"{family}-{kind}"
                result = run(args.weights / f"{family}-from-int8.pt", args.data, folder, KINDS[kind])
                file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table())


def run(weights: Path, data: Path, folder: Path, prune: tuple[str, ...]) -> dict[str, Any]:
    """Train with the stock command, then look at its ``best.pt`` in a process without yolo_prune."""
    environment = os.environ | {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    yolo = Path(sys.executable).with_name("yolo")
    where = (f"project={folder.parent}", f"name={folder.name}", "exist_ok=True")
    subprocess.run(
        [yolo, "train", f"model={weights}", f"data={data}", *TRAIN, *where, *prune], check=True, env=environment
    )
    best = folder / "weights" / "best.pt"
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN_LOAD, str(best), str(data), TRAIN[0].partition("=")[2]],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    report_file = folder / "pruning" / "report.json"
    report = json.loads(report_file.read_text()) if prune else {}
    return {
        "command": " ".join(("yolo train", f"model={weights.name}", f"data={data.parent.name}", *TRAIN, *prune)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "plain_process": {**json.loads(plain.stdout.splitlines()[-1]), "bytes": best.stat().st_size},
        "report": _without_paths(report),
    }


def _without_paths(value: Any) -> Any:
    """Drop what only means something on the machine that trained."""
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if k not in {"checkpoint", "path"}}
    return [_without_paths(v) for v in value] if isinstance(value, list) else value


def table() -> str:
    """Return the README's table."""
    lines = [
        "| model | MACs | params | file | mAP50-95 dense | mAP50-95 pruned | ONNX: largest score difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        files = [RESULTS / f"{family}-{kind}.json" for kind in KINDS]
        if not all(file.exists() for file in files):
            continue
        dense, pruned = (json.loads(file.read_text()) for file in files)
        report = pruned["report"]
        macs, params, size = (
            f"{report['final'][k] / report['dense'][k] - 1:+.1%}" for k in ("macs", "params", "bytes")
        )
        maps = " | ".join(f"{result['plain_process']['map50_95']:.3f}" for result in (dense, pruned))
        onnx = report["exports"][0]["max_abs_diff"]
        lines.append(f"| {family} | {macs} | {params} | {size} | {maps} | {onnx:.0e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
