from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolo_prune.config.settings import PruneConfig
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.report.records import CutRecord, Report, Stage
from yolo_prune.training import finish as handover
from yolo_prune.utils.run_folder import RunFolder


@pytest.fixture
def report() -> Report:
    cut = CutRecord(3, 500, 900, 2000, 0.1, 0.45, "abc", [], 1.5)
    return Report([64, 64], Stage(1000, 2000, 4000, 0.5, "a run/dense.pt", finished=True), {}, [cut])


@pytest.mark.parametrize(
    ("finished", "failures", "told"),
    [
        (True, [], ""),
        (None, [], ""),
        (True, [{}], "max_drop=0.1 asks for fitness 0.4500: this is the smallest model that held"),
        (
            False,
            [],
            "max_drop=0.1 asks for fitness 0.4500; that is a low bar, since the dense model was not finished "
            "(14 epochs of this run)",
        ),
        (
            False,
            [{}],
            "max_drop=0.1 asks for fitness 0.4500: this is the smallest model that held; that is a low bar, since "
            "the dense model was not finished (14 epochs of this run)",
        ),
    ],
)
def test_the_guard_says_where_its_bar_is_low(
    report: Report, finished: bool | None, failures: list[dict[str, Any]], told: str
) -> None:
    report.dense.epochs, report.dense.finished = 14, finished
    assert handover._held(report, {"max_drop": 0.1, "dense": 0.5, "failures": failures}) == told


@pytest.mark.parametrize(
    ("fitness", "told"), [(0.46, ""), (0.44, ", which training has brought to 0.4400; keep what the run began with")]
)
def test_where_nothing_held_a_dense_model_that_is_worse_by_now_is_told(
    report: Report, fitness: float, told: str
) -> None:
    report.cuts, report.final = [], Stage(1000, 2000, 4000, fitness)
    said = handover._held(report, {"max_drop": 0.1, "dense": 0.5, "failures": [{}]})
    assert said == f"max_drop=0.1 asks for fitness 0.4500: no cut held, so this is dense{told}"


@pytest.mark.parametrize(
    ("ratio", "error", "told"),
    [
        (2.0, 0.0, "2.00x as fast as dense"),
        (2.0, 0.04, "1.92-2.08x as fast as dense"),
        (1.03, 0.04, "about as fast as dense"),
        (0.5, 0.04, "0.48-0.52x as fast as dense"),
    ],
)
def test_a_prediction_for_a_device_comes_with_how_wrong_others_were(ratio: float, error: float, told: str) -> None:
    assert handover._predicted(ratio, error) == told


@pytest.mark.parametrize(
    ("speedup", "told"),
    [
        (Speedup(1.24, 1.27, 1.3, 0.99, True), "onnx: 1.27x (1.24-1.30) as fast as dense"),
        (
            Speedup(1.1, None, 2.6, 0.99, False),
            "onnx: no speed-up can be told: it did not settle, and came to between 1.10x and 2.60x\n"
            "time both again when the machine is idle: yolo-prune bench 'a run/dense.pt' 'a run/best.pt' runtimes=onnx",
        ),
    ],
)
def test_a_run_tells_a_speed_up_only_if_it_settled(
    report: Report, speedup: Speedup, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "time_result", lambda report, best, runtime: speedup)
    folder = RunFolder(Path("a run"))
    assert handover._time(PruneConfig(target=0.5), report, Path("a run/best.pt"), folder) == (told, None)
    report.dense.latency, report.cuts[0].latency = 0.02, 0.01
    first, *rest = told.splitlines()
    assert handover._time(PruneConfig(target=0.5), report, Path("a run/best.pt"), folder) == (
        "\n".join([f"{first}; 2.00x were predicted", *rest]),
        None,
    )
