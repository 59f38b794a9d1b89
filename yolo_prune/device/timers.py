"""Timers of files: a runtime of this machine that opens them, or a command that times them wherever it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from yolo_prune.device.command import seconds_of
from yolo_prune.device.stopwatch import Progress, Runner, Timing, alternating, hidden, settle, timed, typical

REPEATS = 3
"""Times that a command times each file where files are compared."""


@dataclass(frozen=True)
class Effort:
    """How long a measurement takes.

    Attributes:
        seconds: That all files together run.
        fewest: Times that each runs, at least.
        most: Times that each runs, at most.
    """

    seconds: float
    fewest: int
    most: int

    def rounds(self, runners: Sequence[Runner]) -> int:
        """Return how often each of several runners counts: each runs twice in its turn, and one time counts."""
        once = float(alternating(runners, rounds=2, warmup=1)[:, 1].sum())
        return int(np.clip(self.seconds / (2 * once), self.fewest, self.most))


class Timer(Protocol):
    """Times files side by side."""

    def seconds(
        self, files: Sequence[Path], effort: Effort, progress: Progress = hidden
    ) -> tuple[np.ndarray, float | None]:
        """Return the seconds of each file, and the share of its processors that the slowest thread got."""

    def compare(self, files: Sequence[Path], effort: Effort, progress: Progress = hidden) -> Timing:
        """Return a measurement that tells how many times as fast as the first file the others are."""


@dataclass(frozen=True)
class RunnerTimer:
    """Opens files and lets them run in turns.

    Attributes:
        open: Opens a file.
        threads: That have to be free, or None where a GPU computes.
    """

    open: Callable[[Path], Runner]
    threads: int | None

    def seconds(
        self, files: Sequence[Path], effort: Effort, progress: Progress = hidden
    ) -> tuple[np.ndarray, float | None]:
        """Return the lower quartile of each file's times, and the share of the slowest thread."""
        runners = [self.open(file) for file in files]
        timing = timed(runners, effort.rounds(runners), self.threads, progress)
        return typical(timing.seconds), timing.share

    def compare(self, files: Sequence[Path], effort: Effort, progress: Progress = hidden) -> Timing:
        """Return the measurement in which the speed-ups have settled, or the calmest."""
        runners = [self.open(file) for file in files]
        return settle(runners, effort.rounds(runners), self.threads, progress)


@dataclass(frozen=True)
class CommandTimer:
    """Runs a command for each file, which says the seconds (see `command`).

    Attributes:
        runtime: The command.
    """

    runtime: str

    def seconds(
        self, files: Sequence[Path], effort: Effort, progress: Progress = hidden
    ) -> tuple[np.ndarray, float | None]:
        """Return what the command says of each file; nobody knows what else runs there."""
        with progress("timing", len(files)) as step:
            return np.array([self._once(file, step) for file in files]), None

    def compare(self, files: Sequence[Path], effort: Effort, progress: Progress = hidden) -> Timing:
        """Return what the command says of each file, in turns."""
        with progress("timing", REPEATS * len(files)) as step:
            rounds = [[self._once(file, step) for file in files] for _ in range(REPEATS)]
        return Timing.of(np.array(rounds).T, None)

    def _once(self, file: Path, step: Callable[[], None]) -> float:
        seconds = seconds_of(self.runtime, file)
        step()
        return seconds
