"""Pictures of a finished run, read off ``report.json``: its curve and its channels. `page` shows the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolo_prune.report.drawing import FORMATS
from yolo_prune.utils.files import atomic_write
from yolo_prune.utils.text import epochs


class Measure(NamedTuple):
    """What the size of a run's network is drawn by: a field of its records, its name, and how it is written."""

    field: str
    label: str
    kind: str


MACS, ZEROS = Measure("macs", "MACs", "count"), Measure("sparsity", "zeros (%)", "percent")


class Point(NamedTuple):
    """One validation: epochs that are over, size or None, fitness, and what has just happened, if anything."""

    epoch: int
    size: float | None
    fitness: float
    name: str = ""


class Mark(NamedTuple):
    """One network in a panel.

    Attributes:
        amount: Its size.
        fitness: Its fitness.
        label: What is written at it, if anything.
        name: What it is.
        is_on_line: Whether the line goes through it.
        is_full: Whether its mark is full.
    """

    amount: float
    fitness: float
    label: str = ""
    name: str = ""
    is_on_line: bool = True
    is_full: bool = True


class Panel(NamedTuple):
    """Fitness against one measure of size.

    Attributes:
        label: What the measure is called.
        tell: Writes an amount of it.
        marks: Along the line.
        others: Name -> amount of what has no fitness.
    """

    label: str
    tell: Callable[[float], str]
    marks: Sequence[Mark]
    others: Mapping[str, float]


class Bar(NamedTuple):
    """One layer of the channel map: its path, its output width before and after, and why it is locked, or None."""

    layer: str
    before: int
    after: int
    why: str | None


def dense_name(report: Mapping[str, Any]) -> str:
    """Return the name of the dense network, which says where it was not finished."""
    dense = report["dense"]
    return f"dense after {epochs(dense['epochs'] or 0)}, not finished" if dense.get("finished") is False else "dense"


def measure(report: Mapping[str, Any]) -> Measure:
    """Return what a run has changed: multiply-adds, or where they all stayed the share of zeros."""
    cuts, dense = report["cuts"], report["dense"]["macs"]
    return ZEROS if any(cut["sparsity"] for cut in cuts) and all(cut["macs"] == dense for cut in cuts) else MACS


def over_epochs(report: Mapping[str, Any]) -> list[Point]:
    """Return every validation in its order; none for a report without epochs."""
    if not report["epochs"]:
        return []
    field, dense, cuts = measure(report).field, report["dense"], report["cuts"]

    def size(epoch: int) -> float | None:
        return next((cut[field] for cut in reversed(cuts) if cut["epoch"] <= epoch), dense[field])

    points = [Point(e["epoch"] + 1, e.get(field, size(e["epoch"])), e["fitness"]) for e in report["epochs"]]
    for n, cut in enumerate(cuts, 1):
        points.append(Point(cut["epoch"], cut[field], cut["fitness_cut"], f"cut {n}"))
    if q := report["quantization"]:
        points.append(Point(q["epoch"], points[-1].size, q["fitness_quantized"], "INT8"))
    return sorted((p for p in points if p.fitness is not None), key=lambda p: (p.epoch, p.name != ""))


def taken_back(report: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the epochs of each cut that was taken back: its own, and that from which the network before it went on."""
    failures = (report["guard"] or {}).get("failures", ())
    return [(failure["epoch"], failure["until"]) for failure in failures if "until" in failure]  # since 0.3


def over_size(report: Mapping[str, Any]) -> list[Point]:
    """Return the way from dense to final: each cut, and what came back after it."""
    dense, final, field = report["dense"], report["final"], measure(report).field
    points = [Point(0, dense[field], dense["fitness"], "dense")]
    sizes = {size["cut"]: f"size {size['size']}" for size in report.get("sizes", ())}
    for n, cut in enumerate(report["cuts"], 1):
        points.append(Point(cut["epoch"], cut[field], cut["fitness_cut"], f"cut {n}"))
        points.append(Point(cut["epoch"], cut[field], cut["fitness_recovered"], sizes.get(n, "")))
    if final:
        points.append(Point(0, final[field], final["fitness"], "final"))
    return [p for p in points if p.size is not None and p.fitness is not None]


def channels(report: Mapping[str, Any]) -> list[Bar]:
    """Return the layers in the order of the network; none where only zeros were made."""
    if measure(report) is ZEROS:
        return []
    locked = {entry["layer"]: entry["why"] for cut in report["cuts"][-1:] for entry in cut["locked"]}
    bars = []
    for path, widths in report["layers"].items():
        why = next((locked[owner] for owner in _owners(path) if owner in locked), None)
        bars.append(Bar(path, widths["before"], widths["after"], why))
    return bars


def draw(report: Mapping[str, Any], folder: Path, metric: str) -> None:
    """Write ``curve.png`` and ``channels.png``, in the manner of Ultralytics' ``results.png``.

    Args:
        report: What is in ``report.json``.
        folder: Where to.
        metric: What fitness is called.
    """
    if len(over_size(report)) > 1:
        _draw_curve(report, folder / "curve.png", metric)
    if bars := channels(report):
        _draw_channels(bars, folder / "channels.png")


def _draw_curve(report: Mapping[str, Any], path: Path, metric: str) -> None:
    """Draw fitness over epochs, where they are known, and against size."""
    from matplotlib.figure import Figure  # without pyplot it is drawn by Agg, and no window or state is touched

    run, way, by = over_epochs(report), over_size(report), measure(report)
    figure = Figure(figsize=(12 if run else 6, 5), layout="constrained")
    *left, right = figure.subplots(1, 2 if run else 1, squeeze=False)[0]
    for axes in left:
        _plot_epochs(axes, run)
        for n, (start, end) in enumerate(taken_back(report)):
            axes.axvspan(start, end, color="C1", alpha=0.12, linewidth=0, label=None if n else "taken back")
        axes.set_title(f"{metric}, epoch by epoch", fontsize=12)
    right.plot([p.size for p in way], [p.fitness for p in way], **_LINE)
    for p in (p for p in way if p.name.startswith(("cut", "size"))):
        color, place = ("C1", (5, -12)) if p.name.startswith("cut") else ("C0", (5, 5))
        right.annotate(p.name, (p.size, p.fitness), place, textcoords="offset points", color=color)
    right.xaxis.set_major_formatter(lambda amount, _: FORMATS[by.kind](amount))
    right.set_title(f"{metric} against {by.label}", fontsize=12)
    for axes in (*left, right) if way[0].name == "dense" else ():
        axes.axhline(way[0].fitness, color="0.5", linestyle="--", label=dense_name(report))
        axes.legend()
    _save(figure, path)


def draw_sizes(panels: Sequence[Panel], path: Path, metric: str, dense: float | None = None) -> None:
    """Write a picture of fitness against size, a panel for each measure of it.

    Args:
        panels: In their order.
        path: Of the PNG.
        metric: What fitness is called.
        dense: Fitness of the dense network, for a line across.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        marks = [mark for mark in panel.marks if mark.is_on_line]
        axes.plot([m.amount for m in marks], [m.fitness for m in marks], **_LINE)
        for mark in panel.marks:
            if not mark.is_full:
                axes.plot([mark.amount], [mark.fitness], "o", color="C1", markerfacecolor="white")
        for label, place in joined_labels(panel.marks):
            axes.annotate(label, place, (5, -12), textcoords="offset points", color="C1")
        for name, amount in panel.others.items():
            axes.axvline(amount, color="0.8", linewidth=1)
            axes.text(amount, 0.01, name, rotation=90, color="0.5", transform=axes.get_xaxis_transform(), fontsize=8)
        if dense is not None:
            axes.axhline(dense, color="0.5", linestyle="--", label="dense")
            axes.legend(loc="lower right")
        axes.xaxis.set_major_formatter(lambda amount, _, panel=panel: panel.tell(amount))
        axes.set_title(f"{metric} against {panel.label}", fontsize=12)
    named = [f"{mark.label}: {mark.name}" for mark in panels[0].marks if mark.label and mark.name]
    if named:
        per_line = 2 * len(panels)
        lines = (", ".join(named[i : i + per_line]) for i in range(0, len(named), per_line))
        figure.supxlabel("\n".join(lines), fontsize=9)
    _save(figure, path)


def joined_labels(marks: Sequence[Mark], near: float = 0.03) -> list[tuple[str, tuple[float, float]]]:
    """Return what is written at marks, and where, with one text for those that would be written over each other.

    Args:
        marks: Of one panel.
        near: Marks so near, as a share of the panel's width and height, have their text at the first of them.
    """
    width, height = (max(of) - min(of) or 1.0 for of in zip(*((m.amount, m.fitness) for m in marks), strict=True))
    texts: dict[tuple[float, float], list[str]] = {}
    for mark in (mark for mark in marks if mark.label):
        at = (mark.amount, mark.fitness)
        there = (p for p in texts if abs(p[0] - at[0]) <= near * width and abs(p[1] - at[1]) <= near * height)
        texts.setdefault(next(there, at), []).append(mark.label)
    return [(", ".join(dict.fromkeys(labels)), at) for at, labels in texts.items()]


_LINE: dict[str, Any] = {"marker": ".", "linewidth": 2, "markersize": 8}


def _plot_epochs(axes: Any, run: Sequence[Point]) -> None:
    """Plot each validation, with a line where the network has changed."""
    axes.plot([p.epoch for p in run], [p.fitness for p in run], **_LINE)
    for p in (p for p in run if p.name):
        label, color = (p.name, "C2") if p.name == "INT8" else ("cut" if p.name == "cut 1" else None, "C1")
        axes.axvline(p.epoch, color=color, linewidth=1, label=label)


def _draw_channels(bars: Sequence[Bar], path: Path) -> None:
    """Draw the widths of all layers before and after."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.18 * len(bars)), layout="constrained")
    axes, places = figure.subplots(), range(len(bars))
    kept_to_gone = LinearSegmentedColormap.from_list("", ["#93abb8", "#d9601a"])  # as in the page
    shades = [kept_to_gone(1 - b.after / b.before) for b in bars]
    axes.barh(places, [b.before for b in bars], color="0.9")
    axes.barh(places, [b.after for b in bars], color=shades, hatch=["////" if b.why else "" for b in bars])
    axes.set_yticks(places, [b.layer for b in bars], fontsize=7)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_title("channels before (grey) and after, by the share that is gone; hatched: locked", fontsize=12)
    _save(figure, path)


def _owners(path: str) -> Iterator[str]:
    """Yield a layer's path and those of the modules that it is in."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as draft:
        figure.savefig(draft, format="png", dpi=200)
