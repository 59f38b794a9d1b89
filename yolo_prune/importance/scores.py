"""Importance scores of channel groups: torch-pruning's criteria on the tensors of the real network.

torch-pruning's importances expect its own `Group` of the network that they score. Here the groups were found on a
shadow copy, so a look-alike is built from the plain data: a list of (dependency, channels) with their root channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from yolo_prune.blocks import norm_width
from yolo_prune.graph.groups import ChannelGraph, ChannelGroup
from yolo_prune.graph.layers import AnyLayer, is_grouped, named_layers
from yolo_prune.importance.gradients import Gradients
from yolo_prune.importance.statistics import LayerStatistics

_CRITERIA: dict[str, Callable[[str | None], Any]] = {
    "l1": lambda normalizer: tp.importance.GroupMagnitudeImportance(p=1, normalizer=normalizer),
    "l2": lambda normalizer: tp.importance.GroupMagnitudeImportance(p=2, normalizer=normalizer),
    "bn_scale": lambda normalizer: tp.importance.BNScaleImportance(normalizer=normalizer),
    "lamp": lambda normalizer: tp.importance.LAMPImportance(),
    "fpgm": lambda normalizer: tp.importance.FPGMImportance(normalizer=normalizer),
    "random": lambda normalizer: tp.importance.RandomImportance(),
    "taylor": lambda normalizer: tp.importance.GroupTaylorImportance(normalizer=normalizer),
    "hessian": lambda normalizer: tp.importance.GroupHessianImportance(normalizer=normalizer),
    "activation": lambda normalizer: _ActivationImportance(normalizer=normalizer),
}

_TAKES = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)


class _ActivationImportance(tp.importance.GroupMagnitudeImportance):
    """Root mean square of what the consumers of a channel take; torch-pruning's has no place for statistics."""

    statistics: Mapping[nn.Module, LayerStatistics]

    def __call__(self, group: list[_Member]) -> torch.Tensor | None:
        scores, roots = [], []
        for member in group:
            seen = self.statistics.get(member.dep.layer)
            if seen is not None and member.dep.pruning_fn in _TAKES:
                scores.append((seen.energy / seen.taken).sqrt()[member.idxs])
                roots.append(member.root_idxs)
        return self._normalize(self._reduce(scores, roots), self.normalizer) if scores else None


@dataclass
class _Dependency:
    """The part of a `Dependency` that torch-pruning's importances read, under both names that they use."""

    layer: nn.Module
    pruning_fn: Callable[..., Any]

    @property
    def handler(self) -> Callable[..., Any]:
        """The pruning function."""
        return self.pruning_fn

    @property
    def target(self) -> _Dependency:
        """Something whose ``module`` is the layer."""
        return self

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.layer


@dataclass
class _Member:
    """The part of a group's item that they read: it unpacks to (dependency, channels)."""

    dep: _Dependency
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def importance_scores(
    model: nn.Module,
    graph: ChannelGraph,
    criterion: str,
    *,
    normalizer: str = "mean",
    seed: int = 0,
    gradients: Gradients | None = None,
    statistics: Mapping[str, LayerStatistics] | None = None,
) -> list[np.ndarray]:
    """Score every unit of every group; higher is more important.

    Args:
        model: The network that the graph was made from.
        graph: Its channel groups.
        criterion: ``l1`` and ``l2`` (group norms, Fang et al. 2023, section 3.3), ``bn_scale`` (Liu et al. 2017,
            "Network Slimming", section 3), ``lamp`` (Lee et al. 2021, section 3), ``fpgm`` (He et al. 2019,
            section 3.3), ``taylor`` (Molchanov et al. 2019, section 3.1), ``hessian`` (LeCun et al. 1989, "Optimal
            Brain Damage"), ``activation`` (root mean square of what the channel carries) or ``random``.
        normalizer: How scores of different groups are made comparable, in torch-pruning's words: ``mean``, ``sum``,
            ``max``, ``gaussian``, or ``none``. ``lamp`` and ``random`` have their own.
        seed: Makes ``random`` repeatable.
        gradients: What ``taylor`` and ``hessian`` need, in terms of the model's parameters.
        statistics: What ``activation`` needs.

    Returns:
        Per group an array of shape (width,).
    """
    score = _CRITERIA[criterion](None if normalizer == "none" else normalizer)
    layers = dict(named_layers(model))
    if criterion == "activation":
        score.statistics = {layers[path]: seen for path, seen in (statistics or {}).items()}
    order = {"taylor": gradients.first, "hessian": gradients.second}.get(criterion) if gradients else None
    with torch.random.fork_rng(devices=[]), _as_gradients(model, order, gradients):
        torch.manual_seed(seed)
        return [_scores(score, layers, group) for group in graph.groups]


@contextmanager
def _as_gradients(
    model: nn.Module, sums: Mapping[nn.Parameter, torch.Tensor] | None, gradients: Gradients | None
) -> Iterator[None]:
    """Let each parameter's ``grad`` be the mean of what was collected: that is where torch-pruning looks."""
    if sums is None or gradients is None:
        yield
        return
    pending = {p: p.grad for p in model.parameters()}
    try:
        for p in pending:
            p.grad = sums[p] / gradients.steps if p in sums else torch.zeros_like(p)
        yield
    finally:
        for p, grad in pending.items():
            p.grad = grad


def _scores(score: Any, layers: Mapping[str, AnyLayer], group: ChannelGroup) -> np.ndarray:
    members = []
    for (path, side), table in group.members.items():
        if _is_scored(layers[path], side):
            channels, roots = table.ravel(), np.repeat(np.arange(group.width), table.shape[1])
            rising = np.argsort(channels)  # torch-pruning sorts the channels, but not their roots with them
            dependency = _Dependency(layers[path], _pruning_fn(layers[path], side))
            members.append(_Member(dependency, channels[rising].tolist(), roots[rising].tolist()))
    result = score(members)
    if result is None:
        return np.ones(group.width)
    scores = result.detach().cpu().double().numpy()[: group.width]
    return np.nan_to_num(scores)  # a group without any gradient has no mean to be divided by


def _is_scored(layer: AnyLayer, side: str) -> bool:
    """Whether a criterion can read this side.

    It cannot read one value per channel, inputs that groups share out, and normalisations that torch-pruning does not
    know: all but those of BatchNorm's class.
    """
    if not isinstance(layer, nn.Module):
        return False
    if norm_width(layer) is not None:
        return isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return not (side == "in" and is_grouped(layer) and layer.groups < layer.in_channels)


def _pruning_fn(layer: nn.Module, side: str) -> Callable[..., Any]:
    """Return torch-pruning's function for a side of a layer: by it, importances know which dimension to read."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return tp.prune_batchnorm_out_channels
    if is_grouped(layer):
        return tp.prune_depthwise_conv_out_channels
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_out_channels if side == "out" else tp.prune_linear_in_channels
    return tp.prune_conv_out_channels if side == "out" else tp.prune_conv_in_channels
