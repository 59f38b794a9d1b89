"""From channel groups, a ranking of their units and a budget to a plan.

Two parts that know nothing of each other. A *ranking* says what the loss of the next units of a bundle of channel
groups costs, and which units those are. An *allocation* says which bundle loses units next, or which inner block goes
as a whole, until the network meets the target.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import in_units
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel, unread_inputs
from yolo_prune.errors import TargetError
from yolo_prune.graph.groups import Bundle, ChannelGraph
from yolo_prune.graph.zeros import INPUTS_OF_FOUR
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.depth import BlockMoves, removable_blocks
from yolo_prune.planning.ranking import Ranking
from yolo_prune.planning.widths import width_options
from yolo_prune.utils.paths import is_inside, outermost

MOVES = 64
"""A bundle goes from its full width to nothing in about so many moves, so that wide networks take no longer."""


Budget = Mapping[str, float]
"""Quantity (`targets.QUANTITIES`) -> how much of it may stay; all of them must hold."""

Limits = Callable[[str], float]
"""Layer path -> largest share of its dense width that the layer may lose."""

Rule = Callable[[int, int], "float | tuple[float, float]"]
"""(bundle, steps kept if it loses units now) -> the lower, the sooner."""


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
        round_to: Kept widths are multiples of this (default: see `widths.HARDWARE`).
        limits: Largest share of its dense width that each layer may lose.
        dense_units: Units of each group before the run's first cut (see `ChannelGraph.units`); those that are missing
            are as they are now.
        latency: What has been measured of the network, for a budget with a latency.
        depth: Whether inner blocks may go where that costs less than the next channels.
        held: Layer path -> whether the block that it is in stays.
    """

    budget: Budget
    allocation: str = "uniform"
    per_cost: bool = True
    cost_metric: str | None = None
    tolerance: Callable[[int, float], float] | None = None
    round_to: int | None = None
    limits: Limits = lambda layer: 0.9
    dense_units: Mapping[str, int] = field(default_factory=dict)
    latency: LatencyModel | None = None
    depth: bool = False
    held: Callable[[str], bool] = lambda layer: False

    @classmethod
    def of(
        cls, config: PruneConfig, budget: Budget, dense_units: Mapping[str, int], latency: LatencyModel | None
    ) -> PlanRequest:
        """Return a request with the options of a configuration."""
        return cls(
            budget=budget,
            allocation=config.allocation,
            per_cost=config.per_cost,
            round_to=config.round_to or (INPUTS_OF_FOUR if config.asks_two_of_four else None),
            limits=config.limit,
            dense_units=dense_units,
            latency=latency,
            depth=config.removes_blocks,
            held=config.is_limited,
        )


def make_plan(graph: ChannelGraph, ranking: Ranking, request: PlanRequest, blocks: Collection[str] = ()) -> PrunePlan:
    """Choose the units that stay, so that the network lands on the target.

    Args:
        graph: The network's channel groups.
        ranking: The order of the units; it is used up.
        request: What to land on, and how.
        blocks: Paths of inner blocks that go anyhow.

    Raises:
        TargetError: If the target lies below what the free channels allow; the message names what is locked.
    """
    allocation = _Allocation(graph, check_reachable(graph, request, blocks), ranking, request, blocks)
    rules: dict[str, Rule] = {
        "uniform": allocation.share,
        "global": allocation.price,
        "isomorphic": allocation.price_in_class,
        "tolerance": lambda b, steps: (request.tolerance or (lambda b, share: share))(b, allocation.share(b, steps)),
    }
    allocation.shrink(request.budget, rules[request.allocation], request.depth)
    return plan_of(graph, allocation.steps, ranking.order(), allocation.blocks.gone)


def plan_of(
    graph: ChannelGraph, kept_steps: Sequence[int], order: Sequence[np.ndarray], blocks: Collection[str] = ()
) -> PrunePlan:
    """Return the plan that keeps so many steps of each bundle.

    Args:
        graph: The network's channel groups.
        kept_steps: Steps per bundle; a locked one keeps all.
        order: Per group its units, of which the first stay.
        blocks: Paths of the inner blocks that go.
    """
    gone = outermost(blocks)
    cost, left, kept = CostModel(graph), CostModel(graph, without=gone), _units(graph, kept_steps)
    removed = {(reader, "in"): set(channels) for reader, channels in unread_inputs(graph, gone).items()}
    for group, n, units in zip(graph.groups, kept, order, strict=True):
        for member, table in group.members.items():
            removed.setdefault(member, set()).update(table[units[n:]].ravel().tolist())
    layers: dict[str, dict[str, list[int]]] = {}
    widths: dict[str, dict[str, int]] = {}
    for path, layer in graph.layers.items():
        if any(removed.get((path, side)) for side in layer.sides) and not is_inside(path, gone):
            widths[path] = layer.sides
            layers[path] = {
                side: [i for i in range(n) if i not in removed.get((path, side), ())] for side, n in layer.sides.items()
            }
    return PrunePlan(
        layers=layers,
        widths=widths,
        macs={"before": cost.macs(), "after": left.macs(kept)},
        params={"before": cost.params(), "after": left.params(kept)},
        imgsz=graph.imgsz,
        locked=graph.locked(),
        blocks=gone,
    )


def units_of(graph: ChannelGraph, plan: PrunePlan) -> np.ndarray:
    """Return how many units of each group a plan keeps; of a group that lies in a removed block, all of them."""
    kept = []
    for group in graph.groups:
        members = [of for of in group.members.items() if not is_inside(of[0][0], plan.blocks)]
        (path, side), table = next(iter(members or group.members.items()))
        stays = np.isin(table[:, 0], plan.layers[path][side]) if path in plan.layers else np.ones(group.width)
        kept.append(int(stays.sum()))
    return np.array(kept, dtype=np.int64)


def seconds_of(graph: ChannelGraph, plan: PrunePlan, latency: LatencyModel) -> float:
    """Return the predicted seconds for one image of the network that a plan leaves."""
    return CostModel(graph, latency, plan.blocks).seconds(units_of(graph, plan))


def check_reachable(graph: ChannelGraph, request: PlanRequest, blocks: Collection[str] = ()) -> list[np.ndarray]:
    """Return the `width_options` of a request that the network can meet.

    Args:
        graph: The network's channel groups.
        request: What to land on, and how.
        blocks: Paths of inner blocks that go anyhow.

    Raises:
        TargetError: If the network costs more than the target even at the lowest of them.
    """
    options = width_options(graph, request)
    cost = CostModel(graph, request.latency)
    for quantity, least in least_amounts(graph, request, options, blocks).items():
        if least > (most := request.budget[quantity]):
            raise TargetError(_unreachable(graph, quantity, cost.amount(quantity), least, most))
    return options


def least_amounts(
    graph: ChannelGraph, request: PlanRequest, options: list[np.ndarray], blocks: Collection[str] = ()
) -> dict[str, float]:
    """Return the least of each quantity of a request's budget that its `width_options` and inner blocks allow."""
    may_go = removable_blocks(graph, request.held) if request.depth else ()
    left = CostModel(graph, request.latency, {*blocks, *(block.path for block in may_go)})
    lowest = _units(graph, [o[0] for o in options])
    return {quantity: left.amount(quantity, lowest) for quantity in request.budget}


class _Allocation:
    """How many steps each bundle keeps, from all to as few as the target asks."""

    def __init__(
        self,
        graph: ChannelGraph,
        options: list[np.ndarray],
        ranking: Ranking,
        request: PlanRequest,
        blocks: Collection[str] = (),
    ) -> None:
        self._graph, self._ranking = graph, ranking
        self.blocks = BlockMoves(graph, request.latency, ranking, request.held, blocks)
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

    def shrink(self, budget: Budget, rule: Rule, depth: bool = False) -> None:
        """Move by move, let the bundle go that the rule names, or a block that costs less, until the budget holds."""
        history: list[tuple[int, int]] = []
        while excess := self._excess(units := _units(self._graph, self.steps), budget):
            counted = {self._cost_metric: 1.0} if self._cost_metric else excess
            savings = [self.blocks.cost.savings(q, units) / amount for q, amount in counted.items()]
            self._savings = np.sum(savings, axis=0)
            moves = {b: move[n] for b, (n, move) in enumerate(zip(self.steps, self._moves, strict=True)) if n in move}
            if self.blocks.gone:  # all that is left of some bundles is in them
                present = self.blocks.cost.present
                moves = {b: to for b, to in moves.items() if present[[*self._graph.bundles[b].groups]].any()}
            bundle = min(moves, key=lambda b: rule(b, moves[b]), default=None)
            price = math.inf if bundle is None else self.price(bundle, moves[bundle])
            block = self.blocks.cheaper(units, counted, price) if depth else None
            if block:
                changed = self.blocks.remove(block)
            elif bundle is None:
                raise TargetError(_stuck(excess))
            else:
                history.append((bundle, self.steps[bundle]))
                changed = (bundle, *self._ranking.remove(bundle, self.steps[bundle] - moves[bundle]))
                self.steps[bundle] = moves[bundle]
            for b in changed:
                self._prices.pop(b, None)
        for bundle, before in reversed(history):  # the last moves may have gone further than needed
            more = [*self.steps[:bundle], before, *self.steps[bundle + 1 :]]
            if self.steps[bundle] < before and not self._excess(_units(self._graph, more), budget):
                self.steps = more

    def _excess(self, units: np.ndarray, budget: Budget) -> dict[str, float]:
        """Return how much of each quantity is beyond the budget; nothing where it holds."""
        amounts = {q: self.blocks.cost.amount(q, units) for q in budget}
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


def _stuck(excess: Mapping[str, float]) -> str:
    beyond = ", ".join(in_units(quantity, amount) for quantity, amount in excess.items())
    return (
        f"no more channels may go, and {beyond} would still have to: the images do not show what the inner blocks are "
        "worth; ask for less, or give other images."
    )


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
