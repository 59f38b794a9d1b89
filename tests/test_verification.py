from __future__ import annotations

import copy

import pytest
import torch
from nets import IMGSZ, Chain, assert_same_tensors, build, make, state
from torch import nn
from ultralytics import YOLO

from yolo_prune import verify_cut
from yolo_prune.errors import PlanError, TargetError
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.verification import largest_difference


def test_a_right_cut_changes_nothing_and_the_model_is_only_read() -> None:
    model = build("yolo11n")
    before = state(model)
    flags = [m.training for m in model.modules()]
    assert max(verify_cut(model, make(model, importance="random"), IMGSZ).values()) < 1e-9
    assert_same_tensors(before, state(model))
    assert flags == [m.training for m in model.modules()]


@pytest.mark.parametrize("path", ["model.0.conv", "model.4.m.0.cv1.conv", "model.22.cv3.0.1.conv"])
def test_a_plan_that_confuses_two_channels_is_found(path: str) -> None:
    model = build("yolov8n")
    plan = make(model, importance="random")
    layers = copy.deepcopy(plan.layers)
    kept = layers[path]["out"]
    gone = next(i for i in range(plan.widths[path]["out"]) if i not in kept)
    layers[path]["out"] = sorted({*kept[1:], gone})  # as many as before, but not the ones that its readers keep
    wrong = PrunePlan(layers, plan.widths, plan.macs, plan.params, plan.imgsz)
    assert max(verify_cut(model, wrong, IMGSZ).values()) > 1e-6


def test_a_share_is_enough_to_verify_a_model() -> None:
    assert max(verify_cut(YOLO("yolov8n.yaml"), 0.3).values()) < 1e-9
    with pytest.raises(TargetError):
        verify_cut(build("yolov8n"), 0.999)


def test_a_network_of_larger_strides_is_verified_on_a_larger_image() -> None:
    assert max(verify_cut(YOLO("yolov8n-p6.yaml"), 0.3).values()) < 1e-9


def test_a_grouped_transposed_convolution_is_verified() -> None:
    model = Chain(32, nn.ConvTranspose2d(32, 64, 4, 2, 1, groups=4))
    assert max(verify_cut(model, make(model, 0.4)).values()) < 1e-9


def test_a_plan_for_another_network_is_refused() -> None:
    with pytest.raises(PlanError, match="the plan is for another network"):
        verify_cut(build("yolov8n"), make(build("yolo11n")))


def test_what_is_not_a_number_is_no_equality() -> None:
    one, nan = torch.ones(2, 2), torch.full((2, 2), torch.nan)
    assert largest_difference([one, one], [one, one]) == 0
    assert largest_difference([one, nan], [one, nan]) == largest_difference([one], [one[:1]]) == torch.inf
