"""A command as the stopwatch, driven by a script that stands for adb, or for ssh to a board."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yolo_prune.device.command import is_command, read_seconds, seconds_of, words_of
from yolo_prune.errors import ConfigError, UnsupportedError

BOARD = """
import pathlib, sys
file, mode, memory = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
tries = len(memory.read_text()) if memory.exists() else 0
memory.write_text("x" * (tries + 1))
if mode == "reboots" and tries < 2:
    sys.exit("error: device offline")
if mode == "is-gone":
    sys.exit("error: no devices found")
if mode == "is-piped":  # adb shell failed, and sed after it did not
    sys.exit(0)
if mode == "hangs":
    import time; time.sleep(60)
print("pushed", file)
print({"talks": "all done", "times": "latency: 12.5 ms", "reboots": "0.25"}[mode])
"""


@pytest.fixture
def runtime(tmp_path: Path) -> object:
    """A command for each way in which a board behaves."""
    script = tmp_path / "board.py"
    script.write_text(BOARD, encoding="utf-8")
    return lambda mode: f"command: {sys.executable} {script} {{file}} {mode} {tmp_path / 'memory'}"


def test_the_last_line_says_the_seconds(runtime: object, tmp_path: Path) -> None:
    assert seconds_of(runtime("times"), tmp_path / "a.onnx") == 0.0125


def test_a_board_that_reboots_is_waited_for(runtime: object, tmp_path: Path) -> None:
    assert seconds_of(runtime("reboots"), tmp_path / "a.onnx", waits=(0.0, 0.0)) == 0.25
    assert len((tmp_path / "memory").read_text()) == 3


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("is-gone", r"ended with status 1 and said: error: no devices found, 2 times; what was timed before is kept"),
        ("hangs", r"was not done after 1 s, 2 times"),
        ("is-piped", r"ended with status 0 and said: nothing, 2 times"),
        ("talks", r"said 'all done' in its last line, which ends with no number of seconds; print 0.0123, or 12.3 ms"),
    ],
)
def test_what_goes_wrong_is_said(mode: str, says: str, runtime: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=says):
        seconds_of(runtime(mode), tmp_path / "a.onnx", waits=(0.0,), timeout=1.0)


def test_a_script_without_a_first_line_is_told_of(tmp_path: Path) -> None:
    script = tmp_path / "timer.sh"
    script.write_text("echo 12.3 ms\n", encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(UnsupportedError, match=r"cannot be run: .*; a script begins with #!/bin/bash"):
        seconds_of(f"command: {script} {{file}}", tmp_path / "a.onnx")


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the command no-such-timer was not found; give its path"):
        seconds_of("command: no-such-timer {file}", tmp_path / "a.onnx")


@pytest.mark.parametrize("runtime", ["command: my-timer", "command:", "command: 'my-timer {file}"])
def test_a_command_without_its_file_is_refused(runtime: str) -> None:
    assert is_command(runtime)
    with pytest.raises(ConfigError, match=r"does not say where the file goes|no command that a shell would read"):
        words_of(runtime)


@pytest.mark.parametrize(
    ("output", "seconds"),
    [
        ("12.5 ms", 0.0125),
        ("[ INFO ] Median: 7.30 ms\n\n", 0.0073),
        ("mean = 830us", 830e-6),
        ("0.0421", 0.0421),
        ("4.2e-2 s", 0.042),
        ("a\nlatency 3 ms.", 0.003),
        ("12.3 \u00b5s", 12.3e-6),
        ("12.3 \u03bcs", 12.3e-6),
        ("12.3 MS", 0.0123),
        ("12.3 m\u017f", 0.0123),  # a long s, which ignores case as well
        ("npu,0.0421", 0.0421),
        ("Avg Time 20 12.3 ms", 0.0123),
    ],
)
def test_seconds_are_read_with_and_without_a_unit(output: str, seconds: float) -> None:
    assert read_seconds(output, "timer") == pytest.approx(seconds)


@pytest.mark.parametrize("output", ["", "\n", "done", "0 ms", "-3 ms", "nan", "1e999 s", "12 fps"])
def test_no_seconds_are_an_error(output: str) -> None:
    with pytest.raises(UnsupportedError, match="the command timer said"):
        read_seconds(output, "timer")


@pytest.mark.parametrize(
    "output", ["12,3 ms", "1,234.5 us", "1'234 us", "12:34.5", "3-4 ms", "3/4", "1.2.3 s", "5 \ufffds"]
)
def test_a_number_is_read_as_a_whole_or_not_at_all(output: str) -> None:
    with pytest.raises(UnsupportedError, match="with a point and without other separators"):
        read_seconds(output, "timer")
