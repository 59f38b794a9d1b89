"""The figures of the documents come from the committed results; their tables are checked in `test_documents`.

What the results promise, `benchmarks/check.py` checks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from yolo_prune.report.records import Report, Stage

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
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
    assert [len(line) for line in curves.values()] == [3] * 4
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
    report = Report.from_dict({**run, "quantization": None, "epochs": []})
    report.final = Stage(**run["final"])
    report.dense.finished = True  # it began with fine-tuned weights, and the file is older than this field
    printed = "\n".join(f"# {line}" for line in report.table().splitlines())
    assert f"\n{printed}\n```" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
