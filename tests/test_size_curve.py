from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import IMGSZ, build, labelled_batches, per_value, tiny_yaml
from ultralytics import YOLO

from yolo_prune import curve, prune_model, size_curve
from yolo_prune.cli import main as cli
from yolo_prune.config.settings import PruneConfig
from yolo_prune.cost.budget import Goal
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import ConfigError
from yolo_prune.graph.trace import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.nested import nested_plans
from yolo_prune.planning.planner import plan_cut
from yolo_prune.report import curve_page
from yolo_prune.report.size_curve import Curve, CurvePoint
from yolo_prune.size_curve import SIZES, cut_copy, read_sizes

CONFIG = PruneConfig(target=0.5)


def plans_of(data: CalibrationData, sizes: tuple[float | str, ...]) -> list[PrunePlan]:
    """Return nested plans of a network for sizes."""
    graph = trace(data.model, IMGSZ)
    cost = CostModel(graph)
    budgets = [Goal.of([target], cost, data.model).at(1.0) for target in read_sizes(list(sizes))]
    requests = [PlanRequest.of(CONFIG, budget, graph.units(), None) for budget in budgets]
    return [planned.plan for planned in nested_plans(graph, CONFIG, requests, data)]


@pytest.fixture(scope="module")
def data() -> CalibrationData:
    return CalibrationData(build("tiny"), labelled_batches(2))


def kept(plan: PrunePlan, path: str, side: str, width: int) -> set[int]:
    return set(plan.layers[path][side]) if path in plan.layers else set(range(width))


@pytest.mark.slow
def test_plans_are_nested_each_is_within_its_size_and_cuts_the_dense_network(data: CalibrationData) -> None:
    sizes = (0.15, 0.35, 0.55, 0.65)
    plans = plans_of(data, sizes)
    dense = CostModel(trace(data.model, IMGSZ)).macs()
    macs = [plan.macs["after"] for plan in plans]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == len(macs)
    for plan, size in zip(plans, sizes, strict=True):
        assert plan.macs["before"] == dense and dense * (1 - size) * 0.9 < plan.macs["after"] <= dense * (1 - size)
        network = cut_copy(data, plan, CONFIG.replace(reconstruction=False))
        assert CostModel(trace(network, IMGSZ)).macs() == plan.macs["after"]
    for before, after in pairwise(plans[1:]):  # those that are planned on the one before
        for path, sides in after.widths.items():
            assert all(kept(after, path, side, n) <= kept(before, path, side, n) for side, n in sides.items())
    alone = plan_cut(data.model, CONFIG.replace(target=0.35), IMGSZ, data)
    assert plans[1].sha256 == alone.sha256  # as far as one iteration reaches, a size is planned as if it were alone


@pytest.mark.slow
def test_a_gap_between_two_sizes_is_planned_in_iterations(data: CalibrationData) -> None:
    (alone,) = plans_of(data, (0.7,))
    assert alone.sha256 == plan_cut(data.model, CONFIG.replace(target=0.7), IMGSZ, data).sha256


@pytest.mark.slow
def test_plans_for_other_quantities_hold_theirs(data: CalibrationData) -> None:
    before = CostModel(trace(data.model, IMGSZ)).params()
    after = [plan.params["after"] for plan in plans_of(data, ("30% params", "80% params"))]
    assert after[0] <= 0.7 * before and after[1] <= 0.2 * before


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        (["0.5", "2 MB"], "are of bytes and macs"),
        ([], "says nothing"),
        (0, "are of nothing"),
        ("0.5,1.5", "is not a share to remove"),
        ("1 MB onnx:16", "are of file onnx:16; give sizes of one of macs, params, bytes, latency"),
    ],
    ids=str,
)
def test_sizes_that_make_no_curve_are_refused(sizes: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_sizes(sizes)


def test_sizes_come_as_numbers_and_as_text() -> None:
    assert [str(target) for target in read_sizes(SIZES)] == [str(size) for size in SIZES]
    assert read_sizes("0.1, 50%") == read_sizes([0.1, 0.5])
    assert [str(target) for target in read_sizes("2 MB,1 MB")] == ["2 MB", "1 MB"]


def made(*fitness: float | None, macs: tuple[int, ...] = ()) -> Curve:
    """Return a curve of equal steps."""
    macs = macs or tuple(1000 - 100 * i for i in range(len(fitness)))
    points = [
        CurvePoint(f"{i / 10:g}" if i else "", amount, 2 * amount, 3 * amount, score)
        for i, (amount, score) in enumerate(zip(macs, fitness, strict=True))
    ]
    return Curve("my best.pt", "my.yaml", "detect", [64, 64], "macs", points[0], points[1:])


def test_the_knee_is_the_last_size_before_the_fall() -> None:
    bent = made(0.6, 0.6, 0.59, 0.58, 0.3, 0.1)
    assert bent.knee is bent.points[2]
    assert bent.advice == (
        "the knee is at 0.3; next: yolo train 'model=my best.pt' data=my.yaml epochs=50 imgsz=64 prune=0.3"
    )
    assert bent.table().splitlines()[4].endswith("0.5800 (-3.3%)   knee")
    straight, convex, flat = made(0.6, 0.5, 0.4, 0.3), made(0.6, 0.2, 0.1, 0.05), made(0.6, 0.61, 0.595, 0.59)
    assert straight.knee is convex.knee is flat.knee is made(0.6, None, None).knee is made(0.6, 0.1).knee is None
    assert "what is lost grows evenly" in straight.advice and "no fitness" in made(0.6, None).advice
    assert "learned nothing" in made(0.0, 0.0, 0.0).advice and made(0.0, 0.0, 0.0).knee is None
    assert "even 0.3 loses next to nothing; next: yolo train" in flat.advice


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=8), st.floats(0.1, 0.9), st.integers(2, 50))
def test_the_knee_does_not_hang_on_units(scores: list[float], scale: float, larger: int) -> None:
    falling = sorted(scores, reverse=True)
    plain = made(*falling)
    knee = plain.knee
    amounts = tuple(larger * p.macs for p in (plain.dense, *plain.points))
    other = made(*(scale * score for score in falling), macs=amounts).knee
    assert (knee and knee.target) == (other and other.target)
    if knee:
        ends = plain.dense, plain.points[-1]
        assert knee not in ends
        share = (knee.macs - ends[1].macs) / (ends[0].macs - ends[1].macs)
        assert (knee.fitness or 0) > ends[1].fitness + share * (ends[0].fitness - ends[1].fitness)  # type: ignore


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = made(0.6, 0.6, 0.3, 0.1)
    written = json.loads(found.save(tmp_path).read_text())
    assert Curve.from_dict(written) == found
    assert written["knee"] == "0.1" and written["schema"] == 1 and written["versions"]["yolo-prune"]


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ((0.6, 0.6, 0.3, 0.1), "Knee at 0.1, 1.1x fewer MACs, mAP50-95 60.0 → 60.0 without training"),
        ((0.6, 0.4, 0.2), "No knee, 1.2x fewer MACs, mAP50-95 60.0 → 20.0 without training"),
        ((0.6, 0.6, 0.6), "Even 0.2 loses next to nothing, 1.2x fewer MACs, mAP50-95 60.0 → 60.0 without training"),
        ((None, None), "1 sizes, no fitness was measured"),
    ],
)
def test_the_headline_of_a_curve(scores: tuple[float | None, ...], told: str) -> None:
    assert curve_page.headline(made(*scores)) == told


def test_the_page_tells_every_size_and_the_picture_is_drawn(tmp_path: Path) -> None:
    found = made(0.6, 0.59, 0.3, 0.1)
    for point in (found.dense, *found.points):
        point.latency = point.macs / 1e5
    found = replace(found, timed={"runtime": "onnx", "version": "1", "device": "<CPU>", "threads": 2})
    text = curve_page.write(found, tmp_path).read_text()
    data = found.to_dict()
    places = re.findall(r'<data value="([^"]*)" data-place="([^"]*)">', text.replace("&#34;", "'"))
    assert len(places) == 4 * 6
    for value, place in places:
        where: Any = data
        for key in json.loads(place.replace("'", '"')):
            where = where[key]
        assert json.loads(value) == where
    assert "&lt;CPU&gt;" in text and "<CPU>" not in text and "<script" not in text
    assert text.count("<svg") == 4 and "predicted latency (ONNX Runtime)" in text and "prune=0.1" in text
    assert (tmp_path / "curve.png").stat().st_size > 1000
    curve_page.write(made(None, None), tmp_path / "..")  # nothing to draw


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("prune=0.5", "curve cuts to several sizes: give sizes=0.5"),
        ("prune_export=onnx", "export: no option of a curve. Valid: importance"),
        ("sizes=0.5,2x", "are of latency and macs"),
        ("size=0.5", "size=0.5 is no argument of curve: did you mean sizes"),
    ],
)
def test_wrong_arguments_of_a_curve_are_refused(
    own_folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, why: str
) -> None:
    YOLO(tiny_yaml(own_folder)).save("start.pt")
    assert cli.main(["curve", "model=start.pt", "data=my.yaml", arguments]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.2, 0.5])
def test_a_point_is_what_pruning_to_that_size_gives(own_folder: Path, tiny_data: Path, size: float) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    short = {"data": str(tiny_data), "imgsz": 64, "batch": 4, "workers": 0, "project": str(own_folder / "runs")}
    yolo.train(**short, epochs=2, plots=False)
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    found = curve(yolo, **short, sizes=(size,), calibration=8, verbose=False)  # type: ignore[arg-type]
    assert all((value == before[name]).all() for name, value in yolo.model.state_dict().items())
    assert found.folder == own_folder / "runs" / "curve"
    result = prune_model(yolo, size, **short, calibration=8, benchmark=False, verbose=False)  # type: ignore[arg-type]
    assert result.report is not None
    (point,), (record,) = found.points, result.report.cuts
    assert point.plan_sha256 == result.plan.sha256 == record.plan_sha256
    assert (point.macs, point.params, point.fitness) == (record.macs, record.params, record.fitness_cut)
    assert found.dense.fitness == result.report.dense.fitness
    assert abs(point.bytes - record.bytes) < 0.1 * record.bytes  # notes of the run


@pytest.mark.slow
def test_the_command_line_draws_a_curve_and_says_what_is_out_of_reach(
    own_folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    YOLO(tiny_yaml(own_folder)).save("start.pt")
    run = ["curve", "model=start.pt", f"data={tiny_data}", "sizes=0.2,0.5,0.999", "prune_calibration=4", "imgsz=64"]
    assert cli.main([*run, "workers=0", "batch=2", "out=here/curve"]) == 0
    written = json.loads(Path("here/curve/curve.json").read_text())
    assert [point["target"] for point in written["points"]] == ["0.2", "0.5"]
    assert (
        written["out_of_reach"].startswith("0.999: ") and "is the least that can be reached" in written["out_of_reach"]
    )
    assert Path("here/curve/curve.html").is_file() and written["model"].endswith("start.pt")
    assert not list(Path("here").glob("curve?"))  # nothing beside it


@pytest.mark.slow
def test_a_curve_can_be_of_time(own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"runtime": "onnx", "version": "1", "device": "a device", "threads": 2}
    monkeypatch.setattr(size_curve, "latency_of", lambda network, graph, *_: replace(per_value(graph), where=where))
    yolo = YOLO(tiny_yaml(own_folder))
    short: dict[str, Any] = {"imgsz": 64, "batch": 4, "workers": 0, "calibration": 4, "out": "time"}
    found = curve(yolo, tiny_data, sizes="1.5x, 1.2x", **short)
    assert [point.target for point in found.points] == ["1.2x", "1.5x"]  # the largest network first
    dense = found.dense.latency or 0.0
    assert all(0 < (p.latency or 0) <= dense / ratio for p, ratio in zip(found.points, (1.2, 1.5), strict=True))
    assert found.timed == where and found.quantity == "latency"
    text = Path("time/curve.html").read_text()
    assert text.count("<svg") == 4 and "a device, 2 threads" in text
