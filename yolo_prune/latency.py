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
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.errors import PlanError, seen, told
from yolo_prune.files import replacing

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
    """What has been measured of one network in one runtime on one machine.

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
        with replacing(path) as draft:
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
            raise PlanError(f"the latency table {path} cannot be read ({told(e)}); start the run anew.") from e
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
                    raise ValueError(f"the widths {seen(marks)} of {path} do not rise")
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

    def seconds(self, out: np.ndarray, inp: np.ndarray) -> np.ndarray:
        """Return the time of each layer alone; widths cost as the next multiple of `SIMD`."""
        corners, a, b, _, _ = self._cell(*(np.ceil(widths / SIMD) * SIMD for widths in (out, inp)))
        (t00, t01), (t10, t11) = corners
        seconds: np.ndarray = (1 - a) * ((1 - b) * t00 + b * t01) + a * ((1 - b) * t10 + b * t11)
        return seconds

    def slopes(self, out: np.ndarray, inp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what one output and one input more takes of each layer, without the stairs."""
        corners, a, b, rows, columns = self._cell(np.asarray(out, dtype=float), inp)
        (t00, t01), (t10, t11) = corners
        by_out = ((1 - b) * (t10 - t00) + b * (t11 - t01)) / rows
        by_in = ((1 - a) * (t01 - t00) + a * (t11 - t10)) / columns
        return by_out, by_in

    def _cell(self, out: np.ndarray, inp: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the four corners around each pair of widths, where in between it lies, and the size of the cell."""
        i, i1, a, rows = self._between(self._outs, out)
        j, j1, b, columns = self._between(self._ins, inp)
        at, t = self._index, self._seconds
        return ((t[at, i, j], t[at, i, j1]), (t[at, i1, j], t[at, i1, j1])), a, b, rows, columns

    def _between(self, marks: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the marks below and above each width, the share of the way between them, and their distance."""
        last = np.isfinite(marks).sum(1) - 1
        low = np.clip((marks <= np.asarray(widths)[:, None]).sum(1) - 1, 0, np.maximum(last - 1, 0))
        high = np.minimum(low + 1, last)
        distance = np.where(high > low, marks[self._index, high] - marks[self._index, low], np.inf)
        return low, high, np.clip((widths - marks[self._index, low]) / distance, 0, 1), distance
