"""Lottery-ticket rewinding: after a cut the weights that survive are those of an early state of the run.

Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 4. The early state is a file
of plain tensors in the run's folder. It is cut with the network, so it always has the network's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from yolo_prune.errors import CheckpointError, describe_error
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.utils.files import atomic_write


def remember(network: nn.Module, path: Path) -> None:
    """Write the state of a network, so that no reader ever sees half of it."""
    with atomic_write(path) as draft:
        torch.save(network.state_dict(), draft)


def recall(network: nn.Module, path: Path) -> nn.Module:
    """Return a copy of a network in the state that `remember` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, or belongs to another network.
    """
    early: nn.Module = deepcopy(network)
    try:
        early.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as e:  # torch names no common class for what a damaged file raises
        raise CheckpointError(
            f"{path}, the state to rewind to, cannot be used ({describe_error(e)}); train without rewind."
        ) from e
    return early


def rewind(undo: UndoLog, networks: Sequence[nn.Module], early: nn.Module) -> None:
    """Give networks the weights and statistics of another one of the same widths.

    Args:
        undo: Records what is overwritten.
        networks: Tensors keep their identity, since an optimizer may hold them.
        early: What `recall` returned, after the same cut.
    """
    state = early.state_dict()
    for network in networks:
        for name, tensor in network.state_dict().items():
            undo.overwrite(tensor, state[name])
