"""Remove detection levels, and the rows of a network that only they read; what stays computes the same.

A level is called by the power of two of its stride: P3 has stride 8, P4 16, P5 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules import block, head

from yolo_prune.errors import ConfigError, UnsupportedError, listed
from yolo_prune.surgery.slicing import UndoLog

_FLOOR = 32
"""Ultralytics lets the sides of images be multiples of this at least, whatever the levels are."""


def levels_of(network: nn.Module) -> dict[int, int]:
    """Return the levels of a detection head, ``{3: 0, 4: 1, 5: 2}``: number -> place among the maps it reads.

    Raises:
        UnsupportedError: If the network has no head whose levels can be removed.
    """
    rows: Any = network.model
    last = rows[-1]
    kind = type(last).__name__
    if not isinstance(last, head.Detect) or not hasattr(last, "stride"):
        raise UnsupportedError(
            f"drop_levels is for heads that detect at several levels, and a {kind} does not: leave it out."
        )
    if isinstance(last, (head.WorldDetect, head.YOLOEDetect)):
        raise UnsupportedError(f"drop_levels does not work for open-vocabulary heads such as {kind}: leave it out.")
    return {round(float(stride)).bit_length() - 1: i for i, stride in enumerate(last.stride)}


def drop_levels(network: nn.Module, levels: Sequence[int]) -> UndoLog:
    """Remove levels of a network in place, with the rows that only they read.

    The rows that stay are the same modules, in the same order, so that an optimizer or hooks on them still hold. The
    ``model.yaml`` describes what is left.

    Args:
        network: With a ``model.yaml`` as Ultralytics wrote it, not fused.
        levels: Numbers of the levels to remove, e.g. ``(5,)``.

    Returns:
        What was done, which ``undo()`` takes back.

    Raises:
        ConfigError: If the head does not have such a level, or no other.
        UnsupportedError: If levels of this network cannot be removed. In both cases nothing has changed.
    """
    found = levels_of(network)
    if missing := [level for level in levels if level not in found]:
        raise ConfigError(
            f"drop_levels={missing[0]}: this network detects at the levels {listed(found)}; give one of them, or leave "
            "it out if it was removed before."
        )
    kept = [i for level, i in found.items() if level not in levels]
    if not kept:
        asked = ",".join(map(str, levels))
        raise ConfigError(f"drop_levels={asked} would leave no level; keep one of {listed(found)}.")
    _check_others_read(network, levels, min(found))
    undo = UndoLog()
    with undo.or_nothing():
        if len(kept) < len(found):
            _drop(undo, network, kept)
    return undo


def _check_others_read(network: nn.Module, levels: Iterable[int], finest: int) -> None:
    """Raise an UnsupportedError if more than boxes of a level is made of its map."""
    rows: Any = network.model
    last = rows[-1]
    proto = getattr(last, "proto", None)
    if isinstance(proto, block.Proto26):
        raise UnsupportedError(
            "drop_levels: the masks of this network are made of the maps of all levels, and would be others without "
            "one; leave drop_levels out."
        )
    if proto is not None and finest in levels:
        raise UnsupportedError(
            f"drop_levels={finest}: the masks of this network are made of the map of level {finest}; drop a coarser "
            "one, or leave it out."
        )
    coarsest = int(max(last.stride))
    if coarsest > _FLOOR and coarsest.bit_length() - 1 in levels:
        raise UnsupportedError(
            f"drop_levels={coarsest.bit_length() - 1}: Ultralytics reads off this level that the sides of images have "
            f"to be multiples of {coarsest}, as the layers before it still need; drop a finer one, or leave it out."
        )


def _drop(undo: UndoLog, network: nn.Module, kept: Sequence[int]) -> None:
    """Keep these places of the head, and the rows that they read."""
    modules: Any = network.model
    last = modules[-1]
    sources = [_sources(row.f, i) for i, row in enumerate(modules)]
    sources[-1] = [sources[-1][i] for i in kept]
    live = sorted(_ancestors(sources))
    place = {old: new for new, old in enumerate(live)}
    reads = {i: _renumbered(modules[i].f, sources[i], place, i) for i in live}
    undo.set(network, "yaml", _yaml_of_rows(network.yaml, live, reads))
    for i in live:
        undo.set(modules[i], "f", reads[i])
        undo.set(modules[i], "i", place[i])
    undo.set(network._modules, "model", nn.Sequential(*(modules[i] for i in live)).train(modules.training))
    read = {x % place[i] for i in live for x in _as_list(reads[i]) if x != -1}
    undo.set(network, "save", sorted(read))
    _narrow_head(undo, last, kept)
    undo.set(network, "stride", last.stride)
    if hasattr(network, "criterion"):
        undo.set(network, "criterion", None)  # it holds strides


def _narrow_head(undo: UndoLog, last: Any, kept: Sequence[int]) -> None:
    """Keep some levels of every branch of a head."""
    for name, branch in list(last._modules.items()):
        if isinstance(branch, nn.ModuleList) and len(branch) == last.nl:
            undo.set(last._modules, name, nn.ModuleList(branch[i] for i in kept).train(branch.training))
    undo.set(last, "stride", last.stride[list(kept)])
    undo.set(last, "nl", len(kept))
    for name, empty in (("shape", None), ("anchors", torch.empty(0)), ("strides", torch.empty(0))):
        undo.set(last, name, empty)  # they are made anew for each size of image
    undo.set(last, "np", sum(p.numel() for p in last.parameters()))


def _as_list(reads: int | list[int]) -> list[int]:
    return [reads] if isinstance(reads, int) else list(reads)


def _sources(reads: int | list[int], row: int) -> list[int]:
    """Return the rows that a row reads, counted from 0; -1 is the image."""
    return [x if x >= 0 else row + x for x in _as_list(reads)]


def _ancestors(sources: Sequence[Sequence[int]]) -> set[int]:
    """Return the last row, and all that it needs."""
    found: set[int] = set()
    todo = [len(sources) - 1]
    while todo:
        if (row := todo.pop()) >= 0 and row not in found:
            found.add(row)
            todo += sources[row]
    return found


def _renumbered(reads: int | list[int], sources: Sequence[int], place: Mapping[int, int], row: int) -> int | list[int]:
    """Return what a row says that it reads, in the new numbers; the row before it stays -1 where it was."""
    given = _as_list(reads)
    says_before = [x == -1 for x in given] if len(given) == len(sources) else [False] * len(sources)
    new = [
        -1 if before and place.get(source, -1) == place[row] - 1 else place[source]
        for before, source in zip(says_before, sources, strict=True)
    ]
    return new[0] if isinstance(reads, int) else new


def _yaml_of_rows(yaml: Mapping[str, Any], live: Sequence[int], reads: Mapping[int, int | list[int]]) -> dict[str, Any]:
    """Return a ``model.yaml`` with some of its rows."""
    backbone = len(yaml["backbone"])
    rows = [*yaml["backbone"], *yaml["head"]]
    new = {i: [reads[i], *rows[i][1:]] for i in live}
    return {
        **yaml,
        "backbone": [row for i, row in new.items() if i < backbone],
        "head": [row for i, row in new.items() if i >= backbone],
    }
