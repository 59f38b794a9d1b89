"""What pages are made of: figures that say where they come from, names, axes, and the templates that all share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from yolo_prune.config.targets import BYTES, LATENCY, MACS, PARAMS
from yolo_prune.utils.text import count, megabytes, milliseconds

METRICS = {
    "detect": "mAP50-95",
    "obb": "mAP50-95",
    "segment": "mAP50-95 of boxes plus masks",
    "pose": "mAP50-95 of boxes plus poses",
    "classify": "mean of top-1 and top-5 accuracy",
    "semantic": "mIoU",
    "depth": "delta1",
}
"""Task -> what Ultralytics' fitness is."""
RUNTIMES = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
    "litert": "LiteRT",
    "coreml": "Core ML",
    "pytorch": "PyTorch",
    "tensorrt": "TensorRT",
}
"""Runtime -> its name."""
FORMATS: dict[str, Callable[[Any], str]] = {
    "count": count,
    "size": megabytes,
    "time": milliseconds,
    "percent": lambda share: f"{100 * share:.1f}",
    "times": lambda ratio: f"{ratio:.2f}x",
    "seconds": lambda seconds: f"{seconds:.1f} s",
    "difference": lambda x: f"{x:.1e}",
    "plain": str,
}
"""How a kind of figure is written."""
TICKS: dict[str, Callable[[float], str]] = {
    **FORMATS,
    "size": lambda amount: f"{amount / 1e6:.3g} MB",
    "time": lambda seconds: f"{1e3 * seconds:.3g} ms",
}
"""How it is written along an axis."""
MEASURES = {
    MACS: ("MACs", "count"),
    PARAMS: ("parameters", "count"),
    BYTES: ("file", "size"),
    LATENCY: ("predicted latency", "time"),
}
"""Quantity -> its name, and the kind of its figures."""


def fill(template: str, data: Mapping[str, Any], /, **values: Any) -> str:
    """Return a page.

    Args:
        template: Its name, without ``.j2``.
        data: What is in the JSON file that it is made of; templates have it as ``r``, and tell figures of it with
            ``figure([place, ...], kind)``.
        **values: What else the template takes.
    """

    def figure(place: list[str | int], kind: str) -> Markup:
        """Return a figure as text that says its value and its place."""
        value: Any = data
        for key in place:
            value = value[key]
        if value is None:
            return Markup("&ndash;")
        element = Markup('<data value="{}" data-place="{}">{}</data>')
        return element.format(json.dumps(value), json.dumps(place), FORMATS[kind](value))

    templates = PackageLoader("yolo_prune.report")
    house = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    house.globals |= {"figure": figure, "change": change_of, "formats": FORMATS, "Axis": Axis}
    house.globals["runtime_name"] = runtime_name
    return house.get_template(f"{template}.j2").render(r=data, **values)


def metric_of(arguments: Mapping[str, Any]) -> str:
    """Return the name of the metric that is the fitness."""
    return METRICS.get(arguments.get("task", ""), "fitness")


def runtime_name(form: str) -> str:
    """Return the name of a runtime as people write it, with the precision of its files where one was asked for."""
    name, _, precision = form.partition(":")
    if name not in RUNTIMES:
        return form
    return f"{RUNTIMES[name]} ({precision} bit)" if precision else RUNTIMES[name]


def change_of(now: float | None, before: float | None, kind: str) -> str:
    """Return ``-50.0%``, or points of a percentage, or nothing where there is nothing to compare."""
    if now is None or not before:
        return ""
    told = f"{100 * (now - before):+.1f}" if kind == "percent" else f"{now / before - 1:+.1%}"
    return told.replace("-", "\N{MINUS SIGN}")


class Axis:
    """Places values on a line of a drawing.

    Args:
        values: What has to fit on it.
        start: Coordinate of the smallest value.
        end: That of the largest.
        pad: Share of the line to leave free at both ends.
    """

    def __init__(self, values: Iterable[float], start: float, end: float, pad: float = 0.06) -> None:
        values = sorted(values)
        low, high = values[0], values[-1]
        span = (high - low) or abs(high) or 1.0
        self._low, self._high, self._start, self._end = low - pad * span, high + pad * span, start, end

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values on it."""
        span = self._high - self._low
        unit = 10.0 ** math.floor(math.log10(span / 3))
        step = next(unit * n for n in (5, 2, 1) if span / (unit * n) >= 3)
        return [n * step for n in range(math.ceil(self._low / step), math.floor(self._high / step) + 1)]
