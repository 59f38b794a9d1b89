"""Trackers that take the features of objects from the maps which the head reads: what they need, and who is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import FAMILIES, IMGSZ, build, fast_and_slow, make, narrow_yaml
from trainings import soon
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.checks import check_yaml

from yolo_prune import prune_model
from yolo_prune.blocks import map_readers
from yolo_prune.errors import UnsupportedError
from yolo_prune.graph.groups import ChannelGraph, are_multiples
from yolo_prune.graph.trace import trace
from yolo_prune.planning.allocation import plan_of
from yolo_prune.planning.verification import verify_cut
from yolo_prune.surgery.slicing import cut
from yolo_prune.training.finish import reid_hint

NAMES = (*FAMILIES, "yolov8n-seg", "yolo11n-pose", "yolov8n-obb", "yolov10n", "yolo12n", "yolo26n-p2", "yolov8n-p6")


def maps_of(network: Any) -> list[int]:
    return list(map_readers(network).values())


@lru_cache
def tied(name: str) -> tuple[DetectionModel, ChannelGraph]:
    network = build(name)
    return network, trace(network, 64, reid=True)


def untied(name: str = "yolov8n") -> DetectionModel:
    """Return a pruned network whose maps keep different shares."""
    network = build(name)
    graph = trace(network, IMGSZ)
    readers = dict(zip(map_readers(network), (48, 104, 200), strict=True))
    steps = [
        next((n for g in b.groups for path, n in readers.items() if (path, "in") in graph.groups[g].members), b.steps)
        for b in graph.bundles
    ]
    plan_of(graph, steps, [np.arange(group.width) for group in graph.groups]).apply(network)
    return network


@pytest.mark.parametrize("name", fast_and_slow(*NAMES))
def test_the_maps_of_the_head_are_one_bundle(name: str) -> None:
    network, graph = tied(name)
    (bundle,) = [b for b in graph.bundles if b.narrow]
    assert bundle.locked is None
    widths = [sum(graph.groups[g].width for g in bundle.groups)]
    assert widths == [sum(maps_of(network))] and bundle.steps == min(maps_of(network))


@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", fast_and_slow(*NAMES))
def test_whatever_is_cut_the_maps_stay_multiples_of_the_smallest_in_their_proportions(
    name: str, data: st.DataObject
) -> None:
    network, graph = tied(name)
    dense = maps_of(network)
    steps = [b.steps if b.locked else data.draw(st.integers(1, b.steps)) for b in graph.bundles]
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    plan = plan_of(graph, steps, [rng.permutation(group.width) for group in graph.groups])
    smaller = copy.deepcopy(network)
    cut(plan, [smaller])
    left = maps_of(smaller)
    assert are_multiples(left)
    assert [n * dense[0] for n in left] == [n * left[0] for n in dense]


@pytest.mark.parametrize("name", fast_and_slow(*FAMILIES))
def test_a_cut_with_tied_maps_is_exact(name: str) -> None:
    network = build(name)
    plan = make(network, 0.5, importance="random", allocation="global", reid=True)
    assert max(verify_cut(network, plan, 64).values()) < 1e-9


@pytest.mark.parametrize(
    ("name", "target", "round_to", "multiple"),
    [
        *(("yolov8n", 0.3, n, multiple) for n, multiple in ((None, 8), (1, 1), (16, 16))),
        pytest.param("yolo11n", 0.5, None, 8, marks=pytest.mark.slow),
        pytest.param("yolo26n", 0.6, None, 8, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_map_is_rounded_as_any_width(
    name: str, round_to: int | None, multiple: int, target: float
) -> None:
    network = build(name)
    plan = make(network, target, allocation="global", round_to=round_to, reid=True)
    assert 1 - target - 0.03 <= plan.macs["after"] / plan.macs["before"] <= 1 - target
    plan.apply(network)
    left = maps_of(network)
    assert are_multiples(left) and all(n % multiple == 0 for n in left)


@pytest.mark.slow
def test_a_second_cut_keeps_what_the_first_one_left() -> None:
    network = build("yolo11n")
    for target in (0.3, 0.4):
        make(network, target, importance="random", reid=True).apply(network)
        assert are_multiples(maps_of(network))


@pytest.mark.slow
def test_layers_that_are_ignored_keep_all_of_the_maps() -> None:
    network = build("yolov8n")
    plan = make(network, 0.4, reid=True, ignored_layers=("model.15.cv2.conv",))
    plan.apply(network)
    assert maps_of(network) == [64, 128, 256]
    locked = {entry["layer"] for entry in plan.locked if "kept on request" in entry["why"]}
    assert {"model.15.cv2.conv", "model.18.cv2.conv", "model.21.cv2.conv"} <= locked


def test_without_the_knob_maps_are_free() -> None:
    assert not any(bundle.narrow for bundle in trace(build("yolov8n"), IMGSZ).bundles)
    network = build("yolov8n")
    make(network, 0.3, layer_limits={"model.15.cv2.*": 0.01}).apply(network)
    first, *others = maps_of(network)
    assert first == 64 and others[0] < 128 and others[1] < 256


# Who is told -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov8n-cls", "yolo26n-sem", "yolo26n-depth"])
def test_a_head_without_maps_is_refused_before_anything_is_cut(name: str) -> None:
    model = YOLO(f"{name}.yaml")
    with pytest.raises(UnsupportedError, match=r"reid=True is for the maps .* and a \w+ is none: leave reid out"):
        prune_model(model, 0.3, imgsz=64, reid=True)


def test_maps_that_are_no_multiples_already_are_refused_with_their_widths() -> None:
    with pytest.raises(UnsupportedError, match="of 48, 104 and 200 channels, are not: start from a model whose maps"):
        trace(untied(), IMGSZ, reid=True)
    with pytest.raises(UnsupportedError, match="of 64, 96 and 128 channels"):
        trace(build("yolov9t"), IMGSZ, reid=True)


def test_a_network_in_which_a_tracker_finds_no_features_is_named() -> None:
    assert reid_hint(untied()) == (
        "the head reads maps of 48, 104 and 200 channels: tracking with with_reid and model: auto needs multiples of "
        "the smallest (prune with reid=True)"
    )
    assert reid_hint(build("yolov8n")) == reid_hint(build("yolov8n-cls")) == ""


@pytest.mark.slow
def test_of_an_end_to_end_head_ultralytics_takes_no_features_so_nobody_is_warned() -> None:
    network = untied("yolo26n")
    for is_end_to_end, told in ((True, False), (False, True)):
        network.model[-1].end2end = is_end_to_end
        assert ("48, 104 and 200" in reid_hint(network)) is told


@pytest.mark.slow
def test_a_cut_by_weights_alone_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    network = untied()
    prune_model(network, 0.1, imgsz=64)
    assert "tracking with with_reid and model: auto needs multiples" in caplog.text
    caplog.clear()
    prune_model(build("yolov8n"), 0.3, imgsz=64, reid=True)
    assert "tracking with" not in caplog.text


@pytest.mark.slow
def test_a_run_keeps_the_promise_and_its_report_has_the_widths(run: Callable[..., Any], own_folder: Path) -> None:
    trainer = run(YOLO(narrow_yaml("yolov8n", own_folder)), soon(reid=True))
    report = json.loads((trainer.save_dir / "pruning" / "report.json").read_text())
    assert report["maps"] == maps_of(YOLO(trainer.best).model) and are_multiples(report["maps"])
    assert report["maps"] != [32, 64, 128] and report["cuts"]


@pytest.mark.slow
def test_a_run_without_it_says_at_its_end_what_does_not_work(
    run: Callable[..., Any], own_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    network = YOLO(narrow_yaml("yolov8n", own_folder))
    limits = {"model.15.*": 0.01, "model.18.*": 0.7, "model.21.*": 0.7}
    trainer = run(network, soon(0.5, allocation="uniform", layer_limits=limits, round_to=1))
    report = json.loads((trainer.save_dir / "pruning" / "report.json").read_text())
    assert not are_multiples(report["maps"])
    assert f"reads maps of {report['maps'][0]}, {report['maps'][1]} and {report['maps'][2]} channels" in caplog.text
    page = (trainer.save_dir / "pruning" / "report.html").read_text()
    assert "these are not: prune with reid=True" in page


# The tracker itself ------------------------------------------------------------------------------------------------


@pytest.fixture
def frames() -> list[np.ndarray]:
    """A square that moves over noise."""
    draw, shown = np.random.default_rng(0), []
    for i in range(4):
        frame = draw.integers(0, 60, (128, 128, 3), np.uint8)
        frame[40:80, 20 + 6 * i : 60 + 6 * i] = (250, 200, 40)
        shown.append(frame)
    return shown


def track(network: DetectionModel, frames: list[np.ndarray], tracker: Path) -> list[Any]:
    """Track with anything that is found, however unsure: these networks have learned nothing."""
    stock = YAML.load(check_yaml("botsort.yaml"))
    low = {"track_high_thresh": 0.0, "track_low_thresh": 0.0, "new_track_thresh": 0.0, "gmc_method": "none"}
    YAML.save(tracker, {**stock, **low, "with_reid": True, "model": "auto"})
    yolo = YOLO("yolov8n.yaml")
    yolo.model = network
    options = {"tracker": str(tracker), "imgsz": 128, "conf": 1e-6, "max_det": 5, "verbose": False}
    return [yolo.track(frame, persist=True, **options)[0] for frame in frames]


@pytest.mark.parametrize("name", fast_and_slow(*FAMILIES))
def test_botsort_tracks_by_the_features_of_a_pruned_detector(
    name: str, frames: list[np.ndarray], own_folder: Path
) -> None:
    pytest.importorskip("lap", reason="Ultralytics' trackers need it")
    network = build(name)
    make(network, 0.4, allocation="global", reid=True).apply(network)
    if name == "yolo26n":
        network.model[-1].end2end = False  # else Ultralytics loads another model for the features
    tracked = track(network, frames, own_folder / "reid.yaml")
    assert all(result.boxes.is_track for result in tracked[1:])


def test_botsort_fails_without_the_knob_as_the_run_has_said(frames: list[np.ndarray], own_folder: Path) -> None:
    pytest.importorskip("lap", reason="Ultralytics' trackers need it")
    with pytest.raises(RuntimeError, match=r"shape '\[1, -1, 48, 2\]' is invalid"):
        track(untied(), frames, own_folder / "reid.yaml")
