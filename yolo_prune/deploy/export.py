"""Hand the pruned checkpoint to Ultralytics' own export, then check that the exported file does the same."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from ultralytics import YOLO
from ultralytics.engine.exporter import (
    EXPORT_ENVS,
)
from ultralytics.utils import checks

from yolo_prune.deploy.coreml import disagreement, inspect, store_sparsely
from yolo_prune.deploy.formats import file_size, format_table, is_calibrated, precisions, read_export
from yolo_prune.deploy.parity import ExportedCheckpoint, compare_known, objection
from yolo_prune.host.patches import patched
from yolo_prune.report.records import ExportRecord

APPLE = {"coreml": "Core ML", "coreai": "Core AI"}
"""Formats that are made anywhere and run on macOS only."""


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
    asked = [read_export(export) for export in exports]
    with _nothing_installed(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\b")  # of what it will drop one day, for each format anew
        original = ExportedCheckpoint(checkpoint, images, data)
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


def _export(original: ExportedCheckpoint, name: str, quantize: int | str | None) -> ExportRecord:
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
        if name == "coreml" and original.has_zeros and record.precision in ("32", "16"):
            store_sparsely(path)
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
        record.max_abs_diff_boxes, record.max_abs_diff = compare_known(original, path)
        record.fitness, record.fitness_checkpoint = original.fitness_of(path), original.fitness
        record.reason = objection(record, max(original.imgsz))
        record.ok = record.reason is None
        if record.ok and (name, record.precision) == ("saved_model", "8"):
            record.reason = "compared is the SavedModel, which stays float; not the INT8 TFLite files in it"
    except Exception as e:  # whatever an exporter or runtime raises is a result of this format, not the run's end
        stage = "made, but not judged: " * (record.path is not None)
        way_out = f"; {name} needs {_needs(name)}" * isinstance(e, ImportError)
        record.reason = f"{stage}{type(e).__name__}: {e}{way_out}"
    return record


def _make(original: ExportedCheckpoint, name: str, precision: str, quantize: int | str | None) -> Path:
    """Export in a folder of its own, and move the result beside the checkpoint.

    Several formats pass through ``best.onnx``, and a format has one file name for several precisions: beside each other
    they would replace what has been checked already.
    """
    stem = original.path.stem if quantize is None else f"{original.path.stem}-{quantize}"  # `_PRECISION` reads it
    calibration = {"data": str(original.data)} if original.data and is_calibrated(name, precision) else {}
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
    needed = EXPORT_ENVS[format_table("Env")[name]]
    packages = (f"ultralytics[{','.join(needed['extras'])}]", *needed["requirements"])
    return " ".join(("pip install", *(f'"{package}"' for package in packages)))
