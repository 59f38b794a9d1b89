"""Five small cuts over the middle of the run instead of the default three, from a YAML file of options.

python examples/gradual_schedule.py model=yolo11n.pt data=coco8.yaml epochs=100
"""

import sys
from pathlib import Path

from ultralytics import YOLO

from yolo_prune import PruneCallback, PruneConfig

arguments = {"model": "yolo11n.pt", "data": "coco8.yaml", "epochs": "100", "imgsz": "640"}
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])

config = PruneConfig.from_yaml(Path(__file__).with_name("prune.yaml"))
model = YOLO(arguments["model"])
PruneCallback(config).attach(model)
model.train(data=arguments["data"], epochs=int(arguments["epochs"]), imgsz=int(arguments["imgsz"]))
