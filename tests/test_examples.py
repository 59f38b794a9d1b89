from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import tiny_yaml
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG

from yolo_prune.deploy import bench
from yolo_prune.device.stopwatch import Timing

EXAMPLES = Path(__file__).parent.parent / "examples"
MORE = {
    # 64 pixels on a busy machine: that anything gets faster cannot be relied on, so the time asked always holds
    "latency_target.py": {"target": "10 s, 10%", "runtime": "pytorch"},
    "compare_criteria.py": {"criteria": "random,reconstruction"},
}
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of the sdist")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_runs(name: str, own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"model": tiny_yaml(own_folder), "data": tiny_data, "epochs": 12, "imgsz": 32, **MORE.get(name, {})}
    monkeypatch.setattr(sys, "argv", [name, *(f"{name}={value}" for name, value in arguments.items())])
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_folder))
    monkeypatch.setattr(tasks, "TwoPaths", None, raising=False)  # a block that an example puts there
    for default, value in {"project": str(own_folder), "workers": 0, "plots": False}.items():
        monkeypatch.setattr(DEFAULT_CFG, default, value)
    timing = Timing.of(np.array([[0.03] * 8, [0.02] * 8]), share=0.99)  # what a busy machine takes long to settle on
    monkeypatch.setattr(bench, "compare_networks", lambda networks, runtime, imgsz: timing)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_has_defaults_for_all_that_it_reads(name: str) -> None:
    tree = ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))
    of_arguments = (node for node in ast.walk(tree) if isinstance(node, ast.Subscript))
    read = {node.slice.value for node in of_arguments if ast.unparse(node.value) == "arguments"}
    given = {key.value for node in tree.body for d in ast.walk(node) if isinstance(d, ast.Dict) for key in d.keys}
    assert read <= given, read - given


def pictures(notebook: Any) -> list[str]:
    """Return the pictures among the outputs of a notebook's cells, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())]


@pytest.mark.slow
def test_the_notebook_runs_and_was_committed_with_its_pictures(own_folder: Path) -> None:
    reason = "the notebook is run with the extra: pip install '.[notebook]'"
    nbclient, nbformat = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason="the notebook runs in its kernel: pip install '.[notebook]'")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert len(pictures(notebook)) == 4
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    tiny = {"model_yaml": str(tiny_yaml(own_folder)), "epochs": 6, "imgsz": 64, "images": {"train": 8, "val": 4}}
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in tiny.items())
    done = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(own_folder)}}).execute()
    assert len(pictures(done)) == 4
    assert (own_folder / "tour" / "run" / "weights" / "best.onnx").is_file()
