"""Where a network will run: PyTorch, ONNX Runtime, OpenVINO or TensorRT on this machine."""

from __future__ import annotations

import io
import os
import platform
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.nn.autobackend import AutoBackend

from yolo_prune.cost.latency_table import SIMD
from yolo_prune.device.stopwatch import Runner
from yolo_prune.errors import UnsupportedError

PACKAGES = {
    "onnx": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
    "pytorch": ("torch",),
    "tensorrt": ("tensorrt", "onnx"),
}
"""Runtime (`config.RUNTIMES`) -> the package that runs a network, and what makes its file."""
FORMATS = {"onnx": "onnx", "openvino": "openvino", "tensorrt": "engine"}
"""Name -> Ultralytics' export format; PyTorch runs the checkpoint."""
OPSET = 17


def check_runtime(name: str) -> None:
    """Refuse a runtime that this machine does not have.

    Raises:
        UnsupportedError: Says what to install, or where it runs.
    """
    for package in PACKAGES[name]:
        try:
            import_module(package)
        except ImportError as e:
            raise UnsupportedError(
                f"runtime={name} needs {package} ({e}): pip install {package}, or use runtime=pytorch."
            ) from e
    if name == "tensorrt" and not torch.cuda.is_available():
        raise UnsupportedError(
            "runtime=tensorrt needs an NVIDIA GPU and this machine has none: measure where the model will run."
        )


def described(name: str, threads: int) -> dict[str, Any]:
    """Return the conditions of a measurement: runtime or format, its version, the device, and threads."""
    device = torch.cuda.get_device_name() if is_on_gpu(name) else _cpu_name()
    return {"runtime": name, "version": _version(PACKAGES.get(name, (name,))[0]), "device": device, "threads": threads}


def is_on_gpu(name: str) -> bool:
    """Return whether a runtime computes on a GPU here."""
    return name == "tensorrt" or (name == "pytorch" and torch.cuda.is_available())


def all_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fast_multiple(name: str) -> int:
    """Return the number whose multiples are fast widths in a runtime, as measured.

    OpenVINO computes in bfloat16 where the CPU can, and there are twice as many of these in a register. An NVIDIA GPU
    was faster with multiples of 32 than of 8 in every case measured (``benchmarks/gpu.py``).
    """
    if is_on_gpu(name):
        return 2 * SIMD
    if name == "openvino":
        from openvino import Core

        if "BF16" in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return 2 * SIMD
    return SIMD


def module_runner(name: str, network: nn.Module, shape: tuple[int, ...], threads: int) -> Runner:
    """Return a runner of a module without Ultralytics around it, such as a single layer.

    Args:
        name: One of `config.RUNTIMES`.
        network: In evaluation mode, on the CPU.
        shape: Of its input, of batch size 1.
        threads: For a CPU.
    """
    image = torch.from_numpy(_noise(shape))
    if name == "pytorch":
        return _torch_runner(network, image, threads)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), buffer, opset_version=OPSET, dynamo=False, input_names=["image"])
    return _onnx_runner(name, buffer.getvalue(), shape, threads)


def file_runner(path: Path, shape: tuple[int, ...], threads: int) -> Runner:
    """Return a runner of an exported file, or of a checkpoint.

    Args:
        path: ``.pt``, ``.onnx``, an OpenVINO folder, or ``.engine``; others run through Ultralytics' AutoBackend, with
            threads of their own choice.
        shape: Of the input, (1, C, H, W).
        threads: For a CPU.

    Raises:
        UnsupportedError: If it is none of these.
    """
    if path.suffix == ".pt":
        from ultralytics.nn.tasks import load_checkpoint

        network = load_checkpoint(path)[0].eval().fuse(verbose=False)
        return _torch_runner(network.float(), torch.from_numpy(_noise(shape)), threads)
    if path.suffix == ".onnx":
        return _onnx_runner("onnx", str(path), shape, threads)
    if path.is_dir() and (models := sorted(path.glob("*.xml"))):
        return _onnx_runner("openvino", str(models[0]), shape, threads)
    if path.suffix == ".engine":
        return _engine_runner(path)
    try:
        network = AutoBackend(str(path), device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except TypeError as e:
        raise UnsupportedError(f"{path} is neither a checkpoint nor an export of Ultralytics: not timed.") from e
    return _torch_runner(network, torch.from_numpy(_noise(shape)), threads)


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Return an image of noise in 0..1; of a black one, activations can get so small that PyTorch takes ages."""
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def _torch_runner(network: nn.Module, image: torch.Tensor, threads: int) -> Runner:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, image = network.to(device), image.to(device)

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                network(image)
            if device.type == "cuda":
                torch.cuda.synchronize()
        finally:
            torch.set_num_threads(before)

    return run


def _onnx_runner(name: str, model: bytes | str, shape: tuple[int, ...], threads: int) -> Runner:
    image = _noise(shape)
    if name == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or the next runner has no core
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: image}
        return lambda: session.run(None, feed)
    if name == "openvino":
        import openvino

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
        return lambda: request.infer({0: image})
    return _tensorrt_runner(model)


def _tensorrt_runner(model: bytes | str) -> Runner:
    """Build an engine from ONNX; run on a GPU only, which no machine of this project's CI has."""
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model if isinstance(model, bytes) else Path(model).read_bytes()):
        raise UnsupportedError(f"TensorRT cannot read the model: {parser.get_error(0)}.")
    config = builder.create_builder_config()
    config.set_flag(tensorrt.BuilderFlag.FP16)
    return _plan_runner(builder.build_serialized_network(network, config))


def _engine_runner(path: Path) -> Runner:
    """Run an engine that Ultralytics exported: JSON metadata, with its length before it, come first."""
    content = path.read_bytes()
    length = int.from_bytes(content[:4], "little")
    return _plan_runner(content[4 + length :] if content[4:5] == b"{" else content)


def _plan_runner(plan: Any) -> Runner:
    """Load a serialized engine, bind memory to each input and output, and run."""
    import tensorrt

    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()
    held = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        held.append(torch.zeros(tuple(engine.get_tensor_shape(name)), device="cuda"))
        context.set_tensor_address(name, held[-1].data_ptr())

    def run() -> None:
        assert held  # the engine writes there
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()

    return run


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
