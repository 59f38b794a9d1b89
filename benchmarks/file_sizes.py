"""Bytes of exports, predicted from one export of the dense network, against those of networks of random widths.

    python benchmarks/file_sizes.py --shared ../shared        # every form whose result is not there yet
    python benchmarks/file_sizes.py --only yolov8n-onnx       # rows with this in their names
    python benchmarks/file_sizes.py --table                   # print the table of what is there

Files are made at 64 px, since no size of an image changes a weight. What cannot be exported here is named.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from training import is_missing, parser_of, rows_of, write

RESULTS = Path(__file__).parent / "results" / "file_sizes.json"
MODELS = ("yolov8n", "yolo11n")
FORMS = (
    *("onnx", "onnx:16", "onnx:8", "openvino", "openvino:16", "openvino:8", "ncnn", "ncnn:16", "torchscript"),
    *("litert", "litert:8", "litert:w8a16", "litert:w8a32", "coreml", "coreml:16", "coreml:8", "coreml:w8a16"),
    *("mnn", "mnn:16", "mnn:8", "executorch", "coreai", "coreai:16", "qnn:w8a16"),
)
NETWORKS = 20
IMGSZ = 64


def main() -> None:
    """Make the rows that are missing, and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="part of a name, e.g. yolov8n-onnx")
    args = parser.parse_args()
    for model, form in () if args.table else product(MODELS, FORMS):
        name = f"{model}-{form}"
        if is_missing(name, RESULTS, args.only):
            row = made(args.shared.resolve() / "weights" / f"{model}-from-int8.pt", form)
            write(RESULTS, {"imgsz": IMGSZ, "rows": {**rows_of(RESULTS), name: {"model": model, "form": form, **row}}})
    print(table())


def made(checkpoint: Path, form: str) -> dict[str, Any]:
    """Export a dense network and cut copies, and return its bytes, and predicted and real ones of the copies."""
    from ultralytics.nn.tasks import load_checkpoint

    from yolo_prune.config.targets import FILE
    from yolo_prune.cost.model import CostModel
    from yolo_prune.deploy.formats import file_size
    from yolo_prune.deploy.network_files import export_form
    from yolo_prune.deploy.samples import cut_networks, random_plan
    from yolo_prune.graph.trace import trace
    from yolo_prune.planning.allocation import units_of

    network = load_checkpoint(checkpoint)[0]
    graph, draw = trace(network, IMGSZ), np.random.default_rng(0)
    plans = [random_plan(graph, draw.uniform(0.2, 0.95), 8, 300 + i) for i in range(NETWORKS)]
    cost, sizes = CostModel(graph), []
    for one in (network, *cut_networks(network, plans)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                sizes.append(file_size(export_form(one, form, (IMGSZ, IMGSZ), Path(folder))))
            except Exception as e:  # what it is depends on what is installed
                return {"reason": f"{type(e).__name__}: {e}".splitlines()[0][:200]}
    dense, *real = sizes
    rest = dense - cost.amount(f"{FILE}{form}")
    predicted = [round(rest + cost.amount(f"{FILE}{form}", units_of(graph, plan))) for plan in plans]
    return {"dense": dense, "predicted": predicted, "real": real}


def table() -> str:
    """Return the table of the documentation."""
    lines = ["| model | export | networks | dense | largest error |", "|---|---|---|---|---|"]
    for row in rows_of(RESULTS).values():
        if "reason" in row:
            continue
        errors = [abs(p - r) for p, r in zip(row["predicted"], row["real"], strict=True)]
        share = max(e / r for e, r in zip(errors, row["real"], strict=True))
        lines.append(
            f"| {row['model']} | {row['form']} | {len(errors)} | {row['dense'] / 1e6:.2f} MB "
            f"| {max(errors) / 1e3:.1f} kB, {share:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
