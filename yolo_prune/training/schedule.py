"""At which epochs to cut, and which fraction of the target each cut reaches: pure functions.

With 60 epochs, ``start=0.1``, ``end=0.4``, ``steps=3`` and ``schedule="cubic"``, the defaults for a model that knows
the data's classes, the cuts fall before epochs 6, 15 and 24 (counted from 0) and reach 70 %, 96 % and 100 % of it:
most of the removal happens early, while the learning rate is high, and the last 60 % of the run is recovery.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yolo_prune.errors import ConfigError


@dataclass(frozen=True)
class ScheduledCut:
    """One scheduled cut.

    Attributes:
        epoch: The cut falls before the batches of this epoch, counted from 0.
        fraction: Of the target, which is reached after this cut, 0 < fraction <= 1.
    """

    epoch: int
    fraction: float


def cuts(*, epochs: int, removed: float, start: float, end: float, steps: int, schedule: str) -> list[ScheduledCut]:
    """Return the cuts of a run in order; the last one reaches the target.

    Args:
        epochs: Length of the run.
        removed: Share to remove in the end (of what is cut hardest, if there are several targets), 0 <= removed < 1;
            0 needs no cut.
        start: First cut as a fraction of the run.
        end: Last cut as a fraction of the run.
        steps: Number of cuts; ``one-shot`` always has one, at ``start``.
        schedule: ``one-shot``, ``linear``, ``cubic`` (1 - (1 - x)^3, Zhu & Gupta 2017, "To prune, or not to prune",
            section 3) or ``exponential`` (every cut keeps the same share of what is left).

    Raises:
        ConfigError: If the cuts do not fall on different epochs, or no epoch is left to recover after the last one.
    """
    if removed == 0:
        return []
    n = 1 if schedule == "one-shot" else steps
    if n > epochs:
        raise ConfigError(f"{n} cuts do not fit epochs={epochs}: use fewer steps or more epochs.")
    at = [round(epochs * (start + (end - start) * (i / (n - 1) if n > 1 else 0))) for i in range(n)]
    if len(set(at)) < n or at[-1] > epochs - 1:
        raise ConfigError(
            f"{n} cuts between start={start:g} and end={end:g} do not fit epochs={epochs} (they would fall before "
            f"epochs {', '.join(map(str, at))}): use more epochs, fewer steps or a wider span, with an epoch left "
            "after the last cut."
        )
    return [ScheduledCut(epoch, _fraction(schedule, (i + 1) / n, removed)) for i, epoch in enumerate(at)]


def _fraction(schedule: str, x: float, removed: float) -> float:
    """Fraction of the target after a share ``x`` of the cuts."""
    if x == 1:
        return 1.0
    if schedule == "cubic":
        return 1 - (1 - x) ** 3
    if schedule == "exponential":
        return math.expm1(x * math.log1p(-removed)) / -removed
    return x


def quantization(*, epochs: int, at: float, cuts: Sequence[ScheduledCut]) -> int:
    """Return the epoch, counted from 0, before whose batches a run turns to INT8.

    Args:
        epochs: Length of the run.
        at: As a fraction of the run.
        cuts: What `cuts` returned.

    Raises:
        ConfigError: If a cut would fall on the same epoch or later, or no epoch is left to train.
    """
    epoch, last = round(epochs * at), cuts[-1].epoch if cuts else -1
    if not last < epoch < epochs:
        raise ConfigError(
            f"quantize_at={at:g} falls before epoch {epoch} of epochs={epochs}, the last cut before epoch {last}: "
            "quantizing comes after the last cut, with an epoch left to train; use more epochs, or move end or "
            "quantize_at."
        )
    return epoch


def learning_rate_epoch(epoch: int, epochs: int, last_cut: int | None, mode: str) -> float:
    """Return where in the run's own learning-rate curve an epoch is, after cuts.

    Args:
        epoch: Counted from 0.
        epochs: Length of the run.
        last_cut: Epoch of the latest cut, or None.
        mode: ``keep`` follows the run's curve; ``rewind`` runs through the whole curve once more from the latest cut to
            the end (Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", section 3).
    """
    if last_cut is None or mode == "keep":
        return float(epoch)
    return (epoch - last_cut) * epochs / (epochs - last_cut)
