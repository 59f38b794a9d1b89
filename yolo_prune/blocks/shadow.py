"""The shadow: a weightless copy of a network in which everything that torch-pruning cannot trace is replaced.

torch-pruning cannot trace blocks that chunk, reshape or decode. In the shadow, adapters replace such pieces by plain
convolutions and declare what those stand for in the real network. The shadow is thrown away; the plan made on it is
applied to the real, stock modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from yolo_prune.blocks.channelwise import nothing

Unit = tuple[str, str, int]
"""(layer path, side, channel); side is ``"out"`` or ``"in"``."""

ChannelSlice = tuple[str, str, Sequence[int]]
"""(layer path, side, channels): channels of the real network that a block treats as one list."""

Call = tuple[tuple[Any, ...], Any]
"""(arguments, result) of one call of a module in the stock forward pass, on the meta device."""


ACROSS_CHANNELS = (nn.GLU, nn.LogSoftmax, nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin)
"""Torch's activations that do not act on each value alone."""


class CannotSplitError(Exception):
    """A convolution cannot be traced in parts, so that its block is locked; the message says why."""


class Parts(list[torch.Tensor]):
    """Result of a convolution that is traced in parts: it chunks and splits into just these."""

    def chunk(self, chunks: int, dim: int = 1) -> Parts:
        """Return the parts, whatever is asked."""
        return self

    def split(self, sizes: Sequence[int], dim: int = 1) -> Parts:
        """Return the parts, whatever is asked."""
        return self


class SplitConv(nn.ModuleList):
    """A convolution that is traced in parts."""

    def forward(self, x: torch.Tensor) -> Parts:
        """Return the result of each part."""
        return Parts(part(x) for part in self)


class Shadow:
    """A traceable copy of a network and what its adapters declared about it. Paths are those of the real network.

    Attributes:
        model: The copy, on the meta device.
        calls: Path -> what each module took and returned in the stock forward pass; None if there was none.
        ties: Lists of lanes that have to keep the same share of their channels.
        narrow: Indices of those ties whose narrowest group is rounded, not the widest.
        fixed: Path of a layer -> why its output width cannot change.
        kept: Path of a block -> why nothing in it is traced, so that its widths stay.
        idle: Prefixes of paths that a deployed network drops.
        products: (module path, layer path, channels, macs per channel): products of activations, for one image.
        joined: Pairs of units that go together, beside those that tracing finds.
        locks: Stand-ins whose channels cannot change: path -> why.
        watched: Results of a forward pass that it does not return; tracing starts from them, too.
    """

    def __init__(self, model: nn.Module, calls: dict[str, list[Call]] | None) -> None:
        self.model = model
        self.calls = calls
        self.ties: list[list[ChannelSlice]] = []
        self.narrow: set[int] = set()
        self.fixed: dict[str, str] = {}
        self.locked_blocks: dict[str, str] = {}
        self.unused_when_deployed: list[str] = []
        self.products: list[tuple[str, str, list[int], int]] = []
        self.joined: list[tuple[Unit, Unit]] = []
        self.locks: dict[str, str] = {}
        self.watched: list[torch.Tensor] = []
        self._units: dict[tuple[str, str], list[tuple[Unit, ...]]] = {}
        first = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self._recorded = {p: first[id(m)] for p, m in model.named_modules(remove_duplicate=False)}
        """Path of a module -> the path under which its calls were recorded: one module can stand in several places."""
        self._places = Counter(self._recorded.values())

    # What adapters say ------------------------------------------------------------------------------------------------

    def split(self, path: str, name: str, parts: Sequence[Sequence[int]]) -> nn.ModuleList:
        """Trace a convolution of the block at ``path`` as one convolution per list of output channels.

        The block's own forward pass may go on to ``chunk`` or ``split`` its result.

        Args:
            path: Path of the block.
            name: Its `Conv` or ``nn.Conv2d``.
            parts: Output channels of each part.

        Raises:
            CannotSplitError: If it is neither, or does more to its result than to each channel by itself.
        """
        parent = self.model.get_submodule(path)
        whole = getattr(parent, name)
        conv = _plain_conv(whole, name)
        setattr(parent, name, SplitConv(_narrowed(whole, len(indices)) for indices in parts))
        for i, indices in enumerate(parts):
            for leaf, layer in getattr(parent, name)[i].named_modules(prefix=f"{path}.{name}"):
                here = f"{path}.{name}.{i}{leaf.removeprefix(f'{path}.{name}')}"
                if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
                    self._units[here, "out"] = [((leaf, "out", index),) for index in indices]
                if isinstance(layer, nn.Conv2d):
                    self._units[here, "in"] = [((leaf, "in", index),) for index in range(conv.in_channels)]
        return getattr(parent, name)

    def add_placeholder(
        self, path: str, name: str, inp: int, out: int, sources: Sequence[tuple[Unit, ...]] | None = None
    ) -> nn.Conv2d:
        """Add a 1x1 convolution to the block at ``path`` that has no counterpart in the real network.

        Args:
            path: Path of the block.
            name: A name that the block does not use.
            inp: Input channels.
            out: Output channels.
            sources: Per input channel the real units that it is; by default none.
        """
        conv = nn.Conv2d(inp, out, 1, device="meta")
        setattr(self.model.get_submodule(path), name, conv)
        self._units[f"{path}.{name}", "in"] = list(sources) if sources else [()] * inp
        self._units[f"{path}.{name}", "out"] = [()] * out
        return conv

    def as_channels(self, path: str, name: str) -> nn.BatchNorm2d:
        """Trace a parameter, or a linear layer's output, as a BatchNorm2d: one value per channel."""
        parent = self.model.get_submodule(path)
        old = getattr(parent, name)
        width = old.out_features if isinstance(old, nn.Linear) else old.numel()
        delattr(parent, name)
        setattr(parent, name, nn.BatchNorm2d(width, device="meta").eval())
        return getattr(parent, name)

    def as_conv(self, path: str, name: str) -> nn.Conv2d:
        """Trace a linear layer of the block at ``path`` as a 1x1 convolution."""
        parent = self.model.get_submodule(path)
        linear = getattr(parent, name)
        setattr(parent, name, nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta"))
        return getattr(parent, name)

    def tie(self, *lanes: ChannelSlice, narrow: bool = False) -> None:
        """Let lanes keep equal shares of their channels; which of them stay is free in each.

        Args:
            *lanes: What is tied.
            narrow: Whether widths are rounded for the narrowest of them, so that wider ones are rounded, too.
        """
        if narrow:
            self.narrow.add(len(self.ties))
        self.ties.append(list(lanes))

    def chain(self, first: str, second: str, width: int) -> None:
        """Say that layer ``second`` reads exactly what layer ``first`` makes, without tracing either."""
        self.joined += [((first, "out", i), (second, "in", i)) for i in range(width)]

    def lock_unread(self, path: str, why: str) -> None:
        """Say that nothing at ``path`` and below is traced: its widths stay, but for what `chain` says."""
        self.locked_blocks[path] = why

    def add_output(self, *results: torch.Tensor) -> None:
        """Let tracing see results that a forward pass computes without returning them."""
        self.watched += results

    def read(self, source: str, sources: Sequence[tuple[Unit, ...]]) -> None:
        """Let something that tracing does not see take what the module at ``source`` makes.

        Args:
            source: Path of a module that makes one feature map.
            sources: Per channel of that map the real units that take it.
        """
        conv, name = nn.Conv2d(len(sources), 1, 1, device="meta"), f"outside_reader_{source.replace('.', '_')}"
        while hasattr(self.model, name):
            name += "_"
        self.model.add_module(name, conv)
        self._units[name, "in"], self._units[name, "out"] = list(sources), [()]
        self.model.get_submodule(source).register_forward_hook(lambda *call: self.add_output(conv(call[-1])))

    def positions(self, path: str) -> list[int]:
        """Return height times width of the feature map that the block at ``path`` takes first, per call."""
        return [arguments[0][0, 0].numel() for arguments, _ in self.calls_of(path)]

    def calls_of(self, path: str) -> list[Call]:
        """Return the inputs and outputs of the block at ``path`` in the stock forward pass, per call."""
        return (self.calls or {}).get(self._recorded.get(path, path), [])

    # What tracing asks ------------------------------------------------------------------------------------------------

    def units(self, path: str, side: str, channel: int) -> tuple[Unit, ...]:
        """Return the real units that a channel of a shadow layer is."""
        found = self._units.get((path, side))
        return found[channel] if found is not None else ((path, side, channel),)

    def run(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Return everything that a forward pass computes and tracing has to see."""
        self.watched.clear()
        results = list(flat(self.model(image)))
        return [t for t in (*results, *self.watched) if t.requires_grad]

    def lock(self, path: str, why: str) -> bool:
        """Replace a block by one whose channels all stay, those that it takes and makes included.

        Returns:
            False if it takes or makes something else than feature maps (B, C, H, W), so that its parent has to be
            locked instead. The last block of a network may make anything.
        """
        if self.calls is None:
            return True
        calls = self.calls_of(path)
        recorded = self._recorded.get(path)
        if recorded is None or self._places[recorded] > 1:  # what is called here was not recorded, or not by itself
            return False
        rows = self.model.model
        is_last = path == f"model.{len(rows) - 1}"
        for arguments, result in calls:
            if any(t.ndim != 4 for t in flat(arguments)) or (not is_last and any(t.ndim != 4 for t in flat(result))):
                return False
        for inner in [p for p in self.locked_blocks if p.startswith(f"{path}.")]:
            del self.locked_blocks[inner]
        parent, _, name = path.rpartition(".")
        old = self.model.get_submodule(path)
        new = _Locked(calls, with_results=not is_last)
        for attribute in ("i", "f", "type"):  # a row's place in the network
            if hasattr(old, attribute):
                setattr(new, attribute, getattr(old, attribute))
        setattr(self.model.get_submodule(parent), name, new)
        self.locked_blocks[path] = why
        for inner, conv in new.named_modules():
            if isinstance(conv, nn.Conv2d):
                self.locks[f"{path}.{inner}"] = why
                for side, width in (("out", conv.out_channels), ("in", conv.in_channels)):
                    self._units[f"{path}.{inner}", side] = [()] * width
        return True


class _Locked(nn.Module):
    """Takes and makes what a block did in the stock forward pass, by convolutions that are locked on both sides."""

    def __init__(self, calls: list[Call], with_results: bool) -> None:
        super().__init__()
        self.calls, self.with_results, self.turn = calls, with_results, 0
        arguments, result = calls[0] if calls else ((), None)
        self.take = nn.ModuleList(nn.Conv2d(t.shape[1], 1, 1, device="meta") for t in flat(arguments))
        made = flat(result) if with_results else ()
        self.make = nn.ModuleList(nn.Conv2d(1, t.shape[1], 1, device="meta") for t in made)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        maps = flat((*arguments, *keywords.values()))
        first, *others = (F.adaptive_avg_pool2d(take(t), 1) for take, t in zip(self.take, maps, strict=True))
        seen = sum(others, first)
        if not self.with_results:
            return seen
        result = self.calls[self.turn % len(self.calls)][1]
        self.turn += 1
        make = iter(self.make)
        return mapped(result, lambda t: next(make)(F.interpolate(seen, size=t.shape[2:])))


def _plain_conv(whole: nn.Module, name: str) -> nn.Conv2d:
    """Return the convolution of a `Conv`, or a plain one; refuse what does not make each channel by itself."""
    conv = whole if isinstance(whole, nn.Conv2d) else getattr(whole, "conv", None)
    if not isinstance(conv, nn.Conv2d):
        raise CannotSplitError(f"its {name} is a {type(whole).__name__} that cannot be read in parts")
    for child in whole.children():
        if child is not conv and not acts_alone(child):
            raise CannotSplitError(f"the {type(child).__name__} of its {name} may join channels")
    return conv


def acts_alone(module: nn.Module) -> bool:
    """Whether a module of a simplified copy works on each channel by itself (see `channelwise.simplify`)."""
    if type(module) in (nn.Identity, nn.BatchNorm2d):
        return True
    if type(module) is nn.Sequential:
        return all(map(acts_alone, module))
    is_activation = type(module).__module__ == "torch.nn.modules.activation"
    return is_activation and type(module) not in ACROSS_CHANNELS and next(module.parameters(), None) is None


def _narrowed(whole: nn.Module, width: int) -> nn.Module:
    """Return a weightless copy of a `Conv` or ``nn.Conv2d`` that makes ``width`` channels."""
    if isinstance(whole, nn.Conv2d):
        c = whole
        return nn.Conv2d(
            c.in_channels, width, c.kernel_size, c.stride, c.padding, c.dilation, bias=c.bias is not None, device="meta"
        )
    part = deepcopy(whole)
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, _narrowed(child, width))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nothing(width))
    return part


def flat(value: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested lists, tuples and dicts."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        yield from flat(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from flat(item)


def mapped(value: Any, function: Any) -> Any:
    """Return nested lists, tuples and dicts with a function applied to each tensor."""
    if torch.is_tensor(value):
        return function(value)
    if isinstance(value, dict):
        return {k: mapped(v, function) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(v, function) for v in value)
    return value
