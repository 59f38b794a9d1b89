from __future__ import annotations

from importlib.metadata import entry_points, files, version
from importlib.resources import as_file
from importlib.resources import files as resources

import pytest
from conftest import Python

import yolo_prune

LIGHT = (".cli.main", ".cli.startup", ".config", ".errors", ".plan", ".report.records", ".training.schedule")


def test_all_is_the_sorted_public_names_and_each_resolves() -> None:
    assert yolo_prune.__all__ == sorted(yolo_prune.__all__) == dir(yolo_prune)
    for name in yolo_prune.__all__:
        assert getattr(yolo_prune, name).__name__ == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'yolo_prune' has no attribute 'prune_modle'"):
        yolo_prune.prune_modle  # noqa: B018  # looking it up is the test


@pytest.mark.parametrize("module", ["", *LIGHT])
def test_light_modules_load_neither_torch_nor_ultralytics(python: Python, module: str) -> None:
    heavy = "{'torch', 'ultralytics', 'torch_pruning', 'cv2', 'matplotlib'}"
    done = python("-c", f"import sys, yolo_prune{module}; print({heavy} & set(sys.modules))")
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_commands_load_no_torchvision(python: Python) -> None:
    """It takes as long as all else; Ultralytics loads it when it predicts."""
    done = python("-c", "import sys, yolo_prune.cli.commands; print('torchvision' in sys.modules)")
    assert (done.stdout, done.returncode) == ("False\n", 0)


def test_the_version_is_the_one_of_the_installed_distribution() -> None:
    assert yolo_prune.__version__ == version("yolo-prune")


def test_the_distribution_has_the_start_up_line_and_the_command() -> None:
    assert "yolo_prune_startup.pth" in map(str, files("yolo-prune") or ())
    (command,) = entry_points(group="console_scripts", name="yolo-prune")
    assert command.load() is __import__("yolo_prune.cli.main", fromlist=["main"]).main


def test_type_checkers_find_the_marker_of_a_typed_package() -> None:
    with as_file(resources("yolo_prune") / "py.typed") as marker:
        assert marker.is_file()
