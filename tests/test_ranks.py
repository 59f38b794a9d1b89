"""Several processes, one run: two of them, on the CPU, with gloo."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch
from nets import build, tiny_yaml
from torch import nn
from trainings import DEFAULTS, knowing
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback
from yolo_prune.callback import telling_all
from yolo_prune.errors import CutError, PruneError
from yolo_prune.graph.zeros import share_of_zeros, sparse_layers
from yolo_prune.host import ddp as ranks


def two_processes(jobs: list[dict[str, Any]], data: Path, folder: Path) -> list[list[list[Any]]]:
    """Train the jobs in two processes, and return what each of them saw of each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    script = Path(__file__).with_name("ddp_process.py")
    done = subprocess.run(
        [*command, script, json.dumps(jobs), str(data), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "YOLO_AUTOINSTALL": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


AUTO = {"target": "auto", "max_drop": 0.9, "steps": 3, "start": None, "end": None}


@pytest.fixture(scope="module")
def seen(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes saw of several runs: job -> rank -> rows, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("ddp")
    yaml = str(tiny_yaml(folder))
    last = [str(folder / "runs" / name / "weights" / "last.pt") for name in ("lost", "taught")]
    known = str(knowing(folder, tiny_data))
    jobs: list[dict[str, Any]] = [
        *({"name": f"seed-{seed}", "model": yaml, "knobs": DEFAULTS, "arguments": {"seed": seed}} for seed in range(2)),
        {"name": "lost", "model": yaml, "knobs": DEFAULTS, "lost": 2},
        {"name": "lost", "model": last[0], "resume": True},
        {"name": "taught", "model": known, "lost": 2},
        {"name": "taught", "model": last[1], "resume": True},
        {"name": "reduced", "model": yaml, "knobs": {"drop_levels": [4], "keep_classes": ["circle", "square"]}},
        {"name": "guarded", "model": yaml, "knobs": {"max_drop": 0.01}, "arguments": {"epochs": 6}},
        {"name": "family", "model": yaml, "knobs": {"sizes": [0.3, 0.6], "start": 0.1}, "arguments": {"epochs": 6}},
        {"name": "auto", "model": yaml, "knobs": AUTO, "arguments": {"epochs": 6}},
        {"name": "zeros", "model": yaml, "knobs": {"target": "60% sparsity", **DEFAULTS}},
    ]
    by_rank = two_processes(jobs, tiny_data, folder)
    names = [job["name"] + ("-resumed" if job.get("resume") else "") for job in jobs]
    return {"folder": folder} | {name: [rows[i] for rows in by_rank] for i, name in enumerate(names)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_after_each_cut_all_ranks_have_the_same_plan_and_the_same_weights(seen: dict[str, Any], seed: int) -> None:
    first, second = seen[f"seed-{seed}"]
    assert len({plan for _, plan, *_ in first}) == 3  # none, and two cuts
    for one, other in zip(first, second, strict=True):
        assert one[:3] == other[:3]
        if one[0] in (1, 2):  # just cut; buffers are each rank's own between
            assert one == other
    assert {wrapper for _, _, wrapper, *_ in first} == {"CpuParallel"}


@pytest.mark.slow
def test_seeds_make_different_plans(seen: dict[str, Any]) -> None:
    assert len({seen[f"seed-{seed}"][0][-1][1] for seed in range(2)}) == 2


@pytest.mark.slow
def test_a_run_of_several_processes_ends_on_target_and_resumes(seen: dict[str, Any]) -> None:
    for name in ("seed-0", "lost"):
        report = json.loads((seen["folder"] / "runs" / name / "pruning" / "report.json").read_text())
        assert len(report["cuts"]) == 2
        assert report["final"]["macs"] <= 0.5 * report["dense"]["macs"]
    before, after = seen["lost"][0][-1], seen["lost-resumed"][0][0]
    assert before[:3] == after[:3]
    assert [row[:3] for row in seen["lost-resumed"][0]] == [row[:3] for row in seen["lost-resumed"][1]]
    assert seen["lost-resumed"][0][0][1] == seen["seed-0"][0][2][1]


@pytest.mark.slow
def test_all_ranks_learn_from_the_dense_model_and_go_on_so(seen: dict[str, Any]) -> None:
    for one, other in (seen["taught"], seen["taught-resumed"]):
        assert [row[:3] for row in one] == [row[:3] for row in other]
    before, after = seen["taught"][0][-1], seen["taught-resumed"][0][0]
    assert before[:3] == after[:3]
    folder = seen["folder"] / "runs" / "taught"
    report = json.loads((folder / "pruning" / "report.json").read_text())
    assert report["config"]["distill"] is True and len(report["cuts"]) == 2
    with (folder / "results.csv").open(newline="") as lines:
        assert [float(row["train/dis_loss"]) > 0 for row in csv.DictReader(lines)] == [False, True, True, True]


@pytest.mark.slow
def test_levels_and_classes_go_on_all_ranks(seen: dict[str, Any]) -> None:
    first, second = seen["reduced"]
    assert [row[:3] for row in first] == [row[:3] for row in second]
    folder = seen["folder"] / "runs" / "reduced" / "pruning"
    report = json.loads((folder / "report.json").read_text())
    assert report["given"]["levels"] == [4] and report["given"]["classes"] == ["circle", "square"]
    assert report["final"]["macs"] <= 0.5 * report["given"]["amounts"]["macs"]
    assert not list(folder.glob("*.part"))


@pytest.mark.slow
def test_the_guard_decides_for_all_ranks(seen: dict[str, Any]) -> None:
    first, second = seen["guarded"]
    assert [row[:3] for row in first] == [row[:3] for row in second]


@pytest.mark.slow
def test_all_ranks_make_the_same_sizes(seen: dict[str, Any]) -> None:
    for name in ("family", "auto"):
        first, second = seen[name]
        assert [row[:3] for row in first] == [row[:3] for row in second]
    report = json.loads((seen["folder"] / "runs" / "family" / "pruning" / "report.json").read_text())
    assert [size["size"] for size in report["sizes"]] == ["0.3", "0.6"]
    assert all(size["fitness"] is not None and Path(size["checkpoint"]).exists() for size in report["sizes"])


@pytest.mark.slow
def test_all_ranks_hold_the_same_zeros(seen: dict[str, Any]) -> None:
    first, second = seen["zeros"]
    assert [row[:3] for row in first] == [row[:3] for row in second]
    folder = seen["folder"] / "runs" / "zeros"
    report = json.loads((folder / "pruning" / "report.json").read_text())
    asked = report["cuts"][-1]["sparsity"]
    assert 0.6 <= asked < 0.6 + 1e-4
    assert asked <= share_of_zeros(sparse_layers(load_checkpoint(folder / "weights" / "best.pt")[0])) < asked + 1e-4


def test_one_process_asks_nobody() -> None:
    assert ranks.broadcast("value") == "value"
    assert ranks.on_rank_zero(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError), ranks.all_or_none("dividing"):
        1 / 0  # noqa: B018  # what fails is raised as it is
    network = build("yolov8n")
    ranks.synchronize(network)
    assert ranks.wrapped_like(network, network) is network


def test_a_digest_changes_with_any_value() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = ranks.digest(network)
    assert ranks.digest(network) == before
    network[1].running_mean[2] += 1
    assert ranks.digest(network) != before


def test_ranks_that_differ_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "is_distributed", lambda: True)
    monkeypatch.setattr(ranks, "_gathered", lambda value: [value, "other"])
    with pytest.raises(CutError, match="the plan of rank 1 differ"):
        ranks.check_same("plan", "one")
    with pytest.raises(CutError, match="cutting failed on rank 1: other"), ranks.all_or_none("cutting"):
        pass


def test_a_run_on_several_gpus_reaches_our_callbacks_in_every_process() -> None:
    """What travels to the processes by pickle: the trainer's class, and the callbacks."""
    telling = telling_all(DetectionTrainer)
    assert telling_all(DetectionTrainer) is telling and issubclass(telling, DetectionTrainer)
    callback = PruneCallback(0.3)
    again, functions = cloudpickle.loads(cloudpickle.dumps((telling, callback.events)))
    assert issubclass(again, DetectionTrainer)
    assert functions["on_train_end"].__self__.config == callback.config


def test_a_rank_that_was_not_told_says_what_to_do() -> None:
    prune = PruneCallback(0.5)
    trainer: Any = SimpleNamespace(callbacks={event: [function] for event, function in prune.events.items()})
    with pytest.raises(PruneError, match=r"use PruneCallback\(...\)\.attach\(model\)"):
        prune.on_pretrain_routine_end(trainer)


def test_tensors_of_any_type_are_digested() -> None:
    network = nn.Linear(2, 2).to(torch.bfloat16)
    assert len(ranks.digest(network)) == 64
