"""Statistics of a network on labelled images: moments of activations, and gradients of the loss.

Criteria that need data read these. Parameter gradients can also be collected for free while a run trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from yolo_prune.graph.layers import is_grouped, named_layers
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.memory import return_free

AT_ONCE = 2**20
"""Values that are turned into double precision at once."""
ROUNDING = 1e-6
"""Relative error of sums of products in single precision."""


@dataclass
class LayerStatistics:
    """Sums over all images and positions of what one layer takes and makes.

    Attributes:
        taken: Input positions seen; a strided convolution has more of them than it makes.
        made: Output positions seen.
        images: Images seen.
        inputs: Sum of the inputs, shape (in,).
        products: Sum of the products of two inputs, shape (in, in); None for a grouped convolution.
        outputs: Sum of the outputs, shape (out,).
        squares: Sum of the squared outputs, shape (out,).
        sensitivity: Sum of the squared gradients of the loss with respect to the outputs, shape (out,).
    """

    taken: int = 0
    made: int = 0
    images: int = 0
    inputs: Any = 0.0
    products: Any = None
    outputs: Any = 0.0
    squares: Any = 0.0
    sensitivity: Any = 0.0

    def covariance(self) -> torch.Tensor:
        """Return the covariance of the inputs, shape (in, in), with what rounding adds to it on the diagonal."""
        mean, moments = self.inputs / self.taken, self.products / self.taken
        rounding = ROUNDING * moments.diagonal().mean() * torch.eye(len(mean), dtype=torch.double)
        covariance: torch.Tensor = moments - torch.outer(mean, mean) + rounding
        return covariance

    def variance(self) -> torch.Tensor:
        """Return the variance of the outputs, shape (out,)."""
        return (self.squares / self.made - (self.outputs / self.made) ** 2).clamp_min(0)

    def fisher(self) -> torch.Tensor:
        """Return the squared gradient of each output per image, summed over positions: the diagonal Fisher, (out,)."""
        return torch.as_tensor(self.sensitivity / self.images, dtype=torch.double).expand(len(self.outputs))


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


def layer_statistics(model: nn.Module, batches: Sequence[dict[str, Any]]) -> dict[str, LayerStatistics]:
    """Return the statistics of every convolution and linear layer.

    Args:
        model: A network; a copy of it runs.
        batches: Preprocessed batches with labels, on the model's device.
    """
    found: dict[str, LayerStatistics] = {}

    def observe(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen = found.setdefault(path, LayerStatistics())
            x, y = _rows(inputs[0]), _rows(output)
            if not is_grouped(layer):
                seen.products = (0 if seen.products is None else seen.products) + (x @ x.T).double().cpu()
            seen.taken += x.shape[1]
            seen.made += y.shape[1]
            seen.images += len(output)
            seen.inputs = seen.inputs + _sums(x)[0]
            outputs, squares = _sums(y)
            seen.outputs, seen.squares = seen.outputs + outputs, seen.squares + squares

            def sense(gradient: torch.Tensor) -> None:
                seen.sensitivity = seen.sensitivity + _sums(_rows(gradient))[1]

            if output.requires_grad:
                output.register_hook(sense)

        return hook

    copy = trainable_copy(model)
    for path, layer in named_layers(copy):
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            layer.register_forward_hook(observe(path))
    _backward(copy, batches)
    return found


def gradients(model: nn.Module, batches: Sequence[dict[str, Any]]) -> Gradients:
    """Return the parameter gradients of a network that is not being trained, as a step per batch.

    Args:
        model: A network; a copy of it runs, but the result is told in terms of its own parameters.
        batches: Preprocessed batches with labels, on the model's device.
    """
    result, copy = Gradients(), trainable_copy(model)
    _backward(copy, batches, lambda: result.add(copy.parameters()))
    return result.of(copy, model)


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Run a network with the heads' raw outputs, and with nothing drawn at random or counted."""
    flags = {m: m.training for m in model.modules()}
    try:
        for m in flags:
            m.training = not isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        yield
    finally:
        for m, training in flags.items():
            m.training = training


def loss_of(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the training loss of a batch per image, a scalar."""
    loss, _ = model.loss(batch)
    return loss.sum() / len(batch["img"])


def _backward(copy: nn.Module, batches: Sequence[dict[str, Any]], then: Callable[[], None] = lambda: None) -> None:
    """Let the loss of each batch go back through a network; what is to be done then finds gradients of this batch."""
    with calibrating(copy), torch.enable_grad(), progress_bar("looking at images", len(batches)) as step:
        for batch in batches:
            return_free()
            loss_of(copy, batch).backward()
            then()
            copy.zero_grad()
            step()


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a copy in single precision whose parameters all take gradients."""
    return copy_of(model).float().requires_grad_(True)


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a network without its loss, which has references of its own."""
    memo: dict[int, Any] = {id(getattr(model, "criterion", None)): None}
    copy: nn.Module = deepcopy(model, memo)
    return copy


def _sums(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of (C, positions), and of their squares, over positions in double precision."""
    total = torch.zeros(2, len(rows), dtype=torch.double)
    for part in rows.split(max(1, AT_ONCE // len(rows)), dim=1):
        exact = part.double()
        total += torch.stack((exact.sum(1), exact.square_().sum(1))).cpu()
    return total[0], total[1]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return an activation of shape (B, C, H, W) or (..., C) as (C, positions)."""
    x = x.detach()
    return x.transpose(0, 1).flatten(1) if x.ndim == 4 else x.reshape(-1, x.shape[-1]).T
