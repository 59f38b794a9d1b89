"""One run, several processes: what the ranks of a distributed training (DDP) do once, and what they agree on.

Rank 0 decides and writes; what it found is sent to the others. In a run of one process all of this is nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from ultralytics.utils import RANK

from yolo_prune.errors import CutError, PruneError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes files and talks."""
    return RANK in {-1, 0}


def is_distributed() -> bool:
    """Whether other processes train the same network."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def broadcast(value: T) -> T:
    """Return rank 0's value, on every rank; all of them have to ask."""
    if not is_distributed():
        return value
    told = [value if is_first() else None]
    distributed.broadcast_object_list(told, src=0)
    return told[0]  # type: ignore[return-value]  # rank 0's


def on_rank_zero(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and return what it returned, on every rank; what it raises is raised on every rank."""
    if not is_distributed():
        return function()
    outcome: tuple[T | None, Exception | None] = None, None
    if is_first():
        try:
            outcome = function(), None
        except Exception as e:
            outcome = None, e if isinstance(e, PruneError) else CutError(f"{type(e).__name__}: {e}")
    value, error = broadcast(outcome)
    if error:
        raise error
    return value  # type: ignore[return-value]  # rank 0's


@contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """Do something on every rank, without talking to the others in between; it fails on all of them or on none.

    Raises:
        CutError: If it failed on another rank.
    """
    if not is_distributed():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as e:
        error = e
    told = _gathered(f"{type(error).__name__}: {error}" if error else "")
    if error:
        raise error
    if failed := next((f"rank {rank}: {text}" for rank, text in enumerate(told) if text), None):
        raise CutError(f"{what} failed on {failed}")


def synchronize(*networks: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers, and make sure of it.

    Raises:
        CutError: If the networks still differ, or have other shapes.
    """
    if not is_distributed():
        return
    tensors = [t for network in networks for t in network.state_dict().values() if isinstance(t, torch.Tensor)]
    check_same("widths", [tuple(t.shape) for t in tensors])
    for tensor in tensors:
        whole = tensor.detach().contiguous()  # a copy where the memory format is channels_last
        distributed.broadcast(whole, src=0)
        tensor.detach().copy_(whole)
    check_same("weights", digest(*networks))


def check_same(what: str, value: Any) -> None:
    """Raise a CutError if the ranks have different values."""
    if is_distributed() and len(set(map(repr, told := _gathered(value)))) > 1:
        differing = next(rank for rank, other in enumerate(told) if repr(other) != repr(told[0]))
        raise CutError(f"the {what} of rank {differing} differ from those of rank 0, so the run cannot go on as one.")


def digest(*networks: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers."""
    found = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def wrapped_like(wrapper: nn.Module, network: nn.Module) -> nn.Module:
    """Return a network in a new wrapper of the same settings, if it was in one for distributed training.

    The old one's buckets are made of parameters that a cut replaces.

    Args:
        wrapper: What the trainer had before the cut.
        network: With or without that wrapper.
    """
    if not isinstance(wrapper, nn.parallel.DistributedDataParallel):
        return network
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    buffers = "forward_sync_buffers" if hasattr(wrapper, "forward_sync_buffers") else "broadcast_buffers"  # torch<2.13
    return type(wrapper)(
        network,
        device_ids=wrapper.device_ids,
        find_unused_parameters=wrapper.find_unused_parameters,
        static_graph=wrapper.static_graph,
        **{buffers: getattr(wrapper, buffers)},
    )


def _gathered(value: Any) -> list[Any]:
    """Return every rank's value, in order."""
    told: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(told, value)
    return told
