from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import Python

from yolo_prune.utils.memory import borrowed_memory, return_free

needs_gnu = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="what is free is kept by GNU's C library only"
)
BLOCKS, BYTES = 2000, 100_000


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_gnu
def test_the_holes_between_blocks_in_use_go_back() -> None:
    blocks = [torch.zeros(BYTES, dtype=torch.uint8) for _ in range(BLOCKS)]
    kept = blocks[::2]
    del blocks
    before = resident()
    return_free()
    assert before - resident() > 0.25 * BLOCKS * BYTES  # of the half that is free
    assert len(kept) == BLOCKS // 2


LARGE_BLOCKS = """
import torch
from test_memory import resident
from yolo_prune.utils.memory import borrowed_memory, return_free

def given_back(size):
    return_free()  # so that nothing is left at the end of the heap, and the holes are smaller than the next size
    block = torch.zeros(size * 2**20, dtype=torch.uint8)
    pin = torch.zeros(1000)  # on top of it, where it is no mapping of its own
    before = resident()
    del block
    return before - resident() > 10 * 2**20

print([given_back(20) for _ in range(3)][-1])  # by then blocks of this size are kept
with borrowed_memory():
    print(given_back(24))
print(given_back(26))
"""


@pytest.mark.slow
@needs_gnu
def test_large_blocks_go_back_when_they_are_free_until_the_cut_is_over(python: Python) -> None:
    done = python("-c", LARGE_BLOCKS, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    assert done.stdout.split() == ["False", "True", "False"], done.stderr


def test_where_the_c_library_is_another_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with borrowed_memory():
        return_free()
