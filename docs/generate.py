"""Write the generated parts of the documents: the tables of options, of packages, and of measured results.

    python docs/generate.py            # writes them anew
    python docs/generate.py --check    # writes nothing; exit code 1 if a page is out of date

A page has a generated part wherever a line says ``<!-- generated: NAME -->``; it ends at ``<!-- end -->``. Options come
from their declarations in `yolo_prune.config`, packages from their docstrings, and results from
``benchmarks/results/``, by the scripts that measured them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")))
PART = re.compile(r"(<!-- generated: ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def options() -> str:
    """Return the table of all options, in the order of their declaration."""
    from yolo_prune import PruneConfig

    defaults = PruneConfig()
    lines = ["| Python, YAML | command line | default | |", "|---|---|---|---|"]
    for option in fields(PruneConfig):
        name, default = option.name, getattr(defaults, option.name)
        flag = "prune" if name == "target" else f"prune_{name}"
        text = "none" if default in ((), {}, None) else str(default)
        help = option.metadata["help"].replace("*", "\\*")
        lines.append(f"| `{name}` | `{flag}=` | `{text}` | {help} |")
    return "\n".join(lines)


def packages() -> str:
    """Return what each package and top-level module holds, by its docstring, in the order in which they may import."""
    layers = re.search(r"^layers = \[\n(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    lines = ["| package or module | holds |", "|---|---|"]
    for name in reversed(re.findall(r'"(\w+)"', layers[1] if layers else "")):
        folder = REPOSITORY / "yolo_prune" / name
        source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        holds = docstring.splitlines()[0].replace("``", "`")
        lines.append(f"| `{name}{'/' if folder.is_dir() else '.py'}` | {holds} |")
    return "\n".join(lines)


def facts() -> str:
    """Return a row of what was measured of YOLOv8n at half of its MACs: accuracy of 25 epochs, and speed."""
    tables, speed = (import_module(name) for name in ("accuracy_tables", "speed"))
    row = next(row for row in tables.rows() if row.name == "yolov8n, bccd" and row.kept == 50)
    seeds, scores = len(row.cases), (tables.told(row, contender) for contender in ("ours", "dense", "usual"))
    speedups = speed.speedups(speed.rows_of("yolov8n", 640)["50 % fewer MACs"])
    cells = (*scores, *speedups)
    return "\n".join(
        [
            "| YOLOv8n, half of the MACs | yolo_prune | dense | usual recipe | ONNX Runtime | OpenVINO | PyTorch |",
            "|---|---|---|---|---|---|---|",
            f"| mAP50-95 ({seeds} seeds), speed-up at 640 px | {' | '.join(cells)} |",
        ]
    )


def table(script: str, name: str = "table", key: str | None = None, argument: bool = False) -> Callable[[], str]:
    """Return what makes a table of a benchmark script.

    Args:
        script: Its name in ``benchmarks/``.
        name: The function that returns the table.
        key: Of the script's results, where the function takes a part of them.
        argument: Whether the function takes the script's results.
    """

    def make() -> str:
        module: Any = import_module(script)
        if not (key or argument):
            return str(getattr(module, name)())
        results = json.loads(module.RESULTS.read_text(encoding="utf-8"))
        return str(getattr(module, name)(results[key] if key else results))

    return make


PARTS: dict[str, Callable[[], str]] = {
    "options": options,
    "packages": packages,
    "facts": facts,
    "summary": table("accuracy_tables", "summary"),
    "accuracy.last": table("accuracy_tables", "detailed_table"),
    "accuracy.best": table("accuracy_tables", "best_table"),
    "accuracy": table("accuracy_tables"),
    "accuracy.differences": table("accuracy_tables", "difference_table"),
    "accuracy.small": table("accuracy_tables", "small_table"),
    "ablation": table("accuracy_tables", "ablation"),
    "recovery": table("recovery"),
    "training_time": table("accuracy_tables", "time_table"),
    "without_training": table("without_training"),
    "curve": table("curve"),
    "blocks": table("blocks"),
    "blocks.latency": table("blocks", "latency_table"),
    "sizes": table("sizes"),
    "sizes.differences": table("sizes", "difference_table"),
    "auto": table("auto"),
    "cut_cost": table("cut_cost"),
    "devices": table("devices"),
    "file_sizes": table("file_sizes"),
    "memory": table("memory"),
    "zeros": table("zeros"),
    "criteria": table("criteria"),
    "speed": table("speed", "speed_table"),
    "speed.targets": table("speed", "target_table"),
    "speed.equal": table("speed", "equal_speed_table"),
    "speed.widths": table("speed", "width_table"),
    "speed.multiples": table("speed", "multiple_table"),
    "speed.errors": table("speed", "error_table"),
    "operators": table("operators", "limit_table", key="rows"),
    "gpu": table("gpu"),
    "cost_model": table("cost_model", argument=True),
    "exports": table("exports"),
    "models": table("support", argument=True),
    "uses": table("uses"),
    "reid": table("reid"),
    "levels": table("levels_classes", "level_table"),
    "classes": table("levels_classes", "class_table"),
    "faults": table("faults"),
}
"""Name of a part -> what makes it."""


def rewritten(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


def main() -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    sys.path[:0] = [str(REPOSITORY), str(BENCHMARKS)]
    stale = [page for page in PAGES if (text := page.read_text(encoding="utf-8")) != rewritten(text)]
    for page in stale:
        print(f"{page.relative_to(REPOSITORY)} {'is out of date' if args.check else 'is written'}")
        if not args.check:
            page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
    return bool(args.check and stale)


if __name__ == "__main__":
    sys.exit(main())
