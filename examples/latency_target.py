"""As fast as asked: layers are timed in the runtime that the model is for, and channels go where time is spent.

python examples/latency_target.py model=yolo11n.pt data=coco8.yaml epochs=60 target=1.5x runtime=onnx
"""

import json
import sys
from pathlib import Path

from ultralytics import YOLO

from yolo_prune import PruneCallback

arguments = {"model": "yolo11n.pt", "data": "coco8.yaml", "epochs": "60", "imgsz": "640"}
arguments |= {"target": "1.5x", "runtime": "onnx"}  # or target="8 ms": so long for one image at most
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])

model = YOLO(arguments["model"])
PruneCallback(arguments["target"], runtime=arguments["runtime"]).attach(model)
model.train(data=arguments["data"], epochs=int(arguments["epochs"]), imgsz=int(arguments["imgsz"]))

report = json.loads(Path(model.trainer.save_dir, "pruning", "report.json").read_text())
for name in ("dense", "final"):
    print(f"{name}: {1e3 * report[name]['latency']:.1f} ms in {report['timed']['runtime']}, measured in turns")
