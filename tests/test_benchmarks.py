"""The tables of the documents come from the committed results; `benchmarks/check.py` tells whether those hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from yolo_prune.report.records import Report, Stage

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
SUPPORT, COST_MODEL = (
    json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) if RESULTS.is_dir() else {}
    for name in ("support", "cost_model")
)
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the sdist has no benchmarks")


def test_the_tables_are_those_that_the_benchmarks_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import accuracy
    import cost_model
    import criteria
    import exports
    import faults
    import gpu
    import main_job
    import operators
    import picture
    import reid
    import speed
    import support
    import uses
    import without_training

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert main_job.table() in readme
    assert support.table(SUPPORT) in readme
    assert without_training.table() in readme
    for table in (accuracy.table, accuracy.ablation, accuracy.time_table):
        assert table() in readme
    assert exports.table() in readme
    assert cost_model.table(COST_MODEL) in readme
    tables = (speed.speed_table, speed.target_table, speed.equal_speed_table, speed.width_table)
    for table in (*tables, speed.multiple_table, speed.error_table):
        assert table() in readme
    assert operators.limit_table(json.loads(operators.RESULTS.read_text(encoding="utf-8"))["rows"]) in readme
    assert criteria.table() in (REPOSITORY / "docs" / "importance.md").read_text(encoding="utf-8")
    assert gpu.table() in (REPOSITORY / "docs" / "target.md").read_text(encoding="utf-8")
    page = (REPOSITORY / "docs" / "uses.md").read_text(encoding="utf-8")
    assert uses.table() in page and reid.table() in page
    assert faults.table() in (REPOSITORY / "docs" / "resuming.md").read_text(encoding="utf-8")
    curves = picture.points()
    assert [len(line) for line in curves.values()] == [3] * 4
    assert picture.draw(curves) == picture.PICTURE.read_text(encoding="utf-8")
    for name in (path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")):
        sys.modules.pop(name, None)


def test_the_first_table_is_that_of_a_committed_run() -> None:
    run = json.loads((RESULTS / "accuracy" / "yolov8n-bccd-s0-ours-50.json").read_text(encoding="utf-8"))["report"]
    report = Report.from_dict({**run, "quantization": None, "epochs": []})
    report.final = Stage(**run["final"])
    report.dense.finished = True  # it began with fine-tuned weights, and the file is older than this field
    printed = "\n".join(f"# {line}" for line in report.table().splitlines())
    assert f"\n{printed}\n```" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
