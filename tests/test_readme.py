from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from yolo_prune import PruneConfig
from yolo_prune.config import KNOBS

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="the sdist of the tests has no README beside it")


def test_the_table_of_knobs_is_the_configuration() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(prune\w*)=` \| `(.+?)` \| (.+) \|$", README.read_text(), re.MULTILINE)
    expected = [
        (
            name,
            "prune" if name == "target" else f"prune_{name}",
            "none" if default in ((), {}, None) else str(default),
            KNOBS[name],
        )
        for name, default in vars(PruneConfig()).items()
    ]
    assert rows == expected


def test_every_python_snippet_is_valid() -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 3
    for snippet in snippets:
        ast.parse(snippet)
