"""A forward pass without data: on a copy on the meta device, which has no weights and takes no memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolo_prune.blocks import (
    Call,
    mapped,
    simplify,
)
from yolo_prune.errors import UnsupportedError, describe_error
from yolo_prune.graph.activations import Recorder


def weightless_copy(model: nn.Module) -> nn.Module:
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
class ForwardRun:
    """Record of a stock forward pass.

    Attributes:
        calls: Path of a module -> what it took and returned, per call.
        positions: Path of a layer -> how often its weights are applied.
        macs: Path of a module that was called -> multiply-adds in it, as torch counts them; "" is the network.
        recorder: The operations, one by one.
    """

    recorder: Recorder

    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    positions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    macs: dict[str, int] = field(default_factory=dict)


def stock_forward(model: nn.Module, image: torch.Tensor) -> ForwardRun:
    """Run a weightless network as it is, and return what that shows.

    Raises:
        UnsupportedError: If shapes depend on values.
    """
    taken: list[tuple[Any, ...]] = []  # of the calls that have not returned yet
    running = [""]
    run = ForwardRun(Recorder(image, lambda: running[-1]))

    def enter(path: str) -> Callable[..., None]:
        def take(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            running.append(path)
            taken.append(mapped((*inputs, *keywords.values()), lambda t: t))  # heads overwrite the list that they take

        return take

    def hook(path: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            running.pop()
            run.calls[path].append((taken.pop(), mapped(output, lambda t: t)))
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                run.positions[path] += _positions(module, inputs[0], output)

        return record

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
        hooks.append(module.register_forward_hook(hook(path)))
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, run.recorder:
            model(image)
    except Exception as e:  # whatever a network of foreign blocks raises
        raise unreadable(model, e) from e
    for handle in hooks:
        handle.remove()
    root = type(model).__name__
    for name, flops in counter.get_flop_counts().items():
        if name == root or name.startswith(f"{root}."):
            run.macs[name[len(root) + 1 :]] = sum(flops.values()) // 2
    return run


def _positions(layer: nn.Module, taken: torch.Tensor, made: torch.Tensor) -> int:
    """Return how often a layer's weights were applied; those of a transposed convolution meet every input position."""
    if isinstance(layer, nn.Linear):
        return made[..., 0].numel()
    return (taken if isinstance(layer, nn.ConvTranspose2d) else made)[0, 0].numel()


def unreadable(model: nn.Module, error: Exception) -> UnsupportedError:
    """Return the error for a network whose forward pass without values fails."""
    return UnsupportedError(
        f"this {type(model).__name__} cannot be read without data, because its forward pass on tensors without "
        f"values ends in {describe_error(error)}; shapes must not depend on values, as they do in a "
        "prompt-free YOLOE (cut the YOLOE that it was made from)."
    )
