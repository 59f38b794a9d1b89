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
from nets import graph_of

from yolo_prune.cost.latency import FEATURES, LEAST, STAIRS, LatencyModel, Workload, digest_of, fit, least_squares
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import PlanError

WEIGHTS = (1e-11, 2e-11, 1e-11, 2e-11, 4e-10, 1e-9, 5e-10, 2e-5, 1e-3)
MODEL = LatencyModel(1e-6, WEIGHTS, stairs=8, multiple=8, errors=(0.01, 0.02), network="abc", where={"threads": 2})
CORRECTED = MODEL.corrected([(2.0, 2.2), (1.0, 0.9)])


def random_widths(graph_name: str, number: int) -> tuple[CostModel, list[np.ndarray]]:
    """Return widths of a network that is cut at random, of each layer as its group says."""
    cost, draw = CostModel(graph_of(graph_name)), np.random.default_rng(0)
    kept = (np.maximum(cost.widths * draw.uniform(0.2, 1, len(cost.widths)), 1) for _ in range(number))
    return cost, [cost.widths_of(np.floor(units)) for units in kept]


@pytest.mark.parametrize("family", ["tiny", "yolo11n"])
def test_multiply_adds_of_all_kinds_are_those_of_the_network(family: str) -> None:
    graph = graph_of(family)
    cost, work = CostModel(graph), Workload(graph)
    draw = np.random.default_rng(0)
    for kept in [cost.widths, *(np.maximum(cost.widths * draw.uniform(0.3, 1, len(cost.widths)), 1) // 1,) * 3]:
        features = work.features(*cost.widths_of(np.asarray(kept, dtype=float)))
        assert features[[0, 1, 4]].sum() + graph.other_macs == pytest.approx(cost.macs(kept), rel=1e-4)
        assert features[-1] == 1 and (features >= 0).all() and len(features) == len(FEATURES)


@pytest.mark.parametrize("stairs", STAIRS[1:])
def test_for_a_part_of_the_time_widths_cost_as_the_next_multiple(stairs: int) -> None:
    work = Workload(graph_of("tiny"))
    exact, once = work.features(*work.dense), work.features(*work.dense, stairs)
    up = work.features(*np.ceil(work.dense / stairs) * stairs)
    assert (once[2:4] == up[:2]).all() and (once[2:4] >= once[:2]).all()
    below = work.dense - np.array([[0.5], [0.0]])
    assert (work.features(*below, stairs)[2:4] == work.features(*np.ceil(below), stairs)[2:4]).all()
    assert (np.delete(once, [2, 3]) == np.delete(exact, [2, 3])).all() and (exact[2:4] == 0).all()


def test_slopes_are_those_of_the_seconds() -> None:
    graph = graph_of("yolo11n")
    plain = tuple(w * (not name.startswith("stepped")) for name, w in zip(FEATURES, WEIGHTS, strict=True))
    model, work = replace(MODEL, stairs=1, weights=plain), Workload(graph)
    out, inp = work.dense * 1.0
    by_out, by_in = model.slopes(work, out, inp)
    for i, layer in enumerate(graph.layers.values()):
        step = np.eye(len(out))[i]
        more = model.seconds(work, out + step, inp) - model.seconds(work, out, inp)
        assert by_out[i] == pytest.approx(more, abs=1e-12), layer
        if layer.groups == 1:
            more = model.seconds(work, out, inp + step) - model.seconds(work, out, inp)
            assert by_in[i] == pytest.approx(more, abs=1e-12), layer


def test_slopes_count_both_parts_of_the_time() -> None:
    work = Workload(graph_of("yolo11n"))
    wide, pointwise, stepped, stepped_pointwise, *rest = WEIGHTS
    plain = np.array([wide + stepped, pointwise + stepped_pointwise, 0.0, 0.0, *rest])
    for one, other in zip(work.slopes(*work.dense, np.array(WEIGHTS)), work.slopes(*work.dense, plain), strict=True):
        assert one == pytest.approx(other)


@pytest.mark.parametrize("stairs", STAIRS)
def test_a_fit_finds_the_weights_and_the_stairs_that_made_the_times(stairs: int) -> None:
    _, widths = random_widths("yolo11n", 24)
    work = Workload(graph_of("yolo11n"))
    times = [float(work.features(*of, stairs) @ WEIGHTS) for of in widths]
    model = fit(work, 1e-6, widths[:16], times[:16])
    assert model.stairs == stairs and model.multiple == max(stairs, 8)
    assert [model.seconds(work, *of) for of in widths[16:]] == pytest.approx(times[16:], rel=1e-3)


def test_a_fit_is_not_led_astray_by_noise() -> None:
    _, widths = random_widths("yolo11n", 40)
    work, draw = Workload(graph_of("yolo11n")), np.random.default_rng(1)
    times = np.array([work.features(*of, 8) @ WEIGHTS for of in widths])
    noisy = times * draw.normal(1, 0.01, len(times))
    model = fit(work, 1e-6, widths[:16], noisy[:16])
    errors = [abs(model.seconds(work, *of) / t - 1) for of, t in zip(widths[16:], times[16:], strict=True)]
    assert np.median(errors) < 0.02


def test_weights_are_least_squares_and_only_what_is_fixed_may_be_negative() -> None:
    draw = np.random.default_rng(0)
    features = np.c_[draw.random((8, 2)), np.ones(8)]
    for weights in ([2.0, 0.5, 0.1], [2.0, 0.5, -0.1]):
        assert least_squares(features, features @ weights) == pytest.approx(weights)
    weights = least_squares(features, features @ [2.0, -0.5, 0.1])
    assert weights[1] == 0 and weights[0] > 1


def test_no_network_is_predicted_to_take_next_to_nothing() -> None:
    work = Workload(graph_of("tiny"))
    assert replace(MODEL, weights=(*WEIGHTS[:-1], -1.0)).seconds(work, *work.dense) == LEAST * MODEL.dense


def test_a_corrected_model_is_right_of_finished_networks() -> None:
    _, widths = random_widths("yolo11n", 3)
    work = Workload(graph_of("yolo11n"))
    low, high = sorted(MODEL.seconds(work, *of) for of in (widths[0], work.dense))
    model = MODEL.corrected([(high, 0.9 * high), (low, 1.1 * low)])
    assert model.seconds(work, *widths[0]) == pytest.approx(1.1 * low)
    assert model.seconds(work, *work.dense) == pytest.approx(0.9 * high)
    for of in widths[1:]:
        plain = MODEL.seconds(work, *of)
        share = np.clip((plain - low) / (high - low), 0, 1)
        assert model.seconds(work, *of) == pytest.approx(plain * (1.1 - 0.2 * share))
        assert model.scaled(2.0).seconds(work, *of) == pytest.approx(2 * model.seconds(work, *of))
    for plain, corrected in zip(MODEL.slopes(work, *widths[0]), model.slopes(work, *widths[0]), strict=True):
        assert corrected == pytest.approx(1.1 * plain)


def test_a_digest_tells_networks_and_image_sizes_apart() -> None:
    graph = graph_of("tiny")
    assert digest_of(graph) == digest_of(graph_of("tiny")) != digest_of(graph_of("yolo11n"))
    assert digest_of(replace(graph, imgsz=(96, 64))) != digest_of(graph)


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    for model in (MODEL, CORRECTED):
        model.save(tmp_path / "new" / "latency.json")
        assert LatencyModel.load(tmp_path / "new" / "latency.json") == model


@given(mutated(st.just(json.dumps(asdict(CORRECTED)))))
def test_any_file_gives_a_model_that_tells_times_or_a_plan_error(text: str) -> None:
    file, work = Path("latency.json"), Workload(graph_of("tiny"))
    file.write_text(text, errors="surrogatepass")
    with suppress(PlanError):
        assert 0 <= LatencyModel.load(file).seconds(work, *work.dense) < np.inf
