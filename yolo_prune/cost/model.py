"""Multiply-adds, parameters, bytes and memory of any set of widths, without building the network.

Multiply-adds counted are convolutions, linear layers and matrix products, for one image of the graph's size, in the
network as it is deployed: ``fuse()`` drops one of the two branches of an end-to-end head and merges branches of
re-parameterised convolutions, so only one counts (the parameters of all count, since the checkpoint holds them).
Ultralytics prints GFLOPs, which are two per multiply-add. Bytes are those of the tensors of a checkpoint as Ultralytics
ships it, in FP16.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from yolo_prune.config.targets import BYTES, LATENCY, MACS, PARAMS, RAM, form_of_file
from yolo_prune.cost.file_size import bytes_per
from yolo_prune.cost.latency import LatencyModel, Workload
from yolo_prune.errors import UnsupportedError
from yolo_prune.graph.groups import FP16, Activations, ChannelGraph
from yolo_prune.utils.paths import is_inside

NEARLY = 32
"""Power by which moments count that hold less memory than the largest: one of 9/10 of it counts 1/30."""


@dataclass(frozen=True)
class _Form:
    """An amount as a quadratic form of the kept units k: ``k @ pairs @ k + units @ k + fixed``.

    All coefficients are whole numbers, and all sums far below 2^53, so that double precision is exact.

    Attributes:
        pairs: Of units of two groups, one that a layer makes and one that it reads, shape (groups, groups).
        units: Of a unit alone, shape (groups,).
        fixed: Of what never changes.
    """

    pairs: np.ndarray
    units: np.ndarray
    fixed: float

    def at(self, kept: np.ndarray) -> int:
        """Return the amount."""
        return round(float((self.pairs @ kept + self.units) @ kept) + self.fixed)

    def plus(self, other: _Form, factor: float, of_other: float) -> _Form:
        """Return the sum of so many times this form and another."""
        return _Form(
            factor * self.pairs + of_other * other.pairs,
            factor * self.units + of_other * other.units,
            factor * self.fixed + of_other * other.fixed,
        )

    def slopes(self, kept: np.ndarray) -> np.ndarray:
        """Return how much one more unit of each group adds."""
        slopes: np.ndarray = self.pairs @ kept + kept @ self.pairs + self.units
        return slopes


def unread_inputs(graph: ChannelGraph, blocks: Collection[str]) -> dict[str, list[int]]:
    """Return layers with their inputs that nothing makes any more once inner blocks are gone."""
    unread: dict[str, list[int]] = {}
    for block in graph.blocks if blocks else ():
        if block.reader and block.path in blocks and not is_inside(block.reader, blocks):
            unread.setdefault(block.reader, []).extend(block.channels)
    return unread


class CostModel:
    """The cost of a network as a function of how many units of each channel group are kept.

    Each layer's width is linear in the kept units and each layer's cost is a product of two widths. So an amount of the
    whole network is a quadratic form, and one evaluation is one small matrix-vector product.

    Args:
        graph: The network's channel groups.
        latency: What has been measured of the network; without it there are no seconds.
        without: Paths of inner blocks that are gone.
    """

    def __init__(self, graph: ChannelGraph, latency: LatencyModel | None = None, without: Collection[str] = ()) -> None:
        layers, unread = list(graph.layers.values()), unread_inputs(graph, without)
        stays = np.array([not is_inside(layer.path, without) for layer in layers], dtype=float)
        row = {layer.path: i for i, layer in enumerate(layers)}
        self.widths = np.array([g.width for g in graph.groups], dtype=np.int64)
        """Units of each group before the cut."""
        out, inp = (np.zeros((len(layers), len(graph.groups))) for _ in range(2))
        for g, group in enumerate(graph.groups):
            for (path, side), table in group.members.items():
                gone = np.isin(table[0], unread[path]).sum() if side == "in" and path in unread else 0
                (out if side == "out" else inp)[row[path], g] += (table.shape[1] - gone) * stays[row[path]]
        self._out, self._in = out, inp
        self._fixed_out = stays * [layer.out for layer in layers] - out @ self.widths
        reads_in = [layer.inp - len(unread.get(layer.path, ())) for layer in layers]
        self._fixed_in = stays * reads_in - inp @ self.widths
        reads_all = np.array([layer.groups == 1 for layer in layers])
        per_group = np.array([layer.inp / layer.groups for layer in layers])  # a group is removed or kept whole
        reads, fixed_reads = inp * reads_all[:, None], np.where(reads_all, self._fixed_in, per_group)

        def form(per_pair: np.ndarray, per_out: np.ndarray | float, units: np.ndarray | float, fixed: float) -> _Form:
            """Add up what a pair of channels, and an output channel, of each layer amounts to."""
            alone = per_pair * fixed_reads + per_out
            return _Form(
                pairs=(out * per_pair[:, None]).T @ reads,
                units=alone @ out + (per_pair * self._fixed_out) @ reads + units,
                fixed=float(alone @ self._fixed_out) + fixed,
            )

        kernel, params, buffers = np.array(
            [(layer.kernel, layer.params_per_out, layer.buffers_per_out) for layer in layers], dtype=float
        ).T
        applied = np.array([layer.positions * layer.deployed for layer in layers])
        self._forms = {
            MACS: form(kernel * applied, 0.0, *self._products(graph, without)),
            PARAMS: form(kernel, params, 0.0, graph.other_params),
            BYTES: form(FP16 * kernel, FP16 * (params + buffers), 0.0, FP16 * graph.other_params + graph.other_bytes),
        }
        deployed = np.array([layer.deployed * (layer.kernel > 0) for layer in layers], dtype=float)
        self._deployed = form(kernel * deployed, 0.0, 0.0, 0.0), form(0.0 * kernel, deployed, 0.0, 0.0)
        activations = graph.activations or Activations(np.zeros((1, len(layers))), np.zeros(1))
        self._held = activations.per_channel @ out
        """Values of feature maps per unit of each group, shape (moments, groups)."""
        self._fixed_held = activations.per_channel @ self._fixed_out + activations.fixed
        self._latency = latency
        self._work = Workload(graph) if latency else None

    @cached_property
    def present(self) -> np.ndarray:
        """Whether each group has channels outside of the blocks that are gone, shape (groups,)."""
        present: np.ndarray = np.logical_or.reduce([*self._out, *self._in])
        return present

    def _products(self, graph: ChannelGraph, without: Collection[str]) -> tuple[np.ndarray, float]:
        per_unit, fixed = np.zeros(len(graph.groups)), float(graph.other_macs)
        for product in (p for p in graph.products if not is_inside(p.path, without)):
            fixed += product.macs_per_channel * len(product.indices)
            for g, group in enumerate(graph.groups):
                table = group.members.get((product.layer, "out"))
                if table is not None:
                    inside = product.macs_per_channel * np.isin(table, product.indices).sum() / group.width
                    per_unit[g] += inside
                    fixed -= inside * group.width
        return per_unit, fixed

    def _form_of(self, quantity: str) -> _Form:
        """Return a quantity as a quadratic form; of a file without what no width changes, of which its format knows."""
        if quantity not in self._forms:
            (weights, channels), (weight, channel) = self._deployed, bytes_per(form_of_file(quantity))
            self._forms[quantity] = weights.plus(channels, weight, channel)
        return self._forms[quantity]

    def macs(self, kept: Sequence[int] | np.ndarray | None = None) -> int:
        """Return multiply-adds for one image, with ``kept`` units per group (default: all)."""
        return self._forms[MACS].at(self._units(kept))

    def params(self, kept: Sequence[int] | np.ndarray | None = None) -> int:
        """Return the number of parameters, with ``kept`` units per group (default: all)."""
        return self._forms[PARAMS].at(self._units(kept))

    def bytes(self, kept: Sequence[int] | np.ndarray | None = None) -> int:
        """Return the bytes of an FP16 checkpoint's tensors, with ``kept`` units per group (default: all)."""
        return self._forms[BYTES].at(self._units(kept))

    def seconds(self, kept: Sequence[int] | np.ndarray | None = None) -> float:
        """Return the predicted seconds for one image, with ``kept`` units per group (default: all).

        Raises:
            UnsupportedError: If nothing has been measured of the network.
        """
        latency, work = self._measured
        return latency.seconds(work, *self.widths_of(self._units(kept)))

    def _units(self, kept: Sequence[int] | np.ndarray | None) -> np.ndarray:
        return np.asarray(self.widths if kept is None else kept, dtype=np.float64)  # what BLAS multiplies

    def widths_of(self, units: np.ndarray) -> np.ndarray:
        """Return the widths of all layers, shape (2, layers), outputs and inputs, with so many units per group."""
        return np.stack([self._fixed_out + self._out @ units, self._fixed_in + self._in @ units])

    @property
    def _measured(self) -> tuple[LatencyModel, Workload]:
        if self._latency is None or self._work is None:
            raise UnsupportedError("a latency target needs latencies that were measured: give runtime=onnx or another.")
        return self._latency, self._work

    def dense(self, quantity: str) -> float:
        """Return the amount of one of `targets.QUANTITIES` before any cut; seconds as they were measured."""
        return self._measured[0].dense if quantity == LATENCY else self.amount(quantity)

    def amount(self, quantity: str, kept: Sequence[int] | np.ndarray | None = None) -> float:
        """Return the amount of one of `targets.QUANTITIES`, with ``kept`` units per group (default: all)."""
        if quantity in RAM:
            return RAM[quantity] * round(float(self._moments(self._units(kept)).max()))
        return self.seconds(kept) if quantity == LATENCY else self._form_of(quantity).at(self._units(kept))

    def _moments(self, units: np.ndarray) -> np.ndarray:
        """Return the values of feature maps that are held at each moment."""
        moments: np.ndarray = self._held @ units + self._fixed_held
        return moments

    def savings(self, quantity: str, kept: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return per group how much of a quantity one unit less saves, with ``kept`` units per group."""
        units = self._units(kept)
        if quantity in RAM:  # moments close to the largest come next, so they count nearly as much
            moments = self._moments(units)
            weights = (moments / moments.max()) ** NEARLY
            return RAM[quantity] / weights.sum() * (weights @ self._held)
        if quantity != LATENCY:
            return self._form_of(quantity).slopes(units)
        latency, work = self._measured
        by_out, by_in = latency.slopes(work, *self.widths_of(units))
        slopes: np.ndarray = by_out @ self._out + by_in @ self._in
        return slopes
