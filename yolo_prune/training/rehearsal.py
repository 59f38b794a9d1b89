"""One training step of the cut network before anything is cut: what reads feature maps outside of its forward pass.

A trace shows what a forward pass computes. An auxiliary layer that only the loss runs, or an adaptor that a trainer
hangs on a feature map by a hook, shows in a training step alone. A layer of the network itself that takes what a known
module makes is cut along; anything else that breaks is told before the first epoch, with the layers to leave whole. A
step that learns from a teacher is tried likewise, where the user does not say whether to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.blocks import flat
from yolo_prune.config.settings import PruneConfig
from yolo_prune.errors import UnsupportedError, describe_error
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import makers
from yolo_prune.host import ddp
from yolo_prune.host.distillation import begin, keep_columns, student_of, wrapped_plan
from yolo_prune.host.trainer import calibration_batches, preserved_rng
from yolo_prune.importance.objective import calibrating, copy_of
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import plan_of
from yolo_prune.surgery.slicing import UndoLog, cut

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.training.run import Run

REHEARSED = 4
"""Images of the training step that is tried before a network is cut."""
SHARE = 0.25
"""Of each group's channels that go in a rehearsal."""
Batch = dict[str, Any]


@dataclass
class _Seen:
    """Record of a training step.

    Attributes:
        made: Path of each module of the network, in the order in which they returned -> the feature map that it made.
        taken: Path of each layer of the network -> what it took.
        running: Modules that have begun and not returned, with what they took: at an error the last one broke.
    """

    made: dict[str, torch.Tensor] = field(default_factory=dict)
    taken: dict[str, torch.Tensor] = field(default_factory=dict)
    running: list[tuple[nn.Module, tuple[Any, ...]]] = field(default_factory=list)

    def source(self, x: Any) -> str | None:
        """Return the module that made a tensor, the outermost of them."""
        return min((path for path, made in self.made.items() if made is x), key=len, default=None)


def try_steps(run: Run) -> None:
    """Try a step of a cut network, and of one that learns from its dense self where the user does not say whether to.

    Raises:
        UnsupportedError: If a training step of a cut network fails.
    """
    if not run.progress.goal.amounts:
        return  # zeros change no shape
    with preserved_rng():
        batch = calibration_batches(run.trainer, REHEARSED)[0]
        _try_cut(run, batch)
        if run.config.distill is None:
            _try_distillation(run, batch)


def _try_cut(run: Run, batch: Batch) -> None:
    """Find what reads feature maps outside of the forward pass, and refuse what could not follow a cut of them."""
    graph = run.trace(run.model)
    run.readers = outside_readers(run.trainer, graph, batch)
    if run.readers is None:
        return
    if run.readers:
        graph = run.trace(run.model, run.readers)
    rehearse(run.trainer, graph, run.config, batch)


def _try_distillation(run: Run, batch: Batch) -> None:
    """Let a network learn from its dense self if a step of it succeeds."""
    trainer, reason = run.trainer, ""
    try:
        check_distillation(trainer, copy_of(run.ema), run.config.distill_loss, batch)
    except UnsupportedError as e:
        reason = str(e)
    reason = ddp.broadcast(reason)
    run.progress.settle(distill=not reason)
    if reason:
        run.log(f"the network learns from labels alone: {reason}")
    else:
        keep_columns(trainer)
        run.log("after the first cut the network learns from its dense self as well (not so with distill=False)")


def outside_readers(trainer: BaseTrainer, graph: ChannelGraph, batch: Batch) -> dict[str, str] | None:
    """Return the layers of a network that only its training step runs, each with the module whose result it takes.

    Args:
        trainer: Its network is run as it trains, and left as it is.
        graph: Its channel groups.
        batch: Preprocessed, with labels.

    Returns:
        Path of a layer -> path of a module; None where no step can be tried here: one that fails without a cut needs
        what is in the trainer's loop only.
    """
    traced = {path for group in graph.groups for path, side in group.members if side == "in"}
    try:
        seen = _step(trainer, batch)
    except _StepError:
        return None
    return {
        path: source
        for path, x in seen.taken.items()
        if path in graph.layers and path not in traced and not path.startswith(tuple(graph.locked_blocks))
        if graph.layers[path].inp and graph.layers[path].groups == 1 and (source := seen.source(x))
    }


def rehearse(trainer: BaseTrainer, graph: ChannelGraph, config: PruneConfig, batch: Batch) -> None:
    """Run one training step of a network from which a little of each group is cut, and take the cut back.

    Args:
        trainer: Its network is as it was in the end; a step of it has been tried without a cut.
        graph: Its channel groups, with all readers.
        config: Layers that may lose nothing keep their width here, too.
        batch: Preprocessed, with labels.

    Raises:
        UnsupportedError: If the step fails; the message names what broke.
    """
    plan, live = _small_plan(graph, config), unwrap_model(trainer.model)
    done, failed = cut(wrapped_plan(plan, live), [live]), None
    try:
        _step(trainer, batch)
    except _StepError as e:
        failed = e
    finally:
        done.undo()
    if failed:
        raise UnsupportedError(_explained(trainer, graph, plan, failed)) from failed.cause


def check_step(trainer: BaseTrainer, batch: Batch) -> None:
    """Run one training step of a network that has just been cut, which is left as it is.

    Raises:
        UnsupportedError: If it fails.
    """
    try:
        _step(trainer, batch)
    except _StepError as e:
        broken = _named(trainer, e.broken) if e.broken else "the loss"
        raise UnsupportedError(
            f"a training step of the cut network fails in {broken} ({describe_error(e.cause)}); keep the width "
            "of what it reads with ignored_layers."
        ) from e.cause


def check_distillation(trainer: BaseTrainer, teacher: nn.Module, loss: str, batch: Batch) -> None:
    """Run one training step of a network that learns from a teacher, and leave the network as it was.

    Raises:
        UnsupportedError: If it fails, with whatever Ultralytics or a trainer of the user's has raised.
    """
    undo = UndoLog()
    try:
        begin(undo, trainer, teacher, Path(), loss)
        _step(trainer, batch)
    except Exception as e:  # whatever a loss or an optimizer of the user's raises
        cause = e.cause if isinstance(e, _StepError) else e
        raise UnsupportedError(f"Ultralytics cannot distil this network ({describe_error(cause)})") from cause
    finally:
        undo.undo()


class _StepError(Exception):
    def __init__(self, cause: Exception, seen: _Seen) -> None:
        self.cause = cause
        self.broken: nn.Module | None = seen.running[-1][0] if seen.running else None
        self.taken: tuple[Any, ...] = seen.running[-1][1] if seen.running else ()
        self.seen = seen


def _step(trainer: BaseTrainer, batch: Batch) -> _Seen:
    """Run forward pass, loss and backward pass of a trainer's network; weights, buffers and gradients stay as they are.

    Random states do not: the caller puts them back.

    Raises:
        _StepError: If it fails.
    """
    live, seen = unwrap_model(trainer.model), _Seen()
    student = student_of(trainer.model)
    parameters = [p for p in live.parameters() if p.requires_grad]
    with _left_as_it_is(live), calibrating(live), torch.enable_grad(), _watched(student, seen):
        try:
            loss = live(batch)[0]
            torch.autograd.grad(loss.sum(), parameters, allow_unused=True)  # accumulates nothing
        except Exception as e:  # whatever a loss of the user's raises
            raise _StepError(e, seen) from e
    return seen


@contextmanager
def _left_as_it_is(network: nn.Module) -> Iterator[None]:
    """Put back what a forward pass and a loss leave behind in a network: buffers, and the loss itself if it is new."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    losses = [(m, m.__dict__.get("criterion")) for m in network.modules() if "criterion" in m.__dict__]
    without = [m for m in network.modules() if "criterion" not in m.__dict__]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for m, loss in losses:
            m.__dict__["criterion"] = loss
        for m in without:
            m.__dict__.pop("criterion", None)


@contextmanager
def _watched(network: nn.Module, seen: _Seen) -> Iterator[None]:
    """Note what every module of this process takes and makes; the network's by their paths."""
    paths = {module: path for path, module in network.named_modules()}

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.running.append((module, inputs))
        if (path := paths.get(module)) and inputs and torch.is_tensor(inputs[0]):
            seen.taken.setdefault(path, inputs[0])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.running.pop()
        if (path := paths.get(module)) and torch.is_tensor(output):
            seen.made.setdefault(path, output)

    hooks = [
        torch_module.register_module_forward_pre_hook(before),
        torch_module.register_module_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _small_plan(graph: ChannelGraph, config: PruneConfig) -> PrunePlan:
    """Return a plan that takes a share of every group that may lose something."""
    steps = []
    for bundle in graph.bundles:
        may_shrink = all(config.limit(graph.groups[g].name) > 0 for g in bundle.groups)
        fewer = max(1, bundle.steps - max(1, round(bundle.steps * SHARE)))
        steps.append(bundle.steps if bundle.locked or not may_shrink else fewer)
    return plan_of(graph, steps, [np.arange(group.width) for group in graph.groups])


def _explained(trainer: BaseTrainer, graph: ChannelGraph, plan: PrunePlan, error: _StepError) -> str:
    """Return a message: the module that broke, its input, and the layers to leave whole."""
    student = student_of(trainer.model)
    name = _named(trainer, error.broken) if error.broken else type(student).__name__
    maps = [x for x in flat(error.taken) if x.ndim == 4]
    sources = [source for x in maps if (source := error.seen.source(x))]
    takes = f"takes what {' and '.join(sources)} makes" if sources else "reads a feature map"
    if not sources:  # it takes something that was made of a row's result: one as wide that has become narrower
        widths = {x.shape[1] for x in maps}
        sources = [
            path
            for path, made in error.seen.made.items()
            if path.count(".") == 1 and made.ndim == 4 and (made.shape[1] in widths or not widths)
        ]
    whole = {layer for source in sources for layer in makers(student, graph.imgsz, source)} & plan.layers.keys()
    narrower = [
        path for path in plan.layers if path in whole and len(plan.layers[path]["out"]) < plan.widths[path]["out"]
    ]
    return (
        f"{name} {takes} outside of the network's forward pass, in the loss or by a hook, and cannot follow a cut "
        f"(a training step of the cut network ends in {describe_error(error.cause)}): keep the width with "
        f"ignored_layers={','.join(narrower) or '…'}, or let it be a layer of the network that takes the map itself."
    )


def _named(trainer: BaseTrainer, module: nn.Module) -> str:
    """Return where a module is: its path in the network, or the trainer's attribute, with its class."""
    kind = type(module).__name__
    for path, own in student_of(trainer.model).named_modules():
        if own is module and path:
            return f"{path} ({kind})"
    for name, value in vars(trainer).items():
        for path, own in value.named_modules(prefix=f"trainer.{name}") if isinstance(value, nn.Module) else ():
            if own is module:
                return f"{path} ({kind})"
    return f"a {kind}"
