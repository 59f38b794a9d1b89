"""Console output: lines with one prefix, and a progress bar where something takes long.

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
from typing import Any, TextIO

from ultralytics.utils import LOGGER, RANK, TQDM, VERBOSE, colorstr

PREFIX = colorstr("prune:") + " "
PATIENCE = 2.0
"""Seconds that pass before a bar tells that something is under way."""


def log(text: str) -> None:
    """Log a text."""
    if _is_talking.get() and RANK in {-1, 0}:
        LOGGER.info(f"{PREFIX}{text}")


@contextmanager
def verbosity(is_verbose: bool) -> Iterator[None]:
    """Show lines and bars only if the user wants them; what is silent already stays so."""
    token = _is_talking.set(is_verbose and _is_talking.get())
    try:
        yield
    finally:
        _is_talking.reset(token)


@contextmanager
def silence() -> Iterator[None]:
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
def progress_bar(what: str, total: int, *, share: int = 0) -> Iterator[Callable[..., None]]:
    """Show a bar if something takes longer than `PATIENCE`.

    What is waited for inside of it takes the same line of the terminal meanwhile, if it takes as long by itself, and
    says how long the whole will take.

    Args:
        what: Is being done, e.g. ``"timing layers"``.
        total: Number of steps.
        share: Steps of what this is a part of that it takes, which are counted when it ends; by default it is part of
            one step, which is counted outside.

    Yields:
        A function to call after each step, or with how many steps have been made.
    """
    wait = _Wait(what, total, _waiting.get(), share or 1)
    token = _waiting.set(wait)
    try:
        yield wait.step
    finally:
        _waiting.reset(token)
        wait.bar.close()
    if share and wait.outer:
        wait.outer.step(share)


class _Late:
    """A stream of which nothing is seen until it is opened: a bar counts from the start, and is seen if it is late."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.is_open = stream, False

    def write(self, text: str) -> int:
        """Write a text if the stream is open."""
        return self.stream.write(text) if self.is_open else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Wait:
    """Something that is under way.

    Args:
        what: Is being done.
        total: Number of steps.
        outer: What this is a part of.
        share: How many of its steps.
    """

    def __init__(self, what: str, total: int, outer: _Wait | None, share: int) -> None:
        self.what, self.total, self.done, self.started = what, total, 0, time.time()
        self.outer, self.share = outer, share
        self.file = _Late(sys.stderr)
        name = f"{PREFIX}{self._name()}"
        self.bar = TQDM(desc=name, total=total, leave=False, file=self.file, disable=not _is_heard())

    def step(self, steps: int = 1) -> None:
        """Count steps."""
        self.done += steps
        if time.time() - self.started > PATIENCE and self.done < self.total:
            self.file.is_open = True
        self.bar.desc = f"{PREFIX}{self._name()}"
        self.bar.update(steps)

    def _name(self) -> str:
        """Return what is done; of a part, after the whole with the time that it has left."""
        if self.outer is None:
            return self.what
        whole, done = self, self.done / max(self.total, 1)
        while whole.outer is not None:
            done = (whole.outer.done + whole.share * done) / whole.outer.total
            whole = whole.outer
        left = f", {_minutes((time.time() - whole.started) * (1 / done - 1))} left" if done > 0 else ""
        return f"{whole.what} ({done:.0%}{left}), {self.what}"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


_is_talking: ContextVar[bool] = ContextVar("is_talking", default=True)
_level: ContextVar[int | None] = ContextVar("level", default=None)
"""The level that the user has given the LOGGER, while `silence` holds it higher."""
_waiting: ContextVar[_Wait | None] = ContextVar("waiting", default=None)
"""The innermost of what is under way."""


def _is_heard() -> bool:
    """Return whether the user wants to see bars."""
    level = _level.get() or LOGGER.getEffectiveLevel()
    return _is_talking.get() and VERBOSE and RANK in {-1, 0} and level <= logging.INFO
