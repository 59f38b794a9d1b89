from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import FAMILIES, IMGSZ, build, fast_and_slow, graph_of, make
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import RAM
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.file_sizes import file_sizes
from yolo_prune.deploy.formats import file_size
from yolo_prune.deploy.network_files import export_form
from yolo_prune.deploy.samples import cut_networks, random_plan
from yolo_prune.errors import ConfigError
from yolo_prune.graph.trace import trace
from yolo_prune.planning.allocation import units_of
from yolo_prune.planning.planner import plan_cut


def counted_macs(model: nn.Module) -> int:
    """Count the deployed network with torch's own counter, which gives two FLOPs per multiply-add."""
    deployed = copy.deepcopy(model).eval().fuse(verbose=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(torch.zeros(1, 3, IMGSZ, IMGSZ))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cost_of_a_dense_network_is_what_torch_counts(family: str) -> None:
    model = build(family)
    cost = CostModel(graph_of(family))
    assert cost.macs() == counted_macs(model)
    assert cost.params() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("family", "allocation"),
    [
        ("yolov8n", "global"),
        ("yolo26n", "global"),
        *(pytest.param(*of, marks=pytest.mark.slow) for of in (("yolo11n", "global"), ("yolov8n", "uniform"))),
    ],
)
def test_the_predicted_cost_of_a_cut_is_what_torch_counts_after_it(family: str, allocation: str) -> None:
    model = build(family)
    plan = make(model, 0.6, allocation=allocation)
    plan.apply(model)
    assert plan.macs["after"] == counted_macs(model) == CostModel(trace(model, IMGSZ)).macs()
    assert plan.params["after"] == sum(p.numel() for p in model.parameters())


def checkpoint_bytes(model: nn.Module) -> int:
    """Count the tensors of a checkpoint as Ultralytics ships it."""
    half = copy.deepcopy(model).half()
    return sum(t.numel() * t.element_size() for t in (*half.parameters(), *half.buffers()))


@pytest.mark.parametrize("inplace", [False, True])
def test_the_memory_of_an_inference_is_that_of_its_largest_moment(inplace: bool) -> None:
    """Of YOLOv8n that is the first SiLU: 16 maps of half the image's size, their sigmoid, and the product."""
    model = build("yolov8n")
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = inplace
    cost = CostModel(trace(model, IMGSZ))
    values = 3 * 16 * (IMGSZ // 2) ** 2
    assert {quantity: cost.amount(quantity) for quantity in RAM} == {
        "ram": 4 * values,
        "ram:16": 2 * values,
        "ram:8": values,
    }


@pytest.mark.parametrize("family", fast_and_slow(*FAMILIES))
def test_the_predicted_memory_of_a_cut_is_that_of_the_cut_network(family: str) -> None:
    model, graph = build(family), graph_of(family)
    cost = CostModel(graph)
    for seed in range(3):
        plan = random_plan(graph, 0.5, 1, seed)
        [network] = cut_networks(model, [plan])
        assert cost.amount("ram", units_of(graph, plan)) == CostModel(trace(network, IMGSZ)).amount("ram")


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo11n", "yolo26n"))
def test_a_target_in_memory_is_met(family: str) -> None:
    model = build(family)
    dense = CostModel(trace(model, IMGSZ))
    plan_cut(model, PruneConfig(target="25% ram:8", importance="l2"), IMGSZ).apply(model)
    after = CostModel(trace(model, IMGSZ))
    assert 0.7 < after.amount("ram:8") / dense.amount("ram:8") <= 0.75
    assert after.macs() > 0.4 * dense.macs()  # what is not held at such a moment stays


@pytest.mark.parametrize("family", fast_and_slow(*FAMILIES))
def test_bytes_are_those_of_the_tensors_before_and_after_a_cut(family: str) -> None:
    model, graph = build(family), graph_of(family)
    assert CostModel(graph).bytes() == checkpoint_bytes(model)
    plan = make(model, 0.4, allocation="global")
    plan.apply(model)
    predicted = CostModel(graph).bytes(units_of(graph, plan))
    assert predicted == checkpoint_bytes(model) == CostModel(trace(model, IMGSZ)).bytes()


@pytest.mark.parametrize("quantity", ["macs", "params", "bytes"])
@pytest.mark.parametrize("family", ["yolov8n", "yolo11n", "yolo12n"])
def test_savings_are_what_one_unit_less_saves(family: str, quantity: str) -> None:
    cost = CostModel(graph_of(family))
    kept = np.maximum(cost.widths // 2, 1)
    savings = cost.savings(quantity, kept)
    for g in range(len(kept)):
        one_less = kept - np.eye(len(kept), dtype=int)[g]
        saved = cost.amount(quantity, kept) - cost.amount(quantity, one_less)
        assert savings[g] == pytest.approx(saved, rel=0.12, abs=2)  # a layer that a group is on both sides of is curved


@pytest.mark.slow
def test_the_end_to_end_head_costs_the_same_whichever_branch_is_deployed() -> None:
    model = build("yolo26n")
    make(model, 0.5, allocation="global").apply(model)
    with_nms, without = copy.deepcopy(model), copy.deepcopy(model)
    without.end2end = True
    assert counted_macs(with_nms) == counted_macs(without)


def test_the_cost_falls_with_every_unit_that_goes() -> None:
    graph = graph_of("yolo11n")
    cost = CostModel(graph)
    for g in range(len(graph.groups)):
        one_less = cost.widths - np.eye(len(graph.groups), dtype=int)[g]
        assert cost.params(one_less) < cost.params()
        assert cost.macs(one_less) <= cost.macs()


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolov8n", "yolo11n"))
@pytest.mark.parametrize(("form", "weight", "channel"), [("onnx", 4, 4), ("onnx:16", 2, 2), ("litert:8", 1, 30)])
def test_an_export_shrinks_by_the_weights_and_biases_of_the_fused_network(
    family: str, form: str, weight: int, channel: int
) -> None:
    def amount(network: nn.Module) -> int:
        layers = [m for m in network.eval().fuse(verbose=False).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        return sum(weight * m.weight.numel() + channel * m.weight.shape[0] for m in layers)

    graph = graph_of(family)
    cost, plan = CostModel(graph), random_plan(graph, 0.5, 8, seed=0)
    (pruned,) = cut_networks(build(family), [plan])
    predicted = cost.amount(f"file {form}") - cost.amount(f"file {form}", units_of(graph, plan))
    assert predicted == amount(build(family)) - amount(pruned) > 0
    kept = np.array(units_of(graph, plan))
    saved = [cost.amount(f"file {form}", kept + more) for more in np.eye(len(kept), dtype=int)]
    saved = np.array(saved) - cost.amount(f"file {form}", kept)
    assert np.corrcoef(saved, cost.savings(f"file {form}", kept))[0, 1] > 0.999


@pytest.mark.parametrize("target", ["2 MB saved_model", "50% paddle:32", "3 MB engine:16", "2 MB qnn:w8a16"])
def test_bytes_that_cannot_be_predicted_are_refused(target: str) -> None:
    targets = PruneConfig(target=target).targets
    with pytest.raises(ConfigError, match=f"target={target}: .* cannot be predicted; give that of one of onnx, "):
        file_sizes(build("tiny"), targets, 64)


@pytest.mark.slow
def test_the_bytes_of_onnx_files_are_predicted(tmp_path: Path) -> None:
    graph = graph_of("yolov8n")
    cost, plans = CostModel(graph), [random_plan(graph, share, 8, seed=1) for share in (0.7, 0.3)]
    sizes = []
    for i, network in enumerate([build("yolov8n"), *cut_networks(build("yolov8n"), plans)]):
        (tmp_path / str(i)).mkdir()
        sizes.append(file_size(export_form(network, "onnx", (64, 64), tmp_path / str(i))))
    rest = sizes[0] - cost.amount("file onnx")
    predicted = [rest + cost.amount("file onnx", units_of(graph, plan)) for plan in plans]
    assert predicted == pytest.approx(sizes[1:], rel=1e-3)
