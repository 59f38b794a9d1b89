"""What kits have measured on devices: a latency model, or files side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from yolo_prune.cost.latency import FEATURES, STAIRS, LatencyModel, Workload, digest_of
from yolo_prune.deploy.samples import EVERY, fitted
from yolo_prune.device.kit import COMPARISON, SAMPLES
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.errors import ConfigError, describe_error
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.report import page
from yolo_prune.utils.files import write_json
from yolo_prune.utils.run_folder import RunFolder
from yolo_prune.utils.text import milliseconds

FEWEST = 2 * EVERY
"""Networks of random widths that a latency model needs."""
FINISHED = "finished"
"""What a latency file calls networks that were pruned by it, and timed."""


@dataclass(frozen=True)
class Comparison:
    """Files that a kit has timed side by side.

    Attributes:
        where: Runtime, version, device and threads, as in a measurement on this machine.
        imgsz: Height and width in pixels.
        precision: Of the files: ``32``, ``16`` or ``8``.
        models: What the kit calls the models; the first is compared with.
        names: Of their files in the kit.
        seconds: Of each of them for one image: lower quartile, median, upper quartile.
        speedups: Over the first, of each of them.
    """

    where: Mapping[str, Any]
    imgsz: tuple[int, int]
    precision: str
    models: tuple[str, ...]
    names: tuple[str, ...]
    seconds: tuple[tuple[float, float, float], ...]
    speedups: tuple[Speedup, ...]


def read_latency(path: str | Path, graph: ChannelGraph, runtime: str | None = None) -> LatencyModel:
    """Return the latency model of a network, fitted to what a kit has measured.

    Args:
        path: What the kit wrote.
        graph: Channel groups of the dense network, with the image size.
        runtime: That has to be measured in, or None for any.

    Raises:
        ConfigError: If the file is missing, damaged or unfinished, or of another network, image size or runtime.
    """
    data = _read(path, SAMPLES, "prune_latency")
    with _damage(path):
        imgsz, measured, network = [*map(int, data["imgsz"])], str(data["runtime"]), str(data["network"])
        model, ratios, complete = str(data["model"]), dict(data["ratios"]), bool(data["complete"])
    anew = f"make a kit for it: yolo-prune kit model=… imgsz={max(graph.imgsz)} runtime={runtime or measured}"
    if imgsz != [*graph.imgsz]:
        raise ConfigError(f"{path} was measured at {imgsz} px, and this is {[*graph.imgsz]} px; {anew}.")
    if runtime is not None and runtime != measured:
        raise ConfigError(
            f"{path} was measured in {measured}, and runtime={runtime} is asked for; leave it out, or {anew}."
        )
    if network != digest_of(graph):
        raise ConfigError(f"{path} was measured of another network ({model}), or of other classes; {anew}.")
    if not complete or len(ratios) < FEWEST:
        raise ConfigError(
            f"{path} is not finished: {len(ratios)} networks are timed; start the kit again on the device."
        )
    with _damage(path):
        dense = median(float(turn["first"]) for turn in data["turns"])
        timed = [network for network in data["networks"] if network["name"] in ratios]
        widths = [np.array(network["widths"], dtype=float) for network in timed]
        if any(of.shape != (2, len(graph.layers)) or not ((of >= 0) & (of < 1e6)).all() for of in widths):
            raise ValueError("widths are not those of the layers")
        seconds = [dense * float(ratios[network["name"]]) for network in timed]
        if not all(0 < s < np.inf for s in (dense, *seconds)):
            raise ValueError("not a time above 0 for each network")
        latency = fitted(graph, dense, widths, seconds)
        latency = latency.corrected([*_finished(data, latency)])
        latency.check()
        return replace(latency, where={**data["where"], "imgsz": imgsz})


def note_in_latency(path: str | Path, comparison: Comparison, graphs: Sequence[ChannelGraph]) -> dict[str, float]:
    """Write the times of finished networks into a latency file, by which predictions from it are corrected.

    Args:
        path: What a kit wrote of the dense network on the same device.
        comparison: Of the dense network with those that were pruned by that file.
        graphs: Of each of them; the first is the dense one's.

    Returns:
        For each pruned network, how many times as long as predicted it takes.

    Raises:
        ConfigError: If the two are of different devices or networks, or times have not settled.
    """
    latency, data = read_latency(path, graphs[0]), _read(path, SAMPLES, "latency")
    here, there = ({**of, "version": "", "imgsz": []} for of in (latency.where, comparison.where))
    if here != there or str(data.get("precision")) != comparison.precision:
        raise ConfigError(
            f"{path} was measured in {_conditions(here, data.get('precision'))}, and what results= names in "
            f"{_conditions(there, comparison.precision)}; run both kits on one device, with as many threads."
        )
    speedups = dict(zip(comparison.names[1:], comparison.speedups[1:], strict=True))
    if restless := next((name for name, speedup in speedups.items() if not speedup.settled), None):
        raise ConfigError(f"the speed-up of {restless} has not settled; run its kit again while the device is idle.")
    finished = {str(network["name"]): network for network in data.get(FINISHED, ())}
    for name, graph, seconds in [*zip(comparison.names, graphs, comparison.seconds, strict=True)][1:]:
        work = Workload(graph)
        outputs, inputs = work.dense
        tables = {stairs: work.features(outputs, inputs, stairs).tolist() for stairs in STAIRS}
        computes = {str(stairs): dict(zip(FEATURES, table, strict=True)) for stairs, table in tables.items()}
        finished[name] = {"name": name, "ratio": seconds[0] / comparison.seconds[0][0], "computes": computes}
    data[FINISHED] = [*finished.values()]
    over = [measured / predicted for predicted, measured in _finished(data, latency)]
    write_json(Path(path), data)
    return {name: times for name, times in zip(finished, over, strict=True) if name in comparison.names}


def describe(latency: LatencyModel) -> str:
    """Return what has been measured, and how wrong predictions are, as text."""
    where = latency.where
    told = f"{milliseconds(latency.dense)} in {where['runtime']} on {where['device']}, {where['threads']} threads"
    if not latency.errors:
        return told
    errors = f"{median(latency.errors):.1%}, at most {max(latency.errors):.1%}"
    told += f"; predictions were off by {errors}, of {len(latency.errors)} networks that were not fitted"
    return told + f", and are corrected by {len(latency.corrections)} finished ones" * bool(latency.corrections)


def read_comparison(path: str | Path) -> Comparison:
    """Return what a kit of finished files has measured.

    Raises:
        ConfigError: If the file is missing, damaged or of another kind.
    """
    data = _read(path, COMPARISON, "results")
    with _damage(path):
        height, width = map(int, data["imgsz"])
        speedups = tuple(Speedup(**of) for of in data["speedups"])
        models, names = (tuple(map(str, data[of])) for of in ("models", "networks"))
        seconds = tuple((float(low), float(mid), float(high)) for low, mid, high in data["seconds"])
        if not len(models) == len(names) == len(seconds) == len(speedups) or not all(
            0 < s < np.inf for of in seconds for s in of
        ):
            raise ValueError("not one time for each network")
        return Comparison(
            dict(data["where"]), (height, width), str(data["precision"]), models, names, seconds, speedups
        )


def note_in_report(run: Path, comparison: Comparison, final: int) -> None:
    """Write the times of a device into a run's report and page; the first of a comparison is the run's dense network.

    Args:
        run: The run's folder.
        comparison: Of the dense network with others.
        final: Which of them the run's result is.
    """
    path = RunFolder(run).path / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    for stage, i in (("dense", 0), ("final", final)):
        report[stage]["latency"] = comparison.seconds[i][0]
    report["final"]["speedup"], report["timed"] = asdict(comparison.speedups[final]), dict(comparison.where)
    report["scales"] = {}
    write_json(path, report)
    page.write(run, plots=False)


def _finished(data: Mapping[str, Any], latency: LatencyModel) -> Iterator[tuple[float, float]]:
    """Yield the predicted and the measured seconds of each finished network that a latency file has."""
    plain = latency.corrected([])
    for network in data.get(FINISHED, ()):
        computes = network["computes"][str(latency.stairs)]
        features = np.array([float(computes[name]) for name in FEATURES])
        yield plain.seconds_of(features), latency.dense * float(network["ratio"])


def _conditions(where: Mapping[str, Any], precision: Any) -> str:
    return f"{where['runtime']}:{precision} on {where['device']}, {where['threads']} threads"


@contextmanager
def _damage(path: str | Path) -> Iterator[None]:
    """Turn what a damaged file makes Python raise into a ConfigError that names it."""
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as e:
        raise ConfigError(f"{path} is damaged ({describe_error(e)}); fetch it from the device again.") from e


def _read(path: str | Path, kind: str, option: str) -> dict[str, Any]:
    """Return the content of a result of a kit, of a kind."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        found = data["kind"]
    except FileNotFoundError:
        raise ConfigError(f"{option}={path}: there is no such file; a kit writes it (yolo-prune kit).") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConfigError(f"{option}={path} is not what a kit wrote ({describe_error(e)}); run the kit again.") from e
    if found != kind:
        raise ConfigError(f"{option}={path} is a {found!r:.40} of a kit, not a {kind}.json.")
    return dict(data)
