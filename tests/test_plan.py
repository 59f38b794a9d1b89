from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import PLAIN, mutated
from hypothesis import given
from hypothesis import strategies as st
from nets import build, fast_and_slow, make, state

from yolo_prune.errors import PlanError
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


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo11n", "yolo12n"))
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


PLAN = PrunePlan(
    {"a": {"out": [0, 2], "in": [1]}},
    {"a": {"out": 3, "in": 2}},
    {"before": 2, "after": 1},
    {"before": 2, "after": 1},
    (8, 8),
    [{"layer": "b", "why": "kept on request"}],
)


@given(key=st.sampled_from([*PLAN.to_dict(), "more"]), value=PLAIN)
def test_any_damage_to_a_part_gives_a_plan_or_a_plan_error(key: str, value: Any) -> None:
    with suppress(PlanError):
        assert PrunePlan.from_dict({**PLAN.to_dict(), key: value}).sha256 == PLAN.sha256


@given(PLAIN)
def test_any_data_gives_a_plan_error(data: Any) -> None:
    with pytest.raises(PlanError):
        PrunePlan.from_dict(data)


@given(st.text() | st.binary() | mutated(st.just(json.dumps(PLAN.to_dict()))))
def test_any_file_gives_the_same_plan_or_a_plan_error(content: str | bytes) -> None:
    file = Path("plan-1.json")
    file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    with suppress(PlanError):
        assert PrunePlan.load(file).sha256 == PLAN.sha256


def test_the_hash_depends_only_on_what_the_plan_does(plan: PrunePlan) -> None:
    assert dataclasses.replace(plan, imgsz=(1, 1), locked=[]).sha256 == plan.sha256
