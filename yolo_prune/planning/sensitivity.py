"""How much the loss grows if a single layer gets narrower, measured layer by layer.

Each bundle of channel groups is cut alone, BatchNorms are matched, and labelled images that nothing was calibrated on
tell the loss. The weights that stay are as they were, so this is the layer's own sensitivity and not what a
reconstruction makes of it. Such scans are those of Li et al. 2017, "Pruning Filters for Efficient ConvNets", section
3.2; that layers which hurt equally go next is how Han et al. 2015, "Learning both Weights and Connections for Efficient
Neural Networks", section 5, use them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.importance.objective import calibrating, loss_of, trainable_copy, weigh_branches
from yolo_prune.importance.statistics import LayerStatistics, layer_statistics
from yolo_prune.planning.allocation import MOVES, plan_of
from yolo_prune.planning.ranking import Ranking
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import UndoLog, cut
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.files import atomic_write
from yolo_prune.utils.text import aligned

if TYPE_CHECKING:
    from yolo_prune.plan import PrunePlan

SCHEMA = 1
RATIOS = (0.25, 0.5, 0.75)
IMAGES = 16
"""So many images to match BatchNorms and as many to judge by; 32 rank the layers of a YOLOv8n alike (Spearman 0.98)."""
Batches = Sequence[dict[str, Any]]
"""Preprocessed batches with labels, on the network's device."""


class HeldOutLoss:
    """The loss of cut networks on images that they were not calibrated on.

    Args:
        model: The dense network; a copy of it is cut, and each cut is taken back.
        calibration: Batches whose images match BatchNorms and solve weights.
        held_out: Batches that judge.
        statistics: Those of the network on the calibration batches, if there are any yet.
        seed: Of what a network draws as it computes its loss, so that all are judged by the same draws.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Batches,
        held_out: Batches,
        *,
        statistics: Mapping[str, LayerStatistics] | None = None,
        seed: int = 0,
    ) -> None:
        self._network = trainable_copy(model)
        weigh_branches(self._network)
        self._dense = layer_statistics(model, calibration) if statistics is None else statistics
        self._images = [batch["img"] for batch in calibration]
        self._held_out, self._seed = held_out, seed

    def loss(self, plan: PrunePlan | None = None, *, weights: bool = True) -> float:
        """Return the training loss per image of the network that a plan leaves.

        Args:
            plan: The cut, or None for the dense network.
            weights: Whether the weights that stay are solved anew; else BatchNorms are matched.
        """
        undo = UndoLog()
        try:
            if plan is not None:
                undo = cut(plan, [self._network])
                reconstruct(undo, self._network, plan, self._dense, self._images, weights=weights, norms=not weights)
            return self._mean_loss()
        finally:
            undo.undo()

    def _mean_loss(self) -> float:
        total = 0.0
        with torch.random.fork_rng(range(torch.cuda.device_count())), calibrating(self._network), torch.no_grad():
            torch.manual_seed(self._seed)
            for batch in self._held_out:
                total += float(loss_of(self._network, batch)) * len(batch["img"])
        mean = total / sum(len(batch["img"]) for batch in self._held_out)
        return mean if np.isfinite(mean) else np.inf  # what is not a number is the worst, and not better than nothing


@dataclass(frozen=True)
class Measurement:
    """One layer, narrower by one ratio.

    Attributes:
        bundle: Index of the bundle of channel groups in the graph.
        layer: The layer that makes its channels.
        ratio: Share of its channels that was asked for.
        share: Share that went: whole steps, at least one of which goes and one stays.
        loss: Training loss per image on held-out images.
        increase: The same less the dense network's.
        macs_saved: Share of the network's multiply-adds that this saves.
    """

    bundle: int
    layer: str
    ratio: float
    share: float
    loss: float
    increase: float
    macs_saved: float


@dataclass(frozen=True)
class Sensitivity:
    """The result of a sensitivity scan.

    Attributes:
        dense_loss: Training loss per image of the dense network on held-out images.
        rows: Layer by layer in the order of the network, by rising ratio.
    """

    dense_loss: float
    rows: tuple[Measurement, ...]

    def tolerance(self, bundle: int, share: float) -> float:
        """Return by how much the loss grows if a share of a bundle's channels goes.

        What was measured is interpolated, with nothing lost at 0, and goes on in a straight line beyond the largest
        ratio. It never falls, whatever the noise of few images: a larger cut hurts as much as any smaller one.
        """
        shares, increases = self._curves[bundle]
        if share <= shares[-1]:
            return float(np.interp(share, shares, increases))
        slope = (increases[-1] - increases[-2]) / (shares[-1] - shares[-2])
        return float(increases[-1] + slope * (share - shares[-1]))

    def table(self) -> str:
        """Return the increases as a table, the most sensitive layer first."""
        ratios = sorted({row.ratio for row in self.rows})
        lines = [("loss grows by", *(f"-{ratio:.0%}" for ratio in ratios), "MACs saved")]
        for rows in sorted(self._layers.values(), key=lambda rows: -max(row.increase for row in rows)):
            cells = {row.ratio: f"{row.increase:+.3f}" for row in rows}
            lines.append((rows[0].layer, *(cells.get(r, "") for r in ratios), f"{rows[-1].macs_saved:.1%}"))
        return aligned(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {"schema": SCHEMA, "dense_loss": self.dense_loss, "rows": [asdict(row) for row in self.rows]}

    def save(self, folder: Path) -> Path:
        """Write ``sensitivity.json`` and ``sensitivity.png`` into a folder; a reader never sees half of them.

        Returns:
            Path of the JSON file.
        """
        path, picture = folder / "sensitivity.json", folder / "sensitivity.png"
        with atomic_write(path) as figures, atomic_write(picture) as drawing:
            figures.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
            self._draw(drawing)
        return path

    def _draw(self, path: Path) -> None:
        """Draw the increases as dots, the layers from top to bottom in the order of the network."""
        from matplotlib.figure import Figure  # without pyplot it is drawn by Agg, and no window or state is touched

        layers, ratios = list(self._layers.values()), sorted({row.ratio for row in self.rows})
        figure = Figure(figsize=(8, 1.2 + 0.18 * len(layers)), layout="constrained")
        axes = figure.subplots()
        for n, rows in enumerate(layers):
            axes.plot([0, *(row.increase for row in rows)], [n] * (len(rows) + 1), color="0.7", linewidth=1, zorder=1)
        for i, ratio in reversed(list(enumerate(ratios))):  # what a small ratio does lies on top
            points = [(row.increase, n) for n, rows in enumerate(layers) for row in rows if row.ratio == ratio]
            increases, places = zip(*points, strict=True)
            axes.plot(increases, places, "o", markersize=5, color=f"C{i}", label=f"{ratio:.0%} of its channels removed")
        axes.set_yticks(range(len(layers)), [rows[0].layer for rows in layers], fontsize=7)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"increase of the loss per image if this layer alone is cut (dense: {self.dense_loss:.3g})")
        axes.legend(fontsize=8)
        figure.savefig(path, format="png", dpi=120)

    @cached_property
    def _layers(self) -> dict[int, list[Measurement]]:
        """Bundle -> its rows."""
        layers = defaultdict(list)
        for row in self.rows:
            layers[row.bundle].append(row)
        return dict(layers)

    @cached_property
    def _curves(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Bundle -> shares and the largest increase up to each, both from 0."""
        return {
            bundle: (
                np.array([0, *(row.share for row in rows)]),
                np.maximum.accumulate([0, *(row.increase for row in rows)]),
            )
            for bundle, rows in self._layers.items()
        }


def scan(
    model: nn.Module,
    graph: ChannelGraph,
    ranking: Callable[[], Ranking],
    calibration: Batches,
    held_out: Batches,
    *,
    ratios: Sequence[float] = RATIOS,
    images: int = IMAGES,
) -> Sensitivity:
    """Measure how much the loss grows if each bundle of channel groups is cut alone.

    Args:
        model: The network; it is only read.
        graph: Its channel groups.
        ranking: Makes a fresh ranking of its units; each bundle uses one up.
        calibration: Batches whose images match BatchNorms.
        held_out: Batches that judge; none of their images should be among the others.
        ratios: Shares of channels to remove, between 0 and 1; of those that make the same widths one is measured.
        images: So many of the images of either are looked at, in whole batches from the first on.
    """
    loss_of_cut = HeldOutLoss(model, _first(calibration, images), _first(held_out, images))
    dense_loss, rows = loss_of_cut.loss(), []
    free = [b for b, bundle in enumerate(graph.bundles) if not bundle.locked and bundle.steps > 1]
    with progress_bar("trying layers", len(free)) as step:
        for b in free:
            bundle, order = graph.bundles[b], ranking()
            steps = [bundle.steps for bundle in graph.bundles]
            for ratio in sorted(ratios):
                fewer = min(max(bundle.steps - round(bundle.steps * ratio), 1), bundle.steps - 1)
                if fewer == steps[b]:
                    continue
                while (
                    steps[b] > fewer
                ):  # in moves as an allocation makes them, since each may change the order of the rest
                    move = min(steps[b] - fewer, max(1, round(bundle.steps / MOVES)))
                    order.remove(b, move)
                    steps[b] -= move
                plan = plan_of(graph, steps, order.order())
                loss = loss_of_cut.loss(plan, weights=False)
                rows.append(
                    Measurement(
                        bundle=b,
                        layer=graph.groups[bundle.groups[0]].name,
                        ratio=ratio,
                        share=1 - fewer / bundle.steps,
                        loss=loss,
                        increase=loss - dense_loss,
                        macs_saved=1 - plan.macs["after"] / plan.macs["before"],
                    )
                )
            step()
    return Sensitivity(dense_loss, tuple(rows))


def _first(batches: Batches, images: int) -> Batches:
    """Return the first batches with so many images."""
    counts = np.cumsum([len(batch["img"]) for batch in batches])
    return batches[: int(np.searchsorted(counts, images)) + 1]
