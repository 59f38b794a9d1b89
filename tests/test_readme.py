from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from yolo_prune import PruneConfig

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="the sdist of the tests has no README beside it")


def test_the_table_of_knobs_is_the_configuration() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(prune\w*)=` \| `(.+?)` \| (.+) \|$", README.read_text(), re.MULTILINE)
    expected = [
        (
            f.name,
            "prune" if f.name == "target" else f"prune_{f.name}",
            "none" if f.default == () else str(f.default),
            f.metadata["help"],
        )
        for f in fields(PruneConfig)
    ]
    assert rows == expected


def test_every_python_snippet_is_valid() -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 3
    for snippet in snippets:
        ast.parse(snippet)
