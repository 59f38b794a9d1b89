"""From channel groups, a ranking of their units and a budget to a plan.

Two parts that know nothing of each other. A *ranking* says what the loss of the next units of a bundle of channel
groups costs, and which units those are. An *allocation* says which bundle loses units next, until the network meets the
target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import LATENCY, in_units
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import TargetError
from yolo_prune.graph.groups import Bundle, ChannelGraph
from yolo_prune.graph.zeros import INPUTS_OF_FOUR
from yolo_prune.plan import PrunePlan

MOVES = 64
"""A bundle goes from its full width to nothing in about so many moves, so that wide networks take no longer."""

HARDWARE = 8
"""Multiple of the widths by default: what CPUs and GPUs compute at once, and still fine enough to choose from."""

Budget = Mapping[str, float]
"""Quantity (`targets.QUANTITIES`) -> how much of it may stay; all of them must hold."""

Limits = Callable[[str], float]
"""Layer path -> largest share of its dense width that the layer may lose."""

Rule = Callable[[int, int], "float | tuple[float, float]"]
"""(bundle, steps kept if it loses units now) -> the lower, the sooner."""


class Ranking(Protocol):
    """The order in which units of each group go."""

    def error(self, bundle: int, steps: int) -> float:
        """Return the increase of the loss if so many more steps of a bundle are removed."""

    def remove(self, bundle: int, steps: int) -> Iterable[int]:
        """Remove them, and return the bundles whose errors change by that."""

    def order(self) -> list[np.ndarray]:
        """Return the units of each group, the most important first."""


class ByScore:
    """A ranking by scores that do not change as units are removed.

    Args:
        graph: The network's channel groups.
        scores: Per group, an array of shape (width,): higher is more important.
    """

    def __init__(self, graph: ChannelGraph, scores: Sequence[np.ndarray]) -> None:
        self._order = [np.argsort(-s, kind="stable") for s in scores]
        self._sums = []
        """Per bundle, the summed scores of its least important 0, 1, 2, ... steps."""
        for bundle in graph.bundles:
            lanes = [scores[g][self._order[g]][::-1].reshape(bundle.steps, -1).mean(1) for g in bundle.groups]
            self._sums.append(np.r_[0, np.cumsum(np.mean(lanes, axis=0))])
        self._gone = [0] * len(graph.bundles)

    def error(self, bundle: int, steps: int) -> float:
        """Return the sum of the scores of the next steps, each the mean over its units."""
        gone = self._gone[bundle]
        return float(self._sums[bundle][gone + steps] - self._sums[bundle][gone])

    def remove(self, bundle: int, steps: int) -> Iterable[int]:
        """Count them as gone."""
        self._gone[bundle] += steps
        return (bundle,)

    def order(self) -> list[np.ndarray]:
        """Return the units of each group by descending score."""
        return self._order


@dataclass(frozen=True)
class PlanRequest:
    """The budget of a plan, and how it is allocated.

    Attributes:
        budget: What to land on, from below and as close as whole channels allow.
        allocation: ``uniform`` gives every bundle the same ratio, ``global`` takes what costs least wherever it lies,
            ``isomorphic`` does so among bundles of the same structure and takes the same ratio of every structure (Fang
            et al. 2024, "Isomorphic Pruning for Vision Models", section 3), ``tolerance`` follows ``tolerance``.
        per_cost: Whether what a unit is worth is divided by what it saves, or by its channels.
        cost_metric: The quantity of which savings count, or None for those of the budget that are still beyond it.
        tolerance: (bundle, share of its steps that is gone) -> how much that hurts; where it hurts least goes next.
        round_to: Kept widths are multiples of this (default: see `HARDWARE`).
        limits: Largest share of its dense width that each layer may lose.
        dense_widths: Output width of each layer before the run's first cut; those that are missing are as they are now.
        latency: What has been measured of the network, for a budget with a latency.
    """

    budget: Budget
    allocation: str = "uniform"
    per_cost: bool = True
    cost_metric: str | None = None
    tolerance: Callable[[int, float], float] | None = None
    round_to: int | None = None
    limits: Limits = lambda layer: 0.9
    dense_widths: Mapping[str, int] = field(default_factory=dict)
    latency: LatencyModel | None = None

    @classmethod
    def of(
        cls, config: PruneConfig, budget: Budget, dense_widths: Mapping[str, int], latency: LatencyModel | None
    ) -> PlanRequest:
        """Return a request with the options of a configuration."""
        return cls(
            budget=budget,
            allocation=config.allocation,
            per_cost=config.per_cost,
            round_to=config.round_to or (INPUTS_OF_FOUR if config.asks_two_of_four else None),
            limits=config.limit,
            dense_widths=dense_widths,
            latency=latency,
        )


def make_plan(graph: ChannelGraph, ranking: Ranking, request: PlanRequest) -> PrunePlan:
    """Choose the units that stay, so that the network lands on the target.

    Args:
        graph: The network's channel groups.
        ranking: The order of the units; it is used up.
        request: What to land on, and how.

    Raises:
        TargetError: If the target lies below what the free channels allow; the message names what is locked.
    """
    allocation = _Allocation(graph, check_reachable(graph, request), ranking, request)
    rules: dict[str, Rule] = {
        "uniform": allocation.share,
        "global": allocation.price,
        "isomorphic": allocation.price_in_class,
        "tolerance": lambda b, steps: (request.tolerance or (lambda b, share: share))(b, allocation.share(b, steps)),
    }
    allocation.shrink(request.budget, rules[request.allocation])
    return plan_of(graph, allocation.steps, ranking.order())


def plan_of(graph: ChannelGraph, kept_steps: Sequence[int], order: Sequence[np.ndarray]) -> PrunePlan:
    """Return the plan that keeps so many steps of each bundle.

    Args:
        graph: The network's channel groups.
        kept_steps: Steps per bundle; a locked one keeps all.
        order: Per group its units, of which the first stay.
    """
    cost, kept = CostModel(graph), _units(graph, kept_steps)
    removed: dict[tuple[str, str], set[int]] = {}
    for group, n, units in zip(graph.groups, kept, order, strict=True):
        for member, table in group.members.items():
            removed.setdefault(member, set()).update(table[units[n:]].ravel().tolist())
    layers: dict[str, dict[str, list[int]]] = {}
    widths: dict[str, dict[str, int]] = {}
    for path, layer in graph.layers.items():
        if any(removed.get((path, side)) for side in layer.sides):
            widths[path] = layer.sides
            layers[path] = {
                side: [i for i in range(n) if i not in removed.get((path, side), ())] for side, n in layer.sides.items()
            }
    return PrunePlan(
        layers=layers,
        widths=widths,
        macs={"before": cost.macs(), "after": cost.macs(kept)},
        params={"before": cost.params(), "after": cost.params(kept)},
        imgsz=graph.imgsz,
        locked=graph.locked(),
    )


def units_of(graph: ChannelGraph, plan: PrunePlan) -> np.ndarray:
    """Return how many units of each group a plan keeps."""
    kept = []
    for group in graph.groups:
        (path, side), table = next(iter(group.members.items()))
        stays = np.isin(table[:, 0], plan.layers[path][side]) if path in plan.layers else np.ones(group.width)
        kept.append(int(stays.sum()))
    return np.array(kept, dtype=np.int64)


def check_reachable(graph: ChannelGraph, request: PlanRequest) -> list[np.ndarray]:
    """Return the `width_options` of a request that the network can meet.

    Raises:
        TargetError: If the network costs more than the target even at the lowest of them.
    """
    options = width_options(graph, request)
    cost, lowest = CostModel(graph, request.latency), _units(graph, [o[0] for o in options])
    for quantity, most in request.budget.items():
        if (least := cost.amount(quantity, lowest)) > most:
            raise TargetError(_unreachable(graph, quantity, cost.amount(quantity), least, most))
    return options


def width_options(graph: ChannelGraph, request: PlanRequest) -> list[np.ndarray]:
    """Return per bundle the numbers of steps that may be kept, ascending; a locked bundle has one."""
    timed = request.latency if LATENCY in request.budget else None
    options = []
    for bundle in graph.bundles:
        layer = graph.layers[graph.groups[bundle.groups[0]].name]
        dense = request.dense_widths.get(layer.path, layer.out) / layer.out
        makers = [path for g in bundle.groups for path, side in graph.groups[g].members if side == "out"]
        limit = min(map(request.limits, makers), default=0.0)
        fewest = max(1, int(np.ceil(bundle.steps * dense * (1 - limit) - 1e-9)))
        steps = np.arange(1, bundle.steps + 1)
        widths = steps * bundle.units_per_step
        round_to = request.round_to
        is_fast = widths % round_to == 0 if round_to else _fast(widths, round(widths[-1] * dense), timed)
        allowed = steps[(steps >= fewest) & is_fast]
        everything = np.array([bundle.steps])
        options.append(everything if bundle.locked else np.union1d(allowed, everything))
    return options


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


class _Allocation:
    """How many steps each bundle keeps, from all to as few as the target asks."""

    def __init__(self, graph: ChannelGraph, options: list[np.ndarray], ranking: Ranking, request: PlanRequest) -> None:
        self._graph, self._cost, self._ranking = graph, CostModel(graph, request.latency), ranking
        self._per_cost, self._cost_metric = request.per_cost, request.cost_metric
        self.steps = [int(o[-1]) for o in options]
        self._moves = [_moves(o.tolist()) for o in options]
        classes: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for b, bundle in enumerate(graph.bundles):
            if not bundle.locked:
                classes[_structure(graph, bundle)].append(b)
        self._class_of = {b: members for members in classes.values() for b in members}
        self._prices: dict[int, float] = {}
        self._savings = np.zeros(len(graph.groups))

    def shrink(self, budget: Budget, rule: Rule) -> None:
        """Move by move, let the bundle go that the rule names, until the budget holds."""
        history: list[tuple[int, int]] = []
        while excess := self._excess(units := _units(self._graph, self.steps), budget):
            counted = {self._cost_metric: 1.0} if self._cost_metric else excess
            savings = [self._cost.savings(q, units) / amount for q, amount in counted.items()]
            self._savings = np.sum(savings, axis=0)
            moves = {b: move[n] for b, (n, move) in enumerate(zip(self.steps, self._moves, strict=True)) if n in move}
            bundle = min(moves, key=lambda b: rule(b, moves[b]))
            history.append((bundle, self.steps[bundle]))
            for changed in (bundle, *self._ranking.remove(bundle, self.steps[bundle] - moves[bundle])):
                self._prices.pop(changed, None)
            self.steps[bundle] = moves[bundle]
        for bundle, before in reversed(history):  # the last moves may have gone further than needed
            more = [*self.steps[:bundle], before, *self.steps[bundle + 1 :]]
            if self.steps[bundle] < before and not self._excess(_units(self._graph, more), budget):
                self.steps = more

    def _excess(self, units: np.ndarray, budget: Budget) -> dict[str, float]:
        """Return how much of each quantity is beyond the budget; nothing where it holds."""
        amounts = {q: self._cost.amount(q, units) for q in budget}
        return {q: amounts[q] - most for q, most in budget.items() if amounts[q] > most}

    def share(self, b: int, steps: int) -> float:
        """Return the share of a bundle's steps that would be gone."""
        return 1 - steps / self._graph.bundles[b].steps

    def price(self, b: int, steps: int) -> float:
        """Return the cost of a move per saving; several quantities count by how far each is from its target."""
        if b not in self._prices:
            self._prices[b] = self._ranking.error(b, self.steps[b] - steps)
        bundle, gone = self._graph.bundles[b], self.steps[b] - steps
        if not self._per_cost:
            return self._prices[b] / gone
        saved = gone * sum(n * self._savings[g] for g, n in zip(bundle.groups, bundle.per_step, strict=True))
        return self._prices[b] / max(saved, 1e-12)

    def price_in_class(self, b: int, steps: int) -> tuple[float, float]:
        """Return the share of its class that would be gone, then the price."""
        members = self._class_of[b]
        total = sum(self._graph.bundles[m].steps for m in members)
        kept = sum(self.steps[m] for m in members) - self.steps[b] + steps
        return 1 - kept / total, self.price(b, steps)


def _moves(options: list[int]) -> dict[int, int]:
    """Return a bundle's moves: steps kept before -> after; there is none from the fewest."""
    stride = max(1, round(len(options) / MOVES))
    return {steps: options[max(level - stride, 0)] for level, steps in enumerate(options) if level}


def _structure(graph: ChannelGraph, bundle: Bundle) -> tuple[str, ...]:
    """Return a key of a bundle's structure: the kinds of its layers, not their widths."""
    kinds = []
    for g in bundle.groups:
        for path, side in graph.groups[g].members:
            layer = graph.layers[path]
            kinds.append(f"{layer.kind} {layer.kernel} {'grouped' if layer.groups > 1 else ''} {side}")
    return tuple(sorted(kinds))


def _units(graph: ChannelGraph, kept_steps: Sequence[int]) -> np.ndarray:
    """Return kept units per group from kept steps per bundle."""
    units = [0] * len(graph.groups)  # numpy takes longer to set single values
    for bundle, steps in zip(graph.bundles, kept_steps, strict=True):
        for g, per_step in zip(bundle.groups, bundle.per_step, strict=True):
            units[g] = int(steps) * per_step
    return np.array(units, dtype=np.int64)


def _unreachable(graph: ChannelGraph, quantity: str, now: float, least: float, most: float) -> str:
    reasons: dict[str, list[str]] = {}
    for entry in graph.locked():
        reasons.setdefault(entry["why"], []).append(entry["layer"])
    locked = "; ".join(f"{', '.join(layers)} ({why})" for why, layers in reasons.items())
    asked, reachable, has = (in_units(quantity, amount) for amount in (most, least, now))
    return (
        f"{asked} asked, but {reachable} is the least that can be reached from {has} ({least / now - 1:+.1%}): ask for "
        "less, raise max_pruning_ratio, lower round_to or ignore fewer layers. "
        f"Locked: {locked or 'nothing'}."
    )
