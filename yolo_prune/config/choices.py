"""The values that options can have, and where which options mean something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolo_prune.errors import ConfigError, short_repr

IMPORTANCES = (
    *("l1", "l2", "bn_scale", "lamp", "fpgm", "random"),
    *("taylor", "hessian", "activation", "reconstruction"),
)
ALLOCATIONS = ("uniform", "global", "isomorphic", "sensitivity")
NORMALIZERS = ("mean", "sum", "max", "gaussian", "none")
DISTILL_LOSSES = ("outputs", "features", "cwd")
SPARSITIES = ("none", "bn_scale", "group_lasso")
RUNTIMES = ("onnx", "openvino", "ncnn", "litert", "coreml", "pytorch", "tensorrt")
PORTABLE = tuple(name for name in RUNTIMES if name != "pytorch")
"""Runtimes that a device can have without Ultralytics."""
LEARNING_RATES = ("keep", "rewind", "cycle")
SCHEDULES = ("one-shot", "linear", "cubic", "exponential")
BY_WEIGHTS = (
    *("target", "importance", "allocation", "normalizer", "per_cost"),
    *("round_to", "runtime", "latency", "max_pruning_ratio", "layer_limits", "ignored_layers", "reid", "verbose"),
    *("drop_levels", "keep_classes"),
)
"""The options that mean something without training and without data."""
BY_DATA = (*BY_WEIGHTS, "depth", "calibration", "reconstruction", "benchmark", "export")
"""The options that mean something without training."""
DATA_FREE = {"importance": "l2", "allocation": "uniform"}
"""Defaults where there is no data to look at."""
SPAN, SPAN_OF_NEW_CLASSES = (0.1, 0.4), (0.3, 0.5)
"""First and last cut, as fractions of a run that starts from a model of the data's classes, or of others."""
SPAN_OF_AUTO, SPAN_OF_NEW_CLASSES_AUTO = (0.0, 0.6), (0.3, 0.7)
"""First and last attempt of ``target=auto``, the same."""
USUAL_MAX_DROP = 0.01
"""Of ``target=auto``."""
REMOVED = {"bn_recalibration": (False, "reconstruction, which is on by default, matches what BatchNorms take")}
"""Options of earlier versions -> the value that did nothing, which files may still have, and what does its work."""


def without_removed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without those of earlier versions that did nothing.

    Raises:
        ConfigError: If one did something.
    """
    for name in options.keys() & REMOVED.keys():
        idle, instead = REMOVED[name]
        if options[name] != idle:
            raise ConfigError(
                f"{name}={short_repr(options[name])}: {name} was removed in 0.2.0: {instead}; leave it out."
            )
    return {name: value for name, value in options.items() if name not in REMOVED}
