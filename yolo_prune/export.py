"""Hand the pruned checkpoint to Ultralytics' own export, then check that the exported file computes the same."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from ultralytics import YOLO
from ultralytics.engine.exporter import export_formats
from ultralytics.nn.autobackend import AutoBackend

from yolo_prune.errors import ConfigError
from yolo_prune.report import ExportRecord

SCORE_TOLERANCE = 1e-3
"""Largest difference of a score (0..1) that still counts as the same function."""
BOX_TOLERANCE = 1e-3
"""Largest difference of a box coordinate, as a share of the image size."""


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that Ultralytics does not know.

    Raises:
        ConfigError: Names the format and the nearest valid one.
    """
    known = [f for f in export_formats()["Argument"] if f != "-"]
    for name in formats:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"export={name!r} is no export format of Ultralytics: {hint}Valid: {', '.join(known)}.")


def export_all(checkpoint: Path, formats: Sequence[str], images: torch.Tensor) -> list[ExportRecord]:
    """Export a checkpoint to each format and compare the results; one failure does not stop the others.

    Args:
        checkpoint: A ``.pt`` file; exports are written beside it.
        formats: Ultralytics' names, e.g. ``("onnx", "openvino")``.
        images: Real images of shape (B, C, H, W), values 0..1, at the size to export for.
    """
    return [_export(checkpoint, name, images) for name in formats]


def _export(checkpoint: Path, name: str, images: torch.Tensor) -> ExportRecord:
    if name == "engine" and not torch.cuda.is_available():
        way_out = (
            "TensorRT needs an NVIDIA GPU and this machine has none; on the target run "
            f"yolo export model={checkpoint.name} format=engine"
        )
        return ExportRecord(name, None, None, None, False, way_out)
    path: str | None = None
    try:
        path = str(YOLO(checkpoint).export(format=name, imgsz=list(images.shape[2:]), verbose=False))
        if name == "coreml" and sys.platform != "darwin":
            return ExportRecord(name, path, None, None, True, "made, but Core ML runs on macOS only: not compared")
        boxes, scores = compare(checkpoint, path, images)
    except Exception as e:  # whatever an exporter or runtime raises is a result of this format, not the run's end
        return ExportRecord(name, path, None, None, False, f"{type(e).__name__}: {e}")
    ok = scores <= SCORE_TOLERANCE and (boxes or 0) <= BOX_TOLERANCE * max(images.shape[2:])
    reason = None if ok else "its outputs differ from the checkpoint's"
    return ExportRecord(name, path, scores, boxes, ok, reason)


def compare(checkpoint: str | Path, exported: str | Path, images: torch.Tensor) -> tuple[float | None, float]:
    """Run both on the same images and return the largest absolute differences of their raw outputs.

    Args:
        checkpoint: The ``.pt`` file.
        exported: The exported file or folder.
        images: Shape (B, C, H, W), values 0..1.

    Returns:
        Largest difference of a box coordinate in pixels (None for tasks without boxes), and of anything else.
    """
    device = torch.device("cpu")
    expected, actual = (_outputs(AutoBackend(str(path), device=device), images) for path in (checkpoint, exported))
    boxes: float | None = None
    scores = 0.0
    for a, b in zip(expected, actual, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"output shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
        diff = (a - b).abs()
        if a.ndim == 3:  # (1, 4 + scores, anchors)
            boxes = max(boxes or 0.0, float(diff[:, :4].max()))
            diff = diff[:, 4:]
        scores = max(scores, float(diff.max()))
    return boxes, scores


def _outputs(backend: AutoBackend, images: torch.Tensor) -> list[torch.Tensor]:
    """Run image by image (exports have batch 1) and return all output tensors on the CPU."""
    backend.eval()
    outputs = []
    with torch.no_grad():
        for image in images:
            result = backend(image[None])
            outputs += [
                t.float().cpu()
                for t in (result if isinstance(result, (list, tuple)) else [result])
                if torch.is_tensor(t)
            ]
    return outputs
