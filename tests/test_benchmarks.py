"""The README's figures come from the committed results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the sdist has no benchmarks")


def test_the_results_table_is_the_one_that_the_benchmark_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import main_job

    assert main_job.table() in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    sys.modules.pop("main_job")


@pytest.mark.parametrize("path", sorted((RESULTS / "main_job").glob("*-pruned.json")), ids=lambda p: p.stem)
def test_every_committed_run_is_on_target_and_its_export_agrees(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    report = result["report"]
    assert 0.48 <= report["final"]["macs"] / report["dense"]["macs"] <= 0.52
    assert report["exports"][0]["max_abs_diff"] < 1e-3
    metrics = result["plain_process"]["metrics"]
    assert metrics["fitness"] == pytest.approx(report["final"]["fitness"], abs=2e-3)


def test_planning_and_cutting_took_less_than_promised() -> None:
    seconds = json.loads((RESULTS / "overhead.json").read_text(encoding="utf-8"))["seconds"]
    assert seconds["yolo11n"]["total"] < 2 and seconds["yolo11x"]["total"] < 10
