"""Least squares of streamed samples, with a ridge that held-out samples choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for the ridge, relative to the mean energy of an input; held-out images choose, layer by layer."""
REFINEMENTS = 3
"""Steps of iterated Tikhonov regularisation: where inputs determine outputs, the ridge leaves nothing behind."""
MOST_JUDGED = 64
"""Outputs of a layer, evenly spaced, that choose its ridge: of a wide one solving for all takes long."""
LEAST_GAIN = 1e-3
"""A solution that makes up for a smaller share of the held-out error than this is not worth a change."""


@dataclass
class Moments:
    """Sums over samples of inputs x and outputs y, per group.

    Attributes:
        samples: How many there were.
        x: Sum of the inputs, shape (groups, inputs).
        y: Sum of the outputs, shape (groups, outputs).
        xx: Sum of the products of two inputs, shape (groups, inputs, inputs).
        xy: Sum of the products of an input and an output, shape (groups, inputs, outputs).
        yy: Sum of the squared outputs, shape (groups, outputs).
    """

    samples: int
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor
    yy: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> Moments:
        """Return the sums over samples of shape (groups, samples, inputs) and (groups, samples, outputs)."""
        transposed = x.transpose(1, 2)
        sums = (
            x.sum(1, dtype=torch.double),
            y.sum(1, dtype=torch.double),
            transposed @ x,
            transposed @ y,
            y.square().sum(1),
        )
        return cls(x.shape[1], *(s.double() for s in sums))

    def add(self, other: Moments) -> None:
        """Take in more samples."""
        self.samples += other.samples
        for name in ("x", "y", "xx", "xy", "yy"):
            getattr(self, name).add_(getattr(other, name))

    def plus(self, other: Moments | None) -> Moments:
        """Return the sums over these and other samples."""
        if other is None:
            return self
        names = ("x", "y", "xx", "xy", "yy")
        return Moments(self.samples + other.samples, *(getattr(self, n) + getattr(other, n) for n in names))

    def centre(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Turn these into the sums of differences from values of shape (groups, inputs) and (groups, outputs)."""
        n, sum_x, sum_y = self.samples, self.x[:, :, None], self.y[:, None]
        x_, y_ = x[:, :, None], y[:, None]
        self.xx.baddbmm_(n * x_ - sum_x, x_.mT).baddbmm_(x_, sum_x.mT, alpha=-1)
        self.xy.baddbmm_(n * x_ - sum_x, y_).baddbmm_(x_, sum_y, alpha=-1)
        self.yy.sub_(y * (2 * self.y - n * y))
        self.x, self.y = self.x - n * x, self.y - n * y

    def of_outputs(self, chosen: slice) -> Moments:
        """Return the sums of some outputs; those of inputs alone are shared."""
        return Moments(self.samples, self.x, self.y[:, chosen], self.xx, self.xy[:, :, chosen], self.yy[:, chosen])

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
    before = judge.error(start[:, :, some])
    energy = judge.yy.sum() * 1e-9  # rounding: what is left of it is no error
    least, chosen = before - LEAST_GAIN * max(before, 0.0) - float(energy), None
    for ridge in RIDGES:
        weights = _solution(fitted, start[:, :, some], ridge)
        if weights is not None and (error := judge.error(weights)) < least:
            least, chosen = error, ridge
    best = None if chosen is None else _solution(whole, start, chosen)
    return start if best is None else best


def _solution(moments: Moments, start: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """Return the solution with a ridge, or None if that is too small for these inputs."""
    size = moments.xx.shape[1]
    energy = moments.xx.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30) / size
    ridged = moments.xx.clone()
    ridged.diagonal(dim1=1, dim2=2).add_(ridge * energy[:, None])
    factor, failed = torch.linalg.cholesky_ex(ridged)
    del ridged  # of a wide layer the largest thing there is
    if failed.any():
        return None
    weights = start
    for _ in range(REFINEMENTS):  # what the ridge and rounding left
        weights = weights + torch.cholesky_solve(moments.xy - moments.xx @ weights, factor)
    return weights
