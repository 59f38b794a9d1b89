from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from nets import build
from reports import full_report

from yolo_prune import compare
from yolo_prune.cli import main as cli
from yolo_prune.deploy import compare as module
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.errors import ConfigError
from yolo_prune.report import compare_page
from yolo_prune.report.pictures import Mark, joined_labels
from yolo_prune.report.records import Stage
from yolo_prune.report.runs import Comparison, FinishedRun

ASKED = {"task": "detect", "data": "cells.yaml", "imgsz": 640, "epochs": 8, "seed": 0, "model": "yolo11n.pt"}


def written(name: str, asked: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write the folder of a run, and return it."""
    folder = Path(name)
    (folder / "pruning").mkdir(parents=True)
    (folder / "args.yaml").write_text(yaml.safe_dump({**ASKED, **(asked or {})}))
    (folder / "pruning" / "report.json").write_text(json.dumps({**full_report(), **changes}))
    return folder


def final(**changes: Any) -> dict[str, Any]:
    return {**full_report()["final"], **changes}


def dense(**changes: Any) -> dict[str, Any]:
    return {**full_report()["dense"], **changes}


def test_labels_of_marks_that_lie_on_each_other_are_one_text() -> None:
    marks = [Mark(100, 0.5, "1"), Mark(99, 0.501, "2"), Mark(99, 0.6, "3"), Mark(40, 0.5, ""), Mark(40, 0.5, "4")]
    assert joined_labels(marks) == [("1, 2", (100, 0.5)), ("3", (99, 0.6)), ("4", (40, 0.5))]
    assert joined_labels([Mark(1, 0.5, "1")]) == [("1", (1, 0.5))]


def test_runs_of_one_data_set_and_image_size_are_compared_and_others_named() -> None:
    runs = [
        written("train"),
        written("train2", final=final(macs=1_200_000_000, fitness=0.57)),
        written("train3", final=final(macs=500_000_000, fitness=0.5), config={"target": "30%, 2 MB"}),
        written("train4", {"data": "other.yaml"}),
        written("train5", imgsz=[320, 320]),
        written("train6", {"task": "segment"}),
        written("train7", final=None),
    ]
    Path("train8").mkdir()
    found = compare([*runs, "train8", "train9"], verbose=False)
    assert [run.name for run in found.runs] == ["train2", "train", "train3"]  # the largest network first
    assert [run.target for run in found.runs] == ["0.5", "0.5", "30%, 2 MB"]
    assert found.front == ["train", "train3"]  # train2 is larger and worse than train
    assert found.left_out == {
        "train4": "data other.yaml, the first run's is cells.yaml",
        "train5": "320 pixels, the first run has 640",
        "train6": "task segment, the first run's is detect",
        "train7": "the run is not finished.",
        "train8": "there is neither pruning/report.json nor weights/best.pt.",
        "train9": "there is no such folder.",
    }
    saved = json.loads(Path("compare/compare.json").read_text())
    assert saved["front"] == found.front and saved["left_out"] == found.left_out
    assert [run["final"]["macs"] for run in saved["runs"]] == [1_200_000_000, 950_000_000, 500_000_000]
    assert Path("compare/compare.png").stat().st_size > 1000
    table = found.table().splitlines()
    assert table[1].startswith("train2") and not table[1].endswith("*") and table[2].endswith("*")


def test_runs_of_the_same_name_are_told_apart() -> None:
    found = compare([written("a/train"), written("b/train")], out="here", verbose=False)
    assert [run.name for run in found.runs] == ["train", "b/train"] and Path("here/compare.html").is_file()


def test_a_page_that_cannot_be_written_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.txt").write_text("mine")
    assert cli.main(["compare", str(written("train")), "out=mine.txt", "verbose=False"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("yolo-prune: mine.txt/compare.json cannot be written (") and "choose a folder" in told


def test_a_resumed_run_is_told_by_what_it_began_with() -> None:
    """Its arguments name the last.pt that it went on from."""
    asked = {"model": "train/weights/last.pt"}
    runs = written("train", asked, start="best.pt"), written("train2", asked)  # the second is of an earlier version
    assert [run.start for run in compare(runs, verbose=False).runs] == ["best.pt", "train/weights/last.pt"]


def test_nothing_to_compare_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"no finished run to compare; .* train: the run is not finished"):
        compare([written("train", final=None)], verbose=False)
    assert not Path("compare").exists()
    assert cli.main(["compare"]) == cli.main(["compare", "train", "data=x"]) == 2
    told = capsys.readouterr().err
    assert "compare without runs" in told and "data is no argument of compare. Valid: out, verbose." in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "0.5860"),
        ({"finished": False}, "0.5860 (not finished)"),
        ({"finished": None}, "0.5860 (finished?)"),
        ({"fitness_at_start": 0.61}, "0.6100"),
        ({"fitness_at_start": 0.5}, "0.5860"),
    ],
)
def test_a_dense_model_in_the_middle_of_its_training_is_no_point_of_the_curve(
    changes: dict[str, Any], told: str
) -> None:
    found = compare([written("train", dense=dense(**changes))], verbose=False)
    assert f"  {told}" in found.table()
    marks = compare_page.panels(found)[0].marks
    assert [m.fitness for m in marks if m.label == "dense"] == ([] if "(" in told else [float(told)])
    text = compare_page.render(found, "a")
    assert ("it is no bar" in text) == ("(" in told)


@pytest.mark.parametrize(
    ("speedup", "told"),
    [
        (Speedup(1.77, 1.79, 1.82, 0.99, True), "1.77\N{EN DASH}1.82x"),
        (Speedup(1.79, 1.79, 1.79, 0.99, True), "1.79x"),
        (Speedup(1.2, None, 1.4, 0.99, False), "1.20\N{EN DASH}1.40x"),
        (Speedup(2.5, None, 2.6, 0.5, False), ""),
        (Speedup(0.9, None, 1.4, 0.99, False), ""),
        (None, ""),
    ],
)
def test_a_speed_up_is_told_as_far_as_it_settled(speedup: Speedup | None, told: str) -> None:
    run = written("train", final=final(speedup=speedup and asdict(speedup)))
    found = compare([run], verbose=False)
    assert re.findall(r"[\d.]+\N{EN DASH}?[\d.]*x", found.table()) == [told] * bool(told)
    assert (f"<td>{told}</td>" if told else "<td></td>") in compare_page.render(found, "a")


def test_a_run_without_pruning_is_read_from_its_checkpoint_with_official_scales_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained(name: str, epoch: int) -> Path:
        path = Path(name, "weights", "best.pt")
        path.parent.mkdir(parents=True)
        metrics = {"fitness": 0.6}
        torch.save({"model": build("yolov8n"), "epoch": epoch, "train_args": ASKED, "train_metrics": metrics}, path)
        return path.parent.parent

    size = Stage(700, 300)
    monkeypatch.setattr(module, "measured", lambda network, imgsz: size)
    monkeypatch.setattr(module, "neighbours", lambda of, macs, imgsz: {"yolov8s": (of[0], Stage(900, 400))})
    found = compare([trained("dense", -1), trained("interrupted", 5), written("train")], verbose=False)
    run = next(run for run in found.runs if run.name == "dense")
    assert (run.final.macs, run.final.fitness, run.epochs, run.is_pruned) == (700, 0.6, 8, False)
    assert run.final.bytes == Path("dense/weights/best.pt").stat().st_size
    assert found.left_out == {"interrupted": "the run is not finished."}
    assert list(found.scales) == ["yolov8s"] and "yolov8s" in found.table()
    assert compare_page.headline(found) == "2 runs, 1 pruned and 1 without pruning, mAP50-95 up to 60.0"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_no_run_on_the_front_is_beaten_and_all_others_are(pairs: list[tuple[int, int]]) -> None:
    runs = [
        FinishedRun(str(i), "0.5", 8, "", 0, None, Stage(macs, fitness=fitness / 10))
        for i, (macs, fitness) in enumerate(pairs)
    ]
    front = Comparison("a", "detect", [64, 64], runs).front
    best = [pairs[int(name)] for name in front]
    assert front
    for i, (macs, fitness) in enumerate(pairs):
        beaten = any(m <= macs and f >= fitness and (m, f) != (macs, fitness) for m, f in best)
        assert beaten == (str(i) not in front)


def test_nothing_that_a_user_named_is_markup_in_a_comparison() -> None:
    hostile = "<script>alert(1)</script>"
    run = FinishedRun(hostile, hostile, 8, hostile, 0, Stage(9, 9, 9, 0.5, finished=True), Stage(5, 5, 5, 0.4))
    found = Comparison(hostile, "detect", [64, 64], [run], {hostile: Stage(6, 6)}, {hostile: hostile})
    text = compare_page.render(found, hostile)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 10
