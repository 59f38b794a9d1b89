"""Bytes of exports, for targets such as ``1.5 MB litert:8``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from yolo_prune.config.targets import Target
from yolo_prune.cost.file_size import PREDICTED
from yolo_prune.deploy.formats import check_formats, file_size
from yolo_prune.deploy.network_files import export_form
from yolo_prune.errors import ConfigError
from yolo_prune.graph.image import height_and_width
from yolo_prune.utils.console import progress_bar


def check_file_targets(targets: Sequence[Target]) -> None:
    """Refuse targets in the bytes of exports that cannot be had.

    Raises:
        ConfigError: If Ultralytics makes no such export, or its size cannot be predicted.
    """
    asked = [target for target in targets if target.form]
    check_formats([target.form for target in asked])
    if wrong := next((target for target in asked if target.form.partition(":")[0] not in PREDICTED), None):
        raise ConfigError(
            f"target={wrong}: the size of such an export does not follow its weights and cannot be predicted; give "
            f"that of one of {', '.join(PREDICTED)}, with a precision as in litert:8."
        )


def file_sizes(network: nn.Module, targets: Sequence[Target], imgsz: int | tuple[int, int]) -> dict[str, int]:
    """Return the bytes of a network's exports that targets are of.

    Args:
        network: Copies of it are exported; INT8 is calibrated with noise, which changes no size.
        targets: Those of files are looked at.
        imgsz: Image size in pixels.

    Returns:
        Quantity of a target -> bytes.

    Raises:
        ConfigError: See `check_file_targets`.
    """
    check_file_targets(targets)
    forms = {target.quantity: target.form for target in targets if target.form}
    sizes = {}
    with progress_bar("exporting the network", len(forms)) as step:
        for quantity, form in forms.items():
            with tempfile.TemporaryDirectory() as folder:
                sizes[quantity] = file_size(export_form(network, form, height_and_width(imgsz), Path(folder)))
            step()
    return sizes
