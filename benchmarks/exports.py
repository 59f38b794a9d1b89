"""One pruned model in every format that Ultralytics exports, in each of its precisions.

    python benchmarks/accuracy.py --only yolov8n-bccd-s0-start   # the dense model that it starts from
    python benchmarks/exports.py --shared ../shared
    other-venv/bin/python benchmarks/exports.py --only litert    # formats whose packages do not go with the others

The model is cut to half of its MACs without training, or given with ``--checkpoint``. Each export is made, compared and
validated by ``yolo_prune.deploy.export`` in a process of its own; what is in the results already is left as it is
unless ``--only`` names it. ``--table`` only prints the table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import Case
from training import ENVIRONMENT, data_of

from yolo_prune.report.records import ExportRecord

RESULTS = Path(__file__).parent / "results" / "exports.json"
IMGSZ = 224
PACKAGES = (
    *("ultralytics", "torch", "onnx", "onnxruntime", "openvino", "nncf", "coremltools", "coreai-torch"),
    *("tensorflow", "onnx2tf", "litert-torch", "ai-edge-litert", "paddlepaddle", "MNN", "ncnn", "pnnx", "executorch"),
)


def main() -> None:
    """Make the exports and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where accuracy.py left its runs")
    parser.add_argument("--checkpoint", type=Path, help="export this one instead")
    parser.add_argument("--only", nargs="*", help="formats (all their precisions) or exports, e.g. litert openvino:8")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # this process makes one export
    parser.add_argument("--table", action="store_true", help="export nothing")
    args = parser.parse_args()
    data = data_of(args.shared)
    checkpoint = (args.checkpoint or args.runs / "yolov8n-bccd-s0-exports" / "weights" / "best.pt").resolve()
    if args.one:
        print(json.dumps(export(checkpoint, args.one, data)))
        return
    if not args.table:
        if not checkpoint.exists():
            cut(args.runs.resolve(), data, checkpoint)
        for name in every_export():
            if {name, name.partition(":")[0]} & set(args.only) if args.only else name not in results():
                row = in_own_process(name, ("--checkpoint", checkpoint, "--shared", args.shared.resolve()))
                print(name, row["reason"] or "ok", file=sys.stderr, flush=True)
                done = results() | {name: row}
                done = {n: done[n] for n in every_export() if n in done}
                RESULTS.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    print(table())


def results() -> dict[str, dict[str, Any]]:
    """Return what has been made so far: export -> record."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def every_export() -> list[str]:
    """Return each format in its own precision, then in the others that it can have."""
    from yolo_prune.deploy.formats import formats, precisions

    return [f"{name}:{p}" if i else name for name in formats() for i, p in enumerate(precisions(name))]


def cut(runs: Path, data: Path, checkpoint: Path) -> None:
    """Remove half of the MACs of the benchmark's dense model."""
    from ultralytics import YOLO

    from yolo_prune import prune_model

    folder = checkpoint.parent.parent
    where = {"project": folder.parent, "name": folder.name, "exist_ok": True}
    prune_model(YOLO(Case("yolov8n", "bccd").start(runs)), 0.5, data=data, imgsz=IMGSZ, workers=0, **where)


def in_own_process(name: str, arguments: Sequence[str | Path]) -> dict[str, Any]:
    """Make one export where it can neither break nor help another; a crash is a result."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments), "--one", name]
    with tempfile.TemporaryDirectory() as folder:
        # What Ultralytics downloads for onnx2tf to compare its own steps with; noise does, too, and needs no network.
        noise = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
        np.save(Path(folder) / "calibration_image_sample_data_20x128x128x3_float32.npy", noise)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=folder, check=False)
    try:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        row = {**asdict(ExportRecord(*name.split(":"))), "reason": f"the process ended with {done.returncode}"}
    return row


def export(checkpoint: Path, name: str, data: Path) -> dict[str, Any]:
    """Return the record of one export, with its wall time in seconds and the versions of what took part."""
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from yolo_prune.deploy.export import export_all

    known = check_det_dataset(str(data))
    dataset = build_yolo_dataset(get_cfg(overrides={"imgsz": IMGSZ}), known["val"], 1, known, mode="val")
    images = torch.stack([dataset[i]["img"] for i in range(4)]).float() / 255
    started = time.time()
    (record,) = export_all(checkpoint, (name,), images, data)
    row = asdict(record) | {"seconds": round(time.time() - started, 1), "versions": versions()}
    row["path"] = record.path and Path(record.path).name
    row["reason"] = record.reason and re.sub(r"(?<![:/\w])/\S+/", "", record.reason)  # folders of this machine
    return row


def versions() -> dict[str, str]:
    """Return the versions of the packages that make or run exports, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table() -> str:
    """Return the table of what was made, and below it what was not."""
    lines = ["| export | agrees | scores | boxes (px) | mAP50-95 | size | remark |", "|---|---|---|---|---|---|---|"]
    missing: dict[str, list[str]] = {}
    for name, row in results().items():
        if row["path"] is None:
            missing.setdefault(_short(row["reason"]), []).append(f"`{name}`")
            continue
        diffs = ("" if d is None else f"{d:.0e}" for d in (row["max_abs_diff"], row["max_abs_diff_boxes"]))
        fitness = "" if row["fitness"] is None else f"{row['fitness']:.3f}"
        verdict = "yes" if row["ok"] else "no"
        if row["ok"] and row["max_abs_diff"] is None:
            verdict = "inspected" if row["inspected"] else "made"
        cells = (verdict, *diffs, fitness, f"{row['bytes'] / 1e6:.2f} MB", _short(row["reason"]))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    legend = (f"- {', '.join(names)}: {why}" for why, names in missing.items())
    return "\n".join((*lines, "", "Not made on this machine:", "", *legend))


def _short(reason: str | None) -> str:
    """Return the first sentence of a reason without the exception's name and the way out."""
    return re.split(r"\.?; |\. |, i\.e\.|\.$", re.sub(r"\w*(Error|Fail): ", "", reason or ""))[0]


if __name__ == "__main__":
    main()
