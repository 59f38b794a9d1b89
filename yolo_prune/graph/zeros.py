"""Zeros among the weights of a network: which layers may have them, and how many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from yolo_prune.graph.layers import is_constant, is_grouped

INPUTS_OF_FOUR, OUTPUTS_OF_FOUR = 16, 8
"""Multiples that the channels of a layer with two of four must be of, as in NVIDIA's own tool (ASP)."""


def sparse_layers(
    model: nn.Module, is_ignored: Callable[[str], str | None] = lambda path: None
) -> dict[str, nn.Module]:
    """Return the layers whose weights may be zero: convolutions without groups, and linear layers.

    Grouped and depthwise convolutions have hardly any weights (0.3 % of YOLO11n's), and every one of them counts.

    Args:
        model: The network.
        is_ignored: Layer path -> the pattern that leaves it out, or None.
    """
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return {
        path: layer
        for path, layer in model.named_modules()  # those of INT8 training included
        if isinstance(layer, kinds) and not (is_grouped(layer) or is_constant(model, path) or is_ignored(path))
    }


def takes_two_of_four(layer: nn.Module) -> bool:
    """Whether a layer is of a kind and has channels for which two of four is faster anywhere."""
    if isinstance(layer, nn.ConvTranspose2d):
        return False
    return layer.weight.shape[1] % INPUTS_OF_FOUR == 0 and layer.weight.shape[0] % OUTPUTS_OF_FOUR == 0


def has_two_of_four(weight: torch.Tensor) -> bool:
    """Whether of every four neighbouring input channels at most two have a weight, for each output and tap.

    Args:
        weight: Of shape (out, in, ...).
    """
    if weight.ndim < 2 or weight.shape[1] % 4:
        return False
    fours = weight.detach().unflatten(1, (-1, 4))
    return bool(((fours != 0).sum(2) <= 2).all())


def zeros_of(layers: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Return what there is to know of each layer: layer path -> its figures.

    Returns:
        Layer path -> ``weights``, how many ``zeros`` there are among them, ``inputs`` of each output (channels times
        taps), ``outputs``, and whether it has two of four (``two_of_four``) in a shape for which that is made.
    """
    found = {}
    for path, layer in layers.items():
        weight, outputs = layer.weight.detach(), layer.weight.shape[isinstance(layer, nn.ConvTranspose2d)]
        found[path] = {
            "weights": weight.numel(),
            "zeros": int((weight == 0).sum()),
            "inputs": weight.numel() // outputs,
            "outputs": outputs,
            "two_of_four": takes_two_of_four(layer) and has_two_of_four(weight),
        }
    return found


def share_of_zeros(layers: dict[str, nn.Module]) -> float:
    """Return the share of the weights of these layers that are zero."""
    weights = [layer.weight.detach() for layer in layers.values()]
    return sum(int((of == 0).sum()) for of in weights) / max(1, sum(of.numel() for of in weights))
