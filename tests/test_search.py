from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import assert_same_tensors, graph_of, state
from test_sensitivity import BY_L2, IMGSZ, by_l2, detection, imitation, traced

from yolo_prune.config.settings import PruneConfig
from yolo_prune.cost.model import CostModel
from yolo_prune.planning import planner
from yolo_prune.planning.allocation import ByScore, make_plan
from yolo_prune.planning.planner import Evidence, plan_cut
from yolo_prune.planning.search import SearchResult, search
from yolo_prune.planning.sensitivity import Judge


def searched(**options: Any) -> SearchResult:
    model, batches = imitation()
    graph = traced(model)
    target = {"macs": CostModel(graph).macs() * 0.5}
    return search(
        model, graph, lambda: by_l2(model, graph), target, batches[:2], batches[2:], **{"round_to": 1, **options}
    )


def test_the_same_seed_finds_the_same_and_another_seed_something_else() -> None:
    first, again, other = (searched(candidates=6, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.history[:2] == other.history[:2]  # what the search starts from
    assert set(first.history[2:]).isdisjoint(other.history[2:])


def test_what_is_found_is_never_worse_than_what_the_search_starts_from() -> None:
    model, batches = imitation()
    graph = traced(model)
    target = {"macs": CostModel(graph).macs() * 0.5}
    found = searched(candidates=8)
    judge = Judge(model, batches[:2], batches[2:])
    uniform, by_price = (
        judge.loss(make_plan(graph, by_l2(model, graph), target, allocation=a, round_to=1))
        for a in ("uniform", "global")
    )
    assert found.history[0] == uniform
    assert found.history[1] == pytest.approx(by_price, rel=0.2)  # the same shares, as near as strengths tell them
    assert found.loss == min(found.history) < min(uniform, by_price)
    plan = make_plan(graph, by_l2(model, graph), target, allocation="tolerance", tolerance=found.tolerance, round_to=1)
    assert judge.loss(plan) == found.loss


def test_a_bundle_of_twice_the_strength_loses_twice_the_share() -> None:
    graph = graph_of("yolov8n")
    strengths = [2.0 if b % 2 else 1.0 for b in range(len(graph.bundles))]
    plan = make_plan(
        graph,
        ByScore(graph, [np.ones(g.width) for g in graph.groups]),
        {"macs": CostModel(graph).macs() * 0.5},
        allocation="tolerance",
        tolerance=SearchResult(tuple(strengths), 0.0, ()).tolerance,
        round_to=1,
    )
    shares: dict[float, list[float]] = {1.0: [], 2.0: []}
    for strength, bundle in zip(strengths, graph.bundles, strict=True):
        path = graph.groups[bundle.groups[0]].name
        if not bundle.locked and len(bundle.groups) == 1 and bundle.steps >= 64:
            shares[strength].append(1 - len(plan.layers[path]["out"]) / plan.widths[path]["out"])
    assert np.mean(shares[2.0]) == pytest.approx(2 * np.mean(shares[1.0]), rel=0.05)


def test_a_search_leaves_the_network_as_it_was_and_takes_a_fresh_ranking_each_time() -> None:
    model, batches = imitation()
    graph, before = traced(model), state(model)
    made: list[ByScore] = []

    def ranking() -> ByScore:
        made.append(by_l2(model, graph))
        return made[-1]

    found = search(
        model, graph, ranking, {"macs": CostModel(graph).macs() * 0.6}, batches[:2], batches[2:], candidates=3
    )
    assert len(made) == 1 + len(found.history) == 4
    assert_same_tensors(before, state(model))


def test_a_plan_by_search_lands_on_the_target() -> None:
    model, batches = detection()
    plan = plan_cut(model, PruneConfig(allocation="search", **BY_L2), IMGSZ, evidence=Evidence(model, batches))
    assert 0.58 <= plan.macs["after"] / plan.macs["before"] <= 0.6


def test_the_judging_half_of_the_images_has_no_say_in_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = imitation()
    ranked: list[list[Any]] = []
    split: list[Any] = []
    statistics = planner.layer_statistics

    def spy_statistics(network: Any, data: list[Any]) -> Any:
        ranked.append(data)
        return statistics(network, data)

    def spy_search(*arguments: Any, **options: Any) -> SearchResult:
        split.extend([*arguments[-2:], options["weights"]])
        return search(*arguments, **options, candidates=2)

    monkeypatch.setattr(planner, "layer_statistics", spy_statistics)
    monkeypatch.setattr(planner, "search", spy_search)
    config = PruneConfig(allocation="search", target=0.4, reconstruction=False, ignored_layers=("model.5.*",))
    plan_cut(model, config, IMGSZ, evidence=Evidence(model, batches))
    assert split == [batches[:2], batches[2:], False]
    assert ranked == [batches[:2], batches]  # the plan itself may look at all of them
