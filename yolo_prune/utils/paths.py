"""Paths of modules in a network, such as ``model.4.m.1``."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Return paths without those that lie inside another of them, sorted."""
    whole = sorted(set(paths))
    return tuple(path for path in whole if not is_inside(path.rpartition(".")[0], whole))


def is_inside(path: str, blocks: Collection[str]) -> bool:
    """Whether a path is one of these blocks or lies inside one."""
    parts = path.split(".")
    return any(".".join(parts[:n]) in blocks for n in range(1, len(parts) + 1))
