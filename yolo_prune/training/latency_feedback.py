"""Planned networks, timed next to the dense one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ultralytics.utils import LOGGER

from yolo_prune.deploy.latency_profile import exported_runner, rounds_for
from yolo_prune.device.stopwatch import Runner, alternating, typical
from yolo_prune.device.system import all_threads
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
        self._runner: Runner | None = None
        self._exports = 0

    def __call__(self, network: nn.Module) -> float:
        """Return the seconds of a network for one image, in terms of its own dense time."""
        if self._runner is None:
            self._runner = self._export(qat.load_plain(self._dense))
        runners = [self._runner, self._export(network)]
        of_dense, of_pruned = typical(alternating(runners, rounds_for(runners), progress=progress_bar))
        if (longer := of_dense / self._latency.dense) > BUSY:
            LOGGER.warning(
                f"{PREFIX}the dense network takes {longer:.2f} times as long as before: something else keeps this "
                f"machine busy, and the plan may miss its latency once it is idle"
            )
        return float(of_pruned / of_dense * self._latency.dense)

    def close(self) -> None:
        """Remove the exports."""
        self._folder.cleanup()

    def _export(self, network: nn.Module) -> Runner:
        self._exports += 1
        folder = Path(self._folder.name) / str(self._exports)
        return exported_runner(network, self._latency.where["runtime"], self._imgsz, folder, all_threads())
