"""The reconstruction error as a criterion: how much the loss grows if a unit goes and its consumers make up for it.

A layer that reads n channels with covariance C and weights W can replace channel i by the others as well as least
squares allows; what is lost is |W_i|^2 / (C^-1)_ii (LeCun et al. 1989, "Optimal Brain Damage"; Hassibi & Stork 1992,
"Optimal Brain Surgeon", section 2; for channels and layer outputs, He, Zhang & Sun 2017). Errors of the outputs count
by the products G of their gradients of the loss, W_i' G W_i, so that errors of different layers add up and can be
compared: C and G are the two factors of the Fisher information in K-FAC (Grosse & Martens 2016, section 3). C is that
of the unfolded inputs: a channel of a 3 x 3 kernel takes nine rows of it with it.

After a removal the consumers' weights and covariances are those of the network that has made up for it, so that the
next unit is judged in the network that it would be removed from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from yolo_prune.blocks import InnerBlock
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.layers import is_grouped, named_layers
from yolo_prune.importance.statistics import LayerStatistics
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.paths import is_inside

RIDGE = 1e-3
"""Added to the covariance's diagonal, relative to its mean: what few images show is not exact."""
HEAD_WEIGHT_SEPARABLE, HEAD_WEIGHT_END_TO_END = 5.0, 25.0
"""How much errors in a head of depthwise convolutions count, and in one whose boxes no suppression follows.

Layers behind an error make up for a part of it once they are solved. Behind a head there are none, and its depthwise
layers can make up for nothing.
"""

BLOCK_WEIGHT = 0.1
"""How much errors of whole blocks count, compared with those of channels.

Layers behind make up for most of one large error, once they are solved. Those of channels are small, one at each layer,
and cost more than their sum.
"""


class Elimination:
    """Ranks units by reconstruction error, and changes its mind as they are removed (see `ranking.Ranking`).

    Args:
        model: The network; it is only read.
        graph: Its channel groups.
        statistics: What its layers take and make.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, statistics: Mapping[str, LayerStatistics]) -> None:
        self._graph = graph
        self._consumers: dict[str, _Consumer] = {}
        self._lost_outputs: dict[str, torch.Tensor] = {}
        layers, head = dict(named_layers(model)), f"model.{len(model.model) - 1}."
        weight_of_head = head_weight(model.model[-1])
        with progress_bar("weighing channels", len(graph.layers)) as step:
            for path, layer in graph.layers.items():
                step()
                seen = statistics.get(path)
                if seen is None:
                    continue
                fisher = seen.fisher() * (weight_of_head if path.startswith(head) else 1)
                self._lost_outputs[path] = fisher.diagonal() * seen.variance()
                weight = getattr(layers[path], "weight", None)
                if layer.groups == 1 and weight is not None and seen.products is not None:
                    transposed = isinstance(layers[path], nn.ConvTranspose2d)
                    by_output = (weight.detach().transpose(0, 1) if transposed else weight.detach()).cpu().double()
                    by_tap = by_output.flatten(2) if by_output.ndim > 2 else by_output[..., None]
                    positions = by_tap.shape[2] if transposed else 1  # each tap has its own
                    self._consumers[path] = _Consumer(by_tap, seen.covariance(), fisher / positions)
        self._block_errors: dict[str, float] = {}
        self._added = {block.path: self._layers_that_add(block) for block in graph.blocks if not block.reader}
        self._priced_by: dict[str, set[str]] = defaultdict(set)
        """Layer -> inner blocks whose errors depend on it."""
        for block in graph.blocks:
            for path in [block.reader] if block.reader else [path for path, _ in self._added[block.path]]:
                self._priced_by[path].add(block.path)
        self._alive = [np.ones(group.width, dtype=bool) for group in graph.groups]
        self._removed: list[list[int]] = [[] for _ in graph.groups]
        bundle_of = {g: b for b, bundle in enumerate(graph.bundles) for g in bundle.groups}
        self._touching: dict[str, set[int]] = defaultdict(set)
        for g, group in enumerate(graph.groups):
            for path, _ in group.members:
                self._touching[path].add(bundle_of[g])

    def error(self, bundle: int, steps: int) -> float:
        """Return by how much the loss grows if so many more steps of a bundle go."""
        lanes = self._graph.bundles[bundle]
        parts = [self._unit_errors(g) for g in lanes.groups]
        chosen = (np.partition(e, n * steps - 1)[: n * steps] for e, n in zip(parts, lanes.per_step, strict=True))
        return float(sum(e.sum() for e in chosen))

    def remove(self, bundle: int, steps: int) -> set[int]:
        """Remove the least important steps of a bundle, and return the bundles whose errors change by that."""
        lanes = self._graph.bundles[bundle]
        changed: set[int] = set()
        for g, per_step in zip(lanes.groups, lanes.per_step, strict=True):
            units = np.argsort(self._unit_errors(g), kind="stable")[: per_step * steps]
            self._alive[g][units] = False
            self._removed[g] += units.tolist()
            for (path, side), table in self._graph.groups[g].members.items():
                changed |= self._touching[path]
                for block in self._priced_by[path]:
                    self._block_errors.pop(block, None)
                channels = table[units].ravel()
                if side == "out" and path in self._lost_outputs:
                    self._lost_outputs[path][channels] = 0
                if path in self._consumers:
                    consumer = self._consumers[path]
                    consumer.drop_outputs(channels) if side == "out" else consumer.drop_inputs(channels)
        return changed

    def block_error(self, block: InnerBlock) -> float:
        """Return by how much the loss grows if an inner block goes.

        What a layer reads of it beside other inputs, these make up for. What it adds to its own input is lost without a
        substitute: nobody knows how well the input alone would do.
        """
        if block.path not in self._block_errors:
            if block.reader:
                reader = self._consumers.get(block.reader)
                error = np.inf if reader is None else reader.error_of(block.channels)
            else:
                added = self._added[block.path]
                lost = (float(self._lost_outputs[path][channels].sum()) for path, channels in added)
                error = sum(lost) if added else np.inf
            self._block_errors[block.path] = BLOCK_WEIGHT * float(error)
        return self._block_errors[block.path]

    def remove_block(self, block: InnerBlock) -> set[int]:
        """Remove an inner block, and return the bundles whose errors change by that."""
        changed: set[int] = set()
        for path in self._graph.layers:
            if is_inside(path, {block.path}):
                changed |= self._touching[path]
                self._consumers.pop(path, None)
                self._lost_outputs.pop(path, None)
        if block.reader:
            self._consumers[block.reader].drop_inputs(np.array(block.channels))
            changed |= self._touching[block.reader]
        self._block_errors.clear()
        return changed

    def order(self) -> list[np.ndarray]:
        """Return the units of each group, the most important first."""
        return [
            np.array([*np.flatnonzero(alive), *reversed(gone)], dtype=np.int64)
            for alive, gone in zip(self._alive, self._removed, strict=True)
        ]

    def _layers_that_add(self, block: InnerBlock) -> list[tuple[str, np.ndarray]]:
        """Return the layers in a block, with their outputs, that make what it adds to its input."""
        found = []
        for group in self._graph.groups:
            makers = [path for path, side in group.members if side == "out" and path in self._lost_outputs]
            inside = [path for path in makers if is_inside(path, {block.path})]
            if len(inside) < len(makers):
                found += [(path, group.members[path, "out"].ravel()) for path in inside]
        return found

    def _unit_errors(self, g: int) -> np.ndarray:
        group = self._graph.groups[g]
        read = [
            self._consumers[path].errors()[table].sum(1)
            for (path, side), table in group.members.items()
            if side == "in" and path in self._consumers
        ]
        # What no layer reads, such as the keys of an attention, is lost without a substitute.
        lost = read or [
            self._lost_outputs[path][table].sum(1).numpy()
            for (path, side), table in group.members.items()
            if side == "out" and path in self._lost_outputs
        ]
        errors = np.sum(lost, axis=0) if lost else np.zeros(group.width)
        return np.where(self._alive[g], errors, np.inf)


def head_weight(head: nn.Module) -> float:
    """Return how much errors in a head count, compared with those before it."""
    if getattr(head, "one2one_cv2", None) is not None:
        return HEAD_WEIGHT_END_TO_END
    is_separable = any(is_grouped(layer) for layer in head.modules())
    return HEAD_WEIGHT_SEPARABLE if is_separable else 1.0


class _Consumer:
    """A layer that reads channels, as it is after making up for those that went.

    Args:
        weight: Weights, shape (out, in, taps).
        covariance: Of the unfolded inputs, shape (in x taps, in x taps), or of the inputs over all taps, (in, in).
        fisher: What an error of the outputs costs, shape (out, out).
    """

    def __init__(self, weight: torch.Tensor, covariance: torch.Tensor, fisher: torch.Tensor) -> None:
        outputs, inputs = weight.shape[:2]
        self._rows = len(covariance) // inputs
        """Of the covariance per input: each tap is a row of its own, or they share one."""
        by_tap = weight.permute(1, 2, 0)  # (in, taps, out)
        self._weight = by_tap.reshape(len(covariance), -1).contiguous()  # (in x rows, taps of a row x out)
        self._outputs, self._fisher = outputs, fisher
        self._priced = (self._by_output(self._weight) @ fisher).flatten(1)
        """The weights times what errors of their outputs cost; kept up with them, since that product takes long."""
        diagonal = covariance.diagonal().mean().clamp_min(1e-30)
        self._inverse = torch.linalg.inv(covariance + RIDGE * diagonal * torch.eye(len(covariance), dtype=torch.double))
        self._errors: np.ndarray | None = None

    def errors(self) -> np.ndarray:
        """Return the error if each input is removed, shape (in,)."""
        if self._errors is None:
            n = self._rows
            weight, priced = (of.unflatten(0, (-1, n)) for of in (self._weight, self._priced))  # (in, rows, values)
            blocks = self._inverse.unflatten(0, (-1, n)).unflatten(2, (-1, n)).diagonal(dim1=0, dim2=2).movedim(2, 0)
            self._errors = (priced * torch.linalg.solve(blocks, weight)).sum((1, 2)).numpy()
        return self._errors

    def error_of(self, channels: Sequence[int]) -> float:
        """Return the error if several inputs are removed together."""
        gone = (np.array(channels)[:, None] * self._rows + np.arange(self._rows)).ravel()
        makes_up = torch.linalg.solve(self._inverse[gone][:, gone], self._weight[gone])
        return float((self._priced[gone] * makes_up).sum())

    def drop_inputs(self, channels: np.ndarray) -> None:
        """Remove inputs; the weights of the others make up for them."""
        gone = (channels[:, None] * self._rows + np.arange(self._rows)).ravel()
        rows = self._inverse[gone]
        makes_up = torch.linalg.solve(rows[:, gone], rows).T
        for values in (self._weight, self._priced):
            values.addmm_(makes_up, values[gone], alpha=-1)
        self._inverse.addmm_(makes_up, rows, alpha=-1)
        self._weight[gone] = self._priced[gone] = self._inverse[gone] = self._inverse[:, gone] = 0
        self._inverse[gone, gone] = 1
        self._errors = None

    def drop_outputs(self, channels: np.ndarray) -> None:
        """Remove outputs, whose errors do not count any more."""
        weight, priced = self._by_output(self._weight), self._by_output(self._priced)
        priced -= weight[:, :, channels] @ self._fisher[channels]
        weight[:, :, channels] = 0
        self._errors = None

    def _by_output(self, values: torch.Tensor) -> torch.Tensor:
        """Return a view of values of shape (in x rows, taps of a row x out) as (in x rows, taps of a row, out)."""
        return values.unflatten(1, (-1, self._outputs))
