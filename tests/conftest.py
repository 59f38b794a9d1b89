"""What every test needs: a host that stays off the network, tiny data, and folders of its own."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from yolo_prune.cli.demo import make_dataset, use_private_settings

# All of this has to be there before anything imports ultralytics, and once per xdist worker.
SETTINGS = Path(tempfile.mkdtemp(prefix="yolo-prune-tests-"))
use_private_settings(SETTINGS)
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"


def announces_no_removal(record: logging.LogRecord) -> bool:
    """Refuse what Ultralytics, which warns in its log, says of arguments and names that it will remove."""
    if "deprecated" in (message := record.getMessage()):
        raise DeprecationWarning(message)
    return True


logging.getLogger("ultralytics").addFilter(announces_no_removal)
hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")


def pytest_unconfigure() -> None:
    shutil.rmtree(SETTINGS, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder of its own.

    Ultralytics puts the runs of a test suite beside its own package, so a training also needs ``project=own_folder``.
    """
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the ``data.yaml`` of 8 training and 4 validation images of 64 pixels with 3 classes."""
    return make_dataset(tmp_path_factory.mktemp("tiny-data"), train=8, val=4, size=64)


@pytest.fixture
def run(own_folder: Path, tiny_data: Path) -> Callable[..., Any]:
    """Train a narrow network on the tiny data, in the test's folder (see `trainings.train`)."""
    from trainings import train  # imports ultralytics

    return partial(train, own_folder, tiny_data)


Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def python(own_folder: Path) -> Python:
    """Run a fresh Python with arguments, and with environment variables as keywords."""

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=os.environ | environment,
            cwd=own_folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


FAKE_HOST = {
    "__init__.py": "",
    "cfg/__init__.py": """
import subprocess, sys

def entrypoint():
    words = sys.argv[1:]
    print("arguments:", *words, flush=True)
    if "loaded" in words:
        print("loaded:", [name for name in sys.modules if name.startswith("yolo_prune")])
    if "spawn" in words:
        for mode in ("train", "val"):
            subprocess.run([sys.executable, "-m", "ultralytics.cfg.__init__", mode], check=True)

    from ultralytics.engine.model import Model

    model = Model()
    for _ in range(1 + ("twice" in words)):
        model.train()

if __name__ == "__main__":
    entrypoint()
""",
    "engine/__init__.py": "",
    "engine/model.py": """
import sys, types

class Model:
    def train(self):
        print("stock train", flush=True)

class PruneCallback:
    def __init__(self, config):
        self.target = config and config.target

    def attach(self, model):
        print("attached:", self.target, flush=True)

sys.modules["yolo_prune.callback"] = types.SimpleNamespace(PruneCallback=PruneCallback)
""",
}


@pytest.fixture
def fake_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``PYTHONPATH`` with a toy ``ultralytics`` that imports in no time and prints what it does."""
    folder = tmp_path_factory.mktemp("fake-host")
    for name, text in FAKE_HOST.items():
        file = folder / "ultralytics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder
