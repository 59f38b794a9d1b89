from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nets import Chain, assert_same_tensors, state
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import C2f, Conv
from ultralytics.nn.tasks import DetectionModel

from yolo_prune.config.settings import PruneConfig
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.importance.objective import calibrating
from yolo_prune.importance.scores import importance_scores
from yolo_prune.importance.statistics import layer_statistics
from yolo_prune.planning.allocation import PlanRequest, make_plan, plan_of
from yolo_prune.planning.calibration import HELD_OUT, CalibrationData
from yolo_prune.planning.planner import plan_cut
from yolo_prune.planning.ranking import ByScore
from yolo_prune.planning.sensitivity import HeldOutLoss, Measurement, Sensitivity, scan
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import cut

IMGSZ = 64
BY_L2 = {"importance": "l2", "target": 0.4, "ignored_layers": ("model.5.*",)}


class Imitator(Chain):
    """A network whose loss is its distance from what it is told to make."""

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[torch.Tensor, None]:
        return (self(batch["img"]) - batch["made"]).square().sum() + self.draw(), None

    def draw(self) -> torch.Tensor:
        return torch.zeros(())


class Guesser(Imitator):
    """One that draws at random while it computes its loss, as RT-DETR does."""

    def draw(self) -> torch.Tensor:
        return torch.rand(())


def imitation(kind: type[Imitator] = Imitator) -> tuple[Imitator, list[dict[str, Any]]]:
    """Return a network with four batches of two images, on which its loss is 0."""
    torch.manual_seed(0)
    model = kind(16, C2f(16, 32, 1), Conv(32, 2), Conv(2, 16, 3)).train()
    return model, taught(model)


def taught(model: Imitator) -> list[dict[str, Any]]:
    """Return batches that ask a network for what it makes, so that any other network has a higher loss."""
    images = [torch.rand(2, 3, IMGSZ, IMGSZ) for _ in range(4)]
    with calibrating(model), torch.no_grad():
        return [{"img": image, "made": model(image)} for image in images]


def detection() -> tuple[DetectionModel, list[dict[str, Any]]]:
    """Return a small detector with three batches of two labelled images."""
    torch.manual_seed(0)
    rows = [[16, 3, 4], [32, 3, 2], [32, 3, 1]]
    yaml = {"nc": 3, "backbone": [[-1, 1, "Conv", row] for row in rows], "head": [[[1, 2], 1, "Detect", ["nc"]]]}
    model = DetectionModel(yaml, verbose=False)
    model.args = get_cfg()
    return model, [
        {
            "img": torch.rand(2, 3, IMGSZ, IMGSZ),
            "cls": torch.randint(3, (4, 1)).float(),
            "bboxes": torch.rand(4, 4) * 0.4 + 0.3,
            "batch_idx": torch.tensor([0.0, 0, 1, 1]),
        }
        for _ in range(3)
    ]


def traced(model: nn.Module) -> ChannelGraph:
    """Return the channel groups, with the last layer of an imitator locked."""
    return trace(model, IMGSZ, PruneConfig(**BY_L2).is_ignored)


def by_l2(model: nn.Module, graph: ChannelGraph) -> ByScore:
    return ByScore(graph, importance_scores(model, graph, "l2"))


def scanned(model: Imitator, batches: list[dict[str, Any]], **options: Any) -> Sensitivity:
    graph = traced(model)
    return scan(model, graph, lambda: by_l2(model, graph), batches[:2], batches[2:], **options)


def test_a_layer_of_dead_channels_loses_nothing_and_is_the_most_tolerant() -> None:
    model, _ = imitation()
    norm = model.model[1].m[0].cv2.bn
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)
    found = scanned(model, taught(model))
    hurts = {row.layer: found.tolerance(row.bundle, 0.75) for row in found.rows}
    dead = hurts.pop("model.1.m.0.cv2.conv"), hurts.pop("model.1.m.0.cv1.conv")  # only the dead read the second
    assert max(dead) < 1e-9 < 1e-5 < min(hurts.values())


def test_a_row_tells_the_loss_of_the_network_that_is_cut_there_alone() -> None:
    model, batches = imitation()
    found, graph = scanned(model, batches), traced(model)
    row = next(r for r in found.rows if r.layer == "model.1.cv1.conv" and r.ratio == 0.5)
    kept = [b.steps // 2 if i == row.bundle else b.steps for i, b in enumerate(graph.bundles)]
    plan = plan_of(graph, kept, by_l2(model, graph).order())
    network = deepcopy(model)
    dense, images = layer_statistics(network, batches[:2]), [batch["img"] for batch in batches[:2]]
    reconstruct(cut(plan, [network]), network, plan, dense, images, weights=False, norms=True)
    with calibrating(network), torch.no_grad():
        losses = [float(network.loss(batch)[0]) / 2 for batch in batches[2:]]
    assert row.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.dense_loss == 0 and row.increase == row.loss > 0
    assert row.macs_saved == 1 - plan.macs["after"] / plan.macs["before"]


def test_a_scan_leaves_the_network_and_the_random_state_as_they_were() -> None:
    model, batches = imitation(Guesser)
    before, flags, drawn = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    scanned(model, batches)
    assert_same_tensors(before, state(model))
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_every_free_layer_is_measured_and_one_of_two_channels_once() -> None:
    model, batches = imitation()
    found = scanned(model, batches)
    free = [i for i, bundle in enumerate(traced(model).bundles) if not bundle.locked]
    ratios = {b: [(row.ratio, row.share) for row in found.rows if row.bundle == b] for b in free}
    narrow = next(row.bundle for row in found.rows if row.layer == "model.2.conv")
    assert ratios.pop(narrow) == [(0.25, 0.5)]
    assert set(map(tuple, ratios.values())) == {((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))}


def test_only_so_many_images_are_looked_at() -> None:
    model, batches = imitation()
    unusable = {"img": torch.full((2, 3, IMGSZ, IMGSZ), torch.nan)}
    few = scanned(model, [batches[0], unusable, batches[2], unusable], images=2, ratios=(0.5,))
    graph = traced(model)
    same = scan(model, graph, lambda: by_l2(model, graph), batches[:1], batches[2:3], ratios=(0.5,))
    assert few == same


def measured(bundle: int, layer: str, *increases: float) -> list[Measurement]:
    ratios = (0.25, 0.5, 0.75)
    return [
        Measurement(bundle, layer, ratio, ratio, 2 + increase, increase, ratio / 10)
        for ratio, increase in zip(ratios, increases, strict=False)
    ]


KNOWN = Sensitivity(
    2.0, (*measured(1, "tough", 0.1, 0.05, 0.3), *measured(4, "tender", 1.0, 2.0, 3.0), *measured(5, "lucky", -0.2))
)


def test_tolerance_is_interpolated_never_falls_and_goes_on_straight() -> None:
    shares = [0, 0.125, 0.25, 0.5, 0.625, 0.75, 1]
    assert [KNOWN.tolerance(1, s) for s in shares] == pytest.approx([0, 0.05, 0.1, 0.1, 0.2, 0.3, 0.5])
    assert [KNOWN.tolerance(5, s) for s in shares] == [0] * 7
    model, batches = imitation()
    found = scanned(model, batches)
    for b in {row.bundle for row in found.rows}:
        assert np.diff([found.tolerance(b, s) for s in np.linspace(0, 1, 41)]).min() >= 0


def test_the_table_names_the_most_sensitive_layer_first() -> None:
    assert KNOWN.table() == (
        "loss grows by  -25%    -50%    -75%    MACs saved\n"
        "tender         +1.000  +2.000  +3.000  7.5%\n"
        "tough          +0.100  +0.050  +0.300  7.5%\n"
        "lucky          -0.200                  2.5%"
    )


def test_json_and_picture_are_written_whole(tmp_path: Path) -> None:
    path = KNOWN.save(tmp_path / "pruning")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert Sensitivity(data["dense_loss"], tuple(Measurement(**row) for row in data["rows"])) == KNOWN
    assert sorted(p.name for p in path.parent.iterdir()) == ["sensitivity.json", "sensitivity.png"]
    height, width, _ = cv2.imread(str(path.with_suffix(".png"))).shape
    assert height > 100 and width > 600


def test_a_judge_is_as_strict_the_second_time() -> None:
    model, batches = imitation(Guesser)
    graph = traced(model)
    judge = HeldOutLoss(model, batches[:2], batches[2:])
    plan = make_plan(graph, by_l2(model, graph), PlanRequest({"macs": CostModel(graph).macs() * 0.5}))
    dense = judge.loss()
    cut_with_norms, solved = judge.loss(plan, weights=False), judge.loss(plan)
    assert dense < solved < cut_with_norms
    assert (judge.loss(), judge.loss(plan, weights=False), judge.loss(plan)) == (dense, cut_with_norms, solved)


def test_a_loss_that_is_not_a_number_is_the_worst() -> None:
    model, batches = imitation()
    broken = {"img": batches[2]["img"], "made": batches[2]["made"] * torch.nan}
    assert HeldOutLoss(model, batches[:2], [broken]).loss() == np.inf


@pytest.mark.slow
def test_a_plan_by_sensitivity_lands_on_the_target_and_spares_the_sensitive() -> None:
    model, batches = detection()
    graph = traced(model)
    plan = plan_cut(model, PruneConfig(allocation="sensitivity", **BY_L2), IMGSZ, CalibrationData(model, batches))
    assert 0.58 <= plan.macs["after"] / plan.macs["before"] <= 0.6
    found = scan(model, graph, lambda: by_l2(model, graph), batches[:2], batches[2:])
    target = {"macs": CostModel(graph).macs() * 0.6}
    assert plan == make_plan(
        graph, by_l2(model, graph), PlanRequest(target, allocation="tolerance", tolerance=found.tolerance)
    )


@pytest.mark.parametrize("allocation", HELD_OUT)
def test_half_of_the_images_is_held_back_or_the_way_out_is_told(allocation: str) -> None:
    model, batches = imitation()
    config = PruneConfig(allocation=allocation, **BY_L2)
    assert CalibrationData(model, batches[:3]).halves() == (batches[:2], batches[2:3])
    with pytest.raises(ConfigError, match="give data"):
        plan_cut(model, config, IMGSZ)
    with pytest.raises(ConfigError, match=r"^calibration: 2 images make one batch.* raise calibration above 2"):
        plan_cut(model, config, IMGSZ, CalibrationData(model, batches[:1]))
