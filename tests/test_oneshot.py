from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import IMGSZ, build
from torch import nn
from ultralytics import YOLO

from yolo_prune import PruneConfig, checkpoint, prune_model
from yolo_prune.errors import ConfigError, TargetError, UnsupportedError
from yolo_prune.verification import outputs


def test_a_bare_network_is_cut_in_place() -> None:
    model = build("yolo11n")
    result = prune_model(model, 0.3, imgsz=IMGSZ)
    assert sum(p.numel() for p in model.parameters()) == result.plan.params["after"]
    assert 0.68 <= result.plan.macs["after"] / result.plan.macs["before"] <= 0.7
    assert outputs(model.eval(), torch.rand(1, 3, IMGSZ, IMGSZ))
    assert checkpoint.is_pruned(model.yaml)


def test_the_plan_does_the_same_to_a_copy() -> None:
    model, copy = build("yolov8n"), build("yolov8n")
    prune_model(model, 0.5, imgsz=IMGSZ).plan.apply(copy)
    assert checkpoint.is_pruned(copy.yaml)
    x = torch.rand(1, 3, IMGSZ, IMGSZ)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model.eval(), x), outputs(copy.eval(), x), strict=True))


def test_a_yolo_object_is_cut_saved_and_loaded_again(own_folder: Path) -> None:
    yolo = YOLO("yolo26n.yaml")
    yolo.predict(np.zeros((IMGSZ, IMGSZ, 3), np.uint8), imgsz=IMGSZ, verbose=False)
    result = prune_model(yolo, PruneConfig(target=0.5), imgsz=IMGSZ, importance="l1")
    yolo.predict(np.zeros((IMGSZ, IMGSZ, 3), np.uint8), imgsz=IMGSZ, verbose=False)
    assert sum(p.numel() for p in yolo.predictor.model.parameters()) < result.plan.params["after"]
    yolo.save("slim.pt")
    again = YOLO("slim.pt")
    assert sum(p.numel() for p in again.model.parameters()) == result.plan.params["after"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "yolo11n.pt", None])
def test_what_is_no_yolo_is_refused(model: object) -> None:
    with pytest.raises(UnsupportedError, match="is no YOLO model with weights that can be cut"):
        prune_model(model)  # type: ignore[arg-type]  # the wrong type is the test


def test_wrong_knobs_and_targets_are_refused_before_anything_changes() -> None:
    model = build("yolov8n")
    before = sum(p.numel() for p in model.parameters())
    with pytest.raises(ConfigError, match="did you mean round_to"):
        prune_model(model, {"target": 0.5, "roundto": 8})
    with pytest.raises(
        ConfigError, match=r"steps: no knob of a cut without training and data\. Valid: importance, allocation"
    ):
        prune_model(model, 0.5, steps=3)
    with pytest.raises(TargetError, match="is the least that can be reached"):
        prune_model(model, 0.99)
    assert sum(p.numel() for p in model.parameters()) == before
