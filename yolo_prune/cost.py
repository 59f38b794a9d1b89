"""Multiply-adds, parameters and bytes of any set of widths, without building the network.

Multiply-adds counted are convolutions, linear layers and matrix products, for one image of the graph's size, in the
network as it is deployed: ``fuse()`` drops one of the two branches of an end-to-end head and merges branches of
re-parameterised convolutions, so only one counts (the parameters of all count, since the checkpoint holds them).
Ultralytics prints GFLOPs, which are two per multiply-add. Bytes are those of the tensors of a checkpoint as Ultralytics
ships it, in FP16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from yolo_prune.channels import ChannelGraph
from yolo_prune.errors import UnsupportedError
from yolo_prune.latency import LatencyTable
from yolo_prune.targets import BYTES, LATENCY, MACS, PARAMS

FP16 = 2
"""Bytes of a number in half precision."""


class CostModel:
    """The cost of a network as a function of how many units of each channel group are kept.

    Each layer's width is linear in the kept units and each layer's cost is a product of two widths, so one evaluation
    is two small matrix-vector products.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        layers = list(graph.layers.values())
        row = {layer.path: i for i, layer in enumerate(layers)}
        self.widths = np.array([g.width for g in graph.groups], dtype=np.int64)
        """Units of each group before the cut."""
        out, inp = (np.zeros((len(layers), len(graph.groups)), dtype=np.int64) for _ in range(2))
        for g, group in enumerate(graph.groups):
            for (path, side), table in group.members.items():
                (out if side == "out" else inp)[row[path], g] += table.shape[1]
        self._out, self._in = out, inp
        self._fixed_out = np.array([layer.out for layer in layers]) - out @ self.widths
        self._fixed_in = np.array([layer.inp for layer in layers]) - inp @ self.widths
        self._per_out = np.array([layer.inp / layer.groups if layer.groups > 1 else 0 for layer in layers])
        self._reads_all = np.array([float(layer.groups == 1) for layer in layers])
        self._kernel = np.array([layer.kernel for layer in layers], dtype=np.float64)
        self._positions = np.array([layer.positions * layer.deployed for layer in layers], dtype=np.float64)
        self._other_params = graph.other_params
        self._params_per_out = np.array([layer.params_per_out for layer in layers], dtype=np.float64)
        self._buffers_per_out = np.array([layer.buffers_per_out for layer in layers], dtype=np.float64)
        self._other_bytes = graph.other_bytes
        self._product_macs, self._fixed_product_macs = self._products(graph)
        self._latency = graph.latency
        self._timed = np.array([row[path] for path in graph.latency.layers] if graph.latency else [], dtype=np.int64)
        self._amounts: dict[str, Callable[[Sequence[int] | np.ndarray | None], float]] = {
            **{MACS: self.macs, PARAMS: self.params, BYTES: self.bytes},
            LATENCY: self.seconds,
        }
        per_out, nothing = self._params_per_out, np.zeros(len(graph.groups))
        self._rates = {  # of each pair of channels of a layer, of each output channel, of each unit
            MACS: (self._kernel * self._positions, np.zeros(len(layers)), self._product_macs),
            PARAMS: (self._kernel, per_out, nothing),
            BYTES: (FP16 * self._kernel, FP16 * (per_out + self._buffers_per_out), nothing),
        }

    def _products(self, graph: ChannelGraph) -> tuple[np.ndarray, float]:
        per_unit, fixed = np.zeros(len(graph.groups)), float(graph.other_macs)
        for product in graph.products:
            fixed += product.macs_per_channel * len(product.indices)
            for g, group in enumerate(graph.groups):
                table = group.members.get((product.layer, "out"))
                if table is not None:
                    inside = product.macs_per_channel * np.isin(table, product.indices).sum() / group.width
                    per_unit[g] += inside
                    fixed -= inside * group.width
        return per_unit, fixed

    def _pairs(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each layer's output width and its number of (input, output) channel pairs."""
        out = self._fixed_out + self._out @ kept
        return out, out * self._per_output(kept)

    def _per_output(self, kept: np.ndarray) -> np.ndarray:
        """Return how many input channels each output channel of a layer reads."""
        inputs: np.ndarray = self._per_out + self._reads_all * (self._fixed_in + self._in @ kept)
        return inputs

    def macs(self, kept: Sequence[int] | np.ndarray | None = None) -> int:
        """Return multiply-adds for one image, with ``kept`` units per group (default: all)."""
        units = self.widths if kept is None else np.asarray(kept)
        pairs = self._pairs(units)[1]
        return round(
            float((self._kernel * self._positions) @ pairs + self._product_macs @ units + self._fixed_product_macs)
        )

    def params(self, kept: Sequence[int] | np.ndarray | None = None) -> int:
        """Return the number of parameters, with ``kept`` units per group (default: all)."""
        out, pairs = self._pairs(self.widths if kept is None else np.asarray(kept))
        return round(float(self._kernel @ pairs + self._params_per_out @ out)) + self._other_params

    def bytes(self, kept: Sequence[int] | np.ndarray | None = None) -> int:
        """Return the bytes of an FP16 checkpoint's tensors, with ``kept`` units per group (default: all)."""
        out, pairs = self._pairs(self.widths if kept is None else np.asarray(kept))
        values = self._kernel @ pairs + (self._params_per_out + self._buffers_per_out) @ out
        return FP16 * (round(float(values)) + self._other_params) + self._other_bytes

    def seconds(self, kept: Sequence[int] | np.ndarray | None = None) -> float:
        """Return the predicted seconds for one image, with ``kept`` units per group (default: all).

        Raises:
            UnsupportedError: If nothing has been measured of the network.
        """
        return self._measured.seconds(*self._timed_widths(self.widths if kept is None else np.asarray(kept)))

    def _timed_widths(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return output and input widths of the layers that have been measured."""
        out, inp = self._fixed_out + self._out @ units, self._fixed_in + self._in @ units
        return out[self._timed], inp[self._timed]

    @property
    def _measured(self) -> LatencyTable:
        if self._latency is None:
            raise UnsupportedError("a latency target needs latencies that were measured: give runtime=onnx or another.")
        return self._latency

    def amount(self, quantity: str, kept: Sequence[int] | np.ndarray | None = None) -> float:
        """Return what the network has of one of `targets.QUANTITIES`, with ``kept`` units per group (default: all)."""
        return self._amounts[quantity](kept)

    def savings(self, quantity: str, kept: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return per group how much of a quantity one unit less saves, with ``kept`` units per group."""
        units = np.asarray(kept)
        if quantity == LATENCY:
            by_out, by_in = self._measured.slopes(*self._timed_widths(units))
            slopes: np.ndarray = by_out @ self._out[self._timed] + by_in @ self._in[self._timed]
            return slopes
        per_pair, per_out, per_unit = self._rates[quantity]
        out = self._fixed_out + self._out @ units
        savings: np.ndarray = (per_pair * self._per_output(units) + per_out) @ self._out
        return savings + (per_pair * out * self._reads_all) @ self._in + per_unit
