"""Least squares of streamed samples, with a ridge that held-out samples choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
"""Candidates for the ridge, relative to the mean energy of an input; held-out images choose, layer by layer.

Most layers take the first; the others are tried as long as they get better.
"""
REFINEMENTS = 3
"""Steps of iterated Tikhonov regularisation: where inputs determine outputs, the ridge leaves nothing behind."""
MOST_JUDGED = 64
"""Outputs of a layer, evenly spaced, that choose its ridge: of a wide one solving for all takes long."""
LEAST_GAIN = 1e-3
"""A solution that makes up for a smaller share of the held-out error than this is not worth a change."""


@dataclass
class Moments:
    """Sums over samples of inputs x and outputs y, per group, of their differences from an origin.

    Sums of products of single numbers are rounded. An origin near the mean keeps what is left of an input that hardly
    varies above that, so that the products stay those of something.

    Attributes:
        samples: How many there were.
        origin: Of inputs and of outputs, shapes (groups, inputs) and (groups, outputs).
        x: Sum of the inputs, shape (groups, inputs).
        y: Sum of the outputs, shape (groups, outputs).
        xx: Sum of the products of two inputs, shape (groups, inputs, inputs).
        xy: Sum of the products of an input and an output, shape (groups, inputs, outputs).
        yy: Sum of the squared outputs, shape (groups, outputs).
    """

    samples: int
    origin: tuple[torch.Tensor, torch.Tensor]
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, origin: tuple[torch.Tensor, torch.Tensor] | None = None) -> Moments:
        """Return the sums over samples of shape (groups, samples, inputs) and (groups, samples, outputs)."""
        x0, y0 = origin or (torch.zeros_like(x[:, 0]), torch.zeros_like(y[:, 0]))
        x, y = x - x0[:, None], y - y0[:, None]
        transposed = x.transpose(1, 2)
        sums = (
            x.sum(1, dtype=torch.double),
            y.sum(1, dtype=torch.double),
            transposed @ x,
            transposed @ y,
            y.square().sum(1),
        )
        return cls(x.shape[1], (x0.double(), y0.double()), *(s.double() for s in sums))

    def add(self, other: Moments) -> None:
        """Take in more samples, of the same origin."""
        self.samples += other.samples
        for name in ("x", "y", "xx", "xy", "yy"):
            getattr(self, name).add_(getattr(other, name))

    def plus(self, other: Moments | None) -> Moments:
        """Return the sums over these and other samples, of the same origin."""
        if other is None:
            return self
        names = ("x", "y", "xx", "xy", "yy")
        sums = (getattr(self, n) + getattr(other, n) for n in names)
        return Moments(self.samples + other.samples, self.origin, *sums)

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of the inputs and of the outputs, shapes (groups, inputs) and (groups, outputs)."""
        x0, y0 = self.origin
        return x0 + self.x / self.samples, y0 + self.y / self.samples

    def centre(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Let values of shape (groups, inputs) and (groups, outputs) be the origin."""
        (x0, y0), self.origin = self.origin, (x, y)
        x, y = x - x0, y - y0
        n, sum_x, sum_y = self.samples, self.x[:, :, None], self.y[:, None]
        x_, y_ = x[:, :, None], y[:, None]
        self.xx.baddbmm_(n * x_ - sum_x, x_.mT).baddbmm_(x_, sum_x.mT, alpha=-1)
        self.xy.baddbmm_(n * x_ - sum_x, y_).baddbmm_(x_, sum_y, alpha=-1)
        self.yy.sub_(y * (2 * self.y - n * y))
        self.x, self.y = self.x - n * x, self.y - n * y

    def of_outputs(self, chosen: slice) -> Moments:
        """Return the sums of some outputs; those of inputs alone are shared."""
        origin = self.origin[0], self.origin[1][:, chosen]
        return Moments(
            self.samples, origin, self.x, self.y[:, chosen], self.xx, self.xy[:, :, chosen], self.yy[:, chosen]
        )

    def residual(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the sums of the products of inputs and of what weights leave of outputs, shape as that of ``xy``."""
        return self.xy - self.xx @ weights

    def error(self, weights: torch.Tensor) -> float:
        """Return the summed squared error of weights of shape (groups, inputs, outputs)."""
        return float(self.yy.sum() - 2 * (weights * self.xy).sum() + (weights * (self.xx @ weights)).sum())


def least_squares(whole: Moments, fitted: Moments, held_out: Moments | None, start: torch.Tensor) -> torch.Tensor:
    """Return the weights that make outputs of inputs, or ``start`` itself where nothing is better on held-out samples.

    Args:
        whole: All samples, for which is solved once the ridge is chosen.
        fitted: Those that candidates are solved for.
        held_out: The others, which choose the ridge; without them the ridge is small.
        start: Weights that the ridge pulls to, shape (groups, inputs, outputs), in double precision.
    """
    some = slice(None, None, -(-start.shape[2] // MOST_JUDGED))
    fitted, judge = fitted.of_outputs(some), (held_out or fitted).of_outputs(some)
    before, gap = judge.error(start[:, :, some]), fitted.residual(start[:, :, some])

    def error(ridge: float) -> float:
        change = _change(fitted, gap, ridge)
        return math.inf if change is None else judge.error(start[:, :, some] + change)

    ridge, least = _best_ridge(error)
    energy = float(judge.yy.sum()) * 1e-9  # rounding: what is left of it is no error
    if least >= before - LEAST_GAIN * max(before, 0.0) - energy:
        return start
    change = _change(whole, whole.residual(start), ridge)
    return start if change is None else start + change


def _best_ridge(error: Callable[[float], float]) -> tuple[float, float]:
    """Return the ridge with the least error, and that error, which falls as ridges get smaller and then rises."""
    best, least = RIDGES[0], error(RIDGES[0])
    for ridge in RIDGES[1:]:
        if not (found := error(ridge)) < least:
            break
        best, least = ridge, found
    return best, least


def _change(moments: Moments, gap: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """Return by how much weights change to close a gap, or None if the ridge is too small for these inputs.

    Args:
        moments: Sums over samples.
        gap: Sums of the products of inputs and of what outputs lack, shape (groups, inputs, outputs).
        ridge: Relative to the mean energy of an input.
    """
    size = moments.xx.shape[1]
    energy = moments.xx.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30) / size
    shift = (ridge * energy)[:, None]
    ridged = moments.xx.clone()
    ridged.diagonal(dim1=1, dim2=2).add_(shift)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    del ridged  # of a wide layer the largest thing there is
    if failed.any():
        return None
    change = step = torch.cholesky_solve(gap, factor)
    for _ in range(REFINEMENTS - 1):  # the ridge left a gap of shift * step
        step = torch.cholesky_solve(shift[..., None] * step, factor)
        change = change + step
    return change
