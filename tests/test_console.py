from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from nets import build
from trainings import Run, soon
from ultralytics.utils import LOGGER

import yolo_prune
from yolo_prune.graph.trace import trace
from yolo_prune.utils import console
from yolo_prune.utils.console import PATIENCE, progress_bar, silence, verbosity

COLOURS = re.compile(r"\x1b\[[\d;]*[mK]")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return now


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, whatever other tests have made of the LOGGER."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    return caplog


def work(clock: list[float], seconds: float, steps: int = 10, what: str = "timing layers") -> None:
    """Take some seconds for each of the steps."""
    with progress_bar(what, steps) as step:
        for _ in range(steps):
            clock[0] += seconds
            step()


def frames(capsys: Capture) -> list[str]:
    """Return what was written over itself in the terminal, without colours; nothing may go to standard output."""
    out, err = capsys.readouterr()
    assert not out
    return [COLOURS.sub("", frame) for frame in err.split("\r")][1:]


def test_a_bar_appears_when_two_seconds_have_passed_and_is_wiped_at_the_end(
    clock: list[float], capsys: Capture
) -> None:
    work(clock, 0.5)
    told = frames(capsys)
    assert PATIENCE == 2
    assert told[0].startswith("prune: timing layers: 50% ━━━━━━────── 5/10 ") and " 2.5s<" in told[0]
    assert told[-2].startswith("prune: timing layers: 100% ━━━━━━━━━━━━ 10/10 2.0it/s 5.0s")
    assert told[-1] == ""


def test_what_is_done_in_two_seconds_shows_no_bar(clock: list[float], capsys: Capture) -> None:
    work(clock, 0.2)
    work(clock, 60, steps=1)  # it is over when it could be told
    work(clock, 60, steps=0)
    assert frames(capsys) == []


def test_a_bar_is_shown_while_others_are_kept_quiet(clock: list[float], capsys: Capture) -> None:
    with silence(), silence():
        LOGGER.info("of no interest")
        work(clock, 1)
    assert frames(capsys)
    assert LOGGER.getEffectiveLevel() == logging.INFO


def test_a_bar_is_silent_where_the_user_wants_none(
    clock: list[float], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with verbosity(False), verbosity(True):
        work(clock, 1)
    monkeypatch.setattr(LOGGER, "level", logging.WARNING)
    work(clock, 1)
    with silence():
        work(clock, 1)
    monkeypatch.undo()
    assert frames(capsys) == []


@pytest.mark.parametrize(("name", "value"), [("RANK", 1), ("VERBOSE", False)])
def test_a_bar_is_silent_on_other_ranks_and_in_a_silent_host(
    name: str, value: Any, clock: list[float], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, name, value)
    work(clock, 1)
    assert frames(capsys) == []


def test_a_bar_is_closed_when_something_fails(clock: list[float], capsys: Capture) -> None:
    with pytest.raises(ZeroDivisionError), progress_bar("timing layers", 10) as step:
        for _ in range(5):
            clock[0] += 1
            step()
        raise ZeroDivisionError
    assert frames(capsys)[-1] == ""
    work(clock, 1)
    assert frames(capsys)[0].startswith("prune: timing layers: 30%")  # and not a part of what has failed


def test_a_part_that_takes_long_says_how_long_the_whole_takes(clock: list[float], capsys: Capture) -> None:
    with progress_bar("choosing channels", 3) as step:
        for seconds in (0.1, 1.5, 0.1):
            work(clock, seconds, what="solving weights")
            step()
    told = [frame.removeprefix("prune: ").partition(" \u2501")[0] for frame in frames(capsys) if frame]
    assert told[0] == "choosing channels (40%, 0:06 left), solving weights: 20%"
    assert told[8] == "choosing channels (67%, 0:08 left), solving weights: 100%"
    assert told[9:] == ["choosing channels: 66%", "choosing channels: 100%"]


def test_the_time_that_is_left_counts_parts_by_their_shares(clock: list[float], capsys: Capture) -> None:
    with progress_bar("cut 1 of 2", 4) as step:
        with progress_bar("planning", 2, share=3) as planned:
            work(clock, 3, what="looking at images")
            planned()
            work(clock, 3, what="looking at images")
            planned()
        work(clock, 2, what="solving weights")
        step()
    told = [re.findall(r"(.*?%), (.*?) left\), (.*?):", frame) for frame in frames(capsys) if "left" in frame]
    parts = [found[0] for found in told]
    assert ("prune: cut 1 of 2 (19%", "1:05", "looking at images") in parts
    assert parts[-1] == ("prune: cut 1 of 2 (100%", "0:00", "solving weights")


def test_a_line_has_the_prefix_and_comes_from_the_first_process(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    console.log("one")
    with verbosity(False):
        console.log("two")
    monkeypatch.setattr(console, "RANK", 1)
    console.log("three")
    assert lines(log) == ["prune: one"]


def test_a_network_that_is_traced_for_long_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    trace(build("yolov8n"), 64)
    assert frames(capsys)[0].startswith("prune: tracing layers: ")


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    """Return what yolo_prune has logged, without colours."""
    plain = (COLOURS.sub("", message) for message in log.messages)
    return [text for text in plain if text.startswith("prune: ")]


@pytest.mark.slow
def test_a_run_tells_a_line_per_cut_and_a_summary_with_the_paths_and_warns_of_nothing(
    run: Run, log: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = run(prune=soon(importance="taylor", allocation="global", export=("torchscript",)))
    engines = [Path(str(module.__file__)).parent for module in (torch, torch_pruning, yolo_prune)]
    assert [str(w.message) for w in caught if not set(engines).isdisjoint(Path(w.filename).parents)] == []
    first, second, summary = lines(log)
    amount = r"[\d.]+[GMk] -> [\d.]+[GMk] \(-\d+\.\d%\)"
    for number, line in ((1, first), (2, second)):
        pattern = rf"prune: cut {number}/2 at epoch {number}: MACs {amount}, params {amount}, \d+ layers locked, .*"
        assert re.fullmatch(pattern, line)
    assert summary.startswith("prune: done\n") and "torchscript" in summary and not re.search("\n{2}", summary)
    folder: Path = trainer.save_dir
    paths = f"checkpoint {folder / 'weights' / 'best.pt'}, report {folder / 'pruning' / 'report.html'}"
    assert summary.splitlines()[-1] == paths


@pytest.mark.slow
def test_a_silent_run_tells_nothing_of_its_own(
    run: Run, log: pytest.LogCaptureFixture, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    run(prune=soon(importance="l2", allocation="uniform", verbose=False), verbose=False)
    assert lines(log) == [] and any("epochs completed" in message for message in log.messages)
    assert "prune:" not in COLOURS.sub("", "".join(capsys.readouterr()))


@pytest.mark.slow
def test_a_cut_tells_how_much_time_it_has_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    step = console._Wait.step

    def remembered(wait: console._Wait, *steps: int) -> None:
        step(wait, *steps)
        told.append(COLOURS.sub("", wait.bar.desc))

    monkeypatch.setattr(console._Wait, "step", remembered)
    run(prune=soon(importance="reconstruction", allocation="global", reconstruction=True))
    for part in ("looking at images", "weighing channels", "looking at outputs", "solving weights"):
        pattern = re.compile(rf"prune: cut 2 of 2 \((\d+)%, \d+:\d\d left\), {part}")
        shares = [int(found[1]) for found in map(pattern.fullmatch, told) if found]
        assert shares and shares == sorted(shares)
