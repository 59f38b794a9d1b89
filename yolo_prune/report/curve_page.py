"""``curve.html`` and ``curve.png``: what a network keeps at several sizes without training, self-contained."""

from __future__ import annotations

from pathlib import Path

from yolo_prune.config.targets import LATENCY
from yolo_prune.report.drawing import FORMATS, MEASURES, TICKS, fill, metric_of, runtime_name
from yolo_prune.report.pictures import Mark, Panel, draw_sizes
from yolo_prune.report.size_curve import Curve, CurvePoint
from yolo_prune.utils.files import write_text

NAME = "curve.html"


def write(curve: Curve, folder: Path, *, plots: bool = True) -> Path:
    """Write the page of a curve, and its picture beside it, and return the page.

    Args:
        curve: With at least one size.
        folder: Where to.
        plots: Whether to write ``curve.png``, too.
    """
    path = folder / NAME
    write_text(path, render(curve, folder.resolve().name))
    if plots and (found := panels(curve)):
        draw_sizes(found, folder / "curve.png", metric_of({"task": curve.task}), curve.dense.fitness)
    return path


def render(curve: Curve, name: str) -> str:
    """Return the page."""
    return fill(
        NAME,
        curve.to_dict(),
        name=name,
        metric=metric_of({"task": curve.task}),
        headline=headline(curve),
        panels=panels(curve),
        measures=[(q, *MEASURES[q]) for q in MEASURES if q != LATENCY or curve.dense.latency is not None],
        knee=curve.knee,
        command=curve.command(curve.knee.target) if curve.knee else "",
    )


def headline(curve: Curve) -> str:
    """Return the result in a line: ``Knee at 0.5, 2.0x fewer MACs, mAP50-95 58.6 → 58.5 without training``."""
    metric, dense, point = metric_of({"task": curve.task}), curve.dense, curve.knee or curve.points[-1]
    if dense.fitness is None or point.fitness is None:
        return f"{len(curve.points)} sizes, no fitness was measured"
    what = f"Knee at {point.target}" if curve.knee else "No knee"
    if not curve.knee and curve.is_flat:
        what = f"Even {point.target} loses next to nothing"
    before, after = FORMATS["percent"](dense.fitness), FORMATS["percent"](point.fitness)
    return f"{what}, {dense.macs / point.macs:.1f}x fewer MACs, {metric} {before} → {after} without training"


def panels(curve: Curve) -> list[Panel]:
    """Return the curve against each measure of size, as far as fitness and size are known."""
    points = [p for p in (curve.dense, *curve.points) if p.fitness is not None]
    if len(points) < 2:
        return []
    found, knee = [], curve.knee
    for quantity, (label, kind) in MEASURES.items():
        if quantity != LATENCY or curve.dense.latency is not None:
            marks = [_mark(p, p.amount(quantity), knee) for p in points]
            where = f" ({runtime_name(curve.timed['runtime'])})" if quantity == LATENCY and curve.timed else ""
            found.append(Panel(label + where, TICKS[kind], marks, {}))
    return found


def _mark(point: CurvePoint, amount: float, knee: CurvePoint | None) -> Mark:
    """Return a size in a panel; its fitness is known."""
    is_knee = point is knee
    return Mark(amount, point.fitness or 0.0, "knee" * is_knee, f"prune={point.target}", is_full=not is_knee)
