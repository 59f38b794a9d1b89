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


def family(
    *, epochs: int, removed: Sequence[float], start: float, end: float, steps: int, schedule: str
) -> list[ScheduledCut]:
    """Return the cuts of a run that hands over several models; each size has an equal part of the run after ``start``.

    A part is what a run of one size has after ``start``, made shorter: cuts, then epochs to recover.

    Args:
        epochs: Length of the run.
        removed: Share that each size removes, ascending; fractions are of the way to the last.
        start: First cut of all as a fraction of the run.
        end: Last cut to a size as a fraction of the run, if there were no others.
        steps: Number of cuts to each size; fewer where not so many fall on different epochs.
        schedule: As for `cuts`.

    Raises:
        ConfigError: If a size has no epoch to recover.
    """
    if len(removed) < 2:
        share = removed[0] if removed else 0.0
        return cuts(epochs=epochs, removed=share, start=start, end=end, steps=steps, schedule=schedule)
    parts, scheduled, before = len(removed), [], 0.0
    length, span = (1 - start) / parts, (end - start) / parts
    for part, share in enumerate(removed):
        first, after = start + part * length, round(epochs * (start + (part + 1) * length))
        at = _different_epochs(epochs, first, span, 1 if schedule == "one-shot" else steps)
        if at[-1] >= after:
            raise ConfigError(
                f"{parts} sizes do not fit epochs={epochs}: each needs epochs for its cuts and one more; use more "
                "epochs, or fewer sizes."
            )
        way = 1 - (1 - share) / (1 - before)  # of what the size before has left
        for i, epoch in enumerate(at):
            x = _fraction(schedule, (i + 1) / len(at), way)
            is_there = i == len(at) - 1
            scheduled.append(ScheduledCut(epoch, (share if is_there else before + x * (share - before)) / removed[-1]))
        before = share
    return scheduled


def _different_epochs(epochs: int, first: float, span: float, steps: int) -> list[int]:
    """Return the epochs of as many cuts, evenly between two fractions of a run, as fall on different ones."""
    for n in range(steps, 1, -1):
        at = [round(epochs * (first + span * (i / (n - 1)))) for i in range(n)]
        if len(set(at)) == n:
            return at
    return [round(epochs * first)]


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


ATTEMPT = 0.12
"""Length of an attempt of ``target=auto``, as a fraction of the run, but for late ones, which have the rest of it."""


def attempts(*, epochs: int, start: float, end: float) -> tuple[int, int, int]:
    """Return when a run that finds its own target makes its first attempt, when the first with the rest of the run.

    Args:
        epochs: Length of the run.
        start: First attempt as a fraction of the run.
        end: Where an attempt that is not over by then has the rest of the run.

    Returns:
        Both epochs, and the length of the attempts before.

    Raises:
        ConfigError: If no epoch is left to recover after the last one.
    """
    first, last = round(epochs * start), round(epochs * end)
    if last > epochs - 1:
        raise ConfigError(f"target=auto with end={end:g} leaves none of epochs={epochs} to recover; use more epochs.")
    return first, last, max(1, math.ceil(epochs * ATTEMPT))


def attempt_since(epochs: float, least: int) -> float:
    """Return at which fraction of the run's learning-rate curve an attempt of ``target=auto`` begins.

    Args:
        epochs: Length of the attempt; with twice the epochs it begins half as far along the curve.
        least: Length of the shortest ones, which begin in the middle.
    """
    return min(0.5, 0.5 * least / epochs)


def part_epoch(epoch: float, epochs: int, begin: float, end: float, since: float = 0.0) -> float:
    """Return where in the run's own learning-rate curve an epoch is, if a part of the run goes on to the curve's end.

    Each model so ends with a low rate, as those of Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free",
    section 3.

    Args:
        epoch: Counted from 0.
        epochs: Length of the run.
        begin: The part's first epoch.
        end: The epoch after its last.
        since: Fraction of the curve at which the part begins.
    """
    return epochs * (since + (1 - since) * (epoch - begin) / (end - begin))


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
