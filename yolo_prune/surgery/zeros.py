"""Single weights that become zero, and the others that make up for them.

Which weights of a layer go is chosen as SparseGPT does (Frantar & Alistarh 2023, "SparseGPT: Massive Language Models
Can Be Accurately Pruned in One-Shot", section 3): a sweep over the inputs, in blocks, takes the weights that cost the
least, w^2 / (H^-1)_jj with the second moments H of the inputs, and lets the inputs behind make up for each (Hassibi &
Stork 1992, "Optimal Brain Surgeon", section 2). Then all weights that are left are solved once more, together, for the
outputs that the layer is to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from yolo_prune.surgery.least_squares import LEAST_GAIN, MOST_JUDGED, Moments

BLOCK = 128
"""Inputs among which a sweep compares at a time, as in the paper."""
DAMPING = 1e-1
"""Added to the second moments' diagonal, relative to its mean: ten times as in the paper, which has more samples."""
STEPS = (1, 2, 4, 8, 16)
"""Steps of conjugate gradients after which held-out samples are asked whether to go on: to stop early is a ridge."""
ROUNDING = 1e-6
"""Added to the moments' diagonal where weights are solved, relative to its mean: below it nothing is known."""
BLIND_STEPS = 8
"""Steps where there are no such samples."""


@dataclass
class LayerZeros:
    """What is asked of one layer.

    Attributes:
        count: Weights that are to be zero, with those that are already.
        two_of_four: Whether two of every four neighbouring input channels are to be.
        value: What an error of each output costs, shape (outputs,), or None if all cost the same.
        mask: Which weights are to be zero, in the shape of the weight.
        is_chosen: Whether the mask stays; if not, a sweep chooses another one for the layer's inputs.
    """

    count: int = 0
    two_of_four: bool = False
    value: torch.Tensor | None = None
    mask: torch.Tensor | None = field(default=None, repr=False)
    is_chosen: bool = False


def inverse_moments(moments: torch.Tensor) -> torch.Tensor:
    """Return the inverse of damped second moments, shape (n, n), in double precision."""
    damping = DAMPING * moments.double().diagonal().mean().clamp_min(1e-30)
    identity = torch.eye(len(moments), dtype=torch.double, device=moments.device)
    factor, failed = torch.linalg.cholesky_ex(moments.double() + damping * identity)
    while failed and damping.isfinite():  # sums of many samples are rounded
        damping = 10 * damping
        factor, failed = torch.linalg.cholesky_ex(moments.double() + damping * identity)
    inverse: torch.Tensor = torch.cholesky_inverse(factor)
    return inverse


def saliency(weight: torch.Tensor, inverse: torch.Tensor, value: torch.Tensor | None = None) -> torch.Tensor:
    """Return what it costs to let each weight go alone, with the others of its row making up for it.

    Args:
        weight: Shape (outputs, inputs).
        inverse: What `inverse_moments` returned, shape (inputs, inputs), or its diagonal.
        value: What an error of each output costs, shape (outputs,).
    """
    costs = weight.double().square() / (inverse if inverse.ndim == 1 else inverse.diagonal())
    return costs if value is None else costs * value[:, None]


def sweep(
    weight: torch.Tensor,
    moments: torch.Tensor,
    asked: LayerZeros,
    held: torch.Tensor,
    given: torch.Tensor | None = None,
    block: int = BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of a layer after a sweep of SparseGPT, and which of them are zero.

    How many go in each block of inputs is decided before the sweep, by what each costs alone; which ones, when the
    sweep comes there.

    Args:
        weight: Shape (outputs, inputs), in double precision. With two of four, neighbours are neighbouring inputs.
        moments: Sums of the products of two inputs, shape (inputs, inputs).
        asked: How many weights are to be zero, or two of four.
        held: Weights that are zero already and stay, of the shape of the weight.
        given: The zeros, of the same shape, where nothing is chosen any more.
        block: Inputs per block.
    """
    weight, inverse = weight.masked_fill(held, 0), inverse_moments(moments)
    factor = torch.linalg.cholesky(inverse, upper=True)
    value = None if asked.value is None else asked.value.to(weight)
    chosen = _cheapest(saliency(weight, inverse, value), held, asked.count)
    mask = held.clone() if given is None else given
    chooses, by_four = given is None and not asked.two_of_four, given is None and asked.two_of_four
    for first in range(0, weight.shape[1], block):
        columns = slice(first, first + block)
        within, scale = factor[columns, columns], factor.diagonal()[columns]
        part, errors = weight[:, columns].clone(), torch.zeros_like(weight[:, columns])
        if chooses:
            count = int(chosen[:, columns].sum())
            mask[:, columns] = _cheapest(saliency(part, scale.square(), value), held[:, columns], count)
        for i in range(part.shape[1]):
            if by_four and i % 4 == 0:
                four = slice(i, i + 4)
                costs = saliency(part[:, four], scale[four].square())
                mask[:, first + i : first + i + 4] = _two_of(costs, held[:, columns][:, four])
            gone = part[:, i].masked_fill(~mask[:, first + i], 0)
            errors[:, i] = gone / scale[i]
            part[:, i:] -= torch.outer(errors[:, i], within[i, i:])
        weight[:, columns] = part
        weight[:, first + block :] -= errors @ factor[columns, first + block :]
    return weight.masked_fill(mask, 0), mask


def _cheapest(costs: torch.Tensor, held: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of so many weights that cost the least, those that are held first."""
    order = costs.masked_fill(held, -1).flatten().argsort(stable=True)[:count]
    mask = torch.zeros(costs.numel(), dtype=torch.bool, device=costs.device)
    mask[order] = True
    return mask.view(costs.shape)


def _two_of(costs: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """Return a mask of two of four, the cheapest and all that are held, of shape (outputs, 4)."""
    order = costs.masked_fill(held, -1).argsort(dim=1, stable=True)[:, :2]
    return held | torch.zeros_like(held).scatter(1, order, True)


def solve_around(
    whole: Moments, fitted: Moments, held_out: Moments | None, start: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the weights beside zeros that make outputs of inputs, or ``start`` where nothing is better.

    Args:
        whole: All samples.
        fitted: Those that candidates are solved for.
        held_out: The others, which choose the number of steps.
        start: Weights with these zeros, shape (groups, inputs, outputs), in double precision.
        mask: Which weights are zero, of the same shape.
    """
    steps = BLIND_STEPS
    if held_out is not None:
        some = slice(None, None, -(-start.shape[2] // MOST_JUDGED))
        fitted, judge = fitted.of_outputs(some), held_out.of_outputs(some)
        before = least = judge.error(start[:, :, some])
        steps = 0
        for n, weights in enumerate(_descend(fitted, start[:, :, some], mask[:, :, some], STEPS[-1]), 1):
            if n in STEPS:
                if not (error := judge.error(weights)) < least:
                    break
                steps, least = n, error
        if least >= before - LEAST_GAIN * max(before, 0.0):
            return start
    *_, solved = _descend(whole, start, mask, steps)
    rounded = -ROUNDING * float(whole.yy.sum())  # less than that is no error, but moments of nothing
    return solved if rounded <= whole.error(solved) <= whole.error(start) else start


def _descend(moments: Moments, start: torch.Tensor, mask: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """Yield the weights after each step of conjugate gradients, each output by itself, with zeros that stay."""
    energies = moments.xx.diagonal(dim1=1, dim2=2)[..., None]
    ridge = ROUNDING * energies.mean(1, keepdim=True)
    diagonal = energies + ridge + 1e-30
    weights, residual = start, moments.residual(start).masked_fill(mask, 0)
    direction = towards = residual / diagonal
    size = (residual * towards).sum(1, keepdim=True)
    for _ in range(steps):
        effect = (moments.xx @ direction + ridge * direction).masked_fill(mask, 0)
        curvature = (direction * effect).sum(1, keepdim=True)
        length = torch.where(curvature > 0, size / curvature, 0)
        weights = weights + length * direction
        residual = residual - length * effect
        towards = residual / diagonal
        last, size = size, (residual * towards).sum(1, keepdim=True)
        direction = towards + torch.where(last > 0, size / last, 0) * direction
        yield weights
