from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from nets import IMGSZ, assert_same_tensors, build, dense_as_predicted, labelled_batches, state
from torch import nn

from yolo_prune import planner
from yolo_prune.config import PruneConfig
from yolo_prune.cost import CostModel
from yolo_prune.graph import trace
from yolo_prune.latency import SIMD, LatencyTable, Surface
from yolo_prune.plan import PrunePlan
from yolo_prune.planner import STRIDE, Evidence, plan_cut


def planned(
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    latency: LatencyTable | None = None,
    corrected: Callable[[nn.Module], LatencyTable] | None = None,
    **knobs: Any,
) -> tuple[PrunePlan, list[Evidence]]:
    """Return a plan, and what its strides looked at."""
    seen: list[Evidence] = []
    stock = planner._stride

    def stride(graph: Any, config: Any, target: Any, widths: Any, evidence: Evidence) -> PrunePlan:
        seen.append(evidence)
        return stock(graph, config, target, widths, evidence)

    monkeypatch.setattr(planner, "_stride", stride)
    config = PruneConfig(**{"importance": "reconstruction", "allocation": "global", **knobs})
    evidence = Evidence(model, labelled_batches(2))
    return plan_cut(model, config, IMGSZ, evidence=evidence, latency=latency, corrected=corrected), seen


@pytest.mark.parametrize(("target", "strides"), [(0.1, 1), (0.2, 1), (0.25, 2), (0.3, 2), (0.5, 3), (0.7, 5)])
def test_a_large_cut_is_planned_in_strides_of_equal_shares(target: float, strides: int) -> None:
    budget = {"macs": 1000 * (1 - target), "params": 990.0, "bytes": 60.0}
    stages = planner._stages({"macs": 1000.0, "params": 1000.0, "bytes": 50.0}, budget)
    assert len(stages) == strides and stages[-1] == budget
    macs = [1000, *(stage["macs"] for stage in stages)]
    shares = [after / before for before, after in pairwise(macs)]
    assert max(shares) == pytest.approx(min(shares))
    assert strides == 1 or min(shares) >= 1 - STRIDE


@pytest.mark.parametrize("budget", [{"macs": 10.0}, {"macs": 12.0}, {}])
def test_what_is_no_cut_has_one_stride(budget: dict[str, float]) -> None:
    assert planner._stages({"macs": 10.0}, budget) == [budget]


def test_a_budget_of_something_else_has_the_strides_of_the_multiply_adds_that_go() -> None:
    budget = {"latency": 6.0}
    assert len(planner._stages({"latency": 10.0}, budget, macs_kept=0.5)) == 3
    assert len(planner._stages({"latency": 10.0}, budget, macs_kept=0.9)) == 3
    stages = planner._stages({"latency": 10.0}, budget, macs_kept=0.25)
    assert [round(stage["latency"], 3) for stage in stages] == [round(10 * 0.6 ** (i / 6), 3) for i in range(1, 7)]


def test_the_strides_of_a_cut_by_parameters_are_small_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("yolo11n")
    uniform = plan_cut(model, PruneConfig(target="60% params", importance="l1", allocation="uniform"), IMGSZ)
    least = min(0.4, uniform.macs["after"] / uniform.macs["before"])
    plan, seen = planned(model, monkeypatch, target="60% params")
    assert len(seen) == math.ceil(math.log(least) / math.log(1 - STRIDE))
    assert plan.params["after"] / plan.params["before"] <= 0.4


def test_the_last_stride_is_made_anew_for_what_the_planned_network_really_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("yolov8n")
    graph = trace(model, IMGSZ)
    paths = [path for path, layer in graph.layers.items() if layer.kernel]
    times = dict.fromkeys(paths, Surface((SIMD, 512), (1,), ((SIMD * 1e-5,), (512e-5,))))
    told = dense_as_predicted(LatencyTable(times, dict.fromkeys(times, 1), dense=0.0), graph)
    slower = told.scaled(1.1)
    seconds: list[float] = []

    def corrected(network: nn.Module) -> LatencyTable:
        seconds.append(CostModel(replace(trace(network, IMGSZ), latency=told)).seconds())
        return slower

    plan, seen = planned(model, monkeypatch, target="1.6x", latency=told, corrected=corrected)
    assert [round(told.dense / s, 1) for s in seconds] == [1.6, 1.8]  # asked until the table stays
    assert seen[-1] is seen[-2] and seen[-2] is not seen[-3]
    plan.apply(model)
    assert CostModel(replace(trace(model, IMGSZ), latency=told)).seconds() == seconds[-1]


def test_each_stride_looks_at_what_the_one_before_would_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("yolo11n")
    before = state(model)
    plan, seen = planned(model, monkeypatch, target=0.5)
    assert_same_tensors(before, state(model))
    assert len(seen) == 3 and seen[0].model is model
    sizes = [sum(p.numel() for p in evidence.model.parameters()) for evidence in seen]
    assert sizes[0] > sizes[1] > sizes[2] > plan.params["after"]
    assert 0.48 <= plan.macs["after"] / plan.macs["before"] <= 0.5
    plan.apply(model)
    assert sum(p.numel() for p in model.parameters()) == plan.params["after"]


def test_limits_and_multiples_hold_over_all_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("yolov8n")
    plan, seen = planned(model, monkeypatch, target=0.5, max_pruning_ratio=0.6, round_to=4)
    assert len(seen) > 1
    for path, sides in plan.layers.items():
        if "out" in sides and path.endswith("conv"):
            width, kept = plan.widths[path]["out"], len(sides["out"])
            assert kept >= math.floor(width * 0.4) and (kept % 4 == 0 or kept == width), path


@pytest.mark.parametrize("knobs", [{"importance": "l2"}, {"importance": "taylor"}, {"allocation": "search"}])
def test_what_does_not_look_again_takes_one_stride(monkeypatch: pytest.MonkeyPatch, knobs: dict[str, str]) -> None:
    if "allocation" in knobs:
        monkeypatch.setattr(planner, "_measured", lambda *_: lambda bundle, share: share)
    _, seen = planned(build("yolov8n"), monkeypatch, target=0.5, **knobs)
    assert len(seen) == 1
