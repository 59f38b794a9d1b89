from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import IMGSZ, build, fast_and_slow, graph_of

from yolo_prune.cost import latency_table as latency
from yolo_prune.cost.latency_table import SIMD, LatencyTable
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy import latency_profile as profiling
from yolo_prune.deploy.latency_profile import compare_networks, measure, random_plan, time_networks
from yolo_prune.errors import TargetError, UnsupportedError
from yolo_prune.graph.trace import trace
from yolo_prune.planning.allocation import ByScore, PlanRequest, make_plan


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that tells multiply-adds instead of seconds, and counts the layers and networks that it timed."""
    timed: list[int] = []

    def macs(module: torch.nn.Module, image: torch.Tensor) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(image)
        return counter.get_total_flops() / 2

    def module_runner(name: str, network: torch.nn.Module, shape: tuple[int, ...], threads: int) -> float:
        timed.append(1)
        return macs(network, torch.zeros(shape))

    def whole(network: torch.nn.Module, runtime: str, imgsz: tuple[int, int], folder: Path, threads: int) -> float:
        timed.append(1)
        return macs(network.eval().fuse(verbose=False), torch.zeros(1, 3, *imgsz))

    for room in (latency, profiling):
        monkeypatch.setattr(room, "SIMD", 1)  # multiply-adds know no stairs
    monkeypatch.setattr(profiling, "module_runner", module_runner)
    monkeypatch.setattr(profiling, "exported_runner", whole)
    monkeypatch.setattr(profiling, "alternating", lambda runners, rounds=1: np.array(runners, dtype=float)[:, None])
    return timed


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolo11n"))
def test_with_a_clock_that_tells_multiply_adds_the_prediction_is_the_cost(
    family: str, stopwatch: list[int], tmp_path: Path
) -> None:
    graph = graph_of(family)
    table = measure(build(family), graph, "pytorch", 1, tmp_path)
    cost = CostModel(graph, table)
    assert cost.dense("latency") == cost.dense("macs") == cost.macs()
    assert cost.seconds() == pytest.approx(cost.macs())
    layers_only = replace(table, per_layer=1.0, per_value=0.0, per_mac=0.0, fixed=0.0)
    unseen = cost.macs() - CostModel(graph, layers_only).seconds()  # products without weights
    cost = CostModel(graph, replace(layers_only, fixed=unseen))
    draw = np.random.default_rng(0)
    for _ in range(20):
        kept = np.maximum((cost.widths * draw.uniform(0.3, 1, len(cost.widths))).astype(int), 1)
        assert cost.seconds(kept) == pytest.approx(cost.macs(kept), rel=0.05)
        savings, expected = cost.savings("latency", kept), cost.savings("macs", kept)
        assert np.corrcoef(savings, expected)[0, 1] > 0.98


@pytest.mark.slow
def test_multiply_adds_count_in_the_prediction_as_they_are_weighed(stopwatch: list[int], tmp_path: Path) -> None:
    graph = graph_of("tiny")
    table = replace(measure(build("tiny"), graph, "pytorch", 1, tmp_path), per_layer=0.0, per_value=0.0, fixed=0.0)
    cost = CostModel(graph, replace(table, per_mac=2.0))
    kept = np.maximum(cost.widths // 2, 1)
    assert cost.seconds(kept) == pytest.approx(2 * cost.macs(kept))
    assert cost.savings("latency", kept) == pytest.approx(2 * cost.savings("macs", kept))


@pytest.mark.slow
def test_what_is_known_is_not_timed_again(stopwatch: list[int], tmp_path: Path) -> None:
    first = measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path)
    assert stopwatch
    stopwatch.clear()
    again = measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path)
    assert not stopwatch and again == first
    measure(build("tiny"), graph_of("tiny"), "pytorch", 2, tmp_path)
    assert stopwatch  # other threads are another machine
    (damaged,) = (p for p in tmp_path.iterdir() if '"threads": 1' in p.read_text())
    incomplete = damaged.read_text().replace('"dense"', '"other"')
    for content in (
        incomplete,
        "{",
        "[]",
        '{"layers": [], "networks": {}}',
        '{"layers": {"a": {"b": "c"}}, "networks": {}}',
    ):
        damaged.write_text(content)
        assert measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path) == first


def test_what_cannot_be_kept_is_measured_all_the_same(stopwatch: list[int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path / "cache").layers
    assert (tmp_path / "cache").read_text() == "no folder"


@pytest.mark.slow
def test_a_latency_budget_cuts_where_time_is_spent(stopwatch: list[int], tmp_path: Path) -> None:
    graph = graph_of("yolov8n")
    table = measure(build("yolov8n"), graph, "pytorch", 1, tmp_path)
    nothing = {path: tuple(tuple(0.0 for _ in row) for row in s.seconds) for path, s in table.layers.items()}
    slow = {  # as if the second half of the network took no time at all
        path: s if int(path.split(".")[1]) < 12 else replace(s, seconds=nothing[path])
        for path, s in table.layers.items()
    }
    table = LatencyTable(slow, table.positions, dense=table.dense)
    cost = CostModel(graph, table)
    ranking = ByScore(graph, [np.ones(g.width) for g in graph.groups])
    plan = make_plan(graph, ranking, PlanRequest({"latency": cost.seconds() * 0.6}, allocation="global", latency=table))
    model = build("yolov8n")
    plan.apply(model)
    after = CostModel(trace(model, IMGSZ), table)
    assert after.seconds() <= 0.6 * cost.seconds()
    kept = {path: len(sides["out"]) for path, sides in plan.layers.items()}
    assert all(n % SIMD == 0 or SIMD % n == 0 for path, n in kept.items() if n < plan.widths[path]["out"])
    narrower = {
        int(path.split(".")[1]) for path, sides in plan.layers.items() if len(sides["out"]) < plan.widths[path]["out"]
    }
    assert narrower and max(narrower) <= 12  # the first of the second half may be tied to the first half
    with pytest.raises(TargetError, match=r"ms asked, but .* ms is the least that can be reached"):
        ranking = ByScore(graph, [np.ones(g.width) for g in graph.groups])
        make_plan(graph, ranking, PlanRequest({"latency": cost.seconds() * 1e-4}, latency=table))


def test_a_latency_needs_a_measurement() -> None:
    with pytest.raises(UnsupportedError, match="a latency target needs latencies that were measured"):
        CostModel(graph_of("yolov8n")).amount("latency")


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [16, 32])
def test_random_plans_land_on_their_share_and_differ(multiple: int, stopwatch: list[int], tmp_path: Path) -> None:
    graph = graph_of("yolov8n")
    table = measure(build("yolov8n"), graph, "pytorch", 1, tmp_path)
    table = replace(table, multiple=multiple)
    plans = [random_plan(graph, table, 0.6, seed) for seed in (0, 0, 1)]
    assert plans[0].sha256 == plans[1].sha256 != plans[2].sha256
    assert all(0.57 <= plan.macs["after"] / plan.macs["before"] <= 0.6 for plan in plans)
    for plan in plans:
        was = {path: widths["out"] for path, widths in plan.widths.items()}
        kept = [len(s["out"]) for path, s in plan.layers.items() if len(s["out"]) < was[path]]
        assert kept and all(width % multiple == 0 or multiple % width == 0 for width in kept)


@pytest.mark.slow
def test_networks_are_really_timed() -> None:
    seconds = time_networks([build("yolov8n"), build("yolov8n")], "onnx", 64)
    assert len(seconds) == 2 and min(seconds) > 0
    timing = compare_networks([build("yolov8n"), build("yolov8n")], "onnx", 64)
    assert timing.share is not None and 0 < timing.share <= 1
    assert timing.speedup(0).low == 1 and timing.speedup(1).low > 0
