"""The ``yolo-prune`` command: dispatch only, each command lives in the module that knows how."""

from __future__ import annotations

import difflib
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from yolo_prune import __version__
from yolo_prune.cli import startup, usage
from yolo_prune.errors import ConfigError, PruneError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command and its arguments; by default those of this process.

    Returns:
        The exit code: 0, 2 if the command line is wrong, 1 if the command failed or nobody reads what it prints.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["help"]
    logging_tells, logging.raiseExceptions = logging.raiseExceptions, False  # of each line that a closed pipe refuses
    try:
        try:
            return _run("help" if name == "-h" else name.lstrip("-"), arguments)
        finally:
            print(end="", flush=True)  # at exit nobody could catch what a closed pipe raises
    except BrokenPipeError:
        _forget_closed_pipe()
        return 1
    finally:
        logging.raiseExceptions = logging_tells


def _forget_closed_pipe() -> None:
    """Let what is still to be printed go nowhere, as Python flushes once more at exit.

    Raises:
        BrokenPipeError: The one that is being handled, if it was of another pipe.
    """
    closed = next((stream for stream in (sys.stdout, sys.stderr) if stream and _is_closed(stream)), None)
    if closed is None:
        raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more."""
    try:
        print(file=stream, flush=True)
    except BrokenPipeError:
        return True
    return False


def _run(name: str, arguments: list[str]) -> int:
    """Run one command, or print its help, and return the exit code."""
    try:
        _check(name)
        if HELP.isdisjoint(arguments):
            COMMANDS[name](arguments)
        else:
            print(usage.of_command(name))
    except PruneError as e:
        print(f"yolo-prune: {e}", file=sys.stderr)
        return 2 if isinstance(e, ConfigError) else 1
    return 0


def _check(name: str) -> None:
    """Raise a ConfigError if there is no such command."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown command {name}.{hint} Valid: {', '.join(COMMANDS)}.")


def train(arguments: list[str]) -> None:
    """Hand over to ``yolo train`` with the prune arguments already taken."""
    sys.argv[:] = ["yolo", "train", *arguments]
    if not startup.prepare(sys.argv):
        raise ConfigError("train without prune: say how much to remove, e.g. prune=0.5, or use 'yolo train'.")

    from ultralytics.cfg import entrypoint  # reads sys.argv while it is being imported

    entrypoint()


def prune(arguments: list[str]) -> None:
    """Prune without training."""
    options, values = _assignments(arguments, "prune model=best.pt data=my.yaml prune=0.15")
    from yolo_prune.cli.commands import prune_command

    prune_command(values, options)


def plan(arguments: list[str]) -> None:
    """Print what would be cut."""
    options, values = _assignments(arguments, "plan model=best.pt prune=0.5")
    gc.disable()  # imports and a trace make millions of objects that stay; looking for garbage takes a second
    try:
        from yolo_prune.cli.commands import plan_command

        plan_command(values, options)
    finally:
        gc.enable()


def bench(arguments: list[str]) -> None:
    """Time models side by side."""
    models, values = _models(arguments)
    if not models:
        raise ConfigError("bench without models: say which, e.g. yolo-prune bench dense.pt best.pt imgsz=640.")
    from yolo_prune.cli.commands import bench_command  # loads ultralytics

    bench_command(models, values)


def kit(arguments: list[str]) -> None:
    """Write a kit that times networks on another machine."""
    models, values = _models(arguments)
    from yolo_prune.cli.commands import kit_command  # loads ultralytics

    kit_command(models, values)


def inspect(arguments: list[str]) -> None:
    """Print what checkpoints are, and what was done to them."""
    models, values = _models(arguments)
    if not models:
        raise ConfigError("inspect without a checkpoint: say which, e.g. yolo-prune inspect best.pt.")
    from yolo_prune.cli.commands import inspect_command  # loads ultralytics

    inspect_command(models, values)


def report(arguments: list[str]) -> None:
    """Write the page of a run anew."""
    if len(arguments) != 1:
        raise ConfigError("report takes the folder of one run, e.g. yolo-prune report runs/detect/train.")
    from yolo_prune.report.page import write  # loads ultralytics

    print(write(Path(arguments[0])))


def compare(arguments: list[str]) -> None:
    """Put finished runs on one page."""
    runs, values = _models(arguments)
    if not runs:
        raise ConfigError("compare without runs: say which, e.g. yolo-prune compare runs/detect/train*.")
    from yolo_prune.cli.commands import compare_command  # loads ultralytics

    compare_command(runs, values)


def sensitivity(arguments: list[str]) -> None:
    """Measure which layers are sensitive."""
    options, values = _assignments(arguments, "sensitivity model=best.pt data=my.yaml")
    if options:
        raise ConfigError(f"{', '.join(options)}: sensitivity cuts nothing for good and takes no prune argument.")
    from yolo_prune.cli.commands import sensitivity_command

    sensitivity_command(values)


def curve(arguments: list[str]) -> None:
    """Draw accuracy against size before any training."""
    options, values = _assignments(arguments, "curve model=best.pt data=my.yaml")
    if "prune" in options:
        raise ConfigError(f"curve cuts to several sizes: give sizes={options['prune']}, or leave it out for eight.")
    from yolo_prune.cli.commands import curve_command

    curve_command(values, options)


def _models(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the files that a command names, and its other arguments as name -> text."""
    rest = startup.join_assignments(arguments)
    models = [argument for argument in rest if "=" not in argument]
    return models, dict(argument.split("=", 1) for argument in rest if "=" in argument)


def _assignments(arguments: list[str], example: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the prune arguments and the others of a command as name -> text."""
    rest = startup.join_assignments(arguments)
    options = startup.take_arguments(rest)
    if wrong := [argument for argument in rest if "=" not in argument]:
        raise ConfigError(f"{wrong[0]} is no key=value; e.g. yolo-prune {example}.")
    return options, dict(argument.split("=", 1) for argument in rest)


def demo(arguments: list[str]) -> None:
    """Run the demonstration."""
    from yolo_prune.cli.demo import run  # loads numpy

    run(arguments)


def show_help(arguments: list[str]) -> None:
    """Print all commands and all options with their defaults, or what one command takes."""
    if len(arguments) > 1:
        raise ConfigError(f"help {' '.join(arguments)}: help tells of one command, e.g. yolo-prune help plan.")
    for name in arguments:
        _check(name)
    print(usage.of_command(arguments[0]) if arguments else usage.of_all())


def version(arguments: list[str]) -> None:
    """Print the version."""
    print(f"yolo-prune {__version__}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "prune": prune,
    "plan": plan,
    "bench": bench,
    "kit": kit,
    "sensitivity": sensitivity,
    "curve": curve,
    "inspect": inspect,
    "report": report,
    "compare": compare,
    "demo": demo,
    "help": show_help,
    "version": version,
}
"""Command -> function; help texts are in `usage`."""
HELP = {"--help", "-h"}
