"""Which training images calibrate, and how they are held.

They are so few that all classes are shown only if they are chosen for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch

SHOWN = 4
"""So many images should show a class; once they do, the rest is drawn at random."""
MANY_CLASSES = 20
"""Data with more classes than this need `OF_MANY` images, others `OF_FEW`."""
OF_FEW, OF_MANY = 64, 128


class CompactBatches(Sequence[dict[str, Any]]):
    """Preprocessed batches that hold their images as bytes, a quarter of the memory, where that loses nothing."""

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self._batches = [(_packed(batch), batch["img"].dtype) for batch in batches]

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> CompactBatches: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | CompactBatches:
        if isinstance(at, slice):
            part = CompactBatches(())
            part._batches = self._batches[at]
            return part
        batch, dtype = self._batches[at]
        return {**batch, "img": _unpacked(batch["img"], dtype)}


def usual_number(classes: int) -> int:
    """Return how many images calibrate by default."""
    return OF_MANY if classes > MANY_CLASSES else OF_FEW


def choose_images(dataset: Any, images: int, seed: int, *, with_objects: bool = False) -> list[int]:
    """Return the indices of training images that show as many classes as they can, at random otherwise.

    Args:
        dataset: A data set of Ultralytics; of one whose labels it does not know images are drawn at random.
        images: How many; fewer where the data set has fewer.
        seed: Of the draw.
        with_objects: Whether images that show no class come last: most of a data set that keeps a few of its classes.
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
    rest = np.flatnonzero(is_free)
    if with_objects:
        rest = rest[np.argsort(~shows[rest].any(axis=1), kind="stable")]
    chosen += rest[: images - len(chosen)].tolist()
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


def _packed(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with its images as bytes, if these make the same images again."""
    images = batch["img"]
    packed = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return {**batch, "img": packed} if torch.equal(_unpacked(packed, images.dtype), images) else batch


def _unpacked(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images
