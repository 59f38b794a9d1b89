"""What stays: from channel groups, scores and a target to a plan.

Two parts: *allocation* decides how many units each bundle of channel groups keeps, so that the network meets the
target; *ranking* decides which units of a group those are, from the importance scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from yolo_prune.channels import ChannelGraph
from yolo_prune.cost import CostModel
from yolo_prune.errors import TargetError
from yolo_prune.plan import PrunePlan


def make_plan(
    graph: ChannelGraph,
    scores: Sequence[np.ndarray],
    target_macs: float,
    *,
    scope: str = "local",
    round_to: int = 1,
    max_pruning_ratio: float = 0.9,
    dense_widths: Mapping[str, int] | None = None,
) -> PrunePlan:
    """Choose the units that stay, so that the network lands on the target.

    Args:
        graph: The network's channel groups.
        scores: Per group, an array of shape (width,): higher is more important.
        target_macs: Multiply-adds to land on, from below and as close as whole channels allow.
        scope: ``local`` gives every bundle the same ratio, ``global`` removes the lowest normalised scores first.
        round_to: Kept widths are multiples of this.
        max_pruning_ratio: Largest share of its dense width that a group may lose.
        dense_widths: Output width of each layer before the run's first cut (default: as it is now).

    Raises:
        TargetError: If the target lies below what the free channels allow; the message names what is locked.
    """
    cost = CostModel(graph)
    options = check_reachable(graph, target_macs, round_to, max_pruning_ratio, dense_widths)
    ranked = [np.argsort(-s, kind="stable") for s in scores]  # most important unit first
    kept = [bundle.steps for bundle in graph.bundles]
    if cost.macs() > target_macs:
        wish = _uniform(options) if scope == "local" else _by_score(graph, scores, ranked)
        kept = _land(graph, cost, options, wish, target_macs)
    return _to_plan(graph, cost, _units(graph, kept), ranked)


def check_reachable(
    graph: ChannelGraph,
    target_macs: float,
    round_to: int,
    max_pruning_ratio: float,
    dense_widths: Mapping[str, int] | None = None,
) -> list[np.ndarray]:
    """Return per bundle the numbers of steps that may be kept, ascending; a locked bundle has one.

    Raises:
        TargetError: If the network costs more than the target even at the lowest of them.
    """
    options = []
    for bundle in graph.bundles:
        layer = graph.layers[graph.groups[bundle.groups[0]].name]
        dense = (dense_widths or {}).get(layer.path, layer.out) / layer.out
        fewest = max(1, int(np.ceil(bundle.steps * dense * (1 - max_pruning_ratio) - 1e-9)))
        steps = np.arange(1, bundle.steps + 1)
        allowed = steps[(steps >= fewest) & (steps * bundle.stride % round_to == 0)]
        everything = np.array([bundle.steps])
        options.append(everything if bundle.locked else np.union1d(allowed, everything))
    cost, lowest = CostModel(graph), _units(graph, [o[0] for o in options])
    if cost.macs(lowest) > target_macs:
        raise TargetError(_unreachable(graph, cost.macs(), cost.macs(lowest), target_macs))
    return options


Wish = tuple[float, Callable[[float], np.ndarray]]
"""The strongest setting of an allocation, and the (real) number of kept steps that each bundle wishes at a setting."""


def _uniform(options: Sequence[np.ndarray]) -> Wish:
    """Every bundle loses the same share: the setting is the pruning ratio."""
    steps = np.array([o[-1] for o in options], dtype=float)
    return 1.0, lambda ratio: steps * (1 - ratio)


def _by_score(graph: ChannelGraph, scores: Sequence[np.ndarray], ranked: Sequence[np.ndarray]) -> Wish:
    """The least important steps of the whole network go first: the setting is how many of them."""
    free = [b for b, bundle in enumerate(graph.bundles) if not bundle.locked]
    step_scores, owner = [], []
    for b in free:
        bundle = graph.bundles[b]
        lanes = [
            (scores[g][ranked[g]] / max(float(scores[g].mean()), 1e-12))[::-1].reshape(bundle.steps, -1).mean(1)
            for g in bundle.groups
        ]
        step_scores.append(np.mean(lanes, axis=0))
        owner.append(np.full(bundle.steps, b))
    order = np.concatenate(owner)[np.argsort(np.concatenate(step_scores), kind="stable")]
    steps = np.array([bundle.steps for bundle in graph.bundles], dtype=float)
    return float(len(order)), lambda n: steps - np.bincount(order[: int(n)], minlength=len(steps))


def _land(
    graph: ChannelGraph, cost: CostModel, options: Sequence[np.ndarray], wish: Wish, target_macs: float
) -> list[int]:
    """Find the mildest setting that meets the target, then give back steps while the target still holds."""
    strongest, wished = wish

    def kept_at(setting: float) -> list[int]:
        return [int(o[np.abs(o - w).argmin()]) for o, w in zip(options, wished(setting), strict=True)]

    mild, strong = 0.0, strongest
    for _ in range(40):
        middle = (mild + strong) / 2
        if cost.macs(_units(graph, kept_at(middle))) <= target_macs:
            strong = middle
        else:
            mild = middle
    kept = kept_at(strong)
    shortfall = (wished(strong) - kept) / [o[-1] for o in options]
    for b in np.argsort(-shortfall, kind="stable"):
        position = int(np.searchsorted(options[b], kept[b]))
        if position + 1 < len(options[b]):
            more = [*kept[:b], int(options[b][position + 1]), *kept[b + 1 :]]
            if cost.macs(_units(graph, more)) <= target_macs:
                kept = more
    return kept


def _units(graph: ChannelGraph, kept_steps: Sequence[int]) -> np.ndarray:
    """Return kept units per group from kept steps per bundle."""
    units = np.zeros(len(graph.groups), dtype=np.int64)
    for bundle, steps in zip(graph.bundles, kept_steps, strict=True):
        for g, per_step in zip(bundle.groups, bundle.per_step, strict=True):
            units[g] = steps * per_step
    return units


def _to_plan(graph: ChannelGraph, cost: CostModel, kept: np.ndarray, ranked: Sequence[np.ndarray]) -> PrunePlan:
    removed: dict[tuple[str, str], set[int]] = {}
    for group, n, ranking in zip(graph.groups, kept, ranked, strict=True):
        for member, table in group.members.items():
            removed.setdefault(member, set()).update(table[ranking[n:]].ravel().tolist())
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


def _unreachable(graph: ChannelGraph, now: int, least: int, target_macs: float) -> str:
    reasons: dict[str, list[str]] = {}
    for entry in graph.locked():
        reasons.setdefault(entry["why"], []).append(entry["layer"])
    locked = "; ".join(f"{', '.join(layers)} ({why})" for why, layers in reasons.items())
    return (
        f"{target_macs / 1e6:.1f}M MACs asked, but {least / 1e6:.1f}M is the least that can be reached from "
        f"{now / 1e6:.1f}M ({least / now - 1:+.1%}): ask for less, raise max_pruning_ratio, lower round_to or ignore "
        f"fewer layers. Locked: {locked or 'nothing'}."
    )
