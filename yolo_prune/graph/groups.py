"""Channel groups as plain data: which channels of which layers can only be removed together.

The words of torch-pruning's dependency graph (Fang et al. 2023, "DepGraph", section 3) in arrays, without a module in
sight. `graph` makes these; `importance`, `cost` and `plan` read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from yolo_prune.blocks import InnerBlock

FP16 = 2
"""Bytes of a number in half precision, as in a checkpoint."""
Side = str
"""``"out"`` for the channels that a layer makes, ``"in"`` for those that it takes."""


def are_multiples(widths: Iterable[int]) -> bool:
    """Whether all widths are multiples of the smallest: what Ultralytics takes for granted of the maps of a head."""
    widths = list(widths)
    return all(width % min(widths) == 0 for width in widths)


@dataclass(frozen=True)
class Layer:
    """One layer with channels, as it is now.

    Attributes:
        path: Name in ``model.named_modules()``.
        kind: Class name, e.g. ``Conv2d``.
        out: Output channels.
        inp: Input channels; 0 for a layer that acts on each channel alone, such as a normalisation.
        groups: Convolution groups; equal to ``out`` for a depthwise convolution. Groups are removed or kept whole.
        kernel: Weights per (input, output) channel pair; 0 for a layer without such weights.
        positions: How often the weights are applied for one image at the graph's ``imgsz``.
        params_per_out: Parameters per output channel beside the kernel: a bias, or a normalisation's scale and shift.
        buffers_per_out: Values per output channel that are no parameters: a normalisation's running mean and variance.
        deployed: False for layers that a deployed network drops: one of the two branches of an end-to-end head.
    """

    path: str
    kind: str
    out: int
    inp: int
    groups: int = 1
    kernel: int = 0
    positions: int = 0
    params_per_out: int = 0
    buffers_per_out: int = 0
    deployed: bool = True

    @property
    def sides(self) -> dict[Side, int]:
        """Width per side."""
        return {"out": self.out, "in": self.inp} if self.inp else {"out": self.out}


@dataclass(frozen=True)
class Product:
    """A product of two activations (attention): multiply-adds that no layer's weights show.

    Attributes:
        path: Module that computes it.
        layer: Layer whose output channels it runs over.
        indices: Those channels, before any cut.
        macs_per_channel: Multiply-adds per channel for one image.
    """

    path: str
    layer: str
    indices: tuple[int, ...]
    macs_per_channel: int


@dataclass(frozen=True)
class ChannelGroup:
    """Units of channels that are alike: each unit is removed from every member, or kept in every member.

    Attributes:
        name: The layer that makes these channels (the first of them in the order of the network).
        members: (layer path, side) -> array of shape (width, k): row u holds the k channels of unit u in that member.
        locked: Why no unit can be removed, or None.
    """

    name: str
    members: dict[tuple[str, Side], np.ndarray]
    locked: str | None = None

    @property
    def width(self) -> int:
        """Number of units."""
        return len(next(iter(self.members.values())))


@dataclass(frozen=True)
class Bundle:
    """Groups that must shrink in step, e.g. the two halves of a chunked convolution, or the heads of an attention.

    Attributes:
        groups: Indices into ``ChannelGraph.groups``.
        per_step: How many units of each group one step removes.
        steps: Number of steps until nothing is left.
        locked: Why no step can be taken, or None.
        narrow: Whether widths are rounded for the narrowest group, not for the widest.
    """

    groups: tuple[int, ...]
    per_step: tuple[int, ...]
    steps: int
    locked: str | None = None
    narrow: bool = False

    @property
    def units_per_step(self) -> int:
        """Units that one step removes of the group that is rounded."""
        return min(self.per_step) if self.narrow else max(self.per_step)


@dataclass(frozen=True)
class Activations:
    """Values that an inference holds at its moments, in terms of the layers' output channels.

    Attributes:
        per_channel: Values per output channel of each layer, shape (moments, layers).
        fixed: Values that no width changes, shape (moments,).
    """

    per_channel: np.ndarray
    fixed: np.ndarray


@dataclass(frozen=True)
class ChannelGraph:
    """All channel groups of one network, with what is needed to count its cost.

    Attributes:
        imgsz: Height and width of the image for which positions were counted, in pixels.
        layers: Layer path -> Layer, in the order of the network.
        products: Products of activations.
        groups: Channel groups; every unit of every layer that can be traced is in exactly one.
        bundles: A partition of the groups.
        locked_blocks: Path of a block -> why nothing in it was traced, so that its widths stay.
        activations: What an inference of the deployed network holds in memory, for one image.
        other_macs: Multiply-adds for one image that belong neither to a layer nor to a product, and never change.
        other_params: Parameters that belong to no layer, such as embeddings and layer normalisations.
        other_bytes: Bytes of an FP16 checkpoint's tensors beside parameters and ``buffers_per_out``, such as counters.
        blocks: Inner blocks that can be removed and leave the channel groups as they are, in the order of the network.
    """

    imgsz: tuple[int, int]
    layers: dict[str, Layer]
    groups: tuple[ChannelGroup, ...]
    bundles: tuple[Bundle, ...]
    products: tuple[Product, ...] = ()
    locked_blocks: dict[str, str] = field(default_factory=dict)
    activations: Activations | None = None
    other_macs: int = 0
    other_params: int = 0
    other_bytes: int = 0
    blocks: tuple[InnerBlock, ...] = ()

    def units(self) -> dict[str, int]:
        """Return the number of units of each group, by a name that it keeps from cut to cut: ``model.0.conv#0``.

        A layer that makes channels of several groups, such as queries and values, has them in the order of the groups.
        """
        numbers: dict[str, int] = {}
        found = {}
        for group in self.groups:
            number = numbers[group.name] = numbers.get(group.name, -1) + 1
            found[f"{group.name}#{number}"] = group.width
        return found

    def locked(self) -> list[dict[str, str]]:
        """Return the locked layers, as the report's ``[{"layer", "why"}]``."""
        groups = {self.groups[i].name: bundle.locked for bundle in self.bundles for i in bundle.groups if bundle.locked}
        return [{"layer": path, "why": why} for path, why in {**groups, **self.locked_blocks}.items()]
