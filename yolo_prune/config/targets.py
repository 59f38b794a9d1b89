"""Targets: one grammar for shares and absolute values of a network's cost.

    0.5, 50%            half of the multiply-adds goes
    50% params          half of the parameters goes; also ``size`` (of the file) and ``latency``
    3.2 GMACs           at most so many multiply-adds stay; GFLOPs are two per multiply-add
    1.2M params, 2 MB   several, separated by commas, must all hold
    8 ms, 2x            so long for one image at most; twice as fast as the dense network; also ``2x as fast``
    1.5 MB litert:8     so large at most as an export of that format and precision; also ``40% onnx:16``
    256 kB ram:8        so much memory at most for feature maps, in INT8; FP16 and FP32 are ``ram:16`` and ``ram``
    60% sparsity        so many weights are zero, single ones; ``40%, 60% sparsity``: channels first, then zeros
    2:4                 two of four neighbouring input channels have a weight of zero, in layers that are wide enough

Fractions and percentages say what goes, everything else says what may stay. A target is said back as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from yolo_prune.errors import ConfigError, short_repr

MACS, PARAMS, BYTES, LATENCY = QUANTITIES = ("macs", "params", "bytes", "latency")
"""Multiply-adds for one image, parameters, bytes of the checkpoint file, seconds for one image."""
RAM = {"ram": 4, "ram:16": 2, "ram:8": 1}
"""Quantity of the bytes of feature maps that an inference holds at its largest moment -> bytes of a value."""
SPARSITY, TWO_OF_FOUR = ZEROS = ("sparsity", "2:4")
"""Weights that are zero: a share of them, or two of every four along the input channels."""
AUTO = "auto"
"""The target of a run that finds its own."""
FILE = "file "
"""Begins the quantity of the bytes of an export, before its format: ``file litert:8``."""
_NAMES = {
    MACS: ("macs", "mac", "flops"),
    PARAMS: ("params", "param", "parameters"),
    BYTES: ("size", "file", "bytes"),
    LATENCY: ("latency", "time"),
    SPARSITY: ("sparsity", "zeros", "sparse"),
}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_UNITS: dict[str, tuple[str, float]] = {
    **{f"{p}{name}": (MACS, n) for p, n in _PREFIXES.items() for name in ("macs", "mac")},
    **{f"{p}flops": (MACS, n / 2) for p, n in _PREFIXES.items()},
    **{f"{p}{name}": (PARAMS, n) for p, n in _PREFIXES.items() for name in ("params", "param", "parameters")},
    **{f"{p}b": (BYTES, n) for p, n in _PREFIXES.items()},
    **{f"{p}ib": (BYTES, 1024.0**i) for i, p in enumerate(("k", "m", "g"), 1)},
    "us": (LATENCY, 1e-6),
    "ms": (LATENCY, 1e-3),
    "s": (LATENCY, 1.0),
}
_SPEED_UPS = ("x", "x faster", "x as fast")
_TERM = re.compile(r"\s*(?P<number>[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?)\s*(?P<unit>([^\d\s].*?)?)\s*", re.IGNORECASE)
_PATTERN = re.compile(r"\s*\d+\s*:\s*\d+\s*")
_BASE_60 = 124
"""What YAML 1.1 makes of a ``2:4`` without quotes."""
_FORM = re.compile(r"[a-z]\w*(:\w+)?")
"""Ultralytics' name of an export format, with a precision or without."""
EXAMPLES = (
    "0.5, 50%, 50% params, 3.2 GMACs, 1.2M params, 2 MB, 1.5 MB litert:8, 256 kB ram:8, 8 ms, 2x, 60% sparsity "
    "or 2:4; several, separated by commas, must all hold"
)


@dataclass(frozen=True)
class Target:
    """One quantity and how much of it may stay.

    Attributes:
        quantity: One of `QUANTITIES`, `RAM` or `ZEROS`, or of a file.
        removed: Share of the dense network's that goes, 0 <= removed < 1, or None for an absolute target. Of `ZEROS`,
            share of the weights that are zero.
        most: What may stay, in multiply-adds, parameters, bytes or seconds, or None for a share.
        text: What was typed; empty for one that nobody typed.
    """

    quantity: str
    removed: float | None = None
    most: float | None = None
    text: str = field(default="", compare=False)

    @property
    def form(self) -> str:
        """Format and precision of the export whose bytes count, or nothing."""
        return form_of_file(self.quantity)

    def limit(self, dense: float) -> float:
        """Return the limit for a dense network that has so much."""
        return dense * (1 - self.removed) if self.removed is not None else float(self.most or 0)

    def __str__(self) -> str:
        if self.text:
            return self.text
        if self.quantity == TWO_OF_FOUR:
            return self.quantity
        if self.removed is not None:
            name = self.form or (self.quantity if self.quantity in RAM else _NAMES[self.quantity][0])
            return f"{100 * self.removed:.12g}% {name}"
        return in_units(self.quantity, self.most or 0, digits=12)


def read_targets(value: Any) -> tuple[Target, ...]:
    """Read targets in any form that a user may give.

    Args:
        value: A number, a text, or a list of these.

    Returns:
        At most one target per quantity and form; none where nothing is to go.

    Raises:
        ConfigError: If it is none of these, a share is not in 0 <= x < 1, an amount is not above 0, or zeros are asked
            for in two ways; or if one of several is a mere 0, which a decimal comma makes.
    """
    terms: Sequence[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(terms, (list, tuple)):
        terms = [terms]
    if not terms:
        raise ConfigError(f"target={short_repr(value)} says nothing; give {EXAMPLES}.")
    targets = [_read(term) for term in terms]
    if len(terms) > 1 and "0" in (target.text for target in targets):
        raise ConfigError(
            f"target={short_repr(value)} begins anew after 0, which cuts nothing; leave it out, or write decimals with "
            "a point: 0.5 MB."
        )
    if {target.quantity for target in targets if target.removed}.issuperset(ZEROS):
        raise ConfigError(
            f"target={short_repr(value)} asks for zeros in two ways: 2:4 makes half of the weights of its layers zero; "
            "give either 2:4 or a share such as 60% sparsity."
        )
    return tuple(dict.fromkeys(t for t in targets if t.removed != 0))


def canonical(targets: Sequence[Target]) -> float | str:
    """Return a value that reads as the same targets: a share of the MACs as a number, else the text that was typed."""
    if not targets:
        return 0.0
    if len(targets) == 1 and targets[0].quantity == MACS and targets[0].removed is not None:
        return targets[0].removed
    return ", ".join(map(str, targets))


def form_of_file(quantity: str) -> str:
    """Return format and precision of the export that a quantity is the bytes of, or nothing for others."""
    return quantity[len(FILE) :] if quantity.startswith(FILE) else ""


def in_units(quantity: str, amount: float, digits: int = 3) -> str:
    """Return an amount as text that `read_targets` reads: ``1.62 GMACs``, ``2.1M params``, ``5.2 MB``, ``8 ms``."""
    amount = float(f"{amount:.{digits}g}")  # before the prefix is chosen: 999.9999 M is 1 G
    if quantity == LATENCY:
        return f"{amount * 1e3:.{digits}g} ms"
    if quantity == BYTES:
        return f"{amount / 1e6:.{digits}g} MB"
    if form := form_of_file(quantity):
        return f"{amount / 1e6:.{digits}g} MB {form}"
    if quantity in RAM:
        return f"{amount / 1e3:.{digits}g} kB {quantity}"
    prefix, size = next((p, n) for p, n in (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)) if amount >= n or n == 1)
    return f"{amount / size:.{digits}g}{f' {prefix}MACs' if quantity == MACS else f'{prefix} params'}"


def _read(term: Any) -> Target:
    """Read one target, and keep what was typed on one line."""
    if isinstance(term, bool) or not isinstance(term, (int, float, str)):
        raise ConfigError(f"target={short_repr(term)} is a {type(term).__name__}; give {EXAMPLES}.")
    text = term if isinstance(term, str) else short_repr(term)
    return replace(_parse(text), text=" ".join(text.split()))


def _parse(text: str) -> Target:
    if _PATTERN.fullmatch(text):
        if "".join(text.split()) == TWO_OF_FOUR:
            return Target(TWO_OF_FOUR, removed=0.5)
        raise ConfigError(
            f"target={text}: of patterns of zeros only 2:4 is faster anywhere; give 2:4, or a share such as 75% "
            "sparsity."
        )
    match = _TERM.fullmatch(text)
    if not match:
        raise ConfigError(f"target={text} is not a number with a unit; give {EXAMPLES}.")
    number, unit = float(match["number"]), " ".join(match["unit"].lower().split())
    if unit.startswith("%"):
        return _share(text, number / 100, unit[1:].removeprefix(" of").strip())
    if not unit:
        return _share(text, number, "")
    if unit in _SPEED_UPS:
        if not 1 <= number < 1e9:
            raise ConfigError(f"target={text} is no speed-up >= 1; 2x is twice as fast as the dense model.")
        return Target(LATENCY, removed=1 - 1 / number)
    known = _UNITS.get(unit.replace(" ", ""))
    amount, _, form = unit.partition(" ")
    if known is None and _FORM.fullmatch(form) and _UNITS.get(amount, ("",))[0] == BYTES:
        known = (_memory(text, form) or f"{FILE}{form}", _UNITS[amount][1])
    if known is None:
        raise ConfigError(f"target={text}: {match['unit']!r} is no unit; give {EXAMPLES}.")
    if not 0 < number < 1e15:
        raise ConfigError(f"target={text} is not above 0 and finite; give {EXAMPLES}.")
    return Target(known[0], most=number * known[1])


def _share(text: str, share: float, name: str) -> Target:
    quantity = next((q for q, names in _NAMES.items() if (name or _NAMES[MACS][0]) in names), None)
    quantity = quantity or _memory(text, name)
    if quantity is None and ":" in name and _FORM.fullmatch(name):
        quantity = f"{FILE}{name}"
    if quantity is None:
        raise ConfigError(
            f"target={text}: {name!r} is nothing that can be cut; percentages are of "
            f"{', '.join(names[0] for names in _NAMES.values())}."
        )
    if not 0 <= share < 1:
        quotes = f" (YAML reads 2:4 without quotes as {_BASE_60}: write '2:4')" * (share == _BASE_60)
        raise ConfigError(
            f"target={text} is not a share to remove in 0 <= target < 1; 0.5 and 50% remove half of the MACs, 0 cuts "
            f"nothing; an amount that may stay needs its unit, e.g. 3.2 GMACs, 1.2M params, 2 MB, 8 ms{quotes}."
        )
    return Target(quantity, removed=share)


def _memory(text: str, form: str) -> str | None:
    """Return the quantity of a target in memory, or None for another."""
    if form.partition(":")[0] != "ram":
        return None
    if form not in RAM:
        raise ConfigError(f"target={text}: memory is counted as one of {', '.join(RAM)}, by the bytes of a value.")
    return form
