from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolo_prune.device.stopwatch import Speedup
from yolo_prune.report.records import CutRecord, ExportRecord, QuantizationRecord, Report, Stage


@pytest.fixture
def report() -> Report:
    return Report(
        imgsz=[64, 64],
        dense=Stage(1_000_000_000, 2_000_000, 4_000_000, 0.5, "dense.pt", finished=True),
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


def test_fitness_is_compared_with_what_the_run_began_with_where_that_was_better(report: Report) -> None:
    plain = report.table()
    report.dense.fitness_at_start = 0.4
    assert report.table() == plain
    report.dense.fitness_at_start = 0.6
    assert report.table().splitlines() == [
        "         epoch  MACs           params         file              fitness cut      fitness recovered",
        "start           1G             2M             4.00 MB                            0.6000",
        "dense           1G             2M             4.00 MB                            0.5000 (-16.7%)",
        "cut 1/1  3      500M (-50.0%)  900k (-55.0%)  2.00 MB (-50.0%)  0.1000 (-83.3%)  0.4500 (-25.0%)",
        "final           500M (-50.0%)  900k (-55.0%)  2.00 MB (-50.0%)                   0.4500 (-25.0%)",
    ]


@pytest.mark.parametrize(
    ("epochs", "finished", "why"),
    [
        (14, False, "was not finished (14 epochs of this run)"),
        (1, False, "was not finished (1 epoch of this run)"),
        (None, None, "may not have been finished (this report does not say)"),
    ],
)
def test_no_fitness_is_compared_with_a_dense_model_in_the_middle_of_its_training(
    report: Report, epochs: int | None, finished: bool | None, why: str
) -> None:
    report.dense.epochs, report.dense.finished = epochs, finished
    assert report.table().splitlines() == [
        "         epoch  MACs           params         file              fitness cut  fitness recovered",
        "dense           1G             2M             4.00 MB                        0.5000",
        "cut 1/1  3      500M (-50.0%)  900k (-55.0%)  2.00 MB (-50.0%)  0.1000       0.4500",
        "final           500M (-50.0%)  900k (-55.0%)  2.00 MB (-50.0%)               0.4500",
        f"dense {why}, so no fitness is compared with its; a run as long without pruning would be a fair comparison",
    ]
    report.dense.fitness = None
    assert "compar" not in report.table()


def test_latencies_are_compared_only_where_the_machine_let_them_settle(report: Report) -> None:
    def latencies() -> list[str]:
        lines = report.table().splitlines()
        start, end = lines[0].index("latency"), lines[0].index("fitness cut")
        return [line[start:end].strip() for line in lines[1:]]

    assert report.final is not None
    report.dense.latency, report.cuts[0].latency, report.final.latency = 0.02, 0.011, 0.01
    predicted = ["20.00 ms", "11.00 ms (-45.0%)", "10.00 ms (-50.0%)"]
    assert latencies() == predicted  # nothing is measured yet
    report.timed = {"runtime": "onnx"}
    report.scales["yolo11n"] = Stage(latency=0.03, speedup=Speedup(0.66, 0.67, 0.68, 0.99, settled=True))
    bare = ["20.00 ms", "11.00 ms", "10.00 ms", "30.00 ms (+50.0%)"]
    assert latencies() == bare  # as in reports of earlier versions
    report.final.speedup = Speedup(1.1, None, 2.6, 0.54, settled=False)
    assert latencies() == bare
    report.final.speedup = Speedup(1.9, 2.0, 2.1, 0.99, settled=True)
    assert latencies() == [*predicted, "30.00 ms (+50.0%)"]
    report.final.speedup = Speedup(0.97, 1.01, 1.03, 0.99, settled=True)
    assert latencies() == bare  # one may be as fast as the other


@pytest.mark.parametrize(
    ("speedup", "told"),
    [
        (Speedup(1.24, 1.27, 1.3, 0.99, True), "1.27x (1.24-1.30) as fast as dense"),
        (Speedup(0.78, 0.8, 0.82, None, True), "0.80x (0.78-0.82) as fast as dense"),
        (Speedup(0.98, 1.01, 1.02, 0.99, True), "as fast as dense, as far as can be told (between 0.98x and 1.02x)"),
        (Speedup(1.1, None, 1.4, 0.99, False), "between 1.10x and 1.40x as fast as dense, and it did not settle"),
        (
            Speedup(1.1, None, 2.6, 0.99, False),
            "no speed-up can be told: it did not settle, and came to between 1.10x and 2.60x",
        ),
        (
            Speedup(0.9, None, 1.2, None, False),
            "no speed-up can be told: it did not settle, and came to between 0.90x and 1.20x",
        ),
        (
            Speedup(2.5, None, 2.6, 0.54, False),
            "no speed-up can be told: something else kept this machine busy (a thread got 54% of its processor), "
            "and it came to between 2.50x and 2.60x",
        ),
    ],
)
def test_a_speed_up_is_told_as_far_as_it_can_be(speedup: Speedup, told: str) -> None:
    assert speedup.told() == told


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
    report.quantization, report.dense.epochs, report.dense.finished = quantization, 3, False
    again = Report.from_dict(report.to_dict())
    assert all(getattr(again, name) == getattr(report, name) for name in Report.NOTED)
