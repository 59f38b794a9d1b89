from __future__ import annotations

import numpy as np
import pytest
from nets import FAMILIES, IMGSZ, build, fast_and_slow, graph_of, make

from yolo_prune.cost.model import CostModel
from yolo_prune.errors import TargetError
from yolo_prune.graph.trace import trace
from yolo_prune.importance.scores import importance_scores
from yolo_prune.planning.allocation import PlanRequest, check_reachable, make_plan, plan_of, units_of
from yolo_prune.planning.ranking import ByScore
from yolo_prune.planning.widths import width_options


@pytest.mark.parametrize(
    ("family", "allocation", "round_to", "target"),
    [
        *((family, "global", None, 0.5) for family in FAMILIES),
        *(
            pytest.param(family, "global", None, target, marks=() if family == "yolov8n" else pytest.mark.slow)
            for family in FAMILIES
            for target in (0.1, 0.7)
        ),
        *(("yolov8n", allocation, n, 0.5) for allocation in ("uniform", "global") for n in (1, 8, None)),
    ],
)
def test_a_plan_lands_on_its_target_from_below(
    family: str, allocation: str, round_to: int | None, target: float
) -> None:
    graph = graph_of(family)
    scores = importance_scores(build(family), graph, "l2")
    plan = make_plan(
        graph,
        ByScore(graph, scores),
        PlanRequest({"macs": CostModel(graph).macs() * (1 - target)}, allocation=allocation, round_to=round_to),
    )
    kept = plan.macs["after"] / plan.macs["before"]
    assert 1 - target - 0.02 <= kept <= 1 - target


@pytest.mark.parametrize("family", fast_and_slow(*FAMILIES))
def test_rounded_widths_are_multiples(family: str) -> None:
    model = build(family)
    make(model, 0.5, round_to=8).apply(model)
    free = [
        layer.out for p, layer in trace(model, IMGSZ).layers.items() if layer.kind == "BatchNorm2d" and "qkv" not in p
    ]
    assert all(width % 8 == 0 for width in free)


def test_by_default_widths_are_multiples_of_8_or_of_a_quarter_of_what_is_narrower() -> None:
    plan = make(build("yolov8n"), 0.5)
    kept = {path: (plan.widths[path]["out"], len(sides["out"])) for path, sides in plan.layers.items()}
    assert kept["model.0.conv"][0] == 16 and kept["model.0.conv"][1] % 4 == 0
    assert all(n % 8 == 0 for path, (width, n) in kept.items() if width >= 64 and path.endswith("cv2.conv"))
    assert not {n for width, n in kept.values() if n < width and n % 4}


def test_uniform_allocation_takes_the_same_share_everywhere() -> None:
    plan = make(build("yolov8n"), 0.5, round_to=1)
    shares = [len(kept["out"]) / plan.widths[path]["out"] for path, kept in plan.layers.items() if path.endswith("bn")]
    assert max(shares) - min(shares) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_tells_how_many_units_it_was_made_to_keep(family: str) -> None:
    graph, draw = graph_of(family), np.random.default_rng(0)
    steps = [b.steps if b.locked else int(draw.integers(1, b.steps + 1)) for b in graph.bundles]
    plan = plan_of(graph, steps, [draw.permutation(group.width) for group in graph.groups])
    units = units_of(graph, plan)
    for bundle, kept in zip(graph.bundles, steps, strict=True):
        assert units[list(bundle.groups)].tolist() == [kept * per_step for per_step in bundle.per_step]


def test_global_allocation_takes_the_least_important_units_first() -> None:
    graph = graph_of("yolov8n")
    scores = [np.full(g.width, 1.0 + i) for i, g in enumerate(graph.groups)]
    favourite = next(i for i, g in enumerate(graph.groups) if g.name == "model.5.conv")
    scores[favourite] = np.r_[np.zeros(64), np.full(64, 2.0)]
    plan = make_plan(
        graph,
        ByScore(graph, scores),
        PlanRequest({"macs": CostModel(graph).macs() * 0.9}, allocation="global", limits=lambda layer: 0.5, round_to=1),
    )
    assert plan.layers["model.5.conv"]["out"] == list(range(64, 128))


def test_what_stays_is_what_scores_highest() -> None:
    graph = graph_of("yolov8n")
    scores = [np.arange(g.width, dtype=float) for g in graph.groups]
    plan = make_plan(graph, ByScore(graph, scores), PlanRequest({"macs": CostModel(graph).macs() * 0.5}))
    kept = plan.layers["model.5.conv"]["out"]
    assert kept == list(range(128 - len(kept), 128))


def test_both_halves_of_a_chunked_block_keep_equal_counts_of_free_indices() -> None:
    plan = make(build("yolo11n"), 0.5, importance="random")
    kept = plan.layers["model.4.cv1.conv"]["out"]
    c = plan.widths["model.4.cv1.conv"]["out"] // 2
    first, second = [i for i in kept if i < c], [i - c for i in kept if i >= c]
    assert len(first) == len(second)
    assert first != second


def test_no_group_loses_more_than_the_largest_ratio_over_several_cuts() -> None:
    model = build("yolov8n")
    whole = trace(model, IMGSZ)
    start = CostModel(whole).macs()
    for share in (0.7, 0.5):
        graph = trace(model, IMGSZ)
        scores = [np.ones(g.width) if i % 2 else np.zeros(g.width) for i, g in enumerate(graph.groups)]
        make_plan(
            graph,
            ByScore(graph, scores),
            PlanRequest(
                {"macs": start * share}, allocation="global", limits=lambda layer: 0.6, dense_units=whole.units()
            ),
        ).apply(model)
    assert all(layer.out >= np.floor(whole.layers[p].out * 0.4) for p, layer in trace(model, IMGSZ).layers.items())


def test_how_far_queries_may_go_does_not_depend_on_the_values_beside_them() -> None:
    model = build("yolo11n")
    whole, attention = trace(model, IMGSZ), model.model[10].m[0].attn
    dense, path = attention.key_dim, "model.10.m.0.attn.qkv.conv"
    queries = [*whole.units()].index(f"{path}#0"), [*whole.units()].index(f"{path}#1")  # of two heads
    request = PlanRequest(
        {"macs": CostModel(whole).macs() * 0.8},
        allocation="global",
        round_to=1,
        limits=lambda layer: 0.5,
        dense_units=whole.units(),
    )
    worth = [np.full(group.width, float(i not in queries)) for i, group in enumerate(whole.groups)]
    make_plan(whole, ByScore(whole, worth), request).apply(model)
    assert attention.key_dim < dense and attention.head_dim == 64
    graph = trace(model, IMGSZ)
    (left,) = (
        of
        for bundle, of in zip(graph.bundles, width_options(graph, request), strict=True)
        if queries[0] in bundle.groups
    )
    assert left.min() == dense // 2


def test_parts_of_different_width_are_rounded_in_the_narrowest() -> None:
    plan = make(build("yolov9e"), 0.3, round_to=8)
    widths = [len(layer["out"]) for path, layer in plan.layers.items() if len(layer["out"]) < plan.widths[path]["out"]]
    assert widths and all(width % 8 == 0 for width in widths)


def test_an_unreachable_target_names_the_least_and_what_is_locked() -> None:
    with pytest.raises(
        TargetError, match=r"is the least that can be reached .* Locked: model\.22\.cv2\.0\.2, .*class scores"
    ):
        make(build("yolov8n"), 0.999)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_target_already_met_removes_nothing(allocation: str) -> None:
    graph = trace(build("yolov8n"), IMGSZ, ignored=lambda path: path)  # everything is locked
    plan = make_plan(
        graph,
        ByScore(graph, [np.ones(g.width) for g in graph.groups]),
        PlanRequest({"macs": CostModel(graph).macs()}, allocation=allocation),
    )
    assert plan.layers == {} and plan.macs["before"] == plan.macs["after"]


@pytest.mark.parametrize(
    ("quantity", "allocation"),
    [("params", "uniform"), ("params", "global"), ("params", "isomorphic"), ("bytes", "global")],
)
def test_a_plan_lands_on_a_target_for_another_quantity(quantity: str, allocation: str) -> None:
    model, graph = build("yolo11n"), graph_of("yolo11n")
    asked = CostModel(graph).amount(quantity) * 0.5
    ranking = ByScore(graph, importance_scores(model, graph, "l2"))
    make_plan(graph, ranking, PlanRequest({quantity: asked}, allocation=allocation)).apply(model)
    assert 0.98 * asked <= CostModel(trace(model, IMGSZ)).amount(quantity) <= asked


def test_several_targets_hold_together_and_none_is_missed_by_far() -> None:
    model, graph = build("yolov8n"), graph_of("yolov8n")
    budget = {"macs": CostModel(graph).macs() * 0.6, "params": CostModel(graph).params() * 0.6}
    ranking = ByScore(graph, importance_scores(model, graph, "l2"))
    make_plan(graph, ranking, PlanRequest(budget, allocation="global")).apply(model)
    cost = CostModel(trace(model, IMGSZ))
    shares = [cost.amount(q) / most for q, most in budget.items()]
    assert all(0.8 <= share <= 1 for share in shares) and max(shares) > 0.98


def test_global_allocation_cuts_where_the_asked_quantity_is() -> None:
    graph, left = graph_of("yolov8n"), {}
    for quantity in ("macs", "params"):
        model = build("yolov8n")
        ranking = ByScore(graph, [np.ones(g.width) for g in graph.groups])
        asked = {quantity: CostModel(graph).amount(quantity) * 0.6}
        make_plan(graph, ranking, PlanRequest(asked, allocation="global")).apply(model)
        left[quantity] = CostModel(trace(model, IMGSZ))
    assert left["params"].params() < left["macs"].params()
    assert left["macs"].macs() < left["params"].macs()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"params": 10.0}, r"10 params asked, but .*k params is the least that can be reached from 3\.01M params \(-"),
        ({"bytes": 1e3}, r"0\.001 MB asked, but .* MB is the least that can be reached"),
        ({"macs": 1e12, "params": 10.0}, "10 params asked"),
    ],
)
def test_each_unreachable_quantity_is_told_in_its_unit(budget: dict[str, float], message: str) -> None:
    graph = graph_of("yolov8n")
    with pytest.raises(TargetError, match=message):
        check_reachable(graph, PlanRequest(budget, round_to=1, limits=lambda layer: 0.9))
