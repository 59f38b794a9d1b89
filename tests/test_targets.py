from __future__ import annotations

from typing import Any

import pytest
from fuzz import PLAIN
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yolo_prune.config.targets import QUANTITIES, RAM, SPARSITY, TWO_OF_FOUR, Target, canonical, in_units, read_targets
from yolo_prune.errors import ConfigError

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
        ("2 x", Target(LATENCY, removed=0.5)),
        ("2x faster", Target(LATENCY, removed=0.5)),
        ("2x as fast", Target(LATENCY, removed=0.5)),
        ("2 X  as fast", Target(LATENCY, removed=0.5)),
        ("33.3333333333% latency", Target(LATENCY, removed=1 - 1 / 1.5)),  # older files have 1.5x like this
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
        ("1.5 MB litert:8", Target("file litert:8", most=1.5e6)),
        ("900 kB  CoreML:8", Target("file coreml:8", most=9e5)),
        ("2MiB onnx", Target("file onnx", most=2 * 2**20)),
        ("40% onnx:16", Target("file onnx:16", removed=0.4)),
        ("256 kB ram:8", Target("ram:8", most=2.56e5)),
        ("1 MiB RAM", Target("ram", most=2**20)),
        ("40% of ram:16", Target("ram:16", removed=0.4)),
        ("60% sparsity", Target(SPARSITY, removed=0.6)),
        ("60 % of zeros", Target(SPARSITY, removed=0.6)),
        ("60% sparse", Target(SPARSITY, removed=0.6)),
        ("2:4", Target(TWO_OF_FOUR, removed=0.5)),
        (" 2 : 4", Target(TWO_OF_FOUR, removed=0.5)),
    ],
)
def test_every_form_is_read(given: Any, target: Target) -> None:
    (read,) = read_targets(given)
    assert read.quantity == target.quantity
    assert read.limit(100.0) == pytest.approx(target.limit(100.0))


@pytest.mark.parametrize("given", ["50%, 2 MB", ["50%", "2 MB"], (0.5, "2 MB"), "2 MB,50%"])
def test_several_must_all_hold(given: Any) -> None:
    assert set(read_targets(given)) == {Target(MACS, removed=0.5), Target(BYTES, most=2e6)}


@pytest.mark.parametrize("given", [0, 0.0, "0", "0%", "0% params", "1x", "0% sparsity"])
def test_what_removes_nothing_is_no_target(given: Any) -> None:
    assert read_targets(given) == () and canonical(()) == 0.0


@pytest.mark.parametrize("given", ["0,5 MB", "0,8 GMACs", "0, 50%", ["0", "5 ms"], [0, "5 ms"]])
def test_a_decimal_comma_is_not_taken_for_two_targets(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"begins anew after 0.*decimals with a point"):
        read_targets(given)


@pytest.mark.parametrize(
    "typed",
    [
        "1.5x",
        "2 x",
        "2x as fast",
        "3.2 GMACs",
        "6.4GFLOPs",
        "800k params",
        "2 MiB",
        "50 % of params",
        "50% params, 8ms",
        "40%, 60% sparsity",
        "40%, 2:4",
    ],
)
def test_a_target_is_said_back_as_it_was_typed(typed: str) -> None:
    assert canonical(read_targets(f" {typed}\t")) == typed
    assert ", ".join(map(str, read_targets(typed))) == typed
    assert canonical(read_targets(typed.split(","))) == typed


@pytest.mark.parametrize("typed", [0.5, "0.5", "50%", "50 % of MACs", "50% FLOPs"])
def test_one_share_of_the_macs_is_a_number(typed: Any) -> None:
    assert canonical(read_targets(typed)) == 0.5


def test_targets_of_the_same_meaning_are_equal_however_they_were_typed() -> None:
    assert read_targets("2x, 2 MB") == read_targets("50% latency, 2000 kB")
    assert read_targets("2x, 50% latency, 2x as fast") == (Target(LATENCY, removed=0.5),)
    assert len({*read_targets("8 ms"), *read_targets("8000us")}) == 1


TARGETS = st.one_of(
    st.builds(Target, st.sampled_from((*QUANTITIES, *RAM, SPARSITY)), removed=st.floats(0.01, 0.99)),
    st.builds(Target, st.sampled_from((*QUANTITIES, *RAM)), most=st.floats(1e-3, 1e9)),
    st.just(Target(TWO_OF_FOUR, removed=0.5)),
)


def is_one_way_to_zeros(targets: list[Target]) -> bool:
    return not {target.quantity for target in targets}.issuperset({SPARSITY, TWO_OF_FOUR})


@settings(deadline=None)
@example([Target(MACS, most=999999999.9999999)])
@given(st.lists(TARGETS, max_size=4, unique=True).filter(is_one_way_to_zeros))
def test_the_canonical_form_reads_as_the_same_targets(targets: list[Target]) -> None:
    form = canonical(targets)
    again = read_targets(form)
    assert canonical(again) == form
    for ours, theirs in zip(targets, again, strict=False):
        assert theirs.quantity == ours.quantity
        assert theirs.limit(7.0) == pytest.approx(ours.limit(7.0), rel=1e-6)


TERMS = st.from_regex(r" ?[-+]?[0-9.]{0,4}(e[-+]?[0-9]{1,3})? ?[kMGx%]{0,2} ?(of )?[a-zA-Z]{0,6}", fullmatch=True)


@given(st.text(max_size=12) | TERMS | st.lists(TERMS, max_size=3).map(",".join) | st.lists(TERMS, max_size=3) | PLAIN)
def test_any_input_gives_targets_that_read_as_they_are_written_or_a_config_error(value: Any) -> None:
    try:
        targets = read_targets(value)
    except ConfigError as e:
        assert str(e).startswith("target=")
        return
    assert canonical(read_targets(canonical(targets))) == canonical(targets)
    assert read_targets(canonical(targets)) == targets
    assert all(0 <= target.limit(7.0) < float("inf") for target in targets)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("1:4", r"target=1:4: of patterns of zeros only 2:4 is faster anywhere; give 2:4, or a share such as 75% spar"),
        ("60% sparsity, 2:4", r"asks for zeros in two ways: 2:4 makes half .* give either 2:4 or a share"),
        (124, r"target=124 is not a share .*\(YAML reads 2:4 without quotes as 124: write '2:4'\)"),
        ("100% sparsity", r"target=100% sparsity is not a share to remove in 0 <= target < 1"),
        ("0.6 sparsity", r"target=0\.6 sparsity: 'sparsity' is no unit; give .*60% sparsity or 2:4"),
    ],
)
def test_zeros_that_nobody_can_make_are_refused_with_the_way_out(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_targets(wrong)


def test_a_text_of_many_digits_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="is not a number with a unit"):
        read_targets("1" * 20_000 + "\n%\nx")


@pytest.mark.parametrize(
    ("quantity", "amount", "text"),
    [
        (MACS, 1.62e9, "1.62 GMACs"),
        (MACS, 529e6, "529 MMACs"),
        (PARAMS, 2.6e6, "2.6M params"),
        (PARAMS, 12.0, "12 params"),
        (BYTES, 5.4e6, "5.4 MB"),
        (LATENCY, 0.0081, "8.1 ms"),
        ("ram:8", 256e3, "256 kB ram:8"),
    ],
)
def test_amounts_are_printed_in_units_that_are_read(quantity: str, amount: float, text: str) -> None:
    assert in_units(quantity, amount) == text
    assert read_targets(text) == (Target(quantity, most=pytest.approx(amount)),)
