"""What is left learns from the dense model of just before the first cut, and no cut may cost more than 5 % of it.

python examples/distillation.py model=yolo11n.pt data=coco8.yaml epochs=60
"""

import sys

from ultralytics import YOLO

from yolo_prune import PruneCallback

arguments = {"model": "yolo11n.pt", "data": "coco8.yaml", "epochs": "60", "imgsz": "640"}
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])

model = YOLO(arguments["model"])
PruneCallback(0.5, distill=True, max_drop=0.05).attach(model)  # distill="teacher.pt" names another teacher
model.train(data=arguments["data"], epochs=int(arguments["epochs"]), imgsz=int(arguments["imgsz"]))

stages = model.trainer.save_dir / "weights"
print(f"learnt from {stages / 'dense.pt'}, left is {stages / 'best.pt'}")
