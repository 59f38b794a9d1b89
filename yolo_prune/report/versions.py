"""Versions of what took part in a run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Return the versions of what took part."""
    found = {"python": platform.python_version()}
    for package in (
        "yolo-prune",
        "ultralytics",
        "torch",
        "torch-pruning",
        "onnx",
        "onnxruntime",
        "openvino",
        "ncnn",
        "ai-edge-litert",
        "coremltools",
        "nvidia-modelopt",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
