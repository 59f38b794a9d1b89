"""Memory of an inference: which feature maps are held at each moment, as a function of the layers' widths.

A map is held from the operation that makes it to the last one that reads it, as the planner of TensorFlow Lite Micro
has it: operations write elsewhere than they read, and SiLU is a sigmoid and a product, so that three maps are held.
Normalisations and ReLU are merged into the layers before them. A part of a map is counted as no copy. So this is the
least that an arena has to hold; what it notes of tensors and operations, weights and code come on top.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from yolo_prune.graph.groups import Activations, Layer

FIXED = ""
"""Stands for what no width changes, where a layer's path stands for what its output channels make."""
MERGED = ("batch_norm", "clone", "dropout", "hardtanh", "relu")
"""Parts of names of operations that are merged into the layer before, or do nothing."""
SILU = "silu"
Amount = dict[str, float]
"""Layer path -> values per output channel of that layer; `FIXED` -> values."""


@dataclass(frozen=True)
class _Operation:
    """One operation of a forward pass.

    Attributes:
        name: What it does.
        module: Path of the innermost module.
        reads: Tensors with data that it takes.
        makes: Tensors that it returns; of a pooling, the second are indices.
    """

    name: str
    module: str
    reads: list[torch.Tensor]
    makes: list[torch.Tensor]


class Recorder(TorchDispatchMode):
    """Records the operations on what is computed from an image.

    Args:
        image: Shape (1, C, H, W).
        module: Returns the path of the module that is running.
    """

    def __init__(self, image: torch.Tensor, module: Callable[[], str]) -> None:
        super().__init__()
        self.image, self._module = image, module
        self.operations: list[_Operation] = []
        self._computed = {_key(image)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record it if it reads something that is computed from the image."""
        result = func(*args, **(kwargs or {}))
        reads = [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t) and _key(t) in self._computed]
        if reads:
            makes = [t for t in tree_leaves(result) if torch.is_tensor(t)]
            self._computed.update(map(_key, makes))
            self.operations.append(_Operation(func.overloadpacket.__name__, self._module(), reads, makes))
        return result


@dataclass
class _Buffer:
    """Memory that holds a map from one operation to another."""

    amount: Amount
    values: int
    last: int


def activations(recorder: Recorder, layers: Mapping[str, Layer], dropped: Iterable[str]) -> Activations:
    """Return what an inference holds at each moment.

    Args:
        recorder: Has seen a forward pass.
        layers: Those of the network.
        dropped: Prefixes of paths that a deployed network does without.
    """
    idle = tuple(dropped)
    operations = [o for o in recorder.operations if not (idle and f"{o.module}.".startswith(idle))]
    last = {key: i for i, o in enumerate(operations) for key in map(_key, o.reads)}
    end = len(operations) - 1
    image = recorder.image
    start = {FIXED: float(image.numel())}
    buffers = {_key(image): _Buffer(start, image.numel(), last.get(_key(image), end))}
    held: list[tuple[Amount, int, int]] = [(start, 0, buffers[_key(image)].last)]
    for i, operation in enumerate(operations):
        reads = [t for t in operation.reads if _key(t) in buffers]
        if not reads or not operation.makes:
            continue
        made = operation.makes[0]
        until = last.get(_key(made), end)
        is_merged = any(name in operation.name for name in MERGED)
        beside = 1 if SILU in operation.name else 0
        if source := buffers.get(_key(made)):  # a part of it, or written over it, which an arena does not do
            held += [(source.amount, i, i)] * (operation.name.endswith("_") * (not is_merged) + beside)
            continue
        source = buffers[_key(reads[0])]
        if is_merged and source.last == i:
            amount, begin = source.amount, i + 1
        else:
            amount, begin = _amount(operation, made, reads, buffers, layers), i
        buffers[_key(made)] = _Buffer(amount, made.numel(), until)
        held += [(amount, begin, until)] + [(amount, i, i)] * beside
    return _moments(held, end, list(layers))


def _amount(
    operation: _Operation,
    made: torch.Tensor,
    reads: list[torch.Tensor],
    buffers: Mapping[int, _Buffer],
    layers: Mapping[str, Layer],
) -> Amount:
    """Return the values of a new map: a layer's channels, or in proportion to what it is made of."""
    layer = layers.get(operation.module)
    if layer is not None and layer.inp and made.numel() % layer.out == 0:
        return {operation.module: made.numel() / layer.out}
    sources = reads if operation.name in ("cat", "stack") else [max(reads, key=torch.Tensor.numel)]
    total = sum(t.numel() for t in sources)
    amount: Amount = defaultdict(float)
    for source in sources:
        whole = buffers[_key(source)]
        for path, values in whole.amount.items():
            amount[path] += values * source.numel() / whole.values * made.numel() / total
    return dict(amount)


def _moments(held: Iterable[tuple[Amount, int, int]], end: int, paths: list[str]) -> Activations:
    """Add up what is held during each operation, and leave out moments that are below another at all widths."""
    column = {path: i for i, path in enumerate([*paths, FIXED])}
    change = np.zeros((end + 2, len(column)))
    for amount, first, until in held:
        for path, values in amount.items():
            change[first, column[path]] += values
            change[until + 1, column[path]] -= values
    moments = np.unique(change.cumsum(axis=0)[:-1].round(6), axis=0)
    order = np.argsort(-moments.sum(axis=1), kind="stable")
    highest: list[np.ndarray] = []
    for moment in moments[order]:
        if not any((moment <= other).all() for other in highest):
            highest.append(moment)
    table = np.array(highest)
    return Activations(table[:, :-1], table[:, -1])


def _key(tensor: torch.Tensor) -> int:
    """Return a key of a tensor's memory, which its views share."""
    return tensor.untyped_storage()._cdata
