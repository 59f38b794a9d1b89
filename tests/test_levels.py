"""Removing detection levels: what stays computes the same, and trains, resumes and exports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Python
from nets import IMGSZ, assert_same_tensors, build, fast_and_slow, labelled_batches, make, state
from torch import nn
from trainings import Interrupted, Run, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint, torch_safe_load

from yolo_prune import PruneCallback, PruneConfig, prune_model
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint
from yolo_prune.host.level_boxes import boxes_per_level
from yolo_prune.surgery.levels import drop_levels, levels_of
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.training.reduction import reduce

SIDE = 128
POSITIONS = {level: (SIDE >> level) ** 2 for level in (3, 4, 5)}
ALL = ("yolo11n", "yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo12n", "yolo26n")
TASKS = ("yolov8n-seg", "yolo11n-seg", "yolov8n-pose", "yolo26n-pose", "yolo11n-obb", "yolo26n-obb")


def raw(network: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a head predicts at each position in training, with BatchNorms as they are."""
    for module in network.train().modules():
        module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)
    with torch.no_grad():
        made = network(image)
    branches = made if "one2many" in made else {"only": made}
    return {f"{b}.{k}": v for b, of in branches.items() for k, v in of.items() if k not in ("feats", "proto")}


def positions_without(levels: tuple[int, ...]) -> list[int]:
    """Return the positions of the levels that stay."""
    kept, at = [], 0
    for level, count in POSITIONS.items():
        kept += [] if level in levels else range(at, at + count)
        at += count
    return kept


def cases() -> list[Any]:
    """Return network and levels: the usual one fast, the others slow."""
    wanted = [(name, (5,)) for name in (*ALL, *TASKS)]
    wanted += [(name, levels) for name in ALL for levels in ((3,), (4,), (4, 5), (3, 4))]
    wanted += [(name, (3,)) for name in TASKS if not name.endswith("seg")]
    return [wanted[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in wanted[1:])]


@pytest.mark.parametrize(("name", "levels"), [("yolo26n", (3,)), *cases()])
def test_outputs_at_the_levels_that_stay_are_the_same(name: str, levels: tuple[int, ...]) -> None:
    whole = build(name)
    network, image = copy.deepcopy(whole), torch.rand(2, 3, SIDE, SIDE)
    drop_levels(network, levels)
    before, after, stay = raw(whole, image), raw(network, image), positions_without(levels)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key][..., stay], after[key]) for key in before)
    assert network.stride.tolist() == [2.0**level for level in POSITIONS if level not in levels]
    assert [row.i for row in network.model] == list(range(len(network.model)))


@pytest.mark.parametrize("name", fast_and_slow(*ALL, *TASKS))
def test_ultralytics_builds_the_same_network_from_the_yaml(name: str) -> None:
    network = build(name)
    drop_levels(network, (5,))
    again = type(network)(copy.deepcopy(network.yaml), nc=network.yaml["nc"], verbose=False)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert [(type(row), row.f, row.i) for row in again.model] == [(type(row), row.f, row.i) for row in network.model]
    assert again.save == network.save and torch.equal(again.stride, network.stride)
    assert torch.equal(again.model[-1].stride, network.model[-1].stride)


@pytest.mark.parametrize("levels", fast_and_slow((5,), (3,), (4, 5)))
@pytest.mark.parametrize("name", fast_and_slow("yolo11n", "yolov8n", "yolo26n", "yolov10n"))
def test_what_is_saved_is_what_is_counted(name: str, levels: tuple[int, ...]) -> None:
    network = build(name)
    given = reduce(network, PruneConfig(drop_levels=levels), IMGSZ)
    assert given is not None
    whole, rest = build(name), CostModel(trace(network, IMGSZ))
    assert given.amounts["params"] == sum(p.numel() for p in whole.parameters())
    assert given.amounts["macs"] == CostModel(trace(whole, IMGSZ)).macs() > rest.macs()
    assert rest.params() == sum(p.numel() for p in network.parameters()) < given.amounts["params"]


def test_a_network_whose_rebuild_has_other_widths_is_marked() -> None:
    for levels, is_marked in (((5,), False), ((3,), True)):
        network = build("yolo26n")
        reduce(network, PruneConfig(drop_levels=levels), IMGSZ)
        assert checkpoint.is_marked(network.yaml) == is_marked
        if is_marked:
            again = checkpoint.rebuild(_get_model, network.yaml, network)
            assert_same_tensors(state(network), state(again))


def _get_model(cfg: Any, weights: Any = None, verbose: bool = True) -> nn.Module:
    return type(build("yolo26n"))(copy.deepcopy(cfg), nc=3, verbose=False)


@pytest.mark.slow
def test_a_pruned_network_stays_a_pruned_one() -> None:
    network = build("yolo11n")
    make(network).apply(network)
    checkpoint.mark(network)
    reduce(network, PruneConfig(drop_levels=5), IMGSZ)
    assert checkpoint.is_pruned(network.yaml)
    plain = checkpoint.unmarked(network.yaml)
    assert plain["head"][-1][0] == [16, 19] and len(plain["backbone"]) + len(plain["head"]) == len(network.model)
    make(network, 0.3).apply(network)
    raw(network, torch.rand(1, 3, SIDE, SIDE))


def test_a_removal_can_be_taken_back() -> None:
    network, whole = build("yolo11n"), build("yolo11n")
    yaml, undo = network.yaml, UndoLog()
    reduce(network, PruneConfig(drop_levels=(3, 5), keep_classes="1"), IMGSZ, undo)
    assert len(network.model) < len(whole.model)
    undo.undo()
    assert network.yaml is yaml and network.save == whole.save and network.names == whole.names
    assert [(row.i, row.f) for row in network.model] == [(row.i, row.f) for row in whole.model]
    assert_same_tensors(state(network), state(whole))
    image = torch.rand(1, 3, SIDE, SIDE)
    before, after = raw(whole, image), raw(network, image)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "levels", "error", "message"),
    [
        ("yolo11n", (6,), ConfigError, r"drop_levels=6: this network detects at the levels 3, 4 and 5"),
        ("yolo11n", (3, 4, 5), ConfigError, r"drop_levels=3,4,5 would leave no level"),
        ("yolo11n-seg", (3,), UnsupportedError, r"masks .* made of the map of level 3; drop a coarser one"),
        ("yolo26n-seg", (5,), UnsupportedError, r"masks .* made of the maps of all levels"),
        ("yolo11n-cls", (5,), UnsupportedError, r"a Classify does not: leave it out"),
        ("yolov8-p6", (6,), UnsupportedError, r"multiples of 64, .* drop a finer one"),
        ("yolov8s-world", (5,), UnsupportedError, r"open-vocabulary heads such as WorldDetect"),
    ],
)
def test_what_cannot_go_is_refused_and_nothing_changes(
    name: str, levels: tuple[int, ...], error: type[Exception], message: str
) -> None:
    network = YOLO(f"{name}.yaml").model if name in ("yolov8-p6", "yolov8s-world") else build(name)
    before, yaml = state(network), copy.deepcopy(network.yaml)
    with pytest.raises(error, match=message):
        drop_levels(network, levels)
    assert network.yaml == yaml
    assert_same_tensors(before, state(network))


def test_levels_are_powers_of_two() -> None:
    assert levels_of(build("tiny")) == {3: 0, 4: 1} and levels_of(build("yolo11n")) == {3: 0, 4: 1, 5: 2}
    assert PruneConfig(drop_levels="P5, p4").drop_levels == PruneConfig(drop_levels=[4, 5, 4]).drop_levels == (4, 5)
    for wrong in ("x", "0", 55, [None], 2.5):
        with pytest.raises(ConfigError, match=r"drop_levels=.* is not a list of levels"):
            PruneConfig(drop_levels=wrong)


@pytest.mark.slow
def test_shares_are_of_the_network_with_all_levels() -> None:
    whole, model = build("yolo11n"), YOLO("yolo11n.yaml")
    model.model = build("yolo11n")
    macs = CostModel(trace(whole, IMGSZ)).macs()
    plan = prune_model(model, 0.5, drop_levels=5, imgsz=IMGSZ).plan
    assert plan.macs["before"] < macs and 0.47 * macs < plan.macs["after"] <= 0.5 * macs
    network = build("yolo11n")
    plan = prune_model(network, 0.01, drop_levels=5, imgsz=IMGSZ).plan
    assert plan.macs["before"] == plan.macs["after"]  # it holds already
    whole = CostModel(trace(build("yolo11n"), IMGSZ))
    given = reduce(build("yolo11n"), PruneConfig(target="50% ram, 50% params, 50% size", drop_levels=5), IMGSZ)
    assert given is not None and given.amounts["ram"] == whole.amount("ram") and given.amounts["bytes"] > whole.bytes()


@pytest.mark.slow
def test_a_checkpoint_without_levels_needs_no_yolo_prune(own_folder: Path, python: Python) -> None:
    image, expected = torch.rand(1, 3, SIDE, SIDE), {}
    for name, target in (("yolo11n", 0.0), ("yolo26n", 0.4)):
        model = YOLO(f"{name}.yaml", verbose=False)
        model.model = build(name)
        prune_model(model, target, drop_levels=5, keep_classes=[0, 2], imgsz=IMGSZ)
        model.save(path := f"{name}.pt")
        expected[path] = YOLO(path).model.eval()(image)[0].detach()
    torch.save((image, expected), own_folder / "expected")
    result = python("-c", WITHOUT_PLUGIN)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "all right"


WITHOUT_PLUGIN = """
import sys
sys.modules["yolo_prune"] = None  # importing it now raises
import numpy as np, torch
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load
image, expected = torch.load("expected")
models = {path: YOLO(path) for path in expected}
for path, output in expected.items():
    torch_safe_load(path, safe_only=True)
    with torch.no_grad():  # the number of threads may be another one
        torch.testing.assert_close(models[path].model.eval()(image)[0], output, rtol=1e-4, atol=1e-4)
for model in models.values():
    model.predict(np.zeros((60, 90, 3), np.uint8), imgsz=96, verbose=False)  # 64 x 96 pixels
    model.info()
print("all right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_a_network_without_levels_is_exported_to_onnx(own_folder: Path, name: str) -> None:
    from yolo_prune.deploy.export import export_all

    model = YOLO(f"{name}.yaml", verbose=False)
    model.model = build(name)
    prune_model(model, 0.3, drop_levels=5, keep_classes="1", imgsz=SIDE)
    model.save("best.pt")
    record = export_all(Path("best.pt"), ("onnx",), torch.rand(1, 3, SIDE, SIDE), None)[0]
    assert record.ok, record.reason


def test_boxes_belong_to_the_level_that_learns_them() -> None:
    network = build("yolo11n")
    batch = labelled_batches()[0]
    counts = boxes_per_level(network, [batch])
    assert len(counts) == 3 and 0 < sum(counts) <= len(batch["bboxes"])
    image = torch.zeros(1, 3, 640, 640)
    for side, level in ((0.02, 0), (0.95, 2)):  # 13 and 608 pixels
        boxes = torch.tensor([[0.5, 0.5, side, side]])
        one = {"img": image, "cls": torch.zeros(1, 1), "bboxes": boxes, "batch_idx": torch.zeros(1)}
        trained = _knows_sizes(copy.deepcopy(network))
        assert boxes_per_level(trained, [one])[level] == 1
    assert not hasattr(network, "criterion") or network.criterion is None


def _knows_sizes(network: Any) -> Any:
    """Return a network that predicts boxes of eight strides everywhere, of equal scores."""
    head = network.model[-1]
    for boxes, scores in zip(head.cv2, head.cv3, strict=True):
        for layer in (boxes[-1], scores[-1]):
            layer.weight.data.zero_()
            layer.bias.data.zero_()
        boxes[-1].bias.data[4::16] = 20.0  # four strides to each side
    return network


@pytest.mark.slow
def test_a_run_without_a_level_ends_on_target(run: Run) -> None:
    trainer = run("yolo11n", soon(0.5, drop_levels=5))
    report = report_of(trainer)
    given = report["given"]
    assert given["levels"] == [5] and given["classes"] == []
    assert report["dense"]["macs"] < given["amounts"]["macs"]
    assert 0.45 * given["amounts"]["macs"] < report["final"]["macs"] <= 0.5 * given["amounts"]["macs"]
    best = load_checkpoint(trainer.best)[0]
    assert best.stride.tolist() == [8, 16] and best.model[-1].nl == 2
    assert "without level 5" in (trainer.save_dir / "pruning" / "report.html").read_text()


@pytest.mark.slow
def test_a_level_goes_at_an_image_size_that_ultralytics_rounds(run: Run) -> None:
    rounded, exact = (
        report_of(run("yolov8n", PruneCallback(0, drop_levels=5), epochs=1, imgsz=size)) for size in (80, 96)
    )
    assert rounded["imgsz"] == [96, 96] and rounded["given"] == exact["given"]


@pytest.mark.slow
def test_a_level_goes_where_nothing_is_cut(run: Run) -> None:
    trainer = run("yolo11n", PruneCallback(0, drop_levels=5), epochs=1)
    report = report_of(trainer)
    assert not report["cuts"] and report["given"]["levels"] == [5]
    assert report["final"]["params"] < report["given"]["amounts"]["params"]
    yaml = torch_safe_load(trainer.best)[0]["model"].yaml
    assert not checkpoint.is_marked(yaml) and yaml["head"][-1][0] == [16, 19]
    again = run(YOLO(trainer.best), epochs=1)  # stock Ultralytics
    assert again.model.stride.tolist() == [8, 16]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "levels", "after"), [(0.5, 4, 0), (0.5, 4, 2), (0.0, 3, 1), (0.5, 3, 0)])
def test_an_interrupted_run_ends_with_the_same_weights(
    run: Run, own_folder: Path, target: float, levels: int, after: int
) -> None:
    def stop(trainer: Any) -> None:
        if trainer.epoch == after:
            raise Interrupted

    def prune() -> PruneCallback:
        return soon(target, drop_levels=levels, keep_classes="circle,square")

    whole = run(prune=prune(), name="whole")
    lost = YOLO(own_folder / "tiny-model.yaml")
    lost.add_callback("on_model_save", stop)
    with pytest.raises(Interrupted):
        run(lost, prune(), name="lost")
    resumed = run(YOLO(own_folder / "runs" / "lost" / "weights" / "last.pt"), PruneCallback(None), resume=True)
    assert_same_tensors(*(state(load_checkpoint(t.last)[0]) for t in (whole, resumed)))
    assert report_of(resumed)["given"] == report_of(whole)["given"]
    assert resumed.model.names == {0: "circle", 1: "square"}


@pytest.mark.slow
def test_a_pruned_checkpoint_resumes_before_its_next_cut(run: Run, own_folder: Path) -> None:
    def stop(trainer: Any) -> None:
        raise Interrupted

    first = run(prune=soon(), name="first")
    again = YOLO(first.best)
    widths = {k: v.shape for k, v in again.model.state_dict().items()}
    again.add_callback("on_model_save", stop)
    with pytest.raises(Interrupted):
        run(again, soon(0.2, start=0.5, end=0.75), name="lost")
    last = own_folder / "runs" / "lost" / "weights" / "last.pt"
    resumed = YOLO(last)
    assert {k: v.shape for k, v in resumed.model.state_dict().items()} == widths
    trainer = run(resumed, PruneCallback(None), resume=True)
    report = report_of(trainer)
    assert len(report["cuts"]) == 2 and report["final"]["macs"] <= 0.8 * report["dense"]["macs"]


def test_levels_and_another_teacher_are_refused(run: Run, own_folder: Path) -> None:
    teacher = run(epochs=1)
    with pytest.raises(UnsupportedError, match="drop_levels with a teacher that has all levels"):
        run(prune=soon(drop_levels=4, distill=str(teacher.best)))


@pytest.mark.slow
def test_a_run_without_a_level_learns_from_its_dense_self(run: Run) -> None:
    report = report_of(run("yolov8n", soon(drop_levels=5, distill=True)))
    assert len(report["cuts"]) == 2


@pytest.mark.slow
def test_a_plan_tells_which_level_is_free(own_folder: Path, tiny_data: Path) -> None:
    from yolo_prune.oneshot import dry_run

    model = YOLO("yolo11n.yaml")
    model.model = build("yolo11n")
    model.model.names = names = {0: "circle", 1: "square", 2: "triangle"}
    yaml = model.model.yaml
    config, data = (
        PruneConfig(target=0.2, calibration=4, importance="l2"),
        {"data": str(tiny_data), "imgsz": 64, "workers": 0},
    )
    told = dry_run(model, config, **data)
    lines = [line for line in told.splitlines() if line.startswith("P")]
    assert [line[:3] for line in lines] == ["P3:", "P4:", "P5:"] and all("% of the boxes" in line for line in lines)
    assert "drop_levels=5" in lines[2] and "29% of the parameters" in lines[2]
    told = dry_run(model, config.replace(drop_levels=5), **data)
    assert "without level 5: " in told and "\nP5" not in told
    dry_run(model, config.replace(keep_classes="square"), **data)
    assert model.model.names == names and model.model.yaml == yaml and model.model.model[-1].nc == 3
    assert getattr(model.model, "nc", 3) == 3


def test_the_tiny_network_is_a_case_of_its_own() -> None:
    network = build("tiny")
    drop_levels(network, (4,))
    assert len(network.model) == 6 and network.yaml["head"][0][0] == [4] and network.model[-1].f == [4]
