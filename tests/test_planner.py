from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from nets import IMGSZ, assert_same_tensors, build, graph_of, labelled_batches, per_value, state
from torch import nn

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import LATENCY, MACS
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.graph.trace import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planning import planner
from yolo_prune.planning.allocation import PlanRequest
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.latency_fit import MAX_MEASUREMENTS, TOLERANCE
from yolo_prune.planning.planner import MAX_REDUCTION_PER_ITERATION, plan_cut, plan_traced, request_for
from yolo_prune.planning.sensitivity import HeldOutLoss


def planned(
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    latency: LatencyModel | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    **knobs: Any,
) -> tuple[PrunePlan, list[CalibrationData]]:
    """Return a plan, and what its iterations looked at; savings count in what the budget asks for."""
    seen: list[CalibrationData] = []
    stock = planner._plan_iteration

    def plan_iteration(graph: Any, config: Any, request: Any, data: CalibrationData) -> PrunePlan:
        seen.append(data)
        return stock(graph, config, request, data)

    monkeypatch.setattr(planner, "_plan_iteration", plan_iteration)
    monkeypatch.setattr(planner, "_cost_metrics", lambda config, request, data: (None,))
    config = PruneConfig(**{"importance": "reconstruction", "allocation": "global", **knobs})
    graph = trace(model, IMGSZ, config.is_ignored)
    request = request_for(model, graph, config, latency)
    return plan_traced(model, graph, config, request, CalibrationData(model, labelled_batches(2)), measure).plan, seen


@pytest.mark.parametrize(("target", "iterations"), [(0.1, 1), (0.3, 1), (0.4, 2), (0.5, 2), (0.7, 3)])
def test_a_large_cut_is_x_of_equal_shares(target: float, iterations: int) -> None:
    budget = {"macs": 1000 * (1 - target), "params": 990.0, "bytes": 60.0}
    stages = planner._stages({"macs": 1000.0, "params": 1000.0, "bytes": 50.0}, budget)
    assert len(stages) == iterations and stages[-1] == budget
    macs = [1000, *(stage["macs"] for stage in stages)]
    shares = [after / before for before, after in pairwise(macs)]
    assert max(shares) == pytest.approx(min(shares))
    assert iterations == 1 or min(shares) >= 1 - MAX_REDUCTION_PER_ITERATION


@pytest.mark.parametrize("budget", [{"macs": 10.0}, {"macs": 12.0}, {}])
def test_what_is_no_cut_has_one_iteration(budget: dict[str, float]) -> None:
    assert planner._stages({"macs": 10.0}, budget) == [budget]


def test_a_budget_of_something_else_has_the_iterations_of_the_multiply_adds_that_go() -> None:
    budget = {"latency": 6.0}
    assert len(planner._stages({"latency": 10.0}, budget, macs_kept=0.5)) == 2
    assert len(planner._stages({"latency": 10.0}, budget, macs_kept=0.9)) == 2
    stages = planner._stages({"latency": 10.0}, budget, macs_kept=0.25)
    assert [round(stage["latency"], 3) for stage in stages] == [round(10 * 0.6 ** (i / 4), 3) for i in range(1, 5)]


@pytest.mark.slow
def test_the_iterations_of_a_cut_by_parameters_are_small_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("tiny")
    uniform = plan_cut(model, PruneConfig(target="60% params", importance="l1", allocation="uniform"), IMGSZ)
    least = min(0.4, uniform.macs["after"] / uniform.macs["before"])
    plan, seen = planned(model, monkeypatch, target="60% params")
    assert len(seen) == math.ceil(math.log(least) / math.log(1 - MAX_REDUCTION_PER_ITERATION))
    assert plan.params["after"] / plan.params["before"] <= 0.4


class Clock:
    """Stands in for a stopwatch: tells how wrong the prediction for a network is, and notes the speed-ups over dense.

    Args:
        model: The dense network.
        wrong: (predicted speed-up, looks so far) -> how many times as long as predicted a network takes.
    """

    def __init__(self, model: nn.Module, wrong: Callable[[float, int], float]) -> None:
        graph = trace(model, IMGSZ)
        self.table = per_value(graph, multiple=16)
        self._wrong = wrong
        self.predicted: list[float] = []
        self.measured: list[float] = []

    def speedup(self, network: nn.Module) -> float:
        """Return what is predicted."""
        return self.table.dense / CostModel(trace(network, IMGSZ), self.table).seconds()

    def __call__(self, network: nn.Module) -> float:
        predicted = self.speedup(network)
        wrong = self._wrong(predicted, len(self.predicted))
        self.predicted.append(predicted)
        self.measured.append(predicted / wrong)
        return self.table.dense / self.measured[-1]


def lands(
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[float, int], float],
    target: str = "1.6x",
    importance: str = "l2",  # whatever ranks, it is planned as often, and this takes no time
) -> Clock:
    """Return a clock after a plan, which is the one that it found nearest to 1.6 times as fast."""
    model = build("tiny")
    clock = Clock(model, wrong)
    knobs = {"target": target, "importance": importance}
    plan, seen = planned(model, monkeypatch, latency=clock.table, measure=clock, **knobs)
    made = len(clock.predicted)
    assert all(data is seen[-1] for data in seen[-made:])  # only the last iteration is planned again
    if importance == "reconstruction":
        assert len(seen) > made and seen[-made - 1] is not seen[-1]
    plan.apply(model)
    meets = [m for m in clock.measured if m >= 1.6 / (1 + TOLERANCE)]
    best = min(meets) if meets else max(clock.measured)
    assert clock.speedup(model) == clock.predicted[clock.measured.index(best)]
    return clock


@pytest.mark.slow
def test_of_two_plans_for_a_latency_that_one_stays_which_loses_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = build("tiny"), labelled_batches(2)
    table = Clock(model, lambda speedup, looks: 1.0).table
    config = PruneConfig(target="1.6x", importance="l2", allocation="global")

    def plan_with(metrics: tuple[str | None, ...] | None, given: list[dict[str, Any]] = batches) -> PrunePlan:
        with monkeypatch.context() as patch:
            if metrics:
                patch.setattr(planner, "_cost_metrics", lambda config, request, data: metrics)
            return plan_cut(model, config, IMGSZ, CalibrationData(model, given), table)

    made = {metric: plan_with((metric,)) for metric in (None, MACS)}
    assert made[None] != made[MACS]
    held_out = HeldOutLoss(model, batches, batches)
    real = min(made, key=lambda metric: held_out.loss(made[metric], weights=config.reconstruction))
    assert plan_with(None) == made[real]
    for better in made:
        monkeypatch.setattr(HeldOutLoss, "loss", lambda held_out, plan, best=made[better], **_: float(plan != best))
        assert plan_with(None) == made[better]
    assert plan_with(None, given=[]) == made[None]  # nothing judges


@pytest.mark.parametrize("knobs", [{"allocation": "uniform"}, {"per_cost": False}, {"target": 0.5}])
def test_where_savings_do_not_count_or_no_latency_is_asked_there_is_one_plan(knobs: dict[str, Any]) -> None:
    config = PruneConfig(**{"target": "1.6x", **knobs})
    request = PlanRequest.of(config, {MACS if "target" in knobs else LATENCY: 1.0}, {}, None)
    assert planner._cost_metrics(config, request, CalibrationData(nn.Identity(), [{}])) == (None,)


@pytest.mark.slow
def test_the_last_iteration_is_made_anew_for_what_the_planned_network_really_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = lands(monkeypatch, lambda speedup, looks: 1.1, importance="reconstruction")
    assert [round(p, 1) for p in clock.predicted] == [1.6, 1.8]  # no more looks than it takes
    assert clock.measured[-1] == pytest.approx(1.6, rel=TOLERANCE)


@pytest.mark.slow
def test_a_prediction_that_gets_worse_the_more_goes_is_met_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lands(monkeypatch, lambda speedup, looks: 1.08 + 0.4 * (speedup - 1.6))
    assert len(clock.predicted) > 2 and clock.measured[-1] == pytest.approx(1.6, rel=TOLERANCE)
    assert clock.predicted == sorted(clock.predicted)


@pytest.mark.slow
def test_between_a_plan_that_is_too_slow_and_one_that_is_too_fast_lies_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = lands(monkeypatch, lambda speedup, looks: (1.1, 0.9, 1.04)[looks])
    slow, fast, between = clock.predicted
    assert slow < between < fast and clock.measured[1] > 1.6 > clock.measured[0]


@pytest.mark.slow
def test_of_plans_that_never_land_the_nearest_that_is_fast_enough_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lands(monkeypatch, lambda speedup, looks: 1.3 - 0.5 * (looks % 2))
    assert len(clock.predicted) == MAX_MEASUREMENTS


@pytest.mark.slow
def test_where_no_network_is_as_fast_the_fastest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lands(monkeypatch, lambda speedup, looks: speedup)  # nothing that goes saves any time
    assert len(clock.predicted) < MAX_MEASUREMENTS and max(clock.measured) < 1.1


@pytest.mark.slow
def test_where_another_target_binds_the_network_may_be_faster_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lands(monkeypatch, lambda speedup, looks: 0.7, target="1.6x, 70%")
    assert len(clock.predicted) == 2 and clock.measured[0] > clock.measured[1] > 1.7


@pytest.mark.slow
def test_each_iteration_looks_at_what_the_one_before_would_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("tiny")
    before = state(model)
    plan, seen = planned(model, monkeypatch, target=0.5)
    assert_same_tensors(before, state(model))
    assert len(seen) == 2 and seen[0].model is model
    sizes = [sum(p.numel() for p in data.model.parameters()) for data in seen]
    assert sizes[0] > sizes[1] > plan.params["after"]
    assert 0.48 <= plan.macs["after"] / plan.macs["before"] <= 0.5
    plan.apply(model)
    assert sum(p.numel() for p in model.parameters()) == plan.params["after"]


@pytest.mark.slow
def test_limits_and_multiples_hold_over_all_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("tiny")
    plan, seen = planned(model, monkeypatch, target=0.5, max_pruning_ratio=0.6, round_to=4)
    assert len(seen) > 1
    for path, sides in plan.layers.items():
        if "out" in sides and path.endswith("conv"):
            width, kept = plan.widths[path]["out"], len(sides["out"])
            assert kept >= math.floor(width * 0.4) and (kept % 4 == 0 or kept == width), path


@pytest.mark.parametrize("knobs", [{"importance": "l2"}, {"importance": "taylor"}, {"allocation": "sensitivity"}])
def test_what_does_not_look_again_takes_one_iteration(monkeypatch: pytest.MonkeyPatch, knobs: dict[str, str]) -> None:
    if "allocation" in knobs:
        monkeypatch.setattr(planner, "_measured_tolerance", lambda *_: lambda bundle, share: share)
    _, seen = planned(build("tiny"), monkeypatch, target=0.5, **knobs)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("sizes", "expected"), [((16, 16, 16, 16), 2), ((64, 64), 1), ((8, 8), 2), ((20, 20, 20), 2), ((40,), 1)]
)
def test_iterations_after_the_first_look_at_half_of_the_images(sizes: tuple[int, ...], expected: int) -> None:
    batches = [{"img": torch.zeros(n, 1, 1, 1)} for n in sizes]
    assert CalibrationData(nn.Identity(), batches).later_batches() == expected


@pytest.mark.slow
def test_a_later_iteration_looks_at_no_other_images() -> None:
    model, seen = build("tiny"), labelled_batches(3)
    data = CalibrationData(model, seen)
    graph, config = graph_of("tiny"), PruneConfig(target=0.2)
    plan = plan_traced(model, graph, config, request_for(model, graph, config), data).plan
    after = data.after(plan, config, 2)
    assert list(after.batches) == seen[:2] and set(after.statistics["model.1.conv"].positions) == {0, 1}
    assert after.statistics["model.1.conv"].images == 4
