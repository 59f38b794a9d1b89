"""Speed-ups that noise cannot make: a measurement that knows how far it spreads, and how much of the machine it got.

What else a machine does makes a ratio spread, or makes it wrong without a spread: a network that takes less time than
the system lets a thread run often ends undisturbed, and a slower one next to it seldom does. So threads are looked at
directly, now and then: hashing needs nothing but a processor, and a thread that gets less of it than it asks for shares
it with something else, or is held back by a limit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from yolo_prune.deploy.runtimes import Runner, alternating
from yolo_prune.report.records import QUIET, STEADY, Speedup

TRIES = 3
"""Times that networks are timed until their speed-ups settle."""
BLOCKS = 8
"""Parts of a measurement, one after the other, whose speed-ups are compared."""
LOOKS = 20
"""Times that threads are looked at in a measurement; together they take about a twentieth of it."""
WORK = 8 << 20
"""Bytes that each thread hashes in a look: some milliseconds, more than the system lets a thread run before another."""
COARSE = 1e-3
"""Seconds: a clock that ticks less often cannot tell how long a thread has run in a look."""


@dataclass(frozen=True)
class Timing:
    """Times of runners, measured in turns.

    Attributes:
        seconds: Shape (runners, rounds).
        ratios: How many times as fast as the first runner each is, block by block, shape (runners, blocks).
        share: Of its processors, what the slowest thread got (1: all), or None if nobody looked.
    """

    seconds: np.ndarray
    ratios: np.ndarray
    share: float | None

    @classmethod
    def of(cls, seconds: np.ndarray, share: float | None) -> Timing:
        """Divide a measurement into blocks."""
        blocks = np.array_split(seconds, min(BLOCKS, seconds.shape[1]), axis=1)
        lower = np.stack([typical(block) for block in blocks], axis=1)
        return cls(seconds, lower[0] / lower, share)

    def speedup(self, runner: int) -> Speedup:
        """Return how many times as fast as the first one a runner is."""
        lower, ratios = typical(self.seconds), self.ratios[runner]
        value = float(lower[0] / lower[runner])
        low, high = (float(q) for q in np.quantile(ratios, (0.25, 0.75)))
        low, high = min(low, value), max(high, value)
        if high <= STEADY * low and (self.share is None or self.share >= QUIET):
            return Speedup(low, value, high, self.share, settled=True)
        return Speedup(float(ratios.min()), None, float(ratios.max()), self.share, settled=False)

    @property
    def is_settled(self) -> bool:
        """Whether the speed-ups of all runners can be told."""
        return all(self.speedup(runner).settled for runner in range(len(self.seconds)))

    @property
    def calmness(self) -> tuple[float, float]:
        """Key to compare two measurements by."""
        return self.share or 0.0, -float((self.ratios.max(axis=1) / self.ratios.min(axis=1)).max())


def typical(seconds: np.ndarray) -> np.ndarray:
    """Return the lower quartile of each runner's times, since what else a machine does can only add to them.

    Args:
        seconds: Shape (runners, rounds).
    """
    quartiles: np.ndarray = np.quantile(seconds, 0.25, axis=1)
    return quartiles


def settle(runners: Sequence[Runner], rounds: int, threads: int | None) -> Timing:
    """Time runners in turns until the speed-ups over the first have settled, `TRIES` times at most.

    Args:
        runners: Each computes one image.
        rounds: Times that each counts, each time.
        threads: That they use, or None where they do not need the processors.

    Returns:
        The measurement that has settled; if none has, the calmest, with the ratios of all.
    """
    tries = []
    for _ in range(TRIES):
        tries.append(_timed(runners, rounds, threads))
        if tries[-1].is_settled:
            return tries[-1]
    calmest = max(tries, key=lambda timing: timing.calmness)
    return replace(calmest, ratios=np.concatenate([timing.ratios for timing in tries], axis=1))


def share_of_slowest(threads: int) -> float:
    """Let threads work at once, and return the share of its time that the slowest one ran: runtimes wait for it."""
    content = bytes(WORK)

    def share(_: int) -> float:
        started, used = time.perf_counter(), time.thread_time()
        hashlib.sha256(content)  # releases the interpreter's lock
        return (time.thread_time() - used) / (time.perf_counter() - started)

    with ThreadPoolExecutor(threads) as pool:
        return min(1.0, *pool.map(share, range(threads)))


def _timed(runners: Sequence[Runner], rounds: int, threads: int | None) -> Timing:
    """Time runners in turns, and look at the threads now and then."""
    shares: list[float] = []
    every = max(1, rounds // LOOKS)
    looks = threads if time.get_clock_info("thread_time").resolution <= COARSE else None

    def between(i: int) -> None:
        if looks and i % every == 0:
            shares.append(share_of_slowest(looks))

    seconds = alternating(runners, rounds, between=between)
    return Timing.of(seconds, float(np.mean(shares)) if shares else None)
