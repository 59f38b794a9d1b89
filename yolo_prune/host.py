"""Small acts on an Ultralytics trainer: save, validate, take images, and leave no trace.

`session` says when; what the trainer is made of is known here.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yolo_prune.errors import ConfigError
from yolo_prune.files import replacing

if TYPE_CHECKING:
    from ultralytics import YOLO
    from ultralytics.engine.trainer import BaseTrainer


def set_up(model: YOLO, arguments: dict[str, Any]) -> BaseTrainer:
    """Return a trainer of Ultralytics that holds a model as it is, ready to validate and save, and never to train.

    Args:
        model: Its network is used, not a copy.
        arguments: Arguments of ``train``, with ``data`` and ``imgsz``.

    Raises:
        ConfigError: If the data set has other classes than the model.
    """
    fixed = {"model": model.ckpt_path or model.model_name, "task": model.task, "mode": "train"}
    quiet = {"name": "prune", "epochs": 1, "plots": False, "amp": False, "pretrained": False}
    trainer = model._smart_load("trainer")(overrides={**quiet, **arguments, **fixed})
    network, classes = model.model, trainer.data["nc"]
    if classes != (own := getattr(network.model[-1], "nc", classes)):
        raise ConfigError(
            f"{arguments['data']} has {classes} classes, the model {own}: give the data set that it was trained on, or "
            "train it on this one first."
        )
    trainer.model = network.requires_grad_()  # else the trainer warns of each tensor of a loaded checkpoint
    trainer._setup_train()
    trainer.epoch = 0
    return trainer


def save_checkpoint(trainer: BaseTrainer, path: Path, epoch: int) -> None:
    """Write a training checkpoint with Ultralytics' own code, so that no reader ever sees half of it.

    Args:
        trainer: What to save.
        path: Where to; a file that is there stays as it is until the new one is complete.
        epoch: The last epoch that is finished, counted from 0: a resume starts with the one after it.
    """
    with replacing(path) as draft, kept(trainer, "last", "best", "save_period", "epoch"):
        trainer.last, trainer.best, trainer.save_period, trainer.epoch = draft, draft, -1, epoch
        trainer.save_model()


def validate(trainer: BaseTrainer) -> tuple[dict[str, float], float]:
    """Validate the EMA and return (metrics, fitness), without touching the trainer's record of them."""
    if not hasattr(trainer, "loss_items"):  # before a run's first batch; the validator reads the names of the losses
        with torch.no_grad():
            _, trainer.loss_items = trainer.ema.ema.loss(next(training_batches(trainer, 1)))
    with kept(trainer.validator.args, "plots"):
        trainer.validator.args.plots = False
        metrics = trainer.validator(trainer)
    fitness = float(metrics.pop("fitness"))
    return metrics, fitness


def calibration_batches(trainer: BaseTrainer, images: int) -> list[dict[str, Any]]:
    """Return preprocessed batches of training images as they are validated: with labels, without augmentation.

    Args:
        trainer: Its data and its preprocessing are used; its own loader does not move.
        images: How many, chosen by the run's seed; fewer where the data set has fewer.

    Returns:
        Batches of one image size each, of at most 16 images and at most the run's batch size.
    """
    size = min(16, max(trainer.batch_size, 1))
    with kept(trainer.args, "cache"):
        trainer.args.cache = False
        dataset = trainer.build_dataset(trainer.data["train"], mode="val", batch=size)
    generator = torch.Generator().manual_seed(trainer.args.seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:images].tolist()
    alike: dict[torch.Size, list[Any]] = defaultdict(list)
    for sample in (dataset[i] for i in chosen):
        alike[sample["img"].shape].append(sample)
    collate = getattr(dataset, "collate_fn", None) or torch.utils.data.default_collate
    return [
        trainer.preprocess_batch(collate(samples[i : i + size]))
        for samples in alike.values()
        for i in range(0, len(samples), size)
    ]


def training_batches(trainer: BaseTrainer, batches: int) -> Iterator[dict[str, Any]]:
    """Yield preprocessed batches as training sees them, without moving the run's own loader."""
    loader = trainer.train_loader
    own = torch.utils.data.DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=torch.utils.data.RandomSampler(
            loader.dataset, generator=torch.Generator().manual_seed(trainer.args.seed)
        ),
        collate_fn=loader.collate_fn,
    )
    for _, batch in zip(range(batches), own, strict=False):
        yield trainer.preprocess_batch(batch)


def validation_images(trainer: BaseTrainer, limit: int = 4) -> torch.Tensor:
    """Return a few validation images of shape (B, C, imgsz, imgsz), scaled to 0..1, on the CPU."""
    images = [trainer.test_loader.dataset[i]["img"] for i in range(min(limit, len(trainer.test_loader.dataset)))]
    size = (trainer.args.imgsz, trainer.args.imgsz)
    floats = [image.float() / (255 if image.dtype == torch.uint8 else 1) for image in images]
    return torch.cat([torch.nn.functional.interpolate(x[None], size, mode="bilinear") for x in floats])


@contextmanager
def kept(owner: Any, *names: str) -> Iterator[None]:
    """Put attributes back at the end."""
    old = {name: getattr(owner, name) for name in names}
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave all random states as they were: a cut must not change what the run draws next."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
