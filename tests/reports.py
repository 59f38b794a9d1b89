"""A report in which everything is there."""

from __future__ import annotations

from typing import Any

from yolo_prune.device.stopwatch import Speedup
from yolo_prune.report.records import (
    CutRecord,
    EpochRecord,
    ExportRecord,
    QuantizationRecord,
    Report,
    SizeRecord,
    Stage,
)


def full_report() -> dict[str, Any]:
    """Return what is in the ``report.json`` of a run that used everything, as far as it can be combined."""
    locked = [{"layer": "model.2", "why": "predicts the class scores"}]
    scale = Stage(1_300_000_000, 2_100_000, latency=0.011, speedup=Speedup(1.93, 1.95, 1.98, 0.99, settled=True))
    speedup = Speedup(1.77, 1.79, 1.82, 0.99, settled=True)
    return Report(
        imgsz=[640, 640],
        dense=Stage(
            2_000_000_000,
            3_000_000,
            6_200_000,
            0.586,
            "runs/a/weights/dense.pt",
            0.0215,
            None,
            2,
            True,
            sparsity=0.0,
            compressed=5_900_000,
        ),
        config={"target": 0.5, "steps": 2, "export": ["onnx"], "max_drop": 0.05},
        cuts=[
            CutRecord(2, 1_500_000_000, 2_000_000, 4_100_000, 0.4, 0.57, "abc", locked, 12.3, 0.017, 0.42),
            CutRecord(4, 950_000_000, 1_400_000, 2_900_000, 0.51, 0.58, "def", locked, 11.9, 0.012, 0.45),
        ],
        final=Stage(
            950_000_000,
            1_400_000,
            2_880_000,
            0.581,
            "runs/a/weights/best.pt",
            0.012,
            speedup,
            sparsity=0.45,
            compressed=1_900_000,
        ),
        scales={"yolo11n": scale},
        timed={"runtime": "onnx", "version": "1.32.0", "device": "Some CPU", "threads": 2},
        exports=[
            ExportRecord("onnx", "32", "best.onnx", 5_600_000, 3e-6, 2e-4, 0.5799, 0.58, ok=True),
            ExportRecord("engine", "16", reason="no GPU"),
        ],
        guard={
            "max_drop": 0.05,
            "dense": 0.586,
            "held": 0.7,
            "failures": [{"way": 1.0, "epoch": 3, "macs": 800_000_000, "fitness": 0.3, "until": 4}],
        },
        sizes=[
            SizeRecord(1_500_000_000, 2_000_000, 4_100_000, 0.57, "runs/a/weights/best-0.25.pt", size="0.25", cut=1),
            SizeRecord(950_000_000, 1_400_000, 2_880_000, 0.581, "runs/a/weights/best-0.5.pt", size="0.5", cut=2),
        ],
        quantization=QuantizationRecord(6, 0.58, 0.55, 0.577, 8.0),
        epochs=[
            EpochRecord(epoch, macs, fitness)
            for epoch, (macs, fitness) in enumerate(
                [(2_000_000_000, 0.55), (2_000_000_000, 0.586), (1_500_000_000, 0.53), (1_500_000_000, 0.57)]
                + [(950_000_000, f) for f in (0.54, 0.58, 0.577, 0.575)]
            )
        ],
        layers={
            "model.0.conv": {"before": 16, "after": 16},
            "model.1.conv": {"before": 64, "after": 24},
            "model.2.conv": {"before": 80, "after": 80},
        },
        samples=["images/cells 1.jpg"],
        maps=[48, 104, 200],
        zeros={
            "model.0.conv": {"weights": 432, "zeros": 21, "inputs": 27, "outputs": 16, "two_of_four": False},
            "model.1.conv": {"weights": 3456, "zeros": 1728, "inputs": 144, "outputs": 24, "two_of_four": True},
        },
    ).to_dict()
