"""Half of the multiply-adds gone, in one training run.

python examples/quick_start.py model=yolo11n.pt data=coco8.yaml epochs=60
"""

import sys

from ultralytics import YOLO

from yolo_prune import PruneCallback

arguments = {"model": "yolo11n.pt", "data": "coco8.yaml", "epochs": "60", "imgsz": "640"}
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])

model = YOLO(arguments["model"])
PruneCallback(0.5, export=("onnx",)).attach(model)
model.train(data=arguments["data"], epochs=int(arguments["epochs"]), imgsz=int(arguments["imgsz"]))

print(f"{sum(p.numel() for p in model.model.parameters()):,} parameters in {model.trainer.best}")
