"""Where a network runs on this machine: which runtimes there are, and what runs a file or a checkpoint."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.autobackend import AutoBackend

from yolo_prune.device.command import is_command
from yolo_prune.device.runners import MODULES, module_of, noise, open_file
from yolo_prune.device.stopwatch import Runner
from yolo_prune.device.system import conditions
from yolo_prune.errors import UnsupportedError

MAKERS = {
    **dict.fromkeys(("onnx", "tensorrt", "command"), "onnx"),
    **{"ncnn": "pnnx", "litert": "litert_torch", "coreml": "coremltools"},
}
"""Runtime -> module that makes its file, where it is another."""
FORMATS = {
    "onnx": "onnx",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "litert": "litert",
    "coreml": "coreml",
    "tensorrt": "engine",
}
"""Runtime -> Ultralytics' export format; PyTorch runs the checkpoint."""
_RUNTIMES = {".onnx": "onnx", ".tflite": "litert", ".mlpackage": "coreml", ".engine": "tensorrt"}
"""Suffix of an export -> runtime that it is opened in."""


def check_runtime(form: str) -> None:
    """Refuse a runtime that this machine does not have.

    Args:
        form: Its name, and maybe a precision: ``onnx``, ``onnx:8``; or a command.

    Raises:
        UnsupportedError: Says what to install, or where it runs.
    """
    name = form.partition(":")[0]
    if name in MODULES:
        module_of(name)
    if maker := MAKERS.get(name):
        try:
            import_module(maker)
        except ImportError as e:
            package = maker.replace("_", "-")
            raise UnsupportedError(
                f"runtime={name} needs {package} ({e}): pip install {package}, or use runtime=pytorch."
            ) from e
    if name == "tensorrt" and not torch.cuda.is_available():
        raise UnsupportedError(f"runtime=tensorrt needs an NVIDIA GPU and this machine has none: {_ELSEWHERE}.")
    if name == "coreml" and sys.platform != "darwin":
        raise UnsupportedError(f"runtime=coreml runs on macOS only: {_ELSEWHERE}.")


_ELSEWHERE = "measure where the model will run, with yolo-prune kit"


def described(name: str, threads: int) -> dict[str, Any]:
    """Return the conditions of a measurement: runtime or format, its version, the device, and threads."""
    found = {**conditions(name if is_command(name) else name.partition(":")[0], threads), "runtime": name}
    return {**found, "device": torch.cuda.get_device_name()} if is_on_gpu(name) else found


def is_on_gpu(name: str) -> bool:
    """Return whether a runtime computes on a GPU here."""
    name = name.partition(":")[0]
    return name == "tensorrt" or (name == "pytorch" and torch.cuda.is_available())


def file_runner(path: Path, shape: tuple[int, ...], threads: int, half: bool = False) -> Runner:
    """Return a runner of an exported file, or of a checkpoint.

    Args:
        path: ``.pt``, or an export; those that no runtime here opens run through Ultralytics' AutoBackend, with threads
            of their own choice.
        shape: Of the input, (1, C, H, W).
        threads: For a CPU.
        half: Whether a runtime computes in half precision where that is not the file's to say.

    Raises:
        UnsupportedError: If it is none of these.
    """
    if path.suffix == ".pt":
        from ultralytics.nn.tasks import load_checkpoint

        network = load_checkpoint(path)[0].eval().fuse(verbose=False)
        return torch_runner(network.float(), shape, threads)
    if runtime := _runtime_of(path):
        return open_file(runtime, path, shape, threads, half)
    try:
        network = AutoBackend(str(path), device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except TypeError as e:
        raise UnsupportedError(f"{path} is neither a checkpoint nor an export of Ultralytics: not timed.") from e
    return torch_runner(network, shape, threads)


def torch_runner(network: nn.Module, shape: tuple[int, ...], threads: int) -> Runner:
    """Return a runner of a module, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, image = network.to(device), torch.from_numpy(noise(shape)).to(device)

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


def _runtime_of(path: Path) -> str | None:
    """Return the runtime that opens an export, or None."""
    for pattern, runtime in (("*.xml", "openvino"), ("*.param", "ncnn")):
        if path.is_dir() and any(path.glob(pattern)):
            return runtime
    return _RUNTIMES.get(path.suffix)
