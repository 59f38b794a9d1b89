from __future__ import annotations

import inspect
import re
import shlex
from itertools import takewhile

import pytest
from conftest import Python
from ultralytics.cfg import DEFAULT_CFG_DICT

from yolo_prune.cli import demo, usage
from yolo_prune.cli import main as cli
from yolo_prune.config.choices import BY_DATA, BY_WEIGHTS
from yolo_prune.config.settings import HELP_TEXTS, PruneConfig
from yolo_prune.config.text import CLI_PREFIX
from yolo_prune.deploy import bench

ALL = [usage.of_all(), *map(usage.of_command, usage.USAGES)]


def arguments(command: str) -> dict[str, str]:
    """Return the ``name=example`` that a command's help has, as name -> text."""
    words = [word for row in usage.USAGES[command].arguments for word in row.split() if "=" in word]
    return {name: text for name, _, text in (word.partition("=") for word in words)}


def test_every_command_has_help_and_every_help_a_command() -> None:
    assert list(usage.USAGES) == list(cli.COMMANDS)


@pytest.mark.parametrize("text", ALL, ids=["all", *usage.USAGES])
def test_a_name_and_its_text_never_run_together(text: str) -> None:
    rows = [line for line in text.splitlines() if line.startswith("  ") and not line.startswith("  yolo-prune ")]
    assert all(re.match(r"  \S+( \S+)*  +\S", row) for row in rows)
    names = {f"  {CLI_PREFIX}{name}=" for name in HELP_TEXTS if name != "target"}
    assert all(row.split("  ")[1].count("=") == 1 for row in rows if row.startswith(tuple(names)))


@pytest.mark.parametrize("command", usage.USAGES)
def test_the_help_of_a_command_has_what_it_does_what_it_takes_and_an_example(command: str) -> None:
    text, told = usage.of_command(command), usage.USAGES[command]
    assert text.startswith(f"Usage: yolo-prune {command}")
    assert told.does[1:] in text and all(row in text for row in told.arguments)
    assert bool(told.example) == bool(told.takes) == bool(told.arguments)
    assert f"\n  yolo-prune {command} {told.example}\n" in f"{text}\n" or not told.example


@pytest.mark.parametrize("command", usage.USAGES)
def test_the_help_of_a_command_has_the_knobs_that_mean_something_there(command: str) -> None:
    named = set(re.findall(rf"^  {CLI_PREFIX}(\w+)=", usage.of_command(command), re.MULTILINE))
    knobs = {"train": set(HELP_TEXTS), "demo": set(HELP_TEXTS), "prune": set(BY_DATA), "plan": set(BY_DATA)}
    assert named == knobs.get(command, set()) - {"target", *(("benchmark", "export") if command == "plan" else ())}
    assert set(BY_WEIGHTS) - {"target"} <= named or not named


@pytest.mark.parametrize("command", ["train", "prune", "plan", "demo"])
def test_the_defaults_that_help_tells_are_those_of_the_command(command: str) -> None:
    own = demo.PRUNE if command == "demo" else {"prune": "TARGET"}
    told = dict(re.findall(rf"^  (prune|{CLI_PREFIX}\w+)=(\S*)  ", usage.of_command(command), re.MULTILINE))
    assert own.items() <= told.items()
    defaults = PruneConfig.from_cli({**told, "prune": "0.5"})
    assert defaults == PruneConfig.from_cli({"prune": "0.5", **{k: v for k, v in own.items() if k != "prune"}})


def test_the_help_of_bench_has_the_arguments_that_it_takes_and_its_defaults() -> None:
    keywords = {
        p.name: p.default for p in inspect.signature(bench.bench).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    told = arguments("bench")
    assert told.keys() == keywords.keys() | {"save"}
    assert int(told["rounds"]) == keywords["rounds"]
    assert keywords["scales"] is keywords["verbose"] is True and keywords["threads"] is None


@pytest.mark.parametrize("command", ["train", "prune", "plan", "sensitivity", "demo"])
def test_the_other_arguments_are_those_of_the_host(command: str) -> None:
    ours = {"calibration"} if command == "sensitivity" else set()
    assert arguments(command).keys() - ours <= DEFAULT_CFG_DICT.keys()
    needed = takewhile(lambda word: not word.startswith("["), usage.USAGES[command].takes.split())
    given = {word.partition("=")[0] for word in shlex.split(usage.USAGES[command].example)}
    assert {word.partition("=")[0] for word in needed} <= given


@pytest.mark.parametrize("words", [["help"], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
def test_help_loads_neither_torch_nor_the_host(words: list[str], python: Python) -> None:
    look = f"import sys; from yolo_prune.cli.main import main; main({words}); print(*sys.modules, file=sys.stderr)"
    done = python("-c", look)
    assert done.stdout.startswith("Usage: yolo-prune ")
    assert {"torch", "ultralytics"}.isdisjoint(done.stderr.split())
