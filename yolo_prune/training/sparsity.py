"""Sparsity learning before the first cut: a penalty lets whole units fade, so that removing them costs less.

The penalty is no term of the loss: its gradient is added when the optimizer steps. In Ultralytics' ``optimizer_step``
AMP's loss scale has been undone and the gradients have been clipped by then. So the penalty is neither scaled nor
clipped (other tools add theirs after ``backward()``, where its weight follows the loss scale), it counts once however
many batches a step accumulates, and a step that the scaler skips, for gradients that are not finite, adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.layers import named_layers, tensors, widths

KINDS = ("bn_scale", "group_lasso")

_Units = dict[str, dict[str, np.ndarray]]
"""Layer path -> side -> number of each channel's unit; 0 for none."""

_TINY = 1e-12
"""Smallest norm to divide by."""


class Sparsity:
    """Adds the gradient of a penalty to the gradients of the loss, at every step of an optimizer.

    - ``bn_scale``: strength * sum of the absolute scales of BatchNorms (Liu et al. 2017, "Network Slimming",
      section 3).
    - ``group_lasso``: strength * sum over units of sqrt(number of weights) * norm of the weights (Yuan & Lin 2006,
      "Model selection and estimation in regression with grouped variables"; Wen et al. 2016, "Learning Structured
      Sparsity", section 3).

    The weights of a unit are rows of the layers that make its channels, scales of their normalisations, and columns of
    the layers that take them (of a grouped convolution only rows), but no biases, and no parameters of blocks with one
    value per channel. A weight in the row of one unit and the column of another counts in both, and twice where they
    are the same unit. Locked units, frozen weights and weights without a gradient get
    nothing. Whatever an optimizer does with gradients (momentum, moments, orthogonalisation) it does with the sum.

    Args:
        model: The network in training, on its device. A cut replaces its parameters, so `detach` before.
        graph: Its channel groups.
        kind: One of `KINDS`.
        strength: Factor of the penalty, > 0.

    Raises:
        ConfigError: If the kind is unknown or finds nothing to act on, or if the strength is not positive and finite.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, kind: str, strength: float) -> None:
        if kind not in KINDS:
            raise ConfigError(f"the kind of sparsity, {kind!r}, is unknown; use one of {', '.join(KINDS)}.")
        if not 0 < strength < math.inf:
            raise ConfigError(f"the strength of sparsity, {strength!r}, is not positive and finite; try 1e-4.")
        self._kind, self._strength = kind, strength
        self._handle: Any = None
        of = nn.BatchNorm2d if kind == "bn_scale" else nn.Module
        self._weights = list(_weights(model, _free_units(model, graph), of))
        if not self._weights:
            raise ConfigError(
                f"{kind} sparsity finds nothing to act on beside {len(graph.locked())} locked layers; use another kind."
            )
        if kind == "group_lasso":
            self._units = torch.cat([u for w in self._weights for u in w.units.values()])
            self._n_units = 1 + int(self._units.max())
            self._root_sizes = self._per_unit(torch.ones_like).sqrt()
            self._root_sizes[0] = 0
        else:
            self._masks = [w.spread((u > 0).to(w.tensor) for u in w.units.values()).clamp(max=1) for w in self._weights]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Act on every step of an optimizer from now on, and of no other."""
        self.detach()
        self._handle = optimizer.register_step_pre_hook(self._add)

    def detach(self) -> None:
        """Act no more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _add(self, *_: Any) -> None:
        factors = self._shrinkage() if self._kind == "group_lasso" else self._masks
        for w, factor in zip(self._weights, factors, strict=True):
            p = w.tensor
            if p.grad is not None and p.requires_grad:
                p.grad.addcmul_(p.sign() if self._kind == "bn_scale" else p, factor, value=self._strength)

    def _shrinkage(self) -> Iterator[torch.Tensor]:
        """Yield for every weight what to multiply it with: sqrt(size) / norm of its units."""
        shrinkage = self._root_sizes / self._per_unit(torch.square).sqrt().clamp_min(_TINY)
        parts = iter(shrinkage[self._units].split([len(u) for w in self._weights for u in w.units.values()]))
        for w in self._weights:
            yield w.spread(next(parts) for _ in w.units)

    def _per_unit(self, of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the sum of ``of(weight)`` over the weights of each unit, shape (units,)."""
        sums = torch.cat([s for w in self._weights for s in w.sums(of(w.tensor.detach()))])
        return sums.new_zeros(self._n_units).index_add_(0, self._units, sums)  # one call for all weights


class _Weight(NamedTuple):
    """A layer's weight, shape (rows, columns, ...) or (rows,).

    Attributes:
        tensor: The parameter.
        units: Dimension -> unit of each row or column.
    """

    tensor: nn.Parameter
    units: dict[int, torch.Tensor]

    def sums(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return the sums of values of the weight's shape over each row or column, for each dimension in ``units``."""
        rows = values.reshape(len(values), -1)
        return [rows.sum(0).reshape(values.shape[1], -1).sum(1) if dim else rows.sum(1) for dim in self.units]

    def spread(self, values: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return row's value + column's value for each weight, in a shape that broadcasts to the weight's."""
        dims = range(self.tensor.ndim)
        views = [v.view([-1 if d == dim else 1 for d in dims]) for dim, v in zip(self.units, values, strict=True)]
        return reduce(torch.add, views)


def _weights(model: nn.Module, units: _Units, kind: type[nn.Module]) -> Iterator[_Weight]:
    """Yield the weights of layers of a kind that have a unit."""
    for path, layer in named_layers(model):
        if isinstance(layer, kind):
            for name, tensor, by_dim in tensors(layer, {side: u.tolist() for side, u in units[path].items()}):
                if name == "weight" and any(u.any() for u in by_dim.values()):
                    yield _Weight(tensor, {dim: u.to(tensor.device) for dim, u in by_dim.items()})


def _free_units(model: nn.Module, graph: ChannelGraph) -> _Units:
    """Number the units of all groups that can be cut, from 1."""
    layers, last = named_layers(model), 0
    units = {path: {side: np.zeros(n, int) for side, n in widths(layer).items()} for path, layer in layers}
    for group in (graph.groups[i] for bundle in graph.bundles if not bundle.locked for i in bundle.groups):
        for (path, side), table in group.members.items():
            units[path][side][table] = last + 1 + np.arange(group.width)[:, None]
        last += group.width
    return units
