from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from conftest import Python
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import tiny_yaml
from reports import full_report
from ultralytics.cfg import DEFAULT_CFG_DICT

from yolo_prune import __version__
from yolo_prune.cli import commands, usage
from yolo_prune.cli import main as cli
from yolo_prune.config.settings import HELP_TEXTS
from yolo_prune.errors import CheckpointError, TargetError


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]], ids=str)
def test_help_names_every_command_and_every_knob_with_its_default(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in cli.COMMANDS)
    assert all(f"  prune_{name}=" in text for name in HELP_TEXTS if name != "target")
    assert all(help in text for name, help in HELP_TEXTS.items() if name != "target")
    assert "  prune_steps=3  " in text
    assert "  prune_export=  " in text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_way_of_asking_for_the_help_of_a_command_gives_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([command, "--help"], [command, "-h"], ["help", command], ["--help", command], ["-h", command]):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out == f"{usage.of_command(command)}\n"


def test_help_is_given_wherever_it_is_asked_for_and_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=a.pt", "prune=0.5", "--help"]) == 0
    assert capsys.readouterr().out == f"{usage.of_command('plan')}\n"


def closed_pipe(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "yolo_prune", *map(str, arguments)]
    try:
        return subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, env=os.environ | environment, timeout=300
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", ["help", "help plan", "bench --help", "version"])
def test_a_closed_pipe_ends_a_command_without_a_word(arguments: str, unbuffered: str) -> None:
    done = closed_pipe(*arguments.split(), PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_a_closed_pipe_ends_a_command_that_works_without_a_word(own_folder: Path, tiny_data: Path) -> None:
    (own_folder / "pruning").mkdir()
    (own_folder / "pruning" / "report.json").write_text(json.dumps(full_report()))
    small = tiny_yaml(own_folder)
    for arguments in (
        ("report", own_folder),
        ("plan", f"model={small}", "prune=0.3", "imgsz=64"),
        (
            *("sensitivity", f"model={small}", f"data={tiny_data}", f"project={own_folder}"),
            *("calibration=8", "batch=4", "imgsz=64"),
        ),
    ):
        done = closed_pipe(*arguments, YOLO_VERBOSE="false")  # no bars
        assert (done.returncode, done.stderr) == (1, ""), arguments


def test_what_is_refused_is_told_though_nobody_reads_the_output() -> None:
    done = closed_pipe("help", "zzz")
    assert done.returncode == 2 and done.stderr.startswith("yolo-prune: unknown command zzz.")


def test_another_pipe_that_breaks_is_no_quiet_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "demo", mock.Mock(side_effect=BrokenPipeError("a worker's")))
    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.main(["demo"])


@pytest.mark.parametrize("arguments", [["version"], ["--version"]], ids=str)
def test_version_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"yolo-prune {__version__}\n"


def test_a_failure_of_ours_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise TargetError("locked: " + arguments[0])

    monkeypatch.setitem(cli.COMMANDS, "demo", fail)
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


COMMANDS = st.sampled_from(["prune", "plan", "sensitivity", "bench", "help", "version", ""]) | st.text(max_size=6)
NAMES = st.sampled_from(
    [*DEFAULT_CFG_DICT, *(f"prune_{knob}" for knob in HELP_TEXTS), "calibration", "runtimes", "scales"]
)
PAIRS = st.tuples(
    NAMES, st.just("="), st.sampled_from(["0.5", "3", "True", "None", "[1,", "a.pt"]) | st.text(max_size=6)
)
GIVEN = st.sampled_from(["model=a.pt", "data=a.yaml", "prune=0.5", "a.pt"])


@given(COMMANDS, st.lists(GIVEN, max_size=4), st.lists(PAIRS.map("".join) | st.text(max_size=6), max_size=3))
def test_any_command_line_ends_with_an_exit_code(command: str, given: list[str], others: list[str]) -> None:
    begin = mock.Mock(side_effect=CheckpointError("a.pt is not there"))  # whatever comes after the arguments
    with mock.patch.object(commands, "open_model", begin), mock.patch.object(commands, "bench", begin):
        assume(command not in ("demo", "train"))
        assert cli.main([command, *given, *others]) in (0, 1, 2)


def test_train_hands_over_to_the_host_with_the_prune_arguments_taken(python: Python, fake_host: Path) -> None:
    done = python("-m", "yolo_prune", "train", "epochs=3", "prune=0.3", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines() == ["arguments: train epochs=3", "attached: 0.3", "stock train"]
    assert (done.returncode, done.stderr) == (0, "")


def test_train_refuses_a_wrong_knob_before_the_host_is_imported(python: Python) -> None:
    done = python("-m", "yolo_prune", "train", "prune=0.3", "prune_stpes=3")
    assert done.returncode == 2
    assert done.stderr.startswith("yolo-prune: unknown option prune_stpes: did you mean prune_steps?")
