"""Adapters of convolutional blocks: chunked, re-parameterised, slicing and fusing ones.

Blocks that only call convolutions, concatenate and add need none: `reading` finds out that they are traced as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from ultralytics.nn.modules import block, conv

from yolo_prune.blocks.inner import side_by_side, taken
from yolo_prune.blocks.registry import BlockAdapter, InnerBlocks, register_block
from yolo_prune.blocks.shadow import Shadow


@register_block(block.C2fAttn, block.PSA, block.RepNCSPELAN4, block.ELAN1)
class ChunkedBlock(BlockAdapter):
    """``cv1`` is chunked into two halves of equal width, which are free to keep different channels."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        """Trace ``cv1`` as two convolutions and tie them."""
        half = module.c
        halves = (range(half), range(half, 2 * half))
        shadow.split(path, "cv1", halves)
        shadow.tie(*((f"{path}.cv1.conv", "out", channels) for channels in halves))

    def follow(self, module: nn.Module) -> dict[str, Any]:
        """Return ``c``, the width of one half."""
        return {"c": module.cv1.conv.out_channels // 2}  # `forward_split` reads it


@register_block(block.C2, block.C2PSA)
class _ChunkedChain(ChunkedBlock):
    """One half goes through inner blocks."""

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield InnerBlocks("m")


@register_block(block.C2f, block.C2fCIB, block.C2fPSA, block.C3k2)
class _ChunkedList(ChunkedBlock):
    """``cv2`` takes both halves and what each of the inner blocks makes."""

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield from side_by_side(module, "cv2.conv", module.cv1.conv.out_channels)


@register_block(block.C3f)
class _C3f(BlockAdapter):
    """As `C2f`, with a convolution for each half."""

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield from side_by_side(module, "cv3.conv", module.cv1.conv.out_channels + module.cv2.conv.out_channels)


@register_block(block.HGBlock)
class _HGBlock(BlockAdapter):
    """Convolutions one behind the other; ``sc`` takes the input and what each of them makes."""

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield InnerBlocks("m", "sc.conv", taken(module.m[0]), fewest=1)


@register_block(block.BottleneckCSP, block.C1, block.C3, block.RepC3)
class _Chain(BlockAdapter):
    """Inner blocks one behind the other, beside a convolution of the same input."""

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield InnerBlocks("m")


@register_block(block.ResNetLayer)
class _ResNetLayer(BlockAdapter):
    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield InnerBlocks("layer", fewest=1)


@register_block(block.GhostBottleneck, block.ResNetBlock)
class _Shortcut(BlockAdapter):
    """Adds to its input. That of a ResNetBlock is never negative, so that cutting off what is changes nothing."""

    def is_residual(self, module: nn.Module) -> bool:
        return isinstance(module.shortcut, nn.Identity)


@register_block(block.C3x)
class _C3x(_Chain):
    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"c_": module.cv1.conv.out_channels}


@register_block(block.SPPELAN)
class _SPPELAN(BlockAdapter):
    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"c": module.cv1.conv.out_channels}


@register_block(conv.RepConv)
class _RepConv(BlockAdapter):
    """3x3 and 1x1 convolution side by side, which `fuse` merges into one 3x3."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        if not hasattr(module, "conv"):
            shadow.unused_when_deployed.append(f"{path}.conv2.")

    def follow(self, module: nn.Module) -> dict[str, Any]:
        merged = module.conv if hasattr(module, "conv") else module.conv1.conv
        return {"c1": merged.in_channels, "c2": merged.out_channels, "g": merged.groups}


@register_block(conv.Conv2)
class _Conv2(BlockAdapter):
    """As `RepConv`: `fuse` merges the 1x1 convolution into the larger one."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        shadow.unused_when_deployed.append(f"{path}.cv2.")


@register_block(block.RepVGGDW)
class _RepVGGDW(BlockAdapter):
    """7x7 and 3x3 depthwise convolution side by side, which `fuse` merges into one 7x7."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        shadow.unused_when_deployed.append(f"{path}.conv1.")

    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"dim": (module.conv if isinstance(module.conv, nn.Conv2d) else module.conv.conv).out_channels}


@register_block(block.ADown)
class _ADown(BlockAdapter):
    """The *input* is chunked: each half goes to a convolution of its own."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        names = ("cv1", "cv2")
        half = module.cv1.conv.in_channels
        halves = []
        for i, name in enumerate(names):
            sources: list[tuple[tuple[str, str, int], ...]] = [()] * (2 * half)
            sources[i * half : (i + 1) * half] = [((f"{path}.{name}.conv", "in", c),) for c in range(half)]
            halves.append(shadow.add_placeholder(path, f"half{i}", 2 * half, half, sources))
        shadow.tie(*((f"{path}.{name}.conv", "in", range(half)) for name in names))

        def forward(x: torch.Tensor) -> torch.Tensor:
            x = F.avg_pool2d(x, 2, 1, 0, False, True)
            a, b = (take(x) for take in halves)
            return torch.cat((module.cv1(a), module.cv2(F.max_pool2d(b, 3, 2, 1))), 1)

        module.forward = forward

    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"c": module.cv1.conv.out_channels}


@register_block(conv.Focus)
class _Focus(BlockAdapter):
    """Four slices of the image side by side: each input channel is four of the convolution's."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        width = module.conv.conv.in_channels // 4
        inner = f"{path}.conv.conv"
        sources = [tuple((inner, "in", k * width + i) for k in range(4)) for i in range(width)]
        take = shadow.add_placeholder(path, "take", width, 4 * width, sources)
        module.forward = lambda x: module.conv(take(F.max_pool2d(x, 2)))


@register_block(block.CBLinear)
class _CBLinear(BlockAdapter):
    """One convolution, split into parts of different width; all keep the same share, so that `c2s` can follow."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        ends = torch.tensor(module.c2s).cumsum(0).tolist()
        parts = [range(end - width, end) for width, end in zip(module.c2s, ends, strict=True)]
        shadow.split(path, "conv", parts)
        shadow.tie(*((f"{path}.conv", "out", part) for part in parts), narrow=True)

    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"c2s": [c * module.conv.out_channels // sum(module.c2s) for c in module.c2s]}


@register_block(block.CBFuse)
class _CBFuse(BlockAdapter):
    """A sum of one part of each `CBLinear`, resized."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        def forward(xs: list[Any]) -> torch.Tensor:
            *parts, x = xs
            for part, index in zip(parts, module.idx, strict=True):
                x = x + F.interpolate(part[index], size=x.shape[2:])
            return x

        module.forward = forward


@register_block(block.Proto)
class _Proto(BlockAdapter):
    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        shadow.fixed[_last(f"{path}.cv3", module.cv3)] = "makes the mask prototypes"


@register_block(block.Proto26)
class _Proto26(_Proto):
    """Mask prototypes from all levels, and semantic classes in training only."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        super().trace(shadow, path, module)
        if module.semseg is not None:  # absent in a fused network
            shadow.fixed[f"{path}.semseg.{len(module.semseg) - 1}"] = "predicts the semantic classes"

        def forward(x: list[torch.Tensor], return_semantic: bool = True) -> torch.Tensor:
            feat = x[0]
            for i, refine in enumerate(module.feat_refine):
                feat = feat + F.interpolate(refine(x[i + 1]), scale_factor=2 ** (i + 1))
            if module.semseg is not None:
                shadow.add_output(module.semseg(feat))
            return block.Proto.forward(module, module.feat_fuse(feat))

        module.forward = forward


@register_block(conv.SpatialAttention)
class _SpatialAttention(BlockAdapter):
    """Averages over all channels, so that every channel's removal would change the rest."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        return "it averages over all channels"


def _last(path: str, layer: nn.Module) -> str:
    """Return the path of the convolution in a `Conv`, or of the plain convolution."""
    return path if isinstance(layer, nn.Conv2d) else f"{path}.conv"
