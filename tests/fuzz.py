"""Arbitrary input that several tests share: plain data, and texts that were valid until something happened to them."""

from __future__ import annotations

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(4300, 4400).map(lambda digits: 10**digits),  # more digits than Python prints
    st.floats(),
    st.text(max_size=6),
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
"""What JSON or YAML may hold, and more."""


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[str]) -> str:
    """A text of which a piece is lost, repeated, or replaced by another text."""
    text = draw(valid)
    start, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    piece = draw(st.text(max_size=6) | st.sampled_from(["", text[start:end] * 2, "9" * 5000, "[" * 2000, "null", '"']))
    return text[:start] + piece + text[end:]
