"""How long a network takes for one image, predicted from the times of its layers: plain data, measured elsewhere.

Each layer has a surface: its time at a few widths, linear in between. What lies between the layers (additions,
concatenations, memory) follows what the layers make. Where a layer takes so little time that what calls it alone drowns
it, its multiply-adds tell more. The four weights that turn these into the time of the network come from cut networks
that have been measured as a whole (see `profiling`). The dense network, whose widths a runtime may like better than any
others, is known as it was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.errors import PlanError, describe_error, short_repr
from yolo_prune.utils.files import atomic_write

SIMD = 16
"""Channels that a CPU computes at once in single precision; fewer take as long."""

LEAST = 0.05
"""Share of its dense time that no network is predicted to be below; the weights come from such that keep more."""


@dataclass(frozen=True)
class Surface:
    """Times of one layer.

    Attributes:
        outs: Output widths, ascending.
        ins: Input widths, ascending.
        seconds: One row per output width, one column per input width.
    """

    outs: tuple[int, ...]
    ins: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LatencyTable:
    """Latency measurements of one network in one runtime on one machine.

    Attributes:
        layers: Layer path -> its surface.
        positions: Layer path -> output positions for one image.
        dense: Seconds of the network before any cut, as measured.
        per_layer: Seconds of the network per second of its layers alone.
        per_value: Seconds per value that its layers make.
        per_mac: Seconds per multiply-add, beside what the layers' own times tell.
        fixed: Seconds that no width changes; below 0 where layers alone take longer than in the network, to be called.
        multiple: Plans for a latency keep multiples of it, or whole fractions.
        where: Runtime, version, device, threads and image size, as text.
    """

    layers: Mapping[str, Surface]
    positions: Mapping[str, int]
    dense: float
    per_layer: float = 1.0
    per_value: float = 0.0
    per_mac: float = 0.0
    fixed: float = 0.0
    multiple: int = SIMD
    where: Mapping[str, Any] | None = None

    def features(self, out: Mapping[str, int], inp: Mapping[str, int]) -> tuple[float, float]:
        """Return the seconds of all layers alone, and the values that they make, for widths per layer path."""
        order = list(self.layers)
        outs, ins = (np.array([float(of[path]) for path in order]) for of in (out, inp))
        return float(self._grid.seconds(outs, ins).sum()), float(self._values @ outs)

    def seconds(self, out: np.ndarray, inp: np.ndarray, macs: float) -> float:
        """Return the seconds of the network once it is cut.

        Args:
            out: Output widths of the layers, in the order of ``layers``.
            inp: Their input widths.
            macs: Multiply-adds of the network for one image.
        """
        alone = self._grid.seconds(out, inp).sum()
        values = self._values @ out
        seconds = self.per_layer * alone + self.per_value * values + self.per_mac * macs + self.fixed
        return float(max(seconds, LEAST * self.dense))

    def slopes(self, out: np.ndarray, inp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return per layer the seconds that an output, and an input, more takes, beside its multiply-adds."""
        by_out, by_in = self._grid.slopes(out, inp)
        return self.per_layer * by_out + self.per_value * self._values, self.per_layer * by_in

    def scaled(self, factor: float) -> LatencyTable:
        """Return a table by which what is cut takes so many times as long."""
        weights = {name: factor * getattr(self, name) for name in ("per_layer", "per_value", "per_mac", "fixed")}
        return replace(self, **weights)

    @cached_property
    def _values(self) -> np.ndarray:
        return np.array([float(self.positions[path]) for path in self.layers])

    @cached_property
    def _grid(self) -> _Grid:
        return _Grid(list(self.layers.values()))

    def save(self, path: Path) -> None:
        """Write the table as JSON; a reader never sees half of it."""
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what ``save`` wrote.

        Raises:
            PlanError: If it is missing or damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            layers = {
                str(path): Surface(tuple(s["outs"]), tuple(s["ins"]), tuple(map(tuple, s["seconds"])))
                for path, s in data["layers"].items()
            }
            numbers = {name: float(data[name]) for name in ("per_layer", "per_value", "per_mac", "fixed", "dense")}
            positions = {str(path): int(n) for path, n in data["positions"].items()}
            table = cls(layers, positions, **numbers, multiple=int(data["multiple"]), where=dict(data["where"] or {}))
            table._check()
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as e:
            raise PlanError(
                f"the latency table {path} cannot be read ({describe_error(e)}); start the run anew."
            ) from e
        return table

    def _check(self) -> None:
        """Raise a ValueError unless this is a table that times can be read from."""
        if not self.layers or self.layers.keys() != self.positions.keys():
            raise ValueError("layers and positions name different layers, or none")
        amounts = [self.per_layer, self.per_value, self.per_mac, abs(self.fixed), self.dense, *self.positions.values()]
        for path, s in self.layers.items():
            if np.shape(s.seconds) != (len(s.outs), len(s.ins)):
                raise ValueError(
                    f"{path} has times of the shape {np.shape(s.seconds)}, not {(len(s.outs), len(s.ins))}"
                )
            for marks in (s.outs, s.ins):
                if not marks or sorted(set(marks)) != list(marks):
                    raise ValueError(f"the widths {short_repr(marks)} of {path} do not rise")
            amounts += [*s.outs, *s.ins, *(t for row in s.seconds for t in row)]
        if self.multiple < 1:
            raise ValueError(f"no widths are multiples of {self.multiple}")
        if wrong := [a for a in amounts if not 0 <= a < np.inf]:
            raise ValueError(f"{wrong[0]} is no width or time")


class _Grid:
    """All surfaces in arrays of one size, so that all layers are looked up at once."""

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        rows = max(len(s.outs) for s in surfaces)
        columns = max(len(s.ins) for s in surfaces)
        self._outs, self._ins = np.full((len(surfaces), rows), np.inf), np.full((len(surfaces), columns), np.inf)
        self._seconds = np.zeros((len(surfaces), rows, columns))
        for i, s in enumerate(surfaces):
            self._outs[i, : len(s.outs)], self._ins[i, : len(s.ins)] = s.outs, s.ins
            self._seconds[i, : len(s.outs), : len(s.ins)] = s.seconds
        self._index = np.arange(len(surfaces))
        self._surfaces = surfaces

    def seconds(self, out: np.ndarray, inp: np.ndarray) -> np.ndarray:
        """Return the time of each layer alone; widths cost as the next multiple of `SIMD`."""
        (i, i1, a), (j, j1, b) = (
            self._between(marks, np.ceil(widths / SIMD) * SIMD)
            for marks, widths in ((self._outs, out), (self._ins, inp))
        )
        at, t = self._index, self._seconds
        seconds: np.ndarray = (1 - a) * ((1 - b) * t[at, i, j] + b * t[at, i, j1]) + a * (
            (1 - b) * t[at, i1, j] + b * t[at, i1, j1]
        )
        return seconds

    def slopes(self, out: np.ndarray, inp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds of one more output and one more input of each layer, without stairs and noise."""
        per_pair, per_out, per_in = self._smooth
        return per_out + per_pair * inp, per_in + per_pair * out

    @cached_property
    def _smooth(self) -> np.ndarray:
        return np.array([_smooth(surface) for surface in self._surfaces]).T

    def _between(self, marks: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the marks below and above each width, and the share of the way between them."""
        last = np.isfinite(marks).sum(1) - 1
        low = np.clip((marks <= widths[:, None]).sum(1) - 1, 0, np.maximum(last - 1, 0))
        high = np.minimum(low + 1, last)
        distance = np.where(high > low, marks[self._index, high] - marks[self._index, low], np.inf)
        return low, high, np.clip((widths - marks[self._index, low]) / distance, 0, 1)


def _smooth(surface: Surface) -> tuple[float, float, float]:
    """Return the seconds per pair of widths, per output and per input that tell a layer's times best.

    The difference between two times is mostly noise where a layer takes microseconds, and channels would go where the
    noise was largest.
    """
    outs, ins = (side.ravel() for side in np.meshgrid(surface.outs, surface.ins, indexing="ij"))
    seconds = np.ravel(surface.seconds)
    scale = np.maximum(seconds, 0.01 * seconds.max() or 1.0)  # errors count relative to the time
    out_varies, in_varies = len(surface.outs) > 1, len(surface.ins) > 1  # one width tells no slope
    features = np.c_[outs * ins * (out_varies and in_varies), outs * out_varies, ins * in_varies, np.ones(len(outs))]
    per_pair, per_out, per_in, _ = least_squares(features / scale[:, None], seconds / scale)
    return per_pair, per_out, per_in


def least_squares(features: np.ndarray, target: np.ndarray) -> list[float]:
    """Return the weights of a few features, of which none but the last may be below 0, by trying every set of them.

    Args:
        features: Shape (samples, features), each column of them 0 or above.
        target: Shape (samples,).
    """
    best, least = np.zeros(features.shape[1]), np.inf
    for n in range(1, features.shape[1] + 1):
        for some in map(list, combinations(np.flatnonzero(features.any(0)), n)):
            scale = features[:, some].max(0)
            weights = np.zeros(features.shape[1])
            weights[some] = np.linalg.lstsq(features[:, some] / scale, target, rcond=None)[0] / scale
            error = float(np.square(features @ weights - target).sum())
            if (weights[:-1] >= 0).all() and error < least:
                least, best = error, weights
    return [float(w) for w in best]
