from __future__ import annotations

from pathlib import Path

import pytest
from reports import full_report

from yolo_prune.report import pictures


def test_the_run_goes_through_every_epoch_and_every_change_in_order() -> None:
    points = pictures.over_epochs(full_report())
    assert [(p.epoch, p.name) for p in points] == [
        *[
            (1, ""),
            (2, ""),
            (2, "cut 1"),
            (3, ""),
            (4, ""),
            (4, "cut 2"),
            (5, ""),
            (6, ""),
            (6, "INT8"),
            (7, ""),
            (8, ""),
        ]
    ]
    assert [p.fitness for p in points if p.name] == [0.4, 0.51, 0.55]
    assert [p.size for p in points if p.name] == [1_500_000_000, 950_000_000, 950_000_000]


def test_cuts_that_were_taken_back_are_told_where_a_report_says_until_when() -> None:
    report = full_report()
    assert pictures.taken_back(report) == [(3, 4)]
    del report["guard"]["failures"][0]["until"]  # as in 0.2
    assert not pictures.taken_back(report) and not pictures.taken_back({"guard": None})


def test_the_way_from_dense_to_final_leads_over_every_cut() -> None:
    report = full_report()
    assert [(p.size, p.fitness) for p in pictures.over_size(report)] == [
        (2_000_000_000, 0.586),
        (1_500_000_000, 0.4),
        (1_500_000_000, 0.57),
        (950_000_000, 0.51),
        (950_000_000, 0.58),
        (950_000_000, 0.581),
    ]
    report["dense"]["fitness"] = report["cuts"][0]["fitness_recovered"] = None
    assert [p.fitness for p in pictures.over_size(report)] == [0.4, 0.51, 0.58, 0.581]


def test_where_only_zeros_were_made_they_are_what_is_drawn(own_folder: Path) -> None:
    report, dense = full_report(), full_report()["dense"]["macs"]
    assert pictures.measure(report) is pictures.MACS
    for stage in (*report["cuts"], report["final"], *report["epochs"]):
        stage["macs"] = dense
    assert pictures.measure(report) is pictures.ZEROS
    assert [p.size for p in pictures.over_size(report)] == [0.0, 0.42, 0.42, 0.45, 0.45, 0.45]
    assert [p.size for p in pictures.over_epochs(report)] == [0.0, 0.0, *[0.42] * 3, *[0.45] * 6]
    assert not pictures.channels(report)
    pictures.draw(report, own_folder, "mAP50-95")
    assert [path.name for path in own_folder.iterdir()] == ["curve.png"]


@pytest.mark.parametrize(
    ("finished", "name"), [(True, "dense"), (None, "dense"), (False, "dense after 2 epochs, not finished")]
)
def test_the_line_of_the_dense_network_says_what_it_was(finished: bool | None, name: str) -> None:
    report = full_report()
    report["dense"]["finished"] = finished
    assert pictures.dense_name(report) == name


def test_a_layer_is_locked_with_the_module_that_it_is_in() -> None:
    assert pictures.channels(full_report()) == [
        ("model.0.conv", 16, 16, None),
        ("model.1.conv", 64, 24, None),
        ("model.2.conv", 80, 80, "predicts the class scores"),
    ]


@pytest.mark.parametrize("field", ["epochs", "layers", "nothing"])
def test_what_there_is_becomes_a_picture(own_folder: Path, field: str) -> None:
    report = full_report()
    if field in report:
        report[field] = type(report[field])()
    pictures.draw(report, own_folder, "mAP50-95")
    made = {path.name: path.read_bytes()[:4] for path in own_folder.iterdir()}
    names = ["curve.png"] if field == "layers" else ["channels.png", "curve.png"]
    assert made == dict.fromkeys(sorted(names), b"\x89PNG")
