"""One cut without a training run: the same trace, plan and surgery as the callback's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from yolo_prune.checkpoint import mark
from yolo_prune.config import PruneConfig
from yolo_prune.errors import UnsupportedError
from yolo_prune.plan import PrunePlan
from yolo_prune.planner import plan_cut

if TYPE_CHECKING:
    from ultralytics import YOLO


@dataclass(frozen=True)
class PruneResult:
    """What `prune_model` did.

    Attributes:
        plan: What was cut, with its cost before and after; ``plan.apply`` does the same to a copy of the network.
    """

    plan: PrunePlan


def prune_model(model: YOLO | nn.Module, target: Any = 0.5, *, imgsz: int | None = None, **knobs: Any) -> PruneResult:
    """Cut a model once, in place, without training.

    Args:
        model: A ``YOLO`` or its network (``YOLO(...).model``).
        target: Share of the multiply-adds to remove; also a PruneConfig, a dict of knobs or a YAML file.
        imgsz: Image size in pixels for which multiply-adds are counted (default: the model's own, else 640).
        **knobs: Any knob of PruneConfig.

    Returns:
        The plan and the cost before and after. Accuracy falls until the model has been trained again, e.g. with
        ``PruneCallback(0).attach(model)`` and ``model.train(...)``.

    Raises:
        ConfigError: If a knob is wrong.
        UnsupportedError: If the model is not a YOLO network that can be cut.
        TargetError: If the target is out of reach.

    Example:
        >>> result = prune_model(YOLO("yolo11n.pt"), 0.5)
        >>> round(result.plan.macs["after"] / result.plan.macs["before"], 2)
        0.5
    """
    config = PruneConfig.from_dict({**PruneConfig.load(target).to_dict(), **knobs})
    network = model if _is_network(model) else getattr(model, "model", None)
    if not isinstance(network, nn.Module):
        raise UnsupportedError(f"{model!r} is no YOLO model with weights that can be cut; load a .pt or .yaml file.")
    if imgsz is None:
        args = getattr(network, "args", None) or {}
        imgsz = (args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)) or 640
    plan = plan_cut(network, config, imgsz)
    plan.apply(network)
    mark(network)
    return PruneResult(plan)


def _is_network(model: Any) -> bool:
    """Whether this is a bare network: `YOLO` is a module too, but wraps one that has blocks of its own."""
    return isinstance(getattr(model, "model", None), nn.Sequential)
