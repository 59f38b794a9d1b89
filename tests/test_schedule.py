from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yolo_prune.config.choices import LEARNING_RATES, SCHEDULES
from yolo_prune.errors import ConfigError
from yolo_prune.training.schedule import ScheduledCut, cuts, learning_rate_epoch, quantization


def plan(epochs: int = 60, **changes: object) -> list[ScheduledCut]:
    knobs = {"removed": 0.5, "start": 0.1, "end": 0.4, "steps": 3, "schedule": "linear"} | changes
    return cuts(epochs=epochs, **knobs)  # type: ignore[arg-type]  # a table of mixed knobs


def test_defaults_cut_at_the_epochs_that_the_docstring_tells() -> None:
    assert [cut.epoch for cut in plan(schedule="cubic")] == [6, 15, 24]
    assert [round(cut.fraction, 2) for cut in plan(schedule="cubic")] == [0.70, 0.96, 1.0]


def test_linear_cuts_go_equal_ways() -> None:
    assert [cut.fraction for cut in plan()] == pytest.approx([1 / 3, 2 / 3, 1])


def test_exponential_cuts_keep_the_same_share_of_what_is_left() -> None:
    left = [1.0, *(1 - 0.5 * cut.fraction for cut in plan(schedule="exponential"))]
    shares = [after / before for before, after in pairwise(left)]
    assert shares == pytest.approx([shares[0]] * 3)
    assert left[-1] == pytest.approx(0.5)


def test_one_shot_cuts_once_at_the_start_whatever_steps_says() -> None:
    assert plan(schedule="one-shot", steps=5) == [ScheduledCut(epoch=6, fraction=1.0)]


def test_a_single_step_cuts_at_the_start() -> None:
    assert plan(steps=1) == [ScheduledCut(epoch=6, fraction=1.0)]


def test_nothing_to_remove_needs_no_cut_even_in_a_run_too_short_for_one() -> None:
    assert plan(epochs=1, removed=0.0) == []


@pytest.mark.parametrize(
    ("epochs", "changes", "numbers"),
    [
        (3, {}, "0, 1, 1"),
        (60, {"start": 0.5, "end": 0.5}, "30, 30, 30"),
        (10, {"start": 0.99, "end": 0.99, "steps": 1}, "10"),
    ],
    ids=["two cuts before one epoch", "no span", "no epoch left"],
)
def test_cuts_that_do_not_fit_the_run_are_refused(epochs: int, changes: dict[str, object], numbers: str) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"do not fit epochs={epochs} (they would fall before epochs {numbers})")
    ):
        plan(epochs, **changes)


@given(
    epochs=st.integers(1, 500),
    removed=st.floats(0.01, 0.99),
    start=st.floats(0, 0.5),
    span=st.floats(0, 0.45),
    steps=st.integers(1, 10),
    schedule=st.sampled_from(SCHEDULES),
)
def test_cuts_go_strictly_forward_and_the_last_one_goes_the_whole_way(
    epochs: int, removed: float, start: float, span: float, steps: int, schedule: str
) -> None:
    try:
        got = plan(epochs, removed=removed, start=start, end=start + span, steps=steps, schedule=schedule)
    except ConfigError:
        assume(False)
    assert all(a.epoch < b.epoch and a.fraction < b.fraction for a, b in pairwise(got))
    assert got[0].epoch >= 0
    assert got[-1].epoch < epochs
    assert got[0].fraction > 0
    assert got[-1].fraction == 1


def test_a_run_turns_to_int8_after_its_last_cut() -> None:
    assert quantization(epochs=60, at=0.7, cuts=plan()) == 42
    assert quantization(epochs=60, at=0.41, cuts=plan()) == 25
    assert quantization(epochs=60, at=0.1, cuts=[]) == 6


@pytest.mark.parametrize(("at", "epoch"), [(0.4, 24), (0.2, 12), (0.999, 60)])
def test_int8_that_does_not_fit_the_run_is_refused(at: float, epoch: int) -> None:
    with pytest.raises(ConfigError, match=f"falls before epoch {epoch} of epochs=60, the last cut before epoch 24"):
        quantization(epochs=60, at=at, cuts=plan())


def test_before_any_cut_and_with_keep_the_learning_rate_follows_the_run() -> None:
    for mode in LEARNING_RATES:
        assert learning_rate_epoch(7, 60, None, mode) == 7
    assert learning_rate_epoch(30, 60, 24, "keep") == 30


def test_a_rewound_learning_rate_runs_through_the_whole_curve_after_the_cut() -> None:
    read = [learning_rate_epoch(epoch, 60, 24, "rewind") for epoch in range(24, 61)]
    assert read[0] == 0 and read[-1] == 60
    assert all(b - a == pytest.approx(60 / 36) for a, b in pairwise(read))
