"""The model YAMLs of the installed ultralytics: which there are, their scales, and models built from them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ultralytics
from ultralytics.utils import YAML

if TYPE_CHECKING:
    from torch import nn
    from ultralytics import RTDETR, YOLO

_FAMILY = re.compile(r"^(yolo(?:e-)?v?\d+)([a-z]?)")
"""Family and, where the file name has one, scale: ``yolo11-seg``, ``yoloe-v8``, ``yolov10n``."""
SCALES = "tnsmbclex"
"""Letters of scales, smallest first."""


def model_yamls() -> list[Path]:
    """Return every model YAML, in the order of their paths."""
    return sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))


def scaled(path: Path) -> list[Path]:
    """Return the paths under which Ultralytics builds the scales of a YAML, e.g. ``…/yolo11n.yaml``, smallest first."""
    family = _FAMILY.match(path.stem)
    letters = list(YAML.load(path).get("scales", ()))
    if not letters or family is None or family[2]:
        return [path]
    return [path.with_name(_FAMILY.sub(rf"\g<1>{letter}", path.name)) for letter in letters]


def build_model(path: Path) -> YOLO | RTDETR:
    """Return a model with random weights, as Ultralytics builds it.

    A backbone of torchvision's that asks for downloaded weights is built without them.

    Args:
        path: One of those that `scaled` returns; the file itself may have no scale in its name.
    """
    from ultralytics import RTDETR, YOLO

    if not path.is_file():  # by name: Ultralytics takes a "9s" in a folder's name for the scale
        path = Path(path.name)
    elif "DEFAULT" in (text := path.read_text(encoding="utf-8")):
        path = Path(tempfile.mkdtemp()) / path.name
        path.write_text(text.replace("DEFAULT", "None"), encoding="utf-8")
    return (RTDETR if "rtdetr" in path.stem else YOLO)(path)


def siblings(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the official scales of a network's family, smallest first: name, and network with random weights.

    They have its classes, image channels and keypoints. A network of no official family has none.
    """
    from ultralytics.nn.tasks import yaml_model_load

    own = network.yaml
    family = _FAMILY.match(Path(own.get("yaml_file", "")).stem)
    if family is None:
        return
    shared = {name: own[name] for name in ("nc", "channels", "kpt_shape") if name in own}
    found: dict[int, str] = {}
    for path in (scale for yaml in model_yamls() for scale in scaled(yaml)):
        other = _FAMILY.match(path.stem)
        if other and other[2] and other[1] == family[1] and path.stem[other.end() :] == family.string[family.end() :]:
            found[SCALES.index(other[2])] = path.name
    for letter, name in sorted(found.items()):
        yaml = {**yaml_model_load(name), **shared, "scale": SCALES[letter]}
        yield Path(name).stem, type(network)(yaml, verbose=False)
