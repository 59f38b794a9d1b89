from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nets import build
from torch import nn

from yolo_prune.config.choices import RUNTIMES
from yolo_prune.deploy import runtimes
from yolo_prune.deploy.latency_profile import export
from yolo_prune.deploy.runtimes import (
    PACKAGES,
    all_threads,
    check_runtime,
    described,
    fast_multiple,
    file_runner,
    module_runner,
)
from yolo_prune.device.stopwatch import alternating
from yolo_prune.errors import UnsupportedError


@pytest.fixture(params=[name for name in RUNTIMES if name != "tensorrt"])
def name(request: pytest.FixtureRequest) -> str:
    """A runtime that a machine without a GPU can have."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f'{package} is missing: pip install ".[export]"')
    return str(request.param)


def test_each_runtime_has_a_package() -> None:
    assert set(PACKAGES) == set(RUNTIMES)


def test_a_layer_runs_in_each_runtime(name: str) -> None:
    check_runtime(name)
    run = module_runner(name, nn.Conv2d(3, 4, 3).eval(), (1, 3, 8, 8), threads=1)
    assert (alternating([run], rounds=2) > 0).all()
    assert described(name, 1)["threads"] == 1 and described(name, 1)["version"] != "unknown"


@pytest.mark.slow
def test_an_exported_network_runs_in_each_runtime(name: str, tmp_path: Path) -> None:
    path = export(build("yolov8n"), name, (64, 64), tmp_path)
    assert (alternating([file_runner(path, (1, 3, 64, 64), all_threads())], rounds=1) > 0).all()


def test_pytorch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    layer = nn.Identity()
    layer.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    module_runner("pytorch", layer, (1,), threads=before + 1)()
    assert seen == [before + 1] and torch.get_num_threads() == before


@pytest.mark.parametrize(("able", "channels"), [(["FP32", "INT8"], 16), (["BF16", "FP32", "INT8"], 32)])
def test_fast_widths_are_twice_as_wide_where_openvino_computes_in_bfloat16(
    able: list[str], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            asked.append((device, name))
            return able

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    assert fast_multiple("openvino") == channels
    assert asked == [("CPU", "OPTIMIZATION_CAPABILITIES")]
    assert fast_multiple("onnx") == 16


@pytest.mark.parametrize(("has_gpu", "channels"), [(False, 16), (True, 32)])
def test_fast_widths_are_twice_as_wide_on_a_gpu(has_gpu: bool, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert fast_multiple("pytorch") == channels
    assert fast_multiple("onnx") == 16 and fast_multiple("tensorrt") == 32


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

    def execute_async_v3(self, stream: int) -> None:
        self.runs += 1


def test_an_engine_is_read_behind_its_metadata_and_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT and a GPU are stand-ins: no machine of this project has them."""
    context, plans = FakeContext(), []
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: ("images", "output0")[i],
        get_tensor_shape=lambda name: (1, 3, 8, 8) if name == "images" else (1, 7, 84),
        create_execution_context=lambda: context,
    )

    def deserialize(plan: bytes) -> Any:
        plans.append(plan)
        return engine

    logger = type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None})
    fake = SimpleNamespace(Logger=logger, Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    zeros = torch.zeros
    monkeypatch.setattr(runtimes.torch, "zeros", lambda shape, device=None: zeros(shape))
    metadata = b'{"task": "detect"}'
    (tmp_path / "best.engine").write_bytes(len(metadata).to_bytes(4, "little") + metadata + b"PLAN")
    run = file_runner(tmp_path / "best.engine", (1, 3, 8, 8), 1)
    assert np.isfinite(alternating([run], rounds=2, warmup=1)).all()
    assert plans == [b"PLAN"] and set(context.bound) == {"images", "output0"} and context.runs == 5
