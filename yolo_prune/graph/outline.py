"""Widths of a network that pruning does not decide, but the task or the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from yolo_prune.blocks import (
    adapter_for,
    is_read,
    shadow_of,
)
from yolo_prune.graph.forward import stock_forward, weightless_copy
from yolo_prune.graph.image import image_channels, layers_on_image
from yolo_prune.graph.layers import named_layers, widths


@dataclass(frozen=True)
class Outline:
    """Widths of a network that the task or the images decide.

    Attributes:
        fixed: Layer whose output width the task decides -> what it predicts.
        head: Path of a last row that nobody knows, so that nothing in it is ever cut, or None.
        on_image: Layers that take the image itself, normalised or not.
    """

    fixed: dict[str, str]
    head: str | None
    on_image: frozenset[str]


def outline(model: nn.Module) -> Outline:
    """Return the widths of a network that are decided elsewhere. It is only read, once for its widths.

    Raises:
        UnsupportedError: If its shapes depend on values.
    """
    layers = [(path, widths(layer)) for path, layer in named_layers(model)]
    key = str([*layers, *(type(module) for module in model.modules())])
    if key not in _OUTLINES:
        _OUTLINES.clear()
        _OUTLINES[key] = _outline(model)
    return _OUTLINES[key]


_OUTLINES: dict[str, Outline] = {}
"""That of the network which was asked for last: a run asks once an epoch."""


def _outline(model: nn.Module) -> Outline:
    copy = weightless_copy(model)
    image = torch.empty(1, image_channels(model), 64, 64, device="meta")
    run = stock_forward(copy, image)
    last = f"model.{len(copy.model) - 1}"
    is_known = adapter_for(copy.model[-1]) or is_read(copy.model[-1], run.calls.get(last, []))
    on_image = layers_on_image(copy, run, image)  # before the adapters change the copy
    return Outline(shadow_of(copy).fixed, None if is_known else last, on_image)
