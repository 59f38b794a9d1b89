"""How the stock ``yolo train ... prune=0.5`` finds us.

Ultralytics refuses argument names that it does not know, so ours have to be gone before it reads ``sys.argv``. The
wheel ships ``yolo_prune_startup.pth``, a line that Python runs at every start. If it sees a prune argument it calls
``activate`` here, which in an Ultralytics command

1. takes the prune arguments out of ``sys.argv`` and keeps them in the environment, for the commands that Ultralytics
   starts itself,
2. when ``ultralytics`` is imported, refuses wrong ones with one sentence and exit code 2,
3. when ``ultralytics.engine.model`` is imported, wraps ``Model.train`` so that it prunes.

``YOLO_PRUNE=0`` in the environment switches this off. Nothing heavy is imported here: every Python start pays.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.text import is_argument
from yolo_prune.errors import ConfigError, PruneError
from yolo_prune.host.patches import patch

SWITCH = "YOLO_PRUNE"
CHILD_ARGUMENTS = "YOLO_PRUNE_ARGS"
"""Environment variable with the prune arguments as a JSON object of texts, e.g. ``{"prune": "0.5"}``."""
MODES = ("train", "val", "predict", "export", "track", "benchmark")
"""Ultralytics' command-line modes (``ultralytics.cfg.MODES``, read in 8.4.190)."""


def activate() -> None:
    """Prepare pruning if this process is an Ultralytics command with prune arguments; ``yolo_prune_startup.pth``."""
    if os.environ.get(SWITCH) != "0" and is_ultralytics_command():
        prepare(sys.argv)


def is_ultralytics_command() -> bool:
    """Tell whether Python was started as ``yolo``, ``ultralytics`` or ``python -m ultralytics...``."""
    if not getattr(sys, "argv", None):  # a program that embeds Python may leave it out
        return False
    if sys.argv[0] == "-m":  # the module's name has not been looked up yet
        return sys.orig_argv[-len(sys.argv)].split(".")[0] == "ultralytics"
    return os.path.basename(sys.argv[0]).removesuffix(".exe") in {"yolo", "ultralytics"}


def prepare(argv: list[str]) -> bool:
    """Take the prune arguments out of ``argv``, in place, and wait for the import of Ultralytics.

    Args:
        argv: Program name and arguments of an Ultralytics command.

    Returns:
        Whether there is anything to prune.
    """
    rest = join_assignments(argv[1:])
    if arguments := take_arguments(rest):
        argv[1:] = rest
        os.environ[CHILD_ARGUMENTS] = json.dumps(arguments)
    wanted = bool(arguments) or (CHILD_ARGUMENTS in os.environ and mode(rest) == "train")
    # In a virtual environment Python runs its start-up lines twice.
    if wanted and not any(isinstance(finder, ImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, ImportHook(rest))
    return wanted


def join_assignments(arguments: Iterable[str]) -> list[str]:
    """Join ``a = b``, ``a= b``, ``a =b`` and ``a=[b, c]`` where the shell split them, as Ultralytics does."""
    joined: list[str] = []
    for argument in arguments:
        last = joined[-1] if joined else ""
        waits = (last.endswith("=") and "=" not in argument) or last.count("[") > last.count("]")
        if joined and (waits or argument.startswith("=")):
            joined[-1] += argument
        else:
            joined.append(argument)
    return joined


def take_arguments(arguments: list[str]) -> dict[str, str]:
    """Remove ``prune`` and ``prune_...`` from joined arguments, in place, and return them as name -> text."""
    pairs = [(argument, *_split(argument)) for argument in arguments]
    arguments[:] = [argument for argument, name, _ in pairs if not is_argument(name)]
    return {name: text for _, name, text in pairs if is_argument(name)}


def mode(arguments: Iterable[str]) -> str | None:
    """Return the mode that Ultralytics will see in joined arguments, or None; the last one counts."""
    told = [argument for argument in arguments if "=" not in argument or _split(argument)[0] == "mode"]  # not val=False
    words = [text if name == "mode" else name for name, text in map(_split, told)]
    return next((word for word in reversed(words) if word in MODES), None)


def read_config(arguments: dict[str, str], rest: Sequence[str]) -> PruneConfig | None:
    """Validate the prune arguments of a command.

    Args:
        arguments: Prune arguments as name -> text.
        rest: The other arguments of the command, joined.

    Returns:
        The configuration, or None where a resumed run brings its own.

    Raises:
        ConfigError: If an option is wrong, or the command does not train.
    """
    if (seen := mode(rest)) != "train":
        where = f"not in {seen}" if seen else "and this command does not say train"
        raise ConfigError(
            f"prune works in training only, {where}: write 'yolo train ... prune=0.5'; "
            "the checkpoint that it leaves needs no prune argument afterwards."
        )
    resumes = dict(map(_split, rest)).get("resume", "false").lower() != "false"
    if resumes and {name: text.lower() for name, text in arguments.items()} == {"prune": "true"}:
        return None
    return PruneConfig.from_cli(arguments)


class ImportHook:
    """Meta-path finder that checks the arguments and wraps ``Model.train`` while Ultralytics is being imported."""

    def __init__(self, rest: Sequence[str]) -> None:
        self.rest = rest
        self.config: PruneConfig | None = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find nothing but ``ultralytics.engine.model``, and that with the help of the other finders."""
        if name == "ultralytics":
            try:
                self.config = read_config(_json_texts(os.environ[CHILD_ARGUMENTS]), self.rest)
            except ConfigError as e:
                refuse(e)
        if name != "ultralytics.engine.model":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                wrap_train(module.Model, self.config)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader, not of its class
        return spec


def wrap_train(model_class: Any, config: PruneConfig | None) -> None:
    """Attach the pruning to every model of this process before its first training."""
    stock_train = model_class.train
    attached: weakref.WeakSet[Any] = weakref.WeakSet()

    @functools.wraps(stock_train)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        from yolo_prune.callback import PruneCallback  # loads torch and ultralytics

        try:
            if self not in attached:
                PruneCallback(config).attach(self)
                attached.add(self)
            return stock_train(self, *args, **kwargs)
        except PruneError as e:
            refuse(e)

    patch(model_class, "train", train)


def refuse(error: PruneError) -> NoReturn:
    """End a command with one clear line instead of a traceback: exit code 2 if its arguments are wrong, else 1."""
    print(f"yolo-prune: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, ConfigError) else 1)


def _split(argument: str) -> tuple[str, str]:
    """Return name and text of a joined argument; as in Ultralytics, ``--a=b,`` is ``a=b`` and ``a`` is ``a=True``."""
    name, equals, text = argument.removeprefix("--").removesuffix(",").partition("=")
    return name.strip(), text.strip() if equals else "True"


def _json_texts(text: str) -> dict[str, str]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or not all(isinstance(value, str) for value in arguments.values()):
        raise ConfigError(f'{CHILD_ARGUMENTS}={text} is not a JSON object of texts such as {{"prune": "0.5"}}.')
    return arguments
