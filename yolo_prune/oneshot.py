"""One cut without a training run: the same trace, plan and surgery as the callback's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from yolo_prune.config import PruneConfig
from yolo_prune.cost import CostModel
from yolo_prune.errors import UnsupportedError
from yolo_prune.graph import trace
from yolo_prune.importance import importance_scores
from yolo_prune.plan import PrunePlan, make_plan

if TYPE_CHECKING:
    from ultralytics import YOLO


@dataclass(frozen=True)
class PruneResult:
    """What `prune_model` did.

    Attributes:
        plan: What was cut; ``plan.apply`` does the same to another copy of the network.
        macs: Multiply-adds for one image before and after.
        params: Parameters before and after.
    """

    plan: PrunePlan

    @property
    def macs(self) -> dict[str, int]:
        return self.plan.macs

    @property
    def params(self) -> dict[str, int]:
        return self.plan.params


def plan_cut(
    model: nn.Module,
    config: PruneConfig,
    imgsz: int | tuple[int, int],
    target_macs: float | None = None,
    dense_widths: Mapping[str, int] | None = None,
) -> PrunePlan:
    """Trace, score and choose; the network is only read.

    Args:
        model: The network to cut.
        config: The knobs.
        imgsz: Image size in pixels for which multiply-adds are counted.
        target_macs: What to land on (default: the config's target, as a share of what the network costs now).
        dense_widths: Output width of each layer before the run's first cut.
    """
    graph = trace(model, imgsz, config.is_ignored)
    if target_macs is None:
        target_macs = CostModel(graph).macs() * (1 - config.target)
    return make_plan(
        graph,
        importance_scores(model, graph, config.importance),
        target_macs,
        scope=config.scope,
        round_to=config.round_to,
        max_pruning_ratio=config.max_pruning_ratio,
        dense_widths=dense_widths,
    )


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
        >>> result.macs["after"] / result.macs["before"]
        0.5
    """
    from yolo_prune.checkpoint import mark

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
