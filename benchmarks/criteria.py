"""Criteria and allocations side by side: the same cut by each, with everything else equal, and without any training.

    python benchmarks/accuracy.py --only -s0-start     # the dense models that it starts from
    python benchmarks/criteria.py --shared ../shared   # some ten minutes per model on two cores

Half of the MACs go; weights are reconstructed and BatchNorms matched after each cut. What is there already is not made
again. ``--table`` only prints the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accuracy import Case
from training import data_of, parser_of, write

from yolo_prune.config.choices import IMPORTANCES

RESULTS = Path(__file__).parent / "results" / "criteria.json"
MODELS = ("yolov8n", "yolo11n")
TARGET, IMGSZ = 0.5, 224
WAYS = [
    *((importance, "global") for importance in IMPORTANCES),
    *(("reconstruction", allocation) for allocation in ("isomorphic", "uniform")),
    *(("l2", allocation) for allocation in ("isomorphic", "uniform")),
]
"""Criterion and allocation of each cut."""


def main() -> None:
    """Make the cuts that are missing and print the table."""
    args = parser_of(__doc__).parse_args()
    if not args.table:
        data = str(data_of(args.shared))
        for model in MODELS:
            for importance, allocation in WAYS:
                if not any(is_of(row, model, importance, allocation) for row in rows()):
                    made = [*rows(), cut(Case(model, "bccd"), importance, allocation, data, args.runs.resolve())]
                    write(RESULTS, {"data": "bccd", "imgsz": IMGSZ, "seed": 0, "target": TARGET, "rows": made})
    print(table())


def cut(case: Case, importance: str, allocation: str, data: str, runs: Path) -> dict[str, Any]:
    """Return what one way to choose has left."""
    from ultralytics import YOLO

    from yolo_prune import prune_model

    knobs = {"importance": importance, "allocation": allocation, "benchmark": False}
    where = {"project": runs / f"{case}-criteria", "name": f"{importance}-{allocation}", "exist_ok": True}
    model = YOLO(case.start(runs))
    report = prune_model(model, TARGET, data=data, imgsz=IMGSZ, workers=0, plots=False, **knobs, **where).report
    assert report and report.final
    return {
        "model": case.model,
        "importance": importance,
        "allocation": allocation,
        "macs_kept": (report.final.macs or 0) / (report.dense.macs or 1),
        "params_kept": (report.final.params or 0) / (report.dense.params or 1),
        "dense": report.dense.fitness,
        "pruned": report.final.fitness,
        "seconds": report.cuts[0].seconds,
    }


def rows() -> list[dict[str, Any]]:
    """Return what has been made so far."""
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    return found


def is_of(row: dict[str, Any], model: str, importance: str, allocation: str) -> bool:
    """Tell whether a row is of this cut."""
    return (row["model"], row["importance"], row["allocation"]) == (model, importance, allocation)


def table() -> str:
    """Return the table of the documentation: mAP50-95, the best first."""
    of = {model: [row for row in rows() if row["model"] == model] for model in MODELS}
    models = [model for model in MODELS if len(of[model]) == len(WAYS)]
    if not models:
        return "no results yet"
    ways = sorted(WAYS, key=lambda way: -next(r["pruned"] for r in of[models[0]] if is_of(r, models[0], *way)))
    lines = [f"| criterion | allocation | {' | '.join(models)} |", f"|---|---|{'---|' * len(models)}"]
    dense = " | ".join(f"{of[model][0]['dense']:.3f}" for model in models)
    lines.append(f"| *dense* | | {dense} |")
    for way in ways:
        cells = [row for model in models for row in of[model] if is_of(row, model, *way)]
        values = " | ".join(f"{row['pruned']:.3f}" for row in cells)
        lines.append(f"| {' | '.join(way)} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
