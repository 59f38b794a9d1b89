"""``compare.html`` and ``compare.png``: finished runs side by side, self-contained."""

from __future__ import annotations

from pathlib import Path

from yolo_prune.report.drawing import FORMATS, MEASURES, TICKS, fill, metric_of
from yolo_prune.report.pictures import Mark, Panel, draw_sizes
from yolo_prune.report.runs import Comparison, dense_told, faster
from yolo_prune.utils.files import write_text

NAME = "compare.html"
BEYOND = 1.3
"""How much larger than the largest run an official scale is that the pictures still show."""


def write(found: Comparison, folder: Path, *, plots: bool = True) -> Path:
    """Write the page of a comparison, and its picture beside it, and return the page.

    Args:
        found: With at least one run.
        folder: Where to.
        plots: Whether to write ``compare.png``, too.
    """
    path = folder / NAME
    write_text(path, render(found, folder.resolve().name))
    if plots and (drawn := panels(found)):
        draw_sizes(drawn, folder / "compare.png", metric_of({"task": found.task}))
    return path


def render(found: Comparison, name: str) -> str:
    """Return the page."""
    return fill(
        NAME,
        found.to_dict(),
        name=name,
        metric=metric_of({"task": found.task}),
        headline=headline(found),
        panels=panels(found),
        measures=[(q, *MEASURES[q]) for q in ("macs", "params", "bytes")],
        is_timed=any(run.final.latency for run in found.runs),
        faster=[faster(run.final.speedup) for run in found.runs],
        dense=[dense_told(run.dense, _percent) if run.dense else "" for run in found.runs],
        is_unfair=any(run.dense and run.dense.unfinished for run in found.runs),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else FORMATS["percent"](share)


def headline(found: Comparison) -> str:
    """Return what is compared, in a line; a gain is a matter of two points of the curve, not of a headline."""
    pruned = sum(run.is_pruned for run in found.runs)
    dense = len(found.runs) - pruned
    kinds = [f"{pruned} pruned"] * bool(pruned) + [f"{dense} without pruning"] * bool(dense)
    runs = f"{len(found.runs)} run{'s' * (len(found.runs) != 1)}"
    best = max((run.final.fitness for run in found.runs if run.final.fitness is not None), default=None)
    told = "" if best is None else f", {metric_of({'task': found.task})} up to {FORMATS['percent'](best)}"
    return f"{runs}, {' and '.join(kinds)}{told}"


def panels(found: Comparison) -> list[Panel]:
    """Return fitness against each measure of size; the line has the runs that no other beats in size and fitness."""
    front = found.front
    known = [run for run in found.runs if run.final.fitness is not None and run.final.macs is not None]
    if not known:
        return []
    drawn = []
    for quantity in ("macs", "params", "bytes"):
        label, kind = MEASURES[quantity]
        marks = []
        for run in known:
            is_best, amount = run.name in front, float(getattr(run.final, quantity) or 0)
            number = str(1 + found.runs.index(run))
            marks.append(Mark(amount, run.final.fitness or 0.0, number, run.name, is_best, is_best))
        dense = {
            (float(getattr(run.dense, quantity) or 0), round(run.dense.reference, 4))
            for run in known
            if run.dense and run.dense.finished and run.dense.reference is not None
        }
        dense -= {(mark.amount, round(mark.fitness, 4)) for mark in marks}  # a run of its own, which is there
        marks += [Mark(amount, fitness, "dense", "", False, False) for amount, fitness in sorted(dense)]
        most = BEYOND * max(mark.amount for mark in marks)  # a scale far away would push all else together
        amounts = {name: float(getattr(scale, quantity) or 0) for name, scale in found.scales.items()}
        drawn.append(Panel(label, TICKS[kind], marks, {name: n for name, n in amounts.items() if 0 < n <= most}))
    return drawn
