"""A command as the stopwatch: it gets a file, times it wherever it likes, and says the seconds in its last line.

    command: adb-timer.sh {file}        42.1 ms
    command: ssh board time.py {file}   0.0421

The number that ends the last line counts, in seconds or with its unit (s, ms, us). It has a decimal point, and nothing
between thousands.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path

from yolo_prune.errors import ConfigError, UnsupportedError, short_repr

PREFIX = "command:"
FILE = "{file}"
TIMEOUT = 600.0
"""Seconds after which a command is ended."""
WAITS = (5.0, 20.0, 60.0)
"""Seconds between the tries of a command that fails: a board that reboots comes back."""
_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "\u03bcs": 1e-6}
"""Unit, with case folded -> seconds; Unicode's sign for micro is the Greek letter then."""
_SECONDS = re.compile(
    r"(?<!\d)(?<!\d[.,:'\u2019/+-])"  # nor the end of 1,234.5, 12:34.5 or 3-4
    r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(" + "|".join(_UNITS) + r")\W*$",
    re.IGNORECASE,
)


def is_command(runtime: str) -> bool:
    """Return whether a runtime is a command."""
    return runtime.startswith(PREFIX)


def words_of(runtime: str) -> list[str]:
    """Return the words of a command; one of them has ``{file}`` in it.

    Raises:
        ConfigError: If none has, or a quote is not closed.
    """
    text = runtime[len(PREFIX) :].strip()
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"runtime={short_repr(runtime)} is no command that a shell would read: {e}.") from e
    if not any(FILE in word for word in words):
        raise ConfigError(
            f'runtime={short_repr(runtime)} does not say where the file goes; e.g. runtime="command: my-timer {FILE}".'
        )
    return words


def seconds_of(runtime: str, file: Path, waits: tuple[float, ...] = WAITS, timeout: float = TIMEOUT) -> float:
    """Run a command on a file, and return the seconds that it says; one that fails, or says nothing, is tried again.

    Raises:
        UnsupportedError: If it cannot be run, fails every time, says no seconds, or takes too long.
    """
    words = [word.replace(FILE, str(file)) for word in words_of(runtime)]
    for wait in (*waits, None):
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
            )
        except FileNotFoundError as e:
            raise UnsupportedError(f"the command {words[0]} was not found; give its path.") from e
        except OSError as e:
            raise UnsupportedError(
                f"the command {words[0]} cannot be run: {e}; a script begins with #!/bin/bash."
            ) from e
        except subprocess.TimeoutExpired:
            problem = f"was not done after {timeout:g} s"
        else:
            if done.returncode == 0 and done.stdout.strip():  # a pipe has the status of its end, and says nothing
                return read_seconds(done.stdout, words[0])
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            problem = f"ended with status {done.returncode} and said: {said}"
        if wait is not None:
            time.sleep(wait)
    raise UnsupportedError(
        f"the command {shlex.join(words)} {problem}, {len(waits) + 1} times; what was timed before is kept, so start "
        "again once it works."
    )


def read_seconds(output: str, name: str) -> float:
    """Return the seconds that a command's output ends with.

    Raises:
        UnsupportedError: If its last line has none, or they are not above 0.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    match = _SECONDS.search(lines[-1]) if lines else None
    if match is None:
        said = short_repr(lines[-1]) if lines else "nothing"
        raise UnsupportedError(
            f"the command {name} said {said} in its last line, which ends with no number of seconds; print 0.0123, or "
            "12.3 ms, with a point and without other separators."
        )
    seconds = float(match[1]) * _UNITS[match[2].casefold()]
    if not 0 < seconds < float("inf"):
        raise UnsupportedError(f"the command {name} said {match[0]!r}, which is no time above 0 s.")
    return seconds
