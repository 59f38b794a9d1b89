"""Keeping some classes: their outputs stay as they are, and a data set of more classes is told anew."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nets import IMGSZ, assert_same_tensors, build, fast_and_slow, state
from task_data import as_task
from test_levels import raw
from torch import nn
from trainings import Run, report_of, soon, train
from ultralytics import YOLO
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback, PruneConfig, prune_model
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.host.calibration_images import choose_images
from yolo_prune.host.kept_data import _renumbered, matching
from yolo_prune.surgery.classes import chosen, keep_classes

NAMES = {0: "person", 1: "bicycle", 2: "car", 3: "minibus", 4: "bus"}


def test_classes_are_chosen_by_name_pattern_and_number_in_the_order_of_the_network() -> None:
    assert chosen(NAMES, ["car", "person"]) == [0, 2]
    assert chosen(NAMES, ["*bus"]) == [3, 4] and chosen(NAMES, ["bus"]) == [4]
    assert chosen(NAMES, ["4", "Person"]) == [0, 4]
    assert chosen(["1", "0"], ["0"]) == [1]  # a name goes before a number
    assert PruneConfig(keep_classes="person, car").keep_classes == ("person", "car")
    assert PruneConfig(keep_classes=[0, "car"]).keep_classes == ("0", "car")
    assert PruneConfig(keep_classes=2).keep_classes == ("2",)
    with pytest.raises(ConfigError, match=r"no class 'cars', nor one of that number; it has 5, such as car"):
        chosen(NAMES, ["cars"])
    with pytest.raises(ConfigError, match="no class '5'"):
        chosen(NAMES, ["5"])
    for wrong in (-1, True, [None], 1.5):
        with pytest.raises(ConfigError, match=r"keep_classes=.* is not a list of names"):
            PruneConfig(keep_classes=wrong)


@pytest.mark.parametrize("name", fast_and_slow("yolo26n", "yolov8n", "yolo11n", "yolov10n", "yolov9t", "yolo11n-obb"))
@pytest.mark.parametrize("classes", [[0, 2], [1]])
def test_the_outputs_of_kept_classes_are_the_same(name: str, classes: list[int]) -> None:
    whole = build(name)
    network, image = copy.deepcopy(whole), torch.rand(2, 3, IMGSZ, IMGSZ)
    keep_classes(network, classes)
    before, after = raw(whole, image), raw(network, image)
    for key in before:
        if key.endswith("scores"):  # a layer with fewer outputs may add up in another order
            torch.testing.assert_close(before[key][:, classes], after[key], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(before[key], after[key])
    head: Any = network.model[-1]
    assert head.nc == network.yaml["nc"] == len(network.names) == len(classes)
    assert head.no == len(classes) + 4 * head.reg_max
    assert network.eval()(image)[0].shape[1 if not head.end2end else 2] == (
        6 if head.end2end else 4 + len(classes) + getattr(head, "ne", 0)
    )


@pytest.mark.parametrize("name", ["yolo26n-seg", "yolo11n-cls"])
def test_other_heads_keep_classes(name: str) -> None:
    network = build(name)
    before = state(network)
    keep_classes(network, [2, 0])
    after = network.state_dict()
    changed = [key for key in before if before[key].shape != after[key].shape]
    assert changed and all(torch.equal(before[key][[2, 0]], after[key]) for key in changed)
    assert network.names == {0: "2", 1: "0"} and network.yaml["nc"] == 2
    network.eval()(torch.rand(1, 3, IMGSZ, IMGSZ))


@pytest.mark.parametrize("name", ["yolov8s-world", "rtdetr-l", "yolo26n-sem"])
@pytest.mark.slow
def test_heads_whose_classes_hang_together_are_refused(name: str) -> None:
    from ultralytics import RTDETR

    model = (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml")
    before = state(model.model)
    with pytest.raises(UnsupportedError, match="keep_classes does not work for a"):
        keep_classes(model.model, [0])
    assert_same_tensors(before, state(model.model))


def test_all_classes_are_no_change() -> None:
    network = build("yolo11n")
    head = [*network.model[-1].cv3]
    keep_classes(network, [0, 1, 2])
    assert [*network.model[-1].cv3] == head


def test_a_cut_keeps_classes_first() -> None:
    model = YOLO("yolo11n.yaml", verbose=False)
    model.model = build("yolo11n")
    model.model.names = {0: "a", 1: "b", 2: "c"}
    result = prune_model(model, 0.3, keep_classes="c", imgsz=IMGSZ)
    assert model.names == {0: "c"} and 0.66 < result.plan.macs["after"] / result.plan.macs["before"] <= 0.7
    assert model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)[0].names == {0: "c"}
    with pytest.raises(ConfigError, match="no class 'd'"):
        prune_model(model, 0.1, keep_classes="d", imgsz=IMGSZ)


def test_labels_get_new_numbers_as_they_stand() -> None:
    text = "2 0.5 0.25 0.125 1\n0 0.1 0.2 0.3 0.4\n\n2.0 .1 .2 .3 .4 .5 .6\n1 0 0 1 1"
    assert _renumbered(text, {2: 0, 1: 1}) == "0 0.5 0.25 0.125 1\n0 .1 .2 .3 .4 .5 .6\n1 0 0 1 1\n"
    assert _renumbered("\n", {0: 0}) == _renumbered("5 0 0 1 1", {0: 0}) == ""


def a_trainer(data: Path, folder: Path, task: str = "detect") -> Any:
    """Return what is read of a trainer."""
    args = SimpleNamespace(data=str(data), task=task)
    return SimpleNamespace(args=args, data=check_det_dataset(str(data)), save_dir=folder / "run", ddp=False)


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_a_data_set_of_some_classes_has_their_labels_only(tiny_data: Path, own_folder: Path, task: str) -> None:
    data = tiny_data if task == "detect" else as_task(tiny_data, task, own_folder / task)
    trainer = a_trainer(data, own_folder, task)
    kept = matching(trainer, ["triangle", "circle"])
    assert kept["names"] == {0: "triangle", 1: "circle"} and kept["nc"] == 2
    assert kept.get("kpt_shape") == trainer.data.get("kpt_shape")
    found = []
    for split in ("train", "val"):
        images = sorted(Path(kept[split]).iterdir())
        before = sorted(Path(trainer.data[split]).iterdir())
        assert [image.read_bytes() for image in images] == [image.read_bytes() for image in before]
        for image, old in zip(images, before, strict=True):
            lines = [file.read_text().splitlines() for file in (_label(old), _label(image))]
            renamed = {"2": "0", "0": "1"}
            wanted = [f"{renamed[n]} {rest}" for n, rest in (line.split(" ", 1) for line in lines[0]) if n in renamed]
            assert lines[1] == wanted
            found += wanted
    assert found
    assert trainer.args.data == str(own_folder / "run" / "pruning" / "data" / "data.yaml")


def _label(image: Path) -> Path:
    return image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"


def test_a_data_set_of_just_these_classes_stays_as_it_is(tiny_data: Path, own_folder: Path) -> None:
    trainer = a_trainer(tiny_data, own_folder)
    assert matching(trainer, ["circle", "square", "triangle"]) is trainer.data
    assert trainer.args.data == str(tiny_data) and not (own_folder / "run").exists()
    with pytest.raises(ConfigError, match=r"has no class 'star'; it has circle, square, triangle"):
        matching(trainer, ["star"])
    trainer.args.task = "semantic"
    with pytest.raises(UnsupportedError, match="this one is for semantic"):
        matching(trainer, ["circle"])


class FewShown:
    """A data set in which a fifth of the images shows the only class."""

    labels = tuple({"cls": np.zeros((int(i % 5 == 0), 1))} for i in range(50))

    def __len__(self) -> int:
        return len(self.labels)


def test_images_that_show_a_kept_class_calibrate_first() -> None:
    chosen_images = choose_images(FewShown(), 12, 0, with_objects=True)
    assert sum(i % 5 == 0 for i in chosen_images) == 10 and len(set(chosen_images)) == 12
    assert sum(i % 5 == 0 for i in choose_images(FewShown(), 12, 0)) < 10


@pytest.mark.slow
def test_a_run_keeps_classes_of_its_data(run: Run) -> None:
    trainer = run("yolo26n", soon(0.3, keep_classes="circle,tri*"))
    report = report_of(trainer)
    assert report["given"] == {"levels": [], "classes": ["circle", "triangle"], "amounts": {}}
    assert trainer.data["names"] == {0: "circle", 1: "triangle"} and Path(trainer.args.data).parent.name == "data"
    best: Any = load_checkpoint(trainer.best)[0]
    assert best.names == {0: "circle", 1: "triangle"} and best.model[-1].nc == 2
    assert YOLO(trainer.best).val(data=trainer.args.data, imgsz=64, workers=0, plots=False).box is not None


@pytest.mark.slow
def test_a_model_that_knows_more_classes_knows_the_kept_ones(run: Run, own_folder: Path) -> None:
    first = run("yolo11n", epochs=1)
    rows = load_checkpoint(first.best)[0].float().model[-1].cv3[0][-1].weight.detach()
    seen: list[Any] = []
    model = YOLO(first.best)
    model.add_callback("on_train_start", lambda t: seen.append(copy.deepcopy(t.model.model[-1].cv3[0][-1].weight)))
    trainer = run(model, soon(0.3, keep_classes="2,0"))
    assert torch.equal(seen[0].detach(), rows[[0, 2]]) and report_of(trainer)["dense"]["finished"] is True


@pytest.mark.slow
def test_a_classifier_keeps_classes(tiny_data: Path, own_folder: Path) -> None:
    data = as_task(tiny_data, "classify", own_folder / "classes")
    model = YOLO("yolo11n-cls.yaml")
    model.train(data=str(data), epochs=1, imgsz=64, batch=4, workers=0, plots=False, project=own_folder / "runs")
    names = sorted(path.name for path in (data / "train").iterdir())
    weight = load_checkpoint(model.trainer.best)[0].float().model[-1].linear.weight.detach()
    seen: list[Any] = []
    again = YOLO(model.trainer.best)
    again.add_callback("on_train_start", lambda t: seen.append(copy.deepcopy(t.model.model[-1].linear.weight)))
    prune = PruneCallback(0, keep_classes=names[1:])
    trainer = train(own_folder, data, again, prune, epochs=1, name="kept")
    assert trainer.data["nc"] == len(names) - 1
    assert torch.equal(seen[0].detach(), weight[1:])
    assert [*load_checkpoint(trainer.best)[0].names.values()] == names[1:]


@pytest.mark.slow
def test_a_cut_on_data_of_more_classes_keeps_some(run: Run, tiny_data: Path, own_folder: Path) -> None:
    first = run("yolo11n", epochs=1)
    model = YOLO(first.best)
    quick: Any = {"calibration": 4, "benchmark": False, "workers": 0, "plots": False, "project": own_folder / "runs"}
    result = prune_model(model, 0.3, data=tiny_data, imgsz=64, keep_classes="circle", drop_levels=5, **quick)
    assert model.names == {0: "circle"} and result.report is not None and result.report.given is not None
    assert result.report.given.levels == [5] and result.report.final is not None
    assert 0.65 < (result.report.final.macs or 0) / result.report.given.amounts["macs"] <= 0.7
    model = YOLO(first.best)
    result = prune_model(model, 0, data=tiny_data, imgsz=64, drop_levels=5, **quick)
    assert result.plan.layers == {} and model.model.stride.tolist() == [8, 16]
    with pytest.raises(ConfigError, match="no class 'star'"):
        prune_model(model, 0, data=tiny_data, imgsz=64, keep_classes="star", **quick)
    assert isinstance(model.model, nn.Module) and len(model.names) == 3


def test_unknown_classes_of_a_data_set_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"the data set has no class 'circel', .* such as circle"):
        run(prune=soon(keep_classes="circel"))
