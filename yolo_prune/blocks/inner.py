"""Inner blocks: entries of a list inside a block that can be removed, and what goes with each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from yolo_prune.blocks.registry import BlockAdapter, InnerBlocks, adapter_for


@dataclass(frozen=True)
class InnerBlock:
    """An inner block that can be removed. Paths are those of the network.

    Attributes:
        path: The block, an entry of a list.
        after: Entries of its list behind it, which have to go before it; none where its input can go on in its place.
        reader: The layer that takes what it makes beside what others make, and then takes so much less, or None.
        channels: Inputs of that layer which it makes.
        adds: Whether it only adds to what it takes.
        instead: Inputs of that layer that come closest to these once the block is gone: what it took, if it only adds
            to that; else none.
    """

    path: str
    after: tuple[str, ...] = ()
    reader: str | None = None
    channels: range = range(0)
    adds: bool = False
    instead: range = range(0)


def taken(module: nn.Module) -> int:
    """Return the channels that an inner block takes: those of its first convolution; 0 if it has none."""
    return next((conv.in_channels for conv in module.modules() if isinstance(conv, nn.Conv2d)), 0)


def side_by_side(module: nn.Module, reader: str, leading: int, name: str = "m") -> Iterator[InnerBlocks]:
    """Yield a list whose entries a layer reads side by side, and of each entry that is a chain itself all but one."""
    yield InnerBlocks(name, reader, leading)
    for i, entry in module.get_submodule(name).named_children():
        if type(entry) is nn.Sequential:
            yield InnerBlocks(f"{name}.{i}", fewest=1)


def inner_lists(network: nn.Module) -> Iterator[tuple[str, nn.Module, InnerBlocks]]:
    """Yield (path of a block, the block, a list of inner blocks in it) of a network, those that are empty as well."""
    for path, module in network.named_modules():
        if adapter := adapter_for(module):
            try:
                found = [*adapter.inner(module)]
            except (AttributeError, IndexError):  # its layers were exchanged for others
                continue
            for inner in found:
                is_list = type(module.get_submodule(inner.name)) in (nn.ModuleList, nn.Sequential)
                if is_list and (inner.reader is None or _reads_all(module.get_submodule(inner.reader))):
                    yield path, module, inner


def _reads_all(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1


def inner_blocks(network: nn.Module) -> dict[str, InnerBlock]:
    """Return all inner blocks of a network that adapters declare, by path; see `graph.trace` for those that may go."""
    found = {}
    for path, module, inner in inner_lists(network):
        entries = dict(module.get_submodule(inner.name).named_children())
        paths = [f"{path}.{inner.name}.{name}" for name in entries]
        if inner.reader is None:
            if len(paths) > inner.fewest:
                found.update({p: InnerBlock(p, adds=_adds(entries[p.rpartition(".")[2]])) for p in paths})
            continue
        reader, start = f"{path}.{inner.reader}", inner.leading
        made = [taken(entry) for entry in [*entries.values()][1:]]
        made.append(module.get_submodule(inner.reader).in_channels - inner.leading - sum(made))
        for i, (p, entry, width) in enumerate(zip(paths, entries.values(), made, strict=False)):
            channels, adds = range(start, start + width), _adds(entry) and taken(entry) == width
            instead = range(start - width, start) if adds else range(0)
            if i >= inner.fewest and min(made) > 0:
                found[p] = InnerBlock(p, tuple(paths[i + 1 :]), reader, channels, adds, instead)
            start += width
    return found


def _adds(module: nn.Module) -> bool:
    """Return whether an inner block, or each of several one behind the other, only adds to what it takes."""
    if type(module) is nn.Sequential:
        return all(map(_adds, module))
    return (adapter_for(module) or BlockAdapter()).is_residual(module)


def misfit(network: nn.Module, blocks: Collection[str]) -> str | None:
    """Return why these blocks cannot be removed together, or None if they can."""
    known = inner_blocks(network)
    for path in blocks:
        if path not in known:
            return f"{path} is no inner block that can be removed"
        if stays := [other for other in known[path].after if other not in blocks]:
            return f"{path} cannot be removed without {stays[0]}, which takes what it makes"
    for path, module, inner in inner_lists(network):
        entries = [f"{path}.{inner.name}.{name}" for name, _ in module.get_submodule(inner.name).named_children()]
        gone = sum(entry in blocks for entry in entries)
        if gone and len(entries) - gone < inner.fewest:
            return f"{path}.{inner.name} has to keep {inner.fewest} of its blocks"
    return None


def remove(
    network: nn.Module, blocks: Iterable[str], put: Callable[[nn.Module, str, dict[str, Any]], None] = setattr
) -> None:
    """Remove inner blocks from their lists; the others keep their names, so that paths mean what they meant.

    Args:
        network: Cut in place.
        blocks: Their paths.
        put: Sets an attribute of a list.
    """
    gone = defaultdict(set)
    for path in blocks:
        container, _, name = path.rpartition(".")
        gone[container].add(name)
    for container, names in gone.items():
        entries = network.get_submodule(container)
        put(entries, "_modules", {name: entry for name, entry in entries._modules.items() if name not in names})
