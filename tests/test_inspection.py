"""What a checkpoint tells of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nets import IMGSZ, tiny_yaml
from trainings import Run, report_of, soon
from ultralytics import YOLO

from yolo_prune import inspect_checkpoint, prune_model
from yolo_prune.cli import main as cli
from yolo_prune.cost.model import CostModel
from yolo_prune.errors import CheckpointError
from yolo_prune.graph.trace import trace
from yolo_prune.report import zeros


def test_a_checkpoint_of_ultralytics_tells_its_size_and_no_zeros(own_folder: Path) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    yolo.save("plain.pt")
    found = inspect_checkpoint("plain.pt", IMGSZ)
    assert (found.task, found.classes, found.imgsz, found.pruned) == ("detect", 3, (IMGSZ, IMGSZ), False)
    assert found.macs == CostModel(trace(yolo.model, IMGSZ)).macs()
    assert found.params == sum(p.numel() for p in yolo.model.parameters())
    assert found.bytes == Path("plain.pt").stat().st_size > found.compressed
    assert found.sparsity < 1e-3 and "not by yolo_prune" in found.text()


def test_the_command_prints_zeros_and_what_runtimes_make_of_them(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    yolo.save("plain.pt")
    prune_model(yolo, "2:4", imgsz=IMGSZ)
    yolo.save("sparse.pt")
    assert cli.main(["inspect", "plain.pt", "sparse.pt", f"imgsz={IMGSZ}", "layers=True"]) == 0
    plain, sparse = capsys.readouterr().out.split("sparse.pt\n", 1)
    assert "SPARSE_WEIGHTS" not in plain
    assert "--onnx=sparse.onnx --saveEngine=best.engine --fp16 --sparsity=enable" in sparse
    assert "2:4 in 22 of 28 layers" in sparse and "yes, at once" in sparse and "model.7.cv2.0.0.conv" in sparse
    assert cli.main(["inspect", "sparse.pt", f"imgsz={IMGSZ}", "save=figures.json"]) == 0
    figures = json.loads(Path("figures.json").read_text())
    assert figures["sparsity"] == inspect_checkpoint("sparse.pt", IMGSZ).sparsity > 0.4
    assert sum(of["two_of_four"] for of in figures["zeros"].values()) == 22


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "inspect without a checkpoint: say which, e.g. yolo-prune inspect best.pt"),
        (["a.pt", "zeros=True"], "zeros is no argument of inspect. Valid: imgsz, layers, save."),
        (["a.pt", "layers=2"], "layers=2 is not a bool"),
        (["a.pt", "b.pt", "save=x.json"], "save=x.json takes the figures of one checkpoint"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_checkpoint_is_refused(own_folder: Path) -> None:
    Path("no.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"no\.pt is no checkpoint that can be read"):
        inspect_checkpoint("no.pt")


def test_tensorrt_is_told_which_layers_are_wide_enough() -> None:
    layer = {"weights": 9, "zeros": 4, "inputs": 576, "outputs": 256, "two_of_four": True}
    wide, narrow = {"a": layer, "b": {**layer, "outputs": 64}}, {"b": {**layer, "outputs": 64}}
    assert "gain, here a" in zeros.at_runtimes(wide, "best.pt")["TensorRT"]
    assert "hardly anything: 2:4 in 1 of 1 layers, none of which" in zeros.at_runtimes(narrow, "best.pt")["TensorRT"]
    single = {"a": {**layer, "two_of_four": False}}
    assert zeros.at_runtimes(single, "best.pt")["TensorRT"] == "nothing: only 2:4 is faster there (prune=2:4)"


@pytest.mark.slow
def test_a_run_is_told_from_its_checkpoint(run: Run) -> None:
    trainer = run(prune=soon("40%, 60% sparsity"))
    found, report = inspect_checkpoint(trainer.best), report_of(trainer)
    assert found.pruned and found.target == "40%, 60% sparsity" and found.imgsz == (64, 64)
    assert [cut["epoch"] for cut in found.run["cuts"]] == [cut["epoch"] for cut in report["cuts"]]
    assert found.sparsity == report["final"]["sparsity"] and found.zeros == report["zeros"]
    assert (found.macs, found.params, found.bytes) == tuple(report["final"][k] for k in ("macs", "params", "bytes"))
    assert "to 40%, 60% sparsity, in 2 cuts" in found.text()
