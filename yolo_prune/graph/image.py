"""The image that a network takes: its size and its channels, and which layers take it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import guess_model_task

from yolo_prune.blocks import (
    flat,
)
from yolo_prune.errors import ConfigError, UnsupportedError, short_repr
from yolo_prune.graph.forward import ForwardRun, unreadable, weightless_copy


class _FirstLayerError(Exception):
    """Ends a forward pass at the first layer that has channels, and tells its width and that of what it takes."""


def image_channels(model: nn.Module) -> int:
    """Return the number of channels of an input image, by the first layer that runs.

    Raises:
        UnsupportedError: If nothing that runs has channels.
    """
    assumed = int((getattr(model, "yaml", None) or {}).get("channels", 3))
    copy = weightless_copy(model)

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        width = layer.num_features if isinstance(layer, nn.BatchNorm2d) else layer.in_channels
        raise _FirstLayerError(width, inputs[0].shape[1])

    layers = [m for m in copy.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.BatchNorm2d))]
    for layer in layers:
        layer.register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            if layers:
                copy(torch.empty(1, assumed, 64, 64, device="meta"))
    except _FirstLayerError as e:
        width, taken = e.args
        return int(assumed * width // taken)
    except Exception as e:  # whatever a network of foreign blocks raises: what it is, `trace` tells
        raise unreadable(model, e) from e
    raise UnsupportedError(f"{type(model).__name__} has no convolution to cut; pass YOLO('….pt') or its .model.")


def image_size(model: nn.Module, asked: Any = None) -> int | tuple[int, int]:
    """Return the image size in pixels, or (height, width), that is asked for, else that a network was trained for.

    Raises:
        ConfigError: If what is asked for is no size.
    """
    if asked is not None:
        height, width = height_and_width(asked)
        return height if height == width else (height, width)
    args = getattr(model, "args", None) or {}
    own = args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)
    return own or (224 if guess_model_task(model) == "classify" else 640)


def stride_of(model: nn.Module) -> int:
    """Return what the sides of an image are multiples of, as Ultralytics has it."""
    return max([32, *(int(strides.max()) for strides in flat(getattr(model, "stride", ())))])


def smallest_image(model: nn.Module) -> tuple[int, int]:
    """Return the height and width at which every map of a network has more than one value."""
    side = 2 * stride_of(model)
    return side, side


def height_and_width(imgsz: Any) -> tuple[int, int]:
    """Return height and width in pixels of what a user gives as image size.

    Raises:
        ConfigError: If it is neither a whole number above 0 nor a pair of them.
    """
    pair = tuple(imgsz) if isinstance(imgsz, (list, tuple)) else (imgsz, imgsz)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or not 0 < n < 1e5 for n in pair):
        raise ConfigError(
            f"imgsz={short_repr(imgsz)} is no size in pixels; give a side such as 640, or (height, width)."
        )
    return pair


def layers_on_image(copy: nn.Module, run: ForwardRun, image: torch.Tensor) -> frozenset[str]:
    """Return the layers that take the image, as far as normalisations hand it on, and the first that runs at all."""
    modules = dict(copy.named_modules())
    layers = [path for path in run.calls if isinstance(modules[path], (nn.modules.conv._ConvNd, nn.Linear))]
    found, images = set(layers[:1]), {id(image)}
    for path, calls in run.calls.items():  # in the order in which they ran
        taken, made = calls[0]
        if any(id(t) in images for t in flat(taken)):
            if isinstance(modules[path], nn.BatchNorm2d):
                images |= {id(t) for t in flat(made)}
                found.add(path)
            elif path in layers:
                found.add(path)
    return frozenset(found)
