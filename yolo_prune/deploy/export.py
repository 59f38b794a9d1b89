"""Hand the pruned checkpoint to Ultralytics' own export, then check that the exported file does the same.

In full precision the file has to compute what the checkpoint computes, number by number. In a lower one it has to find
what the checkpoint finds: its fitness on the validation set decides, and differences of outputs are only told.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import QUANTIZE_ALIASES
from ultralytics.engine.exporter import (
    EXPORT_ENVS,
    FP16_FORMATS,
    FP32_UNSUPPORTED_FORMATS,
    INT8_FORMATS,
    W8A16_FORMATS,
    W8A32_FORMATS,
    export_formats,
)
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.modules import SemanticSegment
from ultralytics.utils import checks

from yolo_prune.deploy.coreml import disagreement, inspect
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.graph.layers import is_quantized
from yolo_prune.host.patches import patched
from yolo_prune.report.records import ExportRecord
from yolo_prune.utils.console import waiting

SCORE_TOLERANCE = 1e-3
"""Largest difference of a score (0..1) that still counts as the same function."""
BOX_TOLERANCE = 1e-3
"""Largest difference of a box coordinate, as a share of the image size."""
APPLE = {"coreml": "Core ML", "coreai": "Core AI"}
"""Formats that are made anywhere and run on macOS only."""
LOSS = {"16": 0.02, "8": 0.1, "w8a16": 0.1, "w8a32": 0.1}
"""Precision -> share of its fitness that an export may lose.

Measured on a YOLOv8n of half the MACs (`benchmarks/exports.py`): FP16 moves the fitness by 0.3 % at most, INT8 loses
0 to 2 % in most formats and 16 % in LiteRT's static one, which has to be told.
"""
NOISE = 0.01
"""Fitness that may always be lost: so much hangs on a single image of a small validation set."""

_PRECISION = r"(?:[-_](8|16|32|w8a16|w8a32|int8))"
"""What an export's name has between the checkpoint's and the suffix: from `_make`, or from Ultralytics."""


def formats() -> tuple[str, ...]:
    """Return Ultralytics' names of the formats that it exports to."""
    return tuple(_formats("Suffix"))


def _formats(column: str) -> dict[str, Any]:
    """Return what Ultralytics says of each format that it exports to in one column of its table."""
    table = export_formats()
    return {name: of for name, of in zip(table["Argument"], table[column], strict=True) if name != "-"}


def precisions(name: str) -> tuple[str, ...]:
    """Return the precisions that Ultralytics exports a format in, as text, the format's own first."""
    tables = {
        "32": set(formats()) - FP32_UNSUPPORTED_FORMATS,
        "16": FP16_FORMATS,
        "8": INT8_FORMATS,
        "w8a16": W8A16_FORMATS,
        "w8a32": W8A32_FORMATS,
    }
    return tuple(precision for precision, able in tables.items() if name in able)


def check_formats(exports: Sequence[str]) -> None:
    """Refuse what Ultralytics cannot export.

    Args:
        exports: Names of formats, each alone or with a precision as in Ultralytics' ``quantize``: ``"onnx"``,
            ``"openvino:8"``, ``"engine:fp16"``.

    Raises:
        ConfigError: Names the format and the nearest valid one, or the precisions that it can have.
    """
    for export in exports:
        _read(export)


def _read(export: str) -> tuple[str, int | str | None]:
    """Return the format, and Ultralytics' ``quantize`` where a precision is asked for."""
    name, colon, precision = export.partition(":")
    if name not in formats():
        near = difflib.get_close_matches(name, formats(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"export={name!r} is no export format of Ultralytics: {hint}Valid: {', '.join(formats())}.")
    if not colon:
        return name, None
    quantize = QUANTIZE_ALIASES.get(precision.lower())
    if str(quantize) not in precisions(name):
        valid = ", ".join(f"{name}:{p}" for p in precisions(name))
        raise ConfigError(f"export={export!r}: Ultralytics exports no {name} of this precision. Valid: {valid}.")
    return name, quantize


def export_all(
    checkpoint: Path, exports: Sequence[str], images: torch.Tensor, data: str | Path | None = None
) -> list[ExportRecord]:
    """Export a checkpoint to each format and compare the results; one failure does not stop the others.

    Nothing is installed on the way, whatever ``YOLO_AUTOINSTALL`` says: what is missing is the reason of a failure.

    Args:
        checkpoint: A ``.pt`` file; exports are written beside it, with the precision in their name where one is asked
            for.
        exports: What `check_formats` takes, e.g. ``("onnx", "openvino:8")``.
        images: Real images of shape (B, C, H, W), values 0..1, at the size to export for.
        data: The data set that the checkpoint is for, as Ultralytics takes it. It calibrates INT8 and judges every
            export; without it fitness stays unknown, and nothing below full precision is made.

    Raises:
        ConfigError: If Ultralytics cannot export one of them at all.
    """
    asked = [_read(export) for export in exports]
    with _nothing_installed(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\b")  # of what it will drop one day, for each format anew
        original = _Checkpoint(checkpoint, images, data)
        return [_export(original, name, quantize) for name, quantize in asked]


@contextmanager
def _nothing_installed() -> Iterator[None]:
    """Let neither Ultralytics nor MNN's converter install packages."""
    reporter = "MNN.tools.utils.log"  # MNN's converter goes on without it; with it, its SDK comes by pip
    with patched(checks, "AUTOINSTALL", False):
        is_loaded = sys.modules.setdefault(reporter, None) is not None  # type: ignore[arg-type]  # None: not importable
        try:
            yield
        finally:
            if not is_loaded:
                del sys.modules[reporter]


class _Checkpoint:
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
    def classes(self) -> int:
        """Number of classes."""
        return len(self._backend.names)

    def outputs(self, format: str) -> list[torch.Tensor]:
        """Return what it computes as an export: heads leave other things out, those of maps depend on the format."""
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


def _export(original: _Checkpoint, name: str, quantize: int | str | None) -> ExportRecord:
    """Make one export and say what came of it."""
    record = ExportRecord(name, str(quantize or precisions(name)[0]))
    if record.precision != "32" and original.data is None:
        record.reason = f"precision {record.precision} is judged with data, and none was given"
        return record
    if name == "engine" and not torch.cuda.is_available():
        asked = f" quantize={quantize}" * (quantize is not None) + f" data={original.data}" * (quantize == 8)
        record.reason = (
            "TensorRT needs an NVIDIA GPU and this machine has none; on the target run "
            f"yolo export model={original.path.name} format=engine{asked}"
        )
        return record
    try:
        if original.is_quantized:
            record.precision = "8"
        path = _make(original, name, record.precision, quantize)
        record.path, record.bytes = str(path), file_size(path)
        if name in APPLE and sys.platform != "darwin":
            record.ok, record.reason = True, f"made, but {APPLE[name]} runs on macOS only: not compared"
            if name == "coreml":
                record.inspected = inspect(path)
                outputs = original.outputs("onnx")  # like Core ML's, maps of classes are whole numbers there
                shapes = [output.shape for output in outputs[: len(record.inspected["outputs"])]]  # of the first image
                wrong = disagreement(record.inspected, original.imgsz, original.classes, shapes)
                record.ok, record.reason = wrong is None, wrong or record.reason
            return record
        record.max_abs_diff_boxes, record.max_abs_diff = _compare(original, path)
        record.fitness, record.fitness_checkpoint = original.fitness_of(path), original.fitness
        record.reason = _objection(record, max(original.imgsz))
        record.ok = record.reason is None
        if record.ok and (name, record.precision) == ("saved_model", "8"):
            record.reason = "compared is the SavedModel, which stays float; not the INT8 TFLite files in it"
    except Exception as e:  # whatever an exporter or runtime raises is a result of this format, not the run's end
        stage = "made, but not judged: " * (record.path is not None)
        way_out = f"; {name} needs {_needs(name)}" * isinstance(e, ImportError)
        record.reason = f"{stage}{type(e).__name__}: {e}{way_out}"
    return record


def _make(original: _Checkpoint, name: str, precision: str, quantize: int | str | None) -> Path:
    """Export in a folder of its own, and move the result beside the checkpoint.

    Several formats pass through ``best.onnx``, and a format has one file name for several precisions: beside each other
    they would replace what has been checked already.
    """
    stem = original.path.stem if quantize is None else f"{original.path.stem}-{quantize}"  # `_PRECISION` reads it
    calibration = (
        {"data": str(original.data)}
        if original.data and "data" in _formats("Arguments")[name] and "8" in precision
        else {}
    )
    with tempfile.TemporaryDirectory(dir=original.path.parent) as folder:
        copy = Path(folder).resolve() / f"{stem}.pt"
        shutil.copy(original.path, copy)
        made = Path(
            YOLO(copy).export(format=name, imgsz=original.imgsz, quantize=quantize, verbose=False, **calibration)
        )
        for item in copy.parent.iterdir():
            if item == made or item.suffix not in {".pt", ".onnx"}:  # some results need what lies beside them
                _move(item, original.path.with_name(item.name))
        return original.path.parent / made.relative_to(copy.parent)


def _move(source: Path, target: Path) -> None:
    """Put a file or folder in the place of what is there."""
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _needs(name: str) -> str:
    """Return the command that installs what Ultralytics names for a format."""
    needed = EXPORT_ENVS[_formats("Env")[name]]
    packages = (f"ultralytics[{','.join(needed['extras'])}]", *needed["requirements"])
    return " ".join(("pip install", *(f'"{package}"' for package in packages)))


def _objection(record: ExportRecord, imgsz: int) -> str | None:
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
    return _compare(_Checkpoint(checkpoint, images), exported)


def _compare(original: _Checkpoint, exported: str | Path) -> tuple[float | None, float]:
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
    with torch.no_grad(), waiting("comparing outputs", len(images)) as step:
        for image in images:
            result = backend(image[None].to(backend.device))  # TensorRT has its own
            tensors = [
                t.cpu() for t in (result if isinstance(result, (list, tuple)) else [result]) if torch.is_tensor(t)
            ]
            outputs += [t.float() if t.is_floating_point() else t for t in tensors]
            step()
    return outputs


def form_of(path: Path) -> str:
    """Return what an exported file is, as `check_formats` takes it: ``onnx``, or ``openvino:8``.

    Raises:
        UnsupportedError: If it is of no format of Ultralytics.
    """
    for name, suffix in _formats("Suffix").items():
        if path.name.endswith(suffix):
            precision = re.search(f"{_PRECISION}$", path.name.removesuffix(suffix))
            return f"{name}:{precision[1].removeprefix('int')}" if precision else name
    raise UnsupportedError(
        f"{path} is neither a checkpoint nor of an export format of Ultralytics; give a .pt, .onnx, or what else "
        "yolo export has made."
    )


def exports_of(checkpoint: Path) -> dict[str, Path]:
    """Return the exports that lie beside a checkpoint: what each is -> file or folder."""
    suffixes = "|".join(map(re.escape, _formats("Suffix").values()))
    name = re.compile(f"{re.escape(checkpoint.stem)}{_PRECISION}*({suffixes})")
    beside = (path for path in sorted(checkpoint.parent.iterdir()) if name.fullmatch(path.name))
    return {form_of(path): path for path in beside}


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


def file_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
