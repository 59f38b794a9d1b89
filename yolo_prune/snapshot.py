"""The state of a live run, to go back to: networks, optimizer and the trainer's records.

Going back keeps the objects that others hold (the trainer's model, the EMA, the optimizer) and replaces what is in
them.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.files import replacing
from yolo_prune.statistics import copy_of

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

_RECORDS = ("best_fitness", "fitness", "metrics", "stopper")
"""What a trainer remembers of the networks that it has seen."""


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
        self._records = {name: deepcopy(getattr(trainer, name)) for name in _RECORDS}
        self._best = trainer.best.read_bytes() if trainer.best.exists() else None

    def restore(self, trainer: BaseTrainer) -> None:
        """Put a run back, every tensor of it; epoch, learning rate and random state go on."""
        trainer.model, trainer.ema.ema = self._model, self._ema
        for network, copy in zip((unwrap_model(self._model), self._ema), self._copies, strict=True):
            _adopt(network, copy_of(copy))
        parameters, optimizer = list(unwrap_model(self._model).parameters()), trainer.optimizer
        for group, positions in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"] = [parameters[i] for i in positions]
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.state.clear()
        for i, state in deepcopy(self._optimizer).items():
            optimizer.state[everything[i]] = state
        trainer.ema.updates, trainer.ema._pairs = self._updates, None  # it caches the old tensors
        for name, value in self._records.items():
            setattr(trainer, name, deepcopy(value))
        if self._best is None:
            trainer.best.unlink(missing_ok=True)
        else:
            with replacing(trainer.best) as draft:
                draft.write_bytes(self._best)


def _adopt(network: nn.Module, other: nn.Module) -> None:
    """Let each module of a network hold what the same module of the other one holds."""
    for module, source in zip(network.modules(), other.modules(), strict=True):
        for name, value in source.__dict__.items():
            if name not in ("_modules", "criterion") and "hook" not in name:
                module.__dict__[name] = value
