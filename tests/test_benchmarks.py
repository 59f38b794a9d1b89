"""The figures of the documents come from the committed results; their tables are checked in `test_documents`.

What the results promise, `benchmarks/check.py` checks.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from yolo_prune.report.records import Report, Stage

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
Made = Callable[..., None]
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the sdist has no benchmarks")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the benchmark scripts be imported by their names."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    yield
    for name in (path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("scripts")
def test_the_picture_is_drawn_from_the_results() -> None:
    import picture

    curves = picture.points()
    assert len(curves) == 6 and all(len(line) == 3 for line in curves.values())
    assert picture.draw(curves) == picture.PICTURE.read_text(encoding="utf-8")


@pytest.mark.usefixtures("scripts")
def test_the_speed_that_is_told_in_prose_is_measured() -> None:
    import speed

    of = {"50 % fewer MACs": [], "80 % fewer MACs": []}
    for model, imgsz in product(speed.MODELS, speed.SIZES):
        for name, found in of.items():
            found += [speed.rows_of(model, imgsz)[name][runtime] for runtime in ("onnx", "openvino")]
    half, most = (f"{min(found):.2f}x to {max(found):.2f}x" for found in of.values())
    assert half in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    page = (REPOSITORY / "docs" / "target.md").read_text(encoding="utf-8")
    assert half in page and most in page


def test_the_first_table_is_that_of_a_committed_run() -> None:
    run = json.loads((RESULTS / "accuracy" / "yolov8n-bccd-s0-ours-50.json").read_text(encoding="utf-8"))["report"]
    report = Report.from_dict(run)
    report.final = Stage(**run["final"])
    printed = "\n".join(f"# {line}" for line in report.table().splitlines())
    assert f"\n{printed}\n```" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def detections(images: int, found: float, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Return Ultralytics' statistics of images with four objects each, of which a share is found."""
    draw = np.random.default_rng(seed)
    hits = [draw.random(4) < found for _ in range(images)]
    return {
        "tp": [np.repeat(hit[:, None], 10, 1) for hit in hits],
        "conf": [np.full(4, 0.9) - 0.5 * ~hit for hit in hits],
        "pred_cls": [np.zeros(4)] * images,
        "target_cls": [np.zeros(4)] * images,
    }


@pytest.mark.usefixtures("scripts")
def test_the_standard_error_of_an_accuracy_is_that_of_the_images() -> None:
    import validation

    few, many = (validation.resampled(detections(n, 0.5))["mAP50-95(B)"] for n in (25, 400))
    errors = [validation.standard_error([draws]) for draws in (few, many)]
    expected = [math.sqrt(0.25 / (4 * n)) for n in (25, 400)]  # the found share of 4 n objects
    assert errors == pytest.approx(expected, rel=0.4)
    assert np.mean(many) == pytest.approx(0.5, abs=0.05)


@pytest.mark.usefixtures("scripts")
def test_map50_is_that_of_boxes_that_overlap_by_half() -> None:
    import validation

    stats = detections(60, 0.7)
    for hits in stats["tp"]:
        hits[:, 5:] = False  # no box overlaps by 0.75 or more
    found = validation.resampled(stats)
    assert found["mAP50(B)"] == validation.resampled(detections(60, 0.7))["mAP50(B)"]
    assert np.mean(found["mAP50-95(B)"]) == pytest.approx(np.mean(found["mAP50(B)"]) / 2, abs=1e-4)


@pytest.mark.usefixtures("scripts")
def test_models_are_compared_on_the_same_draws_of_images_and_seeds_count() -> None:
    import validation

    easy, hard = (validation.resampled(detections(60, found))["mAP50-95(B)"] for found in (0.7, 0.6))
    same = validation.differences([easy, hard], [easy, hard])
    assert validation.standard_error(same) == 0
    paired = validation.standard_error(validation.differences([easy], [hard]))
    apart = math.hypot(validation.standard_error([easy]), validation.standard_error([hard]))
    assert 0 < paired < 0.8 * apart  # they miss the same objects, mostly
    assert validation.standard_error([easy, hard]) > validation.standard_error([easy])


@pytest.fixture
def made(scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Return what writes the result of a run: contender, percent of the MACs, best mAP50-95, parameters, seed, data."""
    import accuracy

    monkeypatch.setattr(accuracy, "RESULTS", tmp_path)

    def made(contender: str, kept: int, best: float, params: int, seed: int = 0, data: str = "deeppcb") -> None:
        def judged(fitness: float) -> dict[str, Any]:
            metrics = {"mAP50-95(B)": fitness, "mAP50(B)": fitness + 0.2}
            draws = {metric: [value - 0.01, value + 0.01] for metric, value in metrics.items()}
            return {"metrics": metrics, "resampled": draws}

        report = {stage: {"params": params * times} for stage, times in (("final", 1), ("dense", 2))}
        content = {
            "plain_process": judged(best),
            "last": judged(best - 0.1),
            "report": {**report, "cuts": [{"fitness_cut": 0.5}]},
        }
        run = accuracy.Run(accuracy.Case("yolov8n", data, seed), contender, kept)
        (tmp_path / f"{run.name}.json").write_text(json.dumps(content), encoding="utf-8")

    return made


def test_a_table_tells_the_last_epoch_and_the_best_one_and_leaves_out_what_is_missing(made: Made) -> None:
    import accuracy_tables

    made("dense", 100, 0.62, 0)
    made("ours", 50, 0.6, 1_500_000)
    made("usual", 50, 0.5, 1_200_000)
    assert accuracy_tables.detailed_table().splitlines()[2:] == [
        "| yolov8n, 50 % | dense | 1 | 3.00 M | 0.520 ± 0.014 | -2.0 ± 0.0 | 0.720 ± 0.014 | -2.0 ± 0.0 |",
        "| yolov8n, 50 % | usual recipe | 1 | 1.20 M | 0.400 ± 0.014 | +10.0 ± 0.0 | 0.600 ± 0.014 | +10.0 ± 0.0 |",
        "| yolov8n, 50 % | ours | 1 | 1.50 M | 0.500 ± 0.014 |  | 0.700 ± 0.014 |  |",
    ]
    assert [line.split(" M | ")[1] for line in accuracy_tables.best_table().splitlines()[2:]] == [
        "0.620 ± 0.014 | -2.0 ± 0.0 | 0.820 ± 0.014 | -2.0 ± 0.0 |",
        "0.500 ± 0.014 | +10.0 ± 0.0 | 0.700 ± 0.014 | +10.0 ± 0.0 |",
        "0.600 ± 0.014 |  | 0.800 ± 0.014 |  |",
    ]
    assert len(accuracy_tables.table().splitlines()) == 2  # it has a table of its own
    assert accuracy_tables.summary().splitlines()[2:] == [
        "| yolov8n, deeppcb | 50 % | 0.520 ± 0.014 | 0.400 ± 0.014 |  |  | 0.500 ± 0.014 |"
    ]
    made("ours", 50, 0.64, 1_300_000, seed=1)
    made("dense", 100, 0.64, 0, seed=1)
    assert [line.split(" | ")[1:6] for line in accuracy_tables.detailed_table().splitlines()[2:]] == [
        ["dense", "2", "2.80 M", "0.530 ± 0.017", "-1.0 ± 2.0"],  # the spread of the seeds counts
        ["usual recipe", "1", "1.20 M", "0.400 ± 0.014", "+10.0 ± 0.0"],  # beside ours of the same seed
        ["ours", "2", "1.40 M", "0.520 ± 0.024", ""],
    ]
    assert accuracy_tables.summary().splitlines()[2:] == [  # of the seed that all have
        "| yolov8n, deeppcb | 50 % | 0.520 ± 0.014 | 0.400 ± 0.014 |  |  | 0.500 ± 0.014 |"
    ]
    made("ours:one cut", 50, 0.6, 1, data="bccd")  # whose defaults are not made
    assert accuracy_tables.ablation().splitlines()[2:] == ["| one cut | 1 | 0.500 | 0.600 ± 0.014 |  |"]


def test_a_small_network_stands_beside_what_half_of_it_reaches(made: Made) -> None:
    import accuracy_tables

    made("ours", 30, 0.55, 800_000)
    made("small", 30, 0.57, 800_000)
    assert len(accuracy_tables.small_table().splitlines()) == 2  # one of two is not made
    made("smaller", 15, 0.4, 400_000)
    assert accuracy_tables.small_table().splitlines()[2:] == [
        "| yolov8n, deeppcb | 30 % | 0.80 M | 0.470 ± 0.014 |  |",
        "| yolov8n, deeppcb | 15 % | 0.40 M | 0.300 ± 0.014 | -17.0 ± 0.0 |",
    ]


@pytest.mark.usefixtures("scripts")
def test_the_standard_error_of_a_classifier_is_that_of_the_images() -> None:
    import validation

    labels = np.arange(400) % 10
    best = (labels[:, None] + np.arange(5)) % 10
    best[:40] += 5  # not among the five
    best[40:120, [0, 1]] = best[40:120, [1, 0]]  # the second
    found = validation.resampled_classes(labels, best)
    assert np.mean(found["accuracy_top1"]) == pytest.approx(0.7, abs=0.01)
    assert np.mean(found["accuracy_top5"]) == pytest.approx(0.9, abs=0.01)
    assert validation.standard_error([found["accuracy_top1"]]) == pytest.approx(math.sqrt(0.7 * 0.3 / 400), rel=0.15)


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("rect", [True, False])
def test_a_checkpoint_is_validated_on_images_of_the_shape_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rect: bool
) -> None:
    import validation

    asked: dict[str, Any] = {}

    class Model:
        task = "detect"

        def __init__(self, checkpoint: str) -> None:
            assert checkpoint == "best.pt"

        def add_callback(self, *_: object) -> None: ...

        def val(self, **given: Any) -> SimpleNamespace:
            asked.update(given)
            return SimpleNamespace(results_dict={"metrics/mAP50(B)": 0.5})

    def run(command: list[str], **_: object) -> SimpleNamespace:
        validation.main(*command[2:])
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setitem(sys.modules, "yolo_prune", sys.modules["yolo_prune"])  # which is made unimportable there
    monkeypatch.setattr("ultralytics.YOLO", Model)
    monkeypatch.setattr("ultralytics.nn.tasks.torch_safe_load", lambda *_, **__: None)
    monkeypatch.setattr(validation.subprocess, "run", run)
    found = validation.validate(Path("best.pt"), "data.yaml", 320, rect)
    assert found == {"metrics": {"mAP50(B)": 0.5}, "resampled": {}}
    assert (asked["data"], asked["imgsz"], asked["rect"]) == ("data.yaml", 320, rect)


@pytest.mark.usefixtures("scripts")
def test_the_clock_of_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    import training

    results = tmp_path / "results.csv"
    results.write_text("epoch,time\n1,10\n2,20\n3,12\n4,22\n", encoding="utf-8")
    assert training.epoch_ends(results) == [10, 20, 32, 42]
    results.write_text("epoch,metrics/precision(B),metrics/mAP50(B)\n1,0.9,0.12344\n2,0.8,0.2\n", encoding="utf-8")
    assert training.accuracy_by_epoch(results) == {"mAP50(B)": [0.1234, 0.2]}
    training.write(tmp_path / "found.json", {"draws": [0.5, -1e-05, 2], "name": ["a", "b"], "none": []})
    text = (tmp_path / "found.json").read_text(encoding="utf-8")
    assert ' "draws": [0.5, -1e-05, 2]' in text.splitlines()[2]
    assert json.loads(text)["name"] == ["a", "b"]


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(("made", "begins"), [(0, ["model=a.pt"]), (1, ["resume"]), (2, None)])
def test_an_interrupted_training_goes_on_and_a_finished_one_is_only_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int, begins: list[str] | None
) -> None:
    import training

    folder, commands = tmp_path / "run", []
    (folder / "weights").mkdir(parents=True)
    rows = ["epoch,time", "1,10", "2,20"]

    def run(command: list[str], **_: object) -> None:
        commands.append(command[2:])
        (folder / "results.csv").write_text("\n".join(rows), encoding="utf-8")

    if made:
        (folder / "results.csv").write_text("\n".join(rows[: made + 1]), encoding="utf-8")
        (folder / "weights" / "last.pt").touch()
    (folder / "weights" / "best.pt").touch()
    monkeypatch.setattr(training.subprocess, "run", run)
    monkeypatch.setattr(training, "validate", lambda file, *_, rect=True: {"judged": f"{file.name}, rect={rect}"})
    found = training.train(("model=a.pt", "data=d", "imgsz=64", "epochs=2", "prune=0.5"), folder, tmp_path)
    assert [command[:1] for command in commands] == ([begins] if begins else [])
    if made == 1:
        assert commands[0] == ["resume", f"model={folder / 'weights' / 'last.pt'}", "prune=True"]
    assert found["command"] == "yolo train model=a.pt data=d imgsz=64 epochs=2 prune=0.5"
    assert found["seconds"] == {"total": 20, "per_epoch": 10.0}
    assert found["plain_process"] == {"judged": "best.pt, rect=True", "bytes": 0}
    assert found["last"] == {"judged": "last.pt, rect=False"}
