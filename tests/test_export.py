from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from nets import IMGSZ, build, make
from ultralytics import YOLO

from yolo_prune.checkpoint import mark
from yolo_prune.errors import ConfigError
from yolo_prune.export import _detections, check_formats, compare, export_all, exports_of, file_size, form_of
from yolo_prune.oneshot import prune_model

IMAGES = torch.rand(2, 3, IMGSZ, IMGSZ)


@pytest.fixture
def slim(tmp_path: Path) -> Path:
    model = build("yolov8n")
    make(model).apply(model)
    mark(model)
    model.args = {"task": "detect", "imgsz": IMGSZ}
    path = tmp_path / "best.pt"
    torch.save({"model": model, "train_args": model.args}, path)
    return path


def test_exports_lie_beside_the_checkpoint_and_agree_with_it(slim: Path) -> None:
    records = export_all(slim, ("onnx", "torchscript"), IMAGES)
    assert [r.format for r in records] == ["onnx", "torchscript"]
    for record in records:
        assert record.ok and record.reason is None
        assert Path(record.path or "").parent == slim.parent
        assert 0 <= (record.max_abs_diff or 0) < 1e-3


def test_an_export_that_computes_something_else_is_found(slim: Path) -> None:
    path = YOLO(slim).export(format="onnx", imgsz=IMGSZ, verbose=False)
    ckpt = torch.load(slim, weights_only=False)
    last = ckpt["model"].model[-1].cv3[0][-1]
    last.bias.data[0] += 5
    torch.save(ckpt, slim)
    boxes, scores = compare(slim, path, IMAGES)
    assert boxes is not None and boxes < 0.1
    assert scores > 0.01


def test_one_failure_does_not_stop_the_other_formats(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = YOLO.export

    def export(self: YOLO, format: str, **arguments: object) -> str:
        if format == "onnx":
            raise ImportError("onnx is missing")
        return stock(self, format=format, **arguments)

    monkeypatch.setattr(YOLO, "export", export)
    onnx, torchscript = export_all(slim, ("onnx", "torchscript"), IMAGES)
    assert (onnx.ok, onnx.reason, onnx.path) == (False, "ImportError: onnx is missing", None)
    assert torchscript.ok


def test_tensorrt_without_a_gpu_is_one_sentence(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (record,) = export_all(slim, ("engine",), IMAGES)
    assert not record.ok and record.path is None
    assert record.reason == (
        "TensorRT needs an NVIDIA GPU and this machine has none; on the target run "
        "yolo export model=best.pt format=engine"
    )


def test_unknown_formats_are_refused_with_the_nearest_name() -> None:
    check_formats(("onnx", "openvino", "engine", "coreml"))
    with pytest.raises(
        ConfigError, match=r"export='openvno' is no export format of Ultralytics: did you mean openvino\?"
    ):
        check_formats(("onnx", "openvno"))


def test_comparing_a_checkpoint_with_itself_finds_no_difference(slim: Path) -> None:
    assert compare(slim, copy.copy(slim), IMAGES) == (0.0, 0.0)


def detections() -> torch.Tensor:
    """Return a sorted end-to-end list of shape (40, 6): box, score, class."""
    score = torch.linspace(0.9, 0.1, 40)
    return torch.cat((torch.rand(40, 4) * IMGSZ, score[:, None], torch.arange(40.0)[:, None] % 3), 1)


def test_end_to_end_lists_are_compared_as_lists() -> None:
    a = detections()
    assert _detections(a, a.clone(), IMGSZ) == (0.0, 0.0)
    moved = a.clone()
    moved[3, 0] += 2
    boxes, scores = _detections(a, moved, IMGSZ)
    assert boxes == pytest.approx(2) and scores == 0
    moved[7, 4] -= 0.01
    assert _detections(a, moved, IMGSZ)[1] == pytest.approx(0.01)


def test_the_order_of_detections_with_equal_scores_does_not_matter() -> None:
    a = detections()
    a[4:9, 4] = a[4, 4]
    swapped = a.clone()
    swapped[4:9] = a[4:9].flip(0)
    swapped[-1, :4] = 7  # at the cutoff, another one may be chosen
    boxes, scores = _detections(a, swapped, IMGSZ)
    assert boxes == pytest.approx(0, abs=1e-4) and scores == 0


def test_an_export_that_makes_no_numbers_disagrees() -> None:
    a = torch.rand(7, 100)
    b = a.clone()
    b[5, 3] = torch.nan
    assert _detections(a, b, IMGSZ)[1] == torch.inf
    assert _detections(detections(), torch.full((40, 6), torch.nan), IMGSZ)[1] == torch.inf


def test_boxes_beyond_the_image_are_measured_relative_to_it() -> None:
    a = torch.rand(7, 100)
    a[:4] *= 10 * IMGSZ
    a[0, 0] = 10 * IMGSZ
    b = a.clone()
    b[1, 5] += 1
    assert _detections(a, b, IMGSZ)[0] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("name", ["yolo26n-sem", "yolo26n-depth"])
def test_maps_are_compared_as_they_are_exported(name: str, tmp_path: Path) -> None:
    model = YOLO(f"{name}.yaml")
    prune_model(model, 0.3, imgsz=IMGSZ)
    model.save(tmp_path / "best.pt")
    (record,) = export_all(tmp_path / "best.pt", ("onnx",), IMAGES[:1])
    assert record.ok, record.reason
    assert record.max_abs_diff_boxes is None


def test_the_exports_beside_a_checkpoint_are_found_by_their_names(tmp_path: Path) -> None:
    names = {"best.onnx": ("onnx", ""), "best_int8.onnx": ("onnx", "int8"), "best.torchscript": ("torchscript", "")}
    for name in (*names, "other.onnx", "best.txt"):
        (tmp_path / name).write_bytes(b"12345")
    folders = {"best_openvino_model": ("openvino", ""), "best_int8_openvino_model": ("openvino", "int8")}
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.bin").write_bytes(b"123")
    expected = {form: tmp_path / name for name, form in (names | folders).items()}
    assert exports_of(tmp_path / "best.pt") == expected
    assert {form_of(path): path for path in expected.values()} == expected
    assert file_size(tmp_path / "best.onnx") == 5 and file_size(tmp_path / "best_openvino_model") == 3
