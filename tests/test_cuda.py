"""What only a GPU can show, skipped where there is none; the other tests run on it too where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import narrow_yaml, tiny_yaml
from test_state import assert_same_end, interrupted
from trainings import Run, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

from yolo_prune import PruneCallback, prune_model
from yolo_prune.config.choices import DATA_FREE
from yolo_prune.config.settings import PruneConfig
from yolo_prune.deploy.runtimes import described, torch_runner
from yolo_prune.device.stopwatch import alternating
from yolo_prune.planning.planner import plan_cut

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")


def test_a_run_with_amp_cuts_recovers_and_exports(run: Run) -> None:
    scales, devices = set(), set()

    def look(trainer: Any) -> None:
        scales.add(trainer.scaler.get_scale())
        devices.update(p.device.type for p in trainer.model.parameters())
        devices.update(p.device.type for p in trainer.ema.ema.parameters())

    yolo = YOLO(narrow_yaml("yolov8n", Path.cwd()))
    yolo.add_callback("on_train_batch_end", look)
    trainer = run(yolo, soon(importance="taylor", export=("onnx",)), amp=True, device=0)
    report = report_of(trainer)
    assert trainer.amp and max(scales) > 1 and devices == {"cuda"}
    assert len(report["cuts"]) == 2 and 0.45 <= report["final"]["macs"] / report["dense"]["macs"] <= 0.5
    assert report["exports"][0]["ok"]
    assert all(torch.isfinite(v).all() for v in load_checkpoint(trainer.best)[0].state_dict().values())


def test_a_killed_run_comes_back_to_the_same_plans(run: Run, own_folder: Path) -> None:
    how: dict[str, Any] = {"amp": True, "device": 0, "optimizer": "AdamW"}
    undisturbed = run(prune=soon(), name="undisturbed", **how)
    model = tiny_yaml(own_folder)
    left = interrupted(run, own_folder, "on_train_epoch_end", 2, soon(), model=model, **how)
    assert_same_end(undisturbed.save_dir, run(left, PruneCallback(None), resume=True).save_dir)


def test_one_shot_on_the_gpu(own_folder: Path, run: Run, tiny_data: Path) -> None:
    dense = run(device=0).best
    result = prune_model(YOLO(dense), 0.3, data=tiny_data, device=0, workers=0, calibration=4, project=str(own_folder))
    assert result.report is not None and result.report.final.macs <= 0.7 * result.report.dense.macs


def test_weights_on_a_gpu_are_judged_as_on_a_cpu() -> None:
    torch.manual_seed(0)
    network = DetectionModel("yolov8n.yaml", verbose=False)
    plans = [plan_cut(network.to(device), PruneConfig(target=0.5, **DATA_FREE), 64) for device in ("cpu", "cuda")]
    assert plans[0].sha256 == plans[1].sha256


def test_the_pytorch_runtime_is_timed_on_the_gpu() -> None:
    assert described("pytorch", 1)["device"] == torch.cuda.get_device_name()
    small, large = (torch.nn.Conv2d(64, n, 3, padding=1).eval() for n in (64, 8192))
    runners = [torch_runner(layer, (1, 64, 256, 256), 1) for layer in (small, large)]
    seconds = alternating(runners, rounds=5).min(axis=1)
    assert 0 < seconds[0] < seconds[1]
