"""Latency tables of a network, measured in the runtime and on the machine that they are for.

Layers are timed alone at a few widths (as in Yang et al. 2018, "NetAdapt", section 3.3) and kept in a file per machine,
runtime and version, so that layers which two networks share are timed once. A few networks of random widths, exported
and timed as a whole, tell what the layers' times and what lies between them come to.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from yolo_prune.config.targets import LATENCY, MACS
from yolo_prune.cost.latency_table import SIMD, LatencyTable, Surface, least_squares
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.runtimes import (
    FORMATS,
    all_threads,
    check_runtime,
    described,
    fast_multiple,
    file_runner,
    is_on_gpu,
    module_runner,
)
from yolo_prune.device.stopwatch import Runner, Timing, alternating, settle, typical
from yolo_prune.errors import WriteError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.image import height_and_width, image_channels
from yolo_prune.graph.layers import named_layers, resized, widths
from yolo_prune.importance.objective import copy_of
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import ByScore, PlanRequest, make_plan
from yolo_prune.surgery.slicing import cut
from yolo_prune.utils.console import PREFIX, progress_bar, silence
from yolo_prune.utils.files import atomic_write

MARKS = 5
"""Widths of each side at which a layer is timed."""
ROUNDS = 8
"""Times that a layer runs; the shortest counts."""
NETWORK_ROUNDS = (40, 400)
"""Times that a whole network runs, in turns with others, at least and at most."""
NETWORK_SECONDS = 4.0
"""How long networks run, so that a disturbance of a second does not decide."""
SHARES = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Multiply-adds that the networks keep which are timed as a whole, beside the dense one."""
WEIGHTS = ("dense", "per_layer", "per_value", "per_mac", "fixed")
"""Numbers that are cached per measured network (see `latency_table.LatencyTable`)."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo_prune"


def measure(
    network: nn.Module, graph: ChannelGraph, runtime: str, threads: int | None = None, cache: Path = CACHE
) -> LatencyTable:
    """Return the latency table of a network; what is in the cache is not timed again.

    Args:
        network: On any device; copies of it run.
        graph: Its channel groups, with the image size.
        runtime: One of `config.RUNTIMES`.
        threads: For a CPU (default: all).
        cache: Folder of what has been measured.

    Raises:
        UnsupportedError: If the runtime is not there.
    """
    check_runtime(runtime)
    threads = threads or all_threads()
    where = described(runtime, threads)
    known = _Known(cache / f"latency-{_digest(where)}.json", where)
    image = torch.zeros(1, image_channels(network), *graph.imgsz)
    timed, layers = list(_timed_layers(network, graph, image)), {}
    with progress_bar("timing layers", len(timed)) as step:
        for path, layer, act, size in timed:
            layers[path] = _surface(graph, path, layer, act, size, runtime, threads, known)
            step()
    known.save()
    positions = {path: graph.layers[path].positions for path in layers}
    table = LatencyTable(
        layers, positions, dense=0.0, multiple=fast_multiple(runtime), where={**where, "imgsz": list(graph.imgsz)}
    )
    weights = known.networks.get(key := _digest([sorted(map(str, graph.layers.values())), graph.imgsz, SHARES]))
    if weights is None or weights.keys() != set(WEIGHTS):
        weights = known.networks[key] = _weigh(network, graph, table, runtime, threads)
        known.save()
    numbers: dict[str, Any] = dict(weights)
    return replace(table, **numbers)


def export(network: nn.Module, runtime: str, imgsz: tuple[int, int], folder: Path) -> Path:
    """Export a network as Ultralytics does for a runtime, and return the file or folder.

    Args:
        network: A copy of it is written, in half precision as a checkpoint.
        runtime: One of `config.RUNTIMES`.
        imgsz: Height and width in pixels.
        folder: Where to.
    """
    checkpoint = folder / "network.pt"
    torch.save({"model": copy_of(network).cpu().half(), "train_args": {}}, checkpoint)
    if runtime not in FORMATS:
        return checkpoint
    with silence():
        return Path(YOLO(checkpoint).export(format=FORMATS[runtime], imgsz=list(imgsz), verbose=False))


def time_networks(
    networks: Sequence[nn.Module], runtime: str, imgsz: int | tuple[int, int], threads: int | None = None
) -> list[float]:
    """Return the seconds for one image of each network, exported to a runtime and run in turns (see `typical`)."""
    with tempfile.TemporaryDirectory() as folder:
        runners, rounds = _exported(networks, runtime, imgsz, Path(folder), threads or all_threads())
        return [float(s) for s in typical(alternating(runners, rounds, progress=progress_bar))]


def compare_networks(
    networks: Sequence[nn.Module], runtime: str, imgsz: int | tuple[int, int], threads: int | None = None
) -> Timing:
    """Do the same until the speed-ups over the first network have settled (see `settle`)."""
    threads = threads or all_threads()
    with tempfile.TemporaryDirectory() as folder:
        runners, rounds = _exported(networks, runtime, imgsz, Path(folder), threads)
        return settle(runners, rounds, None if is_on_gpu(runtime) else threads, progress_bar)


def random_plan(graph: ChannelGraph, table: LatencyTable, share: float, seed: int) -> PrunePlan:
    """Return a plan that keeps a share of the multiply-adds, spread over the layers of a timed network at random."""
    draw = np.random.default_rng(seed)
    scores = [draw.random(group.width) * draw.uniform(0.3, 3) for group in graph.groups]
    budget = {MACS: CostModel(graph).macs() * share, LATENCY: np.inf}  # in widths that latency targets choose
    request = PlanRequest(budget, allocation="global", per_cost=False, latency=table)
    return make_plan(graph, ByScore(graph, scores), request)


class _Known:
    """Cache of measurements on this machine: times of layers, and weights of networks."""

    def __init__(self, path: Path, where: Mapping[str, Any]) -> None:
        self._path, self._where = path, where
        self.layers: dict[str, dict[str, float]] = {}
        self.networks: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            data = json.loads(path.read_text(encoding="utf-8"))
            self.layers, self.networks = _tables(data["layers"]), _tables(data["networks"])

    def save(self) -> None:
        """Write the file; where that is impossible, what it holds is measured again next time."""
        data = {"where": self._where, "layers": self.layers, "networks": self.networks}
        try:
            with atomic_write(self._path) as draft:
                draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        except WriteError as e:
            LOGGER.warning(f"{PREFIX}what has been measured is not kept: {e}")


def _tables(data: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return times or weights by name by name; raise an error of Python's if a file holds something else."""
    return {name: {key: float(value) for key, value in of.items()} for name, of in data.items()}


def _timed_layers(
    network: nn.Module, graph: ChannelGraph, image: torch.Tensor
) -> Iterator[tuple[str, nn.Module, nn.Module, tuple[int, ...]]]:
    """Yield what a deployed network computes with weights: path, layer, activation after it, and shape of its input."""
    copy = copy_of(network).cpu().float().eval()
    sizes: dict[str, tuple[int, ...]] = {}
    layers = {path: layer for path, layer in named_layers(copy) if graph.layers[path].positions}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, path=path: sizes.setdefault(path, tuple(x[0].shape)) and None)
        for path, layer in layers.items()
    ]
    with torch.inference_mode():
        copy(image)
    for hook in hooks:
        hook.remove()
    for path, layer in layers.items():
        if path in sizes and graph.layers[path].deployed:
            act = getattr(copy.get_submodule(path.rpartition(".")[0]), "act", None)
            yield path, layer, act if isinstance(act, nn.Module) else nn.Identity(), sizes[path]


def _surface(
    graph: ChannelGraph,
    path: str,
    layer: nn.Module,
    act: nn.Module,
    size: tuple[int, ...],
    runtime: str,
    threads: int,
    known: _Known,
) -> Surface:
    """Return a layer's times, of which those that are new are measured."""
    dense = graph.layers[path]
    is_grouped = dense.groups > 1
    outs = _marks(dense.out, math.lcm(SIMD, dense.groups if dense.groups < dense.out else 1))
    ins = _marks(dense.inp, SIMD)
    if is_grouped:
        ins = (dense.inp,)  # follows the outputs
    settings = {k: v for k, v in vars(layer).items() if k in ("kernel_size", "stride", "padding", "dilation")}
    times = known.layers.setdefault(
        f"{type(layer).__name__} {settings} {type(act).__name__} {size[2:] or size[1:2]}", {}
    )
    rows = []
    for out in outs:
        row = []
        for inp in ins:
            sides = {"out": out, "in": out * dense.inp // dense.out if is_grouped else inp}
            key = f"{sides['out']}<{sides['in']}{f'/{layer.groups}' if is_grouped else ''}"
            if key not in times:
                alone = nn.Sequential(resized(layer, sides), act).eval()
                shape = (1, sides["in"], *size[2:]) if len(size) == 4 else (*size[:-1], sides["in"])
                run = module_runner(runtime, alone, shape, threads)
                times[key] = float(alternating([run], rounds=ROUNDS).min())
            row.append(times[key])
        rows.append(tuple(row))
    return Surface(outs, ins, tuple(rows))


def _marks(width: int, step: int) -> tuple[int, ...]:
    """Return the widths at which a side is timed: multiples of a step, evenly up to the dense width."""
    if width < step:
        return (width,)
    even = np.linspace(step, -(-width // step) * step, MARKS)
    return tuple(sorted({int(-(-w // step) * step) for w in even}))


def _weigh(
    network: nn.Module, graph: ChannelGraph, table: LatencyTable, runtime: str, threads: int
) -> dict[str, float]:
    """Return the time of a network, and the weights of its layers' times, values, multiply-adds, and of itself.

    The latter are least squares over networks of random widths. A layer alone also pays for being called and fed, which
    does not get less with its widths and which a network pays once: what is fixed may be less than nothing.
    """
    plans = [random_plan(graph, table, share, seed) for seed, share in enumerate(SHARES)]
    networks = [copy_of(network).cpu().float() for _ in plans]
    for plan, pruned in zip(plans, networks, strict=True):
        cut(plan, [pruned])
    features = [[*_features(table, n), plan.macs["after"], 1.0] for n, plan in zip(networks, plans, strict=True)]
    dense, *seconds = time_networks([network, *networks], runtime, graph.imgsz, threads)
    weights = least_squares(np.array(features) / np.array(seconds)[:, None], np.ones(len(plans)))
    return dict(zip(WEIGHTS, (dense, *weights), strict=True))


def _features(table: LatencyTable, network: nn.Module) -> tuple[float, float]:
    sides = {path: widths(layer) for path, layer in named_layers(network) if path in table.layers}
    out, inp = ({path: of[side] for path, of in sides.items()} for side in ("out", "in"))
    return table.features(out, inp)


def _exported(
    networks: Sequence[nn.Module], runtime: str, imgsz: int | tuple[int, int], folder: Path, threads: int
) -> tuple[list[Runner], int]:
    """Export networks into a folder, and return their runners and the rounds that fill `NETWORK_SECONDS`."""
    size, runners = height_and_width(imgsz), []
    with progress_bar("exporting networks", len(networks)) as step:
        for i, network in enumerate(networks):
            runners.append(exported_runner(network, runtime, size, folder / str(i), threads))
            step()
    return runners, rounds_for(runners)


def rounds_for(runners: Sequence[Runner]) -> int:
    """Return the rounds in which runners fill `NETWORK_SECONDS`."""
    per_round = alternating(runners, rounds=2).sum()  # each runs twice in its turn, and one time counts
    return int(np.clip(NETWORK_SECONDS / per_round, *NETWORK_ROUNDS))


def exported_runner(network: nn.Module, runtime: str, imgsz: tuple[int, int], folder: Path, threads: int) -> Runner:
    """Export a network into a new folder and return what runs it."""
    folder.mkdir()
    return file_runner(export(network, runtime, imgsz, folder), (1, image_channels(network), *imgsz), threads)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
