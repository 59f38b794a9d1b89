"""What a user is told while a run is under way: lines with one prefix, and a bar where something takes long.

Both come from the first process only, and neither where the user wants none: ``verbose=False``, ``YOLO_VERBOSE=false``,
or a level of Ultralytics' ``LOGGER`` above INFO. Bars are Ultralytics' own. They go to standard error, so that what a
command prints can be piped, and are wiped when they are done: a line per cut and a summary stay.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ultralytics.utils import LOGGER, RANK, TQDM, VERBOSE, colorstr

PREFIX = colorstr("prune:") + " "
PATIENCE = 2.0
"""Seconds that pass before a bar tells that something is under way."""


def say(text: str) -> None:
    """Log a text."""
    if _is_talking.get() and RANK in {-1, 0}:
        LOGGER.info(f"{PREFIX}{text}")


@contextmanager
def talking(is_verbose: bool) -> Iterator[None]:
    """Show lines and bars only if the user wants them; what is silent already stays so."""
    token = _is_talking.set(is_verbose and _is_talking.get())
    try:
        yield
    finally:
        _is_talking.reset(token)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics and its exporters from telling of each network that is only made to be timed; bars are shown."""
    level = LOGGER.level
    token = _level.set(_level.get() or LOGGER.getEffectiveLevel())
    LOGGER.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        LOGGER.setLevel(level)
        _level.reset(token)


@contextmanager
def waiting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar if something takes longer than `PATIENCE`.

    What is waited for inside of it takes the same line of the terminal meanwhile, if it takes as long by itself.

    Args:
        what: Is being done, e.g. ``"timing layers"``.
        total: Number of steps.

    Yields:
        A function to call after each step.
    """
    wait = _Wait(what, total, _waiting.get(), time.time())
    token = _waiting.set(wait)
    try:
        yield wait.step
    finally:
        _waiting.reset(token)
        if wait.bar:
            wait.bar.close()


@dataclass
class _Wait:
    """Something that is under way.

    Attributes:
        what: Is being done.
        total: Number of steps.
        outer: What this is a part of.
        started: When, in seconds.
        done: Steps that are done.
        bar: Is shown, or None.
    """

    what: str
    total: int
    outer: _Wait | None
    started: float
    done: int = 0
    bar: TQDM | None = None

    def step(self) -> None:
        """Count a step."""
        self.done += 1
        took = time.time() - self.started
        if self.bar is None and took > PATIENCE and self.done < self.total and _is_heard():
            self.bar = TQDM(
                desc=f"{PREFIX}{self}",
                total=self.total,
                initial=self.done - 1,
                leave=False,
                file=sys.stderr,
                disable=False,
            )
            self.bar.start_t = self.bar.last_print_t = self.started  # rate and remaining time count from there
            self.bar.last_print_n, self.bar.last_rate = 0, self.done / took
        if self.bar:
            self.bar.update()

    def __str__(self) -> str:
        return f"{self.outer} ({self.outer.done + 1}/{self.outer.total}), {self.what}" if self.outer else self.what


_is_talking: ContextVar[bool] = ContextVar("is_talking", default=True)
_level: ContextVar[int | None] = ContextVar("level", default=None)
"""The level that the user has given the LOGGER, while `quiet` holds it higher."""
_waiting: ContextVar[_Wait | None] = ContextVar("waiting", default=None)
"""The innermost of what is under way."""


def _is_heard() -> bool:
    """Return whether the user wants to see bars."""
    level = _level.get() or LOGGER.getEffectiveLevel()
    return _is_talking.get() and VERBOSE and RANK in {-1, 0} and level <= logging.INFO
