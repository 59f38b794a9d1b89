"""Whether an exported file does what the checkpoint does.

In full precision it has to compute what the checkpoint computes, number by number. In a lower one it has to find what
the checkpoint finds: its fitness on the validation set decides, and differences of outputs are only told.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules import SemanticSegment

from yolo_prune.graph.layers import is_quantized
from yolo_prune.host.checkpoint import has_zeros
from yolo_prune.report.records import ExportRecord
from yolo_prune.utils.console import progress_bar

SCORE_TOLERANCE = 1e-3
"""Largest difference of a score (0..1) that still counts as the same function."""
BOX_TOLERANCE = 1e-3
"""Largest difference of a box coordinate, as a share of the image size."""
LOSS = {"16": 0.02, "8": 0.1, "w8a16": 0.1, "w8a32": 0.1}
"""Precision -> share of its fitness that an export may lose.

Measured on a YOLOv8n of half the MACs (`benchmarks/exports.py`): FP16 moves the fitness by 0.3 % at most, INT8 loses
0 to 2 % in most formats and 16 % in LiteRT's static one, which has to be told.
"""
NOISE = 0.01
"""Fitness that may always be lost: so much hangs on a single image of a small validation set."""


class ExportedCheckpoint:
    """The checkpoint with what it computes itself, which is found once for all formats.

    Args:
        path: A ``.pt`` file.
        images: Shape (B, C, H, W), values 0..1.
        data: The data set, or None.
    """

    def __init__(self, path: str | Path, images: torch.Tensor, data: str | Path | None = None) -> None:
        self.path, self.images, self.data = Path(path), images, data
        self.imgsz = list(images.shape[2:])
        self._outputs: dict[str, list[torch.Tensor]] = {}

    @cached_property
    def _backend(self) -> AutoBackend:
        return AutoBackend(str(self.path), device=torch.device("cpu"))

    @property
    def is_quantized(self) -> bool:
        """Whether it was trained with INT8 quantizers, which every export of it keeps."""
        return is_quantized(self._backend.model)

    @property
    def has_zeros(self) -> bool:
        """Whether weights of it are zero on purpose."""
        return has_zeros(getattr(self._backend.model, "yaml", None))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self._backend.names)

    def outputs(self, format: str) -> list[torch.Tensor]:
        """Return its outputs as an export: heads leave other things out, those of maps depend on the format."""
        head = self._backend.model.model[-1]
        format = format if isinstance(head, SemanticSegment) else ""
        if format not in self._outputs:
            head.export, head.format = True, format
            self._outputs[format] = _outputs(self._backend, self.images)
        return self._outputs[format]

    @cached_property
    def fitness(self) -> float | None:
        """Fitness on the validation set, or None without data."""
        return self.fitness_of(self.path)

    def fitness_of(self, path: Path) -> float | None:
        """Return the fitness of an export on the validation set, or None without data."""
        if self.data is None:
            return None
        known = {name: self._known[name] for name in ("task", "single_cls") if name in self._known}
        device = 0 if path.suffix == ".engine" else "cpu"
        return fitness(path, self.data, max(self.imgsz), device=device, **known)

    @cached_property
    def _known(self) -> dict[str, Any]:
        return dict(YOLO(self.path).overrides)


def objection(record: ExportRecord, imgsz: int) -> str | None:
    """Return why an export is not the checkpoint in another format, or None.

    Args:
        record: With everything that was measured.
        imgsz: Longer side of the images in pixels.
    """
    if record.precision == "32":
        scores, boxes = record.max_abs_diff or 0.0, record.max_abs_diff_boxes or 0.0
        is_same = scores <= SCORE_TOLERANCE and boxes <= BOX_TOLERANCE * imgsz
        return None if is_same else "its outputs differ from the checkpoint's"
    before, after, share = record.fitness_checkpoint or 0.0, record.fitness or 0.0, LOSS[record.precision]
    if after >= before - max(share * before, NOISE):
        return None
    return (
        f"fitness fell from {before:.4f} to {after:.4f}, by more than {share:.0%}; "
        "take another precision, or another format"
    )


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
    return compare_known(ExportedCheckpoint(checkpoint, images), exported)


def compare_known(original: ExportedCheckpoint, exported: str | Path) -> tuple[float | None, float]:
    """Do what `compare` does, with what the checkpoint computes known already."""
    actual = _in_full_precision(Path(exported))
    boxes: float | None = None
    scores = 0.0
    for a, b in zip(original.outputs(actual.format), _outputs(actual, original.images), strict=True):
        if a.shape != b.shape:
            raise ValueError(f"output shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
        if not a.is_floating_point():
            of_rest = float((a != b).float().mean())
        elif a.ndim == 3:
            of_boxes, of_rest = _detections(a[0], b[0], max(original.imgsz))
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


def _in_full_precision(exported: Path) -> AutoBackend:
    """Load an export to compute what the file says: on a CPU that can, OpenVINO takes bfloat16 by itself.

    Fitness and speed are those of what it does by itself.
    """
    loaded = AutoBackend(str(exported), device=torch.device("cpu"))
    if loaded.format == "openvino":
        core, (model,) = loaded.backend.ov.Core(), exported.glob("*.xml")
        loaded.backend.ov_compiled_model = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return loaded


def _outputs(backend: AutoBackend, images: torch.Tensor) -> list[torch.Tensor]:
    """Run image by image (exports have batch 1) and return all output tensors on the CPU."""
    backend.eval()
    outputs = []
    with torch.no_grad(), progress_bar("comparing outputs", len(images)) as step:
        for image in images:
            result = backend(image[None].to(backend.device))  # TensorRT has its own
            tensors = [
                t.cpu() for t in (result if isinstance(result, (list, tuple)) else [result]) if torch.is_tensor(t)
            ]
            outputs += [t.float() if t.is_floating_point() else t for t in tensors]
            step()
    return outputs


def fitness(path: Path, data: str | Path, imgsz: int, task: str | None = None, **known: Any) -> float:
    """Return Ultralytics' fitness of a checkpoint or an exported file on the validation set.

    All are validated alike: image by image, as most exports want it, and padded to squares.

    Args:
        path: File or folder.
        data: A data set as Ultralytics takes it.
        imgsz: Side of the images in pixels.
        task: Of the network, which not all formats tell.
        **known: Other arguments of Ultralytics' ``val``.
    """
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"batch": 1, "rect": False, "workers": 0, "plots": False, "verbose": False, "project": folder}
        metrics = YOLO(path, task=task).val(data=str(data), imgsz=imgsz, **known, **fixed)
    return float(metrics.fitness)
