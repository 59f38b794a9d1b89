"""Every error that yolo_prune raises on purpose.

    PruneError
    ├── ConfigError        a knob has a wrong name, type or value        (also a ValueError)
    ├── UnsupportedError   the model or a feature of the host cannot be combined with pruning
    ├── TargetError        the asked target cannot be reached; names what is locked
    ├── PlanError          a plan is malformed or belongs to another model (also a ValueError)
    ├── CutError           a cut, or the step to INT8, failed and everything was put back
    ├── CheckpointError    a checkpoint is not what it has to be
    └── ExportError        an export failed or disagrees with the checkpoint

Each message says what was wrong, the value seen and the way out.
"""

from __future__ import annotations


class PruneError(Exception):
    """Base class of all errors of yolo_prune."""


class ConfigError(PruneError, ValueError):
    """A knob has a wrong name, type or value."""


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


class ExportError(PruneError):
    """An export failed, or its outputs disagree with the checkpoint."""
