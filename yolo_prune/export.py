"""Hand the pruned checkpoint to Ultralytics' own export, then check that the exported file computes the same."""

from __future__ import annotations

import difflib
import sys
import tempfile
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
        most_boxes, most_scores = _tolerances(checkpoint, images)
    except Exception as e:  # whatever an exporter or runtime raises is a result of this format, not the run's end
        return ExportRecord(name, path, None, None, False, f"{type(e).__name__}: {e}")
    ok = scores <= most_scores and (boxes or 0) <= most_boxes
    reason = None if ok else "its outputs differ from the checkpoint's"
    return ExportRecord(name, path, scores, boxes, ok, reason)


def _tolerances(checkpoint: Path, images: torch.Tensor) -> tuple[float, float]:
    """Return how large differences of boxes and of scores may be.

    With INT8 quantizers an activation that lies between two steps goes one way or the other by the order of a sum, and
    layer by layer this grows to what rounding costs at all; the same checkpoint on other kernels differs as much. So an
    export may be as far from the checkpoint as twice the checkpoint is from its own float network.
    """
    tolerances = BOX_TOLERANCE * max(images.shape[2:]), SCORE_TOLERANCE
    saved = torch.load(checkpoint, map_location="cpu", weights_only=False)
    if not saved.get("modelopt"):
        return tolerances
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / checkpoint.name
        torch.save({**saved, "modelopt": None}, plain)
        boxes, scores = compare(checkpoint, plain, images)
    return max(tolerances[0], 2 * (boxes or 0.0)), max(tolerances[1], 2 * scores)


def compare(checkpoint: str | Path, exported: str | Path, images: torch.Tensor) -> tuple[float | None, float]:
    """Run both on the same images and return the largest absolute differences of their outputs.

    Args:
        checkpoint: The ``.pt`` file.
        exported: The exported file or folder.
        images: Shape (B, C, H, W), values 0..1.

    Returns:
        Largest difference of a box coordinate in pixels (None for tasks without boxes), and of anything else: scores
        as they are, what exceeds 1 (mask coefficients, keypoints) relative to the largest of its kind, classes of
        positions as the share that differs. Networks that are hardly trained predict boxes far larger than the image;
        their pixels are counted as if the largest were as large as the image.

    Raises:
        ValueError: If the outputs differ in number or shape.
    """
    device = torch.device("cpu")
    actual = AutoBackend(str(exported), device=device)
    expected = AutoBackend(str(checkpoint), device=device)
    head = expected.model.model[-1]  # computes in a checkpoint what it computes in an export
    head.export, head.format = True, actual.format
    boxes: float | None = None
    scores = 0.0
    for a, b in zip(_outputs(expected, images), _outputs(actual, images), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"output shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
        if not a.is_floating_point():
            of_rest = float((a != b).float().mean())
        elif a.ndim == 3:
            of_boxes, of_rest = _detections(a[0], b[0], max(images.shape[2:]))
            boxes = max(boxes or 0.0, of_boxes)
        else:
            of_rest = float(_apart(a, b).max() / max(1.0, float(a.abs().max())))
        scores = max(scores, of_rest)
    return boxes, scores


def _detections(a: torch.Tensor, b: torch.Tensor, imgsz: int) -> tuple[float, float]:
    """Compare boxes in pixels, and the rest.

    Args:
        a: Raw predictions of shape (4 + n, anchors), or an end-to-end list of shape (detections, 6 + n).
        b: Of the same shape.
        imgsz: Longer side of the image in pixels.
    """
    if a.shape[0] > a.shape[1]:  # a list, sorted by score; where scores are equal its order and its end are arbitrary
        scores = float(_apart(a[:, 4], b[:, 4]).max())
        clear = a[a[:, 4] > a[-1, 4] + SCORE_TOLERANCE]
        apart = torch.cdist(clear, b, compute_mode="donot_use_mm_for_euclid_dist")
        return (float(apart.min(dim=1).values.max()) if len(clear) else 0.0), scores
    diff = _apart(a, b)
    beyond = max(1.0, float(a[:4].abs().max()) / imgsz)
    rest = diff[4:] / a[4:].abs().amax(dim=1, keepdim=True).clamp(min=1)
    return float(diff[:4].max()) / beyond, float(rest.max())


def _apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return absolute differences; what is not a number is infinitely far from everything."""
    return (a - b).abs().nan_to_num(nan=torch.inf)


def _outputs(backend: AutoBackend, images: torch.Tensor) -> list[torch.Tensor]:
    """Run image by image (exports have batch 1) and return all output tensors on the CPU."""
    backend.eval()
    outputs = []
    with torch.no_grad():
        for image in images:
            result = backend(image[None])
            tensors = [
                t.cpu() for t in (result if isinstance(result, (list, tuple)) else [result]) if torch.is_tensor(t)
            ]
            outputs += [t.float() if t.is_floating_point() else t for t in tensors]
    return outputs
