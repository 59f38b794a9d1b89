"""Which layers lose how much, found by trying: an evolution strategy over one strength per bundle of channel groups.

A bundle of twice the strength loses twice the share of its channels, and all strengths together land on the target.
Each candidate is cut and reconstructed as a run would do it, and held-out images judge it (as in Li et al. 2020,
"EagleEye", section 3, where matched BatchNorms alone stand for the training that follows). The best few have offspring:
the geometric mean of two of them, each strength mutated by a log-normal factor. That is the (mu/2 + 1) strategy of
Beyer & Schwefel 2002, "Evolution strategies: A comprehensive introduction", with the logarithms of strengths as genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.planning.allocation import Budget, Ranking, make_plan, units_of
from yolo_prune.planning.sensitivity import Batches, Judge
from yolo_prune.utils.console import waiting

if TYPE_CHECKING:
    from yolo_prune.plan import PrunePlan

PARENTS = 4
"""So many of the best candidates have offspring (mu)."""
SPREAD = 0.3
"""Standard deviation of a mutation, in logarithms: a strength changes by about a third."""
WEAKEST = 0.01
"""Strength of a bundle that loses nothing in a candidate to start from."""


@dataclass(frozen=True)
class SearchResult:
    """The best allocation that was tried.

    Attributes:
        strengths: Per bundle of channel groups, in proportion to the share of its channels that it loses.
        loss: Training loss per image on the held-out images after the cut and its reconstruction.
        history: The losses of all candidates in the order in which they were tried: equal strengths, the shares of the
            ``global`` allocation, and their offspring.
    """

    strengths: tuple[float, ...]
    loss: float
    history: tuple[float, ...]

    def tolerance(self, bundle: int, share: float) -> float:
        """Return what `make_plan` takes: the bundle whose share is lowest for its strength goes next."""
        return _tolerance(self.strengths, bundle, share)


def search(
    model: nn.Module,
    graph: ChannelGraph,
    ranking: Callable[[], Ranking],
    budget: Budget,
    calibration: Batches,
    held_out: Batches,
    *,
    candidates: int = 16,
    weights: bool = True,
    seed: int = 0,
    **options: Any,
) -> SearchResult:
    """Search for the allocation that leaves the lowest loss.

    Args:
        model: The network; it is only read.
        graph: Its channel groups.
        ranking: Makes a fresh ranking of its units; each candidate uses one up.
        budget: What every candidate lands on.
        calibration: Batches whose images reconstruct a candidate.
        held_out: Batches that judge it; none of their images should be among the others.
        candidates: How many are tried, >= 1; the first two are what the offspring descend from.
        weights: Whether the run solves weights anew after a cut.
        seed: Of parents and mutations.
        **options: What `make_plan` takes beside: ``per_cost``, ``round_to``, ``limits``, ``dense_widths``.

    Raises:
        TargetError: If the target lies below what the free channels allow.
    """
    judge, rng = Judge(model, calibration, held_out), np.random.default_rng(seed)

    def plan(**how: Any) -> PrunePlan:
        return make_plan(graph, ranking(), budget, **how, **options)

    kept = units_of(graph, plan(allocation="global"))
    shares = np.array([1 - kept[b.groups[0]] / graph.groups[b.groups[0]].width for b in graph.bundles])
    starts = [np.ones(len(shares)), np.maximum(shares, WEAKEST)]
    tried: list[tuple[float, np.ndarray]] = []
    with waiting("trying allocations", candidates) as step:
        for n in range(candidates):
            if n < len(starts):
                strengths = starts[n]
            else:
                best = sorted(tried, key=itemgetter(0))[:PARENTS]
                one, other = (best[i][1] for i in rng.choice(len(best), 2, replace=False))
                strengths = np.sqrt(one * other) * np.exp(SPREAD * rng.standard_normal(len(shares)))
            candidate = plan(allocation="tolerance", tolerance=partial(_tolerance, strengths))
            tried.append((judge.loss(candidate, weights=weights), strengths))
            step()
    loss, strengths = min(tried, key=itemgetter(0))
    return SearchResult(tuple(strengths.tolist()), loss, tuple(loss for loss, _ in tried))


def _tolerance(strengths: Sequence[float] | np.ndarray, bundle: int, share: float) -> float:
    return float(share / strengths[bundle])
