from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import build, graph_of, labelled_batches

from yolo_prune.config.choices import IMPORTANCES
from yolo_prune.graph.trace import trace
from yolo_prune.importance.gradients import gradients
from yolo_prune.importance.scores import importance_scores
from yolo_prune.importance.statistics import layer_statistics
from yolo_prune.planning.calibration import DATA_FREE

STATIC = [c for c in IMPORTANCES if c != "reconstruction"]


def scores_of(family: str, model: torch.nn.Module, criterion: str, **options: object) -> list[np.ndarray]:
    evidence = {
        "taylor": lambda: {"gradients": gradients(model, labelled_batches())},
        "hessian": lambda: {"gradients": gradients(model, labelled_batches())},
        "activation": lambda: {"statistics": layer_statistics(model, labelled_batches())},
    }.get(criterion, dict)()
    return importance_scores(model, graph_of(family), criterion, **evidence, **options)


@pytest.mark.parametrize("criterion", STATIC)
def test_every_criterion_scores_every_unit(criterion: str) -> None:
    graph = graph_of("yolo11n")
    scores = scores_of("yolo11n", build("yolo11n"), criterion)
    assert [s.shape for s in scores] == [(g.width,) for g in graph.groups]
    assert all(np.isfinite(s).all() and (s >= 0).all() for s in scores)


@pytest.mark.parametrize("criterion", [c for c in STATIC if c not in {"random", "fpgm"}])
def test_a_unit_without_weights_scores_lowest(criterion: str) -> None:
    graph, model = graph_of("yolov8n"), build("yolov8n")
    g = next(i for i, group in enumerate(graph.groups) if group.name == "model.5.conv")
    for (path, side), table in graph.groups[g].members.items():
        weight = model.get_submodule(path).weight.data
        (weight if side == "out" else weight.transpose(0, 1))[table[7]] = 0
    model.model[5].bn.bias.data[7] = 0
    assert scores_of("yolov8n", model, criterion)[g].argmin() == 7


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


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_gradients_are_lent_to_torch_pruning_and_taken_back(criterion: str) -> None:
    model = build("yolov8n")
    collected = gradients(model, labelled_batches())
    pending = next(model.parameters())
    pending.grad = torch.full_like(pending, 3.0)
    importance_scores(model, graph_of("yolov8n"), criterion, gradients=collected)
    assert (pending.grad == 3).all()
    assert all(p.grad is None for p in model.parameters() if p is not pending)


def test_first_order_taylor_is_weight_times_mean_gradient() -> None:
    model, graph = build("yolov8n"), graph_of("yolov8n")
    batches = labelled_batches(2)
    collected = gradients(model, batches)
    assert collected.steps == 2
    g = next(i for i, group in enumerate(graph.groups) if group.name == "model.0.conv")
    conv, reader = model.model[0].conv, model.model[1].conv
    mean = {layer: collected.first[layer.weight] / 2 for layer in (conv, reader)}
    expected = (conv.weight * mean[conv]).abs().sum((1, 2, 3)) + (reader.weight * mean[reader]).abs().sum((0, 2, 3))
    expected = (expected / expected.mean()).detach().numpy()
    scores = importance_scores(model, graph, "taylor", gradients=collected)[g]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_normalizers_change_the_scale_and_not_the_order() -> None:
    model, graph = build("yolov8n"), graph_of("yolov8n")
    plain = importance_scores(model, graph, "l2", normalizer="none")
    for normalizer, scale in (("mean", np.mean), ("sum", np.sum), ("max", np.max)):
        for a, b in zip(plain, importance_scores(model, graph, "l2", normalizer=normalizer), strict=True):
            np.testing.assert_allclose(b, a / scale(a), rtol=1e-4)


@pytest.mark.parametrize("norm", [torch.nn.SyncBatchNorm, lambda width: torch.nn.GroupNorm(1, width)])
@pytest.mark.parametrize("criterion", DATA_FREE)
def test_criteria_by_weights_score_networks_with_other_normalisations(criterion: str, norm: Any) -> None:
    model = build("tiny")
    for module in list(model.modules()):
        if isinstance(getattr(module, "bn", None), torch.nn.BatchNorm2d):
            module.bn = norm(module.bn.num_features)
    graph = trace(model, 64)
    scores = importance_scores(model, graph, criterion)
    assert [len(s) for s in scores] == [group.width for group in graph.groups]
    assert all(np.isfinite(s).all() for s in scores)
