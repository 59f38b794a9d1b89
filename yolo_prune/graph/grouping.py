"""From torch-pruning's groups of a shadow network to channel groups and bundles of the real one."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from yolo_prune.blocks import (
    ChannelSlice,
    Shadow,
    Unit,
)
from yolo_prune.graph.groups import Bundle, ChannelGroup
from yolo_prune.graph.layers import group_count, widths


@dataclass
class _Component:
    """Units that go together, and why they cannot go at all."""

    units: list[Unit] = field(default_factory=list)
    locked: str | None = None


Member = tuple[str, bool, list[int], list[int]]
"""(shadow layer path, is output side, channels, root channel of each)"""


def shadow_groups(shadow: Shadow, image: torch.Tensor, step: Callable[[], None]) -> Iterable[list[Member]]:
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


def connected_units(groups: Iterable[list[Member]], shadow: Shadow, grouped: dict[str, Any]) -> list[_Component]:
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


def channel_groups(
    components: list[_Component], order: list[str], fixed: dict[str, str], ties: list[list[ChannelSlice]]
) -> tuple[tuple[ChannelGroup, ...], list[frozenset[tuple[int, int]]]]:
    """Sort components that touch the same members, and the same lanes of ties, into channel groups.

    Returns:
        The groups, and per group the (tie, lane) pairs that all of its units lie in.
    """
    rank = {path: i for i, path in enumerate(order)}
    alike = _alike(components, rank, _lanes_of_units(ties))
    groups, group_lanes = [], []
    for (signature, lanes, locked), rows in sorted(alike.items(), key=lambda kv: [(rank[p], s) for p, s in kv[0][0]]):
        groups.append(_channel_group(signature, rows, fixed, locked))
        group_lanes.append(lanes)
    return tuple(groups), group_lanes


Lanes = frozenset[tuple[int, int]]
"""(tie, lane) pairs."""
Signature = tuple[tuple[str, str], ...]
"""(layer path, side) of each channel of a unit, what makes it first."""


def _lanes_of_units(ties: list[list[ChannelSlice]]) -> dict[Unit, set[tuple[int, int]]]:
    """Return the (tie, lane) pairs that each unit lies in."""
    lanes: dict[Unit, set[tuple[int, int]]] = defaultdict(set)
    for t, tie in enumerate(ties):
        for n, (path, side, indices) in enumerate(tie):
            for index in indices:
                lanes[path, side, index].add((t, n))
    return lanes


def _alike(
    components: list[_Component], rank: dict[str, int], lanes_of: dict[Unit, set[tuple[int, int]]]
) -> dict[tuple[Signature, Lanes, str | None], list[list[Unit]]]:
    """Sort components by the members that they touch, the lanes that they lie in, and why they are locked."""
    alike: dict[tuple[Signature, Lanes, str | None], list[list[Unit]]] = defaultdict(list)
    for component in components:
        units = sorted(component.units, key=lambda u: (u[1] == "in", rank[u[0]], u[2]))  # what makes it comes first
        lanes = frozenset().union(*(lanes_of[u] for u in units if u in lanes_of))
        alike[tuple((path, side) for path, side, _ in units), lanes, component.locked].append(units)
    return alike


def _channel_group(
    signature: Signature, rows: list[list[Unit]], fixed: dict[str, str], locked: str | None
) -> ChannelGroup:
    """Return the group of components that are alike, in the order of the channels that make them."""
    rows.sort(key=lambda units: units[0][2])
    columns: dict[tuple[str, str], list[int]] = defaultdict(list)
    for column, member in enumerate(signature):
        columns[member].append(column)
    table = np.array([[index for _, _, index in units] for units in rows], dtype=np.int64)
    why = next((fixed[path] for path, side in signature if side == "out" and path in fixed), locked)
    if signature[0][1] == "in":
        why = why or "nothing in the network makes these channels"
    return ChannelGroup(signature[0][0], {m: table[:, c] for m, c in columns.items()}, why)


def bundles(
    groups: tuple[ChannelGroup, ...],
    lanes: list[Lanes],
    ties: list[list[ChannelSlice]],
    narrow: set[int],
) -> tuple[Bundle, ...]:
    """Join groups whose lanes are tied: they all keep the same share. A bundle is locked if one of its groups is."""
    members, untraced = _tied(len(groups), lanes, ties)
    found = []
    for indices in members:
        sizes = [groups[i].width for i in indices]
        steps = math.gcd(*sizes)
        locked = next((why for i in indices if (why := groups[i].locked)), None)
        if untraced.intersection(indices):
            locked = locked or "has to keep the width of something that cannot be cut"
        elif steps == 1 and max(sizes) > 1:
            locked = locked or f"widths {', '.join(map(str, sorted(set(sizes))))} have no common share to remove"
        is_narrow = any(t in narrow for i in indices for t, _ in lanes[i])
        found.append(Bundle(tuple(indices), tuple(n // steps for n in sizes), steps, locked, is_narrow))
    return tuple(found)


def _tied(groups: int, lanes: list[Lanes], ties: list[list[ChannelSlice]]) -> tuple[list[list[int]], set[int]]:
    """Return the indices of groups that are tied to each other, and those of which a tie has a lane without groups."""
    in_lane: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, memberships in enumerate(lanes):
        for lane in memberships:
            in_lane[lane].append(i)
    bundle_of = list(range(groups))
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
    return list(members.values()), untraced
