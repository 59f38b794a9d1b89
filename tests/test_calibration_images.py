from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from yolo_prune.host.calibration_images import SHOWN, CompactBatches, choose_images, usual_number


class Detection:
    """A data set of which each image shows some classes."""

    def __init__(self, classes: list[list[int]]) -> None:
        self.labels = [{"cls": np.array(c, dtype=np.float32).reshape(-1, 1)} for c in classes]

    def __len__(self) -> int:
        return len(self.labels)


def rare(common: int = 500, rare: int = 10) -> Detection:
    """Return one where class 0 is everywhere, and each of the others on a few images."""
    return Detection([[0]] * common + [[0, n] for n in range(1, rare + 1) for _ in range(5)] + [[]] * 20)


def test_every_class_is_shown_as_far_as_images_go() -> None:
    dataset = rare()
    for images in (40, 60):
        chosen = choose_images(dataset, images, seed=0)
        assert len(set(chosen)) == images
        shown = np.bincount([int(c) for i in chosen for c in dataset.labels[i]["cls"].ravel()], minlength=11)
        assert (shown[1:] >= SHOWN).all()


def test_more_images_calibrate_where_there_are_many_classes() -> None:
    assert [usual_number(classes) for classes in (1, 20, 21, 80)] == [64, 64, 128, 128]


def test_fewer_images_show_as_many_classes_as_they_can() -> None:
    dataset = rare()
    shown = {int(c) for i in choose_images(dataset, 10, seed=0) for c in dataset.labels[i]["cls"].ravel()}
    assert len(shown) == 11


def test_the_rest_is_drawn_by_the_seed() -> None:
    dataset = rare()
    assert choose_images(dataset, 64, seed=1) == choose_images(dataset, 64, seed=1)
    assert choose_images(dataset, 64, seed=1) != choose_images(dataset, 64, seed=2)
    chosen = choose_images(dataset, 400, seed=0)
    assert max(chosen) > 550 and min(chosen) < 50  # images without a label, too


def test_a_data_set_for_classification_shows_one_class_per_image() -> None:
    samples = [("", 0)] * 100 + [("", 1)] * 4
    chosen = choose_images(Folder(samples=samples), 10, seed=0)
    assert sum(i >= 100 for i in chosen) == SHOWN


@pytest.mark.parametrize("known", [{}, {"labels": [{"other": 1}] * 104}, {"labels": []}])
def test_a_data_set_that_does_not_tell_is_drawn_from_at_random(known: dict[str, Any]) -> None:
    assert len(set(choose_images(Folder(**known), 10, seed=0))) == 10
    assert sorted(choose_images(Folder(**known), 200, seed=0)) == list(range(104))


class Folder(SimpleNamespace):
    """A data set of 104 images."""

    def __len__(self) -> int:
        return 104


@pytest.mark.parametrize("kind", ["8-bit", "float", "beyond 1"])
def test_images_are_held_as_bytes_only_where_that_loses_nothing(kind: str) -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    images = {"8-bit": pixels.float() / 255, "float": torch.rand(2, 3, 8, 8), "beyond 1": pixels.float() / 127}[kind]
    batches = CompactBatches({"img": images + n, "cls": torch.tensor([n])} for n in (0.0, 0.0, 0.0))
    assert all(torch.equal(batch["img"], images) and batch["img"].dtype == images.dtype for batch in batches)
    held = {batch["img"].dtype for batch, _ in batches._batches}
    assert held == {torch.uint8 if kind == "8-bit" else torch.float}


def test_a_part_of_compact_batches_is_made_of_the_same() -> None:
    batches = CompactBatches({"img": torch.full((1, 3, 2, 2), n / 255)} for n in range(5))
    part = batches[1:3]
    assert len(batches) == 5 and len(part) == 2
    assert [round(float(batch["img"].mean()) * 255) for batch in part] == [1, 2]
