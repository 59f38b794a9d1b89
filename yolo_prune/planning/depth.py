"""Inner blocks as moves of an allocation: which of them costs less, for what it saves, than the next channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from yolo_prune.blocks import InnerBlock
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.planning.ranking import Ranking
from yolo_prune.utils.paths import is_inside


def removable_blocks(graph: ChannelGraph, held: Callable[[str], bool]) -> list[InnerBlock]:
    """Return the inner blocks that may go.

    Args:
        graph: Channel groups, with all inner blocks.
        held: Layer path -> whether the block that it is in stays.
    """
    stays = [path for path in graph.layers if held(path)]
    may_go = {b.path: b for b in graph.blocks if not any(is_inside(path, {b.path}) for path in stays)}
    return [block for block in may_go.values() if may_go.keys() >= set(block.after)]


class BlockMoves:
    """The inner blocks of a network that are still there, and what it costs without those that are gone.

    Args:
        graph: The network's channel groups, with its inner blocks.
        latency: What has been measured of the network.
        ranking: Knows by how much the loss grows.
        held: Layer path -> whether the block that it is in stays.
        gone: Paths of those that are gone from the start.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        latency: LatencyModel | None,
        ranking: Ranking,
        held: Callable[[str], bool],
        gone: Iterable[str] = (),
    ) -> None:
        self.gone = set(gone)
        """Paths of those that have been removed."""
        self._graph, self._latency, self._ranking = graph, latency, ranking
        self._left = [b for b in removable_blocks(graph, held) if not is_inside(b.path, self.gone)]
        self.cost = CostModel(graph, latency, self.gone)
        """Cost of the network without them."""
        self._without: dict[str, CostModel] = {}

    def cheaper(self, units: np.ndarray, counted: Mapping[str, float], price: float) -> InnerBlock | None:
        """Return the block whose removal costs least for what it saves, if that is less than a price.

        Args:
            units: Kept per group.
            counted: Quantity -> the amount that counts as one.
            price: Increase of the loss per saving of what the next channels would cost.
        """
        best, now = None, {quantity: self.cost.amount(quantity, units) for quantity in counted}
        for block in self._left:
            error = self._ranking.block_error(block) if self.gone.issuperset(block.after) else np.inf
            if not error < np.inf:
                continue
            if block.path not in self._without:
                self._without[block.path] = CostModel(self._graph, self._latency, {*self.gone, block.path})
            left = self._without[block.path]
            saved = sum((now[q] - left.amount(q, units)) / of for q, of in counted.items())
            if (asked := error / max(saved, 1e-12)) < price:
                best, price = block, asked
        return best

    def remove(self, block: InnerBlock) -> Iterable[int]:
        """Remove a block, and return the bundles whose errors change by that."""
        self.gone.add(block.path)
        self._left = [b for b in self._left if not is_inside(b.path, self.gone)]
        self.cost, self._without = self._without[block.path], {}
        return self._ranking.remove_block(block)
