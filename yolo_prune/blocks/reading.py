"""From a copy of a network to its shadow: who needs an adapter, who is read as it is, and who has to be locked."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from ultralytics.nn.modules import conv

from yolo_prune.blocks.channelwise import inherited
from yolo_prune.blocks.registry import adapter_for
from yolo_prune.blocks.shadow import Call, CannotSplitError, Shadow, SplitConv, acts_alone
from yolo_prune.errors import UnsupportedError

_PLAIN = dict.fromkeys(
    (
        conv.Concat,
        conv.Conv,
        conv.ConvTranspose,
        conv.DWConv,
        conv.DWConvTranspose2d,
        conv.Index,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveMaxPool2d,
        nn.AvgPool2d,
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.Dropout,
        nn.Dropout2d,
        nn.Identity,
        nn.MaxPool2d,
        nn.ModuleList,
        nn.Sequential,
        nn.Upsample,
        nn.UpsamplingBilinear2d,
        nn.UpsamplingNearest2d,
        nn.ZeroPad2d,
        SplitConv,
    )
)
"""Modules that torch-pruning traces as they are, in training as in evaluation, and whose forward pass is not read."""

_JOINING = {operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, torch.add, torch.mul, torch.sub}
"""Operations that combine maps channel by channel."""

_HARMLESS = {
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.avg_pool2d, F.dropout, F.elu, F.gelu, F.hardsigmoid, F.hardswish,
    F.hardtanh, F.interpolate, F.leaky_relu, F.max_pool2d, F.mish, F.relu, F.relu6, F.sigmoid, F.silu, F.softplus,
    F.tanh, torch.relu, torch.sigmoid, torch.tanh,
}  # fmt: skip
"""Operations on each channel alone."""

_HARMLESS_METHODS = {"contiguous", "relu", "sigmoid", "tanh", "clone"}
_JOINING_METHODS = {"add", "mul", "sub", "add_", "mul_"}


def shadow_of(copy: nn.Module, calls: dict[str, list[Call]] | None = None) -> Shadow:
    """Make a weightless copy of a network traceable, in place.

    Args:
        copy: On the meta device.
        calls: What its modules took and returned in the stock forward pass. Without it, nothing is locked: enough to
            ask what adapters declare, not to trace.

    Raises:
        UnsupportedError: If a row of the network that nobody knows takes or makes something else than feature maps.
    """
    shadow = Shadow(copy, calls)
    for name, row in list(copy.model.named_children()):
        if why := _prepare(shadow, f"model.{name}", row):
            raise UnsupportedError(
                f"model.{name} is a {type(row).__name__} that cannot be kept as it is: {why}, and what it takes or "
                "makes are no feature maps (B, C, H, W); register an adapter for it with yolo_prune.register_block."
            )
    return shadow


def _prepare(shadow: Shadow, path: str, module: nn.Module) -> str | None:
    """Make a block and all below it traceable; return why it is not, if its parent has to be locked instead."""
    if path in shadow.locked_blocks:
        return None
    why: str | None = None
    if adapter := adapter_for(module):
        try:
            why = adapter.trace(shadow, path, module)
        except CannotSplitError as e:
            why = f"{_named(module)} has other layers than its class: {e}"
    elif shadow.calls is not None and not is_read(module, shadow.calls_of(path)):
        why = f"{_named(module)} is unknown to yolo_prune"
    for name, child in list(module.named_children()):
        why = why or _prepare(shadow, f"{path}.{name}", child)
    return None if why is None or shadow.lock(path, why) else why


def _named(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("__main__.")


def is_read(module: nn.Module, calls: list[Call]) -> bool:
    """Whether torch-pruning traces a block without an adapter right, as far as its own forward pass goes.

    True for plain layers, for activations, and for a block whose forward pass, read by torch.fx, does nothing but call
    its submodules and pool, pad, activate, concatenate, add or multiply feature maps of equal width.

    Args:
        module: The block.
        calls: What it took and returned in the stock forward pass.
    """
    if inherited(type(module), _PLAIN) or acts_alone(module):
        return True
    if type(module).__module__.startswith("torch.") or "forward" in vars(module) or not calls:
        return False  # fx reads the forward pass of the class
    was_training = module.training
    try:
        graphs = []
        for module.training in (True, False):
            graphs.append(_Reader().trace(module))
        texts = {str(graph) for graph in graphs}
        if len(texts) > 1:  # it computes something else in training
            return False
        module.training = False
        ShapeProp(fx.GraphModule(module, graphs[-1])).propagate(*calls[0][0])
        return all(_is_harmless(node) for node in graphs[-1].nodes)
    except Exception:  # whatever fx and foreign code raise: a block that cannot be read
        return False
    finally:
        module.training = was_training


class _Reader(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _is_harmless(node: fx.Node) -> bool:
    if node.op in {"placeholder", "output", "call_module"}:
        return True
    if node.op == "call_method":
        joins, is_harmless = node.target in _JOINING_METHODS, node.target in _HARMLESS_METHODS
    elif node.op == "call_function" and node.target is torch.cat:
        return _argument(node, 1, "dim", 0) == 1
    elif node.op == "call_function" and node.target is F.pad:
        return len(_argument(node, 1, "pad", ())) <= 4
    else:
        joins, is_harmless = node.target in _JOINING, node.target in _HARMLESS
    if joins:
        shapes = [a.meta["tensor_meta"].shape for a in node.all_input_nodes]
        return all(len(s) == 4 and s[1] == shapes[0][1] for s in shapes)
    return is_harmless and node.op.startswith("call_")


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
