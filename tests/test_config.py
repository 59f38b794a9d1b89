from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_prune.config import (
    ALLOCATIONS,
    IMPORTANCES,
    KNOBS,
    LEARNING_RATES,
    NORMALIZERS,
    SCHEDULES,
    SPARSITIES,
    PruneConfig,
)
from yolo_prune.errors import ConfigError

NAMES = st.lists(st.text(min_size=1), max_size=3).map(tuple)
CONFIGS = st.builds(
    PruneConfig,
    target=st.floats(0, 0.99),
    importance=st.sampled_from(IMPORTANCES),
    allocation=st.sampled_from(ALLOCATIONS),
    normalizer=st.sampled_from(NORMALIZERS),
    per_cost=st.booleans(),
    steps=st.integers(1, 20),
    start=st.floats(0, 0.4),
    end=st.floats(0.4, 0.99),
    schedule=st.sampled_from(SCHEDULES),
    round_to=st.none() | st.integers(1, 64),
    max_pruning_ratio=st.floats(0.01, 0.99),
    ignored_layers=NAMES,
    layer_limits=st.dictionaries(st.text(min_size=1), st.floats(0, 0.99), max_size=2),
    calibration=st.integers(4, 1000),
    reconstruction=st.booleans(),
    bn_recalibration=st.booleans(),
    lr_after_cut=st.sampled_from(LEARNING_RATES),
    max_drop=st.none() | st.floats(0, 0.99),
    distill=st.booleans() | st.just("teacher.pt"),
    sparsity=st.sampled_from(SPARSITIES),
    sparsity_strength=st.floats(1e-9, 1.0),
    rewind=st.none() | st.just(0.0),
    quantize_at=st.floats(0.01, 0.99),
    export=NAMES,
    verbose=st.booleans(),
)


def refused(message: str) -> Any:
    """Expect a ConfigError whose message starts so."""
    return pytest.raises(ConfigError, match="^" + re.escape(message))


@given(CONFIGS)
def test_a_config_survives_the_way_through_a_dict(config: PruneConfig) -> None:
    assert PruneConfig.from_dict(config.to_dict()) == config


def test_a_config_survives_the_way_through_yaml(own_folder: Path) -> None:
    import yaml

    config = PruneConfig(target=0.3, export=("onnx",), ignored_layers=("model.0.*",))
    (own_folder / "prune.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert PruneConfig.from_yaml("prune.yaml") == config


def test_a_config_survives_the_way_through_the_command_line() -> None:
    config = PruneConfig(
        target="2 MB", steps=2, max_drop=0.01, per_cost=False, distill="dense.pt", runtime="openvino", round_to=4
    ).replace(export=("onnx", "engine:16"), ignored_layers=("model.0.*",), layer_limits={"model.22.*": 0.5, "b": 0})
    assert PruneConfig.from_cli(config.to_cli()) == config
    assert PruneConfig().to_cli() == {"prune": "0.5"}


@given(CONFIGS)
def test_a_config_that_cannot_be_typed_is_refused_and_never_changed(config: PruneConfig) -> None:
    try:
        arguments = config.to_cli()
    except ConfigError as e:
        assert "cannot be passed on as prune_" in str(e)
    else:
        assert PruneConfig.from_cli(arguments) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PruneConfig().target = 0.3  # type: ignore[misc]  # that is the point


def test_each_knob_has_a_description() -> None:
    assert all(KNOBS.values())
    assert list(KNOBS) == list(PruneConfig().to_dict())


@pytest.mark.parametrize(
    ("value", "target"),
    [
        (0.3, 0.3),
        (0, 0.0),
        ("2 MB, 8ms", "2 MB, 8 ms"),
        (["30%", "2 MB"], "30% macs, 2 MB"),
        ("0.3", 0.3),
        (" 0.3 ", 0.3),
        ({"target": 0.3}, 0.3),
        (PruneConfig(target=0.3), 0.3),
    ],
    ids=repr,
)
def test_load_takes_what_a_user_may_pass_as_prune(value: Any, target: Any) -> None:
    assert PruneConfig.load(value) == PruneConfig(target=target)


def test_load_takes_the_path_of_a_yaml_file(own_folder: Path) -> None:
    file = own_folder / "my.YAML"
    file.write_text("target: 0.3\nsteps: 2\n")
    assert PruneConfig.load(file) == PruneConfig.load(str(file)) == PruneConfig(target=0.3, steps=2)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"target": 1},
            "target=1 is not a share to remove in 0 <= target < 1; 0.5 and 50% remove half of the MACs",
        ),
        ({"target": None}, "target=None is a NoneType; give 0.5, 50%, 50% params,"),
        ({"start": 1.0}, "start=1 is not a fraction of the run in 0 <= start < 1; try start=0.1."),
        (
            {"start": 0.5, "end": 0.2},
            "end=0.2 is not in start <= end < 1 with start=0.5; the epochs after the last cut",
        ),
        ({"end": 1.0}, "end=1 is not in start <= end < 1 with start=0.1;"),
        ({"max_pruning_ratio": 1.0}, "max_pruning_ratio=1 is not in 0 < max_pruning_ratio < 1; try 0.9."),
        ({"steps": 0}, "steps=0 is not a whole number >= 1; number of cuts"),
        ({"steps": 1.5}, "steps=1.5 is not a whole number >= 1;"),
        ({"steps": True}, "steps=True is not a whole number >= 1;"),
        ({"round_to": 0}, "round_to=0 is not a whole number >= 1; pruned widths are multiples"),
        ({"calibration": 3}, "calibration=3 is not a whole number >= 4; training images"),
        ({"bn_recalibration": 16}, "bn_recalibration=16 is not a bool; use True or False."),
        ({"per_cost": None}, "per_cost=None is not a bool; use True or False."),
        ({"max_drop": 1.0}, "max_drop=1 is not a share in 0 <= max_drop < 1; 0.01 allows 1 %."),
        ({"max_drop": "1%"}, "max_drop='1%' is not a number; largest loss of fitness"),
        ({"rewind": 0.2}, "rewind=0.2 is not in 0 <= rewind <= start with start=0.1: only a state from before"),
        ({"sparsity_strength": 0.0}, "sparsity_strength=0 is not > 0; try 1e-4."),
        ({"quantize_at": 1}, "quantize_at=1 is not a fraction of the run in 0 < quantize_at < 1; try 0.7."),
        ({"distill": ""}, "distill='' is neither True, False nor the path of a checkpoint."),
        ({"layer_limits": {"model.0.*": 1.0}}, "layer_limits: model.0.* has 1, not a share in 0 <= x < 1; the same"),
        ({"layer_limits": [0.5]}, "layer_limits=[0.5] does not map name patterns to shares; the same by name"),
        ({"layer_limits": {"model.0.*": "a"}}, "layer_limits='a' is not a number;"),
        (
            {"importance": "lampe"},
            "importance='lampe' is not one of l1, l2, bn_scale, lamp, fpgm, random, taylor, hessian, activation, "
            "reconstruction. Did you mean lamp?",
        ),
        (
            {"allocation": "globall"},
            "allocation='globall' is not one of uniform, global, isomorphic, sensitivity, search. Did you mean global?",
        ),
        (
            {"schedule": "cubik"},
            "schedule='cubik' is not one of one-shot, linear, cubic, exponential. Did you mean cubic?",
        ),
        ({"ignored_layers": 3}, "ignored_layers=3 is not a list of names; layers that keep their width"),
        ({"export": ["onnx", ""]}, "export=['onnx', ''] is not a list of names; Ultralytics export formats"),
        ({"verbose": 1}, "verbose=1 is not a bool; use True or False."),
        ({"stpes": 2}, "unknown knob stpes: did you mean steps? Valid: target, importance, allocation,"),
        ({"zzzzzzzz": 2}, "unknown knob zzzzzzzz: see the list. Valid: target,"),
        ({3: 2}, "unknown knob 3: see the list. Valid: target,"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_knobs_are_refused_with_name_value_and_way_out(knobs: dict[str, Any], message: str) -> None:
    with refused(message):
        PruneConfig.from_dict(knobs)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "prune=True does not say how much to remove; use prune=0.5 for half of the MACs."),
        (None, "prune=None is a NoneType; use a target, a dict or a YAML file."),
        ({0.5}, "prune={0.5} is a set; use a target, a dict or a YAML file."),
        ("half", "target=half is not a number with a unit; give 0.5, 50%, 50% params, 3.2 GMACs, 1.2M params, 2 MB, 8"),
        ("missing.yaml", "prune=missing.yaml: there is no such file; give a number such as prune=0.5 or a path."),
    ],
    ids=repr,
)
def test_load_refuses_what_says_no_target(value: Any, message: str) -> None:
    with refused(message):
        PruneConfig.load(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"target: [", "prune=x.yaml is not valid YAML: while parsing a flow node"),
        (b"- 0.5\n", "prune=x.yaml holds a list, not 'knob: value' lines such as 'target: 0.5'."),
        (b"", "prune=x.yaml holds a NoneType, not 'knob: value' lines"),
        (b"\xff\xfe\xfa", "prune=x.yaml cannot be read: 'utf-8' codec can't decode"),
        (
            b"!!python/object/apply:os.system ['true']",
            "prune=x.yaml is not valid YAML: could not determine a constructor",
        ),
        (b"prune_steps: 3", "unknown knob prune_steps: did you mean"),
    ],
    ids=["broken", "list", "empty", "binary", "code", "prefix"],
)
def test_a_wrong_yaml_file_is_refused(own_folder: Path, text: bytes, message: str) -> None:
    (own_folder / "x.yaml").write_bytes(text)
    with refused(message):
        PruneConfig.from_yaml("x.yaml")


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        ({"prune": "0.3"}, PruneConfig(target=0.3)),
        ({"prune": "0"}, PruneConfig(target=0)),
        ({"prune": "0.3", "prune_steps": " 2 "}, PruneConfig(target=0.3, steps=2)),
        ({"prune": "0.5", "prune_importance": "'l1'"}, PruneConfig(importance="l1")),
        ({"prune": "0.5", "prune_verbose": "false"}, PruneConfig(verbose=False)),
        ({"prune": "0.5", "prune_export": "onnx,openvino"}, PruneConfig(export=("onnx", "openvino"))),
        ({"prune": "0.5", "prune_export": "('onnx', \"openvino\",)"}, PruneConfig(export=("onnx", "openvino"))),
        ({"prune": "0.5", "prune_export": ""}, PruneConfig()),
        ({"prune": "0.5", "prune_ignored_layers": "[model.0.*]"}, PruneConfig(ignored_layers=("model.0.*",))),
    ],
    ids=str,
)
def test_command_line_texts_get_the_types_of_their_knobs(arguments: dict[str, str], config: PruneConfig) -> None:
    assert PruneConfig.from_cli(arguments) == config


def test_single_knobs_override_the_yaml_file_whatever_their_order(own_folder: Path) -> None:
    (own_folder / "prune.yaml").write_text("target: 0.3\nsteps: 2\n")
    arguments = {"prune_steps": "5", "prune": "prune.yaml"}
    assert PruneConfig.from_cli(arguments) == PruneConfig(target=0.3, steps=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prune_stpes": "3"},
            "unknown knob prune_stpes: did you mean prune_steps? Valid: prune_target, prune_importance,",
        ),
        ({"prune_steps": "3"}, "prune_steps without prune: say how much to remove, e.g. prune=0.5."),
        ({"prune": "True"}, "prune=True does not say how much to remove;"),
        ({"prune": "false"}, "prune=False does not say how much to remove;"),
        ({"prune": "0.5", "prune_steps": "3.5"}, "steps=3.5 is not a whole number; the default is 3."),
        ({"prune": "0.5", "prune_start": "soon"}, "start=soon is not a number; the default is 0.1."),
        ({"prune": "0.5", "prune_verbose": "maybe"}, "verbose=maybe is not a bool; use True or False."),
        ({"prune": "nan"}, "target=nan is not a number with a unit;"),
        ({"prune": "50% cats"}, "target=50% cats: 'cats' is nothing that can be cut;"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_command_line_texts_are_refused(arguments: dict[str, str], message: str) -> None:
    with refused(message):
        PruneConfig.from_cli(arguments)


@given(
    st.dictionaries(
        st.sampled_from(["prune", *(f"prune_{name}" for name in KNOBS)]) | st.text(),
        st.text() | st.floats().map(str) | st.integers().map(str) | st.text().map(lambda text: f"{text}.yaml"),
    )
)
def test_any_command_line_gives_a_config_or_a_config_error(arguments: dict[str, str]) -> None:
    try:
        assert isinstance(PruneConfig.from_cli(arguments), PruneConfig)
    except ConfigError as e:
        assert str(e)


def test_layers_are_ignored_by_pattern_and_the_pattern_is_named() -> None:
    config = PruneConfig(ignored_layers=("model.0.*", "model.22.cv3.*.conv"))
    assert config.is_ignored("model.0.conv") == "model.0.*"
    assert config.is_ignored("model.22.cv3.1.conv") == "model.22.cv3.*.conv"
    assert config.is_ignored("model.1.conv") is None


def test_names_may_be_given_as_one_text() -> None:
    assert PruneConfig(export="onnx, openvino").export == ("onnx", "openvino")


def test_a_one_shot_schedule_has_no_end() -> None:
    assert PruneConfig(schedule="one-shot", start=0.6).start == 0.6


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        PruneConfig.from_yaml("a\0.yaml")
