from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Python
from nets import FAMILIES, IMGSZ, assert_same_tensors, build, fast_and_slow, make, state
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

from yolo_prune.errors import CheckpointError
from yolo_prune.host import checkpoint
from yolo_prune.planning.verification import outputs

pytestmark = pytest.mark.drift


def get_model(
    nc: int = 3, ch: int = 3, cfg: dict | None = None, weights: nn.Module | None = None, verbose: bool = True
):
    """A trainer's ``get_model`` for a data set."""
    model = DetectionModel(cfg, nc=nc, ch=ch, verbose=False)
    if weights is not None:
        model.load(weights, verbose=False)
    return model


def pruned(family: str) -> DetectionModel:
    model = build(family)
    make(model, importance="random").apply(model)
    checkpoint.mark(model)
    return model


def save(model: DetectionModel, path: Path) -> Path:
    model.args = {"task": "detect", "imgsz": IMGSZ}
    torch.save({"model": model.half(), "train_args": {"task": "detect", "imgsz": IMGSZ}}, path)
    model.float()
    return path


@pytest.mark.parametrize("family", fast_and_slow("yolo26n", "yolov8n", "yolo11n"))
def test_the_record_rebuilds_the_same_network_with_its_weights(family: str) -> None:
    model = pruned(family)
    again = checkpoint.rebuild(get_model, model.yaml, model)
    assert_same_tensors(state(model), state(again))
    assert again.yaml == model.yaml
    x = torch.rand(1, 3, IMGSZ, IMGSZ)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model.eval(), x), outputs(again.eval(), x), strict=True))


@pytest.mark.parametrize("family", fast_and_slow(*FAMILIES))
def test_the_record_rebuilds_for_another_data_set(family: str) -> None:
    model = pruned(family)
    again = checkpoint.rebuild(partial(get_model, 7, 1), model.yaml, model)
    assert again.model[-1].nc == 7 and again.model[0].conv.in_channels == 1
    same = [k for k, v in model.state_dict().items() if v.shape == again.state_dict()[k].shape]
    assert len(model.state_dict()) - len(same) <= 1 + 2 * 3 * 2
    assert outputs(again.train(), torch.rand(2, 1, IMGSZ, IMGSZ))


def test_the_record_rebuilds_without_weights() -> None:
    model = pruned("yolo11n")
    again = checkpoint.rebuild(get_model, model.yaml, None)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_record_that_does_not_fit_is_refused() -> None:
    model = pruned("yolov8n")
    model.yaml[checkpoint.KEY]["widths"]["model.99.conv"] = {"out": 3, "in": 3}
    with pytest.raises(CheckpointError, match=r"model\.99\.conv that this version of ultralytics does not build"):
        checkpoint.rebuild(get_model, model.yaml, model)


def test_unmarking_gives_back_what_ultralytics_wrote() -> None:
    model = build("yolov8n")
    original = model.yaml
    make(model).apply(model)
    checkpoint.mark(model)
    assert checkpoint.is_pruned(model.yaml) and not checkpoint.is_pruned(original)
    assert checkpoint.unmarked(model.yaml) == original
    checkpoint.mark(model)
    assert checkpoint.unmarked(model.yaml) == original


def test_a_pruned_checkpoint_needs_no_yolo_prune(own_folder: Path, python: Python) -> None:
    x = torch.rand(1, 3, IMGSZ, IMGSZ)
    expected = {}
    for family in FAMILIES:
        path = save(pruned(family), own_folder / f"{family}.pt")
        expected[path.name] = outputs(YOLO(path).model.eval(), x)
    torch.save((x, expected), own_folder / "expected")
    result = python("-c", WITHOUT_PLUGIN)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.endswith("all right")] == [
        f"{name}: all right" for name in expected
    ]


WITHOUT_PLUGIN = """
import sys
sys.modules["yolo_prune"] = None  # importing it now raises
import numpy as np, torch
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load
x, expected = torch.load("expected")
models = {path: YOLO(path) for path in expected}
for path, outputs in expected.items():  # before a prediction sets the number of threads
    torch_safe_load(path, safe_only=True)
    with torch.no_grad():
        assert torch.equal(models[path].model.eval()(x)[0], outputs[0])
for path, model in models.items():
    model.info()
    model.predict(np.zeros((96, 96, 3), np.uint8), imgsz=96, verbose=False)
    model.fuse()
    print(f"{path}: all right")
"""


def test_a_stock_training_of_a_pruned_checkpoint_stops_with_the_way_out(
    tmp_path: Path, tiny_data: Path, own_folder: Path
) -> None:
    path = save(pruned("yolov8n"), tmp_path / "best.pt")
    with pytest.raises(KeyError) as error:
        YOLO(path).train(data=tiny_data, epochs=1, imgsz=64, project=own_folder, plots=False)
    assert error.value.args == (checkpoint.SENTENCE,)
    assert "prune=0" in checkpoint.SENTENCE and "resumed with" in checkpoint.SENTENCE


def test_a_checkpoint_promises_no_package_index() -> None:
    for sentence in (checkpoint.SENTENCE, checkpoint.RUN_SENTENCE):
        assert checkpoint.INSTALL in sentence and "pip install" not in sentence


def test_a_checkpoint_with_a_sentence_of_another_version_is_read_as_any_other() -> None:
    model = pruned("yolo11n")
    first = model.yaml["backbone"][0]
    first[2] = "This network was pruned by yolo_prune … Way out: pip install yolo-prune, …"  # as 0.1.0 wrote it
    assert checkpoint.is_pruned(model.yaml)
    assert checkpoint.unmarked(model.yaml) == build("yolo11n").yaml
    again = checkpoint.rebuild(get_model, model.yaml, model)
    assert_same_tensors(state(model), state(again))
    assert again.yaml["backbone"][0][2] == checkpoint.SENTENCE


def test_safe_load_accepts_a_pruned_checkpoint(tmp_path: Path) -> None:
    ckpt, _ = torch_safe_load(save(pruned("yolo11n"), tmp_path / "best.pt"), safe_only=True)
    assert checkpoint.is_pruned(ckpt["model"].yaml)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, checkpoint.Training(arguments={"data": "a.yaml"})),
        ({"epoch": -1}, checkpoint.Training(True, None, {"data": "a.yaml"})),
        ({"epoch": 4, "train_metrics": {"fitness": 0.5}}, checkpoint.Training(False, 0.5, {"data": "a.yaml"})),
        ({"epoch": -1, "train_metrics": {"fitness": None}}, checkpoint.Training(True, None, {"data": "a.yaml"})),
        ({"epoch": None, "train_metrics": None, "train_args": None}, checkpoint.Training()),
    ],
)
def test_a_checkpoint_tells_of_its_training(tmp_path: Path, content: dict[str, object], told: object) -> None:
    torch.save({"model": build("tiny"), "train_args": {"data": "a.yaml"}, **content}, tmp_path / "a.pt")
    assert checkpoint.training_of(tmp_path / "a.pt") == told


def test_what_is_no_checkpoint_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("no")
    assert checkpoint.training_of(tmp_path / "a.pt") == checkpoint.training_of("gone.pt") == checkpoint.Training()
