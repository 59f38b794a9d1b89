"""``target=auto``: the smallest model within a drop, by steps that grow and shrink."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from hypothesis import given
from hypothesis import strategies as st
from nets import assert_same_tensors, tiny_yaml
from test_recovery import pretend
from trainings import report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback, PruneConfig, prune_model
from yolo_prune.config.targets import LATENCY, MACS
from yolo_prune.errors import CheckpointError, ConfigError
from yolo_prune.report.records import Stage
from yolo_prune.training.guard import FIRST, LAST, SMALLEST, Guard
from yolo_prune.training.schedule import attempt_since, attempts


def searched(limits: Iterable[float]) -> Guard:
    """Return the guard of a search, if so much can go at each of its attempts."""
    guard, fraction = Guard(0.01, 0.5, is_search=True), FIRST
    for epoch, limit in enumerate(limits):
        if fraction is None:
            break
        attempt = (fraction, epoch, 100, 0.5)
        fraction = guard.accept(*attempt) if fraction <= limit else guard.reject(*attempt, epoch + 1)
    return guard


@given(st.floats(0, 0.99))
def test_a_search_ends_with_the_smallest_model_that_held(limit: float) -> None:
    guard = searched([limit] * 100)
    held = [attempt["way"] for attempt in guard.tried]
    assert held == sorted(held) and guard.held == max(held, default=0.0) <= limit
    assert limit < guard.held + 2 * SMALLEST * (1 - guard.held) and guard.following is None
    assert all(failure["way"] > limit for failure in guard.failures)


def test_steps_are_shares_of_the_way_that_is_left_and_halved_where_a_cut_fails() -> None:
    assert [attempt["way"] for attempt in searched([1.0] * 5).tried] == [0.5, 0.75, 0.875, 0.9375, 0.96875]
    assert [attempt["way"] for attempt in searched([0.0] * 9).failures] == [0.5, 0.25, 0.125, 0.0625]
    assert searched([0.0] * 9).held == 0.0


def test_a_size_that_has_failed_is_tried_again_once_others_have_held() -> None:
    guard = searched([0.4, 0.4, 0.9, 0.9])
    assert [attempt["way"] for attempt in guard.failures] == [0.5]
    assert [attempt["way"] for attempt in guard.tried] == [0.25, 0.4375, 0.578125]


def test_steps_grow_where_a_cut_holds_at_once() -> None:
    guard = Guard(0.01, 0.5, is_search=True, held=0.2, step=0.125)
    assert guard.accept(0.3, at_once=True) == pytest.approx(0.3 + 0.25 * 0.7)
    assert guard.accept(0.475) == pytest.approx(0.475 + 0.25 * 0.525)
    assert [guard.accept(0.5, at_once=True) for _ in range(3)] == [0.75] * 3  # no step takes more


def test_a_search_goes_on_at_once_only_with_half_of_the_drop_to_spare() -> None:
    guard = Guard(0.02, 0.5, is_search=True)
    assert guard.holds(0.491) and not guard.is_clear(0.491) and guard.is_clear(0.495) and not guard.is_clear(None)


def test_the_last_attempt_has_the_rest_of_the_run() -> None:
    assert attempts(epochs=100, start=0.0, end=0.6) == (0, 60, 12)
    assert attempts(epochs=2, start=0.0, end=0.6) == (0, 1, 1)
    with pytest.raises(ConfigError, match=r"target=auto with end=0\.6 leaves none of epochs=1 to recover"):
        attempts(epochs=1, start=0.0, end=0.6)


def test_a_long_attempt_begins_with_a_higher_learning_rate() -> None:
    assert [attempt_since(epochs, 6) for epochs in (3, 6, 12, 24)] == [0.5, 0.5, 0.25, 0.125]


def test_auto_has_a_drop_and_chooses_its_cuts() -> None:
    config = PruneConfig.from_cli({"prune": "Auto"})
    assert config.target == "auto" and config.max_drop == 0.01 and config.learning_rate == "cycle"
    assert config == PruneConfig.from_dict(config.to_dict()) == PruneConfig.from_cli(config.to_cli())
    assert [target.quantity for target in config.targets] == [MACS]
    assert PruneConfig(target="auto", runtime="onnx").is_timed and not config.is_timed
    assert PruneConfig(target="auto", latency="latency.json").targets[0].quantity == LATENCY
    assert config.span() == (0.0, 0.6) and config.span(knows_classes=False) == (0.3, 0.7)
    with pytest.raises(ConfigError, match="steps=5 with target=auto, which chooses its cuts; leave it out"):
        PruneConfig(target="auto", steps=5)


def test_a_cut_without_training_finds_no_target(own_folder: Path) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    for options in ({"target": "auto"}, {"target": {"sizes": [0.3, 0.5]}}):
        with pytest.raises(ConfigError, match="needs a training, which recovers and is judged; give one target"):
            prune_model(yolo, imgsz=64, **options)


def search(run_in: Path, data: Path, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """Run a search of the tiny model, which learns its classes first, and return its trainer and report."""
    prune = soon("auto", **{"steps": 3, "start": None, "end": None, **arguments.pop("options", {})})
    trainer = trainings.train(run_in, data, YOLO(tiny_yaml(run_in)), prune, **{"nbs": 4, "epochs": 20, **arguments})
    return trainer, report_of(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("holds", [1.0, 0.6, 0.0])
def test_a_run_ends_with_the_smallest_model_that_held(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, holds: float
) -> None:
    pretend(monkeypatch, holds)
    trainer, report = search(own_folder, tiny_data, options={"start": 0.05, "end": 0.75} if holds == 1.0 else {})
    params = sum(p.numel() for p in load_checkpoint(trainer.best)[0].parameters())
    share = params / report["dense"]["params"]
    assert report["final"]["params"] == params and report["guard"]["is_search"]
    if holds == 1.0:
        assert share == 1.0 and not report["cuts"]
        tried = [(failure["way"], failure["epoch"]) for failure in report["guard"]["failures"]]
        assert tried == [(0.5, 1), (0.25, 4), (0.125, 7), (0.0625, 10), (LAST, 15)]  # which has the rest of the run
        assert not trainer.best.with_name("last.pt").read_bytes().count(b"This network was pruned")
    else:
        assert holds <= share < 1.0
        assert [cut["macs"] for cut in report["cuts"]] == [tried["macs"] for tried in report["guard"]["tried"]]
    for failure in report["guard"]["failures"]:
        macs = {epoch["epoch"]: epoch["macs"] for epoch in report["epochs"]}
        attempt = range(failure["epoch"], failure["until"])
        assert {macs[epoch] for epoch in attempt} == {failure["macs"]} != {macs.get(failure["until"])}
    if holds == 0.0:
        assert report["final"]["macs"] < 0.3 * report["dense"]["macs"] and not report["guard"]["failures"]


@pytest.mark.slow
def test_a_search_that_was_interrupted_ends_as_if_nothing_had_happened(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 0.6)
    yolo, left = YOLO(tiny_yaml(own_folder)), own_folder / "left"

    def keep(trainer: Any) -> None:
        if trainer.epoch in {3, 8, 13}:
            shutil.copytree(trainer.save_dir, left / str(trainer.epoch))

    yolo.add_callback("on_fit_epoch_end", keep)
    prune = soon("auto", steps=3, start=None, end=None)
    at = trainings.train(own_folder, tiny_data, yolo, prune, name="run", nbs=4, epochs=16).save_dir
    whole = ended(at.rename(own_folder / "whole"))
    assert whole[0]["failures"] and len(list(left.iterdir())) == 3
    for state in left.iterdir():
        shutil.rmtree(at, ignore_errors=True)
        state.rename(at)
        again = YOLO(at / "weights" / "last.pt")
        trainings.train(own_folder, tiny_data, again, PruneCallback(None), resume=True)
        guard, plans, weights = ended(at)
        assert (guard, plans) == whole[:2]
        assert_same_tensors(weights, whole[2])


def ended(run: Path) -> tuple[dict[str, Any], list[str], dict[str, torch.Tensor]]:
    """Return what a run leaves: the guard's record, the digests of its plans, and the weights."""
    report = json.loads((run / "pruning" / "report.json").read_text())
    digests = [cut["plan_sha256"] for cut in report["cuts"]]
    return report["guard"], digests, load_checkpoint(run / "weights" / "best.pt")[0].state_dict()


@pytest.mark.slow
def test_the_bar_is_that_of_a_dense_model_that_is_named(
    own_folder: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        first = trainings.train(own_folder, tiny_data, YOLO(tiny_yaml(own_folder)), soon(0.3, max_drop=0.9))
    assert "that is a low bar: the dense model is in the middle of its training (epoch 1)" in caplog.text
    assert report_of(first)["guard"]["finished"] is False
    fitness = report_of(first)["final"]["fitness"]
    _, report = search(own_folder, tiny_data, options={"dense": str(first.best), "max_drop": 0.1}, epochs=6)
    assert report["guard"]["dense"] == pytest.approx(fitness, abs=1e-6) and report["guard"]["finished"]


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 0.25])
def test_the_bar_is_that_of_the_model_that_a_run_starts_from(own_folder: Path, tiny_data: Path, start: float) -> None:
    """It has learned the classes; it is measured before the first epoch, or just before a cut that comes first."""
    learned = trainings.train(own_folder, tiny_data, YOLO(tiny_yaml(own_folder)), epochs=2).best
    report = report_of(trainings.train(own_folder, tiny_data, YOLO(learned), soon(0.3, max_drop=0.9, start=start)))
    assert report["guard"]["finished"]
    assert (report["dense"]["fitness_at_start"] is None) == (start == 0.0)
    assert report["guard"]["dense"] == Stage(**report["dense"]).reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dense", "error", "message"),
    [
        ("nowhere.pt", ConfigError, r"dense=nowhere\.pt: there is no such file"),
        ("text.pt", CheckpointError, r"dense=text\.pt cannot be validated on .*; name a checkpoint of the same task"),
    ],
)
def test_a_dense_model_that_cannot_be_judged_is_refused_before_training(
    own_folder: Path, tiny_data: Path, dense: str, error: type[Exception], message: str
) -> None:
    (own_folder / "text.pt").write_text("no checkpoint")
    with pytest.raises(error, match=message):
        search(own_folder, tiny_data, options={"dense": dense})
