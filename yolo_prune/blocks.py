"""How each Ultralytics block is made traceable, and which of its attributes follow a cut: one adapter per kind.

torch-pruning cannot trace blocks that chunk, reshape or decode. Tracing therefore runs on a *shadow*: a weightless
copy of the network in which the adapters below replace such pieces by equivalent plain convolutions. The shadow is
thrown away; the plan made on it is applied to the real, stock modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn
from ultralytics.nn.modules import block, conv, head

Lane = tuple[str, str, Sequence[int]]
"""(layer path, side, channels): channels of the real network that a block treats as one list."""


@dataclass
class Shadow:
    """A traceable copy of a network and what its adapters declared about it. Paths are those of the real network.

    Attributes:
        model: The copy, on the meta device.
        slices: Shadow layer path -> (real layer path, the real output channels that it stands for).
        stand_ins: Shadow layers without a counterpart in the real network.
        ties: Lists of lanes that have to keep the same share of their channels.
        fixed: Real layer path -> why its output width cannot change.
        idle: Prefixes of paths that a deployed network drops.
        products: (module path, layer path, channels): attention products, priced by the layer's positions.
    """

    model: nn.Module
    slices: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    stand_ins: set[str] = field(default_factory=set)
    ties: list[list[Lane]] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    products: list[tuple[str, str, list[int]]] = field(default_factory=list)

    def split(self, path: str, name: str, parts: Sequence[Sequence[int]]) -> nn.ModuleList:
        """Replace the `Conv` ``name`` of the block at ``path`` by one convolution per list of output channels."""
        parent = self.model.get_submodule(path)
        whole = getattr(parent, name)
        pieces = nn.ModuleList(_narrowed(whole, len(indices)) for indices in parts)
        setattr(parent, name, pieces)
        for i, indices in enumerate(parts):
            for leaf in ("conv", "bn"):
                self.slices[f"{path}.{name}.{i}.{leaf}"] = (f"{path}.{name}.{leaf}", list(indices))
        return pieces

    def stand_in(self, path: str, name: str, module: nn.Module) -> nn.Module:
        """Add a layer to the block at ``path`` that ties channels together but has no counterpart."""
        setattr(self.model.get_submodule(path), name, module)
        self.stand_ins.add(f"{path}.{name}")
        return module


def _narrowed(whole: nn.Module, width: int) -> nn.Module:
    """Return a weightless copy of a `Conv` that makes ``width`` channels."""
    part = deepcopy(whole)
    c = whole.conv
    part.conv = nn.Conv2d(
        c.in_channels, width, c.kernel_size, c.stride, c.padding, c.dilation, bias=c.bias is not None, device="meta"
    )
    if hasattr(whole, "bn"):  # absent in a fused network
        part.bn = nn.BatchNorm2d(width, device="meta")
    return part


class Adapter:
    """What tracing and surgery have to know about one kind of block. The default: nothing."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        """Make the shadow's copy of the block traceable, and declare its ties and fixed widths."""

    def follow(self, module: nn.Module) -> dict[str, int]:
        """Return the attributes of the real block that depend on its widths, read off its layers after a cut."""
        return {}


_ADAPTERS: dict[type[nn.Module], Adapter] = {}

_PLAIN: tuple[type[nn.Module], ...] = (
    block.Bottleneck,
    block.C3,
    block.C3k,
    block.DFL,
    block.PSABlock,
    block.SPPF,
    conv.Concat,
    conv.Conv,
    conv.DWConv,
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.Identity,
    nn.MaxPool2d,
    nn.ModuleList,
    nn.Sequential,
    nn.Upsample,
)
"""Modules that torch-pruning traces as they are and that hold no width beside those that surgery sets."""


def register(*kinds: type[nn.Module]) -> Callable[[type[Adapter]], type[Adapter]]:
    """Register an adapter class for block classes."""

    def decorate(adapter: type[Adapter]) -> type[Adapter]:
        for kind in kinds:
            _ADAPTERS[kind] = adapter()
        return adapter

    return decorate


def adapter_for(module: nn.Module) -> Adapter | None:
    """Return the adapter of a block's exact class, or None where none is needed or known.

    Subclasses are not matched: a subclass may compute something else.
    """
    return _ADAPTERS.get(type(module))


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer reads exactly one input channel per output channel, so that both sides are cut alike."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def is_known(module: nn.Module) -> bool:
    """Whether a module's tracing is known to be right: it has an adapter, is plain, or acts on each value alone."""
    if isinstance(module, nn.Conv2d) and module.groups != 1 and not is_depthwise(module):
        return False  # its groups would have to shrink alike
    acts_alone = type(module).__module__ == "torch.nn.modules.activation" and next(module.parameters(), None) is None
    return type(module) in _ADAPTERS or type(module) in _PLAIN or acts_alone


@register(block.C2f, block.C3k2)
class _ChunkedBlock(Adapter):
    """C2f (YOLOv8) and C3k2 (YOLO11, YOLO26): ``cv1`` is chunked into two halves of equal width."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        _split_halves(shadow, path, module)

        def forward(x: torch.Tensor) -> torch.Tensor:
            y = [half(x) for half in module.cv1]
            for m in module.m:
                y.append(m(y[-1]))
            return module.cv2(torch.cat(y, 1))

        module.forward = forward

    def follow(self, module: nn.Module) -> dict[str, int]:
        return {"c": module.cv1.conv.out_channels // 2}  # C2f.forward_split reads it


@register(block.C2PSA)
class _C2PSA(_ChunkedBlock):
    """C2PSA: chunked likewise, but the attention's result takes the place of the second half."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        _split_halves(shadow, path, module)

        def forward(x: torch.Tensor) -> torch.Tensor:
            a, b = (half(x) for half in module.cv1)
            return module.cv2(torch.cat((a, module.m(b)), 1))

        module.forward = forward


def _split_halves(shadow: Shadow, path: str, module: nn.Module) -> None:
    """Trace a chunked ``cv1`` as two convolutions whose widths stay equal, so that the cut halves merge back."""
    c = module.c
    halves = (range(c), range(c, 2 * c))
    shadow.split(path, "cv1", halves)
    shadow.ties.append([(f"{path}.cv1.conv", "out", half) for half in halves])


@register(block.Attention)
class _Attention(Adapter):
    """Multi-head attention whose ``qkv`` lays out (query, key, value) channels head by head.

    Queries and keys of a head are cut together, values follow the block's width: the forward pass views the result as
    (B, C, H, W) with the input's C, so num_heads * head_dim stays equal to it. Every head keeps the same counts.
    """

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        heads, key, value = module.num_heads, module.key_dim, module.head_dim
        layout = torch.arange(heads * (2 * key + value)).view(heads, -1)
        q, k, v = layout.split([key, key, value], dim=1)  # one row per head
        shadow.split(path, "qkv", [part.flatten().tolist() for part in (q, k, v)])
        # A query channel meets its key channel and nothing else; the sum over them carries no channel on to the values.
        mix = nn.Conv2d(heads * key, heads * value, 1, device="meta")
        shadow.stand_in(path, "mix", mix)

        def forward(x: torch.Tensor) -> torch.Tensor:
            query, keys, values = (part(x) for part in module.qkv)
            values = values + mix(query * keys)
            return module.proj(values + module.pe(values))

        module.forward = forward
        qkv = f"{path}.qkv.conv"
        shadow.ties.append([(qkv, "in", range(heads * value)), *((qkv, "out", lane) for lane in v.tolist())])
        shadow.ties.append([(qkv, "out", lane) for lane in q.tolist()])
        shadow.products += [(path, qkv, part.flatten().tolist()) for part in (q, v)]

    def follow(self, module: nn.Module) -> dict[str, int]:
        # `scale` stays: it is part of the trained function, and removed query and key channels leave the sum as it is
        value = module.proj.conv.in_channels // module.num_heads
        return {"head_dim": value, "key_dim": (module.qkv.conv.out_channels // module.num_heads - value) // 2}


@register(head.Detect)
class _Detect(Adapter):
    """Detection heads, end-to-end ones included: hidden widths are free, only what each branch predicts is fixed."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        names = [n for n in ("cv2", "cv3", "one2one_cv2", "one2one_cv3") if getattr(module, n, None) is not None]
        branches = [getattr(module, name) for name in names]
        for name, branch in zip(names, branches, strict=True):
            predicts = "box distribution" if name.endswith("cv2") else "class scores"
            for i, level in enumerate(branch):
                shadow.fixed[f"{path}.{name}.{i}.{len(level) - 1}"] = f"predicts the {predicts}"
        for twin in names[2:]:
            # `fuse()` drops one of the two; tied widths make the deployed network cost the same, whichever it keeps
            shadow.idle.append(f"{path}.{twin}.")
            name = twin.removeprefix("one2one_")
            for inner, layer in getattr(module, name).named_modules():
                if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                    both = (f"{path}.{name}.{inner}", f"{path}.{twin}.{inner}")
                    shadow.ties.append([(p, "out", range(layer.out_channels)) for p in both])

        def forward(x: list[torch.Tensor]) -> list[torch.Tensor]:
            # raw outputs, without decoding; the stock head detaches what one2one reads, and autograd would not see it
            return [level(xi) for branch in branches for level, xi in zip(branch, x, strict=True)]

        module.forward = forward
