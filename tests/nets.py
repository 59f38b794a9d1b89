"""Networks, plans and comparisons that several tests share."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks
from ultralytics.nn.modules import conv
from ultralytics.utils import YAML
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.config.choices import DATA_FREE
from yolo_prune.config.settings import PruneConfig
from yolo_prune.cost.latency import FEATURES, LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.planner import plan_cut
from yolo_prune.planning.verification import randomise_norms

FAMILIES = ("yolov8n", "yolo11n", "yolo26n")
IMGSZ = 96
KINDS = {
    "seg": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
    "cls": tasks.ClassificationModel,
}

TINY: dict[str, Any] = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C2f", [32, True]],
        [-1, 1, "Conv", [48, 3, 2]],
        [-1, 1, "C2f", [48, True]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "C2f", [64, True]],
    ],
    "head": [[[4, 6], 1, "Detect", ["nc"]]],
}
"""A detector for what does not hang on a family: it is cut in half a second."""


def build(name: str, seed: int = 0) -> tasks.BaseModel:
    """Return a network whose BatchNorms do something, so that equal outputs mean something."""
    return copy.deepcopy(_build(name, seed))


def fast_and_slow(first: Any, *others: Any) -> list[Any]:
    """Return the values of a test's parameter: all but the first are for the slow tier."""
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


@lru_cache
def graph_of(name: str) -> ChannelGraph:
    """Return the channel groups of `build(name)`."""
    return trace(build(name), IMGSZ)


@lru_cache
def _build(name: str, seed: int) -> tasks.BaseModel:
    torch.manual_seed(seed)
    yaml = copy.deepcopy(TINY) if name == "tiny" else f"{name}.yaml"
    model = KINDS.get(name.rpartition("-")[2], tasks.DetectionModel)(yaml, nc=3, verbose=False)
    randomise_norms(model)
    model.args = get_cfg()  # the gains of the loss
    return model


class Chain(tasks.BaseModel):
    """A network of a convolution, some blocks one after the other, and two more convolutions."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.yaml: dict[str, Any] = {"channels": 3}
        self.save: list[int] = []
        rows = [conv.Conv(3, width, 3, 4), *blocks]
        with torch.no_grad():
            made = nn.Sequential(*rows).eval()(torch.zeros(1, 3, 64, 64)).shape[1]
        rows += [conv.Conv(made, 24, 3), conv.Conv(24, 8)]
        self.model = nn.Sequential(*rows).train()
        for i, row in enumerate(self.model):
            row.i, row.f, row.type = i, -1, type(row).__name__
        randomise_norms(self)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[torch.Tensor, None]:
        """Return something that depends on every output."""
        return self(batch["img"]).square().sum(), None


def narrow_yaml(name: str, folder: Path) -> Path:
    """Write a model YAML of half the width of the installed one, so that training it takes seconds."""
    yaml = {k: v for k, v in tasks.yaml_model_load(f"{name}.yaml").items() if k not in ("scale", "yaml_file")}
    if "scales" in yaml:
        yaml["scales"]["n"][1] /= 2
    path = folder / f"{name}-narrow.yaml"
    YAML.save(path, yaml)
    return path


def tiny_yaml(folder: Path) -> Path:
    """Write the YAML of the tiny detector."""
    path = folder / "tiny-model.yaml"
    YAML.save(path, TINY)
    return path


def make(model: nn.Module, target: float = 0.5, **knobs: Any) -> PrunePlan:
    """Return a plan for a network, by weights alone."""
    return plan_cut(model, PruneConfig(target=target, **{**DATA_FREE, **knobs}), IMGSZ)


def labelled_batches(n: int = 1, seed: int = 0, size: int = 2) -> list[dict[str, torch.Tensor]]:
    """Return batches of noise with made-up boxes, as a detection run preprocesses them."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {
            "img": torch.rand(size, 3, 64, 64, generator=draw),
            "cls": torch.randint(0, 3, (2 * size, 1), generator=draw).float(),
            "bboxes": torch.rand(2 * size, 4, generator=draw) * 0.4 + 0.3,
            "batch_idx": torch.arange(size).repeat_interleave(2).float(),
        }
        for _ in range(n)
    ]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all tensors."""
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Assert bitwise equality."""
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different


def snapshot(trainer: Any) -> dict[str, Any]:
    """Return everything of a trainer that a cut touches, as copies."""
    model = unwrap_model(trainer.model)
    return {
        "tensors": {**state(model), **{f"ema.{k}": v for k, v in state(trainer.ema.ema).items()}},
        "training": [m.training for m in model.modules()] + [m.training for m in trainer.ema.ema.modules()],
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),
        "params": [id(p) for g in trainer.optimizer.param_groups for p in g["params"]],
        "scheduler": copy.deepcopy(trainer.scheduler.state_dict()),
        "stopper": dict(trainer.stopper.__dict__),
        "fitness": (trainer.best_fitness, trainer.fitness, trainer.epoch, dict(trainer.metrics)),
        "yaml": (copy.deepcopy(model.yaml), copy.deepcopy(trainer.ema.ema.yaml)),
        "rng": torch.get_rng_state(),
        "last": trainer.last.read_bytes(),
        "best": trainer.best.read_bytes(),
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif torch.is_tensor(a):
        assert torch.equal(a, b)
    elif not callable(a):
        assert a == b


def weights_of(**seconds: float) -> tuple[float, ...]:
    """Return the weights of a latency model in which nothing else takes time."""
    assert {*seconds} <= {*FEATURES}
    return tuple(seconds.get(name, 0.0) for name in FEATURES)


def per_value(graph: ChannelGraph, *, fixed: float = 0.0, multiple: int = 8) -> LatencyModel:
    """Return the latencies of a machine on which a network takes as long as it makes values, and so long anyhow."""
    model = LatencyModel(dense=0.0, weights=weights_of(made=1e-8, fixed=fixed), multiple=multiple)
    return replace(model, dense=CostModel(graph, model).seconds())
