"""Files that a reader never sees half of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from yolo_prune.errors import WriteError, describe_error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a draft beside a file to write to; complete, it takes the file's place, and failed, it is gone.

    Args:
        path: The file; folders that are missing are made.

    Raises:
        WriteError: If it cannot be written, e.g. on a full disk.
    """
    draft = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except Exception as e:
        if isinstance(e, WriteError) or not (isinstance(e, OSError) or type(e) is RuntimeError):  # torch's, of a disk
            raise
        raise WriteError(
            f"{path} cannot be written ({describe_error(e)}), and what was there is as it was; make room, or "
            "choose a folder that can be written to."
        ) from e
    finally:
        with suppress(OSError):  # where nothing can be written, nothing was
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file; a reader never sees half of it.

    Raises:
        WriteError: If it cannot be written.
    """
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, as `write_text` does."""
    write_text(path, json.dumps(data, indent=1) + "\n")
