"""Importance scores of channel groups: torch-pruning's criteria on the tensors of the real network.

torch-pruning's importances expect its own `Group` of the network that they score. Here the groups were found on a
shadow copy, so a look-alike is built from the plain data: a list of (dependency, channels) with their root channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from yolo_prune.channels import ChannelGraph, ChannelGroup
from yolo_prune.layers import AnyLayer, is_grouped, named_layers

_CRITERIA: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "bn_scale": tp.importance.BNScaleImportance,
    "lamp": tp.importance.LAMPImportance,
    "fpgm": tp.importance.FPGMImportance,
    "random": tp.importance.RandomImportance,
}


@dataclass
class _Dependency:
    """What torch-pruning's importances read of a `Dependency`."""

    layer: nn.Module
    pruning_fn: Callable[..., Any]


@dataclass
class _Member:
    """What they read of a group's item: it unpacks to (dependency, channels)."""

    dep: _Dependency
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def importance_scores(model: nn.Module, graph: ChannelGraph, criterion: str, seed: int = 0) -> list[np.ndarray]:
    """Score every unit of every group; higher is more important.

    Args:
        model: The network that the graph was made from.
        graph: Its channel groups.
        criterion: ``l1`` and ``l2`` (group norms, Fang et al. 2023, section 3.3), ``bn_scale`` (Liu et al. 2017,
            "Network Slimming", section 3), ``lamp`` (Lee et al. 2021, section 3), ``fpgm`` (He et al. 2019,
            section 3.3) or ``random``.
        seed: Makes ``random`` repeatable.

    Returns:
        Per group an array of shape (width,), normalised by torch-pruning to a mean of about 1 (``lamp``: its own).
    """
    score = _CRITERIA[criterion]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = dict(named_layers(model))
        return [_scores(score, layers, group) for group in graph.groups]


def _scores(score: Any, layers: Mapping[str, AnyLayer], group: ChannelGroup) -> np.ndarray:
    members = [
        _Member(
            _Dependency(layer, _pruning_fn(layer, side)),
            table.ravel().tolist(),
            np.repeat(np.arange(group.width), table.shape[1]).tolist(),
        )
        for (path, side), table in group.members.items()
        for layer in [layers[path]]
        if _is_scored(layer, side)
    ]
    result = score(members)
    return np.ones(group.width) if result is None else result.detach().cpu().double().numpy()[: group.width]


def _is_scored(layer: AnyLayer, side: str) -> bool:
    """Whether a criterion can read this side: not that of one value per channel, nor inputs that groups share out."""
    shares_out = is_grouped(layer) and layer.groups < layer.in_channels
    return isinstance(layer, nn.Module) and not (side == "in" and shares_out)


def _pruning_fn(layer: nn.Module, side: str) -> Callable[..., Any]:
    """Return torch-pruning's function for a side of a layer: by it, importances know which dimension to read."""
    if isinstance(layer, nn.BatchNorm2d):
        return tp.prune_batchnorm_out_channels
    if is_grouped(layer):
        return tp.prune_depthwise_conv_out_channels
    if isinstance(layer, nn.Linear):
        return tp.prune_linear_out_channels if side == "out" else tp.prune_linear_in_channels
    return tp.prune_conv_out_channels if side == "out" else tp.prune_conv_in_channels
