"""``pruning/report.html``: a finished run as one page, self-contained and without scripts.

Each figure on it says where in ``report.json`` it comes from, so that a page can be checked, and made again. What the
run was asked for is in Ultralytics' ``args.yaml`` beside it.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from yolo_prune.config.settings import PruneConfig
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import are_multiples
from yolo_prune.report import pictures
from yolo_prune.report.predictions import Sample, side_by_side
from yolo_prune.report.records import CutRecord, ExportRecord, Report, Stage
from yolo_prune.utils.files import atomic_write
from yolo_prune.utils.run_folder import RunFolder
from yolo_prune.utils.text import count, epochs, megabytes, milliseconds

NAME = "report.html"
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
_ARGUMENTS = ("task", "model", "data", "epochs", "batch", "optimizer", "lr0", "seed", "device", "quantize")
"""Of Ultralytics, what the page tells."""


def runtime_name(form: str) -> str:
    """Return the name of a runtime as people write it, with the precision of its files where one was asked for."""
    name, _, precision = form.partition(":")
    if name not in RUNTIMES:
        return form
    return f"{RUNTIMES[name]} ({precision} bit)" if precision else RUNTIMES[name]


def write(run: Path, *, plots: bool = True) -> Path:
    """Write ``report.html`` of a run from its ``report.json``.

    Args:
        run: The run's folder.
        plots: Whether to write ``curve.png`` and ``channels.png`` beside it, too.

    Returns:
        The page.

    Raises:
        ConfigError: If there is no report, or it cannot be read.
    """
    folder = RunFolder(run).path
    try:
        report = _completed(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"{folder / 'report.json'} cannot be read as a report ({type(e).__name__}: {e}); give the folder of a run "
            "with pruning, e.g. runs/detect/train."
        ) from e
    asked = run / "args.yaml"
    arguments = yaml.safe_load(asked.read_text(encoding="utf-8")) if asked.is_file() else {}
    samples, unseen = [], None if report["samples"] else "the report names no validation images"
    if report["cuts"] and report["final"]:
        try:
            samples = side_by_side(report, run)
        except Exception as e:  # whatever Ultralytics raises at a checkpoint or an image, the rest can be told
            unseen = f"{type(e).__name__}: {e}"
    path = folder / NAME
    text = render(report, arguments, run.resolve().name, samples, unseen)
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
    if plots:
        pictures.draw(report, folder, _metric(arguments))
    return path


def render(
    report: Mapping[str, Any],
    arguments: Mapping[str, Any],
    name: str,
    samples: Iterable[Sample] = (),
    unseen: str | None = None,
) -> str:
    """Return the page.

    Args:
        report: What is in ``report.json``.
        arguments: What is in ``args.yaml``.
        name: Of the run.
        samples: Validation images as the dense and the final network see them.
        unseen: Why there are none.
    """
    report = _completed(report)

    def figure(place: list[str | int], kind: str) -> Markup:
        """Return a figure of the report as text that says its value and its place."""
        value: Any = report
        for key in place:
            value = value[key]
        if value is None:
            return Markup("&ndash;")
        data = Markup('<data value="{}" data-place="{}">{}</data>')
        return data.format(json.dumps(value), json.dumps(place), FORMATS[kind](value))

    templates = PackageLoader("yolo_prune.report")
    house = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return house.get_template(f"{NAME}.j2").render(
        r=report,
        name=name,
        metric=_metric(arguments),
        headline=headline(report, arguments),
        arguments={key: arguments[key] for key in _ARGUMENTS if arguments.get(key) not in (None, "")},
        defaults=PruneConfig().to_dict(),
        commands=_commands(report, arguments),
        samples=list(samples),
        unseen=unseen,
        bars=pictures.channels(report),
        over_epochs=pictures.over_epochs(report),
        over_macs=pictures.over_macs(report),
        runtime_name=runtime_name,
        are_multiples=are_multiples,
        figure=figure,
        change=_change,
        comparable=_comparable(report),
        unfinished=_unfinished(report),
        speedup=_speedup(report),
        dense_name=pictures.dense_name(report),
        Axis=Axis,
        formats=FORMATS,
    )


def headline(report: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the result of a run in a line, as far as it was measured: ``2.1x fewer MACs, mAP50-95 58.6 → 58.1``."""
    dense, final, timed = report["dense"], report["final"], report["timed"]
    if final is None:
        return f"Not finished yet, {len(report['cuts'])} cuts made"
    if not report["cuts"]:
        return "Nothing was cut"
    parts = []
    if dense["macs"] and final["macs"]:
        parts.append(f"{dense['macs'] / final['macs']:.1f}x fewer MACs")
    speedup = _speedup(report)
    if timed and speedup and speedup.settled:
        parts.append(f"{_faster(speedup)} in {runtime_name(timed['runtime'])}")
    if None not in (dense["fitness"], final["fitness"]):
        before, after = FORMATS["percent"](dense["fitness"]), FORMATS["percent"](final["fitness"])
        at, whole = dense["epochs"] or 0, arguments.get("epochs")
        if dense["finished"] is not False:
            parts.append(f"{_metric(arguments)} {before} → {after}")
        else:
            of = f"{at} of {whole} epochs" if whole else f"after {epochs(at)}"
            parts.append(f"{_metric(arguments)} {after} (the dense model was not finished: {of})")
    return ", ".join(parts)


def _faster(speedup: Speedup) -> str:
    """Return ``1.8x faster``, or a range where one decimal does not have all of it."""
    low, high, side = speedup.low, speedup.high, "faster"
    if low <= 1 <= high:
        return "as fast"
    if high < 1:
        low, high, side = 1 / high, 1 / low, "slower"
    if f"{low:.1f}" == f"{high:.1f}":
        return f"{low:.1f}x {side}"
    return f"{low:.2f}\N{EN DASH}{high:.2f}x {side}"


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


def _completed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with all fields: those of earlier versions have fewer."""
    cut, export = asdict(CutRecord(0, 0, 0, 0, None, None, "", [], 0.0)), asdict(ExportRecord(""))
    report, stage = {**Report(data["imgsz"], Stage(), {}).to_dict(), **data}, asdict(Stage())
    for name in ("dense", "final"):
        report[name] = report[name] and {**stage, **report[name]}
    report["scales"] = {name: {**stage, **scale} for name, scale in report["scales"].items()}
    report["cuts"] = [{**cut, **record} for record in report["cuts"]]
    report["exports"] = [{**export, **record} for record in report["exports"]]
    return report


def _speedup(report: Mapping[str, Any]) -> Speedup | None:
    """Return how much faster the final network is; earlier reports do not tell whether that can be told."""
    found = (report["final"] or {}).get("speedup")
    return Speedup(**found) if found else None


def _unfinished(report: Mapping[str, Any]) -> str:
    """Return why no fitness is compared with the dense network's; empty for one that was finished."""
    dense = report["dense"]
    return Stage(epochs=dense["epochs"], finished=dense["finished"]).unfinished


def _comparable(report: Mapping[str, Any]) -> set[str]:
    """Return the figures of a stage whose change from dense to final says something."""
    found = {"macs", "params", "bytes"}
    if not _unfinished(report):
        found.add("fitness")
    if (speedup := _speedup(report)) and speedup.settled:
        found.add("latency")
    return found


def _metric(arguments: Mapping[str, Any]) -> str:
    """Return the name of the metric that is the fitness."""
    return METRICS.get(arguments.get("task", ""), "fitness")


def _change(now: float | None, before: float | None, kind: str) -> str:
    """Return ``-50.0%``, or points of a percentage, or nothing where there is nothing to compare."""
    if now is None or not before:
        return ""
    told = f"{100 * (now - before):+.1f}" if kind == "percent" else f"{now / before - 1:+.1%}"
    return told.replace("-", "\N{MINUS SIGN}")


def _commands(report: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return commands for the result: purpose -> a line for the shell."""
    best = shlex.quote(f"model={(report['final'] or {}).get('checkpoint') or 'best.pt'}")
    data = shlex.quote(f"data={arguments.get('data') or 'my.yaml'}")
    size = f"imgsz={max(report['imgsz'])}"
    return {
        "Predict": f"yolo predict {best} source=path/to/images {size}",
        "Export": f"yolo export {best} format=onnx {size}",
        "Train it on as it is; prune=0.2 cuts another 20 %": f"yolo train {best} {data} epochs=20 {size} prune=0",
    }
