"""One cut, chosen for a network: trace it, score its channels, and choose what stays."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from yolo_prune.allocation import make_plan
from yolo_prune.config import PruneConfig
from yolo_prune.cost import CostModel
from yolo_prune.graph import trace
from yolo_prune.importance import importance_scores
from yolo_prune.plan import PrunePlan


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
