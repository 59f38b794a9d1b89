from __future__ import annotations

import json

import pytest

from yolo_prune.training.guard import ATTEMPTS, Guard


@pytest.mark.parametrize(("fitness", "holds"), [(0.495, True), (0.5, True), (0.4949, False), (None, True)])
def test_the_floor_is_a_share_of_the_dense_fitness(fitness: float | None, holds: bool) -> None:
    assert Guard(max_drop=0.01, dense=0.5).holds(fitness) is holds


def test_a_cut_is_judged_before_the_next_one_and_the_last_cut_at_half_of_the_rest() -> None:
    guard = Guard(0.01, 0.5)
    assert guard.deadline(6, 15, 60) == 15
    assert guard.deadline(24, None, 60) == 42
    assert guard.deadline(59, None, 60) == 60


def test_each_failure_halves_the_step_until_there_are_no_attempts_left() -> None:
    guard = Guard(0.01, 0.5)
    guard.accept(0.4)
    ways = []
    way: float | None = 0.8
    while way is not None:
        ways.append(way)
        way = guard.reject(way, epoch=10, macs=100, fitness=0.3, until=12)
    assert ways == pytest.approx([0.8, 0.6, 0.5])
    assert len(guard.failures) == ATTEMPTS + 1 and guard.held == 0.4


def test_a_guard_survives_the_way_through_json() -> None:
    guard = Guard(0.01, 0.5)
    guard.reject(0.8, epoch=10, macs=100, fitness=0.3, until=12)
    assert Guard(**json.loads(json.dumps(guard.to_dict()))) == guard
