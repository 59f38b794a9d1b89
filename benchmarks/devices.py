"""Latency targets of another environment: kit, plan, training, and a kit of the results, for every runtime.

    python -m venv device && device/bin/pip install onnxruntime openvino ncnn ai-edge-litert    # and no torch
    python benchmarks/devices.py --shared ../shared --device device/bin/python
    python benchmarks/devices.py --only yolo11n-onnx            # cases with this in their names
    python benchmarks/devices.py --table                        # print the table of what is there

The environment stands for a device: it runs kits on one thread of this machine. Each model starts from the dense one of
``benchmarks/accuracy.py`` and is pruned to 1.5x and 2x in three epochs; what it comes to is timed by a kit of dense and
both results. Where one misses by more than 5 %, the times correct the latency file (``yolo-prune bench latency=``), and
it is pruned and timed once more. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from accuracy import Case
from training import ENVIRONMENT, data_of, is_missing, least_speedup, parser_of, rows_of, write

RESULTS = Path(__file__).parent / "results" / "devices.json"
CASES = tuple(product(("yolo11n", "yolov8n"), ("onnx", "openvino", "ncnn", "litert")))
TARGETS = ("1.5x", "2x")
IMGSZ, EPOCHS = 320, 3
NEAR = 0.05
"""Share by which a speed-up may miss what was asked for."""


def main() -> None:
    """Make the cases whose result is missing, and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", type=Path, default=Path("device/bin/python"), help="other environment's Python")
    parser.add_argument("--only", default="", help="part of a name, e.g. yolo11n-onnx")
    args = parser.parse_args()
    for model, runtime in () if args.table else CASES:
        name = f"{model}-{runtime}"
        if is_missing(name, RESULTS, args.only):
            row = made(Case(model, "bccd"), runtime, args.shared.resolve(), args.runs.resolve(), args.device)
            about = {"imgsz": IMGSZ, "epochs": EPOCHS, "seed": 0, "threads": 1, "data": "bccd"}
            write(RESULTS, {**about, "rows": {**rows_of(RESULTS), name: row}})
    print(table())


def made(case: Case, runtime: str, shared: Path, runs: Path, device: Path) -> dict[str, Any]:
    """Measure with a kit, prune by it, and measure what came out."""
    dense, folder = case.start(runs), runs / f"device-{case.model}-{runtime}"
    folder.mkdir(parents=True, exist_ok=True)
    where = (f"imgsz={IMGSZ}", f"runtime={runtime}")
    if not (folder / "latency.json").exists():
        _yolo_prune("kit", f"model={dense}", *where, f"out={folder / 'kit.pyz'}")
    latency = _on_device(device, folder / "kit.pyz", "latency.json")  # goes on where it was
    predictions_off_by = errors(dense, folder / "latency.json")
    found = _pruned(dense, data_of(shared, case.data), folder, runtime, device, TARGETS)
    if missed := [
        of for of in found if abs(least_speedup(of["measured"]) / float(of["target"].rstrip("x")) - 1) > NEAR
    ]:
        compared = (str(dense), *(str(folder / f"{target}.pt") for target in TARGETS))
        given = (f"results={folder / 'latency-result.json'}", f"latency={folder / 'latency.json'}", f"imgsz={IMGSZ}")
        _yolo_prune("bench", *compared, *given)
        again = _pruned(dense, data_of(shared, case.data), folder, runtime, device, [of["target"] for of in missed])
        for first, of in zip(missed, again, strict=True):
            first["corrected"] = of
    return {
        **{"model": case.model, "runtime": runtime, "where": latency["where"], "warnings": latency["warnings"]},
        "dense": median(turn["first"] for turn in latency["turns"]),
        "kit_bytes": (folder / "kit.pyz").stat().st_size,
        "errors": predictions_off_by,
        "targets": found,
    }


def _pruned(
    dense: Path, data: Path, folder: Path, runtime: str, device: Path, targets: Sequence[str]
) -> list[dict[str, Any]]:
    """Prune to each target by what the device has measured, and time the results there beside the dense network."""
    found, bests = [], []
    for target in targets:
        how = (f"data={data}", f"epochs={EPOCHS}", f"imgsz={IMGSZ}", "batch=16", "workers=0")
        cut = (f"prune={target}", f"prune_latency={folder / 'latency.json'}", "prune_schedule=one-shot")
        where = (f"project={folder}", f"name={target}", "plots=False", "exist_ok=True")
        _yolo_prune("train", f"model={dense}", *how, *cut, *where)
        report = json.loads((folder / target / "pruning" / "report.json").read_text())
        predicted = report["dense"]["latency"] / report["final"]["latency"]
        found.append({"target": target, "predicted": round(predicted, 3), "macs": report["final"]["macs"]})
        bests.append(folder / f"{target}.pt")
        (folder / target / "weights" / "best.pt").replace(bests[-1])
    compared = ("kit", str(dense), *map(str, bests), f"imgsz={IMGSZ}", f"runtime={runtime}")
    _yolo_prune(*compared, f"out={folder / 'compare.pyz'}")
    speedups = _on_device(device, folder / "compare.pyz", "latency-result.json")["speedups"]
    for result, speedup in zip(found, speedups[1:], strict=True):
        result["measured"] = {side: speedup[side] for side in ("low", "value", "high", "settled")}
    return found


def errors(dense: Path, latency: Path) -> list[float]:
    """Return the relative errors of predictions for the networks that a kit has timed and no fit has seen."""
    from ultralytics.nn.tasks import load_checkpoint

    from yolo_prune.deploy.kit_results import read_latency
    from yolo_prune.graph.trace import trace

    return [*read_latency(latency, trace(load_checkpoint(dense)[0], IMGSZ)).errors]


def table() -> str:
    """Return the table of the documentation."""
    lines = [
        "| model | runtime | dense | prediction off by | asked | predicted | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows_of(RESULTS).values():
        results = [(of["target"], of) for of in row["targets"]]
        results += [(f"{name}, corrected", of["corrected"]) for name, of in results if "corrected" in of]
        for i, (asked, of) in enumerate(results):
            measured = of["measured"]
            told = f"{measured['value']:.2f}x" if measured["settled"] else "did not settle:"
            about = (
                f"{row['model']} | {row['runtime']} | {1e3 * row['dense']:.1f} ms | "
                f"{median(row['errors']):.1%}, at most {max(row['errors']):.1%}"
            )
            lines.append(
                f"| {' | | | ' if i else about} | {asked} | {of['predicted']:.2f}x "
                f"| {told} ({measured['low']:.2f}-{measured['high']:.2f}) |"
            )
    return "\n".join(lines)


def _yolo_prune(*arguments: str) -> None:
    command = Path(sys.executable).with_name("yolo-prune")
    subprocess.run([command, *arguments], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def _on_device(device: Path, kit: Path, result: str) -> dict[str, Any]:
    """Run a kit in the other environment, and return what it has written."""
    command = [str(device.absolute()), kit.name, "--threads", "1"]
    subprocess.run(command, check=True, cwd=kit.parent, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((kit.parent / result).read_text())
    return found


if __name__ == "__main__":
    main()
