"""From a network to its channel groups: torch-pruning's ``DependencyGraph`` on a shadow copy, told as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from yolo_prune.blocks import ChannelSlice, InnerBlock, inner_blocks, map_readers, shadow_of
from yolo_prune.errors import ConfigError, UnsupportedError, listed
from yolo_prune.graph.activations import activations
from yolo_prune.graph.forward import ForwardRun, stock_forward, weightless_copy
from yolo_prune.graph.grouping import bundles, channel_groups, connected_units, shadow_groups
from yolo_prune.graph.groups import FP16, ChannelGraph, Layer, Product, are_multiples
from yolo_prune.graph.image import height_and_width, image_channels, stride_of
from yolo_prune.graph.layers import AnyLayer, group_count, is_quantized, named_layers, widths
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.paths import is_inside


def trace(
    model: nn.Module,
    imgsz: int | tuple[int, int] = 640,
    ignored: Callable[[str], str | None] | None = None,
    readers: Mapping[str, str] | None = None,
    *,
    reid: bool = False,
) -> ChannelGraph:
    """Return the channel groups of a network. The network itself is only read: nothing runs on it.

    Args:
        model: An Ultralytics network (e.g. ``YOLO(...).model``); its ``model`` attribute holds the blocks.
        imgsz: Height and width in pixels for which the cost is counted.
        ignored: Maps a layer path to the reason why the user wants its output width kept, or to None.
        readers: Layers that only a training step runs -> the modules whose results they take (see `rehearsal`).
        reid: Whether the maps that the head reads keep the same share of their channels.

    Raises:
        ConfigError: If the image size is none, or none for this network.
        UnsupportedError: If this is no such network, if it is quantized, if its shapes depend on values, if a row of
            it can be neither traced nor kept as it is, or if there is nothing that ``reid`` could keep.
    """
    if not isinstance(getattr(model, "model", None), nn.Sequential):
        raise UnsupportedError(
            f"{type(model).__name__} is not an Ultralytics YOLO network; pass YOLO('….pt') or its .model."
        )
    if is_quantized(model):
        raise UnsupportedError(
            "the network has INT8 quantizers (it was trained with quantize=8), which fit its present widths only: cut "
            "the float checkpoint that it was made from, or cut it in a training, which starts from its float weights."
        )
    height, width = height_and_width(imgsz)
    image = torch.empty(1, image_channels(model), height, width, device="meta")
    copy = weightless_copy(model)
    try:
        run = stock_forward(copy, image)  # before the adapters change what the copy computes
    except UnsupportedError as e:
        stride = stride_of(model)
        if height % stride or width % stride:
            nearest = f"{-(-height // stride) * stride}, {-(-width // stride) * stride}"
            raise ConfigError(
                f"imgsz={height}, {width}: sides of this network's images are multiples of {stride}; give {nearest}."
            ) from e
        raise
    shadow = shadow_of(copy, run.calls)
    for path, source in (readers or {}).items():
        shadow.read(source, [((path, "in", i),) for i in range(widths(model.get_submodule(path))["in"])])
    if reid:
        shadow.tie(*_maps(model), narrow=True)
    layers = _layers(model, run.positions, shadow.unused_when_deployed)
    fixed = dict(shadow.fixed)
    for path in layers:
        if ignored and (pattern := ignored(path)):
            fixed.setdefault(path, f"kept on request (ignored_layers has {pattern})")
    grouped = {path: layer for path, layer in named_layers(model) if group_count(layer)}
    convs = sum(isinstance(module, nn.modules.conv._ConvNd) for module in shadow.model.modules())
    with progress_bar("tracing layers", convs) as step:
        units = connected_units(shadow_groups(shadow, image, step), shadow, grouped)
    groups, lanes = channel_groups(units, list(layers), fixed, shadow.ties)
    products = tuple(Product(path, layer, tuple(channels), macs) for path, layer, channels, macs in shadow.products)
    graph = ChannelGraph(
        (height, width),
        layers,
        groups,
        bundles(groups, lanes, shadow.ties, shadow.narrow),
        products,
        dict(shadow.locked_blocks),
        activations(run.recorder, layers, shadow.unused_when_deployed),
    )
    held = {*(readers or {}), *(readers or {}).values(), *(path for path in layers if ignored and ignored(path))}
    in_layers = {id(p) for _, layer in named_layers(model) for p in _parameters(layer)}
    per_channel = sum(layer.buffers_per_out * layer.out for layer in layers.values())
    return replace(
        graph,
        other_macs=_other_macs(graph, run, shadow.unused_when_deployed),
        other_params=sum(p.numel() for p in model.parameters() if id(p) not in in_layers),
        other_bytes=sum(_bytes(b) for b in model.buffers()) - FP16 * per_channel,
        blocks=_removable(model, run, graph.locked_blocks, held),
    )


def makers(model: nn.Module, imgsz: tuple[int, int], source: str) -> list[str]:
    """Return the layers that make the channels of what a module of a network makes."""
    copy = weightless_copy(model)
    image = torch.empty(1, image_channels(model), *imgsz, device="meta")
    run = stock_forward(copy, image)
    made = run.calls[source][0][1]
    shadow = shadow_of(copy, run.calls)
    shadow.read(source, [(("", "in", i),) for i in range(made.shape[1])])
    units = connected_units(shadow_groups(shadow, image, lambda: None), shadow, {})
    read = [component.units for component in units if any(path == "" for path, _, _ in component.units)]
    found = {path for units in read for path, side, _ in units if side == "out" and path}
    return [path for path, layer in named_layers(model) if path in found and "in" in widths(layer)]


def _maps(model: nn.Module) -> list[ChannelSlice]:
    """Return the maps that a detection head reads as lanes.

    Raises:
        UnsupportedError: If it reads none, or if their widths are no multiples of the smallest.
    """
    readers = map_readers(model)
    if not readers:
        rows: Any = model.model
        raise UnsupportedError(
            f"reid=True is for the maps that a detection head reads, and a {type(rows[-1]).__name__} is none: leave "
            "reid out; Ultralytics tracks no such model, or by the features of another one."
        )
    if not are_multiples(readers.values()):
        raise UnsupportedError(
            f"reid=True keeps the maps that the head reads multiples of the smallest in width, and this network's, of "
            f"{listed(readers.values())} channels, are not: start from a model whose maps are, or leave reid out."
        )
    return [(path, "in", range(width)) for path, width in readers.items()]


def _removable(
    model: nn.Module, run: ForwardRun, locked: Collection[str], held: Collection[str]
) -> tuple[InnerBlock, ...]:
    """Return the inner blocks that can be removed, with no other effect on the channel groups.

    Args:
        model: The network.
        run: Its stock forward pass: a block in whose place its input goes on makes a map of the same shape.
        locked: Blocks that nobody knows, or of which nothing can be cut.
        held: Paths of which nothing may be removed.
    """

    def may_go(block: InnerBlock) -> bool:
        calls = run.calls.get(block.path, [])
        if len(calls) != 1 or is_inside(block.path, locked):
            return False
        if any(is_inside(path, {block.path}) for path in held):
            return False
        if any(m._forward_hooks or m._forward_pre_hooks for m in model.get_submodule(block.path).modules()):
            return False  # somebody listens to it
        (arguments, result), is_map = calls[0], len(calls[0][0]) == 1 and torch.is_tensor(calls[0][1])
        return is_map and (block.reader is not None or (block.adds and arguments[0].shape == result.shape))

    found = {path: block for path, block in inner_blocks(model).items() if may_go(block)}
    return tuple(block for block in found.values() if found.keys() >= set(block.after))


def _layers(model: nn.Module, positions: dict[str, int], idle: Iterable[str]) -> dict[str, Layer]:
    layers = {}
    for path, layer in named_layers(model):
        sides = widths(layer)
        has_kernel = "in" in sides
        weight: Any = getattr(layer, "weight", None)
        apart = [p for p in _parameters(layer) if not (has_kernel and p is weight)]
        layers[path] = Layer(
            path=path,
            kind=type(layer).__name__,
            out=sides["out"],
            inp=sides.get("in", 0),
            groups=getattr(layer, "groups", 1),
            kernel=math.prod(weight.shape[2:]) if has_kernel else 0,
            positions=positions.get(path, 0),
            params_per_out=sum(p.numel() for p in apart) // sides["out"],
            buffers_per_out=sum(b.numel() // sides["out"] for b in _buffers(layer) if b.is_floating_point()),
            deployed=not path.startswith(tuple(idle)),
        )
    return layers


def _other_macs(graph: ChannelGraph, run: ForwardRun, idle: Iterable[str]) -> int:
    """Return the multiply-adds of a deployed network that belong neither to a layer nor to a declared product."""
    dropped = tuple(idle)

    def explained(prefixes: tuple[str, ...]) -> int:
        macs = sum(
            layer.kernel * layer.positions * layer.out * layer.inp // layer.groups
            for path, layer in graph.layers.items()
            if path.startswith(prefixes)
        )
        products = (p.macs_per_channel * len(p.indices) for p in graph.products if p.path.startswith(prefixes))
        return macs + sum(products)

    in_dropped = [path for path in run.macs if path.startswith(dropped)] if dropped else []
    outermost = [p for p in in_dropped if not any(p.startswith(f"{q}.") for q in in_dropped)]
    idle_macs = sum(run.macs[path] for path in outermost) - (explained(dropped) if dropped else 0)
    return run.macs.get("", 0) - explained(("",)) - idle_macs


def _parameters(layer: AnyLayer) -> list[nn.Parameter]:
    return [layer] if isinstance(layer, nn.Parameter) else list(layer.parameters())


def _buffers(layer: AnyLayer) -> list[torch.Tensor]:
    return [] if isinstance(layer, nn.Parameter) else list(layer.buffers())


def _bytes(tensor: torch.Tensor) -> int:
    """Return how large a tensor is in a checkpoint, where floating-point numbers have half precision."""
    return tensor.numel() * (FP16 if tensor.is_floating_point() else tensor.element_size())
