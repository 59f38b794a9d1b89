from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nets import IMGSZ, build, graph_of

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import read_targets
from yolo_prune.cost.budget import NOTES, Goal, file_bytes
from yolo_prune.cost.model import CostModel
from yolo_prune.graph.trace import trace
from yolo_prune.oneshot import prune_model


def goal(text: str) -> Goal:
    return Goal.of(read_targets(text), CostModel(graph_of("yolov8n")), build("yolov8n"))


def test_shares_and_amounts_become_limits_and_the_way_there_is_straight() -> None:
    cost = CostModel(graph_of("yolov8n"))
    asked = goal("50%, 1M params")
    assert asked.at(1.0) == {"macs": cost.macs() * 0.5, "params": 1e6}
    assert asked.at(0.0) == {"macs": cost.macs(), "params": cost.params()}
    assert asked.at(0.5)["macs"] == pytest.approx(cost.macs() * 0.75)
    assert asked.removed == pytest.approx(1 - 1e6 / cost.params())
    assert Goal.from_dict(asked.to_dict()) == asked


def test_what_holds_already_is_no_goal_and_the_strictest_counts() -> None:
    assert goal("1000 GMACs").amounts == {} and goal("1000 GMACs").removed == 0
    cost = CostModel(graph_of("yolov8n"))
    assert goal("30%, 50%, 40%").at(1.0) == {"macs": pytest.approx(cost.macs() * 0.5)}


def test_a_size_is_that_of_the_file(tmp_path: Path) -> None:
    model = build("yolov8n")
    torch.save({"model": model.half()}, tmp_path / "half.pt")
    size = (tmp_path / "half.pt").stat().st_size
    assert file_bytes(model) == pytest.approx(size, rel=1e-2)
    assert goal("3 MB").at(1.0)["bytes"] == pytest.approx(
        3e6 - NOTES - (size - CostModel(graph_of("yolov8n")).bytes()), rel=1e-2
    )


@pytest.mark.parametrize("target", ["40% params", "2 MB", "1M params, 30%"])
def test_a_model_is_cut_to_targets_in_the_users_units(target: str) -> None:
    model, dense = build("yolov8n"), CostModel(graph_of("yolov8n"))
    prune_model(model, target, imgsz=IMGSZ)
    cost = CostModel(trace(model, IMGSZ))
    for asked in PruneConfig(target=target).targets:
        has = file_bytes(model) if asked.quantity == "bytes" else cost.amount(asked.quantity)
        most = asked.limit(dense.amount(asked.quantity))
        assert has <= most
    assert max(cost.amount(q) / most for q, most in goal(target).at(1.0).items()) > 0.98
