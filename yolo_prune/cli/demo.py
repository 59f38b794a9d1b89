"""``yolo-prune demo``: the whole job in a few minutes, on data made here, with nothing downloaded.

Draws a small labelled detection data set, trains a YOLO11n on it from scratch, removes half of its MACs in a second,
shorter training, and exports the slim model to ONNX. Everything lands in ``./yolo-prune-demo``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_prune.cli.startup import join_assignments, take_arguments
from yolo_prune.config.settings import PruneConfig
from yolo_prune.errors import ConfigError
from yolo_prune.utils.run_folder import RunFolder

FOLDER = "yolo-prune-demo"
SHAPES = ("circle", "square", "triangle")
PRUNE = {"prune": "0.5", "prune_export": "onnx"}
TRAIN: dict[str, Any] = {
    "epochs": 28,
    "imgsz": 128,
    "batch": 8,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "cache": "ram",
    "workers": 0,
    "amp": False,  # its self-test would download a pretrained model
    "plots": False,
    "seed": 0,
}
"""Arguments for a tiny data set and a slow machine; ``yolo-prune demo epochs=60`` overrides any of them."""
PRUNED: dict[str, Any] = {"epochs": 12, "lr0": 0.0005}
"""Those that are others in the second training, which starts from a model that has learned."""


def run(arguments: Iterable[str]) -> None:
    """Make the data, train, train on with pruning, export, and print where the results are.

    Args:
        arguments: ``key=value`` texts: ``prune...`` options, and training arguments of Ultralytics for both trainings.

    Raises:
        ConfigError: If an argument has no value, or ONNX is asked for and not installed.
        PruneError: If the run itself fails.
    """
    rest = join_assignments(arguments)
    options = take_arguments(rest)
    usual = dict(PRUNE)
    if "prune_sizes" in options:
        del usual["prune"]  # sizes stand instead of a target
    config = PruneConfig.from_cli(usual | options)
    if stray := [argument for argument in rest if "=" not in argument]:
        raise ConfigError(f"demo takes key=value arguments such as epochs=20, not {stray[0]}.")
    if "onnx" in config.export and not find_spec("onnx"):
        raise ConfigError(
            "the demo exports ONNX, but onnx is not installed: pip install onnx onnxslim onnxruntime, "
            "or leave the export out with prune_export="
        )
    folder = Path.cwd() / FOLDER
    use_private_settings(folder / "settings")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # Ultralytics would set 1 and leave cores idle

    from ultralytics import YOLO

    from yolo_prune.callback import PruneCallback
    from yolo_prune.host.trainer import read_arguments

    given = read_arguments(dict(argument.split("=", 1) for argument in rest), "demo")
    data = make_dataset(folder / "data")
    both = {"data": str(data), "project": str(folder), **given}
    dense = YOLO("yolo11n.yaml")
    dense.train(**TRAIN | {"name": "dense"} | both)  # to the end, so that what is left of it can be compared with it
    model = YOLO(dense.trainer.best)
    PruneCallback(config).attach(model)
    model.train(**TRAIN | PRUNED | both)

    run_folder = Path(model.trainer.save_dir)
    print("\nWhat is left behind:")
    for path in (*sorted((run_folder / "weights").glob("best*")), *sorted(RunFolder(run_folder).path.glob("report.*"))):
        print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def use_private_settings(folder: Path) -> None:
    """Keep Ultralytics away from the user's settings and from the network; call it before importing ultralytics."""
    import matplotlib  # a dependency of Ultralytics, slow to import

    config = folder / "Ultralytics"
    config.mkdir(parents=True, exist_ok=True)
    # Ultralytics downloads Arial for its plots unless it finds a file of this name here.
    shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), config / "Arial.ttf")
    os.environ.update(YOLO_CONFIG_DIR=str(folder), YOLO_OFFLINE="true")


def make_dataset(folder: Path, *, train: int = 96, val: int = 32, size: int = 128, seed: int = 0) -> Path:
    """Draw coloured circles, squares and triangles on noise, with YOLO labels.

    Args:
        folder: Where the data set goes; what lies there under the same names is replaced.
        train: Number of training images.
        val: Number of validation images.
        size: Height and width of an image in pixels.
        seed: The same seed draws the same images.

    Returns:
        The path of ``data.yaml``.
    """
    import cv2  # a dependency of Ultralytics

    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, lines = _draw(rng, size)
            cv2.imwrite(str(images / f"{i:03}.png"), image)
            (labels / f"{i:03}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(SHAPES))
    data = folder / "data.yaml"
    text = f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}"
    data.write_text(text, encoding="utf-8")
    return data


def _draw(rng: np.random.Generator, size: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return one image (H, W, 3) and its label lines ``class x y width height``, in shares of the image."""
    image = rng.integers(0, 100, (size, size, 3), dtype=np.uint8)
    y, x = np.mgrid[:size, :size] / size
    labels = []
    for cell in rng.choice(4, size=rng.integers(1, 4), replace=False):  # one shape per quadrant: none hides another
        shape = int(rng.integers(len(SHAPES)))
        radius = rng.uniform(0.12, 0.22)
        center_x, center_y = 0.25 + 0.5 * (cell % 2), 0.25 + 0.5 * (cell // 2)
        dx, dy = x - center_x, y - center_y
        inside = (
            dx**2 + dy**2 <= radius**2,
            np.maximum(abs(dx), abs(dy)) <= radius,
            (dy <= radius) & (2 * abs(dx) <= dy + radius),
        )[shape]
        image[inside] = rng.integers(120, 256, 3)
        labels.append(f"{shape} {center_x:.4f} {center_y:.4f} {2 * radius:.4f} {2 * radius:.4f}")
    return image, labels
