"""The tiny detection data set, told again for every other task of Ultralytics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

Box = tuple[int, float, float, float, float]
"""Class, centre and size in shares of the image."""


def as_task(data: Path, task: str, folder: Path) -> Path:
    """Write the data set at ``data`` (a ``data.yaml``) for a task.

    Returns:
        What to pass as ``data``: a ``data.yaml``, or for classification the folder.
    """
    source = data.parent
    if task == "classify":
        return _classify(source, folder)
    shutil.copytree(source / "images", folder / "images")
    for file in sorted((source / "labels").rglob("*.txt")):
        relative = file.relative_to(source / "labels")
        boxes = _boxes(file)
        if task in LINES:
            target = folder / "labels" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(f"{LINES[task](box)}\n" for box in boxes), encoding="utf-8")
        else:
            kind = {"semantic": "masks", "depth": "depth"}[task]
            target = (folder / kind / relative).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            size = cv2.imread(str((source / "images" / relative).with_suffix(".png"))).shape[:2]
            cv2.imwrite(str(target), _map(boxes, size, task))
    text = data.read_text(encoding="utf-8").replace(str(source.resolve()), str(folder.resolve()))
    extra = {"pose": "kpt_shape: [4, 2]\n", "semantic": "masks_dir: masks\n", "depth": "depth_scale: 1000\n"}
    path = folder / "data.yaml"
    path.write_text(text + extra.get(task, ""), encoding="utf-8")
    return path


def _boxes(file: Path) -> list[Box]:
    rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    return [(int(row[0]), *map(float, row[1:])) for row in rows]


def _corners(box: Box) -> list[tuple[float, float]]:
    _, x, y, w, h = box
    return [(x + sx * w / 2, y + sy * h / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _line(*values: float) -> str:
    return " ".join(f"{min(max(v, 0), 1):.4f}" for v in values)


def _polygon(box: Box) -> str:
    return f"{box[0]} {_line(*(v for corner in _corners(box) for v in corner))}"


def _keypoints(box: Box) -> str:
    return f"{box[0]} {_line(*box[1:], *(v for corner in _corners(box) for v in corner))}"


LINES: dict[str, Callable[[Box], str]] = {"segment": _polygon, "obb": _polygon, "pose": _keypoints}


def _map(boxes: list[Box], size: tuple[int, int], task: str) -> np.ndarray:
    values = np.zeros(size, np.uint8) if task == "semantic" else np.full(size, 3000, np.uint16)
    for box in boxes:
        (left, top), _, (right, bottom), _ = _corners(box)
        rows = slice(int(max(top, 0) * size[0]), int(bottom * size[0]))
        values[rows, int(max(left, 0) * size[1]) : int(right * size[1])] = (
            box[0] if task == "semantic" else 1000 + 300 * box[0]
        )
    return values


def _classify(source: Path, folder: Path) -> Path:
    """Sort images by the class of their first box."""
    for image in sorted((source / "images").rglob("*.png")):
        split = image.parent.name
        boxes = _boxes(source / "labels" / split / f"{image.stem}.txt")
        for name in "012":  # every class has a folder, in both splits
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder / split / name / f"{image.stem}-{boxes[0][0]}.png")
    return folder
