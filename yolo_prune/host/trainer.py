"""Small acts on an Ultralytics trainer: save, validate, take images, and leave no trace.

`training` says when; what the trainer is made of is known here.
"""

from __future__ import annotations

import difflib
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ultralytics import RTDETR, YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg, smart_value
from ultralytics.engine import trainer as engine
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.config.settings import HELP_TEXTS
from yolo_prune.config.text import CLI_PREFIX
from yolo_prune.errors import CheckpointError, ConfigError, describe_error
from yolo_prune.host.calibration_images import CompactBatches, choose_images, usual_number
from yolo_prune.host.kept_data import is_narrowed, matching
from yolo_prune.host.patches import patch, patched
from yolo_prune.surgery.classes import names_of
from yolo_prune.utils.files import atomic_write

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

MOST_PIXELS = 2**20
"""Pixels of a calibration batch, whose gradients a network of any size has to have memory for: 2 images of 640 px."""


def read_arguments(texts: Mapping[str, str], command: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return arguments of Ultralytics, as typed on a command line, as values.

    Args:
        texts: Name -> text.
        command: Of ours, for messages.
        also: Names of arguments that are not Ultralytics'.

    Raises:
        ConfigError: If Ultralytics has no such argument, or refuses its value.
    """
    for name, text in texts.items():
        if name not in DEFAULT_CFG_DICT and name not in also:
            options = {option: f"{CLI_PREFIX}{option}" for option in HELP_TEXTS}
            near = (
                [options[name]] if name in options else difflib.get_close_matches(name, [*DEFAULT_CFG_DICT, *also], n=1)
            )
            hint = f"did you mean {near[0]}?" if near else f"see 'yolo cfg' and 'yolo-prune {command} --help'."
            raise ConfigError(f"{name}={text} is no argument of {command}: {hint}")
    values = {name: smart_value(text) for name, text in texts.items()}
    try:
        get_cfg(overrides={name: value for name, value in values.items() if name not in also})
    except (TypeError, ValueError) as e:
        raise ConfigError(f"Ultralytics refuses an argument of {command}: {describe_error(e)}") from e
    return values


def open_model(model: str) -> YOLO:
    """Load a model, or build it from its YAML, as Ultralytics does.

    Raises:
        ConfigError: If there is no such file.
        CheckpointError: If Ultralytics cannot load it.
    """
    is_rtdetr = "rtdetr" in (path := Path(model)).stem and path.suffix in {".yaml", ".yml"}
    try:
        return (RTDETR if is_rtdetr else YOLO)(model)
    except FileNotFoundError as e:
        raise ConfigError(f"there is no {model}: give a checkpoint, or a model's YAML.") from e
    except Exception as e:  # Ultralytics and torch name no common class for what a wrong file raises
        raise CheckpointError(
            f"{model} cannot be loaded ({describe_error(e)}); give a .pt or .yaml of Ultralytics."
        ) from e


def set_up(model: YOLO, arguments: dict[str, Any], *, keeps_classes: bool = False) -> BaseTrainer:
    """Return a trainer of Ultralytics that holds a model as it is, ready to validate and save, and never to train.

    Args:
        model: Its network is used, not a copy.
        arguments: Arguments of ``train``, with ``data`` and ``imgsz``.
        keeps_classes: Whether the data set may have more classes than the model, which are left out.

    Raises:
        ConfigError: If Ultralytics refuses an argument, or the data set has other classes than the model.
    """
    fixed = {"model": model.ckpt_path or model.model_name, "task": model.task, "mode": "train"}
    quiet = {"name": "prune", "epochs": 1, "plots": False, "amp": False, "pretrained": False}
    try:
        trainer = model._smart_load("trainer")(overrides={**quiet, **arguments, **fixed})
    except Exception as e:  # Ultralytics names no common class for what it refuses
        raise ConfigError(f"Ultralytics refuses an argument ({describe_error(e)}); give what its train() takes.") from e
    network = unwrap_model(model.model)
    if keeps_classes:
        trainer.data = matching(trainer, names_of(network.names))
    classes = trainer.data["nc"]
    if classes != (own := getattr(network.model[-1], "nc", classes)):
        raise ConfigError(
            f"{arguments['data']} has {classes} classes, the model {own}: give the data set that it was trained on, or "
            "train it on this one first."
        )
    trainer.model = network.requires_grad_()  # else the trainer warns of each tensor of a loaded checkpoint
    trainer._setup_train()
    trainer.epoch = 0
    return trainer


@contextmanager
def never_training(model: YOLO, arguments: dict[str, Any], keeps_classes: bool = False) -> Iterator[BaseTrainer]:
    """Give a trainer that `set_up` returns, and close what it has opened."""
    trainer = set_up(model, arguments, keeps_classes=keeps_classes)
    try:
        yield trainer
    finally:
        for loader in (trainer.train_loader, trainer.test_loader):
            if hasattr(loader, "close"):
                loader.close()


def save_checkpoint(trainer: BaseTrainer, path: Path, epoch: int) -> None:
    """Write a training checkpoint with Ultralytics' own code, so that no reader ever sees half of it.

    Args:
        trainer: What to save.
        path: Where to; a file that is there stays as it is until the new one is complete.
        epoch: The last epoch that is finished, counted from 0: a resume starts with the one after it.
    """
    with atomic_write(path) as draft, preserve_attributes(trainer, "last", "best", "save_period", "epoch"):
        trainer.last, trainer.best, trainer.save_period, trainer.epoch = draft, draft, -1, epoch
        type(trainer).save_model(trainer)


def save_epoch(trainer: BaseTrainer) -> bool:
    """Do what Ultralytics' ``save_model`` does at the end of an epoch, but overwrite nothing in place.

    Until ``last.pt`` takes its place as the last of all, an interrupted run resumes from the one before.
    """
    best = trainer.best
    found = best.with_name(f"{best.name}.part")
    found.unlink(missing_ok=True)  # of a run that was killed
    with atomic_write(trainer.last) as last:
        with preserve_attributes(trainer, "last", "best"):
            trainer.last, trainer.best = last, found
            is_saved = bool(type(trainer).save_model(trainer))
        if found.exists():
            os.replace(found, best)
    return is_saved


def evaluate_finally(trainer: BaseTrainer) -> None:
    """Do what Ultralytics' ``final_eval`` does, but strip no checkpoint in place."""
    stock = engine.strip_optimizer

    def strip(file: str | Path, s: str | Path = "", updates: dict[str, Any] | None = None) -> dict[str, Any]:
        with atomic_write(Path(s or file)) as draft:
            stripped: dict[str, Any] = stock(file, str(draft), updates)
        return stripped

    with patched(engine, "strip_optimizer", strip):
        type(trainer).final_eval(trainer)


def read_learning_rate_at(trainer: BaseTrainer, place: Callable[[float], float]) -> None:
    """Let the run's scheduler read its own curve elsewhere.

    Args:
        trainer: With Ultralytics' own scheduler.
        place: Epoch -> epoch at which the curve is read.
    """
    stock = getattr(trainer.lf, "stock", trainer.lf)  # the next cut bends the run's own curve, not this one

    def bent(epoch: float) -> float:
        return float(stock(place(epoch)))

    bent.stock = stock  # type: ignore[attr-defined]
    patch(trainer, "lf", bent)
    patch(trainer.scheduler, "lr_lambdas", [bent] * len(trainer.scheduler.lr_lambdas))


def forget_later_results(trainer: BaseTrainer) -> None:
    """Remove from ``results.csv`` what a resumed run will write again, and the row in which it was killed."""
    if not trainer.csv.exists():
        return
    header, *rows = trainer.csv.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    columns = header.count(",")
    whole = [row for row in rows if row.endswith("\n") and row.count(",") == columns]
    earlier = [row for row in whole if int(row.split(",")[0]) <= trainer.start_epoch]
    with atomic_write(trainer.csv) as draft:
        draft.write_text("".join([header, *earlier]), encoding="utf-8")


def validate(trainer: BaseTrainer) -> tuple[dict[str, float], float | None]:
    """Validate the EMA and return (metrics, fitness), without touching the trainer's record of them.

    On other ranks than 0, which see a part of the images, that is ({}, None).
    """
    if not hasattr(trainer, "loss_items"):  # before a run's first batch; the validator reads the names of the losses
        with torch.no_grad():
            _, trainer.loss_items = trainer.ema.ema.loss(calibration_batches(trainer, 1)[0])
    with preserve_attributes(trainer.validator.args, "plots"):
        trainer.validator.args.plots = False
        metrics = trainer.validator(trainer)
    if metrics is None:  # rank 0 has them
        return {}, None
    return metrics, float(metrics.pop("fitness"))


def validate_file(trainer: BaseTrainer, path: str) -> float | None:
    """Return the fitness of a checkpoint on the run's validation images, as a run's end measures that of ``best.pt``.

    On other ranks than 0 that is None.
    """
    with preserve_attributes(trainer, "loss_names"):  # which a run derives from its first batch
        validator = trainer.get_validator()
    validator.args.plots = validator.args.compile = False
    metrics = validator(model=path)
    return float(metrics["fitness"]) if metrics else None


def calibration_batches(trainer: BaseTrainer, images: int | None) -> CompactBatches:
    """Return preprocessed batches of training images as they are validated: with labels, without augmentation.

    A resumed run counts what comes through the trainer's own ``preprocess_batch``; these are none of its batches.

    Args:
        trainer: Its data and its preprocessing are used; its own loader does not move.
        images: How many, chosen by the run's seed; fewer where the data set has fewer. By default it depends on the
            number of classes.

    Returns:
        Batches of one image size each, of at most 16 images, `MOST_PIXELS` and the run's batch size.
    """
    size = max(1, min(16, trainer.batch_size, MOST_PIXELS // trainer.args.imgsz**2))
    with preserve_attributes(trainer.args, "cache"):
        trainer.args.cache = False
        dataset = trainer.build_dataset(trainer.data["train"], mode="val", batch=size)
    alike: dict[torch.Size, list[Any]] = defaultdict(list)
    images = usual_number(len(trainer.data.get("names", ()))) if images is None else images
    chosen = choose_images(dataset, images, trainer.args.seed, with_objects=is_narrowed(trainer))
    for sample in (dataset[i] for i in chosen):
        alike[sample["img"].shape].append(sample)
    collate = getattr(dataset, "collate_fn", None) or torch.utils.data.default_collate
    return CompactBatches(
        type(trainer).preprocess_batch(trainer, collate(samples[i : i + size]))
        for samples in alike.values()
        for i in range(0, len(samples), size)
    )


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
        yield type(trainer).preprocess_batch(trainer, batch)


def validation_images(trainer: BaseTrainer, limit: int = 4) -> torch.Tensor:
    """Return a few validation images of shape (B, C, imgsz, imgsz), scaled to 0..1, on the CPU."""
    images = [trainer.test_loader.dataset[i]["img"] for i in range(min(limit, len(trainer.test_loader.dataset)))]
    size = (trainer.args.imgsz, trainer.args.imgsz)
    floats = [image.float() / (255 if image.dtype == torch.uint8 else 1) for image in images]
    return torch.cat([torch.nn.functional.interpolate(x[None], size, mode="bilinear") for x in floats])


def validation_files(trainer: BaseTrainer, limit: int = 4) -> list[str]:
    """Return the paths of a few validation images from all over the set, or none where a data set does not tell."""
    dataset = trainer.test_loader.dataset
    files = getattr(dataset, "im_files", None) or [sample[0] for sample in getattr(dataset, "samples", ())]
    chosen = min(limit, len(files))
    return [str(files[i * len(files) // chosen]) for i in range(chosen)]


@contextmanager
def preserve_attributes(owner: Any, *names: str) -> Iterator[None]:
    """Put attributes back at the end."""
    old = {name: getattr(owner, name) for name in names}
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


class Randomness:
    """The states of all random number generators of a process, as they are when it is made."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def put_back(self) -> None:
        """Let everything be drawn as if nothing had been drawn since."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data and tensors."""
        version, numbers, gauss = self._python
        keys = {**self._numpy["state"], "key": self._numpy["state"]["key"].tolist()}
        return {
            "python": [version, list(numbers), gauss],
            "numpy": {**self._numpy, "state": keys},
            "torch": self._torch,
            "cuda": self._cuda,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Randomness:
        """Read what ``to_dict`` wrote, without the states of GPUs where there are other ones now."""
        states = cls()
        version, numbers, gauss = data["python"]
        states._python = (version, tuple(numbers), gauss)
        keys = {**data["numpy"]["state"], "key": np.array(data["numpy"]["state"]["key"], dtype=np.uint32)}
        states._numpy = {**data["numpy"], "state": keys}
        states._torch = data["torch"]
        if len(data["cuda"]) == len(states._cuda):
            states._cuda = data["cuda"]
        return states


@contextmanager
def preserved_rng() -> Iterator[Randomness]:
    """Leave all random states as they were: a cut must not change what the run draws next."""
    states = Randomness()
    try:
        yield states
    finally:
        states.put_back()
