"""Finished runs on one page: what came out of each, next to dense runs and official scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune.config.targets import canonical, read_targets
from yolo_prune.deploy.bench import measured, neighbours
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.errors import CheckpointError, ConfigError, UnsupportedError
from yolo_prune.host.checkpoint import load_network, training_of
from yolo_prune.report import compare_page
from yolo_prune.report.page import read_report
from yolo_prune.report.records import Stage
from yolo_prune.report.runs import Comparison, FinishedRun
from yolo_prune.utils.console import progress_bar, silence, verbosity
from yolo_prune.utils.run_folder import RunFolder

FOLDER = "compare"


def compare(runs: Sequence[str | Path], *, out: str | Path | None = None, verbose: bool = True) -> Comparison:
    """Put finished runs on one page, and write it.

    Args:
        runs: Folders of runs, with pruning or without. The data set and image size of the first one decide; others are
            left out, and it is said why.
        out: Folder for ``compare.json``, its page and its picture (default: ``compare`` beside the first run).
        verbose: Whether to show a bar where work takes long.

    Raises:
        ConfigError: If none of the folders has a finished run.
    """
    found: Comparison | None = None
    left_out: dict[str, str] = {}
    with verbosity(verbose), silence(), progress_bar("reading runs", len(runs)) as step:
        for folder in map(Path, runs):
            try:
                run, asked = read_run(folder)
                found = found or Comparison(str(asked["data"]), str(asked["task"]), _size(asked["imgsz"]))
                if why := _other(found, asked):
                    left_out[str(folder)] = why
                else:
                    found.runs.append(replace(run, name=_unique(run.name, folder, found)))
            except (ConfigError, CheckpointError, UnsupportedError) as e:
                left_out[str(folder)] = str(e)
            step()
        if found is None:
            reasons = "; ".join(f"{folder}: {why}" for folder, why in left_out.items())
            raise ConfigError(f"no finished run to compare; give folders such as runs/detect/train*. {reasons}".strip())
        found.runs.sort(key=lambda run: -(run.final.macs or 0))
        found.scales, found.left_out = _scales(found), left_out
    target = Path(out) if out is not None else Path(runs[0]).resolve().parent / FOLDER
    found.folder = target
    found.save(target)
    compare_page.write(found, target)
    return found


def read_run(folder: Path) -> tuple[FinishedRun, dict[str, Any]]:
    """Return what came out of a run, and its arguments with ``task``, ``data`` and ``imgsz``.

    Raises:
        ConfigError: If there is no run, or it is not finished.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder.")
    if (RunFolder(folder).path / "report.json").is_file():
        return _pruned(folder)
    return _unpruned(folder)


def _pruned(folder: Path) -> tuple[FinishedRun, dict[str, Any]]:
    """Read a run from its report."""
    report, asked = read_report(folder)
    if report["final"] is None:
        raise ConfigError("the run is not finished.")
    asked = {"task": None, "data": None, **asked, "imgsz": report["imgsz"]}
    dense = _stage(report["dense"]) if report["cuts"] else None
    target = _short(canonical(read_targets(report["config"].get("target", 0)))) if report["cuts"] else None
    is_trained = bool(report["epochs"])
    run = _run(folder, asked, target, dense, _stage(report["final"]), report["timed"])
    return (run if is_trained else replace(run, epochs=None)), asked


def _unpruned(folder: Path) -> tuple[FinishedRun, dict[str, Any]]:
    """Read a run of Ultralytics from its best checkpoint, which tells how it was trained."""
    best = folder / "weights" / "best.pt"
    if not best.is_file():
        raise ConfigError("there is neither pruning/report.json nor weights/best.pt.")
    training = training_of(best)
    if training.finished is False:
        raise ConfigError("the run is not finished.")
    asked = {"task": None, "data": None, "imgsz": 640, **training.arguments}
    size = measured(load_network(best), max(_size(asked["imgsz"])))
    final = replace(size, bytes=best.stat().st_size, fitness=training.fitness, checkpoint=str(best))
    return _run(folder, asked, None, None, final, None), asked


def _run(
    folder: Path,
    asked: Mapping[str, Any],
    target: str | None,
    dense: Stage | None,
    final: Stage,
    timed: dict[str, Any] | None,
) -> FinishedRun:
    name, start = folder.resolve().name, str(asked.get("model") or "")
    return FinishedRun(name, target, asked.get("epochs"), start, asked.get("seed"), dense, final, timed)


def _stage(data: Mapping[str, Any]) -> Stage:
    """Return a stage of a report; a speed-up of an earlier version does not say whether it can be told."""
    found = data["speedup"]
    return Stage(**{**data, "speedup": Speedup(**found) if isinstance(found, Mapping) else None})


def _short(target: float | str) -> str:
    """Return a target as text, a number without the digits of its last bits."""
    return f"{target:.12g}" if isinstance(target, float) else target


def _size(imgsz: Any) -> list[int]:
    """Return height and width in pixels."""
    return [int(imgsz)] * 2 if isinstance(imgsz, (int, float)) else [int(side) for side in imgsz]


def _other(found: Comparison, asked: Mapping[str, Any]) -> str:
    """Return in what a run differs from the others so that their accuracies cannot be compared, or nothing."""
    if (task := str(asked["task"])) != found.task:
        return f"task {task}, the first run's is {found.task}"
    if (data := str(asked["data"])) != found.data and Path(data).resolve() != Path(found.data).resolve():
        return f"data {data}, the first run's is {found.data}"
    if (size := _size(asked["imgsz"])) != found.imgsz:
        return f"{max(size)} pixels, the first run has {max(found.imgsz)}"
    return ""


def _unique(name: str, folder: Path, found: Comparison) -> str:
    """Return a run's name, with its parent folder's where another one has the same."""
    names = {run.name for run in found.runs}
    return f"{folder.resolve().parent.name}/{name}" if name in names else name


def _scales(found: Comparison) -> dict[str, Stage]:
    """Return the official scales next to the runs in size, of each family of which a checkpoint is there."""
    families: dict[str, nn.Module] = {}
    for run in found.runs:
        path = (run.dense or run.final).checkpoint
        if path and Path(path).is_file():
            network = load_network(path)
            families.setdefault(str(network.yaml.get("yaml_file")), network)
    macs = [run.final.macs for run in found.runs if run.final.macs]
    near: dict[str, Stage] = {}
    for network in families.values() if macs else ():
        others = neighbours([network], macs, (found.imgsz[0], found.imgsz[1]))
        near |= {name: size for name, (_, size) in others.items()}
    return dict(sorted(near.items(), key=lambda entry: -(entry[1].macs or 0)))
