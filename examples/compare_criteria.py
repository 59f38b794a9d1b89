"""Criteria side by side: the same cut of the same model by each, without training, and what is left of the accuracy.

python examples/compare_criteria.py model=best.pt data=my.yaml target=0.3 criteria=random,l2,taylor,reconstruction
"""

import sys

from ultralytics import YOLO

from yolo_prune import prune_model

arguments = {"model": "best.pt", "data": "coco8.yaml", "imgsz": "640", "target": "0.3"}
arguments |= {"criteria": "random,l2,taylor,reconstruction"}
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])

rows = []
for criterion in arguments["criteria"].split(","):
    result = prune_model(
        YOLO(arguments["model"]),  # anew each time: it is cut in place
        arguments["target"],
        data=arguments["data"],
        imgsz=int(arguments["imgsz"]),
        importance=criterion,
        benchmark=False,
        name=f"criterion-{criterion}",
    )
    dense, final = result.report.dense, result.report.final
    rows.append(f"{criterion:<15}{final.macs / dense.macs:>10.1%}{dense.fitness:>10.3f}{final.fitness:>10.3f}")

print(f"\n{'criterion':<15}{'MACs kept':>10}{'dense':>10}{'pruned':>10}", *rows, sep="\n")
