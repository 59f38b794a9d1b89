"""Trainings that several tests share: narrow networks on eight images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nets import FAMILIES, narrow_yaml
from ultralytics import YOLO

from yolo_prune import PruneCallback

Run = Callable[..., Any]


class Interrupted(Exception):
    """Stands for a lost machine."""


def train(
    folder: Path, data: Path, model: YOLO | str | Path = "yolov8n", prune: PruneCallback | None = None, **arguments: Any
) -> Any:
    """Train a model for a few epochs, with an optional PruneCallback, and return its trainer."""
    if model in FAMILIES:
        model = narrow_yaml(str(model), folder)
    yolo = model if isinstance(model, YOLO) else YOLO(model)
    if prune:
        prune.attach(yolo)
    settings = {"epochs": 4, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "project": folder / "runs"}
    yolo.train(data=str(data), **{**settings, **arguments})
    return yolo.trainer


def soon(target: Any = 0.5, **knobs: Any) -> PruneCallback:
    """Two cuts, before epochs 1 and 2 of four."""
    return PruneCallback(
        target, **{"steps": 2, "start": 0.25, "end": 0.5, "calibration": 4, "benchmark": False, **knobs}
    )


def report_of(trainer: Any) -> dict[str, Any]:
    """Return what is in the report of a run."""
    return json.loads((trainer.save_dir / "pruning" / "report.json").read_text())
