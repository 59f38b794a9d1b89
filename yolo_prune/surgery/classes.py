"""Keep some classes of a network: the outputs of the others go, and those of the kept ones stay as they are."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from ultralytics.nn.modules import head

from yolo_prune.errors import ConfigError, UnsupportedError, short_repr
from yolo_prune.surgery.slicing import UndoLog

_BRANCHES = ("cv3", "one2one_cv3")


def names_of(names: Mapping[int, str] | Sequence[str]) -> list[str]:
    """Return class names in order; old checkpoints have them as a list."""
    return [str(name) for name in (names.values() if isinstance(names, Mapping) else names)]


def chosen(names: Mapping[int, str] | Sequence[str], asked: Sequence[str], of: str = "this network") -> list[int]:
    """Return the classes that are asked for, counted from 0, in the order of the names.

    Args:
        names: All class names.
        asked: Names, name patterns such as ``*bus``, or numbers as text.
        of: Whose names these are, for messages.

    Raises:
        ConfigError: If there is no such class.
    """
    known = names_of(names)
    found: set[int] = set()
    for text in asked:
        here = {i for i, name in enumerate(known) if name == text}
        here = here or {i for i, name in enumerate(known) if fnmatch.fnmatchcase(name.lower(), text.lower())}
        if not here and text.isdecimal() and int(text) < len(known):
            here = {int(text)}
        if not here:
            near = difflib.get_close_matches(text, known, n=3, cutoff=0.5) or known[:10]
            more = f" and {len(known) - 10} more" if len(near) == 10 < len(known) else ""
            raise ConfigError(
                f"keep_classes: {of} has no class {short_repr(text)}, nor one of that number; it has {len(known)}, "
                f"such as {', '.join(near)}{more}."
            )
        found |= here
    return sorted(found)


def keep_classes(network: nn.Module, classes: Sequence[int]) -> UndoLog:
    """Keep some classes of a network in place, with their weights.

    Args:
        network: With a ``model.yaml`` as Ultralytics wrote it, not fused.
        classes: Classes to keep, counted from 0, in the order that they shall have.

    Returns:
        What was done, which ``undo()`` takes back.

    Raises:
        UnsupportedError: If the classes of this network cannot be told apart; nothing has changed.
    """
    undo = UndoLog()
    if list(classes) == list(range(len(network.names))):
        return undo
    rows: Any = network.model
    with undo.or_nothing():
        _keep(undo, network, rows[-1], classes)
    return undo


def _keep(undo: UndoLog, network: nn.Module, last: Any, classes: Sequence[int]) -> None:
    """Cut what has a row, or a number, for each class."""
    names = names_of(network.names)
    for parent, name in _predictors(last):
        undo.set(parent._modules, name, _rows_of(parent._modules[name], classes))
    undo.set(network, "names", {new: names[old] for new, old in enumerate(classes)})
    undo.set(network, "yaml", {**network.yaml, "nc": len(classes)})
    undo.set(network, "nc", len(classes))
    if "nc" in vars(last):
        undo.set(last, "nc", len(classes))
    if "no" in vars(last):
        undo.set(last, "no", len(classes) + 4 * last.reg_max)
    undo.set(last, "np", sum(p.numel() for p in last.parameters()))
    if (weights := getattr(network, "class_weights", None)) is not None:
        undo.set(network, "class_weights", weights[list(classes)])
    if hasattr(network, "criterion"):
        undo.set(network, "criterion", None)  # it holds the number of classes


def _predictors(last: Any) -> list[tuple[nn.Module, str]]:
    """Return the layers of a head that have an output for each class, as (parent, name in it).

    Raises:
        UnsupportedError: If the head has none, or a prediction needs all classes.
    """
    kind = type(last).__name__
    if isinstance(last, head.Classify):
        return [(last, "linear")]
    if not isinstance(last, head.Detect) or isinstance(last, (head.WorldDetect, head.YOLOEDetect)):
        why = {
            "SemanticSegment": "it gives each position one of all classes",
            "RTDETRDecoder": "its queries are chosen among all classes",
            "Depth": "it predicts no classes",
        }.get(kind, "its classes are given as text: use Ultralytics' set_classes")
        raise UnsupportedError(f"keep_classes does not work for a {kind}: {why}. Leave it out.")
    sequences = [level for branch in _BRANCHES for level in getattr(last, branch, None) or ()]
    semseg = getattr(getattr(last, "proto", None), "semseg", None)
    sequences += [semseg] if semseg is not None else []
    for sequence in sequences:
        if not (isinstance(sequence, nn.Sequential) and isinstance(sequence[-1], nn.Conv2d)):
            raise UnsupportedError(f"keep_classes does not know where this {kind} predicts the classes; leave it out.")
    return [(sequence, str(len(sequence) - 1)) for sequence in sequences]


def _rows_of(layer: Any, classes: Sequence[int]) -> nn.Module:
    """Return a convolution or linear layer that makes some of the outputs, with the same weights."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.utils.skip_init(nn.Linear, layer.in_features, len(classes), bias)
    else:
        new = nn.utils.skip_init(nn.Conv2d, layer.in_channels, len(classes), 1, bias=bias)
    for name, tensor in layer._parameters.items():
        if tensor is not None:
            rows = tensor.detach()[list(classes)].clone()
            new._parameters[name] = nn.Parameter(rows, requires_grad=tensor.requires_grad)
    return new.train(layer.training)
