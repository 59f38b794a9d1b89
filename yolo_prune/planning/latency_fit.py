"""A plan that lands on a latency as it is measured, not only as it is predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from yolo_prune.config.targets import LATENCY
from yolo_prune.errors import TargetError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.importance.objective import copy_of
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest, seconds_of
from yolo_prune.surgery.slicing import cut
from yolo_prune.utils.console import log

MAX_MEASUREMENTS = 5
"""Times at most that what a plan leaves is timed, and its last iteration planned again."""
TOLERANCE = 0.02
"""Share of a latency by which what a plan leaves may miss it: measurements differ by as much."""

Measure = Callable[[nn.Module], float]
"""Times a network and returns its seconds for one image, in terms of the latency model's dense network."""


@dataclass(frozen=True)
class PlannedCut:
    """A plan and the latency of the network that it leaves.

    Attributes:
        plan: The cut.
        predicted: Seconds for one image as predicted, or None without a latency model.
        measured: The same as it was timed, or None if it was not.
    """

    plan: PrunePlan
    predicted: float | None = None
    measured: float | None = None

    @property
    def latency(self) -> float | None:
        """Seconds for one image, as far as they are known."""
        return self.predicted if self.measured is None else self.measured


def fit_latency(
    plan: PrunePlan,
    graph: ChannelGraph,
    network: nn.Module,
    request: PlanRequest,
    replan: Callable[[PlanRequest], PrunePlan],
    measure: Measure,
) -> PlannedCut:
    """Return a plan that lands on the latency as it is measured, or the one that came nearest.

    How wrong a prediction is depends on the widths, so one measurement is not enough. The model is scaled, at first by
    measured over predicted; then by what lies between a scale whose plan was too slow and one whose plan was too fast.

    Args:
        plan: A plan that lands on it by prediction.
        graph: Channel groups of the network that it cuts.
        network: That network; copies of it are cut and timed.
        request: With a latency in its budget, and a latency model.
        replan: Makes another plan of the same network.
        measure: Times a network.
    """
    latency, asked = request.latency, request.budget[LATENCY]
    assert latency is not None
    scale, too_slow, too_fast = 1.0, 0.0, math.inf
    tried: list[PlannedCut] = []
    while True:
        tried.append(_timed(plan, seconds_of(graph, plan, latency), network, measure))
        measured_over_predicted = _over(tried[-1])
        missed = _missed(tried[-1], asked)
        is_bound_otherwise = missed < 0 and measured_over_predicted >= scale
        if abs(missed) <= TOLERANCE or is_bound_otherwise or len(tried) == MAX_MEASUREMENTS:
            break
        too_slow, too_fast = (scale, too_fast) if missed > 0 else (too_slow, scale)
        is_between = too_slow < measured_over_predicted < too_fast
        scale = measured_over_predicted if is_between else math.sqrt(too_slow * too_fast)
        try:
            plan = replan(replace(request, latency=latency.scaled(scale)))
        except TargetError:  # no network is as fast
            break
        if plan == tried[-1].plan:
            break
    return min(tried, key=lambda planned: (_missed(planned, asked) > TOLERANCE, abs(_missed(planned, asked))))


def _timed(plan: PrunePlan, predicted: float, network: nn.Module, measure: Measure) -> PlannedCut:
    """Time what a plan leaves."""
    pruned = copy_of(network)
    cut(plan, [pruned])
    planned = PlannedCut(plan, predicted, measure(pruned))
    if abs(_over(planned) - 1) > TOLERANCE:
        log(f"a planned network takes {_over(planned):.2f} times as long as predicted, and the plan allows for it")
    return planned


def _over(planned: PlannedCut) -> float:
    """Return measured over predicted."""
    assert planned.predicted is not None and planned.measured is not None
    return planned.measured / planned.predicted


def _missed(planned: PlannedCut, asked: float) -> float:
    """Return the share of a latency by which a network misses it; below 0 it is faster."""
    assert planned.measured is not None
    return planned.measured / asked - 1
