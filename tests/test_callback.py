"""The hooks, driven by hand with a trainer that does nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nets import tiny_yaml
from ultralytics import YOLO
from ultralytics.utils.callbacks import default_callbacks

from yolo_prune import PruneCallback
from yolo_prune.training import session, setup


class FakeSession:
    """Notes what it is asked to do."""

    calls: list[str] = []  # noqa: RUF012  # one list for all, emptied by the fixture

    def __init__(self, trainer: Any, config: Any, prepared: setup.Prepared) -> None:
        self.calls.append("start")

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    FakeSession.calls = []
    monkeypatch.setattr(session, "Session", FakeSession)
    monkeypatch.setattr(setup, "prepare", lambda *_: FakeSession.calls.append("prepare") or setup.Prepared())
    return FakeSession.calls


def test_each_event_is_one_step_of_the_session(calls: list[str]) -> None:
    events = PruneCallback(0.5).events
    for function in events.values():
        function(SimpleNamespace(callbacks={event: [function] for event, function in events.items()}))
    assert calls == ["prepare", "start", "before_epoch", "after_batch", "after_epoch", "finish", "close"]


def test_events_without_a_session_do_nothing(calls: list[str]) -> None:
    prune = PruneCallback(0.5)
    for event in ("on_train_epoch_start", "on_fit_epoch_end", "on_train_end", "teardown"):
        prune.events[event](SimpleNamespace())
    assert calls == []


def test_every_event_is_one_of_ultralytics() -> None:
    assert PruneCallback(0.5).events.keys() <= default_callbacks.keys()


def test_attaching_registers_every_event_and_returns_the_callback() -> None:
    yolo = YOLO("yolov8n.yaml")
    prune = PruneCallback(0.5)
    assert prune.attach(yolo) is prune
    assert all(function in yolo.callbacks[event] for event, function in prune.events.items())


def test_registering_the_events_by_hand_is_the_same_as_attaching(
    own_folder: Path, tiny_data: Path, calls: list[str]
) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    for event, function in PruneCallback(0.5).events.items():
        yolo.add_callback(event, function)
    yolo.train(data=tiny_data, epochs=1, imgsz=32, batch=4, plots=False, project=own_folder)
    once = [call for call in calls if call != "after_batch"]
    assert once == ["prepare", "start", "before_epoch", "after_epoch", "after_epoch", "finish", "close"]
