"""Speed-ups that noise cannot make: a measurement that knows how far it spreads, and how much of the machine it got.

What else a machine does makes a ratio spread, or makes it wrong without a spread: a network that takes less time than
the system lets a thread run often ends undisturbed, and a slower one next to it seldom does. So threads are looked at
directly, now and then: hashing needs nothing but a processor, and a thread that gets less of it than it asks for shares
it with something else, or is held back by a limit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Runner = Callable[[], object]
"""Computes one image and returns when it is done."""
Progress = Callable[[str, int], Any]
"""Context manager that shows something of so many steps, and gives what is to be called after each."""
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
QUIET = 0.9
"""Share of its processors that a measurement needs: it gets over 0.99 of idle ones, and about half with one other job
on two of them, at which speed-ups come out two or three times too large."""
STEADY = 1.1
"""How much larger than its lower end the upper end of a speed-up's spread may be."""
WIDE = 1.5
"""The same for a range of what has not settled."""


@contextmanager
def hidden(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


@dataclass
class Speedup:
    """How many times as fast as the dense network another one is, as far as that can be told.

    Attributes:
        low: Lower end of its spread: a quartile over parts of the measurement; the least of all if it has not settled.
        value: By the lower quartiles of the times, or None if it has not settled.
        high: Upper end of its spread.
        share: Of its processors, what the slowest thread got meanwhile (1: all of them), or None on a GPU.
        settled: Whether it can be told: nothing else kept the machine busy, and the spread is small.
    """

    low: float
    value: float | None
    high: float
    share: float | None
    settled: bool

    @property
    def is_disturbed(self) -> bool:
        """Whether something else kept the machine busy."""
        return self.share is not None and self.share < QUIET

    @property
    def is_told(self) -> bool:
        """Whether it has settled, and tells which of the two is faster."""
        return self.settled and not self.low <= 1 <= self.high

    @property
    def is_range(self) -> bool:
        """Whether it has not settled, but lies in a range that says something."""
        is_narrow = self.high <= WIDE * self.low and not self.low <= 1 <= self.high
        return not self.settled and not self.is_disturbed and is_narrow

    def told(self) -> str:
        """Return it as text: a figure with its spread, a range, or why there is neither."""
        spread = f"{self.low:.2f}x and {self.high:.2f}x"
        if self.settled and self.low <= 1 <= self.high:
            return f"as fast as dense, as far as can be told (between {spread})"
        if self.settled:
            return f"{self.value:.2f}x ({self.low:.2f}-{self.high:.2f}) as fast as dense"
        if self.is_range:
            return f"between {spread} as fast as dense, and it did not settle"
        if self.is_disturbed:
            why = f"something else kept this machine busy (a thread got {self.share:.0%} of its processor)"
            return f"no speed-up can be told: {why}, and it came to between {spread}"
        return f"no speed-up can be told: it did not settle, and came to between {spread}"


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


def alternating(
    runners: Sequence[Runner],
    rounds: int = 20,
    warmup: int = 3,
    between: Callable[[int], None] | None = None,
    progress: Progress = hidden,
) -> np.ndarray:
    """Time several runners in turns, so that what else the machine does meets all alike.

    Each runs twice in its turn, and the second time counts: a network that is alone finds its weights in the caches,
    and not those of the others.

    Args:
        runners: Each computes one image.
        rounds: Times that each of them counts.
        warmup: Times that each of them runs before.
        between: Is called before each round, with its number from 0.
        progress: Shows how far it is.

    Returns:
        Seconds, shape (runners, rounds).
    """
    for run in runners:
        for _ in range(warmup):
            run()
    seconds = np.zeros((len(runners), rounds))
    with progress("timing", rounds) as step:
        for i in range(rounds):
            if between:
                between(i)
            for j, run in enumerate(runners):
                run()
                started = time.perf_counter()
                run()
                seconds[j, i] = time.perf_counter() - started
            step()
    return seconds


def typical(seconds: np.ndarray) -> np.ndarray:
    """Return the lower quartile of each runner's times, since what else a machine does can only add to them.

    Args:
        seconds: Shape (runners, rounds).
    """
    quartiles: np.ndarray = np.quantile(seconds, 0.25, axis=1)
    return quartiles


def settle(runners: Sequence[Runner], rounds: int, threads: int | None, progress: Progress = hidden) -> Timing:
    """Time runners in turns until the speed-ups over the first have settled, `TRIES` times at most.

    Args:
        runners: Each computes one image.
        rounds: Times that each counts, each time.
        threads: That they use, or None where they do not need the processors.
        progress: Shows how far each of them is.

    Returns:
        The measurement that has settled; if none has, the calmest, with the ratios of all.
    """
    tries = []
    for _ in range(TRIES):
        tries.append(timed(runners, rounds, threads, progress))
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


def timed(runners: Sequence[Runner], rounds: int, threads: int | None, progress: Progress = hidden) -> Timing:
    """Time runners in turns, and look at the threads now and then; parameters as in `settle`."""
    shares: list[float] = []
    every = max(1, rounds // LOOKS)
    looks = threads if time.get_clock_info("thread_time").resolution <= COARSE else None

    def between(i: int) -> None:
        if looks and i % every == 0:
            shares.append(share_of_slowest(looks))

    seconds = alternating(runners, rounds, between=between, progress=progress)
    return Timing.of(seconds, float(np.mean(shares)) if shares else None)
