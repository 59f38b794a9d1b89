"""Planned networks, timed next to the dense one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ultralytics.utils import LOGGER

from yolo_prune.deploy.latency_profile import COMPARING, exported_files, timer_of
from yolo_prune.device.system import all_threads
from yolo_prune.graph.image import image_channels
from yolo_prune.host import qat
from yolo_prune.utils.console import PREFIX, progress_bar

if TYPE_CHECKING:
    from torch import nn

    from yolo_prune.cost.latency import LatencyModel

BUSY = 1.1
"""Times as long as before that a network takes on a machine that does something else as well."""


class LatencyFeedback:
    """Times networks that a plan would leave; the dense network, next to which they run, is exported once.

    Args:
        dense: Checkpoint of the dense network.
        latency: What has been measured of it; seconds are in terms of its dense time.
        imgsz: Side of the image in pixels.
    """

    def __init__(self, dense: Path, latency: LatencyModel, imgsz: int) -> None:
        self._dense, self._latency, self._imgsz = dense, latency, (imgsz, imgsz)
        self._folder = tempfile.TemporaryDirectory()
        self._file: Path | None = None

    def __call__(self, network: nn.Module) -> float:
        """Return the seconds of a network for one image, in terms of its own dense time."""
        if self._file is None:
            self._file = self._export(qat.load_plain(self._dense))
        timer = timer_of(self._runtime, (1, image_channels(network), *self._imgsz), all_threads())
        (of_dense, of_pruned), _ = timer.seconds([self._file, self._export(network)], COMPARING, progress_bar)
        if (longer := of_dense / self._latency.dense) > BUSY:
            LOGGER.warning(
                f"{PREFIX}the dense network takes {longer:.2f} times as long as before: something else keeps this "
                f"machine busy, and the plan may miss its latency once it is idle"
            )
        return float(of_pruned / of_dense * self._latency.dense)

    def close(self) -> None:
        """Remove the exports."""
        self._folder.cleanup()

    @property
    def _runtime(self) -> str:
        return str(self._latency.where["runtime"])

    def _export(self, network: nn.Module) -> Path:
        return exported_files([network], self._runtime, self._imgsz, Path(self._folder.name))[0]
