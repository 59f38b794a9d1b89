"""From a network and a configuration to a plan: what is ranked, in how many iterations, and for which cost.

The criterion ``reconstruction`` looks at the network as it is, so that a large cut is planned in iterations, each of
which looks at what the one before would leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce

import numpy as np
from torch import nn

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import LATENCY, MACS
from yolo_prune.cost.budget import Goal
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import TargetError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import Budget, PlanRequest, check_reachable, make_plan, seconds_of
from yolo_prune.planning.calibration import HELD_OUT, CalibrationData, ranking_factory
from yolo_prune.planning.depth import removable_blocks
from yolo_prune.planning.latency_fit import Measure, PlannedCut, fit_latency
from yolo_prune.planning.ranking import ByScore
from yolo_prune.planning.sensitivity import HeldOutLoss, scan
from yolo_prune.utils.console import progress_bar

COST_AWARE = ("global", "isomorphic")
"""Allocations that weigh what channels are worth against what they save."""
MAX_REDUCTION_PER_ITERATION = 0.35
"""Share of the multiply-adds that goes in one iteration; iterations of less keep no more, and take longer."""


def plan_cut(
    model: nn.Module,
    config: PruneConfig,
    imgsz: int | tuple[int, int],
    data: CalibrationData | None = None,
    latency: LatencyModel | None = None,
) -> PrunePlan:
    """Return the plan of one cut to a configuration's targets; the network is only read.

    Args:
        model: The network to cut; shares are of what it is now.
        config: The options.
        imgsz: Image size in pixels for which multiply-adds are counted.
        data: What criteria and allocations that look at data need.
        latency: What has been measured of the network, for a latency target.

    Raises:
        TargetError: If the target is out of reach.
        ConfigError: If there is no data, or too little, for a criterion or an allocation that needs it.
        UnsupportedError: If a target is a latency and nothing has been measured.
    """
    graph = trace(model, imgsz, config.is_ignored, data.readers if data else None, reid=config.reid)
    return plan_traced(model, graph, config, request_for(model, graph, config, latency), data).plan


def request_for(
    model: nn.Module,
    graph: ChannelGraph,
    config: PruneConfig,
    latency: LatencyModel | None = None,
    files: Mapping[str, int] | None = None,
    given: Mapping[str, float] | None = None,
) -> PlanRequest:
    """Return the request of a configuration's targets, shares being of what a traced network is now.

    Args:
        model: The network.
        graph: Its channel groups.
        config: The options.
        latency: What has been measured of it, for a target in seconds.
        files: Bytes of its exports, for targets in such (see `Goal.of`).
        given: What it had before levels were removed, for shares (see `Goal.of`).
    """
    budget = Goal.of(config.targets, CostModel(graph, latency), model, files, given).at(1.0)
    return PlanRequest.of(config, budget, graph.units(), latency)


def plan_traced(
    model: nn.Module,
    graph: ChannelGraph,
    config: PruneConfig,
    request: PlanRequest,
    data: CalibrationData | None = None,
    measure: Measure | None = None,
) -> PlannedCut:
    """Return the plan for a request, where the network has been traced already.

    For a latency that data can judge, there are two plans, and that stays which loses less on the calibration images.

    Args:
        model: The network to cut.
        graph: Its channel groups, traced with the config's ``is_ignored`` and ``reid``.
        config: The options.
        request: What to land on, and how.
        data: What criteria and allocations that look at data need.
        measure: Times a network that a plan would leave; where that misses the budget's latency, the plan's last
            iteration is planned again.

    Raises:
        TargetError: If the target is out of reach.
        ConfigError: If there is no data, or too little, for a criterion or an allocation that needs it.
    """
    check_reachable(graph, request)
    data = data or CalibrationData(model)
    metrics = _cost_metrics(config, request, data)
    plans = [_plan_iteratively(graph, config, replace(request, cost_metric=m), data, measure) for m in metrics]
    if len(plans) == 1:
        return plans[0]
    held_out = HeldOutLoss(data.model, data.batches, data.batches, statistics=data.statistics)
    return min(plans, key=lambda planned: held_out.loss(planned.plan, weights=config.reconstruction))


def _cost_metrics(config: PruneConfig, request: PlanRequest, data: CalibrationData) -> tuple[str | None, ...]:
    """Return the metrics of savings: seconds and multiply-adds where seconds are asked and data can judge.

    What is estimated of channels is wrong by more than plans of the same speed differ. On a few images it shows which
    of two networks is better: on YOLO11n, in all of four cases, it was that which was better once trained.
    """
    counts = request.per_cost and config.allocation in COST_AWARE
    return (None, MACS) if LATENCY in request.budget and counts and data.batches else (None,)


def _plan_iteratively(
    graph: ChannelGraph, config: PruneConfig, request: PlanRequest, data: CalibrationData, measure: Measure | None
) -> PlannedCut:
    """Plan in as many iterations as the criterion needs; for a latency, the last one until it is met."""
    stages = stages_of(graph, config, request)
    plans: list[PrunePlan] = []
    later = data.later_batches() if len(stages) > 1 else 0
    with progress_bar("choosing channels", len(stages)) as step:
        for stage in stages:
            if plans:
                data = data.after(plans[-1], config, later)
                graph = trace(data.model, graph.imgsz, config.is_ignored, data.readers, reid=config.reid)
            plans.append(_plan_iteration(graph, config, replace(request, budget=stage), data))
            step()
    if measure and LATENCY in request.budget:
        planned = fit_latency(
            plans[-1], graph, data.model, request, lambda r: _plan_iteration(graph, config, r, data), measure
        )
    elif request.latency:
        planned = PlannedCut(plans[-1], seconds_of(graph, plans[-1], request.latency))
    else:
        planned = PlannedCut(plans[-1])
    return replace(planned, plan=reduce(PrunePlan.then, [*plans[:-1], planned.plan]))


def stages_of(graph: ChannelGraph, config: PruneConfig, request: PlanRequest) -> list[Budget]:
    """Return the budget after each iteration of a plan, the whole budget last; criteria of weights need but one."""
    if config.importance != "reconstruction" or config.allocation in HELD_OUT:
        return [request.budget]
    cost = CostModel(graph, request.latency)
    macs_kept = 1.0 if request.budget.keys() <= {MACS} else _macs_kept(graph, request)
    return _stages({q: cost.amount(q) for q in request.budget}, request.budget, macs_kept)


def _macs_kept(graph: ChannelGraph, request: PlanRequest) -> float:
    """Return the share of the multiply-adds that stays about: half of the time can be a quarter of them."""
    anything = ByScore(graph, [np.zeros(group.width) for group in graph.groups])
    estimate = replace(request, allocation="uniform", depth=False)
    try:
        plan = make_plan(graph, anything, estimate)
    except TargetError:  # out of reach of channels alone
        plan = make_plan(graph, anything, estimate, {block.path for block in removable_blocks(graph, request.held)})
    return plan.macs["after"] / plan.macs["before"]


def _stages(present: Budget, budget: Budget, macs_kept: float = 1.0) -> list[Budget]:
    """Return the budget after each iteration, equal shares of what is there, the whole budget last.

    Args:
        present: What there is.
        budget: What may stay.
        macs_kept: Share of the multiply-adds that stay, where the budget does not say.
    """
    fractions = {q: min(1.0, most / present[q]) for q, most in budget.items()}
    least, per_iteration = min([macs_kept, *fractions.values()]), math.log(1 - MAX_REDUCTION_PER_ITERATION)
    n = max(1, math.ceil(math.log(least) / per_iteration)) if least > 0 else 1
    return [*({q: present[q] * fractions[q] ** (i / n) for q in budget} for i in range(1, n)), budget]


def _plan_iteration(graph: ChannelGraph, config: PruneConfig, request: PlanRequest, data: CalibrationData) -> PrunePlan:
    """Plan a cut of a network as it is."""
    if config.allocation in HELD_OUT:
        request = replace(request, allocation="tolerance", tolerance=_measured_tolerance(graph, config, data))
    return make_plan(graph, ranking_factory(graph, config, data)(), request)


def _measured_tolerance(
    graph: ChannelGraph, config: PruneConfig, data: CalibrationData
) -> Callable[[int, float], float]:
    """Return how much cuts of a bundle hurt on one half of the images, chosen and calibrated on the other half."""
    calibration, held_out = data.halves()
    fresh = ranking_factory(graph, config, CalibrationData(data.model, calibration, data.collected))
    return scan(data.model, graph, fresh, calibration, held_out).tolerance
