from __future__ import annotations

from pathlib import Path

import pytest
from nets import assert_same_tensors, build, fast_and_slow, make, state

from yolo_prune.surgery.rewinding import recall, remember, rewind
from yolo_prune.surgery.slicing import UndoLog, cut


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo12n"))
def test_what_comes_back_is_the_early_network_after_the_same_cuts(family: str, tmp_path: Path) -> None:
    early, later = build(family, seed=0), build(family, seed=1)
    remember(early, tmp_path / "pruning" / "rewind.pt")
    back = recall(later, tmp_path / "pruning" / "rewind.pt")
    for share in (0.3, 0.2):
        plan = make(later, share)
        cut(plan, [early, later, back])
    before, done = state(later), UndoLog()
    rewind(done, [later], back)
    assert_same_tensors(state(early), state(later))
    done.undo()
    assert_same_tensors(before, state(later))
