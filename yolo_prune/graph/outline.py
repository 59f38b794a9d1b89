"""What a forward pass shows of a network: widths that the task or the images decide, and which norm takes what."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import nn

from yolo_prune.blocks import (
    adapter_for,
    is_read,
    shadow_of,
)
from yolo_prune.graph.forward import ForwardRun, stock_forward, weightless_copy
from yolo_prune.graph.image import image_channels, layers_on_image, smallest_image
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


def norms_behind(model: nn.Module) -> dict[str, str]:
    """Return which BatchNorm takes what a layer makes, and nothing else. It is only read, once for all its widths.

    Raises:
        UnsupportedError: If its shapes depend on values.
    """
    key = str([(path, type(module)) for path, module in model.named_modules()])
    if key not in _NORMS:
        _NORMS.clear()
        copy, run, _ = _forward(model)
        _NORMS[key] = _norms(copy, run)
    return _NORMS[key]


_NORMS: dict[str, dict[str, str]] = {}
"""Those of the network which was asked for last: a scan of its layers asks for each of them."""


def _forward(model: nn.Module) -> tuple[nn.Module, ForwardRun, torch.Tensor]:
    """Return a copy of a network without weights, what its forward pass shows, and the image that it took."""
    copy = weightless_copy(model)
    image = torch.empty(1, image_channels(model), *smallest_image(model), device="meta")
    return copy, stock_forward(copy, image), image


def _outline(model: nn.Module) -> Outline:
    copy, run, image = _forward(model)
    last = f"model.{len(copy.model) - 1}"
    is_known = adapter_for(copy.model[-1]) or is_read(copy.model[-1], run.calls.get(last, []))
    on_image = layers_on_image(copy, run, image)  # before the adapters change the copy
    return Outline(shadow_of(copy).fixed, None if is_known else last, on_image)


def _norms(model: nn.Module, run: ForwardRun) -> dict[str, str]:
    """Return which BatchNorm takes what a layer makes: in each of its calls this one, which takes nothing else."""
    made = {id(result): path for path, _ in named_layers(model) for _, result in run.calls.get(path, ())}
    takers: dict[str, set[str]] = defaultdict(set)
    sources: dict[str, set[str]] = defaultdict(set)
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for (taken, *_), _ in run.calls.get(path, ()):
                source = made.get(id(taken), "")
                takers[source].add(path)
                sources[path].add(source)
    alone = {path: norm for path, (norm, *others) in takers.items() if path and not others}
    return {path: norm for path, norm in alone.items() if sources[norm] == {path}}
