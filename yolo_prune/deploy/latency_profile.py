"""The latency model of a network, measured in a runtime on this machine.

A few networks of random widths are exported as Ultralytics does and timed as a whole, in turns with the dense one: what
lies between layers, and what a runtime fuses, counts as it does in the end. What was measured is kept in a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from ultralytics.utils import LOGGER

from yolo_prune.cost.latency import LatencyModel, digest_of
from yolo_prune.deploy.kit_results import describe, read_latency
from yolo_prune.deploy.network_files import export, read_form
from yolo_prune.deploy.runtimes import check_runtime, described, file_runner, is_on_gpu
from yolo_prune.deploy.samples import cut_networks, fitted, sample_plans, widths_of
from yolo_prune.device.stopwatch import Runner, Timing, alternating, settle, typical
from yolo_prune.device.system import all_threads
from yolo_prune.errors import PlanError, WriteError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.image import height_and_width, image_channels
from yolo_prune.utils.console import PREFIX, log, progress_bar

USUAL = "onnx"
"""Runtime where none is named."""
SAMPLES = 16
"""Networks of random widths that are timed."""
ROUNDS, SECONDS = (5, 40), 40.0
"""Times that each of them runs, in turns with the others, at least and at most, and how long all of them run."""
NETWORK_ROUNDS = (40, 400)
"""Times that networks run which are compared with each other, at least and at most."""
NETWORK_SECONDS = 4.0
"""How long these run, so that a disturbance of a second does not decide."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo_prune"


def latency_of(network: nn.Module, graph: ChannelGraph, runtime: str | None, kit: str | None) -> LatencyModel:
    """Return the latency model of a network, of a device that a kit has measured, or of this machine.

    Args:
        network: On any device; copies of it run.
        graph: Its channel groups, with the image size.
        runtime: As in `measure`; None for the usual one, or that of the kit.
        kit: What a kit has written (see `kit_results.read_latency`), or None to measure here.
    """
    if kit is None:
        return measure(network, graph, runtime or USUAL)
    latency = read_latency(kit, graph, runtime)
    log(f"{kit}: the network takes {describe(latency)}")
    return latency


def measure(
    network: nn.Module, graph: ChannelGraph, runtime: str, threads: int | None = None, cache: Path = CACHE
) -> LatencyModel:
    """Return the latency model of a network; what is in the cache is not timed again.

    Args:
        network: On any device; copies of it run.
        graph: Its channel groups, with the image size.
        runtime: One of `config.RUNTIMES`, with a precision where it is not the usual one (`network_files.read_form`).
        threads: For a CPU (default: all).
        cache: Folder of what has been measured.

    Raises:
        UnsupportedError: If the runtime is not there.
    """
    check_runtime(runtime)
    threads = threads or all_threads()
    where = {**described(runtime, threads), "imgsz": list(graph.imgsz)}
    known = cache / f"latency-{_digest([where, digest_of(graph), SAMPLES])}.json"
    if known.exists():
        with suppress(PlanError):
            return LatencyModel.load(known)
    plans = sample_plans(graph, SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        networks = [network, *cut_networks(network, plans)]
        runners = _exported(networks, runtime, graph.imgsz, Path(folder), threads)
        once = float(alternating(runners, rounds=1)[:, 0].sum())
        rounds = int(np.clip(SECONDS / (2 * once), *ROUNDS))
        dense, *seconds = typical(alternating(runners, rounds, progress=progress_bar))
    model = fitted(graph, float(dense), [widths_of(graph, plan) for plan in plans], [float(s) for s in seconds])
    model = replace(model, where=where)
    try:
        model.save(known)
    except WriteError as e:
        LOGGER.warning(f"{PREFIX}what has been measured is not kept: {e}")
    return model


def compare_networks(
    networks: Sequence[nn.Module], runtime: str, imgsz: int | tuple[int, int], threads: int | None = None
) -> Timing:
    """Export networks to a runtime, and time them in turns until the speed-ups over the first have settled."""
    threads = threads or all_threads()
    with tempfile.TemporaryDirectory() as folder:
        runners = _exported(networks, runtime, height_and_width(imgsz), Path(folder), threads)
        return settle(runners, rounds_for(runners), None if is_on_gpu(runtime) else threads, progress_bar)


def _exported(
    networks: Sequence[nn.Module], runtime: str, imgsz: tuple[int, int], folder: Path, threads: int
) -> list[Runner]:
    """Export networks into a folder, and return what runs them."""
    runners = []
    with progress_bar("exporting networks", len(networks)) as step:
        for i, network in enumerate(networks):
            runners.append(exported_runner(network, runtime, imgsz, folder / str(i), threads))
            step()
    return runners


def rounds_for(runners: Sequence[Runner]) -> int:
    """Return the rounds in which runners fill `NETWORK_SECONDS`."""
    per_round = alternating(runners, rounds=2).sum()  # each runs twice in its turn, and one time counts
    return int(np.clip(NETWORK_SECONDS / per_round, *NETWORK_ROUNDS))


def exported_runner(network: nn.Module, runtime: str, imgsz: tuple[int, int], folder: Path, threads: int) -> Runner:
    """Export a network into a new folder and return what runs it."""
    folder.mkdir()
    half = read_form(runtime)[1] == "16"
    return file_runner(export(network, runtime, imgsz, folder), (1, image_channels(network), *imgsz), threads, half)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
