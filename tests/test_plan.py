from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build, make, state

from yolo_prune.errors import PlanError, PruneError
from yolo_prune.plan import PrunePlan


@pytest.fixture(scope="module")
def plan() -> PrunePlan:
    return make(build("yolov8n"))


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


@pytest.mark.parametrize("family", ["yolov8n", "yolo11n", "yolo12n"])
def test_two_plans_in_one_do_what_they_do_one_after_the_other(family: str) -> None:
    model, at_once = build(family), build(family)
    first = make(model, 0.2, importance="random")
    first.apply(model)
    second = make(model, 0.3)
    second.apply(model)
    both = first.then(second)
    both.apply(at_once)
    assert both.macs == {"before": first.macs["before"], "after": second.macs["after"]}
    assert PrunePlan.from_dict(both.to_dict()) == both
    expected, got = state(model), state(at_once)
    assert expected.keys() == got.keys()
    for name in expected:  # what follows from widths is scaled once instead of twice
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=0)


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
