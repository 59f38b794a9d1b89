from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import build, graph_of, labelled_batches

from yolo_prune.cost.model import CostModel
from yolo_prune.importance import reconstruction_error
from yolo_prune.importance.reconstruction_error import Elimination, _Consumer
from yolo_prune.importance.statistics import layer_statistics
from yolo_prune.planning.allocation import PlanRequest, make_plan


def consumer(
    outputs: int = 5, inputs: int = 6, taps: int = 1, samples: int = 4000, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weights (outputs, inputs, taps), correlated unfolded inputs, and what errors of the outputs cost."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs * taps, inputs * taps, generator=draw, dtype=torch.double)
    x = torch.randn(samples, inputs * taps, generator=draw, dtype=torch.double) @ mixed
    root = torch.randn(outputs, outputs, generator=draw, dtype=torch.double)
    return torch.randn(outputs, inputs, taps, generator=draw, dtype=torch.double), x - x.mean(0), root @ root.T


def least_squares_error(weight: torch.Tensor, x: torch.Tensor, fisher: torch.Tensor, kept: list[int]) -> float:
    """Return the cost of the errors of the best weights that read only some inputs."""
    taps = weight.shape[2]
    rows = [i * taps + t for i in kept for t in range(taps)]
    y = x @ weight.flatten(1).T
    left = x[:, rows] @ torch.linalg.lstsq(x[:, rows], y).solution - y
    return float(((left @ fisher) * left).sum() / len(x))


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("first", range(6))
def test_the_error_is_that_of_least_squares_also_after_removals(
    first: int, taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction_error, "RIDGE", 1e-12)
    weight, x, fisher = consumer(taps=taps)
    reader = _Consumer(weight.clone(), x.T @ x / len(x), fisher)
    kept = list(range(6))
    for gone in (first, (first + 2) % 6, (first + 5) % 6):
        before = least_squares_error(weight, x, fisher, kept)
        kept.remove(gone)
        expected = least_squares_error(weight, x, fisher, kept) - before
        assert reader.errors()[gone] == pytest.approx(expected, rel=1e-4)
        reader.drop_inputs(np.array([gone]))


def test_taps_that_share_a_covariance_add_up() -> None:
    weight, x, fisher = consumer()
    several = torch.cat([weight, 2 * weight], 2)
    one, two = (_Consumer(w.clone(), x.T @ x / len(x), fisher) for w in (weight, several))
    np.testing.assert_allclose(two.errors(), 5 * one.errors())


@pytest.mark.parametrize("taps", [1, 4])
def test_outputs_that_are_gone_do_not_count(taps: int) -> None:
    weight, x, fisher = consumer(taps=taps)
    whole = _Consumer(weight.clone(), x.T @ x / len(x), fisher)
    part = _Consumer(weight[:3].clone(), x.T @ x / len(x), fisher[:3, :3])
    whole.drop_outputs(np.array([3, 4]))
    np.testing.assert_allclose(whole.errors(), part.errors())


def test_a_channel_that_another_can_replace_costs_little_until_that_one_is_gone() -> None:
    model, graph = build("yolov8n"), graph_of("yolov8n")
    conv, norm = model.model[1].conv, model.model[1].bn
    for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data[9] = tensor.data[8]  # two channels carry the same
    ranking = Elimination(model, graph, layer_statistics(model, labelled_batches(2)))
    g = next(i for i, group in enumerate(graph.groups) if group.name == "model.1.conv")
    b = next(i for i, bundle in enumerate(graph.bundles) if g in bundle.groups)
    errors = ranking._unit_errors(g)
    assert errors[8] == pytest.approx(errors[9], rel=0.1)
    while 9 not in ranking.order()[g][ranking._alive[g].sum() :] and 8 in np.flatnonzero(ranking._alive[g]):
        ranking.remove(b, 1)
    left = ({8, 9} & set(np.flatnonzero(ranking._alive[g]).tolist())).pop()
    assert ranking._unit_errors(g)[left] > 3 * errors[left]  # nothing can replace it any more


def test_prices_of_other_bundles_follow_what_is_gone() -> None:
    model, graph = build("yolov8n"), graph_of("yolov8n")
    statistics = layer_statistics(model, labelled_batches())
    ranking = Elimination(model, graph, statistics)
    free = [b for b, bundle in enumerate(graph.bundles) if not bundle.locked]
    before = {b: ranking.error(b, 1) for b in free}
    changed = set(ranking.remove(free[0], graph.bundles[free[0]].steps // 2))
    after = {b: ranking.error(b, 1) for b in free}
    assert free[0] in changed and len(changed) < len(free)
    assert all(before[b] == after[b] for b in free if b not in changed)
    assert any(before[b] != after[b] for b in changed & set(free))


@pytest.mark.parametrize(
    ("family", "allocation"),
    [
        ("yolo11n", "global"),
        *(pytest.param("yolo11n", a, marks=pytest.mark.slow) for a in ("uniform", "isomorphic")),
        pytest.param("yolo26n", "global", marks=pytest.mark.slow),
    ],
)
def test_a_plan_by_reconstruction_error_lands_on_its_target_and_is_repeatable(family: str, allocation: str) -> None:
    model, graph = build(family), graph_of(family)
    statistics = layer_statistics(model, labelled_batches())
    target = {"macs": CostModel(graph).macs() * 0.5}
    plans = [
        make_plan(graph, Elimination(model, graph, statistics), PlanRequest(target, allocation=allocation))
        for _ in range(2)
    ]
    assert 0.48 <= plans[0].macs["after"] / plans[0].macs["before"] <= 0.5
    assert plans[0].sha256 == plans[1].sha256
