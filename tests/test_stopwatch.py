from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from yolo_prune.device import stopwatch
from yolo_prune.device.stopwatch import BLOCKS, LOOKS, TRIES, Timing, settle, share_of_slowest, typical


def steady(ratio: float, rounds: int = 40) -> np.ndarray:
    """Return the times of two runners on a machine that does nothing else."""
    return np.array([[ratio], [1.0]]) * np.ones(rounds)


def restless(low: float, high: float, rounds: int = 40) -> np.ndarray:
    """Return times whose ratio is one number in the first half of the measurement and another in the second."""
    seconds = np.ones((2, rounds))
    seconds[0, : rounds // 2], seconds[0, rounds // 2 :] = low, high
    return seconds


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let measurements come out as given, one after the other, each with the share that threads got."""

    def let(*tries: tuple[np.ndarray, float | None]) -> list[int]:
        looked: list[int] = []
        waiting = list(tries)

        def alternating(runners: Sequence[Any], rounds: int, between: Callable[[int], None], **_: Any) -> np.ndarray:
            for i in range(rounds):
                between(i)
            return waiting.pop(0)[0]

        def share(threads: int) -> float:
            looked.append(threads)
            return float(waiting[0][1] or 0.0)

        monkeypatch.setattr(stopwatch, "alternating", alternating)
        monkeypatch.setattr(stopwatch, "share_of_slowest", share)
        monkeypatch.setattr(stopwatch.time, "get_clock_info", lambda name: SimpleNamespace(resolution=1e-9))
        return looked

    return let


def test_a_steady_measurement_of_a_machine_of_its_own_is_told_with_its_spread(
    measured: Callable[..., list[int]],
) -> None:
    seconds = steady(1.5)
    seconds[0, :20] = 1.46
    looked = measured((seconds, 0.99))
    timing = settle([], 40, threads=2)
    assert looked == [2] * LOOKS and timing.is_settled
    speedup = timing.speedup(1)
    assert (speedup.low, speedup.value, speedup.high) == pytest.approx((1.46, 1.46, 1.5))
    assert speedup.settled and speedup.share == pytest.approx(0.99)
    assert timing.speedup(0).value == timing.speedup(0).low == timing.speedup(0).high == 1


def test_what_does_not_settle_is_timed_again_until_it_does(measured: Callable[..., list[int]]) -> None:
    measured((restless(1.2, 2.0), 0.99), (steady(2.5), 0.5), (steady(1.3), 0.97))
    assert settle([], 40, threads=2).speedup(1).value == pytest.approx(1.3)


def test_what_never_settles_is_the_range_of_all_that_was_measured(measured: Callable[..., list[int]]) -> None:
    tries = [(restless(1.2, 2.0), 0.5), (steady(2.6), 0.8), (restless(1.1, 1.5), 0.6)]
    assert len(tries) == TRIES
    measured(*tries)
    timing = settle([], 40, threads=2)
    speedup = timing.speedup(1)
    assert not speedup.settled and speedup.value is None
    assert (speedup.low, speedup.high) == pytest.approx((1.1, 2.6))
    assert speedup.share == pytest.approx(0.8)  # the calmest is kept
    assert timing.ratios.shape == (2, TRIES * BLOCKS) and (timing.seconds == tries[1][0]).all()


def test_a_busy_machine_is_found_out_also_where_the_ratio_does_not_spread(
    measured: Callable[..., list[int]],
) -> None:
    measured(*[(steady(2.55), 0.55)] * TRIES)
    speedup = settle([], 40, threads=2).speedup(1)
    assert speedup.is_disturbed and not speedup.settled and speedup.value is None


def test_on_a_gpu_nobody_looks_at_the_processors_and_the_spread_decides(measured: Callable[..., list[int]]) -> None:
    assert not measured((steady(1.5), None))
    calm = settle([], 40, threads=None).speedup(1)
    assert calm.settled and calm.share is None
    looked = measured(*[(restless(1.0, 1.5), None)] * TRIES)
    assert not settle([], 40, threads=None).speedup(1).settled and not looked


def test_nobody_looks_with_a_clock_that_ticks_too_seldom(
    measured: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = measured((steady(1.5), 0.5))
    monkeypatch.setattr(stopwatch.time, "get_clock_info", lambda name: SimpleNamespace(resolution=1 / 64))
    assert settle([], 40, threads=2).speedup(1).share is None and not looked


@pytest.mark.parametrize("rounds", [1, 2, BLOCKS - 1, BLOCKS, 45])
def test_any_number_of_rounds_makes_blocks_and_looks(rounds: int, measured: Callable[..., list[int]]) -> None:
    looked = measured((steady(1.5, rounds), 1.0))
    timing = settle([], rounds, threads=1)
    assert timing.ratios.shape == (2, min(rounds, BLOCKS)) and 1 <= len(looked) <= 2 * LOOKS
    assert timing.speedup(1).value == pytest.approx(1.5)


def test_the_figure_always_lies_in_its_spread() -> None:
    draw = np.random.default_rng(0)
    for _ in range(100):
        timing = Timing.of(draw.uniform(1, 1.3, (3, 40)), None)
        for speedup in map(timing.speedup, range(3)):
            assert speedup.value is None or speedup.low <= speedup.value <= speedup.high
            assert speedup.low <= speedup.high


def test_typical_is_what_the_machine_disturbs_little() -> None:
    assert list(typical(np.array([[1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 7.0, 2.0]]))) == [1, 2]


def test_a_look_tells_what_the_slowest_thread_got(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads one runs all the time, and one half of it."""
    start, order, local = threading.Barrier(2), iter((1.0, 0.5)), threading.local()

    def sha256(content: bytes) -> None:
        start.wait()
        local.share = next(order)

    monkeypatch.setattr(stopwatch.hashlib, "sha256", sha256)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: 10.0 if hasattr(local, "share") else 0.0)
    monkeypatch.setattr(stopwatch.time, "thread_time", lambda: 10.0 * getattr(local, "share", 0.0))
    assert share_of_slowest(2) == 0.5


def test_threads_are_really_looked_at() -> None:
    assert 0 < share_of_slowest(2) <= 1
