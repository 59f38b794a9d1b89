"""One cut without any training: what is left of the accuracy at 85, 70, 50 and 30 % of the MACs.

    python benchmarks/accuracy.py --only -s0-start         # the dense models that it starts from
    python benchmarks/without_training.py --shared ../shared

Each cut is ``yolo-prune prune model=… data=… prune=…`` with defaults, about a minute for a nano model on two cores. The
result is validated in a process that cannot import yolo_prune. ``--table`` only prints the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from accuracy import Case
from training import ENVIRONMENT, data_yaml, parser_of, validate, write

RESULTS = Path(__file__).parent / "results" / "without_training.json"
KEPT = (85, 70, 50, 30)
CASES = (Case("yolov8n", "bccd"), Case("yolo11n", "bccd"))
IMGSZ = 224


def main() -> None:
    """Make the cuts and print the table."""
    args = parser_of(__doc__).parse_args()
    if not args.table:
        rows = [row for case in CASES for row in cut(case, args.shared.resolve(), args.runs.resolve())]
        write(RESULTS, {"imgsz": IMGSZ, "seed": 0, "rows": rows})
    print(table())


def cut(case: Case, shared: Path, runs: Path) -> list[dict[str, object]]:
    """Return one row per share of the MACs."""
    start, data = case.start(runs), str(data_yaml(shared, case.data))
    dense = validate(start, data, IMGSZ)[case.metric]
    rows: list[dict[str, object]] = []
    for kept in KEPT:
        folder = runs / f"{case}-without-training-{kept}"
        arguments = (f"model={start}", f"data={data}", f"imgsz={IMGSZ}", f"prune={1 - kept / 100:.2f}", "workers=0")
        where = (f"project={folder.parent}", f"name={folder.name}", "exist_ok=True")
        subprocess.run(
            [Path(sys.executable).with_name("yolo-prune"), "prune", *arguments, *where], check=True, env=ENVIRONMENT
        )
        report = json.loads((folder / "pruning" / "report.json").read_text())
        rows.append(
            {
                "model": case.model,
                "data": case.data,
                "macs_kept": report["final"]["macs"] / report["dense"]["macs"],
                "params_kept": report["final"]["params"] / report["dense"]["params"],
                "dense": dense,
                "pruned": validate(folder / "weights" / "best.pt", data, IMGSZ)[case.metric],
                "seconds_cut": report["cuts"][0]["seconds"],
            }
        )
    return rows


def table() -> str:
    """Return the table of the documentation."""
    lines = [
        "| model, data | MACs kept | params kept | dense | pruned, not trained | kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in json.loads(RESULTS.read_text())["rows"]:
        lines.append(
            f"| {row['model']}, {row['data']} | {row['macs_kept']:.0%} | {row['params_kept']:.0%} | {row['dense']:.3f} "
            f"| {row['pruned']:.3f} | {row['pruned'] / row['dense']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
