"""``pruning/report.html``: a finished run as one page, self-contained and without scripts.

Each figure on it says where in ``report.json`` it comes from, so that a page can be checked, and made again. What the
run was asked for is in Ultralytics' ``args.yaml`` beside it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from yolo_prune.config.settings import PruneConfig
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import are_multiples
from yolo_prune.report import pictures
from yolo_prune.report.drawing import FORMATS, fill, metric_of, runtime_name
from yolo_prune.report.predictions import Sample, side_by_side
from yolo_prune.report.records import CutRecord, ExportRecord, Report, Stage
from yolo_prune.report.zeros import at_runtimes
from yolo_prune.utils.files import write_text
from yolo_prune.utils.run_folder import RunFolder
from yolo_prune.utils.text import epochs

NAME = "report.html"
_ARGUMENTS = ("task", "model", "data", "epochs", "batch", "optimizer", "lr0", "seed", "device", "quantize")
"""Of Ultralytics, what the page tells."""


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
    report, arguments = read_report(run)
    samples, unseen = [], None if report["samples"] else "the report names no validation images"
    if report["cuts"] and report["final"]:
        try:
            samples = side_by_side(report, run)
        except Exception as e:  # whatever Ultralytics raises at a checkpoint or an image, the rest can be told
            unseen = f"{type(e).__name__}: {e}"
    path = folder / NAME
    text = render(report, arguments, run.resolve().name, samples, unseen)
    write_text(path, text)
    if plots:
        pictures.draw(report, folder, metric_of(arguments))
    return path


def read_report(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is in the ``report.json`` of a run, with all fields, and in its ``args.yaml``.

    Of a resumed run ``model`` is what the run began with.

    Raises:
        ConfigError: If there is no report, or it cannot be read.
    """
    path, asked = RunFolder(run).path / "report.json", run / "args.yaml"
    try:
        report = _completed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"{path} cannot be read as a report ({type(e).__name__}: {e}); give the folder of a run with pruning, "
            "e.g. runs/detect/train."
        ) from e
    arguments = yaml.safe_load(asked.read_text(encoding="utf-8")) if asked.is_file() else {}
    if report["start"]:  # a resumed run's arguments name the last.pt that it went on from
        arguments["model"] = report["start"]
    return report, arguments


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

    return fill(
        NAME,
        report,
        name=name,
        metric=metric_of(arguments),
        headline=headline(report, arguments),
        arguments={key: arguments[key] for key in _ARGUMENTS if arguments.get(key) not in (None, "")},
        defaults=PruneConfig().to_dict(),
        commands=_commands(report, arguments),
        samples=list(samples),
        unseen=unseen,
        bars=pictures.channels(report),
        over_epochs=pictures.over_epochs(report),
        over_size=pictures.over_size(report),
        taken_back=pictures.taken_back(report),
        measure=pictures.measure(report),
        are_multiples=are_multiples,
        comparable=_comparable(report),
        unfinished=_dense(report).unfinished,
        was_better=_dense(report).was_better,
        reference=_dense(report).reference,
        dense_before=dense_before(report),
        speedup=_speedup(report),
        dense_name=pictures.dense_name(report),
        at_runtimes=at_runtimes(report["zeros"], (report["final"] or {}).get("checkpoint") or "best.pt"),
    )


def headline(report: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the result of a run in a line, as far as it was measured: ``2.1x fewer MACs, mAP50-95 58.6 → 58.1``."""
    dense, final, timed = report["dense"], report["final"], report["timed"]
    if final is None:
        return f"Not finished yet, {len(report['cuts'])} cuts made"
    if not report["cuts"]:
        return "Nothing was cut"
    parts = []
    if dense["macs"] and final["macs"] and final["macs"] != dense["macs"]:
        parts.append(f"{dense['macs'] / final['macs']:.1f}x fewer MACs")
    if final["sparsity"] is not None:
        parts.append(f"{final['sparsity']:.0%} zeros")
    speedup = _speedup(report)
    if timed and speedup and speedup.settled:
        parts.append(f"{_faster(speedup)} in {runtime_name(timed['runtime'])}")
    if None not in (dense["fitness"], final["fitness"]):
        before, after = FORMATS["percent"](_dense(report).reference), FORMATS["percent"](final["fitness"])
        at, whole = dense["epochs"] or 0, arguments.get("epochs")
        if dense["finished"]:
            parts.append(f"{metric_of(arguments)} {before} → {after}")
        elif dense["finished"] is None:
            parts.append(f"{metric_of(arguments)} {after} (the dense model may not have been finished)")
        else:
            of = f"{at} of {whole} epochs" if whole else f"after {epochs(at)}"
            parts.append(f"{metric_of(arguments)} {after} (the dense model was not finished: {of})")
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


def _dense(report: Mapping[str, Any]) -> Stage:
    """Return the dense network of a report."""
    return Stage(**report["dense"])


def dense_before(report: Mapping[str, Any]) -> str:
    """Return what the dense network was, in a sentence; nothing where nothing was cut."""
    dense, at = _dense(report), epochs(report["dense"]["epochs"] or 0)
    if not report["cuts"] or dense.fitness is None:
        return ""
    if dense.unfinished:
        return f"The dense model {dense.unfinished}."
    if not dense.epochs:
        return "The dense model is the one that this began with."
    return f"The dense model was trained before this run, which gave it {at} more."


def _comparable(report: Mapping[str, Any]) -> set[str]:
    """Return the figures of a stage whose change from dense to final says something."""
    found = {"macs", "params", "bytes", "compressed"}
    if not _dense(report).unfinished:
        found.add("fitness")
    if (speedup := _speedup(report)) and speedup.is_told:
        found.add("latency")
    return found


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
