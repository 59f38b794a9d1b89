from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolo_prune.report import CutRecord, ExportRecord, QuantizationRecord, Report, Stage


@pytest.fixture
def report() -> Report:
    return Report(
        imgsz=[64, 64],
        dense=Stage(1_000_000_000, 2_000_000, 4_000_000, 0.5, "dense.pt"),
        config={"target": 0.5},
        cuts=[CutRecord(3, 500_000_000, 900_000, 2_000_000, 0.1, 0.45, "abc", [{"layer": "x", "why": "y"}], 1.5)],
        final=Stage(500_000_000, 900_000, 2_000_000, 0.45, "best.pt"),
        exports=[
            ExportRecord("onnx", "8", "best-8_int8.onnx", 2_500_000, 2e-2, 3.0, 0.54, 0.6, ok=True),
            ExportRecord("engine", reason="no GPU"),
        ],
    )


def test_the_table_gives_each_figure_with_its_change(report: Report) -> None:
    assert report.table().splitlines() == [
        "         epoch  MACs           params         file              fitness cut      fitness recovered",
        "dense           1G             2M             4.00 MB                            0.5000",
        "cut 1/1  3      500M (-50.0%)  900k (-55.0%)  2.00 MB (-50.0%)  0.1000 (-80.0%)  0.4500 (-10.0%)",
        "final           500M (-50.0%)  900k (-55.0%)  2.00 MB (-50.0%)                   0.4500 (-10.0%)",
    ]


def test_the_export_table_gives_differences_and_fitness_or_the_reason(report: Report) -> None:
    assert report.export_table().splitlines() == [
        "export  precision  ok   scores  boxes (px)  fitness          size     file or reason",
        "onnx    8          yes  0.02    3           0.5400 (-10.0%)  2.50 MB  best-8_int8.onnx",
        "engine  32         no                                                 no GPU",
    ]


def test_a_report_without_validation_leaves_figures_out(report: Report) -> None:
    report.dense.fitness = report.cuts[0].fitness_cut = report.cuts[0].fitness_recovered = None
    assert "None" not in report.table() and "nan" not in report.table()


def test_the_file_has_the_contracts_names_and_no_half_written_state(report: Report, tmp_path: Path) -> None:
    path = report.save(tmp_path / "pruning")
    data = json.loads(path.read_text())
    assert data["schema"] == 1
    assert {"imgsz", "dense", "cuts", "final", "exports", "versions", "config"} <= data.keys()
    assert data["exports"][1] == {
        "format": "engine",
        "precision": "32",
        "path": None,
        "bytes": None,
        "max_abs_diff": None,
        "max_abs_diff_boxes": None,
        "fitness": None,
        "fitness_checkpoint": None,
        "inspected": None,
        "ok": False,
        "reason": "no GPU",
    }
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_the_step_to_int8_is_a_row_of_the_table(report: Report) -> None:
    report.quantization = QuantizationRecord(7, 0.45, 0.4, 0.44, 2.0)
    row = report.table().splitlines()[3]
    assert row.split() == ["int8", "7", "0.4000", "(-20.0%)", "0.4400", "(-12.0%)"]
    assert row.index("0.4000") == report.table().splitlines()[0].index("fitness cut")


@pytest.mark.parametrize("quantization", [None, QuantizationRecord(7, 0.45, 0.4, 0.44, 2.0)])
def test_an_interrupted_run_reads_its_report_back(report: Report, quantization: QuantizationRecord | None) -> None:
    report.quantization = quantization
    again = Report.from_dict(report.to_dict())
    assert all(getattr(again, name) == getattr(report, name) for name in Report.NOTED)
