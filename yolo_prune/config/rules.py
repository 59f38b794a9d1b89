"""Rules of options: each kind checks values, and reads them from command-line text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from yolo_prune.config.sizes import read_sizes
from yolo_prune.config.targets import AUTO, canonical, read_targets
from yolo_prune.device.command import is_command, words_of
from yolo_prune.errors import ConfigError, short_repr


@dataclass(frozen=True)
class Rule:
    """The kind of an option.

    Attributes:
        check: (name, value, help) -> the value as it is stored; raises a ConfigError if it is wrong.
        read: (name, text, default) -> the value that a text on the command line stands for, not checked yet.
    """

    check: Callable[[str, Any, str], Any]
    read: Callable[[str, str, Any], Any]

    def or_none(self) -> Rule:
        """Return the rule of an option that can be left open."""

        def check(name: str, value: Any, help: str) -> Any:
            return None if value is None else self.check(name, value, help)

        def read(name: str, text: str, default: Any) -> Any:
            return None if text.lower() == "none" else self.read(name, text, default)

        return Rule(check, read)


def target() -> Rule:
    """A target: see `targets`; or `AUTO`."""

    def check(name: str, value: Any, help: str) -> float | str:
        is_auto = isinstance(value, str) and value.strip().lower() == AUTO
        return AUTO if is_auto else canonical(read_targets(value))

    return Rule(check, lambda name, text, default: text)


def sizes() -> Rule:
    """Several targets: see `sizes`."""
    return Rule(lambda name, value, help: read_sizes(value), lambda name, text, default: read_sizes(text))


def choice(*allowed: str, removed: Mapping[str, str] | None = None, parts: str = "", else_: str = "") -> Rule:
    """One of several words.

    Args:
        *allowed: The words.
        removed: Words of earlier versions -> what to use instead.
        parts: What may end a word, and more follow.
        else_: What others may have meant.
    """

    def check(name: str, value: Any, help: str) -> Any:
        if removed and isinstance(value, str) and value in removed:
            raise ConfigError(f"{name}={value} was removed in 0.2.0: {removed[value]}.")
        word = value.partition(parts)[0] if parts and isinstance(value, str) else value
        if word not in allowed:
            near = difflib.get_close_matches(short_repr(value), allowed, n=1)
            hint = f" Did you mean {near[0]}?" if near else else_ and f" {else_}"
            raise ConfigError(f"{name}={short_repr(value)} is not one of {', '.join(allowed)}.{hint}")
        return value

    return Rule(check, lambda name, text, default: text.strip("'\""))


def runtime(*allowed: str) -> Rule:
    """One of several runtimes, each with a precision or without, or a command that times a file."""
    named = choice(*allowed, parts=":")

    def check(name: str, value: Any, help: str) -> Any:
        if isinstance(value, str) and is_command(value):
            words_of(value)
            return value
        return named.check(name, value, help)

    return Rule(check, named.read)


def whole(low: int) -> Rule:
    """A whole number from ``low`` on."""

    def check(name: str, value: Any, help: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1e9:
            raise ConfigError(f"{name}={short_repr(value)} is not a whole number >= {low}; {help}.")
        return value

    return Rule(check, _reader(int, "whole number"))


def number(is_valid: Callable[[float], bool] = lambda x: True, why: str = "") -> Rule:
    """A finite number.

    Args:
        is_valid: Whether it may have a value.
        why: What to say after ``name=value`` if it may not.
    """

    def check(name: str, value: Any, help: str) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not abs(value) < 1e9:  # nor infinite, nor NaN
            raise ConfigError(f"{name}={short_repr(value)} is not a number; {help}.")
        if not is_valid(value):
            raise ConfigError(f"{name}={value:g} {why}")
        return float(value)

    return Rule(check, _reader(float, "number"))


def flag() -> Rule:
    """True or False."""

    def check(name: str, value: Any, help: str) -> Any:
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={short_repr(value)} is not a bool; use True or False.")
        return value

    def read(name: str, text: str, default: Any) -> Any:
        if text.lower() not in {"true", "false"}:
            raise ConfigError(f"{name}={text} is not a bool; use True or False.")
        return text.lower() == "true"

    return Rule(check, read)


def flag_or_path() -> Rule:
    """True, False or the path of a checkpoint."""

    def check(name: str, value: Any, help: str) -> Any:
        if not isinstance(value, (bool, str)) or not str(value):
            raise ConfigError(f"{name}={short_repr(value)} is neither True, False nor the path of a checkpoint.")
        return value

    return Rule(check, lambda name, text, default: flag_or_text(text))


def path() -> Rule:
    """The path of a file."""

    def check(name: str, value: Any, help: str) -> str:
        if not isinstance(value, (str, PathLike)) or not str(value):
            raise ConfigError(f"{name}={short_repr(value)} is not the path of a file; {help}.")
        return str(value)

    return Rule(check, lambda name, text, default: text)


def names(*, numbered: bool = False) -> Rule:
    """A tuple of names; a text is read as ``a,b`` or ``[a, b]``.

    Args:
        numbered: Whether whole numbers stand for names, too; they become texts.
    """

    def check(name: str, value: Any, help: str) -> tuple[str, ...]:
        values = _split_names(value) if isinstance(value, str) else value
        if numbered:
            values = [value] if type(value) is int else values
            values = [str(v) if type(v) is int and 0 <= v < 1e9 else v for v in values] if _is_list(values) else values
        if not _is_list(values) or not all(isinstance(v, str) and v for v in values):
            raise ConfigError(f"{name}={short_repr(value)} is not a list of names; {help}.")
        return tuple(values)

    return Rule(check, lambda name, text, default: _split_names(text))


def levels() -> Rule:
    """A tuple of detection levels in order; a text is read as ``4,5`` or ``P4,P5``."""

    def check(name: str, value: Any, help: str) -> tuple[int, ...]:
        values = _split_names(value) if isinstance(value, str) else value
        values = values if _is_list(values) else [values]
        texts = [(v if isinstance(v, str) else short_repr(v)).strip().upper().removeprefix("P") for v in values]
        if not all(len(text) == 1 and text in "123456789" for text in texts):
            raise ConfigError(f"{name}={short_repr(value)} is not a list of levels; {help}.")
        return tuple(sorted({int(text) for text in texts}))

    return Rule(check, lambda name, text, default: check(name, text, "give numbers, e.g. 5 or 4,5"))


def shares() -> Rule:
    """Name pattern -> share in 0 <= x < 1; a text is read as ``a:0.5,b:0.2``."""

    def check(name: str, value: Any, help: str) -> dict[str, float]:
        value = read(name, value, None) if isinstance(value, str) else value
        if not isinstance(value, Mapping) or not all(isinstance(k, str) and k for k in value):
            raise ConfigError(f"{name}={short_repr(value)} does not map name patterns to shares; {help}.")
        for pattern, share in value.items():
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
                raise ConfigError(f"{name}: {pattern} has {short_repr(share)}, not a share in 0 <= x < 1; {help}.")
        return {pattern: float(share) for pattern, share in value.items()}

    def read(name: str, text: str, default: Any) -> Any:
        pairs = (part.partition(":") for part in _split_names(text.strip("{}")))
        return {pattern.strip(" '\""): _number_or_text(share) for pattern, _, share in pairs}

    return Rule(check, read)


def plain(value: Any) -> Any:
    """Return a value with Python's own numbers and lists where it has those of numpy or torch."""

    def own(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    if isinstance(value, Mapping):
        return {name: own(of) for name, of in value.items()}
    return [*map(own, value)] if _is_list(value) else own(value)


def flag_or_text(text: str) -> Any:
    """Return ``true`` and ``false`` in any case as a bool, and any other text as it is."""
    return {"true": True, "false": False}.get(text.strip().lower(), text.strip())


def _reader(convert: Callable[[str], float], kind: str) -> Callable[[str, str, Any], float]:
    """Return the ``read`` of a rule for numbers of a kind."""

    def read(name: str, text: str, default: Any) -> float:
        try:
            return convert(text)
        except ValueError:
            raise ConfigError(f"{name}={text} is not a {kind}; the default is {default}.") from None

    return read


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _split_names(text: str) -> tuple[str, ...]:
    """Read ``a,b`` or ``[a, b]``, where a name may have brackets of its own."""
    text = text.strip()
    for opening, closing in ("[]", "()"):
        inner = text[1:-1]
        is_pair = closing not in inner or -1 < inner.find(opening) < inner.find(closing)
        if text.startswith(opening) and text.endswith(closing) and is_pair:
            text = inner
    return tuple(part for part in (p.strip(" '\"") for p in text.split(",")) if part)
