"""Accuracy against latency: the picture of the README, ours beside two recipes and the dense model.

    python benchmarks/accuracy.py --only deeppcb-s0   # the runs whose checkpoints are timed
    python benchmarks/picture.py --time               # times them: some minutes on two idle cores
    python benchmarks/picture.py                      # draws docs/accuracy-latency.svg from what is there

All checkpoints are timed in turns in one process. What was not timed or not trained is not drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from accuracy import PREPARED, Case, Run, score
from training import write

from yolo_prune.report.drawing import Axis

TIMES = Path(__file__).parent / "results" / "accuracy_latency.json"
PICTURE = Path(__file__).parent.parent / "docs" / "accuracy-latency.svg"
CASES = tuple(Case(model, "deeppcb") for model in ("yolov8n", "yolo11n"))
CURVES = {
    "ours": "yolo_prune, defaults",
    "cwd": "uniform cut by L1 norm, CWD",
    "usual": "uniform cut by L2 norm, head left",
}
KEPT = (50, 30)
"""Percent of the MACs that stay, in the order of a curve that begins at the dense model."""
THREADS, ROUNDS = 2, 40
STYLE = """
  svg { font: 13px system-ui, sans-serif; --paper: #fff; --ink: #1b1f24; --faint: #d5d9de; --grey: #57606a;
        --ours: #0a62c4; --cwd: #1a7f37; --usual: #b35309; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #15181c; --ink: #e6e8eb; --faint: #33383e; --grey: #9aa3ad;
          --ours: #6cb1ff; --cwd: #57c878; --usual: #f0a35e; }
  }
  text { fill: var(--ink); stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
  .grey { fill: var(--grey); } .grid { stroke: var(--faint); } .dense { stroke: var(--ink); }
  .ours { stroke: var(--ours); }
  .cwd { stroke: var(--cwd); } :not(circle).cwd { stroke-dasharray: 2 3; }
  .usual { stroke: var(--usual); } :not(circle).usual { stroke-dasharray: 6 4; }
  polyline, circle { fill: none; stroke-width: 2; } circle { fill: var(--paper); }
"""
"""The picture brings its own paper, so it can be read whichever way the page around it is."""


class Point(NamedTuple):
    """One trained checkpoint: seconds for one image, and mAP50-95 on the validation split."""

    run: Run
    seconds: float
    fitness: float


def main() -> None:
    """Time the checkpoints if asked, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where accuracy.py left its runs")
    parser.add_argument("--time", action="store_true", help="time the checkpoints; nothing else should run meanwhile")
    args = parser.parse_args()
    if args.time:
        time(args.runs)
    PICTURE.write_text(draw(points()), encoding="utf-8")


def curve(case: Case, contender: str) -> list[Run]:
    """Return the dense model, trained on, and a contender at each share of its MACs."""
    return [Run(case, "dense"), *(Run(case, contender, kept) for kept in KEPT)]


def time(folder: Path) -> None:
    """Time the checkpoints of the runs of the picture in turns, and write down how long each takes."""
    from yolo_prune.deploy.bench import bench

    wanted = dict.fromkeys(run for case in CASES for contender in CURVES for run in curve(case, contender))
    runs = [run for run in wanted if score(run) is not None]
    files = [folder / run.name / "weights" / "best.pt" for run in runs]
    found = bench(files, imgsz=CASES[0].imgsz, runtimes=("onnx",), scales=False, threads=THREADS, rounds=ROUNDS)
    rows = [row for row in found.rows if row.runtime == "onnx"]
    result = {
        "imgsz": CASES[0].imgsz,
        "rounds": ROUNDS,
        "where": found.where["onnx"],
        "seconds": {run.name: row.seconds for run, row in zip(runs, rows, strict=True)},
    }
    write(TIMES, result)


def points() -> dict[tuple[Case, str], list[Point]]:
    """Return case and contender -> the points of its curve, as far as they were trained and timed."""
    seconds = json.loads(TIMES.read_text(encoding="utf-8"))["seconds"]
    return {
        (case, contender): [
            Point(run, seconds[run.name][1], fitness)
            for run in curve(case, contender)
            if run.name in seconds and (fitness := score(run)) is not None
        ]
        for case in CASES
        for contender in CURVES
    }


def draw(curves: dict[tuple[Case, str], list[Point]]) -> str:
    """Return the picture as SVG: one panel per model, one line per contender."""
    width, height, top, bottom = 860, 400, 80, 340
    panels = {case: (60 + 410 * n, 420 + 410 * n) for n, case in enumerate(CASES)}
    slowest, best = (max(p[i] for line in curves.values() for p in line) for i in (1, 2))
    accuracy = Axis((0, 1.1 * best), bottom, top, pad=0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Accuracy against latency on deeppcb</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" style="fill: var(--paper)"/>',
    ]
    for n, (contender, name) in enumerate(CURVES.items()):
        x = 60 + 240 * n
        lines.append(f'<line x1="{x}" y1="22" x2="{x + 30}" y2="22" class="{contender}" stroke-width="2"/>')
        lines.append(f'<text x="{x + 38}" y="26">{escape(name)}</text>')
    lines.append('<text x="830" y="50" text-anchor="end" class="grey">percent: MACs kept; number: mAP50-95</text>')
    for case, (left, right) in panels.items():
        latency = Axis((0, 1e3 * 1.15 * slowest), left, right, pad=0)
        lines.append(f'<text x="{left}" y="{top - 18}" font-weight="600">{case.model}</text>')
        for tick in accuracy.ticks:
            y = accuracy(tick)
            lines.append(f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" class="grid"/>')
            lines.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" class="grey">{tick:.1f}</text>')
        for tick in latency.ticks:
            lines.append(
                f'<text x="{latency(tick)}" y="{bottom + 20}" text-anchor="middle" class="grey">{tick:g}</text>'
            )
        middle = (left + right) / 2
        lines.append(f'<text x="{middle}" y="{bottom + 42}" text-anchor="middle" class="grey">ms for one image</text>')
        for contender in CURVES:
            lines += marks(contender, curves[case, contender], latency, accuracy)
    return "\n".join([*lines, "</svg>", ""])


def marks(contender: str, line: Sequence[Point], latency: Axis, accuracy: Axis) -> Iterator[str]:
    """Yield a contender's line, a mark at each of its points, and what it says there."""
    places = [(latency(1e3 * point.seconds), accuracy(point.fitness)) for point in line]
    yield f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}" class="{contender}"/>'
    for point, (x, y) in zip(line, places, strict=True):
        kind = point.run.contender
        yield f'<circle cx="{x}" cy="{y}" r="5" class="{kind}">'
        yield f"<title>{point.run.name}: {1e3 * point.seconds:.2f} ms, mAP50-95 {point.fitness:.3f}</title></circle>"
        said = f"{point.run.kept} %: {point.fitness:.3f}"
        if point == line[-1]:
            yield f'<text x="{x - 10}" y="{y + 4}" text-anchor="end">{said}</text>'
        elif kind in PREPARED:
            yield f'<text x="{x + 10}" y="{y + 15}">{said}</text>'
        elif contender == "ours":  # the dense model is on all lines, and said once
            share = "dense" if kind == "dense" else f"{point.run.kept} %"
            yield f'<text x="{x}" y="{y - 27}" text-anchor="middle">{share}</text>'
            yield f'<text x="{x}" y="{y - 12}" text-anchor="middle">{point.fitness:.3f}</text>'


if __name__ == "__main__":
    main()
