from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Python
from nets import narrow_yaml

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of the sdist")


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_runs(name: str, python: Python, own_folder: Path, tiny_data: Path) -> None:
    model = narrow_yaml("yolo11n", own_folder)
    done = python(EXAMPLES / name, f"model={model}", f"data={tiny_data}", "epochs=12", "imgsz=64")
    assert done.returncode == 0, done.stderr
