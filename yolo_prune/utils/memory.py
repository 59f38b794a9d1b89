"""Memory of a process that trains and, now and then, does something else.

Training leaves an allocator with free blocks of the sizes that training needs. A cut needs others, and would take them
from the system on top.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of GNU's ``malloc.h``: how much that is free at the end of the heap is kept, from which size on blocks are taken from
the system one by one and go back when they are free, and how many heaps threads may have."""
KEPT, USUAL, LARGE = 2**30, 2**26, 2**25
"""Bytes that are kept meanwhile and usually, and the largest size that the heap may serve."""


@contextmanager
def borrowed_memory() -> Iterator[None]:
    """Keep what is freed for the next layer, and give all of it back to the system in the end.

    A block that goes back at once is taken page by page again: half of a cut's time at 640 px was that.
    """
    return_free()
    _c("mallopt", M_MMAP_THRESHOLD, LARGE)
    _c("mallopt", M_TRIM_THRESHOLD, KEPT)
    _c("mallopt", M_ARENA_MAX, 1)  # threads that take turns need no heap of their own, and each keeps what it frees
    try:
        yield
    finally:
        _c("mallopt", M_TRIM_THRESHOLD, USUAL)
        return_free()


def return_free() -> None:
    """Give everything that is free back to the system."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _c("malloc_trim", 0)


def _c(function: str, *arguments: int) -> None:
    """Call a function of GNU's C library; others do not have it, nor its habits."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), function)(*arguments)
