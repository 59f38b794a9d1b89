"""Calibration data of a network, and the rankings that criteria make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import torch
from torch import nn

from yolo_prune.config.settings import PruneConfig
from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.importance.gradients import Gradients, gradients
from yolo_prune.importance.objective import trainable_copy
from yolo_prune.importance.reconstruction_error import Elimination
from yolo_prune.importance.scores import importance_scores
from yolo_prune.importance.statistics import LayerStatistics, layer_statistics
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.ranking import ByScore, Ranking
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import cut

DATA_FREE = ("l1", "l2", "bn_scale", "lamp", "fpgm", "random")
"""Criteria that need nothing but weights."""
BY_GRADIENT = ("taylor", "hessian")
"""Criteria that need gradients of the parameters, which a run can collect while it trains."""
HELD_OUT = ("sensitivity",)
"""Allocations that need held-out images."""
FEWEST_LATER = 32
"""Iterations of a plan after the first look at half of the images, but at no fewer than these."""


@dataclass
class CalibrationData:
    """Data that criteria and allocations need beside a network's weights.

    Attributes:
        model: The network.
        batches: Preprocessed batches of training images with labels, without augmentation.
        collected: Gradients that the run has collected already, or None.
        readers: Layers that only a training step runs -> the modules whose results they take.
        density: So many times as many positions are looked at as cuts of channels need.
    """

    model: nn.Module
    batches: Sequence[dict[str, Any]] = ()
    collected: Gradients | None = None
    readers: Mapping[str, str] = field(default_factory=dict)
    density: int = 1

    @cached_property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Moments of activations, and how much the loss cares."""
        return layer_statistics(self.model, self._data, density=self.density)

    @cached_property
    def gradients(self) -> Gradients:
        """Gradients of the parameters: the run's own, else those of the batches."""
        return self.collected if self.collected and self.collected.steps else gradients(self.model, self._data)

    def halves(self) -> tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]:
        """Return the first half of the batches, to calibrate on, and the second half, which is held out.

        Raises:
            ConfigError: If there are no two batches.
        """
        middle = (len(self._data) + 1) // 2
        if middle == len(self._data):
            images = len(self._data[0]["img"])
            raise ConfigError(
                f"calibration: {images} images make one batch, but allocation={' and '.join(HELD_OUT)} needs two, "
                f"one to calibrate on and one to judge by; raise calibration above {images}, lower batch or use "
                "allocation=global."
            )
        return self._data[:middle], self._data[middle:]

    def later_batches(self) -> int:
        """Return how many batches the iterations of a plan after the first look at."""
        images = [len(batch["img"]) for batch in self._data]
        enough = max(FEWEST_LATER, sum(images) / 2)
        return next((n for n in range(1, len(images)) if sum(images[:n]) >= enough), len(images))

    def after(self, plan: PrunePlan, config: PruneConfig, batches: int) -> CalibrationData:
        """Return the data of the network that a cut would leave, of the first so many batches."""
        network = trainable_copy(self.model)
        undo = cut(plan, [network])
        if config.reconstruction:
            reconstruct(undo, network, plan, self.statistics, self.images[:batches])
        return CalibrationData(network, self.batches[:batches], readers=self.readers)

    @property
    def images(self) -> Sequence[torch.Tensor]:
        """The images of the batches, of shape (B, C, H, W) each."""
        return _Images(self._data)

    @property
    def _data(self) -> Sequence[dict[str, Any]]:
        if not self.batches:
            raise ConfigError(f"this criterion looks at data; give data, or use one of {', '.join(DATA_FREE)}.")
        return self.batches


class _Images(Sequence[torch.Tensor]):
    """The images of batches, which need not be in memory all at once."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, at: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> _Images: ...
    def __getitem__(self, at: int | slice) -> torch.Tensor | _Images:
        if isinstance(at, slice):
            return _Images(self._batches[at])
        images: torch.Tensor = self._batches[at]["img"]
        return images


def ranking_factory(graph: ChannelGraph, config: PruneConfig, data: CalibrationData) -> Callable[[], Ranking]:
    """Return a function that makes a fresh ranking, since a plan uses one up.

    Raises:
        ConfigError: If the criterion needs data and there is none.
    """
    model = data.model
    if config.importance == "reconstruction":
        return lambda: Elimination(model, graph, data.statistics)
    scores = importance_scores(
        model,
        graph,
        config.importance,
        normalizer=config.normalizer,
        gradients=data.gradients if config.importance in BY_GRADIENT else None,
        statistics=data.statistics if config.importance == "activation" else None,
    )
    return lambda: ByScore(graph, scores)
