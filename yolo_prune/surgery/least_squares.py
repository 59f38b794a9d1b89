"""Least squares with a ridge that held-out images choose."""

from __future__ import annotations

import torch

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Candidates for the ridge, relative to the mean energy of an input; held-out images choose, layer by layer."""
REFINEMENTS = 3
"""Steps of iterated Tikhonov regularisation: where inputs determine outputs, the ridge leaves nothing behind."""
HELD_OUT = 0.25
"""Share of the images that judge a solution instead of making it."""


def least_squares(inputs: torch.Tensor, outputs: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the weights that make outputs of inputs, or ``start`` itself where nothing is better on held-out images.

    Args:
        inputs: Shape (groups, images, positions, inputs).
        outputs: Shape (groups, images, positions, outputs).
        start: Weights that the ridge pulls to, shape (groups, outputs, inputs).
    """
    left = outputs - inputs @ start.transpose(1, 2)[:, None]
    held_out = max(1, round(inputs.shape[1] * HELD_OUT))
    judge, goal = inputs[:, :held_out].flatten(1, 2), left[:, :held_out].flatten(1, 2)
    fitted = _Ridge(inputs[:, held_out:].flatten(1, 2), left[:, held_out:].flatten(1, 2))
    least, chosen = 0.999 * float(goal.square().sum()), None
    for ridge in RIDGES:
        step = fitted.solution(ridge)
        if step is not None and (error := float((goal - judge @ step).square().sum())) < least:
            least, chosen = error, ridge
    step = None if chosen is None else _Ridge(inputs.flatten(1, 2), left.flatten(1, 2)).solution(chosen)
    return start if step is None else start + step.transpose(1, 2)


class _Ridge:
    """Least squares with a ridge, per group: solved over inputs, or over samples where there are fewer of these.

    Args:
        x: Samples of inputs, shape (groups, samples, inputs).
        y: What to make of them, shape (groups, samples, outputs).
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        inputs, self._dtype = x.shape[2], x.dtype
        x, y = x.double(), y.double()
        transposed = x.transpose(1, 2)
        self._back = transposed if x.shape[1] < inputs else None
        """Maps a solution over samples to one over inputs."""
        self._products, self._goal = (x @ transposed, y) if x.shape[1] < inputs else (transposed @ x, transposed @ y)
        energy = self._products.diagonal(dim1=1, dim2=2).sum(1) / inputs
        self._energy = energy.clamp_min(1e-30)[:, None, None]

    def solution(self, ridge: float) -> torch.Tensor | None:
        """Return the solution, shape (groups, inputs, outputs), or None if the ridge is too small for these inputs."""
        size = self._products.shape[1]
        eye = torch.eye(size, dtype=torch.double, device=self._products.device)
        factor, failed = torch.linalg.cholesky_ex(self._products + ridge * self._energy * eye)
        if failed.any():
            return None
        solution = torch.cholesky_solve(self._goal, factor)
        for _ in range(REFINEMENTS - 1):  # what the ridge and rounding left
            solution += torch.cholesky_solve(self._goal - self._products @ solution, factor)
        return (solution if self._back is None else self._back @ solution).to(self._dtype)
