"""Apply a plan to networks and to an optimizer: the same slices everywhere, all or nothing.

A cut has two phases. First every new tensor is made, while nothing is touched. Then they are put in place by plain
assignments, each of which is recorded and can be taken back: `UndoLog.undo` restores the very same objects, so a
failure later on (out of memory in reconstruction, a full disk) can still be undone without a copy of the old weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.blocks import adapter_for, channel_dim, flat, followed, inner_blocks, mapped, misfit, remove
from yolo_prune.errors import CutError, PlanError, UnsupportedError, short_repr
from yolo_prune.graph.layers import Slices, attributes, named_layers, tensors, widths

if TYPE_CHECKING:
    from yolo_prune.plan import PrunePlan

_MISSING = object()
_VALUES = object()
_CALL = object()


class UndoLog:
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

    def overwrite(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Set the values of a tensor, which stays the same object: an optimizer may hold it."""
        self._done.append((tensor, _VALUES, tensor.detach().clone()))
        with torch.no_grad():
            tensor.copy_(values)

    def on_undo(self, revert: Callable[[], None]) -> None:
        """Call a function when this point is taken back, for what is more than an assignment."""
        self._done.append((revert, _CALL, None))

    def extend(self, later: UndoLog) -> None:
        """Take over assignments that were made after these."""
        self._done += later._done

    @contextmanager
    def or_nothing(self) -> Iterator[None]:
        """Take everything back if what is done here fails; an interrupt counts, too."""
        try:
            yield
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Take everything back, last assignment first."""
        while self._done:
            owner, key, old = self._done.pop()
            if key is _VALUES:
                owner.detach().copy_(old)
                continue
            if key is _CALL:
                owner()
                continue
            items = owner if isinstance(owner, (dict, list)) else owner.__dict__
            items[key] = old
            if old is _MISSING:
                del items[key]


def cut(plan: PrunePlan, models: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> UndoLog:
    """Cut networks of equal structure, and the state of the optimizer of the first.

    Parameters are replaced by new ones (graphs of earlier batches may still hold the old ones); ``requires_grad``,
    gradients, device, dtype and memory format follow. Optimizer groups keep their settings and order, momentum and
    moments are sliced. Blocks that are removed leave their lists, and their parameters the optimizer.

    Args:
        plan: Made for networks of exactly these widths.
        models: Networks to cut in place, e.g. the live one and its EMA.
        optimizer: Optimizer that holds the parameters of ``models[0]``.

    Returns:
        The cut, which ``undo()`` takes back.

    Raises:
        PlanError: If the plan does not fit a network.
        UnsupportedError: If the optimizer remembers what cannot be sliced.
        CutError: If anything else fails. In all cases nothing has changed.
    """
    check_fit(plan, models)
    undo = UndoLog()
    try:
        edits = [list(_edits(model, plan)) for model in models]
        weights = [_folded(model, plan) for model in models]
        replaced: dict[nn.Parameter, tuple[nn.Parameter, Slices]] = {}
        for model_edits in edits:
            for module, name, tensor, slices in model_edits:
                if isinstance(tensor, nn.Parameter):
                    replaced[tensor] = (_sliced_parameter(tensor, slices), slices)
                    undo.set(module._parameters, name, replaced[tensor][0])
                else:
                    undo.set(module._buffers, name, _sliced(tensor, slices))
        gone = _parameters_in(models[0], plan.blocks)
        for model, folded in zip(models, weights, strict=True):
            for path, weight in folded.items():
                model.get_submodule(path).weight.data.copy_(weight)
            remove(model, plan.blocks, undo.set)
            _set_widths(undo, model, plan)
        if optimizer is not None:
            _cut_optimizer(undo, optimizer, replaced)
            _forget(undo, optimizer, gone)
    except BaseException as e:  # an interrupt, too, must not leave half a cut
        undo.undo()
        if not isinstance(e, Exception) or isinstance(e, UnsupportedError):
            raise
        raise CutError(f"the cut failed and was taken back, nothing has changed: {type(e).__name__}: {e}") from e
    return undo


def check_fit(plan: PrunePlan, models: Sequence[nn.Module]) -> None:
    """Raise a PlanError unless a plan was made for networks of exactly these widths."""
    for model in models:
        layers = dict(named_layers(model))
        for path, expected in plan.widths.items():
            has = widths(layers[path]) if path in layers else None
            if has != expected:
                raise PlanError(
                    f"the plan is for another network: {path} has widths {has or 'unknown'}, the plan expects "
                    f"{expected}; apply plans in order, to the network that they were made for."
                )
            for side, kept in plan.layers[path].items():
                if kept[-1] >= expected[side]:
                    raise PlanError(
                        f"the plan is damaged: {path} {side} keeps channel {kept[-1]} of {expected[side]}, counted "
                        "from 0; make it anew."
                    )
        _check_blocks(plan, model)


def _check_blocks(plan: PrunePlan, model: nn.Module) -> None:
    """Raise a PlanError unless the blocks of a plan can be removed, with all that is read of them."""
    if not plan.blocks:
        return
    if why := misfit(model, plan.blocks):
        raise PlanError(
            f"the plan is for another network: {why}; apply plans in order, to the network that they were made for."
        )
    known = inner_blocks(model)
    for path in plan.blocks:
        reader, channels = known[path].reader, known[path].channels
        if reader and not set(channels).isdisjoint(plan.layers.get(reader, {}).get("in", channels)):
            raise PlanError(f"the plan is damaged: it removes {path}, and {reader} goes on to read it; make it anew.")


def network_of(model: Any) -> nn.Module:
    """Return the network inside a ``YOLO``, of torch.compile or DataParallel, or the network itself.

    Raises:
        UnsupportedError: If there is none, e.g. because the model is an exported file.
    """
    for candidate in (model, getattr(model, "model", None)):
        network = unwrap_model(candidate) if isinstance(candidate, nn.Module) else None
        if isinstance(getattr(network, "model", None), nn.Sequential):
            return network
    shown = short_repr(model.model if isinstance(getattr(model, "model", None), str) else model)
    raise UnsupportedError(f"{shown} is no YOLO model with weights that can be cut; load a .pt or .yaml file.")


def _edits(model: nn.Module, plan: PrunePlan) -> Iterator[tuple[nn.Module, str, torch.Tensor, Slices]]:
    """Yield every tensor to slice: (owner, name, tensor, slices)."""
    layers = dict(named_layers(model))
    for path, kept in plan.layers.items():
        layer = layers[path]
        if isinstance(layer, nn.Parameter):
            parent, _, name = path.rpartition(".")
            yield model.get_submodule(parent), name, layer, {channel_dim(layer): torch.tensor(kept["out"])}
        else:
            for name, tensor, slices in tensors(layer, kept):
                yield layer, name, tensor, slices


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


def _set_widths(undo: UndoLog, model: nn.Module, plan: PrunePlan) -> None:
    """Let every attribute that tells a width follow, and scales that are computed from widths."""
    layers = dict(named_layers(model))
    for path, kept in plan.layers.items():
        if isinstance(layers[path], nn.Module):
            sides = {side: len(channels) for side, channels in kept.items()}
            for name, value in attributes(layers[path], sides).items():
                undo.set(layers[path], name, value)
    for module in model.modules():
        if (adapter := adapter_for(module)) and (follow := followed(module)):
            for name, channels, factor in adapter.compensate(module, follow):
                _scale(module.get_submodule(name), channels, factor)
            for name, value in follow.items():
                undo.set(module, name, value)
    for block in model.model if isinstance(getattr(model, "model", None), nn.Sequential) else ():
        if hasattr(block, "np"):  # parameter count that Ultralytics attaches to each block
            undo.set(block, "np", sum(p.numel() for p in block.parameters()))


def _scale(layer: nn.Module, channels: slice | list[int], factor: float) -> None:
    """Scale what a layer makes; its tensors are new ones if its width has changed, else the factor is 1."""
    if factor != 1:
        norm = getattr(layer, "bn", None)
        affine = getattr(layer, "conv", layer) if norm is None or isinstance(norm, nn.Identity) else norm
        for tensor in (t for t in (affine.weight, affine.bias) if t is not None):
            tensor.data[channels] *= factor


def _cut_optimizer(
    undo: UndoLog, optimizer: torch.optim.Optimizer, replaced: dict[nn.Parameter, tuple[nn.Parameter, Slices]]
) -> None:
    """Put the new parameters in the place of the old ones, and slice what the optimizer remembers of each."""
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            if old in replaced:
                undo.set(group["params"], i, replaced[old][0])
    for old in [p for p in optimizer.state if p in replaced]:
        new, slices = replaced[old]
        _check_state(optimizer, optimizer.state[old], old)
        state = mapped(
            optimizer.state[old],
            lambda t: _sliced(t, slices) if t.shape == old.shape else t,  # noqa: B023  # it is called here and now
        )
        undo.set(optimizer.state, new, state)
        undo.delete(optimizer.state, old)


def _folded(model: nn.Module, plan: PrunePlan) -> dict[str, torch.Tensor]:
    """Return the weights of layers that go on to read, instead of a block, what that block added to.

    Returns:
        Layer path -> its new weights.
    """
    known = inner_blocks(model) if plan.blocks else {}
    whole: dict[str, torch.Tensor] = {}
    for block in sorted((known[path] for path in plan.blocks), key=lambda block: len(block.after)):  # the last first
        if block.reader and block.instead:
            if block.reader not in whole:
                whole[block.reader] = model.get_submodule(block.reader).weight.detach().clone()
            whole[block.reader][:, [*block.instead]] += whole[block.reader][:, [*block.channels]]
    kept = {
        path: {0: torch.tensor(plan.layers[path]["out"]), 1: torch.tensor(plan.layers[path]["in"])} for path in whole
    }
    return {path: _sliced(weight, kept[path]) for path, weight in whole.items()}


def _parameters_in(model: nn.Module, blocks: Iterable[str]) -> set[nn.Parameter]:
    return {p for path in blocks for p in model.get_submodule(path).parameters()}


def _forget(undo: UndoLog, optimizer: torch.optim.Optimizer, gone: set[nn.Parameter]) -> None:
    """Take parameters out of an optimizer."""
    for group in optimizer.param_groups:
        if not gone.isdisjoint(group["params"]):
            undo.set(group, "params", [p for p in group["params"] if p not in gone])
    for parameter in [p for p in optimizer.state if p in gone]:
        undo.delete(optimizer.state, parameter)


def _check_state(optimizer: torch.optim.Optimizer, state: Any, parameter: torch.Tensor) -> None:
    """Raise an UnsupportedError unless what an optimizer remembers of a parameter is shaped like it, or one number."""
    for name, value in state.items():
        for tensor in flat(value):
            if tensor.shape != parameter.shape and tensor.numel() > 1:
                raise UnsupportedError(
                    f"{type(optimizer).__name__} keeps {name!r} of shape {tuple(tensor.shape)} for a parameter of "
                    f"shape {tuple(parameter.shape)}, which cannot be sliced; use SGD, MuSGD or an Adam variant."
                )


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Find out whether what an optimizer remembers can be cut, by one step of a copy on copies of a few parameters.

    Raises:
        UnsupportedError: If it cannot.
    """
    kind: Any = type(optimizer)
    trial = kind.__new__(kind)
    hooks = {name: type(value)() for name, value in vars(optimizer).items() if name.endswith("_hooks")}
    trial.__dict__.update({**vars(optimizer), **hooks, "state": defaultdict(dict)})
    trial.param_groups = [
        {**group, "params": [_with_gradient(p) for p in _of_each_kind(group["params"])]}
        for group in optimizer.param_groups
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            kind.step(trial)
    except Exception:  # it needs what is there in training only, such as a closure: the cut itself tells
        return
    for parameter, state in trial.state.items():
        _check_state(optimizer, state, parameter)


def _of_each_kind(parameters: list[nn.Parameter]) -> Iterable[nn.Parameter]:
    """Return a parameter of each number of dimensions, small, but with a length in every dimension if there is one."""
    flattest_last = sorted(parameters, key=lambda p: (sum(n > 1 for n in p.shape), -p.numel()))
    return {p.ndim: p for p in flattest_last}.values()


def _with_gradient(parameter: torch.Tensor) -> nn.Parameter:
    copy = nn.Parameter(parameter.detach().clone())
    copy.grad = torch.full_like(copy, 1e-3)
    return copy
