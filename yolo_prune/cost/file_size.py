"""Bytes of exports: what a weight, and an output channel with its bias, takes in a file of a format and precision.

What else is in a file, its graph above all, no width changes: it is the rest of the dense network's own export.
Measured with ``benchmarks/file_sizes.py``.
"""

from __future__ import annotations

WEIGHT = {"32": 4.0, "16": 2.0, "8": 1.0, "w8a16": 1.0, "w8a32": 1.0}
"""Precision -> bytes of a weight."""
CHANNEL = {
    **{"onnx:16": 2.0, "openvino:16": 2.0, "openvino:8": 8.0},
    **{"litert:8": 30.0, "litert:w8a16": 34.0, "litert:w8a32": 17.0, "mnn:8": 12.0},
}
"""Export -> bytes of an output channel: its bias, and in INT8 a scale and a zero point, where there is one for each."""
BIAS = 4.0
"""Bytes of an output channel in all others: a bias in single precision."""
PREDICTED = ("onnx", "openvino", "ncnn", "torchscript", "litert", "coreml", "coreai", "mnn", "executorch")
"""Formats whose bytes follow their weights. A ``saved_model`` and a ``paddle`` model hold them more than once, and what
is compiled for a device, as for TensorRT, QNN or Hailo, is laid out as it likes."""


def bytes_per(form: str) -> tuple[float, float]:
    """Return the bytes of a weight, and of an output channel, in an export such as ``onnx:16`` or ``litert``."""
    precision = form.partition(":")[2]
    return WEIGHT.get(precision, WEIGHT["32"]), CHANNEL.get(form, BIAS)
