"""Networks of random widths and depths, of whose times the weights of a latency model are fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn

from yolo_prune.config.targets import LATENCY, MACS
from yolo_prune.cost.latency import LatencyModel, Workload, digest_of, fit
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import TargetError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.importance.objective import copy_of
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest, make_plan, units_of
from yolo_prune.planning.ranking import ByScore
from yolo_prune.surgery.slicing import cut

SHARES = (0.5, 0.25, 0.75, 0.35, 0.65, 0.2, 0.85, 0.45)
"""Multiply-adds that the networks keep, over and over."""
MULTIPLES = (16, 8, 32)
"""Numbers whose multiples their widths are, over and over: which of them is fast is seen at equal multiply-adds."""
DEPTHS = (0.0, 0.6, 0.3, 0.0, 1.0)
"""Shares of the inner blocks that go, over and over: layers take time however narrow they are."""
EVERY = 4
"""One network of so many is left out of the fit and tells how wrong it is."""


def sample_plans(graph: ChannelGraph, number: int) -> list[PrunePlan]:
    """Return so many plans of random widths and depths; the first of them are always the same."""
    return [
        random_plan(graph, SHARES[i % len(SHARES)], MULTIPLES[i % len(MULTIPLES)], i, DEPTHS[i % len(DEPTHS)])
        for i in range(number)
    ]


def random_plan(graph: ChannelGraph, share: float, multiple: int, seed: int, without: float = 0.0) -> PrunePlan:
    """Return a plan that keeps a share of the multiply-adds, spread over the layers at random.

    Args:
        graph: Channel groups.
        share: Of the multiply-adds, to keep; where layers cannot lose as much, more is kept.
        multiple: Widths are multiples of it, or whole fractions.
        seed: Of what is random.
        without: Share of the inner blocks that go.
    """
    draw = np.random.default_rng(seed)
    scores = [draw.random(group.width) * draw.uniform(0.3, 3) for group in graph.groups]
    blocks = random_blocks(graph, without, draw)
    untimed = LatencyModel(dense=1.0, multiple=multiple)
    while True:
        budget = {MACS: CostModel(graph).macs() * share, LATENCY: np.inf}  # in widths that latency targets choose
        request = PlanRequest(budget, allocation="global", per_cost=False, latency=untimed)
        try:
            return make_plan(graph, ByScore(graph, scores), request, blocks)
        except TargetError:
            share = (1 + share) / 2


def random_blocks(graph: ChannelGraph, share: float, draw: np.random.Generator) -> set[str]:
    """Return a share of the inner blocks that can be removed, at random, with those that have to go before them."""
    blocks = [graph.blocks[i] for i in draw.permutation(len(graph.blocks))]
    gone: set[str] = set()
    for block in blocks:
        if len(gone) < share * len(blocks):
            gone |= {block.path, *block.after}
    return gone


def widths_of(graph: ChannelGraph, plan: PrunePlan) -> np.ndarray:
    """Return the widths of all layers after a cut, shape (2, layers): outputs, inputs; 0 where a block is removed."""
    return CostModel(graph, without=plan.blocks).widths_of(units_of(graph, plan))


def cut_networks(network: nn.Module, plans: Sequence[PrunePlan]) -> Iterator[nn.Module]:
    """Yield a cut copy of a network for each plan, on the CPU."""
    for plan in plans:
        pruned = copy_of(network).cpu().float()
        cut(plan, [pruned])
        yield pruned


def fitted(graph: ChannelGraph, dense: float, widths: Sequence[np.ndarray], seconds: Sequence[float]) -> LatencyModel:
    """Return the latency model of a network, and how wrong it is.

    Args:
        graph: Channel groups of the dense network.
        dense: Its seconds for one image.
        widths: Of each sample, in the order of `sample_plans` (see `widths_of`).
        seconds: Of each sample.
    """
    work = Workload(graph)
    checks = range(EVERY - 1, len(seconds), EVERY)
    rest = [i for i in range(len(seconds)) if i not in checks]
    model = fit(work, dense, [widths[i] for i in rest], [seconds[i] for i in rest])
    errors = tuple(abs(model.seconds(work, *widths[i]) / seconds[i] - 1) for i in checks)
    return LatencyModel(**{**vars(model), "errors": errors, "network": digest_of(graph)})
