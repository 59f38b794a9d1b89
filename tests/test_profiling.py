from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import IMGSZ, build, fast_and_slow, graph_of, per_value

from yolo_prune.cost.latency import LatencyModel, Workload
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy import latency_profile as profiling
from yolo_prune.deploy.latency_profile import SAMPLES, compare_networks, measure
from yolo_prune.deploy.samples import EVERY, MULTIPLES, cut_networks, random_plan, sample_plans, widths_of
from yolo_prune.device.timers import Effort
from yolo_prune.errors import TargetError, UnsupportedError
from yolo_prune.graph.trace import trace
from yolo_prune.planning.allocation import PlanRequest, make_plan
from yolo_prune.planning.ranking import ByScore
from yolo_prune.utils.paths import is_inside


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that tells multiply-adds instead of seconds, and counts the networks that it timed."""
    timed: list[int] = []

    def macs(networks: list[torch.nn.Module], runtime: str, imgsz: tuple[int, int], folder: Path) -> list[float]:
        from torch.utils.flop_counter import FlopCounterMode

        counted = []
        for network in networks:
            timed.append(1)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network.eval().fuse(verbose=False)(torch.zeros(1, 3, *imgsz))
            counted.append(counter.get_total_flops() / 2)
        return counted

    timer = SimpleNamespace(seconds=lambda files, *_: (np.array(files), None))
    monkeypatch.setattr(profiling, "exported_files", macs)
    monkeypatch.setattr(profiling, "timer_of", lambda *_: timer)
    return timed


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolo11n"))
def test_with_a_clock_that_tells_multiply_adds_the_prediction_is_the_cost(
    family: str, stopwatch: list[int], tmp_path: Path
) -> None:
    graph = graph_of(family)
    latency = measure(build(family), graph, "pytorch", 1, tmp_path)
    assert len(stopwatch) == 1 + SAMPLES and len(latency.errors) == SAMPLES // EVERY
    assert latency.stairs == 1 and max(latency.errors) < 1e-3
    cost = CostModel(graph, latency)
    assert cost.dense("latency") == cost.dense("macs") == cost.macs()
    draw = np.random.default_rng(0)
    for _ in range(20):
        kept = np.maximum((cost.widths * draw.uniform(0.3, 1, len(cost.widths))).astype(int), 1)
        assert cost.seconds(kept) == pytest.approx(cost.macs(kept), rel=1e-2)
        savings, expected = cost.savings("latency", kept), cost.savings("macs", kept)
        assert np.corrcoef(savings, expected)[0, 1] > 0.98


@pytest.mark.slow
def test_what_is_known_is_not_timed_again(stopwatch: list[int], tmp_path: Path) -> None:
    first = measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path)
    assert stopwatch
    stopwatch.clear()
    again = measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path)
    assert not stopwatch and again == first
    (known,) = tmp_path.iterdir()
    measure(build("tiny"), graph_of("tiny"), "pytorch", 2, tmp_path)
    assert stopwatch  # other threads are another machine
    incomplete = known.read_text().replace('"dense"', '"other"')
    for content in (incomplete, "{", "[]", '{"weights": {}}'):
        known.write_text(content)
        assert measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path) == first


def test_what_cannot_be_kept_is_measured_all_the_same(stopwatch: list[int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert measure(build("tiny"), graph_of("tiny"), "pytorch", 1, tmp_path / "cache").dense > 0
    assert (tmp_path / "cache").read_text() == "no folder"


@pytest.mark.slow
def test_a_latency_budget_is_met_in_widths_that_the_machine_likes() -> None:
    graph, multiple = graph_of("yolov8n"), 16
    latency = per_value(graph, multiple=multiple)
    cost = CostModel(graph, latency)
    ranking = ByScore(graph, [np.ones(g.width) for g in graph.groups])
    budget = {"latency": cost.seconds() * 0.6}
    plan = make_plan(graph, ranking, PlanRequest(budget, allocation="global", latency=latency))
    model = build("yolov8n")
    plan.apply(model)
    after = CostModel(trace(model, IMGSZ), latency)
    assert after.seconds() <= 0.6 * cost.seconds()
    kept = {path: len(sides["out"]) for path, sides in plan.layers.items()}
    assert all(n % multiple == 0 or multiple % n == 0 for path, n in kept.items() if n < plan.widths[path]["out"])
    with pytest.raises(TargetError, match=r"ms asked, but .* ms is the least that can be reached"):
        ranking = ByScore(graph, [np.ones(g.width) for g in graph.groups])
        make_plan(graph, ranking, PlanRequest({"latency": cost.seconds() * 1e-4}, latency=latency))


def test_a_latency_needs_a_measurement() -> None:
    with pytest.raises(UnsupportedError, match="a latency target needs latencies that were measured"):
        CostModel(graph_of("yolov8n")).amount("latency")


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_random_plans_land_on_their_share_and_differ(multiple: int) -> None:
    graph = graph_of("yolov8n")
    plans = [random_plan(graph, 0.6, multiple, seed) for seed in (0, 0, 1)]
    assert plans[0].sha256 == plans[1].sha256 != plans[2].sha256
    assert all(0.57 <= plan.macs["after"] / plan.macs["before"] <= 0.6 for plan in plans)
    for plan in plans:
        was = {path: widths["out"] for path, widths in plan.widths.items()}
        kept = [len(s["out"]) for path, s in plan.layers.items() if len(s["out"]) < was[path]]
        assert kept and all(width % multiple == 0 or multiple % width == 0 for width in kept)


def test_more_samples_begin_with_the_same_and_their_widths_are_those_of_the_cut_networks() -> None:
    graph = graph_of("tiny")
    plans = sample_plans(graph, 5)
    assert [plan.sha256 for plan in sample_plans(graph, 3)] == [plan.sha256 for plan in plans[:3]]
    for plan, network in zip(plans, cut_networks(build("tiny"), plans), strict=True):
        widths = widths_of(graph, plan)
        stays = [not is_inside(path, plan.blocks) for path in graph.layers]
        assert (widths[:, stays] == Workload(trace(network, IMGSZ)).dense).all()
        assert not widths[:, np.invert(stays)].any()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "pytorch"])
def test_networks_are_really_timed(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for effort in ("SAMPLING", "COMPARING"):
        monkeypatch.setattr(profiling, effort, Effort(seconds=1.0, fewest=3, most=5))
    latency = measure(build("tiny"), graph_of("tiny"), runtime, 1, tmp_path)
    assert isinstance(latency, LatencyModel) and latency.dense > 0 and latency.where["runtime"] == runtime
    timing = compare_networks([build("tiny"), build("tiny")], runtime, 64)
    assert timing.share is not None and 0 < timing.share <= 1
    assert timing.speedup(0).low == 1 and timing.speedup(1).low > 0


TIMER = """
import math, sys
import onnx

graph = onnx.shape_inference.infer_shapes(onnx.load(sys.argv[1])).graph
sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
weights = {w.name: list(w.dims) for w in graph.initializer}
convs = [n for n in graph.node if n.op_type == "Conv"]
print(sum(math.prod(weights[n.input[1]]) * math.prod(sizes[n.output[0]][2:]) for n in convs) / 1e9, "s")
"""


@pytest.mark.slow
def test_a_command_is_the_stopwatch_of_a_plan_and_of_its_result(tmp_path: Path) -> None:
    """It tells the multiply-adds of each file's convolutions as its time."""
    script = tmp_path / "timer.py"
    script.write_text(TIMER, encoding="utf-8")
    runtime = f"command: {sys.executable} {script} {{file}}"
    network, graph = build("tiny"), graph_of("tiny")
    latency = measure(network, graph, runtime, cache=tmp_path)
    assert latency.where["device"] == "what the command runs on" and max(latency.errors) < 0.02
    [fewer] = cut_networks(network, sample_plans(graph, 1))
    timing = compare_networks([network, fewer], runtime, IMGSZ)
    left = CostModel(trace(fewer, IMGSZ)).macs() / CostModel(graph).macs()
    assert timing.speedup(1).settled and timing.speedup(1).value == pytest.approx(1 / left, rel=0.02)
