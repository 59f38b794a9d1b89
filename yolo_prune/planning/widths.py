"""Widths that a plan may choose: what may stay of each layer, and what hardware likes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from yolo_prune.config.targets import LATENCY
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.graph.groups import Bundle, ChannelGraph

if TYPE_CHECKING:
    from yolo_prune.planning.allocation import PlanRequest

HARDWARE = 8
"""Multiple of the widths by default: what CPUs and GPUs compute at once, and still fine enough to choose from."""


def width_options(graph: ChannelGraph, request: PlanRequest) -> list[np.ndarray]:
    """Return per bundle the numbers of steps that may be kept, ascending; a locked bundle has one."""
    timed = request.latency if LATENCY in request.budget else None
    dense_units = [request.dense_units.get(name, units) / units for name, units in graph.units().items()]
    options = []
    for bundle in graph.bundles:
        dense = dense_units[bundle.groups[0]]
        makers = [path for g in bundle.groups for path, side in graph.groups[g].members if side == "out"]
        limit = min(map(request.limits, makers), default=0.0)
        fewest = max(1, int(np.ceil(bundle.steps * dense * (1 - limit) - 1e-9)))
        steps = np.arange(1, bundle.steps + 1)
        widths = steps * bundle.units_per_step
        if request.round_to:
            is_fast = widths * _channels(graph, bundle) % request.round_to == 0
        else:
            is_fast = _fast(widths, round(widths[-1] * dense), timed)
        allowed = steps[(steps >= fewest) & is_fast]
        everything = np.array([bundle.steps])
        options.append(everything if bundle.locked else np.union1d(allowed, everything))
    return options


def _channels(graph: ChannelGraph, bundle: Bundle) -> int:
    """Return the neighbouring channels of a unit in the layer that is rounded: several where it is grouped."""
    rounded = graph.groups[bundle.groups[bundle.per_step.index(bundle.units_per_step)]]
    made = rounded.members.get((rounded.name, "out"))
    if made is None or (np.ptp(made, axis=1) >= made.shape[1]).any():  # as a query and its key
        return 1
    return made.shape[1]


def _fast(widths: np.ndarray, dense: int, timed: LatencyModel | None) -> np.ndarray:
    """Tell which widths of a layer hardware likes: multiples of `HARDWARE`, or of less if these are fewer than four.

    For a latency they are multiples of what is fast in its runtime, and whole fractions of that: those in between save
    less than is predicted.
    """
    fast: np.ndarray
    if timed is None:
        fast = widths % max(1, min(HARDWARE, 2 ** (max(dense, 1).bit_length() - 3))) == 0
    else:
        fast = (widths % timed.multiple == 0) | (timed.multiple % widths == 0)
    return fast
