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

from torch import nn
from ultralytics.utils import LOGGER

from yolo_prune.cost.latency import FEATURES, LatencyModel, digest_of
from yolo_prune.deploy.kit_results import describe, read_latency
from yolo_prune.deploy.network_files import export, read_form
from yolo_prune.deploy.runtimes import check_runtime, described, file_runner, is_on_gpu
from yolo_prune.deploy.samples import cut_networks, fitted, sample_plans, widths_of
from yolo_prune.device.command import is_command
from yolo_prune.device.stopwatch import Timing
from yolo_prune.device.system import all_threads
from yolo_prune.device.timers import CommandTimer, Effort, RunnerTimer, Timer
from yolo_prune.errors import PlanError, WriteError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.image import height_and_width, image_channels
from yolo_prune.utils.console import PREFIX, log, progress_bar

USUAL = "onnx"
"""Runtime where none is named."""
SAMPLES = 16
"""Networks of random widths that are timed."""
SAMPLING = Effort(seconds=40.0, fewest=5, most=40)
"""How long they run."""
COMPARING = Effort(seconds=4.0, fewest=40, most=400)
"""How long networks run that are compared with each other, so that a disturbance of a second does not decide."""
COMMAND_FORM = "onnx"
"""Files that a command gets; a kit can be made of others."""
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
        runtime: One of `config.RUNTIMES`, with a precision where it is not the usual one (`network_files.read_form`),
            or a command (see `device.command`).
        threads: For a CPU (default: all).
        cache: Folder of what has been measured.

    Raises:
        UnsupportedError: If the runtime is not there.
    """
    check_runtime(runtime)
    threads = threads or all_threads()
    where = {**described(runtime, threads), "imgsz": list(graph.imgsz)}
    known = cache / f"latency-{_digest([where, digest_of(graph), SAMPLES, FEATURES])}.json"
    if known.exists() and not is_command(runtime):  # what a command runs on may be another device by now
        with suppress(PlanError):
            return LatencyModel.load(known)
    plans = sample_plans(graph, SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        files = exported_files([network, *cut_networks(network, plans)], runtime, graph.imgsz, Path(folder))
        timer = timer_of(runtime, (1, image_channels(network), *graph.imgsz), threads)
        dense, *seconds = timer.seconds(files, SAMPLING, progress_bar)[0]
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
    size, channels = height_and_width(imgsz), image_channels(networks[0])
    with tempfile.TemporaryDirectory() as folder:
        files = exported_files(networks, runtime, size, Path(folder))
        timer = timer_of(runtime, (1, channels, *size), threads or all_threads())
        return timer.compare(files, COMPARING, progress_bar)


def exported_files(networks: Sequence[nn.Module], runtime: str, imgsz: tuple[int, int], folder: Path) -> list[Path]:
    """Export networks into new folders of a folder, and return the files."""
    files, form = [], COMMAND_FORM if is_command(runtime) else runtime
    with progress_bar("exporting networks", len(networks)) as step:
        for network in networks:
            files.append(export(network, form, imgsz, Path(tempfile.mkdtemp(dir=folder))))
            step()
    return files


def timer_of(runtime: str, shape: tuple[int, ...], threads: int) -> Timer:
    """Return what times the files of a runtime, for images of shape (1, C, H, W)."""
    if is_command(runtime):
        return CommandTimer(runtime)
    half = read_form(runtime)[1] == "16"
    busy = None if is_on_gpu(runtime) else threads
    return RunnerTimer(lambda file: file_runner(file, shape, threads, half), busy)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
