"""Where the time of a network goes, by kind of operator: dense, and at half of the multiply-adds, 640 px.

    python benchmarks/speed.py --shared ../shared --parts macs    # makes the cuts
    python benchmarks/operators.py --shared ../shared

ONNX Runtime's and OpenVINO's own profilers tell the time of each node; per node the median of 20 images counts, on two
CPU threads. ``benchmarks/results/operators.json`` is not made again if it is there. ``--table`` only prints the tables.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from accuracy import Case
from speed import MODELS, cut, table_of
from training import data_of, parser_of, write

RESULTS = Path(__file__).parent / "results" / "operators.json"
HALF, IMGSZ, ROUNDS, THREADS = "50 % fewer MACs", 640, 20, 2
CONVOLUTIONS = ("Conv", "Convolution", "GroupConvolution")
STAYS = ("Softmax", "SoftMax")
"""The distribution of the boxes' sides (DFL) has 16 bins per side, whatever is cut."""
SHOWN = 0.02
"""Share of a network's time from which on a kind of operator has a row of its own."""


def main() -> None:
    """Measure what is missing and print the tables."""
    args = parser_of(__doc__).parse_args()
    if not args.table and not RESULTS.exists():
        data, runs = str(data_of(args.shared)), args.runs.resolve()
        rows = []
        for case in (Case(model, "bccd") for model in MODELS):
            files = {"dense": case.start(runs), "half": cut(case, HALF, data, runs)[0]}
            for runtime, profile in (("onnx", of_onnx), ("openvino", of_openvino)):
                times = {name: profile(file) for name, file in files.items()}
                rows.append({"model": case.model, "runtime": runtime, "seconds": times})
        write(RESULTS, {"imgsz": IMGSZ, "rounds": ROUNDS, "threads": THREADS, "rows": rows})
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    print(operator_table(rows), limit_table(rows), sep="\n\n")


def exported(checkpoint: Path, runtime: str, folder: str) -> Path:
    """Export a checkpoint to a runtime."""
    from ultralytics.nn.tasks import load_checkpoint

    from yolo_prune.deploy.network_files import export

    return export(load_checkpoint(checkpoint)[0], runtime, (IMGSZ, IMGSZ), Path(folder))


def by_kind(nodes: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, float]:
    """Return seconds per kind of operator, from those of each node, (kind, name) -> one per image."""
    kinds: dict[str, float] = defaultdict(float)
    for (kind, _), seconds in nodes.items():
        kinds[kind] += median(seconds)
    return dict(kinds)


def of_onnx(checkpoint: Path) -> dict[str, float]:
    """Return seconds per kind of operator in ONNX Runtime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        file = exported(checkpoint, "onnx", folder)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for _ in range(ROUNDS):
            session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, IMGSZ, IMGSZ), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e6)
    return by_kind(nodes)


def of_openvino(checkpoint: Path) -> dict[str, float]:
    """Return seconds per kind of operator in OpenVINO."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        (file,) = exported(checkpoint, "openvino", folder).glob("*.xml")
        settings = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": THREADS}
        request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
        nodes = defaultdict(list)
        for _ in range(ROUNDS):
            request.infer([np.zeros((1, 3, IMGSZ, IMGSZ), np.float32)])
            for node in request.get_profiling_info():
                nodes[node.node_type, node.node_name].append(node.real_time.total_seconds())
    return by_kind(nodes)


def operator_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return milliseconds per kind of operator, dense and at half of the multiply-adds."""
    lines = []
    for row in rows:
        dense, half = row["seconds"]["dense"], row["seconds"]["half"]
        whole = sum(dense.values())
        shown = sorted((kind for kind in dense if dense[kind] >= SHOWN * whole), key=lambda kind: -dense[kind])
        for kind in shown:
            times = (dense[kind], half.get(kind, 0.0))
            lines.append((row["model"], row["runtime"], kind, *(f"{1e3 * t:.1f}" for t in times)))
        rest = (sum(t for kind, t in of.items() if kind not in shown) for of in (dense, half))
        lines.append((row["model"], row["runtime"], "the rest", *(f"{1e3 * t:.1f}" for t in rest)))
    return table_of(("model", "runtime", "operator", "dense, ms", "half of the MACs, ms"), lines)


def limit_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how much faster half of the multiply-adds are, and would be if all that can be cut took half the time."""
    lines = []
    for row in rows:
        dense, half = row["seconds"]["dense"], row["seconds"]["half"]
        whole, fixed = sum(dense.values()), sum(dense.get(kind, 0.0) for kind in STAYS)
        convolutions = [sum(of.get(kind, 0.0) for kind in CONVOLUTIONS) for of in (dense, half)]
        speedups = (
            convolutions[0] / convolutions[1],
            whole / sum(half.values()),
            whole / (fixed + (whole - fixed) / 2),
        )
        lines.append((row["model"], row["runtime"], f"{fixed / whole:.0%}", *(f"{s:.2f}x" for s in speedups)))
    return table_of(("model", "runtime", "Softmax", "convolutions", "all operators", "most possible"), lines)


if __name__ == "__main__":
    main()
