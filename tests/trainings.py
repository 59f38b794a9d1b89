"""Trainings that several tests share: small networks on eight images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from nets import FAMILIES, narrow_yaml, tiny_yaml
from ultralytics import YOLO

from yolo_prune import PruneCallback, PruneConfig

Run = Callable[..., Any]


class Interrupted(Exception):
    """Stands for a lost machine."""


def train(
    folder: Path,
    data: Path,
    model: YOLO | str | Path | None = None,
    prune: PruneCallback | None = None,
    **arguments: Any,
) -> Any:
    """Train the tiny model, a narrow one of a family or another one for a few epochs, and return its trainer."""
    if model is None or model in FAMILIES:
        model = narrow_yaml(str(model), folder) if model else tiny_yaml(folder)
    yolo = model if isinstance(model, YOLO) else YOLO(model)
    if prune:
        prune.attach(yolo)
    settings = {"epochs": 4, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "project": folder / "runs"}
    yolo.train(data=str(data), **{**settings, **arguments})
    return yolo.trainer


def knowing(folder: Path, data: Path) -> Path:
    """Return a checkpoint of the tiny model, with random weights, that names the classes of a data set."""
    yolo, path = YOLO(tiny_yaml(folder)), folder / "knowing.pt"
    yolo.model.names = yaml.safe_load(data.read_text(encoding="utf-8"))["names"]
    yolo.save(path)
    return path


DEFAULTS = {name: getattr(PruneConfig(), name) for name in ("importance", "allocation", "reconstruction")}
"""How channels are chosen and weights solved if the user says nothing."""


def soon(target: Any = 0.5, **knobs: Any) -> PruneCallback:
    """Two cuts, before epochs 1 and 2 of four, with all that takes time left out."""
    quick = {"importance": "l2", "allocation": "uniform", "reconstruction": False, "calibration": 4, "benchmark": False}
    return PruneCallback(target, **{"steps": 2, "start": 0.25, "end": 0.5, **quick, **knobs})


def report_of(trainer: Any) -> dict[str, Any]:
    """Return what is in the report of a run."""
    return json.loads((trainer.save_dir / "pruning" / "report.json").read_text())
