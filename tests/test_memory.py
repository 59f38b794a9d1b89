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


FREED_BLOCKS = """
import torch
from test_memory import resident
from yolo_prune.utils.memory import borrowed_memory

MB = 2**20
with borrowed_memory():
    block = torch.zeros(24 * MB, dtype=torch.uint8)
    before = resident()
    del block
    meanwhile = resident()
print(before - meanwhile > 10 * MB, meanwhile - resident() > 10 * MB)
"""


@pytest.mark.slow
@needs_gnu
def test_what_is_freed_is_kept_until_the_cut_is_over(python: Python) -> None:
    done = python("-c", FREED_BLOCKS, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_where_the_c_library_is_another_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with borrowed_memory():
        return_free()
