from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import FAMILIES, IMGSZ, build, graph_of, make

from yolo_prune.cost import CostModel
from yolo_prune.errors import PlanError, PruneError, TargetError
from yolo_prune.graph import trace
from yolo_prune.importance import importance_scores
from yolo_prune.plan import PrunePlan, make_plan


@pytest.fixture(scope="module")
def plan() -> PrunePlan:
    return make(build("yolov8n"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.7])
def test_a_plan_lands_on_its_target_from_below(family: str, scope: str, round_to: int, target: float) -> None:
    graph = graph_of(family)
    scores = importance_scores(build(family), graph, "l2")
    plan = make_plan(graph, scores, CostModel(graph).macs() * (1 - target), scope=scope, round_to=round_to)
    kept = plan.macs["after"] / plan.macs["before"]
    assert 1 - target - 0.02 <= kept <= 1 - target


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_widths_are_multiples(family: str) -> None:
    model = build(family)
    make(model, 0.5, round_to=8).apply(model)
    free = [
        layer.out for p, layer in trace(model, IMGSZ).layers.items() if layer.kind == "BatchNorm2d" and "qkv" not in p
    ]
    assert all(width % 8 == 0 for width in free)


def test_local_scope_takes_the_same_share_everywhere() -> None:
    plan = make(build("yolov8n"), 0.5)
    shares = [len(kept["out"]) / plan.widths[path]["out"] for path, kept in plan.layers.items() if path.endswith("bn")]
    assert max(shares) - min(shares) < 0.1


def test_global_scope_takes_the_least_important_units_first() -> None:
    graph = graph_of("yolov8n")
    scores = [np.full(g.width, 1.0 + i) for i, g in enumerate(graph.groups)]
    favourite = next(i for i, g in enumerate(graph.groups) if g.name == "model.5.conv")
    scores[favourite] = np.r_[np.zeros(64), np.full(64, 2.0)]
    plan = make_plan(graph, scores, CostModel(graph).macs() * 0.9, scope="global", max_pruning_ratio=0.5)
    assert plan.layers["model.5.conv"]["out"] == list(range(64, 128))


def test_what_stays_is_what_scores_highest() -> None:
    graph = graph_of("yolov8n")
    scores = [np.arange(g.width, dtype=float) for g in graph.groups]
    plan = make_plan(graph, scores, CostModel(graph).macs() * 0.5)
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
    dense = {p: layer.out for p, layer in trace(model, IMGSZ).layers.items()}
    start = CostModel(trace(model, IMGSZ)).macs()
    for share in (0.7, 0.5):
        graph = trace(model, IMGSZ)
        scores = [np.ones(g.width) if i % 2 else np.zeros(g.width) for i, g in enumerate(graph.groups)]
        make_plan(graph, scores, start * share, scope="global", max_pruning_ratio=0.6, dense_widths=dense).apply(model)
    assert all(layer.out >= np.floor(dense[p] * 0.4) for p, layer in trace(model, IMGSZ).layers.items())


def test_an_unreachable_target_names_the_least_and_what_is_locked() -> None:
    with pytest.raises(
        TargetError, match=r"is the least that can be reached .* Locked: model\.22\.cv2\.0\.2, .*class scores"
    ):
        make(build("yolov8n"), 0.999)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_target_already_met_removes_nothing(scope: str) -> None:
    graph = trace(build("yolov8n"), IMGSZ, ignored=lambda path: path)  # everything is locked
    plan = make_plan(graph, [np.ones(g.width) for g in graph.groups], CostModel(graph).macs(), scope=scope)
    assert plan.layers == {} and plan.macs["before"] == plan.macs["after"]


def test_the_json_form_round_trips_with_an_equal_hash(plan: PrunePlan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan-1.json")
    again = PrunePlan.load(tmp_path / "plan-1.json")
    assert again == plan and again.sha256 == plan.sha256
    data = json.loads((tmp_path / "plan-1.json").read_text())
    assert data["schema"] == 1
    assert set(data["layers"]["model.1.conv"]) == {"out", "in"}
    assert set(data["layers"]["model.1.bn"]) == {"out"}


def test_the_same_network_gives_the_same_plan(plan: PrunePlan) -> None:
    assert make(build("yolov8n")).sha256 == plan.sha256
    assert make(build("yolov8n", seed=1)).sha256 != plan.sha256


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"schema": 2}, "plan schema 2 is unknown, this version reads 1"),
    ({"layers": None}, "the plan is damaged"),
    ({"widths": {}}, "'layers' and 'widths' name different layers"),
    ({"macs": [1]}, "the plan is damaged"),
    ({"sha256": "0"}, "its sha256 is"),
    ({"layers": {"a": {"out": [1, 0]}}}, "a out is no rising list of channels: \\[1, 0\\]"),
    ({"layers": {"a": {"out": [0, 0]}}}, "no rising list"),
    ({"layers": {"a": {"out": [-1]}}}, "no rising list"),
    ({"layers": {"a": {"out": []}}}, "no rising list"),
    ({"layers": {"a": {"out": [True]}}}, "no rising list"),
    ({"layers": {"a": {"up": [1]}}}, "a has a side 'up', not 'out' or 'in'"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_a_damaged_plan_is_refused(plan: PrunePlan, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PrunePlan.from_dict({**plan.to_dict(), **change})


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_what_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(PlanError, match="a plan is a mapping with 'layers'"):
        PrunePlan.from_dict(data)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="cannot be read as a plan"):
        PrunePlan.load(path)
    with pytest.raises(PlanError, match="cannot be read as a plan"):
        PrunePlan.load(tmp_path / "missing.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


@settings(deadline=None)
@given(key=st.sampled_from(["layers", "widths", "macs", "params", "imgsz", "locked", "schema"]), value=JSON)
def test_no_damage_escapes_the_error_tree(key: str, value: Any) -> None:
    good = PrunePlan(
        {"a": {"out": [0]}}, {"a": {"out": 2}}, {"before": 2, "after": 1}, {"before": 2, "after": 1}, (8, 8)
    )
    with suppress(PruneError):
        PrunePlan.from_dict({**good.to_dict(), key: value})


def test_the_hash_depends_only_on_what_the_plan_does(plan: PrunePlan) -> None:
    assert dataclasses.replace(plan, imgsz=(1, 1), locked=[]).sha256 == plan.sha256
