"""One training with the stock ``yolo`` command, judged by a process that cannot import yolo_prune."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from validation import ENVIRONMENT, validate

from yolo_prune.config.text import is_argument

R = TypeVar("R")
PRUNE = """
import json, sys
from yolo_prune import prune_model
from ultralytics import YOLO
start, data, imgsz, folder, given = sys.argv[1:]
where = {"project": folder.rpartition("/")[0], "name": folder.rpartition("/")[2], "exist_ok": True}
fixed = {"workers": 0, "seed": 0, "val": False, "benchmark": False}
prune_model(YOLO(start), data=data, imgsz=int(imgsz), **fixed, **where, **json.loads(given))
"""
"""What `prune` runs."""
IN_BFLOAT16 = {"deeppcb"}
"""Data sets on which is trained in bfloat16 where there is no GPU: on a CPU they take hours."""


def parser_of(about: str | None, runs: str = "runs/accuracy") -> argparse.ArgumentParser:
    """Return a parser with what the benchmarks on real data have in common; ``about`` is a script's docstring."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and weights/")
    parser.add_argument("--runs", type=Path, default=Path(runs), help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser


ALONE = ("prune_distill=False",)
"""What a run of ours has that learns from labels alone."""


def data_of(shared: Path, name: str = "bccd") -> Path:
    """Return what Ultralytics takes as one of the data sets: its description, or of classification its folder."""
    folder = shared.resolve() / "data" / name
    return folder if name.endswith("-cls") else folder / "data.yaml"


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a result as JSON, with the machine that it was made on, and a line for each list of numbers."""
    text = json.dumps({"machine": machine(), **content}, indent=1)
    text = re.sub(r"\[[-+\d.e,\s]+\]", lambda numbers: json.dumps(json.loads(numbers[0])), text)
    file.write_text(f"{text}\n", encoding="utf-8")


def rows_of(file: Path) -> dict[str, Any]:
    """Return the rows of a result by name, none if it is not there yet."""
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else {}


def is_missing(name: str, file: Path, only: str, without: str = "") -> bool:
    """Whether a row is not in a result yet, and its name has all of what is asked for, with commas between.

    Args:
        name: Of the row.
        file: The result.
        only: What is asked for.
        without: What its name may not have.
    """
    is_asked_for = all(part in name for part in only.split(",")) and not (without and without in name)
    return is_asked_for and name not in rows_of(file)


def make_missing(
    about: str | None,
    results: Path,
    rows: Iterable[R],
    made: Callable[[R, Path, Path], dict[str, Any]],
    *tables: Callable[[], str],
    **content: Any,
) -> None:
    """Make the rows that are missing and asked for on the command line, and print the tables.

    Args:
        about: A script's docstring.
        results: Its file.
        rows: All rows, in order; each is called by its text.
        made: Makes a row from it, the folder of data and weights, and that of the runs.
        tables: Make the tables, each.
        content: What stands in the file beside the rows.
    """
    parser = parser_of(about)
    parser.add_argument("--only", default="", help="parts of names, with commas between them")
    parser.add_argument("--without", default="", help="a part of names to leave out")
    args = parser.parse_args()
    for row in () if args.table else rows:
        if is_missing(str(row), results, args.only, args.without):
            found = made(row, args.shared.resolve(), args.runs.resolve())
            write(results, {**content, "rows": {**rows_of(results), str(row): found}})
    print(*(table() for table in tables), sep="\n\n")


def prune(start: Path, data: Path, imgsz: int, target: float | str, folder: Path, **options: Any) -> None:
    """Cut without training, in a process of its own; what is left is neither validated nor timed there."""
    given = json.dumps({"target": target, **options})
    arguments = map(str, (start, data, imgsz, folder, given))
    subprocess.run([sys.executable, "-c", PRUNE, *arguments], check=True, env=ENVIRONMENT)


def train(arguments: Sequence[str], folder: Path, shared: Path) -> dict[str, Any]:
    """Train, or go on with a training that was interrupted, then look at ``best.pt``.

    Args:
        arguments: What follows ``yolo train``, with ``data=``, ``imgsz=`` and ``epochs=``.
        folder: The run's folder.
        shared: Folder of the data sets and weights; it is left out of the command in the result.

    Returns:
        ``command``, ``plain_process`` (what `validate` finds in ``best.pt``, and its bytes), ``last`` (what it finds in
        ``last.pt``, of images of the size that an export has), ``seconds`` (of the training and per epoch, validation
        included), ``by_epoch`` (see `accuracy_by_epoch`) and ``report`` (the run's ``report.json``, empty for a dense
        run).
    """
    given = finish(arguments, folder)
    best, last = (folder / "weights" / f"{name}.pt" for name in ("best", "last"))
    judges = given["data"], int(given["imgsz"])
    command = "python benchmarks/bfloat16.py train" if _is_in_bfloat16(given) else "yolo train"
    report_file = folder / "pruning" / "report.json"
    times = epoch_ends(folder / "results.csv")
    return {
        "command": " ".join((command, *arguments)).replace(f"{shared}/", "").replace(f"{folder.parent}/", ""),
        "plain_process": {**validate(best, *judges), "bytes": best.stat().st_size},
        "last": validate(last, *judges, rect=False),
        "seconds": {"total": round(times[-1]), "per_epoch": round(times[-1] / len(times), 1)},
        "by_epoch": accuracy_by_epoch(folder / "results.csv"),
        "report": _without_paths(json.loads(report_file.read_text())) if report_file.exists() else {},
    }


def finish(arguments: Sequence[str], folder: Path) -> dict[str, str]:
    """Train, or go on with a training that was interrupted, and return its arguments by name; see `train`."""
    given = dict(a.partition("=")[::2] for a in arguments)
    last, results = folder / "weights" / "last.pt", folder / "results.csv"
    made = len(epoch_ends(results)) if last.exists() and results.exists() else 0
    if made < int(given["epochs"]):
        prune = ("prune=True",) if any(map(is_argument, given)) else ()
        where = (f"project={folder.parent}", f"name={folder.name}", "exist_ok=True")
        again = ("resume", f"model={last}", *prune) if made else (*arguments, *where)
        python = Path(sys.executable)
        in_bfloat16 = (python, Path(__file__).with_name("bfloat16.py"))
        command = in_bfloat16 if _is_in_bfloat16(given) else (python.with_name("yolo"),)
        subprocess.run([*command, "train", *again], check=True, env=ENVIRONMENT)
    return given


def _is_in_bfloat16(given: Mapping[str, str]) -> bool:
    """Whether a training with these arguments is one of `IN_BFLOAT16`."""
    return Path(given["data"]).parent.name in IN_BFLOAT16


def least_speedup(measured: Mapping[str, Any]) -> float:
    """Return a speed-up, or the least of one that did not settle."""
    return float(measured["value"] or measured["low"])


def epoch_ends(results: Path) -> list[float]:
    """Return the seconds from a run's start to the end of each epoch, from its ``results.csv``.

    What passed between an interrupt and the resumed run's start is not counted.
    """
    ends: list[float] = []
    before = last = 0.0
    with results.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if (now := float(row["time"])) < last:  # a resumed run's clock starts anew
                before = ends[-1]
            last = now
            ends.append(before + now)
    return ends


def accuracy_by_epoch(results: Path) -> dict[str, list[float]]:
    """Return each accuracy after each epoch, by Ultralytics' name of it, from a run's ``results.csv``."""
    found: dict[str, list[float]] = {}
    with results.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if name.startswith(("metrics/mAP", "metrics/accuracy")):
                    found.setdefault(name.removeprefix("metrics/"), []).append(round(float(value), 4))
    return found


def machine() -> str:
    """Return what a result was made on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {gpu}"


def _without_paths(value: Any) -> Any:
    """Drop what only means something on the machine that trained."""
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if k not in {"checkpoint", "path"}}
    return [_without_paths(v) for v in value] if isinstance(value, list) else value
