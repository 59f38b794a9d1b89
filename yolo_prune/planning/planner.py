"""One cut, chosen for a network: trace it, rank its channels, and choose what stays.

What statistics tell of a network does not hold far away from it. So a large cut by reconstruction error is planned in
strides: a copy is cut a little and reconstructed, and what it shows then decides what goes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import itemgetter
from typing import Any

import numpy as np
from torch import nn

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import LATENCY, MACS
from yolo_prune.cost.budget import Goal
from yolo_prune.cost.latency_table import LatencyTable
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import ConfigError, TargetError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.importance.reconstruction_error import Elimination
from yolo_prune.importance.scores import importance_scores
from yolo_prune.importance.statistics import (
    Gradients,
    LayerStatistics,
    copy_of,
    gradients,
    layer_statistics,
    trainable_copy,
)
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import Budget, ByScore, Ranking, check_reachable, make_plan, units_of
from yolo_prune.planning.sensitivity import Judge, scan
from yolo_prune.surgery.reconstruction import DenseOutputs, reconstruct
from yolo_prune.surgery.slicing import cut
from yolo_prune.utils.console import waiting

DATA_FREE = ("l1", "l2", "bn_scale", "lamp", "fpgm", "random")
"""Criteria that need nothing but weights."""
BY_GRADIENT = ("taylor", "hessian")
"""Criteria that need gradients of the parameters, which a run can collect while it trains."""
MEASURED = ("sensitivity",)
"""Allocations that hold images back to judge by."""
PRICED = ("global", "isomorphic")
"""Allocations that weigh what channels are worth against what they save."""
STRIDE = 0.22
"""Share of the multiply-adds that goes in one stride."""
LOOKS = 5
"""Times at most that what a plan leaves is timed, and its last stride made anew."""
EXACT = 0.02
"""Share of a latency by which what a plan leaves may miss it: measurements differ by as much."""


@dataclass
class Evidence:
    """What is known of a network beside its weights.

    Attributes:
        model: The network.
        batches: Preprocessed batches of training images with labels, without augmentation.
        collected: Gradients that the run has collected already, or None.
        readers: Layers that only a training step runs -> the modules whose results they take.
    """

    model: nn.Module
    batches: list[dict[str, Any]] = field(default_factory=list)
    collected: Gradients | None = None
    readers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Moments of activations, and how much the loss cares."""
        return layer_statistics(self.model, self._data)

    @cached_property
    def gradients(self) -> Gradients:
        """Gradients of the parameters: the run's own, else those of the batches."""
        return self.collected if self.collected and self.collected.steps else gradients(self.model, self._data)

    def halves(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the first half of the batches, to calibrate on, and the second half, to judge by.

        Raises:
            ConfigError: If there are no two batches.
        """
        middle = (len(self._data) + 1) // 2
        if middle == len(self._data):
            images = len(self._data[0]["img"])
            raise ConfigError(
                f"calibration: {images} images make one batch, but the allocation {' and '.join(MEASURED)} needs two, "
                f"one to calibrate on and one to judge by; raise calibration above {images}, lower batch or use "
                "allocation=global."
            )
        return self._data[:middle], self._data[middle:]

    def after(self, plan: PrunePlan, config: PruneConfig) -> Evidence:
        """Return what is known of the network that a cut would leave."""
        network, images = trainable_copy(self.model), [batch["img"] for batch in self._data]
        dense, done = DenseOutputs(network, images), cut(plan, [network])
        reconstruct(done, network, plan, dense, weights=config.reconstruction)
        return Evidence(network, self.batches, readers=self.readers)

    @property
    def _data(self) -> list[dict[str, Any]]:
        if not self.batches:
            raise ConfigError(f"this criterion looks at data; give data, or use one of {', '.join(DATA_FREE)}.")
        return self.batches


def plan_cut(
    model: nn.Module,
    config: PruneConfig,
    imgsz: int | tuple[int, int],
    budget: Budget | None = None,
    dense_widths: Mapping[str, int] | None = None,
    evidence: Evidence | None = None,
    latency: LatencyTable | None = None,
    slowness: Callable[[nn.Module], float] | None = None,
) -> PrunePlan:
    """Trace, rank and choose; the network is only read.

    Args:
        model: The network to cut.
        config: The knobs.
        imgsz: Image size in pixels for which multiply-adds are counted.
        budget: What to land on (default: the config's targets, shares being of what the network is now).
        dense_widths: Output width of each layer before the run's first cut.
        evidence: What criteria and allocations that look at data need.
        latency: What has been measured of the network, for a budget that has a latency.
        slowness: Looks at a network that a plan would leave, and returns how many times as long as predicted it takes.
            Where that misses the budget, the plan's last stride is made anew.

    Raises:
        TargetError: If the target is out of reach.
        ConfigError: If there is no data, or too little, for a criterion or an allocation that needs it.
    """
    readers = evidence.readers if evidence else None
    graph = replace(trace(model, imgsz, config.is_ignored, readers, reid=config.reid), latency=latency)
    return plan_traced(model, graph, config, budget, dense_widths, evidence, slowness)


def plan_traced(
    model: nn.Module,
    graph: ChannelGraph,
    config: PruneConfig,
    budget: Budget | None = None,
    dense_widths: Mapping[str, int] | None = None,
    evidence: Evidence | None = None,
    slowness: Callable[[nn.Module], float] | None = None,
) -> PrunePlan:
    """Rank and choose, where the network has been traced already.

    For a latency that data can judge, there are two plans, and that stays which loses less on the calibration images.

    Args:
        model: The network to cut.
        graph: Its channel groups, traced with the config's ``is_ignored``; for a latency budget, with its latency.
        config: The knobs.
        budget: What to land on (default: the config's targets, shares being of what the network is now).
        dense_widths: Output width of each layer before the run's first cut.
        evidence: What criteria and allocations that look at data need.
        slowness: See `plan_cut`.

    Raises:
        TargetError: If the target is out of reach.
        ConfigError: If there is no data, or too little, for a criterion or an allocation that needs it.
    """
    cost = CostModel(graph)
    budget = Goal.of(config.targets, cost, model).at(1.0) if budget is None else budget
    dense_widths = dense_widths or {path: layer.out for path, layer in graph.layers.items()}
    check_reachable(graph, budget, config.round_to, config.limit, dense_widths)
    evidence = evidence or Evidence(model)
    wish = _Wish(config, budget, dense_widths)
    plans = [_in_strides(graph, replace(wish, currency=c), evidence, slowness) for c in wish.currencies(evidence)]
    if len(plans) == 1:
        return plans[0]
    judge = Judge(evidence.model, evidence.batches, evidence.batches)
    return min(plans, key=lambda plan: judge.loss(plan, weights=config.reconstruction))


@dataclass(frozen=True)
class _Wish:
    """What a plan is for.

    Attributes:
        config: The knobs.
        budget: What to land on.
        dense_widths: Output width of each layer before the run's first cut.
        currency: The quantity of which savings count (see `make_plan`).
    """

    config: PruneConfig
    budget: Budget
    dense_widths: Mapping[str, int]
    currency: str | None = None

    def currencies(self, evidence: Evidence) -> tuple[str | None, ...]:
        """Return what savings are counted in: seconds and multiply-adds where seconds are asked and data can judge.

        What is estimated of channels is wrong by more than plans of the same speed differ. On a few images it shows
        which of two networks is better: on YOLO11n, in all of four cases, it was that which was better once trained.
        """
        config = self.config
        counts = config.per_cost and config.allocation in PRICED
        return (None, MACS) if LATENCY in self.budget and counts and evidence.batches else (None,)

    def options(self) -> dict[str, Any]:
        """Return what `make_plan` takes beside what hangs on the network and the allocation."""
        return {
            "per_cost": self.config.per_cost,
            "currency": self.currency,
            "round_to": self.config.round_to,
            "limits": self.config.limit,
            "dense_widths": self.dense_widths,
        }


def _in_strides(
    graph: ChannelGraph, wish: _Wish, evidence: Evidence, slowness: Callable[[nn.Module], float] | None
) -> PrunePlan:
    """Choose what goes, in as many strides as the criterion needs; for a latency, the last one until it is met."""
    config, budget, cost = wish.config, wish.budget, CostModel(graph)
    stages = [budget]
    if config.importance == "reconstruction" and config.allocation not in MEASURED:
        macs_kept = 1.0 if budget.keys() <= {MACS} else _macs_kept(graph, wish)
        stages = _stages({q: cost.amount(q) for q in budget}, budget, macs_kept)
    plans: list[PrunePlan] = []
    with waiting("choosing channels", len(stages)) as step:
        for stage in stages:
            if plans:
                evidence = evidence.after(plans[-1], config)
                graph = replace(
                    trace(evidence.model, graph.imgsz, config.is_ignored, evidence.readers, reid=config.reid),
                    latency=graph.latency,
                )
            plans.append(_stride(graph, replace(wish, budget=stage), evidence))
            step()
    if slowness is not None and LATENCY in budget:
        plans[-1] = _as_measured(plans[-1], graph, wish, evidence, slowness)
    return reduce(PrunePlan.then, plans)


def _as_measured(
    plan: PrunePlan,
    graph: ChannelGraph,
    wish: _Wish,
    evidence: Evidence,
    slowness: Callable[[nn.Module], float],
) -> PrunePlan:
    """Return a plan of the last stride that lands on the latency as it is measured, or the one that came nearest.

    How wrong a prediction is hangs on the widths, so one look is not enough. The table is scaled, at first by what a
    look has shown; then by what lies between a scale whose plan was too slow and one whose plan was too fast.
    """
    table, asked, cost = graph.latency, wish.budget[LATENCY], CostModel(graph)
    assert table is not None
    scale, too_slow, too_fast = 1.0, 0.0, math.inf
    tried: list[tuple[bool, float, PrunePlan]] = []
    while True:
        network = copy_of(evidence.model)
        plan.apply(network)
        found = slowness(network)
        missed = found * cost.seconds(units_of(graph, plan)) / asked - 1
        tried.append((missed > EXACT, abs(missed), plan))
        is_bound_otherwise = missed < 0 and found >= scale
        if abs(missed) <= EXACT or is_bound_otherwise or len(tried) == LOOKS:
            break
        too_slow, too_fast = (scale, too_fast) if missed > 0 else (too_slow, scale)
        scale = found if too_slow < found < too_fast else math.sqrt(too_slow * too_fast)
        try:
            plan = _stride(replace(graph, latency=table.scaled(scale)), wish, evidence)
        except TargetError:  # no network is as fast
            break
        if plan == tried[-1][2]:
            break
    return min(tried, key=itemgetter(0, 1))[2]


def _macs_kept(graph: ChannelGraph, wish: _Wish) -> float:
    """Return the share of the multiply-adds that stays about: half of the time can be a quarter of them."""
    anything = ByScore(graph, [np.zeros(group.width) for group in graph.groups])
    plan = make_plan(graph, anything, wish.budget, **wish.options())
    return plan.macs["after"] / plan.macs["before"]


def _stages(present: Budget, budget: Budget, macs_kept: float = 1.0) -> list[Budget]:
    """Return the budget after each stride, equal shares of what is there, the whole budget last.

    Args:
        present: What there is.
        budget: What may stay.
        macs_kept: Share of the multiply-adds that stay, where the budget does not say.
    """
    kept = {q: min(1.0, most / present[q]) for q, most in budget.items()}
    least = min([macs_kept, *kept.values()])
    strides = max(1, math.ceil(math.log(least) / math.log(1 - STRIDE))) if least > 0 else 1
    return [*({q: present[q] * kept[q] ** (i / strides) for q in budget} for i in range(1, strides)), budget]


def _stride(graph: ChannelGraph, wish: _Wish, evidence: Evidence) -> PrunePlan:
    """Choose what goes of a network as it is."""
    config, tolerance = wish.config, None
    if config.allocation in MEASURED:
        tolerance = _measured(graph, wish, evidence)
    return make_plan(
        graph,
        rankings(graph, config, evidence)(),
        wish.budget,
        allocation="tolerance" if tolerance else config.allocation,
        tolerance=tolerance,
        **wish.options(),
    )


def _measured(graph: ChannelGraph, wish: _Wish, evidence: Evidence) -> Callable[[int, float], float]:
    """Return how much cuts of a bundle hurt, by what half of the images make of the other half's choices."""
    model, config, (calibration, held_out) = evidence.model, wish.config, evidence.halves()
    fresh = rankings(graph, config, Evidence(model, calibration, evidence.collected))
    return scan(model, graph, fresh, calibration, held_out).tolerance


def rankings(graph: ChannelGraph, config: PruneConfig, evidence: Evidence) -> Callable[[], Ranking]:
    """Return what makes a fresh ranking, since a plan uses one up."""
    model = evidence.model
    if config.importance == "reconstruction":
        return lambda: Elimination(model, graph, evidence.statistics)
    scores = importance_scores(
        model,
        graph,
        config.importance,
        normalizer=config.normalizer,
        gradients=evidence.gradients if config.importance in BY_GRADIENT else None,
        statistics=evidence.statistics if config.importance == "activation" else None,
    )
    return lambda: ByScore(graph, scores)
