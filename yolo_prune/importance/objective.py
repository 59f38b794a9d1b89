"""The loss whose gradients tell what matters in a network, and how a network runs to have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

CLASS_EMPHASIS = 3.0
"""By how much more the class part of a detection's loss counts in statistics than in training.

Ultralytics' gains are 7.5 for boxes and 0.5 for classes, made for learning: with them classes are cut away first.
"""


@contextmanager
def calibrating(model: nn.Module, *, through_heads: bool = False) -> Iterator[None]:
    """Run a network with the heads' raw outputs, and with nothing drawn at random or counted.

    Args:
        model: The network.
        through_heads: Whether gradients go through both branches of an end-to-end head. In training those of the
            one-to-one branch, which is the one that is deployed, end there.
    """
    flags = {m: m.training for m in model.modules()}
    attached = {m for m in flags if through_heads and getattr(m, "one2one_cv2", None) is not None}
    try:
        for m in flags:
            is_random = isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
            m.training = not is_random and m not in attached
        yield
    finally:
        for m, training in flags.items():
            m.training = training


def loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the training loss of a batch per image, a scalar."""
    loss, _ = model.loss(batch)
    return loss.sum() / len(batch["img"])


def weigh_branches(copy: nn.Module) -> None:
    """Let the loss of a copy weigh the branches of an end-to-end head as at the end of a training.

    At its start the branch that is not deployed counts most.
    """
    head = getattr(copy, "model", [None])[-1]
    if getattr(head, "one2one_cv2", None) is None:
        return
    copy.criterion = copy.init_criterion()
    if (last := getattr(copy.criterion, "final_o2m", None)) is not None:
        copy.criterion.o2m, copy.criterion.o2o = last, copy.criterion.total - last


def emphasize_classes(copy: nn.Module) -> None:
    """Let the class part of a copy's loss count more, where it has a gain (see `CLASS_EMPHASIS`)."""
    gains: Any = getattr(copy, "args", None)
    if hasattr(gains, "cls"):
        gains.cls *= CLASS_EMPHASIS


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a copy in single precision whose parameters all take gradients."""
    return copy_of(model).float().requires_grad_(True)


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a network without its loss, which has references of its own."""
    memo: dict[int, Any] = {id(getattr(model, "criterion", None)): None}
    copy: nn.Module = deepcopy(model, memo)
    return copy
