"""Networks, plans and comparisons that several tests share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

from yolo_prune.channels import ChannelGraph
from yolo_prune.config import PruneConfig
from yolo_prune.graph import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planner import plan_cut

FAMILIES = ("yolov8n", "yolo11n", "yolo26n")
IMGSZ = 96


def build(name: str, seed: int = 0) -> DetectionModel:
    """Return a network whose BatchNorms do something, so that equal outputs mean something."""
    return copy.deepcopy(_build(name, seed))


@lru_cache
def graph_of(name: str) -> ChannelGraph:
    """Return the channel groups of `build(name)`."""
    return trace(build(name), IMGSZ)


@lru_cache
def _build(name: str, seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    model = DetectionModel(f"{name}.yaml", nc=3, verbose=False)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return model


def narrow_yaml(name: str, folder: Path) -> Path:
    """Write a model YAML of half the width of the installed one, so that training it takes seconds."""
    yaml = YAML.load(Path(cfg.__file__).parent / "models" / name[4:-1] / f"{name[:-1]}.yaml")
    yaml["scales"]["n"][1] /= 2
    path = folder / f"{name}-narrow.yaml"
    YAML.save(path, yaml)
    return path


def make(model: nn.Module, target: float = 0.5, **knobs: Any) -> PrunePlan:
    """Return a plan for a network."""
    return plan_cut(model, PruneConfig(target=target, **knobs), IMGSZ)


def kill_channels(model: nn.Module, plan: PrunePlan) -> None:
    """Set everything that makes a channel which the plan removes to zero, BatchNorm included."""
    for path, kept in plan.layers.items():
        layer = model.get_submodule(path)
        gone = sorted(set(range(plan.widths[path]["out"])) - set(kept["out"]))
        for parameter in layer.parameters(recurse=False):
            parameter.data[gone] = 0


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return all predictions of a forward pass, without the feature maps that heads hand through."""
    with torch.no_grad():
        return list(_tensors(model(x)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "feats":
                yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all tensors."""
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Assert bitwise equality."""
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different
