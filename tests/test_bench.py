from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from nets import IMGSZ, build, make, narrow_yaml
from ultralytics import YOLO

from yolo_prune.cli import main as cli
from yolo_prune.deploy import bench as room
from yolo_prune.deploy.bench import bench, measured, neighbours
from yolo_prune.deploy.bench_table import Bench, Row
from yolo_prune.host.checkpoint import mark
from yolo_prune.report.records import Stage


@pytest.fixture
def pair(own_folder: Path) -> tuple[Path, Path]:
    """Checkpoints of a narrow network of no official family, dense and cut by half."""
    torch.manual_seed(0)
    yolo = YOLO(narrow_yaml("yolov8n", own_folder))
    yolo.save("dense.pt")
    make(yolo.model).apply(yolo.model)
    mark(yolo.model)
    yolo.save("slim.pt")
    return Path("dense.pt"), Path("slim.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "names"),
    [((0.5,), ["yolov8n"]), ((0.5, 1.3), ["yolov8n", "yolov8s"]), ((1.3,), ["yolov8n", "yolov8s"])],
)
def test_official_scales_among_the_networks_and_next_to_them_are_found(
    share: tuple[float, ...], names: list[str]
) -> None:
    network = build("yolov8n")
    mark(network)
    found = neighbours([network], [round(s * measured(network, IMGSZ).macs) for s in share], IMGSZ)
    assert list(found) == names
    assert found["yolov8n"][1] == measured(build("yolov8n"), IMGSZ)  # with three classes, as the network has


def test_a_network_that_is_an_official_scale_is_not_put_beside_itself() -> None:
    network = build("yolov8n")
    assert list(neighbours([network], [measured(network, IMGSZ).macs or 0], IMGSZ)) == ["yolov8s"]


@pytest.mark.slow
def test_all_forms_of_a_model_are_timed_in_turns_with_the_others(
    pair: tuple[Path, Path], tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, slim = pair
    YOLO(slim).export(format="torchscript", imgsz=64, verbose=False)
    settings = ["runtimes=onnx", "imgsz=64", "rounds=2", "threads=1", f"data={tiny_data}", "save=bench.json"]
    assert cli.main(["bench", str(dense), str(slim), *settings]) == 0
    printed, saved = capsys.readouterr().out, json.loads(Path("bench.json").read_text())
    assert [(row["model"], row["runtime"]) for row in saved["rows"]] == [
        *((name, "onnx") for name in ("dense.pt", "slim.pt")),
        *((name, "pytorch") for name in ("dense.pt", "slim.pt")),
        ("slim.pt", "torchscript"),
    ]
    assert {name: where["threads"] for name, where in saved["where"].items()} == dict.fromkeys(
        ("onnx", "pytorch", "torchscript"), 1
    )
    for row in saved["rows"]:
        assert row["reason"] is None and row["seconds"] == sorted(row["seconds"]) and row["seconds"][0] > 0
        network = YOLO(row["model"]).model
        assert row["params"] == sum(p.numel() for p in network.parameters())
        assert row["macs"] == measured(network, 64).macs
        assert row["fitness"] is not None
    first, second, _, pytorch, torchscript = saved["rows"]
    assert first["speedup"] == torchscript["speedup"] == 1
    assert math.isclose(second["speedup"], first["seconds"][0] / second["seconds"][0])
    assert all(row["spread"] == sorted(row["spread"]) and row["settled"] in (True, False) for row in saved["rows"])
    assert saved["shares"].keys() == saved["where"].keys()
    assert all(0 < share <= 1 for share in saved["shares"].values())
    assert pytorch["bytes"] == slim.stat().st_size and torchscript["bytes"] == Path("slim.torchscript").stat().st_size
    assert "64x64 pixels, batch 1, 2 rounds in turns" in printed and "torchscript" in printed
    assert not list(Path().glob("*.onnx"))  # what was not there is not left behind


@pytest.mark.slow
def test_what_cannot_be_timed_is_told_in_its_row(pair: tuple[Path, Path]) -> None:
    Path("slim.onnx").write_bytes(b"no network")
    found = bench(pair, imgsz=64, rounds=1)
    broken, *fine = found.rows
    assert broken.runtime == "onnx" and broken.seconds is None and "InvalidProtobuf" in (broken.reason or "")
    assert all(row.seconds for row in fine) and (broken.reason or "") in found.table()


def test_a_row_tells_why_it_was_not_judged(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *of: object) -> float:
        if path.name == "slim.pt":
            raise RuntimeError("no images")
        return 0.25

    monkeypatch.setattr(room, "fitness", fail)
    monkeypatch.setattr(room, "check_data", lambda data, task: None)
    found = bench(pair, imgsz=64, rounds=1, scales=False, data="my.yaml")
    assert all(row.seconds for row in found.rows) and [row.fitness for row in found.rows] == [0.25, None]
    assert "0.2500" in found.table() and "RuntimeError: no images" in found.table()


@pytest.mark.slow
def test_an_official_model_is_built_from_its_name_and_put_beside_the_next_scale(
    monkeypatch: pytest.MonkeyPatch, own_folder: Path
) -> None:
    beside = {"yolov8s": (build("yolov8n"), Stage(7, 8))}
    monkeypatch.setattr(room, "neighbours", lambda networks, macs, imgsz: beside)
    rows = bench(["yolov8n.yaml"], imgsz=64, rounds=1).rows
    assert [(row.model, row.runtime, row.bytes is None) for row in rows] == [
        ("yolov8n", "pytorch", False),
        ("yolov8s", "pytorch", True),
    ]
    assert (rows[1].macs, rows[1].params) == (7, 8)


def test_the_table_tells_each_speed_up_with_its_spread_and_warns_of_what_did_not_settle() -> None:
    about = {"version": "1", "device": "Some CPU", "threads": 2}
    sizes, seconds = (10**9, 10**6, 10**6), (1e-3, 2e-3, 3e-3)
    found = Bench(
        (64, 64),
        40,
        {"onnx": about, "pytorch": about},
        {"onnx": 0.99, "pytorch": None},
        [
            Row("a.pt", "onnx", *sizes, seconds, 1.0, (1.0, 1.0), True),
            Row("b.pt", "onnx", *sizes, seconds, 1.27, (1.24, 1.3), True),
            Row("b.pt", "pytorch", *sizes, seconds, 2.0, (1.1, 2.6), False),
        ],
    )
    lines = found.table().splitlines()
    assert [line.split("2.0 (1.0-3.0)")[-1].strip() for line in lines[1:4]] == [
        "1.00x",
        "1.27x (1.24-1.30)",
        "1.10x-2.60x",
    ]
    assert lines[-1] == "pytorch: b.pt did not settle in 3 measurements, hence a range"
    found.shares["pytorch"] = 0.54
    assert found.table().splitlines()[-1] == (
        "pytorch: something else kept this machine busy (a thread got 54% of its processor), which makes speed-ups "
        "wrong: do not go by these ranges, and time it again when it is idle"
    )
    found.shares["pytorch"], found.rows[-1].settled = 0.99, True
    assert found.table().splitlines()[-1] == "pytorch 1: Some CPU, 2 threads"


def test_the_table_shows_a_fitness_only_where_there_is_one() -> None:
    row = Row("best.pt", "onnx", 10**9, 10**6, 10**6, (1e-3, 2e-3, 3e-3), 1.0)
    assert Bench((64, 64), 1, rows=[row]).table().splitlines()[:2] == [
        "model    runtime  MACs     params     file  ms (quartiles)  speed-up",
        "best.pt  onnx     1 GMACs  1M params  1 MB  2.0 (1.0-3.0)   1.00x",
    ]
    row.fitness = 0.5
    assert Bench((64, 64), 1, rows=[row]).table().splitlines()[1].endswith("1.00x     0.5000")
