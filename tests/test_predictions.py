from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from nets import narrow_yaml
from ultralytics import YOLO

from yolo_prune.report.predictions import side_by_side

HOSTILE = "<b>1 & 2.png"


@pytest.fixture
def moved(own_folder: Path) -> Path:
    """A run's folder that was moved after its report had been written."""
    (own_folder / "moved" / "weights").mkdir(parents=True)
    for name in ("dense", "best"):
        YOLO(narrow_yaml("yolov8n", own_folder)).save(own_folder / "moved" / "weights" / f"{name}.pt")
    cv2.imwrite(HOSTILE, np.full((300, 1200, 3), 99, np.uint8))
    return own_folder / "moved"


def test_both_networks_of_a_run_look_at_the_same_images(moved: Path) -> None:
    report = {
        "imgsz": [64, 64],
        "samples": [HOSTILE],
        "dense": {"checkpoint": "gone/weights/dense.pt"},
        "final": {"checkpoint": "gone/weights/best.pt"},
    }
    (sample,) = side_by_side(report, moved)
    assert sample.name == HOSTILE and sample.found == ("(no detections)", "(no detections)")
    for picture in sample.pictures:
        data = np.frombuffer(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,")), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert image.shape == (140, 560, 3) and abs(int(image[0, 0, 0]) - 99) < 3

    report["samples"] = ["gone.png"]
    with pytest.raises(FileNotFoundError):
        side_by_side(report, moved)
