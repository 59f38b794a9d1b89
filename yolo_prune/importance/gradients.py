"""Gradients of the loss with respect to a network's parameters, collected while it trains or for the purpose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from yolo_prune.importance.objective import calibrating, loss_of, trainable_copy
from yolo_prune.utils.console import progress_bar


@dataclass
class Gradients:
    """Parameter gradients of the loss, summed over steps.

    Attributes:
        steps: How many there were.
        first: Parameter -> sum of its gradients.
        second: Parameter -> sum of its squared gradients.
    """

    steps: int = 0
    first: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    second: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take in the present gradients."""
        trained = [p for p in parameters if p.grad is not None]
        for p in trained:
            if p not in self.first:
                self.first[p], self.second[p] = torch.zeros_like(p), torch.zeros_like(p)
        if trained:
            grads = [p.grad for p in trained]
            torch._foreach_add_([self.first[p] for p in trained], grads)
            torch._foreach_addcmul_([self.second[p] for p in trained], grads, grads)
            self.steps += 1

    def of(self, source: nn.Module, other: nn.Module) -> Gradients:
        """Return the same in terms of the parameters of a network of equal structure."""
        told = dict(zip(source.parameters(), other.parameters(), strict=True))
        first, second = ({told[p]: g for p, g in sums.items()} for sums in (self.first, self.second))
        return Gradients(self.steps, first, second)

    def clear(self) -> None:
        """Start anew."""
        self.steps = 0
        self.first.clear()
        self.second.clear()


def gradients(model: nn.Module, batches: Sequence[dict[str, Any]]) -> Gradients:
    """Return the parameter gradients of a network that is not being trained, as a step per batch.

    Args:
        model: A network; a copy of it runs, but the result is told in terms of its own parameters.
        batches: Preprocessed batches with labels, on the model's device.
    """
    result, copy = Gradients(), trainable_copy(model)
    with calibrating(copy), torch.enable_grad(), progress_bar("collecting gradients", len(batches)) as step:
        for batch in batches:
            loss_of(copy, batch).backward()
            result.add(copy.parameters())
            copy.zero_grad()
            step()
    return result.of(copy, model)
