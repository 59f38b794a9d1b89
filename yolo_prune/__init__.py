"""yolo_prune: physical channel pruning inside one Ultralytics YOLO training run.

    from ultralytics import YOLO
    from yolo_prune import PruneCallback

    model = YOLO("yolo11n.pt")
    PruneCallback(0.5).attach(model)  # remove half of the MACs
    model.train(data="coco8.yaml", epochs=60)

Importing this package loads neither torch nor ultralytics: the public names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOME = {
    "BlockAdapter": "blocks",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "CutError": "errors",
    "ExportError": "errors",
    "PlanError": "errors",
    "PruneCallback": "callback",
    "PruneConfig": "config.settings",
    "PruneError": "errors",
    "PrunePlan": "plan",
    "TargetError": "errors",
    "Shadow": "blocks",
    "UnsupportedError": "errors",
    "WriteError": "errors",
    "apply_plan": "oneshot",
    "compare": "deploy.compare",
    "curve": "size_curve",
    "inspect_checkpoint": "deploy.inspection",
    "prune_model": "oneshot",
    "register_block": "blocks",
    "verify_cut": "planning.verification",
}
"""Public name -> the module it lives in."""

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from yolo_prune.blocks import BlockAdapter, Shadow, register_block
    from yolo_prune.callback import PruneCallback
    from yolo_prune.config.settings import PruneConfig
    from yolo_prune.deploy.compare import compare
    from yolo_prune.deploy.inspection import inspect_checkpoint
    from yolo_prune.errors import (
        CheckpointError,
        ConfigError,
        CutError,
        ExportError,
        PlanError,
        PruneError,
        TargetError,
        UnsupportedError,
        WriteError,
    )
    from yolo_prune.oneshot import apply_plan, prune_model
    from yolo_prune.plan import PrunePlan
    from yolo_prune.planning.verification import verify_cut
    from yolo_prune.size_curve import curve


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name in _HOME:
        return getattr(import_module(f"yolo_prune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'yolo_prune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
