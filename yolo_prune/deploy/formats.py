"""Which formats and precisions Ultralytics exports to, and which file is of which."""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics.cfg import QUANTIZE_ALIASES
from ultralytics.engine.exporter import (
    FP16_FORMATS,
    FP32_UNSUPPORTED_FORMATS,
    INT8_FORMATS,
    W8A16_FORMATS,
    W8A32_FORMATS,
    export_formats,
)

from yolo_prune.errors import ConfigError, UnsupportedError

_PRECISION = r"(?:[-_](8|16|32|w8a16|w8a32|int8))"
"""Pattern of the precision in an export's name, before its suffix: from `_make`, or from Ultralytics."""


def formats() -> tuple[str, ...]:
    """Return Ultralytics' names of the formats that it exports to."""
    return tuple(format_table("Suffix"))


def format_table(column: str) -> dict[str, Any]:
    """Return one column of Ultralytics' table of export formats, by format."""
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


def is_calibrated(name: str, precision: str) -> bool:
    """Whether Ultralytics makes a format in this precision with a data set's images, as INT8 of most formats."""
    return "8" in precision and "data" in format_table("Arguments")[name]


def check_formats(exports: Sequence[str]) -> None:
    """Refuse what Ultralytics cannot export.

    Args:
        exports: Names of formats, each alone or with a precision as in Ultralytics' ``quantize``: ``"onnx"``,
            ``"openvino:8"``, ``"engine:fp16"``.

    Raises:
        ConfigError: Names the format and the nearest valid one, or the precisions that it can have.
    """
    for export in exports:
        read_export(export)


def read_export(export: str) -> tuple[str, int | str | None]:
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


def form_of(path: Path) -> str:
    """Return the format of an exported file, as `check_formats` takes it: ``onnx``, or ``openvino:8``.

    Raises:
        UnsupportedError: If it is of no format of Ultralytics.
    """
    for name, suffix in format_table("Suffix").items():
        if path.name.endswith(suffix):
            precision = re.search(f"{_PRECISION}$", path.name.removesuffix(suffix))
            return f"{name}:{precision[1].removeprefix('int')}" if precision else name
    raise UnsupportedError(
        f"{path} is neither a checkpoint nor of an export format of Ultralytics; give a .pt, .onnx, or what else "
        "yolo export has made."
    )


def exports_of(checkpoint: Path) -> dict[str, Path]:
    """Return the exports that lie beside a checkpoint: what each is -> file or folder."""
    suffixes = "|".join(map(re.escape, format_table("Suffix").values()))
    name = re.compile(f"{re.escape(checkpoint.stem)}{_PRECISION}*({suffixes})")
    beside = (path for path in sorted(checkpoint.parent.iterdir()) if name.fullmatch(path.name))
    return {form_of(path): path for path in beside}


def file_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def compressed_size(path: Path) -> int:
    """Return the bytes of a file after zlib's best compression, as in a zip or over HTTP: zeros take hardly any."""
    return len(zlib.compress(path.read_bytes(), 9))
