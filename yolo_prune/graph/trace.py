"""From a network to its channel groups: torch-pruning's ``DependencyGraph`` on a shadow copy, told as plain data."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import guess_model_task

from yolo_prune.blocks import (
    Call,
    Lane,
    Shadow,
    Unit,
    adapter_for,
    flat,
    is_read,
    map_readers,
    mapped,
    shadow_of,
    simplify,
)
from yolo_prune.errors import ConfigError, UnsupportedError, listed, seen, told
from yolo_prune.graph.groups import FP16, Bundle, ChannelGraph, ChannelGroup, Layer, Product, are_multiples
from yolo_prune.graph.layers import AnyLayer, group_count, is_quantized, named_layers, widths
from yolo_prune.utils.console import waiting


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
        ConfigError: If the image size is none.
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
    copy = _weightless(model)
    run = _stock_run(copy, image)  # before the adapters change what the copy computes
    shadow = shadow_of(copy, run.calls)
    for path, source in (readers or {}).items():
        shadow.read(source, [((path, "in", i),) for i in range(widths(model.get_submodule(path))["in"])])
    if reid:
        shadow.tie(*_maps(model), narrow=True)
    layers = _layers(model, run.positions, shadow.idle)
    fixed = dict(shadow.fixed)
    for path in layers:
        if ignored and (pattern := ignored(path)):
            fixed.setdefault(path, f"kept on request (ignored_layers has {pattern})")
    grouped = {path: layer for path, layer in named_layers(model) if group_count(layer)}
    convs = sum(isinstance(module, nn.modules.conv._ConvNd) for module in shadow.model.modules())
    with waiting("tracing layers", convs) as step:
        units = _connected_units(_shadow_groups(shadow, image, step), shadow, grouped)
    groups, lanes = _channel_groups(units, list(layers), fixed, shadow.ties)
    products = tuple(Product(path, layer, tuple(channels), macs) for path, layer, channels, macs in shadow.products)
    graph = ChannelGraph(
        (height, width),
        layers,
        groups,
        _bundles(groups, lanes, shadow.ties, shadow.narrow),
        products,
        dict(shadow.kept),
    )
    in_layers = {id(p) for _, layer in named_layers(model) for p in _parameters(layer)}
    per_channel = sum(layer.buffers_per_out * layer.out for layer in layers.values())
    return replace(
        graph,
        other_macs=_other_macs(graph, run, shadow.idle),
        other_params=sum(p.numel() for p in model.parameters() if id(p) not in in_layers),
        other_bytes=sum(_bytes(b) for b in model.buffers()) - FP16 * per_channel,
    )


def makers(model: nn.Module, imgsz: tuple[int, int], source: str) -> list[str]:
    """Return the layers that make the channels of what a module of a network makes."""
    copy = _weightless(model)
    image = torch.empty(1, image_channels(model), *imgsz, device="meta")
    run = _stock_run(copy, image)
    made = run.calls[source][0][1]
    shadow = shadow_of(copy, run.calls)
    shadow.read(source, [(("", "in", i),) for i in range(made.shape[1])])
    units = _connected_units(_shadow_groups(shadow, image, lambda: None), shadow, {})
    read = [component.units for component in units if any(path == "" for path, _, _ in component.units)]
    found = {path for units in read for path, side, _ in units if side == "out" and path}
    return [path for path, layer in named_layers(model) if path in found and "in" in widths(layer)]


@dataclass(frozen=True)
class Outline:
    """What of a network's widths is decided elsewhere, by the task or by the images.

    Attributes:
        fixed: Layer whose output width the task decides -> what it predicts.
        head: Path of a last row that nobody knows, so that nothing in it is ever cut, or None.
        on_image: Layers that take the image itself, normalised or not.
    """

    fixed: dict[str, str]
    head: str | None
    on_image: frozenset[str]


def outline(model: nn.Module) -> Outline:
    """Return what of a network's widths is decided elsewhere. The network itself is only read, once for its widths.

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
    copy = _weightless(model)
    image = torch.empty(1, image_channels(model), 64, 64, device="meta")
    run = _stock_run(copy, image)
    last = f"model.{len(copy.model) - 1}"
    is_known = adapter_for(copy.model[-1]) or is_read(copy.model[-1], run.calls.get(last, []))
    on_image = _on_image(copy, run, image)  # before the adapters change the copy
    return Outline(shadow_of(copy).fixed, None if is_known else last, on_image)


def _on_image(copy: nn.Module, run: _Run, image: torch.Tensor) -> frozenset[str]:
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


class _FirstLayerError(Exception):
    """Ends a forward pass at the first layer that has channels, and tells its width and that of what it takes."""


def _maps(model: nn.Module) -> list[Lane]:
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


def fixed_outputs(model: nn.Module) -> dict[str, str]:
    """Return the layers whose output width the task decides, not the network, with what they predict."""
    return shadow_of(_weightless(model)).fixed


def image_channels(model: nn.Module) -> int:
    """Return the number of channels of an input image, by the first layer that runs.

    Raises:
        UnsupportedError: If nothing that runs has channels.
    """
    assumed = int((getattr(model, "yaml", None) or {}).get("channels", 3))
    copy = _weightless(model)

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
        raise _unreadable(model, e) from e
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


def height_and_width(imgsz: Any) -> tuple[int, int]:
    """Return height and width in pixels of what a user gives as image size.

    Raises:
        ConfigError: If it is neither a whole number above 0 nor a pair of them.
    """
    pair = tuple(imgsz) if isinstance(imgsz, (list, tuple)) else (imgsz, imgsz)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or not 0 < n < 1e5 for n in pair):
        raise ConfigError(f"imgsz={seen(imgsz)} is no size in pixels; give a side such as 640, or (height, width).")
    return pair


def _weightless(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device: same structure, no weights, no memory, and running it costs nothing."""
    memo: dict[int, object] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
    memo.update({id(b): torch.empty_like(b, device="meta") for b in model.buffers()})
    memo[id(getattr(model, "criterion", None))] = None  # a loss with its own references
    copy = deepcopy(model, memo).float().eval().requires_grad_(True)
    for module in copy.modules():  # whoever listens to the network does not want to hear of its copy
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        for memory in ("shape", "shapes"):  # a head that remembers real anchors for an image size would use them again
            if memory in module.__dict__:
                setattr(module, memory, None)
    simplify(copy)
    return copy


@dataclass
class _Run:
    """What a stock forward pass shows.

    Attributes:
        calls: Path of a module -> what it took and returned, per call.
        positions: Path of a layer -> how often its weights are applied.
        macs: Path of a module that was called -> multiply-adds in it, as torch counts them; "" is the network.
    """

    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    positions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    macs: dict[str, int] = field(default_factory=dict)


def _stock_run(model: nn.Module, image: torch.Tensor) -> _Run:
    run = _Run()
    taken: list[tuple[Any, ...]] = []  # of the calls that have not returned yet

    def take(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        taken.append(mapped((*inputs, *keywords.values()), lambda t: t))  # heads overwrite the list that they take

    def hook(path: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            run.calls[path].append((taken.pop(), mapped(output, lambda t: t)))
            if isinstance(module, nn.ConvTranspose2d):  # its weights meet every input position
                run.positions[path] += inputs[0][0, 0].numel()
            elif isinstance(module, nn.Conv2d):
                run.positions[path] += output[0, 0].numel()
            elif isinstance(module, nn.Linear):
                run.positions[path] += output[..., 0].numel()

        return record

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(take, with_kwargs=True))
        hooks.append(module.register_forward_hook(hook(path)))
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    except Exception as e:  # whatever a network of foreign blocks raises
        raise _unreadable(model, e) from e
    for handle in hooks:
        handle.remove()
    root = type(model).__name__
    for name, flops in counter.get_flop_counts().items():
        if name == root or name.startswith(f"{root}."):
            run.macs[name[len(root) + 1 :]] = sum(flops.values()) // 2
    return run


def _unreadable(model: nn.Module, error: Exception) -> UnsupportedError:
    return UnsupportedError(
        f"this {type(model).__name__} cannot be read without data, because its forward pass on tensors without "
        f"values ends in {told(error)}; shapes must not depend on values, as they do in a prompt-free YOLOE (cut the "
        "YOLOE that it was made from)."
    )


def _other_macs(graph: ChannelGraph, run: _Run, idle: Iterable[str]) -> int:
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


def _parameters(layer: AnyLayer) -> list[nn.Parameter]:
    return [layer] if isinstance(layer, nn.Parameter) else list(layer.parameters())


def _buffers(layer: AnyLayer) -> list[torch.Tensor]:
    return [] if isinstance(layer, nn.Parameter) else list(layer.buffers())


def _bytes(tensor: torch.Tensor) -> int:
    """Return how large a tensor is in a checkpoint, where floating-point numbers have half precision."""
    return tensor.numel() * (FP16 if tensor.is_floating_point() else tensor.element_size())


@dataclass
class _Component:
    """Units that go together, and why they cannot go at all."""

    units: list[Unit] = field(default_factory=list)
    locked: str | None = None


Member = tuple[str, bool, list[int], list[int]]
"""(shadow layer path, is output side, channels, root channel of each)"""


def _shadow_groups(shadow: Shadow, image: torch.Tensor, step: Callable[[], None]) -> Iterable[list[Member]]:
    """Yield torch-pruning's groups until every output channel of every convolution is in one, a step for each."""
    for module in shadow.model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            _ungroup(module)  # groups are joined afterwards, in terms of the real network
    paths = {module: path for path, module in shadow.model.named_modules()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(
            shadow.model, image, forward_fn=lambda _, x: shadow.run(x), verbose=False
        )
        seen: dict[str, set[int]] = defaultdict(set)
        for module in list(graph.module2node):
            if not isinstance(module, nn.modules.conv._ConvNd):
                continue
            step()
            missing = [i for i in range(module.out_channels) if i not in seen[paths[module]]]
            if not missing:
                continue
            prune_out = graph.get_pruner_of_module(module).prune_out_channels
            members = []
            for item in graph.get_pruning_group(module, prune_out, missing):
                path = paths.get(item.dep.layer)
                if path is None or not isinstance(item.dep.layer, (nn.modules.conv._ConvNd, nn.BatchNorm2d)):
                    continue  # an operation without parameters, such as an addition
                is_out = graph.is_out_channel_pruning_fn(item.dep.handler)
                if is_out:
                    seen[path].update(item.idxs)
                members.append((path, is_out, item.idxs, item.root_idxs))
            yield members


def _ungroup(conv: nn.modules.conv._ConvNd) -> None:
    """Let a weightless convolution read all of its input channels."""
    if conv.groups > 1:
        first, second = conv.out_channels, conv.in_channels
        if conv.transposed:
            first, second = second, first
        conv.groups = 1
        conv.weight = nn.Parameter(torch.empty(first, second, *conv.kernel_size, device="meta"))


class _Union:
    """Units, joined into components (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Unit, Unit] = {}

    def __contains__(self, unit: Unit) -> bool:
        return unit in self._parent

    def find(self, unit: Unit) -> Unit:
        """Return the unit that stands for the component of this one; a new unit is a component of its own."""
        parent = self._parent
        parent.setdefault(unit, unit)
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    def join(self, one: Unit, other: Unit) -> None:
        """Join the components of two units."""
        self._parent[self.find(one)] = self.find(other)

    def components(self, locked: dict[Unit, str]) -> list[_Component]:
        """Return all components; one with a locked unit is locked."""
        found: dict[Unit, _Component] = defaultdict(_Component)
        for unit in self._parent:
            found[self.find(unit)].units.append(unit)
        for unit, why in locked.items():
            found[self.find(unit)].locked = why
        return list(found.values())


def _connected_units(groups: Iterable[list[Member]], shadow: Shadow, grouped: dict[str, Any]) -> list[_Component]:
    """Join what hangs together over all groups, in terms of the real network."""
    union = _Union()
    locked: dict[Unit, str] = {}
    for members in groups:
        first: dict[int, Unit] = {}  # root channel -> a unit that hangs on it
        reasons: dict[int, str] = {}
        for path, is_out, indices, roots in members:
            for index, root in zip(indices, roots, strict=True):
                if path in shadow.locks:
                    reasons[root] = shadow.locks[path]
                for unit in shadow.units(path, "out" if is_out else "in", index):
                    union.join(unit, first.setdefault(root, unit))
        locked.update({first[root]: why for root, why in reasons.items() if root in first})
    for one, other in shadow.joined:
        union.join(one, other)
    for path, layer in grouped.items():
        _join_groups(union, locked, path, layer)
    return union.components(locked)


def _join_groups(union: _Union, locked: dict[Unit, str], path: str, layer: nn.Module) -> None:
    """Let each group of a convolution, or of a GroupNorm, be removed or kept whole, inputs and outputs."""
    sides, groups = widths(layer), group_count(layer)
    reads_all = all((path, "in", channel) in union for channel in range(sides.get("in", 0)))
    for group in range(groups):
        units = [
            (path, side, channel)
            for side, width in sides.items()
            for channel in range(group * width // groups, (group + 1) * width // groups)
        ]
        traced = [unit for unit in units if unit in union]
        for unit in traced:
            union.join(unit, traced[0])
        if traced and not reads_all:
            locked[traced[0]] = "reads the image, group by group"


def _channel_groups(
    components: list[_Component], order: list[str], fixed: dict[str, str], ties: list[list[Lane]]
) -> tuple[tuple[ChannelGroup, ...], list[frozenset[tuple[int, int]]]]:
    """Sort components that touch the same members, and the same lanes of ties, into channel groups.

    Returns:
        The groups, and per group the (tie, lane) pairs that all of its units lie in.
    """
    rank = {path: i for i, path in enumerate(order)}
    lane_of: dict[Unit, set[tuple[int, int]]] = defaultdict(set)
    for t, tie in enumerate(ties):
        for n, (path, side, indices) in enumerate(tie):
            for index in indices:
                lane_of[path, side, index].add((t, n))

    Signature = tuple[tuple[tuple[str, str], ...], frozenset[tuple[int, int]], str | None]
    alike: dict[Signature, list[list[Unit]]] = defaultdict(list)
    for component in components:
        units = sorted(component.units, key=lambda u: (u[1] == "in", rank[u[0]], u[2]))  # what makes it comes first
        lanes = frozenset().union(*(lane_of[u] for u in units if u in lane_of))
        alike[tuple((path, side) for path, side, _ in units), lanes, component.locked].append(units)

    groups, group_lanes = [], []
    for (signature, lanes, locked), rows in sorted(alike.items(), key=lambda kv: [(rank[p], s) for p, s in kv[0][0]]):
        rows.sort(key=lambda units: units[0][2])
        columns: dict[tuple[str, str], list[int]] = defaultdict(list)
        for column, member in enumerate(signature):
            columns[member].append(column)
        table = np.array([[index for _, _, index in units] for units in rows], dtype=np.int64)
        why = next((fixed[path] for path, side in signature if side == "out" and path in fixed), locked)
        if signature[0][1] == "in":
            why = why or "nothing in the network makes these channels"
        groups.append(ChannelGroup(signature[0][0], {m: table[:, c] for m, c in columns.items()}, why))
        group_lanes.append(lanes)
    return tuple(groups), group_lanes


def _bundles(
    groups: tuple[ChannelGroup, ...],
    lanes: list[frozenset[tuple[int, int]]],
    ties: list[list[Lane]],
    narrow: set[int],
) -> tuple[Bundle, ...]:
    """Join groups whose lanes are tied: they all keep the same share. A bundle is locked if one of its groups is."""
    in_lane: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, memberships in enumerate(lanes):
        for lane in memberships:
            in_lane[lane].append(i)
    bundle_of = list(range(len(groups)))
    untraced: set[int] = set()
    for t, tie in enumerate(ties):
        together = [i for n in range(len(tie)) for i in in_lane[t, n]]
        if not together:
            continue
        if not all(in_lane[t, n] for n in range(len(tie))):
            untraced.update(together)
        old = {bundle_of[i] for i in together}
        bundle_of = [min(old) if b in old else b for b in bundle_of]

    members: dict[int, list[int]] = defaultdict(list)
    for i, b in enumerate(bundle_of):
        members[b].append(i)
    bundles = []
    for indices in members.values():
        sizes = [groups[i].width for i in indices]
        steps = math.gcd(*sizes)
        locked = next((why for i in indices if (why := groups[i].locked)), None)
        if untraced.intersection(indices):
            locked = locked or "has to keep the width of something that cannot be cut"
        elif steps == 1 and max(sizes) > 1:
            locked = locked or f"widths {', '.join(map(str, sorted(set(sizes))))} have no common share to remove"
        is_narrow = any(t in narrow for i in indices for t, _ in lanes[i])
        bundles.append(Bundle(tuple(indices), tuple(n // steps for n in sizes), steps, locked, is_narrow))
    return tuple(bundles)
