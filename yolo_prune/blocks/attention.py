"""Adapters of attention: queries and keys are cut together, values and block widths by themselves.

Heads stay; every head keeps the same number of channels of each kind, so that the stock reshapes go on to work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from ultralytics.nn.modules import block, transformer

from yolo_prune.blocks.inner import side_by_side
from yolo_prune.blocks.registry import BlockAdapter, InnerBlocks, register_block
from yolo_prune.blocks.shadow import Shadow


def _split_heads(
    shadow: Shadow, path: str, heads: int, key: int, value: int, areas: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Trace a ``qkv`` convolution, laid out (query, key, value) head by head, as three.

    Returns:
        The channels of queries and of values, one list per head.
    """
    layout = torch.arange(heads * (2 * key + value)).view(heads, -1)
    q, k, v = layout.split([key, key, value], dim=1)
    shadow.split(path, "qkv", [part.flatten().tolist() for part in (q, k, v)])
    qkv = f"{path}.qkv.conv"
    macs = sum(n * n // areas for n in shadow.positions(path))
    shadow.products += [(path, qkv, part.flatten().tolist(), macs) for part in (q, v)]
    return q.tolist(), v.tolist()


@register_block(block.Attention)
class _Attention(BlockAdapter):
    """Attention (YOLOv10, 11, 26): values and block width keep equal counts.

    The forward pass views its result as (B, C, H, W) with the C of its input, so that num_heads * head_dim stays C.
    """

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        heads, key, value = module.num_heads, module.key_dim, module.head_dim
        queries, values = _split_heads(shadow, path, heads, key, value, areas=1)
        qkv = f"{path}.qkv.conv"
        shadow.tie((qkv, "in", range(heads * value)), *((qkv, "out", head) for head in values))
        shadow.tie(*((qkv, "out", head) for head in queries))
        _trace_products(shadow, path, module, heads * key, heads * value)

    def follow(self, module: nn.Module) -> dict[str, Any]:
        # `scale` stays: it is part of the trained function, and removed query and key channels leave the sum as it is
        value = module.proj.conv.in_channels // module.num_heads
        return {"head_dim": value, "key_dim": (module.qkv.conv.out_channels // module.num_heads - value) // 2}


@register_block(block.AAttn)
class _AreaAttention(BlockAdapter):
    """Area attention (YOLO12). Queries, keys and values have one width, ``head_dim``; the block's width is free.

    The forward pass scales by ``head_dim ** -0.5``, so that the queries are scaled by the inverse when it changes.
    """

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        heads, width = module.num_heads, module.head_dim
        queries, values = _split_heads(shadow, path, heads, width, width, areas=module.area)
        shadow.tie(*((f"{path}.qkv.conv", "out", head) for head in (*queries, *values)))
        _trace_products(shadow, path, module, heads * width, heads * width)

    def follow(self, module: nn.Module) -> dict[str, Any]:
        total = module.proj.conv.in_channels
        return {"head_dim": total // module.num_heads, "all_head_dim": total}

    def compensate(self, module: nn.Module, follow: dict[str, Any]) -> Iterator[tuple[str, list[int], float]]:
        now = follow["head_dim"]
        queries = torch.arange(3 * now * module.num_heads).view(module.num_heads, -1)[:, :now]
        yield "qkv", queries.flatten().tolist(), (now / module.head_dim) ** 0.5


def _trace_products(shadow: Shadow, path: str, module: nn.Module, keys: int, values: int) -> None:
    """Trace attention as values plus a mix that stands for softmax(query key).

    A query channel meets its key channel and nothing else; the sum over them carries no channel on to the values.
    """
    mix = shadow.add_placeholder(path, "mix", keys, values)

    def forward(x: torch.Tensor) -> torch.Tensor:
        query, key, value = module.qkv(x)
        value = value + mix(query * key)
        return module.proj(value + module.pe(value))

    module.forward = forward


@register_block(block.ABlock)
class _ABlock(BlockAdapter):
    """Area attention and a feed-forward, each of which adds to its input."""

    def is_residual(self, module: nn.Module) -> bool:
        return True


@register_block(block.A2C2f)
class _A2C2f(BlockAdapter):
    """Area-attention blocks (YOLO12), with a learned scale per channel on the residual branch."""

    per_channel: ClassVar[tuple[str, ...]] = ("gamma",)

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        scale = None if module.gamma is None else shadow.as_channels(path, "gamma")

        def forward(x: torch.Tensor) -> torch.Tensor:
            y = [module.cv1(x)]
            y.extend(m(y[-1]) for m in module.m)
            out = module.cv2(torch.cat(y, 1))
            return out if scale is None else x + scale(out)

        module.forward = forward

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        yield from side_by_side(module, "cv2.conv", module.cv1.conv.out_channels)


@register_block(block.MaxSigmoidAttnBlock)
class _MaxSigmoidAttention(BlockAdapter):
    """Text-guided attention (YOLO-World): image and text meet in ``num_heads * hc`` channels, ``gl`` makes the text's.

    The forward pass divides by ``hc ** 0.5``, so that ``gl`` is scaled by the inverse when ``hc`` changes.
    """

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        heads, text, image = module.nh, module.gl.out_features, module.proj_conv.conv.out_channels
        for layer, width in ((f"{path}.gl", text), (f"{path}.proj_conv.conv", image)):
            shadow.tie(*((layer, "out", head) for head in torch.arange(width).view(heads, -1).tolist()))
        words = [arguments[1].shape[1] for arguments, _ in shadow.calls_of(path)]
        macs = sum(n * m for n, m in zip(shadow.positions(path), words, strict=True))
        shadow.products.append((path, f"{path}.gl", list(range(text)), macs))
        guide = shadow.as_channels(path, "gl")
        mix = shadow.add_placeholder(path, "mix", text, image)

        def forward(x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            embed = x if module.ec is None else module.ec(x)
            return module.proj_conv(x) + mix(guide(embed))

        module.forward = forward

    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"hc": module.gl.out_features // module.nh}

    def compensate(self, module: nn.Module, follow: dict[str, Any]) -> Iterator[tuple[str, slice, float]]:
        yield "gl", slice(None), (follow["hc"] / module.hc) ** 0.5


@register_block(block.ImagePoolingAttn)
class _ImagePoolingAttention(BlockAdapter):
    """The text looks at pooled image features (YOLO-World): only what the projections read can be cut."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        for i in range(module.nf):
            shadow.fixed[f"{path}.projections.{i}"] = "feeds a LayerNorm over all channels"
        for name in ("query", "key", "value", "proj"):
            shadow.lock_unread(f"{path}.{name}", "LayerNorm and the text embedding have fixed widths")

        def forward(x: list[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
            shadow.add_output(*(project(xi) for project, xi in zip(module.projections, x, strict=True)))
            return text

        module.forward = forward


_MULTIHEAD = "LayerNorm and torch's MultiheadAttention work on the whole width; only the feed-forward inside is cut"
_LAST_DIMENSION = "linear layers over the last dimension; only hidden widths are cut"


class _FeedForward(BlockAdapter):
    """A block that is locked, but for the hidden width between two of its linear layers."""

    linears: ClassVar[tuple[str, str]]
    why: ClassVar[str] = _MULTIHEAD

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        first, second = self.linears
        shadow.chain(f"{path}.{first}", f"{path}.{second}", module.get_submodule(first).out_features)
        return self.why


@register_block(transformer.AIFI, transformer.TransformerEncoderLayer)
class _Encoder(_FeedForward):
    """Transformer encoder layer (RT-DETR)."""

    linears = ("fc1", "fc2")


@register_block(transformer.DeformableTransformerDecoderLayer)
class _DecoderLayer(_FeedForward):
    """Transformer decoder layer (RT-DETR)."""

    linears = ("linear1", "linear2")


@register_block(transformer.MLPBlock)
class _MLPBlock(_FeedForward):
    """Two linear layers over the last dimension."""

    linears = ("lin1", "lin2")
    why = _LAST_DIMENSION


@register_block(block.TransformerBlock)
class _TransformerBlock(BlockAdapter):
    """Transformer layers without normalisation (C3TR)."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        for i, layer in enumerate(module.tr):
            shadow.chain(f"{path}.tr.{i}.fc1", f"{path}.tr.{i}.fc2", layer.fc1.out_features)
        return _MULTIHEAD


@register_block(transformer.MSDeformAttn)
class _DeformableAttention(BlockAdapter):
    """Values are cut, equally in all heads; ``d_model`` is what the forward pass divides by the heads to view them."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        values = torch.arange(module.value_proj.out_features).view(module.n_heads, -1)
        shadow.chain(f"{path}.value_proj", f"{path}.output_proj", values.numel())
        shadow.tie(*((f"{path}.value_proj", "out", head) for head in values.tolist()))
        return _MULTIHEAD

    def follow(self, module: nn.Module) -> dict[str, Any]:
        return {"d_model": module.value_proj.out_features}


@register_block(transformer.MLP)
class _MLP(BlockAdapter):
    """Linear layers one after the other, over the last dimension."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        for i, layer in enumerate(module.layers[:-1]):
            shadow.chain(f"{path}.layers.{i}", f"{path}.layers.{i + 1}", layer.out_features)
        return _LAST_DIMENSION
