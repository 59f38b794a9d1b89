"""Memory of a process that trains and, now and then, does something else.

Training leaves an allocator with free blocks of the sizes that training needs. A cut needs others, and would take them
from the system on top.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

M_MMAP_THRESHOLD = -3
"""Of GNU's ``malloc.h``: larger blocks are taken from the system one by one, and go back when they are free."""
SMALL, USUAL = 2**20, 2**25
"""Bytes: meanwhile, and what GNU's C library comes to by itself where large blocks are freed."""


@contextmanager
def borrowed_memory() -> Iterator[None]:
    """Give large blocks back to the system as soon as they are free."""
    _c("mallopt", M_MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        _c("mallopt", M_MMAP_THRESHOLD, USUAL)
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
