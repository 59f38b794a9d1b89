"""Figures as text: tables, amounts with their units, changes."""

from __future__ import annotations


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Return rows of cells as lines of text, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def epochs(n: int) -> str:
    """Return ``1 epoch``, ``14 epochs``."""
    return f"{n} epoch{'s' * (n != 1)}"


def count(n: float | None) -> str:
    """Return ``1.21G``, ``529M``, ``2.5k``, or nothing for None; so do the others below."""
    if n is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(n) >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def megabytes(n: int | None) -> str:
    """Return ``6.46 MB``."""
    return "" if n is None else f"{n / 1e6:.2f} MB"


def milliseconds(seconds: float | None) -> str:
    """Return ``14.90 ms``."""
    return "" if seconds is None else f"{seconds * 1e3:.2f} ms"


def score(x: float | None) -> str:
    """Return ``0.6034``."""
    return "" if x is None else f"{x:.4f}"


def change(now: float | None, before: float | None) -> str:
    """Return ``" (-30.0%)"``, or nothing where it says nothing: a fitness that has grown from about 0."""
    return f" ({now / before - 1:+.1%})" if now is not None and before and now < 10 * before else ""
