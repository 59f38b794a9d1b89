"""Every error that yolo_prune raises on purpose.

    PruneError
    ├── ConfigError        an option has a wrong name, type or value       (also a ValueError)
    ├── UnsupportedError   the model or a feature of the host cannot be combined with pruning
    ├── TargetError        the asked target cannot be reached; names what is locked
    ├── PlanError          a plan is malformed or belongs to another model (also a ValueError)
    ├── CutError           a cut, or the step to INT8, failed and everything was put back
    ├── CheckpointError    a checkpoint is not what it has to be
    ├── WriteError         a file could not be written                   (also an OSError)
    └── ExportError        an export failed or disagrees with the checkpoint

Each message says what was wrong, the value seen and the way out.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

_READABLE = reprlib.Repr()
_READABLE.maxlevel = 2
_READABLE.maxlong = _READABLE.maxstring = _READABLE.maxother = 80


class PruneError(Exception):
    """Base class of all errors of yolo_prune."""


class ConfigError(PruneError, ValueError):
    """An option has a wrong name, type or value."""


class UnsupportedError(PruneError):
    """The model, or a feature of the host, cannot be combined with pruning."""


class TargetError(PruneError):
    """The asked target cannot be reached."""


class PlanError(PruneError, ValueError):
    """A plan is malformed, or it was made for another model."""


class CutError(PruneError):
    """A cut, or the step to INT8, failed; model, EMA, optimizer and trainer are as they were before it."""


class CheckpointError(PruneError):
    """A checkpoint is not what it has to be."""


class WriteError(PruneError, OSError):
    """A file could not be written; one that was there is as it was."""


class ExportError(PruneError):
    """An export failed, or its outputs disagree with the checkpoint."""


def short_repr(value: Any) -> str:
    """Return a value as a message shows it: short, however large or deep it is."""
    try:
        return _READABLE.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return f"a {type(value).__name__} too long to print"


def listed(values: Iterable[Any]) -> str:
    """Return ``48, 104 and 200``."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def describe_error(error: BaseException) -> str:
    """Return another package's error on one line: its class, and its first line of text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
