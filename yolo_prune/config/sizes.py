"""Sizes: the targets of several models that one run hands over, and what their files are called."""

from __future__ import annotations

import re
from typing import Any

from yolo_prune.config.targets import ZEROS, Target, canonical, read_targets
from yolo_prune.errors import ConfigError, short_repr


def read_sizes(value: Any) -> tuple[str, ...]:
    """Read the targets of several models, from the largest to the smallest where no network has to tell.

    Args:
        value: A text such as ``0.3,0.5,2 MB``, or a list of numbers and texts; each is one target.

    Returns:
        Each target as it was typed.

    Raises:
        ConfigError: If it is no list of targets, one of them removes nothing, or two have the same file.
    """
    terms = [term.strip() for term in value.strip("[]() ").split(",") if term.strip()] if _is_text(value) else value
    if not isinstance(terms, (list, tuple)):
        raise ConfigError(f"sizes={short_repr(value)} is not a list of targets; give some, e.g. sizes=0.3,0.5,0.7.")
    targets: list[Target] = []
    for term in terms:
        if _is_text(term) and "," in term:
            raise ConfigError(f"sizes: {short_repr(term)} has several limits; a size has one, e.g. 0.5 or 2 MB.")
        found = read_targets(term)
        if not found:
            raise ConfigError(f"sizes: {short_repr(term)} removes nothing; leave it out: dense.pt is the dense model.")
        if found[0].quantity in ZEROS:
            raise ConfigError(
                f"sizes: {short_repr(term)} is of zeros, which one model of a run can have: prune='40%, 60% sparsity'."
            )
        targets += found
    if len({target.quantity for target in targets}) == 1 and len({target.removed is None for target in targets}) == 1:
        targets.sort(key=lambda target: -(target.most or 0) if target.removed is None else target.removed)
    names = [str(target) for target in targets]
    files = [checkpoint_name(name) for name in names]
    if twice := next((name for name, file in zip(names, files, strict=True) if files.count(file) > 1), None):
        raise ConfigError(f"sizes={short_repr(value)} has {twice} twice; leave one of them.")
    return tuple(names)


def target_of(sizes: tuple[str, ...]) -> float | str:
    """Return the target of the smallest model, as an option ``target`` has it."""
    return canonical(read_targets(sizes[-1]))


def checkpoint_name(size: str) -> str:
    """Return the name of a size's checkpoint: ``best-0.3.pt``, ``best-2-MB.pt``, ``best-50pct-params.pt``."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", size.replace("%", "pct")).strip("-.")
    return f"best-{plain}.pt"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
