"""Cut a model once, without training, and save it; a training with PruneCallback(0) recovers it later.

python examples/one_shot.py model=yolo11n.pt
"""

import sys

from ultralytics import YOLO

from yolo_prune import prune_model

arguments = {"model": "yolo11n.pt"}
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])

model = YOLO(arguments["model"])
result = prune_model(model, 0.3)
model.save("slim.pt")

print(f"MACs {result.plan.macs['before']:,} -> {result.plan.macs['after']:,}, plan {result.plan.sha256[:12]}")
for entry in result.plan.locked:
    print(f"locked: {entry['layer']}, because it {entry['why']}")
