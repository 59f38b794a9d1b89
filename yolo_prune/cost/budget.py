"""Budget of a run: targets in the user's units, in terms of the cost model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolo_prune.config.targets import BYTES, ZEROS, Target
from yolo_prune.cost.model import CostModel

NOTES = 24_000
"""Bytes by which a checkpoint may still grow: notes of the cuts to come, and the run's results per epoch."""


@dataclass(frozen=True)
class Goal:
    """Per quantity how much there was at first and how much may stay in the end.

    Attributes:
        amounts: Quantity -> (dense, limit), as `CostModel.amount` counts them; only what does not hold yet.
    """

    amounts: Mapping[str, tuple[float, float]]

    @classmethod
    def of(
        cls,
        targets: Iterable[Target],
        cost: CostModel,
        network: nn.Module,
        files: Mapping[str, int] | None = None,
        given: Mapping[str, float] | None = None,
    ) -> Goal:
        """Read targets for a network.

        Args:
            targets: What the user asked for; of several for one quantity the strictest counts. Zeros cost what other
                weights do.
            cost: The network's cost model.
            network: The network, of which a checkpoint will be written.
            files: Quantity -> bytes of the dense network's export, for targets in such.
            given: Quantity -> how much a network had that levels have been removed from; shares are of that.

        Raises:
            UnsupportedError: If a target is a latency and the graph has none that were measured.
        """
        amounts: dict[str, tuple[float, float]] = {}
        for target in (target for target in targets if target.quantity not in ZEROS):
            dense, beside = cost.dense(target.quantity), 0
            if target.quantity == BYTES:
                beside = file_bytes(network) - cost.bytes()  # what a checkpoint holds beside its tensors
            elif target.form:
                beside = (files or {})[target.quantity] - int(dense)  # the graph, and what no width changes
            notes = NOTES if target.quantity == BYTES else 0
            limit = target.limit((given or {}).get(target.quantity, dense + beside)) - beside - notes
            if limit < dense:
                strictest = min(limit, amounts.get(target.quantity, (dense, limit))[1])
                amounts[target.quantity] = (dense, strictest)
        return cls(amounts)

    def at(self, fraction: float) -> dict[str, float]:
        """Return the budget that reaches a fraction of the goal, 0 <= fraction <= 1."""
        return {quantity: dense + fraction * (limit - dense) for quantity, (dense, limit) in self.amounts.items()}

    @property
    def removed(self) -> float:
        """Largest share of a quantity that goes."""
        return max((1 - limit / dense for dense, limit in self.amounts.values()), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {quantity: list(pair) for quantity, pair in self.amounts.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Goal:
        """Read what ``to_dict`` wrote."""
        return cls({str(quantity): (float(dense), float(limit)) for quantity, (dense, limit) in data.items()})


def file_bytes(network: nn.Module) -> int:
    """Return the size of a network as Ultralytics ships it: FP16, without optimizer."""
    buffer = io.BytesIO()
    torch.save({"model": deepcopy(network).half()}, buffer)
    return buffer.tell()
