"""Weights that are zero stay zero while a network trains.

Which ones, the averaged network says: what it has at zero, the live one has, too, and stepping keeps both there. So no
file needs to say it, and a run goes on after an interruption, or after a cut was taken back, with what it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from yolo_prune.graph.zeros import sparse_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class HeldZeros:
    """Keeps an optimizer from moving weights away from zero.

    Their gradients are set to zero before each of its steps, so that momentum of theirs moves nothing else (Muon's is
    orthogonalised as a whole), and the weights after it, since decay and old momentum move them, too. Ultralytics'
    ``optimizer_step`` has undone AMP's loss scale by then, and a step that the scaler skips changes nothing.
    """

    def __init__(self) -> None:
        self._masks: dict[nn.Parameter, torch.Tensor] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def hold(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        averaged: nn.Module,
        is_ignored: Callable[[str], str | None],
    ) -> None:
        """From now on, hold what is zero.

        Args:
            optimizer: Of the live network; a trainer can make a new one.
            model: The live network.
            averaged: The network that is saved.
            is_ignored: Layer path -> the pattern that leaves it out, or None.
        """
        if optimizer is not self._optimizer:
            self._optimizer = optimizer
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)
        live = sparse_layers(model, is_ignored)
        masks = {path: layer.weight.detach() == 0 for path, layer in sparse_layers(averaged, is_ignored).items()}
        self._masks = {live[path].weight: mask for path, mask in masks.items() if mask.any()}
        self._after()

    def release(self) -> None:
        """Hold nothing any more."""
        self._masks = {}

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        for weight, mask in self._masks.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        for weight, mask in self._masks.items():
            weight.masked_fill_(mask, 0)
