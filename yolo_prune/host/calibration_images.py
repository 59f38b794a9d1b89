"""Which training images calibrate: so few that all classes are shown only if they are chosen for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

SHOWN = 4
"""So many images should show a class; once they do, the rest is drawn at random."""


def choose_images(dataset: Any, images: int, seed: int) -> list[int]:
    """Return the indices of training images that show as many classes as they can, at random otherwise.

    Args:
        dataset: A data set of Ultralytics; of one whose labels it does not know images are drawn at random.
        images: How many; fewer where the data set has fewer.
        seed: Of the draw.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).numpy()
    shows = _shown(dataset) if images < len(order) else None
    if shows is None:
        return [int(i) for i in order[:images]]
    shows = shows[order]
    chosen: list[int] = []
    missing = np.full(shows.shape[1], SHOWN)
    is_free = np.ones(len(order), dtype=bool)
    while len(chosen) < images:
        gains = (shows @ missing.astype(np.float32)) * is_free  # what is shown least counts most
        best = int(gains.argmax())
        if gains[best] == 0:
            break
        chosen.append(best)
        is_free[best] = False
        missing = np.maximum(missing - shows[best].astype(np.int64), 0)
    chosen += np.flatnonzero(is_free)[: images - len(chosen)].tolist()
    return [int(order[i]) for i in chosen]


def _shown(dataset: Any) -> np.ndarray | None:
    """Return which image shows which class, shape (images, classes), or None where the data set does not tell."""
    labels: Sequence[Any] | None = getattr(dataset, "labels", None)
    samples: Sequence[Any] | None = getattr(dataset, "samples", None)
    if labels is not None and len(labels) == len(dataset) and all("cls" in label for label in labels):
        classes = [np.asarray(label["cls"], dtype=np.int64).ravel() for label in labels]
    elif samples is not None and len(samples) == len(dataset):
        classes = [np.array([int(sample[1])]) for sample in samples]
    else:
        return None
    count = max((int(c.max()) + 1 for c in classes if len(c)), default=0)
    shows = np.zeros((len(classes), count), dtype=np.float32)
    for row, c in zip(shows, classes, strict=True):
        row[c] = 1
    return shows if count else None
