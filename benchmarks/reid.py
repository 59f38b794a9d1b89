"""What it costs to keep the maps that the head reads multiples of the smallest (``reid``), cut without training.

    python benchmarks/accuracy.py --only -s0-start    # the dense models that it starts from, or others of these names
    python benchmarks/reid.py --shared ../shared

Each cut is ``prune_model`` with defaults, once with maps that are free and once with maps that are tied; what is left
is judged as it is. Rows that are there are left as they are. ``--table`` only prints the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accuracy import Case
from training import data_of, parser_of, write

RESULTS = Path(__file__).parent / "results" / "reid.json"
KEPT = (70, 50)
CASES = (Case("yolov8n", "bccd"), Case("yolo11n", "bccd"))
IMGSZ = 224


def main() -> None:
    """Make the cuts and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="*", help="only these")
    args = parser.parse_args()
    if not args.table:
        for case in CASES:
            for kept in KEPT:
                for reid in (False, True):
                    key = {"model": case.model, "data": case.data, "kept": kept, "reid": reid}
                    is_there = any(key.items() <= row.items() for row in rows())
                    if not is_there and (not args.models or case.model in args.models):
                        row = key | cut(case, kept, reid, args.shared.resolve(), args.runs.resolve())
                        write(RESULTS, {"imgsz": IMGSZ, "seed": 0, "rows": [*rows(), row]})
    print(table())


def rows() -> list[dict[str, Any]]:
    """Return what has been measured so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []


def cut(case: Case, kept: int, reid: bool, shared: Path, runs: Path) -> dict[str, Any]:
    """Return what one cut leaves."""
    from ultralytics import YOLO

    from yolo_prune import prune_model

    where = {"project": str(runs), "name": f"{case}-reid-{kept}-{reid}", "exist_ok": True, "workers": 0}
    result = prune_model(
        YOLO(case.start(runs)),
        1 - kept / 100,
        data=data_of(shared, case.data),
        imgsz=IMGSZ,
        reid=reid,
        benchmark=False,
        plots=False,
        **where,
    )
    report = result.report
    assert report is not None and report.final is not None and report.final.macs and report.dense.macs
    return {
        "macs_kept": report.final.macs / report.dense.macs,
        "maps": report.maps,
        "dense": report.dense.fitness,
        "pruned": report.final.fitness,
    }


def table() -> str:
    """Return the table of the documentation: what is left of the accuracy, with free and with tied maps."""
    lines = [
        "| model, data | MACs kept | dense | free maps | | tied maps | | tied - free |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for free in (row for row in rows() if not row["reid"]):
        same = [r for r in rows() if r["reid"] and all(r[k] == free[k] for k in ("model", "data", "kept"))]
        for tied in same:
            cells = (f"{row['pruned']:.3f} | {', '.join(map(str, row['maps']))}" for row in (free, tied))
            lines.append(
                f"| {free['model']}, {free['data']} | {free['kept']} % | {free['dense']:.3f} | {' | '.join(cells)} "
                f"| {tied['pruned'] - free['pruned']:+.3f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
