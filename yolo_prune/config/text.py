"""Options as text: their names on the command line, their values as they are typed, and YAML files."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from yolo_prune.errors import ConfigError, describe_error, short_repr

_EXPONENT = re.compile(r"[-+]?\d+e[-+]?\d+", re.IGNORECASE)
"""A number that YAML 1.1 takes for text, because it has no point."""
CLI_PREFIX = "prune_"
"""The option ``steps`` is ``prune_steps`` on the command line; ``prune`` alone is the target or a YAML file."""


def is_argument(name: str) -> bool:
    """Whether a command-line argument is one of ours."""
    return name == "prune" or name.startswith(CLI_PREFIX)


def known_name(name: str, valid: Iterable[str], prefix: str = "", seen: str | None = None) -> str:
    """Return a name if it is valid.

    Args:
        name: What was given, without a prefix.
        valid: All names.
        prefix: Stands before each where they are given.
        seen: What was given there, if not the name.

    Raises:
        ConfigError: If it is not valid, with the nearest name that is.
    """
    names = list(valid)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {prefix}{near[0]}?" if near else "see the list."
    raise ConfigError(f"unknown option {seen or name}: {hint} Valid: {', '.join(prefix + k for k in names)}.")


def check_matches(option: str, patterns: Iterable[str], paths: Sequence[str]) -> None:
    """Refuse name patterns that match none of these paths of layers.

    Raises:
        ConfigError: Names the pattern of the option, and the path that is most like it.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
            why = "matches no layer of this network; its layers have names like"
            raise ConfigError(f"{option}: {short_repr(pattern)} {why} {', '.join(near)}.")


def as_text(value: object) -> str:
    """Return the value of an option as it would be typed."""
    if isinstance(value, dict):
        return ",".join(f"{pattern}:{share}" for pattern, share in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the options in a YAML file, read with a loader that cannot run code.

    Raises:
        ConfigError: If there is no such file, or it holds something else than options.
    """
    import yaml  # only where a file is read: start-up must stay cheap

    lines = "'option: value' lines such as 'target: 0.5'"
    try:
        text = Path(path).read_text(encoding="utf-8")
        options, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"prune={path}: there is no such file; give a number such as prune=0.5 or a path.") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"prune={path} is not valid YAML: {' '.join(str(e).split())}; write {lines}.") from e
    except Exception as e:  # yaml raises whatever a tag such as !!bool finds in its text
        raise ConfigError(f"prune={path} cannot be read ({describe_error(e)}); write {lines}.") from e
    if not isinstance(options, dict):
        raise ConfigError(f"prune={path} holds a {type(options).__name__}, not {lines}.")
    names = [key.value for key, _ in tree.value] if tree else []
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"prune={path} has {twice} twice; leave one of them.")
    return {name: float(v) if isinstance(v, str) and _EXPONENT.fullmatch(v) else v for name, v in options.items()}
