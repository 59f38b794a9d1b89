from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fuzz import mutated
from hypothesis import given
from hypothesis import strategies as st

from yolo_prune.cost.latency_table import LEAST, SIMD, LatencyTable, Surface, least_squares
from yolo_prune.errors import PlanError


def plane(out: float, inp: float) -> float:
    """A layer whose time is linear in each width."""
    return 1e-6 * (3 + 0.5 * out + 0.25 * inp + 0.125 * out * inp)


def surface(outs: tuple[int, ...], ins: tuple[int, ...]) -> Surface:
    return Surface(outs, ins, tuple(tuple(plane(o, i) for i in ins) for o in outs))


TABLE = LatencyTable(
    {"a": surface((16, 32, 64), (16, 64)), "b": surface((16, 48), (3,)), "c": surface((5,), (16, 32, 48))},
    {"a": 100, "b": 400, "c": 25},
    dense=2e-3,
    per_layer=1.5,
    per_value=1e-9,
    per_mac=1e-10,
    fixed=1e-4,
)


@pytest.mark.parametrize(
    ("out", "inp"), [((16, 16, 5), (16, 3, 16)), ((48, 32, 5), (48, 3, 32)), ((64, 48, 5), (64, 3, 48))]
)
def test_between_its_marks_a_bilinear_surface_is_exact(out: tuple[int, ...], inp: tuple[int, ...]) -> None:
    alone = sum(plane(o, i) for o, i in zip(out, inp, strict=True))
    values = 100 * out[0] + 400 * out[1] + 25 * out[2]
    expected = 1.5 * alone + 1e-9 * values + 1e-10 * 5e6 + 1e-4
    assert TABLE.seconds(np.array(out), np.array(inp), 5e6) == pytest.approx(expected)
    widths = [dict(zip("abc", of, strict=True)) for of in (out, inp)]
    assert TABLE.features(*widths) == pytest.approx((alone, values))


def test_widths_cost_as_the_next_multiple_that_is_computed_at_once() -> None:
    def alone(out: int) -> float:
        return TABLE.features({"a": out, "b": 16, "c": 5}, {"a": 64, "b": 3, "c": 16})[0]

    assert alone(17) == alone(2 * SIMD) > alone(SIMD)
    assert alone(1) == alone(SIMD)  # narrower than what has been timed
    assert alone(999) == alone(64)


def test_slopes_are_those_of_the_surfaces() -> None:
    out, inp = np.array([40.0, 30, 5]), np.array([20.0, 3, 20])
    by_out, by_in = TABLE.slopes(out, inp)
    assert by_out[0] == pytest.approx(1.5e-6 * (0.5 + 0.125 * 20) + 1e-9 * 100)
    assert by_in[0] == pytest.approx(1.5e-6 * (0.25 + 0.125 * 40))
    assert by_in[1] == 0 and by_out[2] == pytest.approx(1e-9 * 25)  # one mark tells no slope


def test_slopes_are_not_those_of_the_noise() -> None:
    draw = np.random.default_rng(0)
    marks = (16, 48, 80, 112, 128)
    noisy = tuple(tuple(plane(o, i) * draw.uniform(0.8, 1.25) for i in marks) for o in marks)
    table = LatencyTable({"a": Surface(marks, marks, noisy)}, {"a": 1}, dense=1.0)
    for width in range(16, 129, 8):
        (by_out,), (by_in,) = table.slopes(np.array([width]), np.array([width]))
        assert by_out == pytest.approx(1e-6 * (0.5 + 0.125 * width), rel=0.25)
        assert by_in == pytest.approx(1e-6 * (0.25 + 0.125 * width), rel=0.25)


def test_weights_are_least_squares_and_only_what_is_fixed_may_be_negative() -> None:
    draw = np.random.default_rng(0)
    features = np.c_[draw.random((8, 2)), np.ones(8)]
    for weights in ([2.0, 0.5, 0.1], [2.0, 0.5, -0.1]):
        assert least_squares(features, features @ weights) == pytest.approx(weights)
    weights = least_squares(features, features @ [2.0, -0.5, 0.1])
    assert weights[1] == 0 and weights[0] > 1


def test_no_network_is_predicted_to_take_next_to_nothing() -> None:
    out, inp = np.array([40.0, 30, 5]), np.array([20.0, 3, 20])
    assert replace(TABLE, fixed=-1.0).seconds(out, inp, 1e6) == LEAST * TABLE.dense


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "new" / "latency.json")
    again = LatencyTable.load(tmp_path / "new" / "latency.json")
    assert again == replace(TABLE, where={})


@given(mutated(st.just(json.dumps(asdict(TABLE)))))
def test_any_file_gives_a_table_that_tells_times_or_a_plan_error(text: str) -> None:
    file = Path("latency.json")
    file.write_text(text, errors="surrogatepass")
    with suppress(PlanError):
        table = LatencyTable.load(file)
        assert 0 <= table.seconds(np.full(len(table.layers), 16.0), np.full(len(table.layers), 16.0), 1e6) < np.inf
