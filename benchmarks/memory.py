"""Memory of feature maps, predicted, against what the operations of LiteRT's INT8 files hold.

    python benchmarks/memory.py --shared ../shared        # needs litert-torch and ai-edge-litert
    python benchmarks/memory.py --table                   # print the table of what is there

Of each file the operations are gone through in order: a map is held from the one that makes it to the last that reads
it, as in the arena of TensorFlow Lite Micro. What is in single precision, the image before it is quantized and the
result, is left out: a device would have bytes. Networks are the dense one, and such of random widths.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from training import parser_of, rows_of, write

RESULTS = Path(__file__).parent / "results" / "memory.json"
MODELS = ("yolov8n", "yolo11n")
CUT, IMGSZ = 3, 96


def main() -> None:
    """Make the rows that are missing, and print the table."""
    args = parser_of(__doc__).parse_args()
    for model in () if args.table else MODELS:
        if model not in rows_of(RESULTS):
            row = made(args.shared.resolve() / "weights" / f"{model}-from-int8.pt")
            write(RESULTS, {"imgsz": IMGSZ, "precision": 8, "rows": {**rows_of(RESULTS), model: row}})
    print(table())


def made(checkpoint: Path) -> dict[str, Any]:
    """Return the predicted bytes of a dense network and of cut ones, and those that their files hold."""
    from ultralytics.nn.tasks import load_checkpoint

    from yolo_prune.cost.model import CostModel
    from yolo_prune.deploy.network_files import export_form
    from yolo_prune.deploy.samples import cut_networks, sample_plans
    from yolo_prune.graph.trace import trace
    from yolo_prune.planning.allocation import units_of

    network = load_checkpoint(checkpoint)[0].float()
    graph = trace(network, IMGSZ)
    cost, plans = CostModel(graph), sample_plans(graph, CUT)
    predicted = [
        cost.amount("ram:8"),
        *(CostModel(graph, None, plan.blocks).amount("ram:8", units_of(graph, plan)) for plan in plans),
    ]
    held = []
    for of in (network, *cut_networks(network, plans)):
        with tempfile.TemporaryDirectory() as folder:
            held.append(largest_moment(export_form(of, "litert:8", (IMGSZ, IMGSZ), Path(folder))))
    return {"predicted": predicted, "held": held}


def largest_moment(path: Path) -> int:
    """Return the bytes of the tensors that a file's operations hold at the largest moment."""
    from ai_edge_litert.interpreter import Interpreter

    file = Interpreter(str(path), experimental_preserve_all_tensors=True)
    sizes = {
        t["index"]: int(np.prod(t["shape"])) * np.dtype(t["dtype"]).itemsize
        for t in file.get_tensor_details()
        if t["dtype"] != np.float32
    }
    operations = file._get_ops_details()
    first = dict.fromkeys((d["index"] for d in file.get_input_details()), 0)
    first.update({t: i for i, o in enumerate(operations) for t in o["outputs"]})
    last = {t: i for i, o in enumerate(operations) for t in o["inputs"]}
    moments = np.zeros(len(operations))
    for tensor, begin in first.items():
        moments[begin : last.get(tensor, len(operations)) + 1] += sizes.get(tensor, 0)
    return int(moments.max())


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| model | predicted | in the file |", "|---|---|---|"]
    for model, row in rows_of(RESULTS).items():
        for i, (predicted, held) in enumerate(zip(row["predicted"], row["held"], strict=True)):
            name = "dense" if not i else f"cut {i}"
            lines.append(f"| {model}, {name} | {predicted / 1e3:.1f} kB | {held / 1e3:.1f} kB |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
