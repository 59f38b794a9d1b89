from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fuzz import PLAIN, SCALARS, mutated
from hypothesis import given
from hypothesis import strategies as st

from yolo_prune.config.choices import (
    ALLOCATIONS,
    DISTILL_LOSSES,
    IMPORTANCES,
    LEARNING_RATES,
    NORMALIZERS,
    SCHEDULES,
    SPARSITIES,
)
from yolo_prune.config.settings import HELP_TEXTS, OPTIONS, PruneConfig
from yolo_prune.errors import ConfigError

NAMES = st.lists(st.text(min_size=1), max_size=3).map(tuple)


def useful(**options: Any) -> PruneConfig:
    """Make a configuration, with the options that do nothing without another only beside that."""
    needed = {"max_drop": "dense", "distill": "distill_loss", "sparsity": "sparsity_strength"}
    usual = {name: OPTIONS[name].default for name in needed}
    idle = {of for name, of in needed.items() if options[name] == usual[name] or options[name] is False}
    return PruneConfig(**{name: value for name, value in options.items() if name not in idle})


CONFIGS = st.builds(
    useful,
    target=st.floats(0, 0.99) | st.sampled_from(["1.5x", "2x as fast", "3.2 GMACs", "50% params, 8ms", "0.5,2 MB"]),
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
    drop_levels=st.sets(st.integers(1, 9)).map(tuple),
    keep_classes=NAMES,
    reid=st.booleans(),
    layer_limits=st.dictionaries(st.text(min_size=1), st.floats(0, 0.99), max_size=2),
    calibration=st.integers(4, 1000),
    reconstruction=st.booleans(),
    lr_after_cut=st.none() | st.sampled_from(LEARNING_RATES),
    max_drop=st.none() | st.floats(0, 0.99),
    dense=st.none() | st.just("dense.pt"),
    distill=st.none() | st.booleans() | st.just("teacher.pt"),
    distill_loss=st.sampled_from(DISTILL_LOSSES),
    sparsity=st.sampled_from(SPARSITIES),
    sparsity_strength=st.floats(1e-9, 1.0),
    rewind=st.none() | st.just(0.0),
    quantize_at=st.floats(0.01, 0.99),
    export=NAMES,
    verbose=st.booleans(),
)


@given(CONFIGS)
def test_a_config_survives_the_way_through_a_dict(config: PruneConfig) -> None:
    assert PruneConfig.from_dict(config.to_dict()) == config


def test_options_of_earlier_versions_that_did_nothing_are_read() -> None:
    old = {**PruneConfig(target=0.3).to_dict(), "bn_recalibration": False}
    assert PruneConfig.from_dict(old) == PruneConfig(target=0.3)
    assert PruneConfig.from_cli({"prune": "0.3", "prune_bn_recalibration": "False"}) == PruneConfig(target=0.3)


def test_a_config_survives_the_way_through_yaml(own_folder: Path) -> None:
    config = PruneConfig(target=0.3, export=("onnx",), ignored_layers=("model.0.*",))
    (own_folder / "prune.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert PruneConfig.from_yaml("prune.yaml") == config


def test_a_config_survives_the_way_through_the_command_line() -> None:
    config = PruneConfig(
        target="2 MB", steps=2, max_drop=0.01, per_cost=False, distill="dense.pt", runtime="openvino", round_to=4
    ).replace(export=("onnx", "engine:16"), ignored_layers=("model.0.*",), layer_limits={"model.22.*": 0.5, "b": 0})
    config = config.replace(drop_levels=(4, 5), keep_classes=("person", "traffic light", "7"))
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


@pytest.mark.parametrize("typed", ["1.5x", "3.2 GMACs", "50% params, 8ms", "2x as fast", "33.3333333333% latency"])
def test_every_way_out_of_a_config_says_the_target_as_it_was_typed(typed: str, own_folder: Path) -> None:
    config = PruneConfig.from_cli({"prune": f" {typed} "})
    (own_folder / "prune.yaml").write_text(yaml.safe_dump(config.to_dict()))
    again = [
        PruneConfig.from_dict(json.loads(json.dumps(config.to_dict()))),
        PruneConfig.from_cli(config.to_cli()),
        PruneConfig.from_yaml("prune.yaml"),
        config.replace(steps=3),
    ]
    assert {config.target, config.to_dict()["target"], config.to_cli()["prune"]} == {typed}
    assert again == [config] * 4


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PruneConfig().target = 0.3  # type: ignore[misc]  # that is the point


def test_each_knob_has_a_description() -> None:
    assert all(HELP_TEXTS.values())
    assert list(HELP_TEXTS) == list(PruneConfig().to_dict())


@pytest.mark.parametrize(
    ("value", "target"),
    [
        (0.3, 0.3),
        (0, 0.0),
        ("2 MB,  8ms", "2 MB, 8ms"),
        (["30%", "2 MB"], "30%, 2 MB"),
        ("0.3", 0.3),
        (" 0.3 ", 0.3),
        ({"target": 0.3}, 0.3),
        (PruneConfig(target=0.3), 0.3),
    ],
    ids=repr,
)
def test_load_takes_what_a_user_may_pass_as_prune(value: Any, target: Any) -> None:
    assert PruneConfig.load(value) == PruneConfig(target=target)


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(kind: Callable[[float], Any]) -> None:
    assert PruneConfig.load(kind(0.25)) == PruneConfig(target=kind(0.25)) == PruneConfig(target=0.25)
    assert (
        PruneConfig(sizes=np.array([0.25, 0.5]))
        == PruneConfig(sizes=(kind(0.25), 0.5))
        == PruneConfig(sizes=[0.25, 0.5])
    )
    assert PruneConfig(steps=np.int64(4), reconstruction=np.bool_(False)) == PruneConfig(steps=4, reconstruction=False)
    assert PruneConfig(layer_limits={"a": kind(0.25)}) == PruneConfig(layer_limits={"a": 0.25})


def test_a_number_with_an_exponent_and_no_point_is_one_in_yaml_too(own_folder: Path) -> None:
    (own_folder / "prune.yaml").write_text("target: 0.3\nsparsity: group_lasso\nsparsity_strength: 2e-4\n")
    assert PruneConfig.load("prune.yaml").sparsity_strength == 2e-4


def test_load_takes_the_path_of_a_yaml_file(own_folder: Path) -> None:
    file = own_folder / "my.YAML"
    file.write_text("target: 0.3\nsteps: 2\n")
    assert PruneConfig.load(file) == PruneConfig.load(str(file)) == PruneConfig(target=0.3, steps=2)


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
        (
            {"prune": "0.5", "prune_ignored_layers": "[ab]*,model.[0-9]"},
            PruneConfig(ignored_layers=("[ab]*", "model.[0-9]")),
        ),
        (
            {"prune": "0.5", "prune_ignored_layers": "[model.[0-9], a]"},
            PruneConfig(ignored_layers=("model.[0-9]", "a")),
        ),
        (
            {"prune": "0.5", "prune_keep_classes": "car,truck (large)"},
            PruneConfig(keep_classes=("car", "truck (large)")),
        ),
    ],
    ids=str,
)
def test_command_line_texts_get_the_types_of_their_knobs(arguments: dict[str, str], config: PruneConfig) -> None:
    assert PruneConfig.from_cli(arguments) == config


def test_single_knobs_override_the_yaml_file_whatever_their_order(own_folder: Path) -> None:
    (own_folder / "prune.yaml").write_text("target: 0.3\nsteps: 2\n")
    arguments = {"prune_steps": "5", "prune": "prune.yaml"}
    assert PruneConfig.from_cli(arguments) == PruneConfig(target=0.3, steps=5)


@given(
    st.dictionaries(
        st.sampled_from(["prune", *(f"prune_{name}" for name in HELP_TEXTS)]) | st.text(),
        st.text() | st.floats().map(str) | st.integers().map(str) | st.text().map(lambda text: f"{text}.yaml"),
    )
)
def test_any_command_line_gives_a_config_or_a_config_error(arguments: dict[str, str]) -> None:
    try:
        assert isinstance(PruneConfig.from_cli(arguments), PruneConfig)
    except ConfigError as e:
        assert str(e)


@given(st.dictionaries(st.sampled_from(list(HELP_TEXTS)) | SCALARS, PLAIN, max_size=4))
def test_any_dict_gives_a_config_or_a_config_error(knobs: dict[Any, Any]) -> None:
    with suppress(ConfigError):
        config = PruneConfig.from_dict(knobs)
        assert PruneConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", ["drop_levels", "keep_classes", "steps", "target", "sizes"])
def test_a_number_too_long_to_print_is_refused(name: str) -> None:
    for value in (10**4300, [10**4300]):
        with pytest.raises(ConfigError):
            PruneConfig(**{name: value})


@given(st.text() | st.binary() | mutated(CONFIGS.map(lambda config: yaml.safe_dump(config.to_dict()))))
def test_any_yaml_file_gives_a_config_or_a_config_error(content: str | bytes) -> None:
    file = Path("my.yaml")
    file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    with suppress(ConfigError):
        assert isinstance(PruneConfig.from_yaml(file), PruneConfig)


def test_a_pattern_that_matches_no_layer_is_refused_with_the_nearest_one() -> None:
    layers = ["model.0.conv", "model.1.conv"]
    PruneConfig(ignored_layers=("*.conv",), layer_limits={"model.1.*": 0.5}).check_patterns(layers)
    with pytest.raises(ConfigError, match=r"ignored_layers: 'model\.1\.con' matches no .* names like model\.1\.conv\."):
        PruneConfig(ignored_layers=("*.conv", "model.1.con")).check_patterns(layers)


def test_layers_are_ignored_by_pattern_and_the_pattern_is_named() -> None:
    config = PruneConfig(ignored_layers=("model.0.*", "model.22.cv3.*.conv"))
    assert config.is_ignored("model.0.conv") == "model.0.*"
    assert config.is_ignored("model.22.cv3.1.conv") == "model.22.cv3.*.conv"
    assert config.is_ignored("model.1.conv") is None


def test_names_may_be_given_as_one_text() -> None:
    assert PruneConfig(export="onnx, openvino").export == ("onnx", "openvino")


def test_a_one_shot_schedule_has_no_end() -> None:
    assert PruneConfig(schedule="one-shot", start=0.6).start == 0.6
