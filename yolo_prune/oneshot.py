"""One cut without a training run: the same trace, plan and surgery as the callback's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_prune.config import PruneConfig
from yolo_prune.errors import ConfigError
from yolo_prune.plan import PrunePlan
from yolo_prune.planner import plan_cut
from yolo_prune.surgery import network_of

if TYPE_CHECKING:
    from ultralytics import YOLO

ONE_CUT = ("importance", "scope", "round_to", "max_pruning_ratio", "ignored_layers")
"""The knobs that mean something without a training run."""


@dataclass(frozen=True)
class PruneResult:
    """What `prune_model` did.

    Attributes:
        plan: What was cut, with its cost before and after; ``plan.apply`` does the same to a copy of the network.
    """

    plan: PrunePlan


def prune_model(
    model: YOLO | nn.Module, target: Any = 0.5, *, imgsz: int | tuple[int, int] | None = None, **knobs: Any
) -> PruneResult:
    """Cut a model once, in place, without training.

    Args:
        model: A ``YOLO`` or its network (``YOLO(...).model``).
        target: Share of the multiply-adds to remove; also a PruneConfig, a dict of knobs or a YAML file.
        imgsz: Image size in pixels, or (height, width), for which multiply-adds are counted (default: the model's own,
            else 640, for classification 224).
        **knobs: The knobs of a single cut: importance, scope, round_to, max_pruning_ratio, ignored_layers.

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
    if meaningless := sorted(knobs.keys() - ONE_CUT):
        raise ConfigError(
            f"{', '.join(meaningless)}: no knob of a single cut without training. Valid: {', '.join(ONE_CUT)}."
        )
    config = PruneConfig.from_dict({**PruneConfig.load(target).to_dict(), **knobs})
    network = network_of(model)
    if imgsz is None:
        args = getattr(network, "args", None) or {}
        imgsz = (args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)) or (
            224 if isinstance(network, ClassificationModel) else 640
        )
    plan = plan_cut(network, config, imgsz)
    plan.apply(network)
    if network is not model:
        model.predictor = None  # it holds a fused copy of the dense network
    return PruneResult(plan)
