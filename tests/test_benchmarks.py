"""The figures of the documents come from the committed results; their tables, `test_documents` checks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from yolo_prune.deploy.formats import formats, precisions
from yolo_prune.host.zoo import model_yamls, scaled
from yolo_prune.report.records import Report, Stage

REPOSITORY = Path(__file__).parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
SUPPORT, COST_MODEL = (
    json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) if RESULTS.is_dir() else {}
    for name in ("support", "cost_model")
)
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


def test_the_support_results_have_every_model_yaml_and_no_failure() -> None:
    assert {row["model"] for row in SUPPORT["models"]} >= {scaled(path)[0].stem for path in model_yamls()}
    assert [(row["model"], row["problems"]) for row in SUPPORT["models"] if row["problems"]] == []
    for row in SUPPORT["models"]:
        assert 0.48 <= row["macs_kept"] <= 0.52
        assert max(row["dead_channels"].values()) < 1e-9
        assert row["plain_load"] == 0 and row["train_step"]
        assert row["onnx"] < 1e-3
        assert row["counted_macs"] / row["macs"] == row["macs_kept"]


def test_every_format_and_precision_has_a_result_and_what_runs_in_full_precision_agrees() -> None:
    results = json.loads((RESULTS / "exports.json").read_text(encoding="utf-8"))
    assert results.keys() >= {
        f"{name}:{p}" if i else name for name in formats() for i, p in enumerate(precisions(name))
    }
    for name, row in results.items():
        assert row["ok"] or row["reason"], name
        if row["fitness"] is not None and row["precision"] == "32":
            assert row["ok"] and abs(row["fitness"] - row["fitness_checkpoint"]) < 2e-3, name
    ran = {name for name, row in results.items() if row["fitness"] is not None}
    assert ran >= {"onnx", "onnx:8", "openvino", "openvino:8", "torchscript", "litert", "litert:8", "ncnn", "mnn"}
    assert results["coreml"]["inspected"]["input"]["shape"] == [224, 224]


@pytest.mark.parametrize("path", sorted((RESULTS / "accuracy").glob("*-ours-*.json")), ids=lambda p: p.stem)
def test_every_committed_run_is_on_target_and_its_checkpoint_is_as_accurate_as_it_says(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    report = result["report"]
    kept = report["final"]["macs"] / report["dense"]["macs"]
    assert int(path.stem.rpartition("-")[2]) / 100 == pytest.approx(kept, abs=0.02)
    assert result["plain_process"]["metrics"]["fitness"] == pytest.approx(report["final"]["fitness"], abs=2e-3)


def test_what_pruning_costs_a_run_is_what_was_promised() -> None:
    overhead = json.loads((RESULTS / "overhead.json").read_text(encoding="utf-8"))
    assert overhead["seconds"]["yolo11n"]["total"] < 2 and overhead["seconds"]["yolo11x"]["total"] < 10
    assert overhead["gradient_collection"]["share"] < 0.03 and overhead["data_seconds"]["reconstruction"] < 30
    assert overhead["memory"]["ratio"] <= 1.15


def test_a_pruned_checkpoint_does_what_the_dense_one_does() -> None:
    models = json.loads((RESULTS / "uses.json").read_text(encoding="utf-8"))["models"]
    assert models.keys() == {"yolov8n", "yolo11n", "yolo26n"}
    for variants in models.values():
        failed = {v: {use for use, row in rows.items() if not row["ok"]} for v, rows in variants.items()}
        assert failed["pruned"] - failed["dense"] <= {"track, BoT-SORT with_reid, model: auto"}
        assert not failed["pruned, reid"] - failed["dense"]


def test_no_run_of_the_fault_campaign_was_lost() -> None:
    faults = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))["faults"]
    assert len([fault for fault in faults if fault["ended"] != "before the kill"]) >= 40
    for fault in faults:
        assert fault["ended"] != "failed" and fault["same_plans"] and fault["same_macs"], fault


def test_the_cost_model_is_exact_for_every_model_yaml() -> None:
    assert {row["model"] for row in COST_MODEL["models"]} >= {scaled(path)[0].stem for path in model_yamls()}
    exact = {"macs": 0, "params": 0, "bytes": 0}
    assert [row for row in COST_MODEL["models"] if row["differences"] != exact] == []


def test_the_cost_model_and_a_plan_are_as_fast_as_promised() -> None:
    assert min(COST_MODEL["evaluations_per_second"].values()) >= 5000
    assert COST_MODEL["plan_command"]["wall_seconds"] < 10


def test_accuracy_without_training_is_what_was_promised() -> None:
    promised = {0.85: 0.95, 0.7: 0.88, 0.5: 0.7}
    rows = json.loads((RESULTS / "without_training.json").read_text(encoding="utf-8"))["rows"]
    judged = [row for row in rows if round(row["macs_kept"], 2) in promised]
    assert len(judged) == 2 * len(promised)
    for row in judged:
        assert row["pruned"] / row["dense"] >= promised[round(row["macs_kept"], 2)]
