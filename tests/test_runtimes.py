from __future__ import annotations

import sys
import zlib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nets import build, fast_and_slow
from torch import nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.engine.exporter import validate_args

from yolo_prune.config.choices import RUNTIMES
from yolo_prune.deploy.formats import format_table, formats, precisions
from yolo_prune.deploy.network_files import export, export_form, read_form, with_noise
from yolo_prune.deploy.runtimes import FORMATS, MAKERS, check_runtime, described, file_runner, torch_runner
from yolo_prune.device import runners
from yolo_prune.device.runners import MODULES, open_file
from yolo_prune.device.stopwatch import alternating
from yolo_prune.device.system import all_threads
from yolo_prune.errors import ConfigError, UnsupportedError


@pytest.fixture(params=[name for name in RUNTIMES if name not in {"tensorrt", "coreml"}])
def name(request: pytest.FixtureRequest) -> str:
    """A runtime that this machine has."""
    try:
        check_runtime(request.param)
    except UnsupportedError as e:
        pytest.skip(str(e))
    return str(request.param)


def test_each_runtime_has_a_module_and_a_format() -> None:
    assert {*MODULES} == {*FORMATS} == {*RUNTIMES} - {"pytorch"} and {*MAKERS} <= {*RUNTIMES, "command"}


def test_the_conditions_of_a_measurement_are_told() -> None:
    told = described("pytorch", 1)
    assert told["threads"] == 1 and told["version"] == version("torch") and told["device"]


@pytest.mark.slow
def test_an_exported_network_runs_in_each_runtime(name: str, tmp_path: Path) -> None:
    path = export(build("yolov8n"), name, (64, 64), tmp_path)
    assert (alternating([file_runner(path, (1, 3, 64, 64), all_threads())], rounds=1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["16", "8"])
def test_an_onnx_file_of_each_precision_runs_and_is_smaller(precision: str, tmp_path: Path) -> None:
    sizes = []
    for of in ("32", precision):
        folder = tmp_path / of
        folder.mkdir()
        path = export(build("yolov8n"), f"onnx:{of}", (64, 64), folder)
        sizes.append(path.stat().st_size)
        assert (alternating([open_file("onnx", path, (1, 3, 64, 64), 1)], rounds=1) > 0).all()
    assert sizes[1] < sizes[0] * int(precision) / 32 * 1.3


def test_a_precision_is_one_that_ultralytics_exports() -> None:
    assert [read_form(form)[1] for form in ("onnx", "pytorch", "tensorrt")] == ["32", "32", "16"]
    assert read_form("litert:8") == ("litert", "8")
    with pytest.raises(ConfigError, match=r"runtime=ncnn:8 is of no precision .* give ncnn:32, ncnn:16"):
        read_form("ncnn:8")
    with pytest.raises(ConfigError, match="checkpoints are timed in single precision; give runtime=pytorch"):
        read_form("pytorch:16")


def test_files_to_be_timed_are_asked_for_with_what_ultralytics_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(YOLO, "export", lambda self, **given: asked.append(given) or "made")
    network, takes = build("tiny"), format_table("Arguments")
    for form in (f"{name}:{precision}" for name in formats() for precision in precisions(name)):
        folder = tmp_path / form.replace(":", "-")
        folder.mkdir()
        export_form(network, form, (64, 64), folder)
        values = {"batch": 1} | {key: value for key, value in asked[-1].items() if key != "format"}
        validate_args(asked[-1]["format"], get_cfg(overrides=values), takes[asked[-1]["format"]])
    assert {given["format"] for given in asked if "data" in given} >= {"onnx", "openvino", "litert"}


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolo11n"))
def test_weights_of_noise_compress_and_keep_activations_finite(family: str) -> None:
    network = with_noise(build(family))
    weights = b"".join(p.detach().numpy().tobytes() for p in network.parameters() if p.ndim > 1)
    assert len(zlib.compress(weights)) < 0.1 * len(weights)
    with torch.inference_mode():
        assert network.eval()(torch.rand(1, 3, 64, 64))[0].isfinite().all()


def test_pytorch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    layer = nn.Identity()
    layer.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch_runner(layer, (1,), threads=before + 1)()
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_runners_take_turns() -> None:
    order: list[str] = []
    seconds = alternating([lambda: order.append("a"), lambda: order.append("b")], rounds=2, warmup=1)
    assert order == ["a", "b", *2 * ["a", "a", "b", "b"]] and seconds.shape == (2, 2)
    order.clear()
    alternating([lambda: order.append("a")], rounds=2, warmup=1, between=lambda i: order.append(str(i)))
    assert order == ["a", "0", "a", "a", "1", "a", "a"]


def test_what_is_not_there_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnsupportedError, match=r"runtime=openvino needs openvino .*pip install openvino"):
        check_runtime("openvino")
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="runtime=tensorrt needs an NVIDIA GPU and this machine has none"):
        check_runtime("tensorrt")
    with pytest.raises(UnsupportedError, match=r"model\.txt is neither a checkpoint nor an export"):
        file_runner(tmp_path / "model.txt", (1, 3, 8, 8), 1)


class FakeContext:
    """What TensorRT's execution context does, as far as it is called."""

    def __init__(self) -> None:
        self.bound: dict[str, int] = {}
        self.runs = 0

    def set_tensor_address(self, name: str, address: int) -> None:
        self.bound[name] = address

    def execute_async_v3(self, stream: int | None) -> None:
        self.runs += 1


def test_an_engine_is_read_behind_its_metadata_and_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT and a GPU are stand-ins: no machine of this project has them."""
    context, plans = FakeContext(), []
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: ("images", "output0")[i],
        get_tensor_shape=lambda name: (1, 3, 8, 8) if name == "images" else (1, 7, 84),
        get_tensor_dtype=lambda name: np.dtype(np.float32),
        create_execution_context=lambda: context,
    )

    def deserialize(plan: bytes) -> Any:
        plans.append(plan)
        return engine

    logger = type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None})
    fake = SimpleNamespace(Logger=logger, Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    calls: list[str] = []

    class Cuda:
        """What CUDA's runtime does: every call succeeds."""

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: calls.append(name)

    monkeypatch.setattr(runners, "_cuda_runtime", Cuda)
    metadata = b'{"task": "detect"}'
    (tmp_path / "best.engine").write_bytes(len(metadata).to_bytes(4, "little") + metadata + b"PLAN")
    run = file_runner(tmp_path / "best.engine", (1, 3, 8, 8), 1)
    assert np.isfinite(alternating([run], rounds=2, warmup=1)).all()
    assert plans == [b"PLAN"] and set(context.bound) == {"images", "output0"} and context.runs == 5
    assert calls.count("cudaMalloc") == 2 and calls.count("cudaStreamSynchronize") == 5
