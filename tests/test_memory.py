from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch

from yolo_prune import memory
from yolo_prune.memory import borrowed_memory, return_free

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


@needs_gnu
def test_a_large_block_goes_back_when_it_is_free_until_the_cut_is_over() -> None:
    with borrowed_memory():
        kept = []
        for _ in range(20):  # small ones in between would hold them in place
            block = torch.zeros(2 * memory.SMALL, dtype=torch.uint8)
            kept.append(torch.zeros(1000))
            before = resident()
            del block
            assert before - resident() > memory.SMALL


def test_where_the_c_library_is_another_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with borrowed_memory():
        return_free()
