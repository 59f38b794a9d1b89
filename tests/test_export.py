from __future__ import annotations

import ast
import copy
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch
from nets import IMGSZ, build, make
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.engine.exporter import Exporter, export_formats, validate_args
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends import ONNXBackend
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import checks
from ultralytics.utils.export.engine import onnx2engine

from yolo_prune.deploy.export import _export, export_all
from yolo_prune.deploy.formats import check_formats, exports_of, file_size, form_of, formats, precisions
from yolo_prune.deploy.parity import ExportedCheckpoint, _detections, compare, objection
from yolo_prune.errors import ConfigError
from yolo_prune.host.checkpoint import mark
from yolo_prune.oneshot import prune_model
from yolo_prune.report.records import ExportRecord

IMAGES = torch.rand(2, 3, IMGSZ, IMGSZ)


@pytest.fixture(scope="module")
def pruned() -> DetectionModel:
    model = build("yolov8n")
    make(model).apply(model)
    mark(model)
    model.args = {"task": "detect", "imgsz": IMGSZ}
    return model


@pytest.fixture
def slim(pruned: DetectionModel, tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "best.pt"
    path.parent.mkdir()
    torch.save({"model": pruned, "train_args": pruned.args}, path)
    return path


def test_exports_lie_beside_the_checkpoint_and_agree_with_it(slim: Path) -> None:
    records = export_all(slim, ("onnx", "torchscript"), IMAGES)
    assert [r.format for r in records] == ["onnx", "torchscript"]
    for record in records:
        assert record.ok and record.reason is None
        assert Path(record.path or "").parent == slim.parent
        assert 0 <= (record.max_abs_diff or 0) < 1e-3


@pytest.mark.slow
def test_openvino_is_compared_as_it_is_stored_whatever_precision_the_cpu_prefers(slim: Path) -> None:
    pytest.importorskip("openvino", reason='OpenVINO is missing: pip install ".[export]"')
    (record,) = export_all(slim, ("openvino",), IMAGES)
    assert record.ok and (record.max_abs_diff or 0) < 1e-5


def test_an_export_that_computes_something_else_is_found(slim: Path) -> None:
    path = YOLO(slim).export(format="onnx", imgsz=IMGSZ, verbose=False)
    ckpt = torch.load(slim, weights_only=False)
    last = ckpt["model"].model[-1].cv3[0][-1]
    last.bias.data[0] += 5
    torch.save(ckpt, slim)
    boxes, scores = compare(slim, path, IMAGES)
    assert boxes is not None and boxes < 0.1
    assert scores > 0.01


@pytest.mark.slow
def test_one_failure_does_not_stop_the_other_formats(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = YOLO.export

    def export(self: YOLO, format: str, **arguments: object) -> str:
        if format == "onnx":
            raise ImportError("onnx is missing")
        return stock(self, format=format, **arguments)

    monkeypatch.setattr(YOLO, "export", export)
    onnx, torchscript = export_all(slim, ("onnx", "torchscript"), IMAGES)
    assert (onnx.ok, onnx.path) == (False, None)
    assert (onnx.reason or "").startswith('ImportError: onnx is missing; onnx needs pip install "ultralytics[export-')
    assert torchscript.ok


def test_tensorrt_without_a_gpu_is_one_sentence(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (record,) = export_all(slim, ("engine",), IMAGES)
    assert not record.ok and record.path is None
    assert record.reason == (
        "TensorRT needs an NVIDIA GPU and this machine has none; on the target run "
        "yolo export model=best.pt format=engine"
    )
    (record,) = export_all(slim, ("engine:8",), IMAGES, "my.yaml")
    assert (record.reason or "").endswith("yolo export model=best.pt format=engine quantize=8 data=my.yaml")


def test_unknown_formats_are_refused_with_the_nearest_name() -> None:
    check_formats(("onnx", "openvino", "engine", "coreml"))
    with pytest.raises(
        ConfigError, match=r"export='openvno' is no export format of Ultralytics: did you mean openvino\?"
    ):
        check_formats(("onnx", "openvno"))


def test_precisions_are_ultralytics_own() -> None:
    arguments = dict(zip(export_formats()["Argument"], export_formats()["Arguments"], strict=True))
    for name in formats():
        for quantize in (32, 16, 8, "w8a16", "w8a32"):
            try:
                validate_args(name, get_cfg(overrides={"quantize": quantize, "batch": 1}), arguments[name])
                is_valid = True
            except AssertionError:
                is_valid = False
            assert (str(quantize) in precisions(name)) == is_valid, (name, quantize)
    assert [precisions(name)[0] for name in ("onnx", "rknn", "imx", "qnn")] == ["32", "16", "8", "w8a16"]


@pytest.mark.parametrize("export", ["pb:8", "edgetpu:32", "onnx:7", "onnx:", "litert:fp16"])
def test_a_precision_that_a_format_cannot_have_is_refused_with_those_that_it_can(export: str) -> None:
    name = export.partition(":")[0]
    valid = ", ".join(f"{name}:{precision}" for precision in precisions(name))
    with pytest.raises(ConfigError, match=f"exports no {name} of this precision. Valid: {valid}"):
        check_formats(("onnx:8", "openvino:fp16", "litert:w8a32", export))


@pytest.mark.slow
def test_precisions_of_one_format_lie_beside_each_other_and_each_is_judged(slim: Path, tiny_data: Path) -> None:
    pytest.importorskip("onnxruntime.quantization", reason="INT8 ONNX needs onnxruntime")
    records = export_all(slim, ("onnx", "onnx:16", "onnx:8"), IMAGES, tiny_data)
    assert [(r.format, r.precision, r.ok, r.reason) for r in records] == [
        ("onnx", precision, True, None) for precision in ("32", "16", "8")
    ]
    paths = [Path(r.path or "") for r in records]
    assert sorted(slim.parent.iterdir()) == sorted([slim, *paths])
    assert [path.stat().st_size for path in paths] == [r.bytes for r in records]
    full, half, eighth = (r.bytes or 0 for r in records)
    assert eighth < 0.7 * half < 0.7 * 0.6 * full
    assert (records[0].max_abs_diff or 0) < (records[1].max_abs_diff or 0) < (records[2].max_abs_diff or 0)
    assert {r.fitness_checkpoint for r in records} == {records[0].fitness_checkpoint} != {None}
    calibrated_on = [ast.literal_eval(ONNXBackend.read_metadata(p)["args"])["data"] for p in paths]
    assert calibrated_on == [None, None, str(tiny_data)]


@pytest.mark.slow
def test_what_the_checkpoint_does_is_found_once(slim: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    stock = YOLO.val

    def val(self: YOLO, **arguments: object) -> object:
        seen.append(Path(str(self.ckpt_path)).suffix)
        return stock(self, **arguments)

    monkeypatch.setattr(YOLO, "val", val)
    original = ExportedCheckpoint(slim, IMAGES, tiny_data)
    assert original.outputs("onnx") is original.outputs("torchscript")
    records = [_export(original, name, None) for name in ("onnx", "torchscript")]
    assert all(r.ok and r.fitness == pytest.approx(r.fitness_checkpoint, abs=1e-6) for r in records)
    assert sorted(seen) == [".onnx", ".pt", ".torchscript"]


@pytest.mark.parametrize(
    ("precision", "fitness", "reason"),
    [
        ("16", 0.59, None),
        ("16", 0.58, "fitness fell from 0.6000 to 0.5800, by more than 2%; take another precision, or another format"),
        ("8", 0.55, None),
        ("8", 0.5, "fitness fell from 0.6000 to 0.5000, by more than 10%; take another precision, or another format"),
        (
            "w8a16",
            0.0,
            "fitness fell from 0.6000 to 0.0000, by more than 10%; take another precision, or another format",
        ),
        ("32", 0.6, "its outputs differ from the checkpoint's"),
    ],
)
def test_low_precision_is_judged_by_what_it_finds_and_full_precision_by_its_outputs(
    precision: str, fitness: float, reason: str | None
) -> None:
    record = ExportRecord("onnx", precision, max_abs_diff=0.2, max_abs_diff_boxes=9.0, fitness=fitness)
    record.fitness_checkpoint = 0.6
    assert objection(record, IMGSZ) == reason


def test_without_data_nothing_below_full_precision_is_made(slim: Path) -> None:
    records = export_all(slim, ("onnx:8", "imx"), IMAGES)
    assert [(r.ok, r.path, r.reason) for r in records] == [
        (False, None, "precision 8 is judged with data, and none was given")
    ] * 2
    assert list(slim.parent.iterdir()) == [slim]


def test_a_hundredth_of_fitness_is_noise() -> None:
    record = ExportRecord("onnx", "16", fitness=0.011, fitness_checkpoint=0.02)
    assert objection(record, IMGSZ) is None
    record.fitness = 0.009
    assert objection(record, IMGSZ) is not None


def test_nothing_is_installed_on_the_way(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(self: YOLO, **_: object) -> str:
        assert checks.AUTOINSTALL is False
        assert sys.modules["MNN.tools.utils.log"] is None  # type: ignore[comparison-overlap]  # its import runs pip
        raise ImportError("No module named 'MNN'")

    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(YOLO, "export", export)
    (record,) = export_all(slim, ("mnn",), IMAGES)
    start = 'ImportError: No module named \'MNN\'; mnn needs pip install "ultralytics[export-base]" "MNN'
    assert (record.reason or "").startswith(start)
    assert checks.AUTOINSTALL is True and "MNN.tools.utils.log" not in sys.modules


@pytest.mark.parametrize(("classes", "ok"), [(3, True), (80, False)])
def test_a_core_ml_package_is_inspected_where_it_cannot_run(
    slim: Path, monkeypatch: pytest.MonkeyPatch, classes: int, ok: bool
) -> None:
    def make(self: YOLO, **_: object) -> str:
        path = Path(str(self.ckpt_path)).with_suffix(".mlpackage")
        path.mkdir()
        (path / "weight.bin").write_bytes(b"12345")
        return str(path)

    found = {
        "input": {"name": "image", "type": "RGB", "shape": [IMGSZ, IMGSZ], "scale": 1 / 255},
        "outputs": [{"name": "var_1", "shape": [1, 7, 189]}],
        "classes": classes,
        "weight_bytes": 5,
    }
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(YOLO, "export", make)
    monkeypatch.setattr("yolo_prune.deploy.export.inspect", lambda path: found)
    (record,) = export_all(slim, ("coreml",), IMAGES)
    assert record.inspected == found and record.bytes == 5 and record.ok == ok
    wrong = "its number of classes is 80, the checkpoint's is 3"
    assert record.reason == ("made, but Core ML runs on macOS only: not compared" if ok else wrong)


class TensorRT(ModuleType):
    """Stands in for TensorRT itself: its "engine" is the ONNX graph, and its runtime is ONNX Runtime."""

    __version__ = "10.9.0"
    IInt8Calibrator = object

    def __init__(self) -> None:
        super().__init__("tensorrt")
        for name in ("Logger", "BuilderFlag", "ProfilingVerbosity", "CalibrationAlgoType", "LayerType"):
            setattr(self, name, MagicMock())
        self.built: list[tuple[list[object], int]] = []

    def Builder(self, logger: object) -> MagicMock:
        network = MagicMock(num_inputs=0, num_outputs=0, num_layers=0)
        return MagicMock(**{"create_network.return_value": network, "build_serialized_network": self.build})

    def OnnxParser(self, network: MagicMock, logger: object) -> MagicMock:
        def parse(file: str) -> bool:
            network.graph = Path(file).read_bytes()
            return True

        return MagicMock(parse_from_file=parse)

    def build(self, network: MagicMock, config: MagicMock) -> bytes:
        flags = [call.args[0] for call in config.set_flag.call_args_list]
        images = list(config.int8_calibrator.dataset) if self.BuilderFlag.INT8 in flags else []
        self.built.append((flags, len(images)))
        return bytes(network.graph)


class Runtime(ONNXBackend):
    def load_model(self, weight: str) -> None:
        offset, metadata = self.engine_header(weight)
        graph = Path(weight).with_suffix(".graph.onnx")
        graph.write_bytes(Path(weight).read_bytes()[offset:])
        super().load_model(graph)
        graph.unlink()
        self.apply_metadata(metadata)


@pytest.mark.slow
def test_the_way_to_tensorrt_is_complete_up_to_tensorrt_itself(
    slim: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU, TensorRT's Python package and its runtime are stand-ins; all else is Ultralytics' code and ours."""

    def export_engine(self: Exporter) -> Path:  # Ultralytics' own without the assertion that there is a GPU
        file, is_int8 = self.file.with_suffix(".engine"), self.args.quantize == 8
        images = self.get_int8_calibration_dataloader() if is_int8 else None
        given = {"quantize": self.args.quantize, "shape": self.im.shape, "dataset": images, "metadata": self.metadata}
        onnx2engine(self.export_onnx(), file, **given)
        return file

    tensorrt = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in ("exporter", "validator"):
        monkeypatch.setattr(f"ultralytics.engine.{module}.select_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(Exporter, "export_engine", export_engine)
    monkeypatch.setitem(AutoBackend._BACKEND_MAP, "engine", Runtime)
    records = export_all(slim, ("engine", "engine:16", "engine:8"), IMAGES, tiny_data)
    assert [(r.ok, r.reason, Path(r.path or "").name) for r in records] == [
        (True, None, f"best{precision}.engine") for precision in ("", "-16", "-8")
    ]
    assert all(r.fitness is not None and (r.max_abs_diff or 0) < 1e-3 for r in records)
    flag = tensorrt.BuilderFlag
    assert tensorrt.built == [([], 0), ([flag.FP16], 0), ([flag.INT8, flag.FP16], 4)]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo26n-sem", "yolo26n-depth"])
def test_maps_are_compared_as_they_are_exported(name: str, tmp_path: Path) -> None:
    model = YOLO(f"{name}.yaml")
    prune_model(model, 0.3, imgsz=IMGSZ)
    model.save(tmp_path / "best.pt")
    (record,) = export_all(tmp_path / "best.pt", ("onnx",), IMAGES[:1])
    assert record.ok, record.reason
    assert record.max_abs_diff_boxes is None


def test_the_exports_beside_a_checkpoint_are_found_by_their_names(tmp_path: Path) -> None:
    names = {"best.onnx": "onnx", "best-8.onnx": "onnx:8", "best-16.torchscript": "torchscript:16"}
    for name in (*names, "other.onnx", "best-large.onnx", "best.txt"):
        (tmp_path / name).write_bytes(b"12345")
    folders = {"best_openvino_model": "openvino", "best-8_int8_openvino_model": "openvino:8"}
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.bin").write_bytes(b"123")
    expected = {form: tmp_path / name for name, form in (names | folders).items()}
    assert exports_of(tmp_path / "best.pt") == expected
    assert {form_of(path): path for path in expected.values()} == expected
    assert file_size(tmp_path / "best.onnx") == 5 and file_size(tmp_path / "best_openvino_model") == 3
