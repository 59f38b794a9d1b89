"""What zeros among the weights bring, runtime by runtime, and which layers have them, as text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from yolo_prune.utils.text import aligned, count

WIDE = 256
"""Inputs (channels times taps) and outputs from which NVIDIA found sparse convolutions faster than dense ones: what an
engineer of TensorRT says in its issues 3849 and 4065."""
Layers = Mapping[str, Mapping[str, Any]]
"""A report's ``zeros``."""


def at_runtimes(layers: Layers, checkpoint: str) -> dict[str, str]:
    """Return runtime -> what the zeros of a network bring there, in a sentence.

    Args:
        layers: A report's ``zeros``.
        checkpoint: Its file.
    """
    return {
        "ONNX Runtime": "nothing but a file that compresses better: it computes with dense weights",
        "OpenVINO": "nothing: its CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE is for matrix multiplications, and these are "
        "convolutions",
        "TensorRT": _tensorrt(layers, checkpoint),
        "Core ML": "a smaller file: prune_export=coreml stores weights sparsely where more than half are zero; whether "
        "it is faster or takes less memory, the device decides",
        "LiteRT": "nothing: XNNPACK's sparse convolutions are for networks like MobileNet, of 1x1 and depthwise layers "
        "alone",
    }


def _tensorrt(layers: Layers, checkpoint: str) -> str:
    patterned = [path for path, of in layers.items() if of["two_of_four"] and of["zeros"]]
    if not patterned:
        return "nothing: only 2:4 is faster there (prune=2:4)"
    told = f"2:4 in {len(patterned)} of {len(layers)} layers"
    wide = [path for path in patterned if min(layers[path]["inputs"], layers[path]["outputs"]) >= WIDE]
    told += (
        f", of which those of {WIDE} inputs and outputs gain, here {', '.join(wide)}"
        if wide
        else f", none of which has {WIDE} inputs and outputs, from where on layers gain"
    )
    onnx = checkpoint.removesuffix(".pt") + ".onnx"
    return (
        f"{'' if wide else 'hardly anything: '}{told}. Ultralytics' export sets no SPARSE_WEIGHTS, so: yolo export "
        f"{shlex.quote(f'model={checkpoint}')} format=onnx, then there trtexec {shlex.quote(f'--onnx={onnx}')} "
        "--saveEngine=best.engine --fp16 --sparsity=enable"
    )


def share(layers: Layers) -> float:
    """Return the share of the weights of all layers that are zero."""
    weights, zeros = (sum(of[name] for of in layers.values()) for name in ("weights", "zeros"))
    return float(zeros / max(1, weights))


def lines(layers: Layers, checkpoint: str) -> list[str]:
    """Return a line for the network, and one for each runtime."""
    weights = sum(of["weights"] for of in layers.values())
    told = f"{share(layers):.1%} of {count(weights)} weights in {len(layers)} layers are zero; what that brings:"
    return [told, *(f"  {runtime}: {sentence}" for runtime, sentence in at_runtimes(layers, checkpoint).items())]


def table(layers: Layers) -> str:
    """Return a row for each layer."""
    rows: list[tuple[str, ...]] = [("layer", "weights", "zeros", "2:4")]
    for path, of in layers.items():
        share = f"{of['zeros'] / max(1, of['weights']):.1%}"
        rows.append((path, count(of["weights"]), share, "yes" if of["two_of_four"] and of["zeros"] else ""))
    return aligned(rows)
