from __future__ import annotations

import copy

import pytest
import torch
from nets import FAMILIES, IMGSZ, build, graph_of
from torch import nn
from ultralytics.nn import tasks

from yolo_prune.errors import UnsupportedError
from yolo_prune.graph.outline import outline
from yolo_prune.graph.trace import trace

pytestmark = pytest.mark.drift


@pytest.mark.parametrize("family", FAMILIES)
def test_every_unit_of_every_layer_is_in_at_most_one_group(family: str) -> None:
    graph = graph_of(family)
    seen: set[tuple[str, str, int]] = set()
    for group in graph.groups:
        for (path, side), table in group.members.items():
            units = {(path, side, int(i)) for i in table.ravel()}
            assert len(units) == table.size
            assert not units & seen
            seen |= units
    for path, layer in graph.layers.items():
        if ".dfl." not in path:
            assert {(path, "out", i) for i in range(layer.out)} <= seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bundles_are_a_partition_of_the_groups(family: str) -> None:
    graph = graph_of(family)
    assert sorted(i for bundle in graph.bundles for i in bundle.groups) == list(range(len(graph.groups)))
    for bundle in graph.bundles:
        for i, per_step in zip(bundle.groups, bundle.per_step, strict=True):
            assert graph.groups[i].width == per_step * bundle.steps


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_the_task_predicts_is_locked(family: str) -> None:
    locked = graph_of(family).locked()
    layers = {e["layer"]: e["why"] for e in locked}
    layers.pop("model.22.dfl", None) or layers.pop("model.23.dfl", None)
    assert set(layers) == set(outline(build(family)).fixed)
    assert set(layers.values()) == {"predicts the box distribution", "predicts the class scores"}


def test_both_branches_of_an_end_to_end_head_are_traced_and_tied() -> None:
    graph = graph_of("yolo26n")
    bundle = next(
        b for b in graph.bundles if any(graph.groups[i].name == "model.23.one2one_cv2.0.0.conv" for i in b.groups)
    )
    assert {graph.groups[i].name for i in bundle.groups} == {"model.23.cv2.0.0.conv", "model.23.one2one_cv2.0.0.conv"}
    assert bundle.locked is None


def test_tracing_neither_runs_nor_changes_the_network() -> None:
    model = build("yolo11n").train()
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    model.register_forward_pre_hook(lambda *_: pytest.fail("the network was run"))
    rng = torch.get_rng_state()
    trace(model, IMGSZ)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert flags == [m.training for m in model.modules()]
    assert all(p.requires_grad for n, p in model.named_parameters() if ".dfl." not in n)
    assert torch.equal(rng, torch.get_rng_state())


def test_ignored_layers_are_locked_with_the_reason() -> None:
    graph = trace(build("yolov8n"), IMGSZ, ignored=lambda path: "model.0.*" if path.startswith("model.0.") else None)
    assert {"layer": "model.0.conv", "why": "kept on request (ignored_layers has model.0.*)"} in graph.locked()


def test_a_rectangular_image_and_other_input_channels_are_counted() -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", ch=4, nc=2, verbose=False)
    graph = trace(model, (64, 128))
    assert graph.imgsz == (64, 128)
    assert graph.layers["model.0.conv"].positions == 32 * 64
    assert graph.layers["model.0.conv"].inp == 4


def test_what_is_no_yolo_network_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Linear is not an Ultralytics YOLO network"):
        trace(nn.Linear(2, 2))


def test_the_fixed_outputs_are_the_last_convolutions_of_the_head() -> None:
    assert set(outline(build("yolo11n")).fixed) == {f"model.23.{b}.{i}.2" for b in ("cv2", "cv3") for i in range(3)}


def test_a_network_whose_shapes_depend_on_values_is_refused_with_the_way_out() -> None:
    model = tasks.YOLOEModel("yoloe-v8n.yaml", verbose=False).eval()
    model.args = {"imgsz": 64}
    names = {i: str(i) for i in range(7)}
    model.set_vocab(nn.ModuleList(nn.Conv2d(level[-1].in_channels, 7, 1) for level in model.model[-1].cv3), names)
    with pytest.raises(UnsupportedError, match=r"YOLOEModel cannot be read without data.*cut the YOLOE"):
        trace(model, IMGSZ)
