"""From a network to its channel groups: torch-pruning's ``DependencyGraph`` on a shadow copy, told as plain data."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from yolo_prune.blocks import Lane, Shadow, adapter_for, is_depthwise, is_known
from yolo_prune.channels import Bundle, ChannelGraph, ChannelGroup, Layer, Product
from yolo_prune.errors import UnsupportedError

Unit = tuple[str, str, int]
"""(layer path, side, channel)"""


def trace(
    model: nn.Module, imgsz: int | tuple[int, int] = 640, ignored: Callable[[str], str | None] | None = None
) -> ChannelGraph:
    """Return the channel groups of a network. The network itself is only read: nothing runs on it.

    Args:
        model: An Ultralytics network (e.g. ``YOLO(...).model``); its ``model`` attribute holds the blocks.
        imgsz: Height and width in pixels for which the cost is counted.
        ignored: Maps a layer path to the reason why the user wants its output width kept, or to None.

    Raises:
        UnsupportedError: If the network has a block that cannot be traced yet, named with its place.
    """
    _refuse_unknown(model)
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    image = torch.empty(1, channels, height, width, device="meta")
    copy = _weightless(model)
    positions = _positions(copy, image)  # before the adapters change what the copy computes
    shadow = _shadow(copy)
    layers = _layers(model, positions, shadow.idle)
    fixed = dict(shadow.fixed)
    for path in layers:
        if ignored and (pattern := ignored(path)):
            fixed.setdefault(path, f"kept on request (ignored_layers has {pattern})")
    units = _connected_units(_shadow_groups(shadow, image), shadow)
    groups, lanes = _channel_groups(units, list(layers), fixed, shadow.ties)
    products = tuple(
        Product(path, layer, tuple(indices), positions[layer] ** 2) for path, layer, indices in shadow.products
    )
    return ChannelGraph((height, width), layers, groups, _bundles(groups, lanes, shadow.ties), products)


def fixed_outputs(model: nn.Module) -> dict[str, str]:
    """Return the layers whose output width the task decides, not the network, with what they predict."""
    return _shadow(_weightless(model)).fixed


def _refuse_unknown(model: nn.Module) -> None:
    if not hasattr(model, "model") or not isinstance(model.model, nn.Sequential):
        raise UnsupportedError(
            f"{type(model).__name__} is not an Ultralytics YOLO network; pass YOLO('….pt') or its .model."
        )
    for path, module in model.model.named_modules():
        if path and not is_known(module):
            raise UnsupportedError(
                f"model.{path} is {_named(module)}, a block that yolo_prune cannot cut yet; "
                "supported are the detection models of YOLOv8, YOLO11 and YOLO26."
            )


def _named(module: nn.Module) -> str:
    grouped = isinstance(module, nn.Conv2d) and f" with {module.groups} groups"
    return f"a {type(module).__name__}{grouped or ''}"


def _weightless(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device: same structure, no weights, no memory, and running it costs nothing."""
    memo: dict[int, object] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
    memo.update({id(b): torch.empty_like(b, device="meta") for b in model.buffers()})
    memo[id(getattr(model, "criterion", None))] = None  # a loss with its own references
    copy = deepcopy(model, memo).float().eval().requires_grad_(True)
    for module in copy.modules():  # whoever listens to the network does not want to hear of its copy
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if "shape" in module.__dict__:  # a head that remembers real anchors for an image size would use them again
            module.shape = None
    return copy


def _shadow(copy: nn.Module) -> Shadow:
    """Make a weightless copy traceable, in place."""
    shadow = Shadow(copy)
    for path, module in list(shadow.model.named_modules()):
        if adapter := adapter_for(module):
            adapter.trace(shadow, path, module)
    return shadow


def _positions(model: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Run the stock forward pass on the meta device and return each layer's output positions."""
    positions: dict[str, int] = {}

    def hook(path: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            positions[path] = positions.get(path, 0) + output[0, 0].numel()

        return record

    hooks = [m.register_forward_hook(hook(path)) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(image)
    for handle in hooks:
        handle.remove()
    return positions


def _layers(model: nn.Module, positions: dict[str, int], idle: Iterable[str]) -> dict[str, Layer]:
    layers = {}
    for path, m in model.named_modules():
        deployed = not path.startswith(tuple(idle))
        if isinstance(m, nn.Conv2d):
            kernel = m.kernel_size[0] * m.kernel_size[1]
            layers[path] = Layer(
                path, "Conv2d", m.out_channels, m.in_channels, m.groups, kernel, positions.get(path, 0),
                int(m.bias is not None), deployed,
            )  # fmt: skip
        elif isinstance(m, nn.BatchNorm2d):
            layers[path] = Layer(path, "BatchNorm2d", m.num_features, m.num_features, params_per_out=2 * m.affine)
    return layers


def _shadow_groups(shadow: Shadow, image: torch.Tensor) -> Iterable[list[tuple[str, bool, list[int], list[int]]]]:
    """Yield torch-pruning's groups until every output channel of every convolution is in one.

    Yields:
        Per group a list of (shadow layer path, is output side, channels, root channel of each).
    """
    paths = {module: path for path, module in shadow.model.named_modules()}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(shadow.model, image, verbose=False)
        seen: dict[str, set[int]] = defaultdict(set)
        for module in list(graph.module2node):
            if not isinstance(module, nn.Conv2d):
                continue
            missing = [i for i in range(module.out_channels) if i not in seen[paths[module]]]
            if not missing:
                continue
            prune_out = graph.get_pruner_of_module(module).prune_out_channels
            members = []
            for item in graph.get_pruning_group(module, prune_out, missing):
                path = paths.get(item.dep.layer)
                if path is None or not isinstance(item.dep.layer, (nn.Conv2d, nn.BatchNorm2d)):
                    continue  # an operation without parameters, such as an addition
                is_out = graph.is_out_channel_pruning_fn(item.dep.handler)
                if is_out:
                    seen[path].update(item.idxs)
                members.append((path, is_out, item.idxs, item.root_idxs))
            yield members


def _connected_units(
    groups: Iterable[list[tuple[str, bool, list[int], list[int]]]], shadow: Shadow
) -> list[list[Unit]]:
    """Join what hangs together over all groups, in terms of the real network: lists of units that go together."""
    parent: dict[Unit, Unit] = {}

    def find(unit: Unit) -> Unit:
        parent.setdefault(unit, unit)
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    depthwise = {path for path, m in shadow.model.named_modules() if is_depthwise(m)}
    for members in groups:
        first: dict[int, Unit] = {}  # root channel -> a unit that hangs on it
        for path, is_out, indices, roots in members:
            if path in shadow.stand_ins:
                continue
            real, channels = shadow.slices.get(path, (path, None))
            sides = ("out", "in") if path in depthwise else ("out",) if is_out else ("in",)
            for index, root in zip(indices, roots, strict=True):
                for side in sides:
                    channel = channels[index] if channels is not None and side == "out" else index
                    unit = find((real, side, channel))
                    if root in first:
                        parent[unit] = find(first[root])
                    else:
                        first[root] = unit
    joined: dict[Unit, list[Unit]] = defaultdict(list)
    for unit in parent:
        joined[find(unit)].append(unit)
    return list(joined.values())


def _channel_groups(
    components: list[list[Unit]], order: list[str], fixed: dict[str, str], ties: list[list[Lane]]
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

    alike: dict[tuple[tuple[tuple[str, str], ...], frozenset[tuple[int, int]]], list[list[Unit]]] = defaultdict(list)
    for units in components:
        units.sort(key=lambda u: (u[1] == "in", rank[u[0]], u[2]))  # what makes the channel comes first
        lanes = frozenset().union(*(lane_of[u] for u in units))
        alike[tuple((path, side) for path, side, _ in units), lanes].append(units)

    groups, group_lanes = [], []
    for (signature, lanes), rows in sorted(alike.items(), key=lambda kv: [(rank[p], s) for p, s in kv[0][0]]):
        rows.sort(key=lambda units: units[0][2])
        columns: dict[tuple[str, str], list[int]] = defaultdict(list)
        for column, member in enumerate(signature):
            columns[member].append(column)
        table = np.array([[index for _, _, index in units] for units in rows], dtype=np.int64)
        locked = next((fixed[path] for path, side in signature if side == "out" and path in fixed), None)
        if signature[0][1] == "in":
            locked = locked or "nothing in the network makes these channels"
        groups.append(ChannelGroup(signature[0][0], {m: table[:, c] for m, c in columns.items()}, locked))
        group_lanes.append(lanes)
    return tuple(groups), group_lanes


def _bundles(
    groups: tuple[ChannelGroup, ...], lanes: list[frozenset[tuple[int, int]]], ties: list[list[Lane]]
) -> tuple[Bundle, ...]:
    """Join groups whose lanes are tied. A bundle is locked if one of its groups is, or if its lanes do not fit."""
    in_lane: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, memberships in enumerate(lanes):
        for lane in memberships:
            in_lane[lane].append(i)
    bundle_of = list(range(len(groups)))
    torn: set[int] = set()
    for t, tie in enumerate(ties):
        together = [i for n in range(len(tie)) for i in in_lane[t, n]]
        if any(len(in_lane[t, n]) != 1 for n in range(len(tie))):
            torn.update(together)
        old = {bundle_of[i] for i in together}
        bundle_of = [min(old) if b in old else b for b in bundle_of]

    members: dict[int, list[int]] = defaultdict(list)
    for i, b in enumerate(bundle_of):
        members[b].append(i)
    bundles = []
    for indices in members.values():
        widths = [groups[i].width for i in indices]
        steps = min(widths)
        locked = next((groups[i].locked for i in indices if groups[i].locked), None)
        if torn.intersection(indices) or any(w % steps for w in widths):
            locked = locked or "parts of equal width mix several channel groups"
        bundles.append(Bundle(tuple(indices), tuple(w // steps for w in widths), steps, locked))
    return tuple(bundles)
