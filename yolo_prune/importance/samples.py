"""Positions of a layer: what it takes and makes at a sample of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from yolo_prune.graph.layers import is_constant


def is_solvable(model: nn.Module, path: str, layer: object) -> bool:
    """Whether a layer's outputs are linear in its weights, position by position, and its weights no constants."""
    if isinstance(layer, nn.ConvTranspose2d):
        apart = layer.kernel_size == layer.stride and not any((*layer.padding, *layer.output_padding))
        return apart and layer.groups == 1
    return isinstance(layer, (nn.Conv2d, nn.Linear)) and not is_constant(model, path)


def kernel_taps(layer: nn.Module) -> int:
    """Return the number of positions of a kernel."""
    return layer.kernel_size[0] * layer.kernel_size[1]


def _at(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return values of shape (B, channels, all) at positions of shape (B, m), shape (B, channels, m)."""
    return rows.gather(2, positions[:, None].expand(-1, rows.shape[1], -1))


def by_channel(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what a layer takes or makes as (B, channels, positions)."""
    return x.reshape(len(x), -1, x.shape[-1]).mT if isinstance(layer, nn.Linear) else x.flatten(2)


def outputs_at(layer: nn.Module, y: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return a layer's outputs at positions, shape (B, m, channels); a transposed one makes a patch per position."""
    if isinstance(layer, nn.ConvTranspose2d):
        return _at(F.unfold(y, layer.kernel_size, stride=layer.stride), positions).mT
    return _at(by_channel(layer, y), positions).mT


def of_channels(layer: nn.Module, outputs: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """Return the outputs of some channels."""
    if isinstance(layer, nn.ConvTranspose2d):
        kept = [channel * kernel_taps(layer) + tap for channel in kept for tap in range(kernel_taps(layer))]
    return outputs[..., kept]


def inputs_at(layer: nn.Module, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the unfolded inputs of a layer at positions, shape (B, m, channels, taps)."""
    if isinstance(layer, (nn.Linear, nn.ConvTranspose2d)):
        return _at(by_channel(layer, x), positions).mT[..., None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    columns = padded.shape[3]
    reach = layer.dilation[1] * (layer.kernel_size[1] - 1)
    columns_out = (columns - reach - 1) // layer.stride[1] + 1
    row, column = positions // columns_out * layer.stride[0], positions % columns_out * layer.stride[1]
    down, right = (torch.arange(n, device=x.device) * d for n, d in zip(layer.kernel_size, layer.dilation, strict=True))
    taps = (down[:, None] * columns + right).flatten()
    at = (row * columns + column)[..., None] + taps
    return _at(padded.flatten(2), at.flatten(1)).unflatten(2, at.shape[1:]).transpose(1, 2)
