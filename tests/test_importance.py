from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import build, graph_of

from yolo_prune.config import IMPORTANCES
from yolo_prune.importance import importance_scores


@pytest.mark.parametrize("criterion", IMPORTANCES)
def test_every_criterion_scores_every_unit(criterion: str) -> None:
    graph = graph_of("yolo11n")
    scores = importance_scores(build("yolo11n"), graph, criterion)
    assert [s.shape for s in scores] == [(g.width,) for g in graph.groups]
    assert all(np.isfinite(s).all() and (s >= 0).all() for s in scores)


@pytest.mark.parametrize("criterion", [c for c in IMPORTANCES if c not in {"random", "fpgm"}])
def test_a_unit_without_weights_scores_lowest(criterion: str) -> None:
    graph, model = graph_of("yolov8n"), build("yolov8n")
    g = next(i for i, group in enumerate(graph.groups) if group.name == "model.5.conv")
    for (path, side), table in graph.groups[g].members.items():
        weight = model.get_submodule(path).weight.data
        (weight if side == "out" else weight.transpose(0, 1))[table[7]] = 0
    assert importance_scores(model, graph, criterion)[g].argmin() == 7


def test_the_group_norm_is_the_mean_over_all_members() -> None:
    graph, model = graph_of("yolov8n"), build("yolov8n")
    g = next(i for i, group in enumerate(graph.groups) if group.name == "model.0.conv")
    conv, norm, reader = model.model[0].conv, model.model[0].bn, model.model[1].conv
    expected = (conv.weight**2).sum((1, 2, 3)) + norm.weight**2 + (reader.weight**2).sum((0, 2, 3))
    expected = (expected / expected.mean()).detach().numpy()
    np.testing.assert_allclose(importance_scores(model, graph, "l2")[g], expected, rtol=1e-5)


def test_scoring_draws_no_random_numbers_of_the_run_and_random_is_repeatable() -> None:
    graph, model = graph_of("yolov8n"), build("yolov8n")
    before = torch.get_rng_state()
    first, second = (importance_scores(model, graph, "random", seed=s) for s in (1, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
