"""Plans for several sizes of one network, each made of the network that the one before leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from yolo_prune.config.settings import PruneConfig
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.latency_fit import PlannedCut
from yolo_prune.planning.planner import plan_traced, stages_of


def nested_plans(
    graph: ChannelGraph, config: PruneConfig, requests: Sequence[PlanRequest], data: CalibrationData
) -> Iterator[PlannedCut]:
    """Yield a plan for each of several requests; together they take little longer than the last one alone.

    A large cut is planned in iterations, and here networks of the sizes before stand for those on the way: where one
    iteration does not reach, the size before is what the next iteration looks at. So a plan that one iteration reaches
    is that of its request alone, and a later one is of iterations that do not take equal shares.

    Args:
        graph: Channel groups of the dense network, traced with the config's ``is_ignored`` and ``reid``.
        config: The options.
        requests: The largest network first, shares being of the dense one.
        data: Of the dense network.

    Raises:
        TargetError: If a request is out of reach, once it is its turn.
        ConfigError: If there is no data, or too little, for a criterion or an allocation that needs it.
    """
    later = data.later_batches() if data.batches else 0
    so_far: PrunePlan | None = None
    latest: PrunePlan | None = None
    for request in requests:
        if latest and len(stages_of(graph, config, request)) > 1:
            so_far = so_far.then(latest) if so_far else latest
            data, latest = data.after(latest, config, later), None
            graph = trace(data.model, graph.imgsz, config.is_ignored, data.readers, reid=config.reid)
        planned = plan_traced(data.model, graph, config, request, data)
        latest = planned.plan
        yield replace(planned, plan=so_far.then(latest)) if so_far else planned
