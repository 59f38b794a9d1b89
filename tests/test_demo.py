from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from conftest import Python

from yolo_prune.cli import demo
from yolo_prune.errors import ConfigError


def digest(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "data.yaml"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_draws_the_same_data(own_folder: Path) -> None:
    demo.make_dataset(own_folder / "a", train=2, val=1, size=64)
    demo.make_dataset(own_folder / "b", train=2, val=1, size=64)
    demo.make_dataset(own_folder / "c", train=2, val=1, size=64, seed=1)
    assert digest(own_folder / "a") == digest(own_folder / "b") != digest(own_folder / "c")


def test_labels_lie_inside_of_their_images_and_use_all_classes(own_folder: Path) -> None:
    demo.make_dataset(own_folder, train=8, val=4, size=64)
    labels = [line.split() for file in own_folder.rglob("*.txt") for line in file.read_text().splitlines()]
    assert {label[0] for label in labels} == {"0", "1", "2"}
    for _, x, y, width, height in labels:
        assert float(width) / 2 <= float(x) <= 1 - float(width) / 2
        assert float(height) / 2 <= float(y) <= 1 - float(height) / 2


def test_ultralytics_accepts_the_data_without_a_download(tiny_data: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(tiny_data))
    assert data["names"] == {0: "circle", 1: "square", 2: "triangle"}
    assert len(list(Path(data["train"]).iterdir())) == 8
    assert len(list(Path(data["val"]).iterdir())) == 4


def test_settings_of_the_user_stay_untouched(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", "")
    monkeypatch.setenv("YOLO_OFFLINE", "")
    demo.use_private_settings(own_folder)
    assert (os.environ["YOLO_CONFIG_DIR"], os.environ["YOLO_OFFLINE"]) == (str(own_folder), "true")
    assert (own_folder / "Ultralytics" / "Arial.ttf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune_stpes=2"], "unknown option prune_stpes: did you mean prune_steps?"),
        (["prune_sizes=0.3,0.5", "fast"], "demo takes key=value arguments such as epochs=20, not fast."),
        (["epochs=2", "fast"], "demo takes key=value arguments such as epochs=20, not fast."),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_made(
    own_folder: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        demo.run(arguments)
    assert not list(own_folder.iterdir())


def test_onnx_that_is_not_installed_is_told_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="onnx is not installed: pip install onnx onnxslim onnxruntime"):
        demo.run([])


@pytest.mark.slow
def test_the_demo_prunes_exports_and_tells_where_everything_is(python: Python, own_folder: Path) -> None:
    done = python(
        "-m",
        "yolo_prune",
        "demo",
        "epochs=4",
        "imgsz=32",
        "fraction=0.2",
        "prune=0.3",
        "prune_steps=1",
        "prune_benchmark=False",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(demo.FOLDER, "train")
    assert (own_folder / demo.FOLDER / "dense" / "weights" / "best.pt").is_file()
    names = ["weights/best.onnx", "weights/best.pt", "pruning/report.html", "pruning/report.json"]
    paths = [folder / name for name in names]
    assert done.stdout.split("What is left behind:\n")[1].split() == [str(path) for path in paths]
    report = json.loads((own_folder / paths[3]).read_text())
    assert report["config"]["target"] == 0.3 and report["dense"]["finished"]
    assert report["exports"][0]["ok"]
