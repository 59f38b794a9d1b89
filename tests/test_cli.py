from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Python
from reports import full_report

from yolo_prune import __version__, cli
from yolo_prune.config import KNOBS
from yolo_prune.errors import TargetError


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]], ids=str)
def test_help_names_every_command_and_every_knob_with_its_default(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in cli.COMMANDS)
    assert all(f"  prune_{name}=" in text for name in KNOBS if name != "target")
    assert all(help in text for name, help in KNOBS.items() if name != "target")
    assert "  prune_steps=3  " in text
    assert "  prune_export=  " in text


@pytest.mark.parametrize("arguments", [["version"], ["--version"]], ids=str)
def test_version_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"yolo-prune {__version__}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "trian",
            "unknown command trian. Did you mean train? "
            "Valid: train, prune, plan, bench, sensitivity, report, demo, help, version.",
        ),
        ("zzz", "unknown command zzz. Valid: train, prune, plan, bench, sensitivity, report, demo, help, version."),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest_one(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command]) == 2
    assert capsys.readouterr().err == f"yolo-prune: {message}\n"


def test_a_failure_of_ours_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise TargetError("locked: " + arguments[0])

    monkeypatch.setitem(cli.COMMANDS, "demo", (fail, ""))
    assert cli.main(["demo", "model.0"]) == 1
    assert capsys.readouterr().err == "yolo-prune: locked: model.0\n"


def test_report_makes_the_page_of_a_run_anew(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_folder / "pruning").mkdir()
    (own_folder / "pruning" / "report.json").write_text(json.dumps(full_report()))
    assert cli.main(["report", str(own_folder)]) == 0
    page = own_folder / "pruning" / "report.html"
    assert capsys.readouterr().out == f"{page}\n" and page.exists()


@pytest.mark.parametrize("folders", [[], ["a", "b"]], ids=str)
def test_report_takes_one_folder(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *folders]) == 2
    assert "report takes the folder of one run" in capsys.readouterr().err


def test_train_without_prune_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["yolo-prune", "train", "model=yolo11n.yaml"])
    monkeypatch.delenv("YOLO_PRUNE_ARGS", raising=False)
    assert cli.main() == 2
    message = "train without prune: say how much to remove, e.g. prune=0.5, or use 'yolo train'."
    assert capsys.readouterr().err == f"yolo-prune: {message}\n"


def test_train_hands_over_to_the_host_with_the_prune_arguments_taken(python: Python, fake_host: Path) -> None:
    done = python("-m", "yolo_prune", "train", "epochs=3", "prune=0.3", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines() == ["arguments: train epochs=3", "attached: 0.3", "stock train"]
    assert (done.returncode, done.stderr) == (0, "")


def test_train_refuses_a_wrong_knob_before_the_host_is_imported(python: Python) -> None:
    done = python("-m", "yolo_prune", "train", "prune=0.3", "prune_stpes=3")
    assert done.returncode == 2
    assert done.stderr.startswith("yolo-prune: unknown knob prune_stpes: did you mean prune_steps?")
