"""What version 0.1.0 wrote is read: options, a plan, and the record of an interrupted run in its ``model.yaml``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nets import tiny_yaml
from ultralytics.nn.tasks import DetectionModel

from yolo_prune import PruneConfig, PrunePlan
from yolo_prune.graph.layers import named_layers, widths
from yolo_prune.host import checkpoint
from yolo_prune.training.progress import Progress
from yolo_prune.training.schedule import ScheduledCut

FILES = Path(__file__).parent / "files_0_1_0"
MODEL = json.loads((FILES / "model.json").read_text(encoding="utf-8"))


def test_options_are_read_with_those_that_are_gone() -> None:
    text = (FILES / "prune.yaml").read_text(encoding="utf-8")
    assert "bn_recalibration: false" in text
    assert PruneConfig.from_yaml(FILES / "prune.yaml") == PruneConfig(
        target="1.5x", steps=2, runtime="onnx", calibration=64, lr_after_cut="keep", distill=False
    )


def test_a_plan_is_read_and_applied(tmp_path: Path) -> None:
    plan = PrunePlan.load(FILES / "plan-1.json")
    network = DetectionModel(tiny_yaml(tmp_path), nc=3, verbose=False)
    plan.apply(network)
    assert sum(p.numel() for p in network.parameters()) == plan.params["after"]


def test_a_pruned_network_is_built_from_its_record() -> None:
    def get_model(cfg: dict, weights: None, verbose: bool = True) -> torch.nn.Module:
        return DetectionModel(cfg, nc=3, verbose=False)

    assert checkpoint.is_pruned(MODEL) and MODEL["backbone"][0][2].startswith("This network was pruned by yolo_prune")
    layers = dict(named_layers(checkpoint.rebuild(get_model, MODEL, None)))
    for path, sides in MODEL[checkpoint.KEY]["widths"].items():
        now = widths(layers[path])
        assert {side: now[side] for side in sides} == sides


def test_an_interrupted_run_knows_what_it_has_done_and_still_has_to_do() -> None:
    progress = Progress.from_dict(checkpoint.run_record(MODEL) or {})
    assert progress.schedule == [ScheduledCut(1, pytest.approx(0.875)), ScheduledCut(2, 1.0)]
    assert len(progress.report.cuts) == 2 and not progress.pending and progress.config.steps == 2
