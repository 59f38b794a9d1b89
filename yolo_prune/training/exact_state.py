"""The exact state of a run between two epochs, in a file of the run's folder.

Ultralytics' ``last.pt`` holds the EMA and the optimizer in half precision, the live weights not at all, and nothing of
what is drawn at random. That is enough to train on, but not to train on as if nothing had happened: other weights make
other cuts. This file holds the rest: tensors, numbers and texts, read with ``weights_only=True``.

With data-loading workers (``workers>0``) the images of a resumed run come in another order, and are augmented
otherwise: what workers draw at random, only they know. Everything else is exact there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.errors import CheckpointError, describe_error
from yolo_prune.host.ddp import is_first
from yolo_prune.host.distillation import TEACHER
from yolo_prune.host.patches import patch
from yolo_prune.host.trainer import Randomness
from yolo_prune.importance.gradients import Gradients
from yolo_prune.utils.console import log
from yolo_prune.utils.files import atomic_write

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

NEVER = 2**31
"""Batches to wait for an optimizer step that is to come later."""


class StepCount:
    """Counts the batches whose gradients wait for an optimizer step: they are part of a run's state.

    Args:
        trainer: Its ``optimizer_step`` is listened to.
    """

    def __init__(self, trainer: BaseTrainer) -> None:
        self.waiting = 0
        step = trainer.optimizer_step

        def counted() -> None:
            self.waiting = -1  # the batch that steps is not over yet
            step()

        patch(trainer, "optimizer_step", counted)

    def after_batch(self) -> None:
        """Count a batch."""
        self.waiting += 1

    def resume(self, trainer: BaseTrainer, waiting: int) -> None:
        """Let the first step of a resumed run come when it would have come; Ultralytics steps at the first batch.

        Args:
            trainer: Before the first batch of an epoch.
            waiting: Batches before that one whose gradients wait.
        """
        self.waiting = waiting
        preprocess, nominal = trainer.preprocess_batch, trainer.accumulate

        def first(batch: dict[str, Any]) -> dict[str, Any]:
            """Come between the warm-up, which sets ``accumulate`` for each batch, and the decision to step."""
            nonlocal nominal
            nominal = nominal if trainer.accumulate == NEVER else trainer.accumulate
            is_due = self.waiting + 1 >= nominal
            trainer.accumulate = nominal if is_due else NEVER
            if is_due:
                patch(trainer, "preprocess_batch", preprocess)
            return preprocess(batch)

        patch(trainer, "preprocess_batch", first)


def save(
    trainer: BaseTrainer,
    path: Path,
    waiting: int,
    gradients: Gradients,
    randomness: Randomness,
) -> None:
    """Write the state of a run, so that no reader ever sees half of it.

    Args:
        trainer: After the last batch of an epoch.
        path: Where to.
        waiting: See `StepCount`.
        gradients: What has been collected of the live network's.
        randomness: Of this moment, or of one before something that is not part of the run.
    """
    live, averaged = unwrap_model(trainer.model), trainer.ema.ema
    parameters = list(live.parameters())
    loader = trainer.train_loader
    state = {
        "networks": [_tensors(live), _tensors(averaged)],
        "grads": [p.grad for p in parameters],
        "optimizer": trainer.optimizer.state_dict()["state"],
        "scaler": trainer.scaler.state_dict(),
        "updates": trainer.ema.updates,
        "waiting": waiting,
        "gradients": [
            gradients.steps,
            *([of.get(p) for p in parameters] for of in (gradients.first, gradients.second)),
        ],
        "randomness": randomness.to_dict(),
        "sampler": getattr(loader, "generator", None) and loader.generator.get_state(),
        "buffers": [list(dataset.buffer) for dataset in _datasets(loader.dataset)],
    }
    with atomic_write(path) as draft:
        torch.save(state, draft)


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save`.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds something else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"networks", "waiting"} <= state.keys():
            raise ValueError("it holds something else")
    except Exception as e:  # torch names no common class for what a damaged file raises
        raise CheckpointError(f"{path} cannot be read ({describe_error(e)}); last.pt alone is enough to resume.") from e
    return state


def restore(trainer: BaseTrainer, state: dict[str, Any], gradients: Gradients) -> None:
    """Put a run that Ultralytics has resumed into the exact state that `save` found.

    Args:
        trainer: Before the first batch.
        state: What `load` returned.
        gradients: Filled with what had been collected.

    Raises:
        CheckpointError: If the state belongs to another network.
    """
    live, averaged = unwrap_model(trainer.model), trainer.ema.ema
    parameters = list(live.parameters())
    try:
        for network, tensors in zip((live, averaged), state["networks"], strict=True):
            network.load_state_dict({**network.state_dict(), **tensors})
        trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": state["optimizer"]})
    except (RuntimeError, ValueError, KeyError) as e:
        raise CheckpointError(
            f"the state beside last.pt belongs to another network ({describe_error(e)}); remove "
            "pruning/state-*.pt to resume from last.pt alone."
        ) from e
    for p, grad in zip(parameters, state["grads"], strict=True):
        p.grad = None if grad is None else grad.to(p.device)
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.ema.updates = state["updates"]
    gradients.steps, *sums = state["gradients"]
    for into, values in zip((gradients.first, gradients.second), sums, strict=True):
        into.update({p: v.to(p.device) for p, v in zip(parameters, values, strict=True) if v is not None})
    _restore_data(trainer, state)
    if is_first():  # its own, and the other ranks draw otherwise
        Randomness.from_dict(state["randomness"]).put_back()


def _restore_data(trainer: BaseTrainer, state: dict[str, Any]) -> None:
    """Let the loader draw the images that it would have drawn, and the data sets know those that were loaded last."""
    loader, sampler = trainer.train_loader, state["sampler"]
    datasets = list(_datasets(loader.dataset))
    if loader.num_workers:
        log("workers>0: the images of the resumed run come in another order than without the interruption")
        return
    for dataset, indices in zip(datasets, state["buffers"], strict=False):
        for i in indices:
            dataset.load_image(i)
    if sampler is None:
        return
    loader.generator.set_state(sampler)
    if trainer.epoch != trainer.epochs - trainer.args.close_mosaic:  # there, Ultralytics begins a new iterator anyway
        stock = loader._get_iterator

        def begin() -> Any:
            """Make an iterator that has come to the end of an epoch, as the one had that was there."""
            iterator = stock()
            for _ in range(len(loader)):
                iterator._next_index()
            loader.generator.set_state(sampler)
            del loader.__dict__["_get_iterator"]
            return iterator

        patch(loader, "_get_iterator", begin)


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a network, without a teacher's: it never changes."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(TEACHER)}


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that remember which images were loaded last."""
    for part in getattr(dataset, "datasets", [dataset]):
        if hasattr(part, "buffer"):
            yield part
