"""Which files of a run's folder go, and which stay."""

from __future__ import annotations

from pathlib import Path

from yolo_prune.utils.run_folder import RunFolder


def test_of_all_exact_states_one_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    half = folder.state(2, 0).with_suffix(".pt.part")
    for file in (folder.state(2, 0), folder.state(2, 1), half, folder.before_cut, folder.plan(1)):
        file.touch()
    folder.forget_states(but=folder.state(2, 1))
    assert set(folder.path.iterdir()) == {folder.state(2, 1), folder.before_cut, folder.plan(1)}


def test_a_cleared_folder_keeps_what_is_no_part_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    notes = folder.path / "notes.txt"
    for file in (folder.plan(1), folder.state(0, 0), folder.early(0), folder.before_cut, folder.latency, notes):
        file.touch()
    folder.clear()
    assert list(folder.path.iterdir()) == [notes]
