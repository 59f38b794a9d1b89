from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yolo_prune.errors import ConfigError
from yolo_prune.targets import QUANTITIES, Target, canonical, in_units, read_targets

MACS, PARAMS, BYTES, LATENCY = QUANTITIES


@pytest.mark.parametrize(
    ("given", "target"),
    [
        (0.5, Target(MACS, removed=0.5)),
        ("0.5", Target(MACS, removed=0.5)),
        ("50%", Target(MACS, removed=0.5)),
        ("50 % of MACs", Target(MACS, removed=0.5)),
        ("50% FLOPs", Target(MACS, removed=0.5)),
        ("50% params", Target(PARAMS, removed=0.5)),
        ("50% size", Target(BYTES, removed=0.5)),
        ("50% latency", Target(LATENCY, removed=0.5)),
        ("2x", Target(LATENCY, removed=0.5)),
        ("2x faster", Target(LATENCY, removed=0.5)),
        ("3.2 GMACs", Target(MACS, most=3.2e9)),
        ("6.4GFLOPs", Target(MACS, most=3.2e9)),
        ("120 mmacs", Target(MACS, most=1.2e8)),
        ("1.2M params", Target(PARAMS, most=1.2e6)),
        ("1.2 M parameters", Target(PARAMS, most=1.2e6)),
        ("800k params", Target(PARAMS, most=8e5)),
        ("2 MB", Target(BYTES, most=2e6)),
        ("2 MiB", Target(BYTES, most=2 * 2**20)),
        ("8 ms", Target(LATENCY, most=0.008)),
        ("800us", Target(LATENCY, most=0.0008)),
    ],
)
def test_every_form_is_read(given: Any, target: Target) -> None:
    (read,) = read_targets(given)
    assert read.quantity == target.quantity
    assert read.limit(100.0) == pytest.approx(target.limit(100.0))


@pytest.mark.parametrize("given", ["50%, 2 MB", ["50%", "2 MB"], (0.5, "2 MB"), "2 MB,50%"])
def test_several_must_all_hold(given: Any) -> None:
    assert set(read_targets(given)) == {Target(MACS, removed=0.5), Target(BYTES, most=2e6)}


@pytest.mark.parametrize("given", [0, 0.0, "0", "0%", "0% params", "1x"])
def test_what_removes_nothing_is_no_target(given: Any) -> None:
    assert read_targets(given) == () and canonical(()) == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1, "target=1 is not a share to remove in 0 <= target < 1; 0.5 and 50% remove half"),
        (-0.1, "target=-0.1 is not a share to remove"),
        ("150%", "target=150% is not a share to remove"),
        (
            "50% cats",
            "target=50% cats: 'cats' is nothing that can be cut; percentages are of macs, params, size, latency",
        ),
        ("2 cats", "target=2 cats: 'cats' is no unit; give 0.5, 50%,"),
        ("half", "target=half is not a number with a unit;"),
        ("", "target= is not a number with a unit;"),
        (float("nan"), "target=nan is not a number with a unit;"),
        ("0 MB", "target=0 MB is not above 0 and finite;"),
        ("-2 MB", "target=-2 MB is not above 0 and finite;"),
        ("1e300 MB", "target=1e300 MB is not above 0 and finite;"),
        ("0.5x", "target=0.5x is no speed-up >= 1; 2x is twice as fast"),
        (True, "target=True is a bool;"),
        (None, "target=None is a NoneType;"),
        ([], "target=[] says nothing;"),
        ([[0.5]], "target=[0.5] is a list;"),
    ],
)
def test_what_is_no_target_is_refused_with_value_and_way_out(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_targets(given)
    assert str(refused.value).startswith(message)


TARGETS = st.one_of(
    st.builds(Target, st.sampled_from(QUANTITIES), removed=st.floats(0.01, 0.99)),
    st.builds(Target, st.sampled_from(QUANTITIES), most=st.floats(1e-3, 1e9)),
)


@settings(deadline=None)
@example([Target(MACS, most=999999999.9999999)])
@given(st.lists(TARGETS, max_size=4, unique=True))
def test_the_canonical_form_reads_as_the_same_targets(targets: list[Target]) -> None:
    form = canonical(targets)
    again = read_targets(form)
    assert canonical(again) == form
    for ours, theirs in zip(targets, again, strict=False):
        assert theirs.quantity == ours.quantity
        assert theirs.limit(7.0) == pytest.approx(ours.limit(7.0), rel=1e-6)


@settings(deadline=None)
@given(st.text(max_size=12) | st.floats() | st.integers())
def test_no_input_escapes_the_error_tree(value: Any) -> None:
    try:
        read_targets(value)
    except ConfigError as e:
        assert "target" in str(e)


@pytest.mark.parametrize(
    ("quantity", "amount", "text"),
    [
        (MACS, 1.62e9, "1.62 GMACs"),
        (MACS, 529e6, "529 MMACs"),
        (PARAMS, 2.6e6, "2.6M params"),
        (PARAMS, 12.0, "12 params"),
        (BYTES, 5.4e6, "5.4 MB"),
        (LATENCY, 0.0081, "8.1 ms"),
    ],
)
def test_amounts_are_printed_in_units_that_are_read(quantity: str, amount: float, text: str) -> None:
    assert in_units(quantity, amount) == text
    assert read_targets(text) == (Target(quantity, most=pytest.approx(amount)),)
