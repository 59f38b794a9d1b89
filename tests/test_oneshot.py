from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import IMGSZ, assert_same_tensors, build, make, narrow_yaml, per_value, state, tiny_yaml
from task_data import as_task
from ultralytics import YOLO

from yolo_prune import PruneConfig, oneshot, prune_model
from yolo_prune.cli import main as cli
from yolo_prune.config.targets import QUANTITIES, in_units
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import ConfigError, TargetError, UnsupportedError
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint
from yolo_prune.plan import PrunePlan
from yolo_prune.planning import planner
from yolo_prune.planning.verification import outputs


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
    yolo = YOLO(tiny_yaml(own_folder))
    result = prune_model(yolo, PruneConfig(target=0.5), imgsz=IMGSZ, importance="l1")
    yolo.save("slim.pt")
    again = YOLO("slim.pt")
    assert sum(p.numel() for p in again.model.parameters()) == result.plan.params["after"]


@pytest.mark.parametrize(
    "how", [lambda yolo: prune_model(yolo, 0.5, imgsz=IMGSZ), lambda yolo: make(yolo.model).apply(yolo)]
)
def test_after_a_cut_predictions_are_those_of_the_cut_network(how: Callable[[YOLO], Any], own_folder: Path) -> None:
    def predicting() -> int:
        yolo.predict(np.zeros((IMGSZ, IMGSZ, 3), np.uint8), imgsz=IMGSZ, verbose=False)
        network = yolo.predictor.model.backend.model
        return sum(p.numel() for p in network.parameters()) + sum(b.numel() for b in network.buffers())

    yolo = YOLO(tiny_yaml(own_folder))
    before = predicting()
    how(yolo)
    assert predicting() < 0.8 * before


def test_what_fails_after_a_cut_takes_it_back(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("yolo11n")
    before, yaml = state(model), model.yaml
    with pytest.raises(TargetError, match="weights are to be zero"):
        prune_model(model, "30%, 60% sparsity", imgsz=IMGSZ, layer_limits={"*": 0.5})
    assert_same_tensors(before, state(model))
    monkeypatch.setattr(oneshot, "marked", lambda *_: (_ for _ in ()).throw(UnsupportedError("no")))
    plan = make(model)
    with pytest.raises(UnsupportedError):
        plan.apply(model)
    assert_same_tensors(before, state(model))
    assert model.yaml is yaml


def test_an_image_size_off_the_stride_is_told_with_the_next_one() -> None:
    with pytest.raises(ConfigError, match=r"imgsz=100, 96: .* multiples of 32; give 128, 96"):
        prune_model(build("yolov8n"), 0.3, imgsz=(100, 96))


def test_wrong_knobs_and_targets_are_refused_before_anything_changes() -> None:
    model = build("yolov8n")
    before = sum(p.numel() for p in model.parameters())
    with pytest.raises(ConfigError, match="did you mean round_to"):
        prune_model(model, {"target": 0.5, "roundto": 8})
    with pytest.raises(
        ConfigError, match=r"steps: no option of a cut without training and data\. Valid: importance, allocation"
    ):
        prune_model(model, 0.5, steps=3)
    with pytest.raises(TargetError, match="is the least that can be reached"):
        prune_model(model, 0.99)
    assert sum(p.numel() for p in model.parameters()) == before


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_a_model_is_pruned_on_data_without_training(own_folder: Path, tiny_data: Path, task: str) -> None:
    suffix = {"detect": "", "segment": "-seg", "classify": "-cls"}[task]
    data = tiny_data if task == "detect" else as_task(tiny_data, task, own_folder / "data")
    yolo = YOLO(narrow_yaml(f"yolov8n{suffix}", own_folder))
    short = {"data": str(data), "imgsz": 64, "batch": 4, "workers": 0, "project": str(own_folder / "runs")}
    yolo.train(**short, epochs=1, plots=False)
    result = prune_model(yolo, 0.3, **short, calibration=8, export=("torchscript",), benchmark=False, verbose=False)
    assert result.save_dir == own_folder / "runs" / "prune" and result.report is not None
    written = json.loads((result.save_dir / "pruning" / "report.json").read_text())
    assert 0.68 <= written["final"]["macs"] / written["dense"]["macs"] <= 0.7
    assert written["final"]["fitness"] == pytest.approx(written["cuts"][0]["fitness_cut"], abs=0.02)  # but for FP16
    assert written["exports"][0]["ok"] and written["guard"] is None
    assert (written["dense"]["finished"], written["dense"]["epochs"]) == (True, 0)  # nothing is trained
    assert PrunePlan.load(result.save_dir / "pruning" / "plan-1.json") == result.plan
    assert (result.save_dir / "weights" / "dense.pt").is_file()
    slim = YOLO(result.save_dir / "weights" / "best.pt")
    params = sum(p.numel() for p in slim.model.parameters())
    assert params == written["final"]["params"] == sum(p.numel() for p in yolo.model.parameters())
    x = torch.rand(1, 3, 64, 64)
    a, b = (outputs(network.float().eval(), x) for network in (yolo.model, slim.model))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.slow
def test_the_command_line_prunes_without_training(own_folder: Path, tiny_data: Path) -> None:
    YOLO(tiny_yaml(own_folder)).save("start.pt")
    run = ["prune", "model=start.pt", f"data={tiny_data}", "prune=0.3", "prune_calibration=8", "imgsz=64", "workers=0"]
    run += ["prune_benchmark=False"]
    assert cli.main([*run, f"project={own_folder / 'runs'}", "batch=4"]) == 0
    written = json.loads((own_folder / "runs" / "prune" / "pruning" / "report.json").read_text())
    assert written["config"]["calibration"] == 8 and written["final"]["macs"] <= 0.7 * written["dense"]["macs"]


@pytest.mark.slow
def test_the_command_line_measures_which_layers_are_sensitive(
    own_folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    YOLO(tiny_yaml(own_folder)).save("start.pt")
    run = ["sensitivity", "model=start.pt", f"data={tiny_data}", "calibration=4", "imgsz=64", "workers=0", "batch=2"]
    assert cli.main([*run, f"project={own_folder / 'runs'}"]) == 0
    folder = own_folder / "runs" / "sensitivity"
    rows = json.loads((folder / "sensitivity.json").read_text())["rows"]
    assert {row["layer"] for row in rows} >= {"model.0.conv", "model.7.cv2.0.0.conv"}
    assert (folder / "sensitivity.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "model.0.conv" in printed and str(folder / "sensitivity.png") in printed


def test_a_dry_run_tells_what_would_be_cut_and_changes_nothing(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    YOLO("yolov8n.yaml").save(own_folder / "dense.pt")
    before = (own_folder / "dense.pt").read_bytes()
    assert (
        cli.main(["plan", "model=dense.pt", "prune=40% params, 30%", "imgsz=64", "prune_ignored_layers=model.1.*"]) == 0
    )
    printed = capsys.readouterr().out
    assert "model.5.conv" in printed and "model.1.conv: kept on request" in printed
    assert "predicts the class scores" in printed
    change = {
        unit: float(percent)
        for unit, percent in re.findall(r"-> [\d.]+ ?[kMG]? ?(MACs|params|B) \((-[\d.]+)%\)", printed)
    }
    assert change["MACs"] <= -30 and change["params"] <= -40 and change["B"] < -30
    assert (own_folder / "dense.pt").read_bytes() == before
    assert [path.name for path in own_folder.iterdir()] == ["dense.pt"]


def test_a_dry_run_tells_how_many_weights_would_be_zero(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    YOLO(tiny_yaml(own_folder)).save("dense.pt")
    before = Path("dense.pt").read_bytes()
    assert cli.main(["plan", "model=dense.pt", "prune=60% sparsity", f"imgsz={IMGSZ}"]) == 0
    assert "zeros 0.0% -> 60.0% of 335k weights, in 28 layers" in capsys.readouterr().out
    assert Path("dense.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("target", "timed", "quantities"),
    [
        ("0.5", False, (*QUANTITIES[:-1], "ram")),
        ("0.5", True, (*QUANTITIES, "ram")),
        ("30% latency", False, (*QUANTITIES, "ram")),
        ("30% ram:8", False, (*QUANTITIES[:-1], "ram:8")),
    ],
)
def test_a_dry_run_reads_the_network_once_and_tells_what_the_cut_comes_to(
    target: str, timed: bool, quantities: tuple[str, ...], own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    for module in (oneshot, planner):
        monkeypatch.setattr(module, "trace", lambda *of, **how: traced.append(of) or trace(*of, **how))
    monkeypatch.setattr(oneshot, "latency_of", lambda network, graph, *_: per_value(graph))
    model, config = YOLO(tiny_yaml(own_folder)), PruneConfig(target=target, **oneshot.DATA_FREE)
    told = oneshot.dry_run(model, config, imgsz=IMGSZ, timed=timed).splitlines()[-len(quantities) :]
    assert len(traced) == 1

    dense = trace(model.model, IMGSZ)
    prune_model(model, config, imgsz=IMGSZ)
    table = per_value(dense)
    costs = [CostModel(graph, table) for graph in (dense, trace(model.model, IMGSZ))]
    for line, quantity in zip(told, quantities, strict=True):
        before, after = (in_units(quantity, cost.amount(quantity)) for cost in costs)
        assert line.startswith(f"{before} -> {after} (")
