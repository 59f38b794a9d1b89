"""A data set of some of its classes, as files of a run: stock Ultralytics trains, validates and resumes on them.

Ultralytics' own ``classes=`` leaves the numbers of classes as they are, so that a network of two of 80 classes still
has 80 outputs. Here a folder ``pruning/data`` is written beside the run's other files: images are links, labels have
the lines of the kept classes under new numbers, and an image without any is a background.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import IMG_FORMATS, check_cls_dataset, check_det_dataset, img2label_paths
from ultralytics.utils import YAML

from yolo_prune.errors import ConfigError, UnsupportedError, listed, short_repr
from yolo_prune.host.ddp import is_first
from yolo_prune.surgery.classes import chosen, names_of
from yolo_prune.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

SPLITS = ("train", "val", "test")
TASKS = ("detect", "segment", "pose", "obb", "classify")
WAIT = 600.0
"""Seconds in which the first process of a run has to have written the data."""


def is_narrowed(trainer: BaseTrainer) -> bool:
    """Whether a trainer's data set was made here, for this run."""
    folder, data = RunFolder(Path(trainer.save_dir)).data, Path(trainer.args.data)
    return folder.resolve() in (data.resolve(), data.resolve().parent)


def with_classes(trainer: BaseTrainer, data: dict[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """Return a trainer's data set with some of its classes, in its own order.

    Args:
        trainer: Whose ``args.data`` then names the files that were written, if any had to be.
        data: The data set that Ultralytics has read.
        asked: What `chosen` takes.

    Raises:
        ConfigError: If the data set has no such class.
        UnsupportedError: If the task has no classes that can be left out.
    """
    if is_narrowed(trainer):  # it is resumed
        return data
    names = names_of(data["names"])
    return _narrowed(trainer, data, chosen(names, asked, of="the data set"))


def matching(trainer: BaseTrainer, names: Sequence[str]) -> dict[str, Any]:
    """Return a trainer's data set with just these classes, in this order.

    Raises:
        ConfigError: If the data set does not have all of them.
        UnsupportedError: If the task has no classes that can be left out.
    """
    data: dict[str, Any] = trainer.data
    known = {name.strip().lower(): i for i, name in enumerate(names_of(data["names"]))}
    if missing := [name for name in names if name.strip().lower() not in known]:
        raise ConfigError(
            f"keep_classes: {trainer.args.data} has no class {short_repr(missing[0])}; it has "
            f"{', '.join(list(known)[:10])}: give a data set that shows the kept classes."
        )
    return _narrowed(trainer, data, [known[name.strip().lower()] for name in names])


def _narrowed(trainer: BaseTrainer, data: dict[str, Any], classes: Sequence[int]) -> dict[str, Any]:
    """Write a data set of these classes unless it is just that, and return it."""
    if list(classes) == list(range(len(data["names"]))):
        return data
    task = trainer.args.task
    if task not in TASKS:
        raise UnsupportedError(
            f"keep_classes makes data sets for the tasks {listed(TASKS)}, and this one is for {task}: give a data set "
            "of just the classes to keep."
        )
    folder = RunFolder(Path(trainer.save_dir)).data
    if not is_first():
        _wait_for(folder)
    elif not trainer.ddp:
        draft = folder.with_name(f"{folder.name}.part")
        for stale in (folder, draft):
            shutil.rmtree(stale, ignore_errors=True)
        (_write_folders if task == "classify" else _write_labels)(data, classes, draft, folder)
        draft.rename(folder)  # other processes wait for it
    if trainer.ddp:  # the launcher removes the run's folder, and the processes that it starts write it
        names = names_of(data["names"])
        return {**data, "names": {new: names[old] for new, old in enumerate(classes)}, "nc": len(classes)}
    if task == "classify":
        trainer.args.data = str(folder)
        read = check_cls_dataset
    else:
        trainer.args.data = str(folder / "data.yaml")
        read = check_det_dataset
    found: dict[str, Any] = read(trainer.args.data)
    return found


def _wait_for(folder: Path) -> None:
    """Wait until another process has written the data."""
    deadline = time.monotonic() + WAIT
    while not folder.exists():
        if time.monotonic() > deadline:
            raise UnsupportedError(
                f"keep_classes: the first process has not written {folder} in {WAIT:.0f} s; start the run with "
                "device=0,1 and no launcher, or give a data set of just the classes to keep."
            )
        time.sleep(0.1)


def _write_labels(data: Mapping[str, Any], classes: Sequence[int], draft: Path, folder: Path) -> None:
    """Write images and labels of a data set with a YAML.

    Args:
        data: As Ultralytics has read it.
        classes: Classes to keep, in their new order.
        draft: Where to write.
        folder: Where it will lie.
    """
    new = {old: number for number, old in enumerate(classes)}
    names = names_of(data["names"])
    reader = SimpleNamespace(prefix="", fraction=1.0)
    for split in (split for split in SPLITS if data.get(split)):
        files = BaseDataset.get_img_files(reader, data[split])
        images, labels = draft / "images" / split, draft / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        width = len(str(len(files)))
        for number, (image, label) in enumerate(zip(files, img2label_paths(files), strict=True)):
            name = f"{number:0{width}}-{Path(image).name}"  # folders may have files of the same name
            _link(Path(image), images / name)
            if Path(label).is_file():
                target = labels / f"{Path(name).stem}.txt"
                target.write_text(_renumbered(Path(label).read_text(encoding="utf-8"), new), encoding="utf-8")
    ours = ("path", "names", "nc", "yaml_file", "download", "kpt_names", "minival", *SPLITS)
    others = {key: value for key, value in data.items() if key not in ours}
    splits = {split: f"images/{split}" for split in SPLITS if data.get(split)}
    kept = [names[old] for old in classes]
    yaml = {"path": str(folder.resolve()), **splits, "names": dict(enumerate(kept)), **others}
    YAML.save(draft / "data.yaml", yaml)


def _renumbered(text: str, new: Mapping[int, int]) -> str:
    """Return the lines of a label file that are of kept classes, old number -> new."""
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    numbers = [int(float(row[0])) for row in rows]  # Ultralytics reads 0.0 as well
    lines = [" ".join([str(new[old]), *row[1:]]) for old, row in zip(numbers, rows, strict=True) if old in new]
    return "".join(f"{line}\n" for line in lines)


def _write_folders(data: Mapping[str, Any], classes: Sequence[int], draft: Path, folder: Path) -> None:
    """Write the folders of some classes; see `_write_labels`."""
    for split in (split for split in SPLITS if data.get(split)):
        folders = sorted(path for path in Path(data["train"]).iterdir() if path.is_dir())
        for name in (folders[old].name for old in classes):
            target = draft / split / name
            target.mkdir(parents=True)
            for image in sorted((Path(data[split]) / name).glob("*")):
                if image.suffix[1:].lower() in IMG_FORMATS:
                    _link(image, target / image.name)


def _link(image: Path, to: Path) -> None:
    """Let a path name an image: as a link where the system allows it, else as a copy."""
    attempts: tuple[Callable[[Path, Path], Any], ...] = (os.symlink, os.link, shutil.copy2)
    for attempt in attempts:
        try:
            attempt(image.resolve(), to)
            return
        except OSError:
            if attempt is shutil.copy2:
                raise
