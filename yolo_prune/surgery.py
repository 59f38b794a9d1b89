"""Apply a plan to networks and to an optimizer: the same slices everywhere, all or nothing.

A cut has two phases. First every new tensor is made, while nothing is touched. Then they are put in place by plain
assignments, each of which is recorded and can be taken back: `Cut.undo` restores the very same objects, so a failure
later on (out of memory while recalibrating, a full disk) can still be undone without a copy of the old weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from yolo_prune.blocks import adapter_for, is_depthwise
from yolo_prune.errors import CutError, PlanError, UnsupportedError

if TYPE_CHECKING:
    from yolo_prune.plan import PrunePlan

Slices = dict[int, torch.Tensor]
"""Dimension -> kept indices."""

_MISSING = object()


class Cut:
    """Assignments that have been made and can be taken back."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, Any, Any]] = []

    def set(self, owner: Any, key: Any, value: Any) -> None:
        """Set an attribute of a module, or an item of a dict or list."""
        if isinstance(owner, (dict, list)):
            old = owner.get(key, _MISSING) if isinstance(owner, dict) else owner[key]
            self._done.append((owner, key, old))
            owner[key] = value
        else:
            self._done.append((owner, key, owner.__dict__.get(key, _MISSING)))
            owner.__dict__[key] = value

    def delete(self, owner: dict[Any, Any], key: Any) -> None:
        """Remove an item of a dict."""
        self._done.append((owner, key, owner[key]))
        del owner[key]

    def extend(self, later: Cut) -> None:
        """Take over assignments that were made after these."""
        self._done += later._done

    def undo(self) -> None:
        """Take everything back, last assignment first."""
        while self._done:
            owner, key, old = self._done.pop()
            items = owner if isinstance(owner, (dict, list)) else owner.__dict__
            items[key] = old
            if old is _MISSING:
                del items[key]


def cut(plan: PrunePlan, models: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> Cut:
    """Cut networks of equal structure, and the state of the optimizer of the first.

    Parameters are replaced by new ones (graphs of earlier batches may still hold the old ones); ``requires_grad``,
    gradients, device, dtype and memory format follow. Optimizer groups keep their settings and order, momentum and
    moments are sliced.

    Args:
        plan: Made for networks of exactly these widths.
        models: Networks to cut in place, e.g. the live one and its EMA.
        optimizer: Optimizer that holds the parameters of ``models[0]``.

    Returns:
        The cut, which ``undo()`` takes back.

    Raises:
        PlanError: If the plan does not fit a network.
        CutError: If anything else fails. In both cases nothing has changed.
    """
    _check_fit(plan, models)
    done = Cut()
    try:
        edits = [list(_edits(model, plan)) for model in models]
        replaced: dict[nn.Parameter, tuple[nn.Parameter, Slices]] = {}
        for model_edits in edits:
            for module, name, tensor, slices in model_edits:
                if isinstance(tensor, nn.Parameter):
                    replaced[tensor] = (_sliced_parameter(tensor, slices), slices)
                    done.set(module._parameters, name, replaced[tensor][0])
                else:
                    done.set(module._buffers, name, _sliced(tensor, slices))
        for model in models:
            _set_widths(done, model, plan)
        if optimizer is not None:
            _cut_optimizer(done, optimizer, replaced)
    except BaseException as e:  # an interrupt, too, must not leave half a cut
        done.undo()
        if not isinstance(e, Exception):
            raise
        raise CutError(f"the cut failed and was taken back, nothing has changed: {type(e).__name__}: {e}") from e
    return done


def _check_fit(plan: PrunePlan, models: Sequence[nn.Module]) -> None:
    for model in models:
        modules = dict(model.named_modules())
        for path, expected in plan.widths.items():
            has = widths(modules[path]) if path in modules else None
            if has != expected:
                raise PlanError(
                    f"the plan is for another network: {path} has widths {has or 'unknown'}, the plan expects "
                    f"{expected}; apply plans in order, to the network that they were made for."
                )
            for side, kept in plan.layers[path].items():
                if kept[-1] >= expected[side]:
                    raise PlanError(f"the plan is damaged: {path} {side} keeps channel {kept[-1]} of {expected[side]}.")


_WIDTH: dict[type[nn.Module], dict[str, str]] = {
    nn.Conv2d: {"out": "out_channels", "in": "in_channels"},
    nn.BatchNorm2d: {"out": "num_features"},
}
"""Layer class -> side -> the attribute that holds its width."""


def network_of(model: Any) -> nn.Module:
    """Return the network inside a ``YOLO``, or the network itself.

    Raises:
        UnsupportedError: If there is none, e.g. because the model is an exported file.
    """
    for candidate in (model, getattr(model, "model", None)):
        if isinstance(candidate, nn.Module) and isinstance(getattr(candidate, "model", None), nn.Sequential):
            return candidate
    raise UnsupportedError(f"{model!r:.200} is no YOLO model with weights that can be cut; load a .pt or .yaml file.")


def widths(module: nn.Module) -> dict[str, int] | None:
    """Return the channels of a layer per side, ``{"out": n, "in": n}``, or None if it is no layer with channels."""
    attributes = _WIDTH.get(type(module))
    return {side: getattr(module, name) for side, name in attributes.items()} if attributes else None


def _edits(model: nn.Module, plan: PrunePlan) -> Iterator[tuple[nn.Module, str, torch.Tensor, Slices]]:
    """Yield every tensor to slice: (owner, name, tensor, slices)."""
    for path, kept in plan.layers.items():
        module = model.get_submodule(path)
        out = torch.tensor(kept["out"])
        if isinstance(module, nn.Conv2d):
            slices = {0: out} if is_depthwise(module) else {0: out, 1: torch.tensor(kept["in"])}
            yield module, "weight", module.weight, slices
            if module.bias is not None:
                yield module, "bias", module.bias, {0: out}
        else:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.ndim:  # num_batches_tracked is a scalar
                    yield module, name, tensor, {0: out}


def _sliced(tensor: torch.Tensor, slices: Slices) -> torch.Tensor:
    """Return a copy with only the kept indices, in the same memory format."""
    result = tensor.detach()
    for dim, kept in slices.items():
        result = result.index_select(dim, kept.to(tensor.device))
    if tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()


def _sliced_parameter(parameter: nn.Parameter, slices: Slices) -> nn.Parameter:
    new = nn.Parameter(_sliced(parameter, slices), requires_grad=parameter.requires_grad)
    if parameter.grad is not None:  # accumulated over batches that have not been stepped yet
        new.grad = _sliced(parameter.grad, slices)
    new.__dict__.update(parameter.__dict__)
    return new


def _set_widths(done: Cut, model: nn.Module, plan: PrunePlan) -> None:
    """Let every attribute that tells a width follow."""
    for path, kept in plan.layers.items():
        module = model.get_submodule(path)
        if is_depthwise(module):
            done.set(module, "groups", len(kept["out"]))
        for side, attribute in _WIDTH[type(module)].items():
            done.set(module, attribute, len(kept[side]))
    for module in model.modules():
        if adapter := adapter_for(module):
            for name, value in adapter.follow(module).items():
                done.set(module, name, value)
    for block in model.model if isinstance(getattr(model, "model", None), nn.Sequential) else ():
        if hasattr(block, "np"):  # parameter count that Ultralytics attaches to each block
            done.set(block, "np", sum(p.numel() for p in block.parameters()))


def _cut_optimizer(
    done: Cut, optimizer: torch.optim.Optimizer, replaced: dict[nn.Parameter, tuple[nn.Parameter, Slices]]
) -> None:
    """Put the new parameters in the place of the old ones, and slice what the optimizer remembers of each."""
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            if old in replaced:
                done.set(group["params"], i, replaced[old][0])
    for old in [p for p in optimizer.state if p in replaced]:
        new, slices = replaced[old]
        state = {}
        for name, value in optimizer.state[old].items():
            if isinstance(value, torch.Tensor) and value.shape == old.shape:
                value = _sliced(value, slices)
            elif isinstance(value, torch.Tensor) and value.numel() > 1:
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {name!r} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(old.shape)}, which cannot be sliced; use SGD, MuSGD or an Adam variant"
                )
            state[name] = value
        done.set(optimizer.state, new, state)
        done.delete(optimizer.state, old)
