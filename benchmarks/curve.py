"""The curve without training beside what a training makes of its points: does its knee tell the right size?

    python benchmarks/accuracy.py --only bccd-s0    # the dense models that it starts from, and three sizes of each
    python benchmarks/curve.py --shared ../shared   # curves, and the sizes in between, whose result is not there yet
    python benchmarks/curve.py --only yolov8n       # of one model
    python benchmarks/curve.py --table              # print the table of what is there

The curve is ``yolo-prune curve`` with defaults. A training is `accuracy.Run` with the contender ``ours``: 25 epochs at
224 px from the same dense model. Sizes that are not in ``results/accuracy/`` are trained here, with the same arguments.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from accuracy import LABELS_ALONE, Case, Run, result
from training import data_of, parser_of, rows_of, train, write
from validation import ENVIRONMENT

from yolo_prune.report.size_curve import Curve

RESULTS = Path(__file__).parent / "results" / "curve.json"
CASES = (Case("yolov8n", "bccd"), Case("yolo11n", "bccd"))
KEPT = (40,)
"""Per cent of the MACs that the trainings of this script keep."""


def main() -> None:
    """Make what is missing, and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="a part of the names of models")
    args = parser.parse_args()
    if not args.table:
        shared, runs = args.shared.resolve(), args.runs.resolve()
        cases = [case for case in CASES if args.only in str(case)]
        for case in cases:
            if str(case) not in rows_of(RESULTS):
                note(str(case), curve(case, shared, runs))
        for kept in KEPT:
            for run in (Run(case, LABELS_ALONE, kept) for case in cases):
                if run.name not in rows_of(RESULTS):
                    note(run.name, train(run.arguments(shared, runs), runs / f"curve-{run.name}", shared))
    print(table())


def note(name: str, row: dict[str, Any]) -> None:
    """Write a row of the results."""
    write(RESULTS, {"rows": {**rows_of(RESULTS), name: row}})


def curve(case: Case, shared: Path, runs: Path) -> dict[str, Any]:
    """Make the curve of a dense model, and return what is in ``curve.json``."""
    command, folder = Path(sys.executable).with_name("yolo-prune"), runs / f"curve-{case}"
    given = (f"model={case.start(runs)}", f"data={data_of(shared, case.data)}", f"imgsz={case.imgsz}", "workers=0")
    subprocess.run([command, "curve", *given, f"out={folder}"], check=True, env=ENVIRONMENT)
    found: dict[str, Any] = json.loads((folder / "curve.json").read_text())
    return {name: value for name, value in found.items() if name not in {"model", "data", "knee", "advice"}}


def table() -> str:
    """Return a row for each size of each model: without training, and trained."""
    rows = rows_of(RESULTS)
    lines = ["| model | MACs removed | not trained | 25 epochs | |", "|---|---|---|---|---|"]
    for case in CASES:
        if str(case) not in rows:
            continue
        made = Curve.from_dict({**rows[str(case)], "model": "", "data": ""})
        for point in (made.dense, *made.points):
            kept = round(100 * point.macs / made.dense.macs)
            run = Run(case, "dense" if kept == 100 else LABELS_ALONE, kept)
            trained = rows.get(run.name) or result(run)
            score = f"{trained['plain_process']['metrics'][case.metric]:.3f}" if trained else ""
            knee = "knee" * (point is made.knee)
            lines.append(f"| {case.model} | {100 - kept} % | {point.fitness:.3f} | {score} | {knee} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
