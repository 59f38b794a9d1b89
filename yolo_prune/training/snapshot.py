"""The state of a live run, to go back to: networks, optimizer and the trainer's records.

Going back keeps the objects that others hold (the trainer's model, the EMA, the optimizer) and replaces what is in
them.
"""

from __future__ import annotations

from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.errors import CheckpointError
from yolo_prune.host.ddp import is_first, wrapped_like
from yolo_prune.host.distillation import detach, is_distilled, student_of
from yolo_prune.importance.objective import copy_of
from yolo_prune.utils.files import atomic_write

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

_RECORDS = ("best_fitness", "fitness", "metrics", "freeze_layer_names", "loss_names", "loss_items")
"""What a trainer has noted of its network, beside its stopper; it has no ``loss_items`` before its first step."""

_SAVED = ("_copies", "_groups", "_optimizer", "_updates", "_records", "_teacher", "_stopper", "_best")


class Snapshot:
    """A copy of everything that a cut and the epochs after it change.

    Args:
        trainer: A live run between two epochs.
    """

    def __init__(self, trainer: BaseTrainer) -> None:
        self._model, self._ema = trainer.model, trainer.ema.ema
        self._copies = [copy_of(network) for network in (unwrap_model(trainer.model), trainer.ema.ema)]
        position = {p: i for i, p in enumerate(unwrap_model(trainer.model).parameters())}
        self._groups = [[position[p] for p in group["params"]] for group in trainer.optimizer.param_groups]
        self._optimizer = deepcopy(trainer.optimizer.state_dict()["state"])
        self._updates = trainer.ema.updates
        self._records = {name: copy(getattr(trainer, name)) for name in _RECORDS if hasattr(trainer, name)}
        self._teacher = trainer.args.distill_model
        self._stopper = dict(vars(trainer.stopper))
        self._best = trainer.best.read_bytes() if trainer.best.exists() else None

    def save(self, path: Path) -> None:
        """Write the copy, so that no reader ever sees half of it."""
        with atomic_write(path) as draft:
            torch.save({name: getattr(self, name) for name in _SAVED}, draft)

    @classmethod
    def load(cls, path: Path, trainer: BaseTrainer) -> Snapshot:
        """Read what `save` wrote, with Ultralytics' loader.

        Args:
            path: The file.
            trainer: A resumed run, with a network that was cut since.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        try:
            saved: dict[str, Any] = torch_safe_load(path)[0]
            loaded = cls.__new__(cls)
            for name in _SAVED:
                setattr(loaded, name, saved[name])
        except Exception as e:  # torch and Ultralytics name no common class for what a damaged file raises
            raise CheckpointError(
                f"{path}, the state before the latest cut, cannot be read ({type(e).__name__}: {e}), so max_drop "
                "cannot be kept; start the run anew."
            ) from e
        networks = unwrap_model(trainer.model), trainer.ema.ema
        was_wrapped = type(loaded._copies[0]) is type(networks[0])
        loaded._model, loaded._ema = networks if was_wrapped else (student_of(network) for network in networks)
        loaded._copies = [network.to(trainer.device) for network in loaded._copies]
        loaded._optimizer = {
            i: {k: v.to(trainer.device) if k != "step" and isinstance(v, torch.Tensor) else v for k, v in of.items()}
            for i, of in loaded._optimizer.items()
        }
        return loaded

    def restore(self, trainer: BaseTrainer) -> None:
        """Put a run back, every tensor of it; epoch, learning rate and random state go on."""
        wrapper = trainer.model
        trainer.model, trainer.ema.ema = self._model, self._ema
        for network, kept in zip((unwrap_model(self._model), self._ema), self._copies, strict=True):
            _adopt(network, copy_of(kept))
        parameters, optimizer = list(unwrap_model(self._model).parameters()), trainer.optimizer
        for group, positions in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"] = [parameters[i] for i in positions]
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.state.clear()
        for i, state in deepcopy(self._optimizer).items():
            optimizer.state[everything[i]] = state
        trainer.ema.updates, trainer.ema._pairs = self._updates, None  # it caches the old tensors
        for name, value in self._records.items():
            setattr(trainer, name, copy(value))
        trainer.args.distill_model = self._teacher
        trainer.stopper.__dict__.update(self._stopper)
        trainer.model = wrapped_like(wrapper, trainer.model)
        if is_distilled(wrapper) and not is_distilled(trainer.model):
            for network in (unwrap_model(trainer.model), trainer.ema.ema):
                detach(network)
        if not is_first():
            return
        if self._best is None:
            trainer.best.unlink(missing_ok=True)
        else:
            with atomic_write(trainer.best) as draft:
                draft.write_bytes(self._best)


def _adopt(network: nn.Module, other: nn.Module) -> None:
    """Let each module of a network hold what the same module of the other one holds; blocks that are gone come back."""
    children, sources = network._modules, other._modules
    for name, value in other.__dict__.items():
        if name not in ("_modules", "criterion") and "hook" not in name:
            network.__dict__[name] = value
    network.__dict__["_modules"] = {
        name: children[name] if type(children.get(name)) is type(source) else source for name, source in sources.items()
    }
    for name, child in network._modules.items():
        if child is not None and child is not sources[name]:
            _adopt(child, sources[name])
