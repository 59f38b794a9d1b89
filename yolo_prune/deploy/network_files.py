"""Files of networks that are only made to be timed: what Ultralytics exports, for a runtime and in a precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import guess_model_task

from yolo_prune.deploy.formats import is_calibrated, precisions, read_export
from yolo_prune.deploy.runtimes import FORMATS
from yolo_prune.errors import ConfigError
from yolo_prune.graph.image import image_channels
from yolo_prune.host.data_sets import check_data
from yolo_prune.importance.objective import copy_of
from yolo_prune.utils.console import silence

CALIBRATION = 8
"""Images of noise that calibrate INT8 where none are given: times do not depend on them."""
PERIOD = 1021
"""Weights of noise repeat after so many: they compress, and each filter differs from the next."""
USUAL = {"tensorrt": "16"}
"""Runtime -> its precision where nobody asks for one; that of others is 32."""


def read_form(form: str) -> tuple[str, str]:
    """Return a runtime, and the precision in which its files are made, from a text such as ``onnx`` or ``litert:8``.

    Raises:
        ConfigError: If Ultralytics exports no such file; names those that it does.
    """
    runtime, _, precision = form.partition(":")
    if runtime not in FORMATS:
        if precision not in {"", "32"}:
            raise ConfigError(f"runtime={form}: checkpoints are timed in single precision; give runtime={runtime}.")
        return runtime, "32"
    valid = precisions(FORMATS[runtime])
    if precision and precision not in valid:
        listed = ", ".join(f"{runtime}:{p}" for p in valid)
        raise ConfigError(f"runtime={form} is of no precision that Ultralytics exports; give {listed}.")
    return runtime, precision or USUAL.get(runtime, "32")


def export(
    network: nn.Module,
    form: str,
    imgsz: tuple[int, int],
    folder: Path,
    data: str | None = None,
    portable: bool = False,
) -> Path:
    """Export a network as Ultralytics does for a runtime, and return the file or folder.

    Args:
        network: A copy of it is written, in half precision as a checkpoint.
        form: One of `config.RUNTIMES`, with a precision where it is not the usual one (see `read_form`).
        imgsz: Height and width in pixels.
        folder: Where to.
        data: A data set that calibrates INT8 (default: noise).
        portable: Whether it is for another machine, on which TensorRT builds an engine of an ONNX file.
    """
    runtime, precision = read_form(form)
    if runtime not in FORMATS:
        return _checkpoint(network, folder)
    name = FORMATS[runtime]
    if portable and runtime == "tensorrt":
        name, precision = "onnx", "8" if precision == "8" else "32"  # the engine is built in half precision there
    return export_form(network, f"{name}:{precision}", imgsz, folder, data)


def export_form(network: nn.Module, form: str, imgsz: tuple[int, int], folder: Path, data: str | None = None) -> Path:
    """Do the same for one of Ultralytics' export formats, with a precision where it is not the format's own."""
    name, quantize = read_export(form)
    precision = form.partition(":")[2]
    options: dict[str, Any] = {} if precision in {"", precisions(name)[0]} else {"quantize": quantize}
    if is_calibrated(name, precision):
        if data:
            check_data(data, guess_model_task(network))
        options["data"] = data or _noise_data(network, imgsz, folder / "noise")
    checkpoint = _checkpoint(network, folder)
    with silence():
        return Path(YOLO(checkpoint).export(format=name, imgsz=list(imgsz), verbose=False, **options))


def _checkpoint(network: nn.Module, folder: Path) -> Path:
    path = folder / "network.pt"
    torch.save({"model": copy_of(network).cpu().half(), "train_args": {}}, path)
    return path


def with_noise(network: nn.Module) -> nn.Module:
    """Give a network weights of noise, at which activations keep their size, and return it.

    Times do not depend on weights, and dozens of files of such networks compress to a few megabytes.
    """
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(PERIOD).astype(np.float32))
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:
            fan_in = weight[0].numel()
            tiled = noise.repeat(-(-weight.numel() // PERIOD))[: weight.numel()] * (2 / fan_in) ** 0.5
            weight.data.copy_(tiled.view_as(weight))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network


def _noise_data(network: nn.Module, imgsz: tuple[int, int], folder: Path) -> str:
    """Write a data set of images of noise without labels, and return its description's path.

    Raises:
        ConfigError: If the network classifies: Ultralytics reads such data from a folder for each class.
    """
    if guess_model_task(network) == "classify":
        raise ConfigError("INT8 of a classification model is calibrated with its data; give data=….")
    from PIL import Image

    channels = image_channels(network)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(CALIBRATION):
        Image.fromarray(draw.integers(0, 256, (*imgsz, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        (folder / "labels" / f"{i}.txt").write_text("", encoding="utf-8")
    names = [*getattr(network, "names", {0: "0"}).values()]
    description = folder / "data.yaml"
    lines = ("path: " + str(folder.resolve()), "train: images", "val: images", f"channels: {channels}")
    described = "\n".join((*lines, "names:", *(f"  {i}: class{i}" for i in range(len(names)))))
    description.write_text(described + "\n", encoding="utf-8")
    return str(description)
