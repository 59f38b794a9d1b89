"""Layers that work on each channel by itself: normalisations, and activations of any make.

In the copy of a network that is traced, a BatchNorm2d stands for each of them that has something per channel, and
nothing for the others. Whether a module of a user's works on each channel by itself is found out by trying it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

_NORMS: dict[type[nn.Module], str] = {
    nn.BatchNorm2d: "num_features",
    nn.SyncBatchNorm: "num_features",
    nn.InstanceNorm2d: "num_features",
    nn.GroupNorm: "num_channels",
    nn.PReLU: "num_parameters",
}

_INERT = {
    *("__init__", "__new__", "__repr__", "__setstate__", "extra_repr", "reset_parameters", "reset_running_stats"),
    *("train", "eval", "bias_init", "fuse", "_load_from_state_dict"),
    *("_inference", "_get_decode_boxes", "decode_bboxes", "kpts_decode", "postprocess", "get_topk_index"),
}
"""Methods that take no part in a forward pass, or only in what a head makes of its predictions."""

_DESCRIPTORS = (property, staticmethod, classmethod)
_NORM_KINDS: dict[type[nn.Module], type[nn.Module] | None] = {}
_TRIED: dict[Any, tuple[str, ...] | None] = {}
_CHANNELS = 6
"""Of the map that a module without parameters per channel is tried on."""


def norms() -> dict[type[nn.Module], str]:
    """Return the layers that have something per channel: class -> the attribute that holds its width.

    The channels of a GroupNorm's group hang together beside. What torchvision has is among them once a network can have
    it: importing torchvision takes longer than everything else here.
    """
    vision = sys.modules.get("torchvision.ops")
    return _NORMS | {vision.FrozenBatchNorm2d: "num_features"} if vision else _NORMS


def inherited(kind: type[nn.Module], known: Mapping[type[nn.Module], Any]) -> type[nn.Module] | None:
    """Return the class among those known whose forward pass a class inherits unchanged, or None.

    A subclass that only makes its layers otherwise computes the same; one with another ``forward``, or another method
    that the known class has, may compute anything.
    """
    changed: set[str] = set()
    for base in kind.__mro__:
        if base in known:
            return base if not changed or not changed & set(dir(base)) else None
        methods = {name for name, value in vars(base).items() if callable(value) or isinstance(value, _DESCRIPTORS)}
        changed |= methods - _INERT
    return None


def norm_kind(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class among `norms` that a class computes as, or None."""
    if kind not in _NORM_KINDS:
        _NORM_KINDS[kind] = inherited(kind, norms())
    return _NORM_KINDS[kind]


def norm_width(module: nn.Module) -> int | None:
    """Return the number of channels of a layer that has something per channel and is one of `norms`, or None."""
    kind = norm_kind(type(module))
    if kind is None:
        return None
    width = getattr(module, norms()[kind], None)
    width = len(module.weight) if width is None else int(width)  # torchvision's frozen one has no attribute for it
    return None if kind is nn.PReLU and width == 1 else width


def channel_parameters(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a module's own parameters per channel, if it works on each channel by itself, else None.

    That is so if some channels of its result are what it makes of these channels alone, with its parameters for them,
    in evaluation and in training. It is tried with random values, once for each class and its settings.

    Args:
        module: One with no modules but torch's activations inside it, on any device; only copies of it run.
    """
    inner = [child for child in module.modules() if child is not module]
    is_leaf = all(_is_torch(child) and not child._parameters for child in inner)
    if not is_leaf or _is_torch(module) or norm_width(module) is not None or "forward" in vars(module):
        return None
    tensors = {**module._parameters, **module._buffers}
    settings = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    settings.pop("training", None)
    key = (
        type(module),
        str(settings),
        str(inner),
        str({name: None if t is None else t.shape for name, t in tensors.items()}),
    )
    if key not in _TRIED:
        try:
            _TRIED[key] = _try(module)
        except Exception:  # whatever foreign code raises on a map that it was not made for
            _TRIED[key] = None
    return _TRIED[key]


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _try(module: nn.Module) -> tuple[str, ...] | None:
    per_channel = [name for name, p in module._parameters.items() if p is not None and p.numel() > 1]
    widths = {module._parameters[name].numel() for name in per_channel}
    sizes = [max(module._parameters[name].shape) for name in per_channel]
    if len(widths) > 1 or {*sizes} != widths or any(b is not None and b.numel() > 1 for b in module._buffers.values()):
        return None
    width = next(iter(widths), _CHANNELS)
    draw = torch.Generator().manual_seed(0)
    whole = _filled(module, draw)
    some = torch.arange(width)[torch.arange(width) % 3 != 1]
    part = deepcopy(whole)
    for name in per_channel:
        p = part._parameters[name]
        part._parameters[name] = nn.Parameter(p.detach().index_select(channel_dim(p), some))
    x = torch.randn(2, width, 4, 5, generator=draw, dtype=torch.double)
    for is_training in (False, True):
        made, of_part = (_run(m.train(is_training), maps) for m, maps in ((whole, x), (part, x[:, some])))
        if not torch.is_tensor(made) or made.shape != x.shape or not torch.allclose(made[:, some], of_part, 1e-9, 1e-9):
            return None
    return tuple(per_channel)


def channel_dim(parameter: torch.Tensor) -> int:
    """Return the dimension of a parameter with one value per channel that runs over the channels."""
    return next((dim for dim, size in enumerate(parameter.shape) if size > 1), 0)


def _filled(module: nn.Module, draw: torch.Generator) -> nn.Module:
    """Return a copy on the CPU, in double precision, with random values."""
    copy = deepcopy(module).to_empty(device="cpu").double()
    for tensor in (*copy.parameters(), *copy.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=draw, dtype=torch.double) + 0.5
        else:
            tensor.data.fill_(1)
    return copy


def _run(module: nn.Module, x: torch.Tensor) -> Any:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(x.clone())


def simplify(copy: nn.Module) -> None:
    """Replace layers of a weightless copy of a network that work on each channel by itself, in place.

    A BatchNorm2d that does nothing stands for a normalisation, and for each parameter per channel of an activation.
    """
    for parent in list(copy.modules()):
        for name, module in list(parent.named_children()):
            if (width := norm_width(module)) is not None:
                stand_in: nn.Module = nothing(width)
            elif norm_kind(type(module)) is nn.PReLU:
                stand_in = nn.Identity()
            elif (names := channel_parameters(module)) is not None:
                parts = {name: nothing(module._parameters[name].numel()) for name in names}
                stand_in = nn.Sequential()
                for part, norm in parts.items():
                    stand_in.add_module(part, norm)
            else:
                continue
            stand_in.__dict__.update({k: v for k, v in vars(module).items() if k in ("i", "f", "type", "np")})
            setattr(parent, name, stand_in)


def nothing(width: int) -> nn.BatchNorm2d:
    """Return a BatchNorm2d that hands on its input; torch takes long to find that out without values."""
    norm = nn.BatchNorm2d(width, device="meta").eval()
    norm.forward = torch.clone
    return norm
