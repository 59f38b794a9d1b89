"""Where a run is: there and back through plain data."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields

import pytest
from fuzz import PLAIN
from hypothesis import given
from hypothesis import strategies as st

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import MACS
from yolo_prune.cost.budget import Goal
from yolo_prune.errors import CheckpointError
from yolo_prune.report.records import CutRecord, QuantizationRecord, Report, Stage
from yolo_prune.training.guard import Guard
from yolo_prune.training.progress import Progress
from yolo_prune.training.schedule import ScheduledCut


def a_cut(epoch: int) -> CutRecord:
    return CutRecord(epoch, 10, 10, 10, 0.5, None, "hash", {}, 1.0)


@pytest.fixture
def progress() -> Progress:
    config = PruneConfig(target=0.5, max_drop=0.01)
    report = Report([64, 64], Stage(macs=100), config.to_dict(), cuts=[a_cut(3)], start="best.pt")
    return Progress(
        config,
        report,
        epochs=20,
        goal=Goal({MACS: (100.0, 50.0)}),
        dense_units={"model.0.conv#0": 16},
        schedule=[ScheduledCut(3, 0.5), ScheduledCut(6, 1.0)],
        quantize_epoch=15,
        guard=Guard(0.01, 0.6),
        deadline=6,
    )


def test_it_comes_back_from_json(progress: Progress) -> None:
    again = Progress.from_dict(json.loads(json.dumps(progress.to_dict())))
    assert again.to_dict() == progress.to_dict()
    assert again.schedule == progress.schedule and again.guard == progress.guard


def test_what_is_still_to_come(progress: Progress) -> None:
    assert progress.is_active and progress.pending == [ScheduledCut(6, 1.0)]
    assert progress.quantizes and progress.float_epochs == 15
    progress.report.cuts.append(a_cut(6))
    progress.report.quantization = QuantizationRecord(15, 0.5, 0.5, None, 1.0)
    assert not progress.pending and not progress.quantizes and progress.float_epochs == 20


def test_every_change_counts_once_also_when_it_is_taken_back(progress: Progress) -> None:
    """The exact state is a file per epoch and change, and must not be that of another network."""
    assert progress.guard
    seen = [progress.changes]
    progress.report.cuts.pop()
    progress.guard.reject(0.5, 3, 10, 0.1, 4)
    seen.append(progress.changes)
    progress.report.cuts.append(a_cut(4))
    seen.append(progress.changes)
    progress.report.quantization = QuantizationRecord(15, 0.5, 0.5, None, 1.0)
    seen.append(progress.changes)
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    "broken", [{"report": {"cuts": [{"epoch": 1}]}}, {"schedule": [[1]]}, {"guard": {"max": 1}}, {"epochs": "many"}]
)
def test_what_an_interrupted_run_noted_is_checked(progress: Progress, broken: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="what the interrupted run noted in its checkpoint cannot be read"):
        Progress.from_dict({**progress.to_dict(), **broken})
    missing = progress.to_dict()
    del missing["deadline"]
    with pytest.raises(CheckpointError, match="KeyError: 'deadline'"):
        Progress.from_dict(missing)


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Progress)]), PLAIN))
def test_any_note_gives_a_progress_or_a_checkpoint_error(broken: dict[str, object]) -> None:
    report = Report([64, 64], Stage(), {})
    with suppress(CheckpointError):
        assert Progress.from_dict({**Progress(PruneConfig(), report, 20).to_dict(), **broken}).to_dict()
