"""Layers with channels: where each kind keeps its widths, and which dimensions of its tensors run over channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import nn
from ultralytics.nn.modules.block import DFL
from ultralytics.nn.modules.conv import DWConvTranspose2d

from yolo_prune.blocks import adapter_for, channel_dim, channel_parameters, inherited, norm_width, norms

AnyLayer: TypeAlias = nn.Module | nn.Parameter
"""A module of one of the kinds below, or a parameter of a block with one value per channel."""

Slices = dict[int, torch.Tensor]
"""Dimension -> kept indices."""

_WIDTH: dict[type[nn.Module], dict[str, str]] = {
    nn.Conv2d: {"out": "out_channels", "in": "in_channels"},
    nn.ConvTranspose2d: {"out": "out_channels", "in": "in_channels"},
    DWConvTranspose2d: {"out": "out_channels", "in": "in_channels"},
    nn.Linear: {"out": "out_features", "in": "in_features"},
}
"""Class -> side -> the attribute that holds its width; the same for subclasses that compute as it does.

Beside them there are `norms`.
"""

_KINDS: dict[type[nn.Module], type[nn.Module] | None] = {}
"""Cache of `layer_kind`."""


def named_layers(model: nn.Module) -> Iterator[tuple[str, AnyLayer]]:
    """Yield all layers with channels, each with its path: modules in the order of the network, then parameters."""
    modules = list(model.named_modules())
    for path, module in modules:
        kind = layer_kind(type(module))
        if kind and (kind in _WIDTH or norm_width(module)):
            yield path, module
    for path, module in modules:
        adapter = adapter_for(module)
        for name in adapter.per_channel if adapter else channel_parameters(module) or ():
            if (parameter := getattr(module, name, None)) is not None:
                yield f"{path}.{name}", parameter


def layer_kind(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class of layers that a class computes as, or None."""
    if kind not in _KINDS:
        _KINDS[kind] = inherited(kind, {**_WIDTH, **norms()})
    return _KINDS[kind]


def widths(layer: AnyLayer) -> dict[str, int]:
    """Return the channels of a layer per side: ``{"out": n, "in": n}``, or only ``"out"``."""
    if isinstance(layer, nn.Parameter):
        return {"out": layer.numel()}
    if (width := norm_width(layer)) is not None:
        return {"out": width}
    return {side: getattr(layer, name) for side, name in _names(layer).items()}


def is_quantized(network: nn.Module) -> bool:
    """Whether layers of a network have the quantizers of INT8 training; Ultralytics tells by the same name."""
    return any(type(module).__name__ == "TensorQuantizer" for module in network.modules())


def is_constant(model: nn.Module, path: str) -> bool:
    """Whether a layer's weights are constants, which no training changes."""
    return isinstance(model.get_submodule(path.rpartition(".")[0]), DFL)


def is_grouped(layer: Any) -> bool:
    """Whether a convolution's groups read channels of their own, so that each group is removed or kept whole."""
    return isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1


def group_count(layer: Any) -> int:
    """Return the number of groups of a grouped convolution or a GroupNorm; 0 for any other layer."""
    if isinstance(layer, nn.GroupNorm):
        return int(layer.num_groups)
    return int(layer.groups) if is_grouped(layer) else 0


def tensors(layer: nn.Module, kept: Mapping[str, list[int]]) -> Iterator[tuple[str, torch.Tensor, Slices]]:
    """Yield every tensor of a layer that has channels: (name, tensor, what to keep of it)."""
    out = torch.tensor(kept["out"])
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is None or not tensor.ndim:  # num_batches_tracked is a scalar
            continue
        if name == "weight" and "in" in kept:
            first, second = (out, torch.tensor(kept["in"]))
            if isinstance(layer, nn.ConvTranspose2d):
                first, second = second, first
            yield name, tensor, {0: first} if is_grouped(layer) else {0: first, 1: second}
        else:
            yield name, tensor, {0: out}


def attributes(layer: nn.Module, sides: Mapping[str, int]) -> dict[str, int]:
    """Return the attributes of a layer that tell its widths, for widths ``sides``."""
    told = {name: sides[side] for side, name in _names(layer).items()}
    if is_grouped(layer):
        told["groups"] = sides["in"] * layer.groups // layer.in_channels
    elif isinstance(layer, nn.GroupNorm):
        told["num_groups"] = sides["out"] * layer.num_groups // layer.num_channels
    return told


def resized(layer: AnyLayer, sides: Mapping[str, int]) -> AnyLayer:
    """Return a fresh layer of the same kind and settings with widths ``sides``."""
    if isinstance(layer, nn.Parameter):
        fewer = layer.detach().narrow(channel_dim(layer), 0, sides["out"])
        return nn.Parameter(fewer.clone(), layer.requires_grad)
    if norm_width(layer) is not None:
        return _resized_norm(layer, sides["out"])
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(sides["in"], sides["out"], bias)
    else:
        groups = attributes(layer, sides).get("groups", 1)
        common = sides["in"], sides["out"], layer.kernel_size, layer.stride, layer.padding
        if isinstance(layer, nn.ConvTranspose2d):
            new = nn.ConvTranspose2d(*common, layer.output_padding, groups, bias, layer.dilation)
        else:
            new = nn.Conv2d(*common, layer.dilation, groups, bias, layer.padding_mode)
    new.__class__ = type(layer)  # a subclass differs in its constructor only
    new.__dict__ = {**layer.__dict__, **new.__dict__}  # a layer that is a row of the network knows its place
    return new


def _resized_norm(layer: nn.Module, width: int) -> nn.Module:
    """Return a normalisation of another width with fresh values, of the same class and settings."""
    new = deepcopy(layer)
    for name, value in attributes(layer, {"out": width}).items():
        setattr(new, name, value)
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            fresh = torch.full((width,), 0.25 if isinstance(layer, nn.PReLU) else float(name == "weight"))
            new._parameters[name] = nn.Parameter(fresh.to(parameter), parameter.requires_grad)
    for name, buffer in layer._buffers.items():
        if buffer is not None and buffer.ndim:
            new._buffers[name] = torch.full((width,), float(name in ("weight", "running_var"))).to(buffer)
    return new


def _names(layer: nn.Module) -> dict[str, str]:
    """Return side -> attribute of a layer's width."""
    kind = layer_kind(type(layer))
    assert kind is not None
    return _WIDTH[kind] if kind in _WIDTH else {"out": norms()[kind]}
