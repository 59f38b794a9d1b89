"""Whole runs with what helps a network to recover: the guard, learning rates, rewinding, sparsity, gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from nets import state, tiny_yaml
from trainings import report_of, soon
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune import PruneCallback
from yolo_prune.host.distillation import is_distilled, student_of
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.training import steps

pytestmark = pytest.mark.slow


def train(own_folder: Path, data: Path, prune: PruneCallback, *watch: tuple[str, Any], **arguments: Any) -> Any:
    """Train the tiny model, watched after the callback of ours, and return the trainer."""
    yolo = YOLO(tiny_yaml(own_folder))
    prune.attach(yolo)
    for event, function in watch:
        yolo.add_callback(event, function)
    return trainings.train(own_folder, data, yolo, **{"nbs": 4, **arguments})


def pretend(monkeypatch: pytest.MonkeyPatch, holds: float) -> None:
    """Let a network reach a fitness of 0.5 as long as it has this share of its parameters, and else of 0.3."""
    dense: list[int] = []

    def validate(trainer: Any) -> tuple[dict[str, float], float]:
        params = sum(p.numel() for p in student_of(trainer.model).parameters())
        dense.append(params)
        fitness = 0.5 if params >= holds * dense[0] else 0.3
        trainer.best_fitness = max(trainer.best_fitness or 0.0, fitness)
        return {**trainer.metrics}, fitness

    monkeypatch.setattr(BaseTrainer, "validate", validate)
    monkeypatch.setattr(steps, "validate", validate)


@pytest.mark.parametrize(
    ("holds", "failures", "distill"), [(1.0, 3, False), (0.7, 1, False), (1.0, 3, True), (0.7, 1, True)]
)
def test_a_guarded_run_ends_with_a_model_that_holds(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, holds: float, failures: int, distill: bool
) -> None:
    pretend(monkeypatch, holds)
    prune = soon(schedule="one-shot", start=0.1, max_drop=0.01, distill=distill)
    learns: list[bool] = []
    names_teacher: list[bool] = []
    watch = (
        ("on_train_epoch_end", lambda t: learns.append(is_distilled(t.model))),
        ("on_train_epoch_end", lambda t: names_teacher.append(t.args.distill_model is not None)),
    )
    trainer = train(own_folder, tiny_data, prune, *watch, epochs=16)
    report = report_of(trainer)
    params = sum(p.numel() for p in load_checkpoint(trainer.best)[0].parameters())
    assert params == report["final"]["params"] == sum(p.numel() for p in student_of(trainer.ema.ema).parameters())
    assert any(learns) == distill and learns == names_teacher
    assert learns[-1] == (distill and bool(report["cuts"])) and learns[0] is False
    assert [round(f["way"], 3) for f in report["guard"]["failures"]] == [1.0, 0.5, 0.25][:failures]
    if holds == 1.0:
        assert params == report["dense"]["params"] and report["cuts"] == []
    else:
        assert holds * report["dense"]["params"] <= params < report["dense"]["params"]
        assert report["guard"]["held"] == 0.5 and len(report["cuts"]) == 1


def test_a_cut_that_does_not_hold_at_the_end_of_the_run_is_not_handed_over(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 1.0)
    trainer = train(own_folder, tiny_data, soon(schedule="one-shot", start=0.75, max_drop=0.01))
    assert report_of(trainer)["final"]["params"] == report_of(trainer)["dense"]["params"]
    assert (
        sum(p.numel() for p in load_checkpoint(trainer.best)[0].parameters()) == report_of(trainer)["dense"]["params"]
    )


def test_a_rewound_learning_rate_starts_over_at_the_cut(own_folder: Path, tiny_data: Path) -> None:
    rates: dict[str, list[float]] = {}
    for mode in ("keep", "rewind"):
        prune = soon(schedule="one-shot", start=0.5, lr_after_cut=mode)
        seen = rates.setdefault(mode, [])
        watch = ("on_train_epoch_end", lambda t, seen=seen: seen.append(t.optimizer.param_groups[-1]["lr"]))
        train(own_folder, tiny_data, prune, watch, epochs=8, warmup_epochs=0, optimizer="SGD", lr0=0.01)
    assert rates["keep"][:4] == rates["rewind"][:4]
    assert rates["rewind"][4] == pytest.approx(rates["keep"][0]) and rates["rewind"][5] == pytest.approx(
        rates["keep"][2]
    )


def test_rewinding_brings_the_early_weights_back_at_each_cut(own_folder: Path, tiny_data: Path) -> None:
    early: dict[str, torch.Tensor] = {}
    after: list[dict[str, torch.Tensor]] = []

    def look(trainer: Any) -> None:
        if trainer.epoch == 0:
            early.update(state(unwrap_model(trainer.model)))
        elif trainer.epoch in (1, 2):
            after.append(state(unwrap_model(trainer.model)))
            assert not trainer.optimizer.state

    trainer = train(own_folder, tiny_data, soon(rewind=0.0), ("on_train_epoch_start", look))
    kept = {n: json.loads((trainer.save_dir / "pruning" / f"plan-{n}.json").read_text())["layers"] for n in (1, 2)}
    left = early["model.0.conv.weight"]
    for n, weights in enumerate(after, 1):
        if "model.0.conv" in kept[n]:
            left = left[kept[n]["model.0.conv"]["out"]]
        assert torch.equal(weights["model.0.conv.weight"], left)


def test_a_penalty_acts_until_the_first_cut(own_folder: Path, tiny_data: Path) -> None:
    hooks: dict[str, list[int]] = {}
    norms: dict[str, list[float]] = {}

    def look(trainer: Any) -> None:
        hooks[kind].append(len(trainer.optimizer._optimizer_step_pre_hooks))
        norms[kind].append(float(unwrap_model(trainer.model).model[4].cv2.bn.weight.detach().norm()))

    for kind in ("none", "bn_scale", "group_lasso"):
        hooks[kind], norms[kind] = [], []
        strength = {} if kind == "none" else {"sparsity_strength": 0.1}
        prune = soon(schedule="one-shot", start=0.5, sparsity=kind, **strength)
        train(own_folder, tiny_data, prune, ("on_train_epoch_end", look), optimizer="SGD", lr0=0.1, warmup_epochs=0)
    assert hooks.pop("none") == [0, 0, 0, 0] and all(seen == [1, 1, 0, 0] for seen in hooks.values())
    without = norms.pop("none")[1]
    assert all(norm[1] < without for norm in norms.values())


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_gradients_of_the_epoch_before_a_cut_are_collected_for_free(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, importance: str
) -> None:
    taken: list[int] = []
    stock = steps.plan_traced

    def plan_traced(model: Any, *asked: Any) -> Any:
        (data,) = (of for of in asked if isinstance(of, CalibrationData))
        assert data.collected
        taken.append(data.collected.steps)
        assert data.gradients is data.collected
        assert set(data.collected.first) <= set(model.parameters())
        return stock(model, *asked)

    monkeypatch.setattr(steps, "plan_traced", plan_traced)
    trainer = train(own_folder, tiny_data, soon(importance=importance), warmup_epochs=0)
    assert taken == [2, 2]  # eight images in batches of four
    assert report_of(trainer)["final"]["macs"] <= 0.5 * report_of(trainer)["dense"]["macs"]
