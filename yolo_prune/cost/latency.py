"""How long a network of any widths takes for one image, as a few weights that were fitted to measured networks.

What a network computes is summed up in `FEATURES`: multiply-adds by kind of layer, values that layers make and read.
The seconds of each of them, and of what no width changes, are least squares over a dozen or more cut networks that were
timed as a whole, where the model will run (see `deploy.samples`). A runtime computes several channels at once, so for a
part of the time widths between two multiples of that number cost as the next one; which number it is, and how much of
the time, those networks tell as well. The dense network, whose widths a runtime may like better than any others, is
known as it was measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from yolo_prune.errors import PlanError, describe_error, short_repr
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.utils.files import atomic_write

FEATURES = ("convolutions", "pointwise", "stepped", "stepped pointwise", "grouped", "made", "read", "layers", "fixed")
"""Multiply-adds of convolutions with more than one tap; of others, and of products of activations; both once more, with
widths rounded up to what is computed at once; of grouped convolutions; values that layers make, and read; layers, of
which removed blocks have none; and 1."""
STAIRS = (1, 8, 16, 32)
"""Channels that may be computed at once."""
EXACT = 1e-12
"""Mean squared error, relative to times, below which predictions are right."""
LEAST = 0.05
"""Share of its dense time that no network is predicted to be below; the weights come from such that keep more."""

FARTHEST = 10.0
"""Times as long, or as short, as predicted that a network takes at most."""


class Workload:
    """What the layers of a network compute once it is deployed, as a function of their widths.

    Widths are arrays in the order of ``graph.layers``.

    Args:
        graph: Channel groups of the dense network.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        layers = list(graph.layers.values())
        self.dense = np.array([[layer.out for layer in layers], [layer.inp for layer in layers]], dtype=float)
        """Widths of the dense network, shape (2, layers): outputs, inputs."""
        self._positions = np.array([float(layer.positions * layer.deployed * (layer.kernel > 0)) for layer in layers])
        self._macs = self._positions * [layer.kernel for layer in layers]
        self._is_grouped = np.array([layer.groups > 1 for layer in layers])
        self._per_group = np.array([layer.inp / layer.groups for layer in layers])  # a group is removed or kept whole
        wide = np.array([layer.kernel > 1 for layer in layers])
        self._kinds = np.stack([wide & ~self._is_grouped, ~wide & ~self._is_grouped, self._is_grouped]).astype(float)
        self._products = np.zeros(len(layers))
        row = {layer.path: i for i, layer in enumerate(layers)}
        for product in graph.products:
            per_output = product.macs_per_channel * len(product.indices) / graph.layers[product.layer].out
            self._products[row[product.layer]] += per_output

    def features(self, out: np.ndarray, inp: np.ndarray, stairs: int = 1) -> np.ndarray:
        """Return the amount of each of `FEATURES`, where ``stairs`` channels are computed at once."""
        *exact, grouped = self._macs_by_kind(out, inp)
        rounded = np.ceil(np.stack([out, inp]) / stairs) * stairs
        stepped = self._macs_by_kind(*rounded)[:2] * (stairs > 1)
        layers = np.count_nonzero(self._positions * out)
        return np.array([*exact, *stepped, grouped, self._positions @ out, self._positions @ inp, layers, 1.0])

    def _macs_by_kind(self, out: np.ndarray, inp: np.ndarray) -> np.ndarray:
        by_kind: np.ndarray = self._kinds @ (self._macs * out * np.where(self._is_grouped, self._per_group, inp))
        by_kind[1] += self._products @ out
        return by_kind

    def slopes(self, out: np.ndarray, inp: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return per layer the seconds of an output more, and of an input more, without stairs."""
        wide, pointwise, stepped, stepped_pointwise, grouped, made, read, *_ = weights
        per_kind = np.array([wide + stepped, pointwise + stepped_pointwise, grouped])
        per_mac = self._macs * (per_kind @ self._kinds)
        by_out = per_mac * np.where(self._is_grouped, self._per_group, inp)
        by_out = by_out + per_kind[1] * self._products + made * self._positions
        by_in = per_mac * np.where(self._is_grouped, 0.0, out) + read * self._positions
        return by_out, by_in


@dataclass(frozen=True)
class LatencyModel:
    """Latency of one network, cut to any widths, in one runtime on one machine.

    Attributes:
        dense: Seconds of the network before any cut, as measured.
        weights: Seconds per amount of each of `FEATURES`; only what is fixed may be below 0.
        stairs: Channels that are computed at once.
        multiple: Plans for a latency keep multiples of it, or whole fractions.
        errors: By how much predictions were off, as shares, of networks that were timed and not fitted.
        corrections: Seconds of finished networks, (predicted, measured) each, by the predicted ones: predictions are
            multiplied by measured over predicted of these, in between by what lies in between.
        network: Digest of the dense network and its image size (see `digest_of`).
        where: Runtime, version, device, threads and image size.
    """

    dense: float
    weights: tuple[float, ...] = (0.0,) * len(FEATURES)
    stairs: int = 1
    multiple: int = 8
    errors: tuple[float, ...] = ()
    corrections: tuple[tuple[float, float], ...] = ()
    network: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, work: Workload, out: np.ndarray, inp: np.ndarray) -> float:
        """Return the seconds of the network with these widths."""
        return self.seconds_of(work.features(out, inp, self.stairs))

    def seconds_of(self, features: np.ndarray) -> float:
        """Return the seconds of a network that computes so much of each of `FEATURES`."""
        predicted = self._fitted(features)
        return predicted * self._correction(predicted)

    def slopes(self, work: Workload, out: np.ndarray, inp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return per layer the seconds that an output, and an input, more takes."""
        weights = np.array(self.weights)
        if self.corrections:
            weights *= self._correction(self._fitted(work.features(out, inp, self.stairs)))
        return work.slopes(out, inp, weights)

    def scaled(self, factor: float) -> LatencyModel:
        """Return a model by which what is cut takes so many times as long."""
        weights = tuple(factor * weight for weight in self.weights)
        return replace(self, weights=weights, corrections=tuple((factor * p, factor * m) for p, m in self.corrections))

    def corrected(self, measured: Sequence[tuple[float, float]]) -> LatencyModel:
        """Return a model that is right of finished networks too: (predicted, measured) seconds of each."""
        return replace(self, corrections=tuple(sorted(measured)))

    def _fitted(self, features: np.ndarray) -> float:
        return max(float(features @ self.weights), LEAST * self.dense)

    def _correction(self, predicted: float) -> float:
        """Return by how much a prediction is multiplied."""
        if not self.corrections:
            return 1.0
        known, measured = np.array(self.corrections).T
        return float(np.interp(predicted, known, measured / known))

    def save(self, path: Path) -> None:
        """Write it as JSON; a reader never sees half of it."""
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LatencyModel:
        """Read what ``save`` wrote.

        Raises:
            PlanError: If it is missing or damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            stairs = int(data["stairs"])
            model = cls(
                dense=float(data["dense"]),
                weights=_of_earlier(tuple(map(float, data["weights"])), stairs),
                stairs=stairs,
                multiple=int(data["multiple"]),
                errors=tuple(map(float, data["errors"])),
                corrections=tuple(sorted((float(p), float(m)) for p, m in data.get("corrections", ()))),
                network=str(data["network"]),
                where=dict(data["where"]),
            )
            model.check()
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as e:
            raise PlanError(f"the latencies {path} cannot be read ({describe_error(e)}); start the run anew.") from e
        return model

    def check(self) -> None:
        """Raise a ValueError unless times can be predicted from it."""
        if len(self.weights) != len(FEATURES):
            raise ValueError(f"{len(self.weights)} weights, not {len(FEATURES)}")
        if self.multiple < 1 or self.stairs < 1:
            raise ValueError(f"no widths are multiples of {min(self.multiple, self.stairs)}")
        amounts = (self.dense, *self.weights[:-1], abs(self.weights[-1]), *self.errors)
        if wrong := [amount for amount in amounts if not 0 <= amount < np.inf]:
            raise ValueError(f"{short_repr(wrong[0])} is no time")
        for predicted, measured in self.corrections:
            if not (0 < predicted < np.inf and predicted / FARTHEST < measured < predicted * FARTHEST):
                raise ValueError(f"{short_repr(measured)} s measured, where {short_repr(predicted)} s were predicted")


def _of_earlier(weights: tuple[float, ...], stairs: int) -> tuple[float, ...]:
    """Return weights of `FEATURES`; earlier versions rounded all multiply-adds up, and first did not count layers."""
    if len(weights) not in {6, 7}:
        return weights
    wide, pointwise, grouped, made, read, *layers, fixed = weights
    macs = (0.0, 0.0, wide, pointwise) if stairs > 1 else (wide, pointwise, 0.0, 0.0)
    return (*macs, grouped, made, read, *(layers or [0.0]), fixed)


def fit(work: Workload, dense: float, widths: Sequence[np.ndarray], seconds: Sequence[float]) -> LatencyModel:
    """Return the latency model that tells the times of cut networks best.

    Args:
        work: What the dense network computes.
        dense: Its seconds.
        widths: Of each cut network, shape (2, layers): outputs, inputs.
        seconds: Of each of them.
    """
    times = np.array(seconds)
    tables = {
        stairs: np.array([work.features(out, inp, stairs) for out, inp in widths])
        / times[:, None]  # errors relative to times
        for stairs in STAIRS
    }
    stairs = min(STAIRS, key=lambda stairs: max(_left_out_error(tables[stairs]), EXACT))  # the first of several
    weights = least_squares(tables[stairs], np.ones(len(times)))
    return LatencyModel(dense, tuple(weights), stairs, max(stairs, STAIRS[1]))


def digest_of(graph: ChannelGraph) -> str:
    """Return a digest of a network's layers and its image size."""
    text = json.dumps([sorted(map(str, graph.layers.values())), list(graph.imgsz)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def least_squares(features: np.ndarray, target: np.ndarray) -> list[float]:
    """Return the weights of a few features, of which none but the last may be below 0, by trying every set of them.

    Args:
        features: Shape (samples, features), each column of them 0 or above.
        target: Shape (samples,).
    """
    best, least = np.zeros(features.shape[1]), np.inf
    for n in range(1, min(features.shape) + 1):
        for some in map(list, combinations(np.flatnonzero(features.any(0)), n)):
            scale = features[:, some].max(0)
            weights = np.zeros(features.shape[1])
            weights[some] = np.linalg.lstsq(features[:, some] / scale, target, rcond=None)[0] / scale
            error = float(np.square(features @ weights - target).sum())
            if (weights[:-1] >= 0).all() and error < least:
                least, best = error, weights
    return [float(w) for w in best]


def _left_out_error(table: np.ndarray) -> float:
    """Return the mean squared error of each row's prediction from the others; every target is 1."""
    errors = []
    for i in range(len(table)):
        others = np.delete(table, i, axis=0)
        errors.append(float(table[i] @ least_squares(others, np.ones(len(others)))) - 1)
    return float(np.square(errors).mean())
