"""One run: its trainer, what was asked for, what has happened, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint, ddp
from yolo_prune.host.distillation import student_of
from yolo_prune.importance.gradients import Gradients
from yolo_prune.training.zeros import HeldZeros
from yolo_prune.utils.console import log, verbosity

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.config.settings import PruneConfig
    from yolo_prune.cost.latency import LatencyModel
    from yolo_prune.graph.groups import ChannelGraph
    from yolo_prune.report.records import CutRecord, Report, Stage
    from yolo_prune.training.exact_state import StepCount
    from yolo_prune.training.progress import Progress
    from yolo_prune.training.snapshot import Snapshot
    from yolo_prune.training.sparsity import Sparsity
    from yolo_prune.utils.run_folder import RunFolder


@dataclass
class Run:
    """A training run that is pruned.

    Attributes:
        trainer: Ultralytics' trainer, with its network, EMA and optimizer.
        progress: What has been done and is still to do, as plain data.
        folder: Files of pruning in the run's folder.
        steps: Counts batches between two steps of the optimizer.
        latency: What has been measured of the dense network, for a latency target.
        gradients: Of the live network, from the run's own steps since the epoch began.
        sparsity: The penalty that acts until the first cut, or None.
        zeros: What keeps weights at zero, where the run makes or has found some, or None.
        before_cut: The state to which ``max_drop`` would go back, or None.
        readers: Layers that only a training step runs -> the modules whose results they take; None if no step can be
            tried.
        resumed: The exact state of a resumed run until it has been restored, or None.
        in_epoch: Whether an epoch has begun and has not been validated.
    """

    trainer: BaseTrainer
    progress: Progress
    folder: RunFolder
    steps: StepCount
    latency: LatencyModel | None = None
    gradients: Gradients = field(default_factory=Gradients)
    sparsity: Sparsity | None = None
    zeros: HeldZeros | None = None
    before_cut: Snapshot | None = None
    readers: dict[str, str] | None = None
    resumed: dict[str, Any] | None = None
    in_epoch: bool = False

    @property
    def config(self) -> PruneConfig:
        """The options."""
        return self.progress.config

    @property
    def report(self) -> Report:
        """The report so far."""
        return self.progress.report

    @property
    def model(self) -> nn.Module:
        """The live network, without wrappers."""
        return student_of(self.trainer.model)

    @property
    def ema(self) -> nn.Module:
        """Its exponential moving average, which is what is saved and validated."""
        return student_of(self.trainer.ema.ema)

    @property
    def imgsz(self) -> int:
        """Side of the images in pixels."""
        size: int = self.trainer.args.imgsz
        return size

    @property
    def epoch(self) -> int:
        """The epoch that the schedule goes by.

        With ``time=`` Ultralytics estimates anew after each epoch how many there will be. The schedule was made for as
        many as were asked for, and what counts is the share of the run that is over.
        """
        if not self.trainer.args.time:
            return int(self.trainer.epoch)
        return ddp.broadcast(round(self.trainer.epoch * self.progress.epochs / self.trainer.epochs))

    @property
    def stage(self) -> CutRecord | Stage:
        """The network as it is now."""
        return self.report.cuts[-1] if self.report.cuts else self.report.dense

    @property
    def figures(self) -> dict[str, float]:
        """Name -> value for the loggers of Ultralytics, the same names in every epoch of a run."""
        return {"prune/GMACs": (self.stage.macs or 0) / 1e9, "prune/params(M)": (self.stage.params or 0) / 1e6}

    @property
    def has_zeros(self) -> bool:
        """Whether weights of the network are zero on purpose."""
        is_made = self.config.zeros is not None and bool(self.report.cuts)
        return is_made or checkpoint.has_zeros(self.model.yaml)

    def hold_zeros(self) -> None:
        """Let the weights that are zero now stay so, until this is asked anew."""
        if self.has_zeros:
            self.zeros = self.zeros or HeldZeros()
            self.zeros.hold(self.trainer.optimizer, self.model, self.ema, self.config.is_ignored)
        elif self.zeros:
            self.zeros.release()  # the cut that made them was taken back

    def trace(self, network: nn.Module, readers: Mapping[str, str] | None = None) -> ChannelGraph:
        """Return the channel groups of a network of the run."""
        return trace(network, self.imgsz, self.config.is_ignored, readers, reid=self.config.reid)

    def log(self, text: str) -> None:
        """Tell the user a line, unless ``verbose=False``."""
        with verbosity(self.config.verbose):
            log(text)
