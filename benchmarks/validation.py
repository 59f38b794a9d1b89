"""Validate a checkpoint in a process that cannot import yolo_prune, and resample the images that judged it.

    python benchmarks/validation.py CHECKPOINT DATA IMGSZ RECT    # prints one line of JSON

The standard error of an accuracy comes from the bootstrap over validation images (Efron & Tibshirani 1993, sections 6
and 14): the images are drawn with replacement, and the metric is computed of what was drawn. All checkpoints of a data
set are judged by the same draws, so the differences of two rows of `resampled` are those of a paired bootstrap.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

ENVIRONMENT = os.environ | {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
DRAWS = 300
"""Times that the validation images are drawn anew; the standard error is then known to 4 %."""
INTERVAL = 1.96
"""Half of a normal distribution's 95 % interval, in standard errors."""
FOUND = {"(B)": "tp", "(M)": "tp_m", "(P)": "tp_p"}
"""End of the names of metrics -> Ultralytics' name of what they are computed from."""


def validate(checkpoint: Path, data: str, imgsz: int, rect: bool = True) -> dict[str, Any]:
    """Validate a checkpoint without yolo_prune.

    Args:
        checkpoint: The file.
        data: Path of the data set's description.
        imgsz: Size of the images in pixels.
        rect: Whether images have the shape that Ultralytics validates with by default: each batch its own, with at
            least 16 gray pixels around what is square. Otherwise all are ``imgsz`` x ``imgsz``, as an export sees them.

    Returns:
        ``metrics``, Ultralytics' own, and ``resampled``: for each draw ``mAP50-95`` and ``mAP50`` of each of `FOUND`,
        or of classification ``accuracy_top1`` and ``accuracy_top5``.
    """
    done = subprocess.run(
        [sys.executable, __file__, str(checkpoint), data, str(imgsz), str(rect)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def standard_error(draws: Sequence[Sequence[float]]) -> float:
    """Return the standard error of a mean over trainings, of the resampled accuracies of each.

    It has two parts: which images judged, the same for all trainings, and, of several, which seeds they had.
    """
    means = [mean(column) for column in zip(*draws, strict=True)]
    seeds = stdev(mean(row) for row in draws) if len(draws) > 1 else 0.0
    return math.hypot(stdev(means), seeds / math.sqrt(len(draws)))


def differences(ours: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return by how much trainings are better than others of the same seeds, draw by draw."""
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(ours, others, strict=True)]


class Judged(NamedTuple):
    """Trainings of one kind: the accuracy of each, and its resampled ones, or none where one was not judged by them."""

    scores: list[float]
    draws: list[list[float]]


def judged(validated: Sequence[Mapping[str, Any]], metric: str) -> Judged:
    """Return what `validate` found of each training, by one of Ultralytics' metrics."""
    found = [of.get("resampled", {}).get(metric) for of in validated]
    return Judged([of["metrics"][metric] for of in validated], found if all(found) else [])


def accuracy(of: Judged) -> str:
    """Return ``0.603 ± 0.011``: the mean over trainings, and its standard error where images were resampled."""
    if not of.scores:
        return ""
    error = f" ± {standard_error(of.draws):.3f}" if of.draws else ""
    return f"{mean(of.scores):.3f}{error}"


def difference(ours: Judged, others: Judged) -> str:
    """Return ``-1.4 ± 0.8``: by how many points trainings are better than others, and the 95 % interval of that."""
    if not (ours.scores and others.scores):
        return ""
    gain = f"{100 * (mean(ours.scores) - mean(others.scores)):+.1f}"
    if not (ours.draws and others.draws):
        return gain
    return f"{gain} ± {100 * INTERVAL * standard_error(differences(ours.draws, others.draws)):.1f}"


def resampled_classes(labels: Any, best: Any, draws: int = DRAWS) -> dict[str, list[float]]:
    """Return the accuracies of validation images that are drawn with replacement.

    Args:
        labels: Class of each image, (n,).
        best: The classes that were found most likely, the best first, (n, 5).
        draws: How often images are drawn.
    """
    import numpy as np

    right = np.asarray(labels)[:, None] == np.asarray(best)
    chosen = np.random.default_rng(0).integers(len(right), size=(draws, len(right)))
    hits = {"accuracy_top1": right[:, 0], "accuracy_top5": right.any(1)}
    return {metric: [round(float(hit[drawn].mean()), 5) for drawn in chosen] for metric, hit in hits.items()}


def resampled(stats: Mapping[str, Sequence[Any]], draws: int = DRAWS) -> dict[str, list[float]]:
    """Return metrics of validation images that are drawn with replacement.

    Args:
        stats: Ultralytics' statistics of the images: key -> an array for each image.
        draws: How often they are drawn.
    """
    import numpy as np
    from ultralytics.utils.metrics import ap_per_class

    n = len(stats["conf"])
    chosen = np.random.default_rng(0).integers(n, size=(draws, n))
    found = {}
    for end, key in FOUND.items():
        if len(stats.get(key, ())):
            parts = (key, "conf", "pred_cls", "target_cls")
            drawn = ([np.concatenate([stats[p][i] for i in images]) for p in parts] for images in chosen)
            aps = [ap_per_class(*of)[5] for of in drawn]  # of each class, at each IoU from 0.5 to 0.95
            for metric, of in (("mAP50-95", slice(None)), ("mAP50", 0)):
                found[f"{metric}{end}"] = [round(float(ap[:, of].mean()), 5) if ap.size else 0.0 for ap in aps]
    return found


def main(checkpoint: str, data: str, imgsz: str, rect: str) -> None:
    """Validate, and print what was found."""
    sys.modules["yolo_prune"] = None  # type: ignore[assignment]  # importing it now raises
    import torch
    from ultralytics import YOLO
    from ultralytics.nn.tasks import torch_safe_load

    torch_safe_load(checkpoint, safe_only=True)
    model, stats = YOLO(checkpoint), {}

    def remember(validator: Any) -> None:
        stats.update({key: [*values] for key, values in getattr(validator.metrics, "stats", {}).items()})
        if validator.args.task == "classify":
            stats.update(labels=torch.cat(validator.targets), best=torch.cat(validator.pred))

    model.add_callback("on_val_batch_end", remember)
    shape = {"imgsz": int(imgsz), "rect": rect == "True"}
    results = model.val(data=data, **shape, batch=16, workers=0, plots=False, verbose=False)
    metrics = {key.removeprefix("metrics/"): float(value) for key, value in results.results_dict.items()}
    draws = resampled_classes(**stats) if model.task == "classify" else resampled(stats) if stats else {}
    print(json.dumps({"metrics": metrics, "resampled": draws}))


if __name__ == "__main__":
    main(*sys.argv[1:])
