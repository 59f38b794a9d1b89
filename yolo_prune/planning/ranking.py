"""The order in which units of channel groups go, and what their loss costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from yolo_prune.blocks import InnerBlock
from yolo_prune.graph.groups import ChannelGraph


class Ranking(Protocol):
    """The order in which units of each group go."""

    def error(self, bundle: int, steps: int) -> float:
        """Return the increase of the loss if so many more steps of a bundle are removed."""

    def remove(self, bundle: int, steps: int) -> Iterable[int]:
        """Remove them, and return the bundles whose errors change by that."""

    def order(self) -> list[np.ndarray]:
        """Return the units of each group, the most important first."""

    def block_error(self, block: InnerBlock) -> float:
        """Return the increase of the loss if an inner block is removed; infinite where nobody knows."""

    def remove_block(self, block: InnerBlock) -> Iterable[int]:
        """Remove it, and return the bundles whose errors change by that."""


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

    def block_error(self, block: InnerBlock) -> float:
        """Return that scores of channels do not tell."""
        return math.inf

    def remove_block(self, block: InnerBlock) -> Iterable[int]:
        """Do nothing: no score changes."""
        return ()
