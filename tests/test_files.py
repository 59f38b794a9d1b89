from __future__ import annotations

from pathlib import Path

import pytest

from yolo_prune.errors import PlanError, WriteError
from yolo_prune.utils.files import atomic_write


def test_a_draft_takes_the_place_of_a_file_when_it_is_complete(own_folder: Path) -> None:
    file = own_folder / "new" / "a.json"
    for text in ("first", "second"):
        with atomic_write(file) as draft:
            draft.write_text(text)
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (OSError(28, "No space left on device"), WriteError),
        (RuntimeError("unexpected pos 64 vs 0"), WriteError),  # how torch says the same
        (NotImplementedError("no such layer"), NotImplementedError),
        (PlanError("of another network"), PlanError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=repr,
)
def test_what_fails_leaves_the_file_as_it_was_and_no_draft(
    own_folder: Path, failure: BaseException, seen: type[BaseException]
) -> None:
    file = own_folder / "a.json"
    file.write_text("first")
    with pytest.raises(seen) as error, atomic_write(file) as draft:
        draft.write_text("half")
        raise failure
    assert (error.value is failure) == (seen is not WriteError)
    assert file.read_text() == "first" and [path.name for path in own_folder.iterdir()] == ["a.json"]


def test_the_file_that_cannot_be_written_is_named_once(own_folder: Path) -> None:
    (own_folder / "a").write_text("no folder")
    outer, inner = own_folder / "b.json", own_folder / "a" / "c.json"
    with pytest.raises(WriteError) as error, atomic_write(outer), atomic_write(inner):
        pass
    assert str(error.value).startswith(f"{inner} cannot be written (")
