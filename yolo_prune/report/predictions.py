"""Predictions of the dense and the pruned network on a few images, drawn by Ultralytics."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ultralytics import YOLO

_WIDTH = 560
"""Pixels of a picture at most."""


class Sample(NamedTuple):
    """One image as both networks see it.

    Attributes:
        name: Of the file.
        pictures: Dense and pruned, as data URLs of JPEGs.
        found: What each found, in words.
    """

    name: str
    pictures: tuple[str, str]
    found: tuple[str, str]


def side_by_side(report: Mapping[str, Any], run: Path) -> list[Sample]:
    """Let the dense and the final network predict the report's validation images.

    Args:
        report: What is in ``report.json``.
        run: The run's folder, where the checkpoints are looked for if it has moved.

    Raises:
        FileNotFoundError: If a checkpoint or an image is not there any more. Ultralytics raises others.
    """
    names = [Path(file).name for file in report["samples"]]
    sides = [
        _seen(path if path.exists() else run / "weights" / path.name, report["samples"], report["imgsz"])
        for path in (Path(report[stage]["checkpoint"]) for stage in ("dense", "final"))
    ]
    return [
        Sample(name, (dense[0], pruned[0]), (dense[1], pruned[1]))
        for name, dense, pruned in zip(names, *sides, strict=True)
    ]


def _seen(checkpoint: Path, files: Sequence[str], imgsz: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield what a network sees in each image, as a picture and in words."""
    if not checkpoint.exists():  # Ultralytics would look for it on the network
        raise FileNotFoundError(f"there is no {checkpoint}")
    model = YOLO(checkpoint)
    for file in files:  # one by one: their sizes differ; on the CPU: a GPU may be full
        result = model.predict(file, imgsz=list(imgsz), device="cpu", verbose=False)[0]
        yield _data_url(result.plot()), result.verbose().rstrip(", ")


def _data_url(image: Any) -> str:
    """Return an image (H, W, BGR) as a small JPEG."""
    import cv2  # a dependency of Ultralytics

    if (shrink := _WIDTH / image.shape[1]) < 1:
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
