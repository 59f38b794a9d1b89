"""Every option of a pruning run: its name, unit, range and default, and the way through dict, YAML and command line.

This module knows neither torch nor ultralytics, so that a typing error in an option is refused within milliseconds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from yolo_prune.config import rules
from yolo_prune.config.choices import (
    ALLOCATIONS,
    DISTILL_LOSSES,
    IMPORTANCES,
    LEARNING_RATES,
    NORMALIZERS,
    REMOVED,
    RUNTIMES,
    SCHEDULES,
    SPAN,
    SPAN_OF_NEW_CLASSES,
    SPARSITIES,
    without_removed,
)
from yolo_prune.config.rules import Rule
from yolo_prune.config.targets import LATENCY, Target, read_targets
from yolo_prune.config.text import CLI_PREFIX, as_text, check_matches, known_name, read_yaml
from yolo_prune.errors import ConfigError, short_repr


def _option(default: Any, rule: Rule, help: str) -> Any:
    """Declare an option with its rule and its one-line description, of which help texts and documents are made."""
    given: dict[str, Any] = {"default_factory": dict} if isinstance(default, dict) else {"default": default}
    return field(**given, metadata={"help": help, "rule": rule})


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """The validated options of one pruning run.

    Examples:
        >>> PruneConfig(target=0.5, steps=3, start=0.1, end=0.4)  # half of the MACs, in three cuts
        >>> PruneConfig.load("prune.yaml")
        >>> PruneConfig.load(0.5)

    Raises:
        ConfigError: If an option has a wrong name, type or value. The message names the option, the value and the way
            out.
    """

    target: float | str = _option(
        0.5,
        rules.target(),
        "share to remove, of the MACs (0.5, 50%) or of params, size or latency (50% params), or limit to keep "
        "(3.2 GMACs, 1.2M params, 2 MB, 1.5 MB litert:8, 8 ms, 2x); several must all hold; 0 cuts nothing",
    )
    importance: str = _option(
        "reconstruction", rules.choice(*IMPORTANCES), f"criterion that ranks channels: {', '.join(IMPORTANCES)}"
    )
    allocation: str = _option(
        "global",
        rules.choice(*ALLOCATIONS, removed={"search": "use global, which cost no accuracy and no time in comparison"}),
        f"how much each layer loses: {', '.join(ALLOCATIONS)}",
    )
    normalizer: str = _option(
        "mean",
        rules.choice(*NORMALIZERS),
        f"how scores of different layers are made comparable: {', '.join(NORMALIZERS)}",
    )
    per_cost: bool = _option(
        True, rules.flag(), "divide a channel's importance by what it saves of the target (global, isomorphic)"
    )
    steps: int = _option(3, rules.whole(1), "number of cuts, >= 1 (a one-shot schedule has one)")
    start: float | None = _option(
        None,
        rules.number(lambda x: 0 <= x < 1, "is not a fraction of the run in 0 <= start < 1; try start=0.1.").or_none(),
        "first cut, as a fraction of the run's epochs, 0 <= start < 1; by default 0.1, or 0.3 of a model that has to "
        "learn the data's classes first",
    )
    end: float | None = _option(
        None,
        rules.number().or_none(),
        "last cut, as a fraction of the run's epochs, start <= end < 1; the rest recovers; one-shot has none; by "
        "default 0.4, or 0.5 of such a model",
    )
    schedule: str = _option(
        "cubic", rules.choice(*SCHEDULES), f"how the target is divided among the cuts: {', '.join(SCHEDULES)}"
    )
    round_to: int | None = _option(
        None,
        rules.whole(1).or_none(),
        "pruned widths are multiples of this, >= 1; by default of 8, or of a quarter of a layer that is narrower, and "
        "of what is fast there for a latency target",
    )
    runtime: str | None = _option(
        None,
        rules.choice(*RUNTIMES, parts=":").or_none(),
        f"where the model will run, some with a precision as in onnx:8: {', '.join(RUNTIMES)}; latency targets are "
        "measured there; by default onnx, or what latency was measured in",
    )
    latency: str | None = _option(
        None, rules.path().or_none(), "what a kit has measured on the device: latency targets are of that device"
    )
    max_pruning_ratio: float = _option(
        0.9,
        rules.number(lambda x: 0 < x < 1, "is not in 0 < max_pruning_ratio < 1; try 0.9."),
        "largest share of channels that one group may lose over the run, 0 < x < 1",
    )
    layer_limits: dict[str, float] = _option(  # noqa: RUF009  # it declares a factory
        {}, rules.shares(), "the same by name pattern of layers, e.g. model.22.*:0.5,model.0.*:0.2"
    )
    ignored_layers: tuple[str, ...] = _option(
        (), rules.names(), "layers that keep their width, as name patterns, e.g. model.0.*"
    )
    reid: bool = _option(
        False,
        rules.flag(),
        "keep the maps that the head reads multiples of the smallest in width, as tracking with with_reid and "
        "model: auto needs",
    )
    calibration: int | None = _option(
        None,
        rules.whole(4).or_none(),
        "training images for criteria and reconstruction, >= 4; by default 64, or 128 of more than 20 classes",
    )
    reconstruction: bool = _option(
        True, rules.flag(), "refit the remaining weights to the dense outputs after each cut (least squares)"
    )
    lr_after_cut: str = _option(
        "keep",
        rules.choice(*LEARNING_RATES, removed={"rewarm": "use keep, which recovers as much"}),
        f"learning rate after a cut: {', '.join(LEARNING_RATES)}",
    )
    max_drop: float | None = _option(
        None,
        rules.number(lambda x: 0 <= x < 1, "is not a share in 0 <= max_drop < 1; 0.01 allows 1 %.").or_none(),
        "largest loss of fitness, as a share of the dense one, e.g. 0.01; a cut that costs more is taken back",
    )
    distill: bool | str = _option(
        False, rules.flag_or_path(), "learn from the dense model after the first cut, or from a given checkpoint"
    )
    distill_loss: str = _option(
        "features",
        rules.choice(*DISTILL_LOSSES),
        f"what it learns there, beside the labels: {', '.join(DISTILL_LOSSES)}",
    )
    sparsity: str = _option(
        "none",
        rules.choice(*SPARSITIES, removed={"growing": "use group_lasso, or none, which costs no accuracy"}),
        f"regularise until the first cut: {', '.join(SPARSITIES)}",
    )
    sparsity_strength: float = _option(
        1e-4, rules.number(lambda x: x > 0, "is not > 0; try 1e-4."), "weight of that penalty, > 0"
    )
    rewind: float | None = _option(
        None,
        rules.number().or_none(),
        "after a cut the weights of this fraction of the run come back, 0 <= rewind <= start (lottery ticket)",
    )
    quantize_at: float = _option(
        0.7,
        rules.number(lambda x: 0 < x < 1, "is not a fraction of the run in 0 < quantize_at < 1; try 0.7."),
        "when a run with quantize=8 turns to INT8, as a fraction of its epochs, after the last cut, 0 < x < 1",
    )
    benchmark: bool = _option(
        True, rules.flag(), "time dense and pruned at the end in the runtime, beside official scales of their size"
    )
    export: tuple[str, ...] = _option(
        (),
        rules.names(),
        "Ultralytics export formats made and checked at the end, some with a precision, e.g. onnx,openvino:8",
    )
    verbose: bool = _option(
        True, rules.flag(), "show a line per cut, a summary at the end, and progress bars where work takes long"
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, _rule(option).check(name, getattr(self, name), HELP_TEXTS[name]))
        start, end = self.span()
        if self.schedule != "one-shot" and not start <= end < 1:
            raise ConfigError(
                f"end={end:g} is not in start <= end < 1 with start={start:g}; "
                "the epochs after the last cut bring the accuracy back, so leave some."
            )
        if self.rewind is not None and not 0 <= self.rewind <= start:
            raise ConfigError(
                f"rewind={self.rewind:g} is not in 0 <= rewind <= start with start={start:g}: only a state from "
                "before the first cut can come back."
            )

    def span(self, knows_classes: bool = True) -> tuple[float, float]:
        """Return first and last cut as fractions of the run.

        Args:
            knows_classes: Whether the model has learned the data's classes before the run. Where it has not, what
                matters shows later, and the cuts come later, unless the user says when.
        """
        is_given = self.start is not None or self.end is not None
        start, end = SPAN if knows_classes or is_given else SPAN_OF_NEW_CLASSES
        return start if self.start is None else self.start, end if self.end is None else self.end

    @property
    def targets(self) -> tuple[Target, ...]:
        """Targets that the final network has to meet; none where nothing is cut."""
        return read_targets(self.target)

    @property
    def is_timed(self) -> bool:
        """Whether a target is a latency, so that layers have to be measured."""
        return any(target.quantity == LATENCY for target in self.targets)

    @classmethod
    def load(cls, value: Any) -> PruneConfig:
        """Make a configuration from whatever a user may pass as ``prune``.

        Args:
            value: A target (``0.5``, ``"2 MB"``, ``["50%", "8 ms"]``), a dict of options, a path to a YAML file, or a
                PruneConfig.

        Raises:
            ConfigError: If the value is none of these or has a wrong option.
        """
        return value if isinstance(value, cls) else cls.from_dict(cls.given(value))

    @classmethod
    def given(cls, value: Any) -> Mapping[str, Any]:
        """Return the options that a user gives as ``prune``, without the defaults of the others.

        Args:
            value: As for `load`.

        Raises:
            ConfigError: If the value is none of these.
        """
        if isinstance(value, cls):
            return value.to_dict()
        if isinstance(value, Mapping):
            return value
        if isinstance(value, bool):
            raise ConfigError(f"prune={value} does not say how much to remove; use prune=0.5 for half of the MACs.")
        if isinstance(value, (str, Path)) and str(value).lower().endswith((".yaml", ".yml")):
            return read_yaml(value)
        if isinstance(value, (int, float, str, list, tuple)):
            return {"target": value}
        kind = type(value).__name__
        raise ConfigError(f"prune={short_repr(value)} is a {kind}; use a target, a dict or a YAML file.")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> PruneConfig:
        """Make a configuration from a mapping of option names to values; unknown names are refused."""
        if not isinstance(options, Mapping):
            example = {"target": 0.5, "steps": 3}
            raise ConfigError(
                f"{short_repr(options)} is a {type(options).__name__}, not a dict of options such as {example}."
            )
        options = without_removed(options)
        for name in options:
            known_name(name if isinstance(name, str) else short_repr(name), HELP_TEXTS)
        return cls(**options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> PruneConfig:
        """Read a YAML file of options; reading can run no code."""
        return cls.from_dict(read_yaml(path))

    @classmethod
    def from_cli(cls, arguments: Mapping[str, str], defaults: Mapping[str, Any] | None = None) -> PruneConfig:
        """Make a configuration from command-line arguments.

        Args:
            arguments: ``{"prune": "0.5", "prune_steps": "3"}``; ``prune`` may name a YAML file, which single options
                then override.
            defaults: Options that are not the usual ones where nothing is given.

        Raises:
            ConfigError: If a name is unknown (with the nearest valid one), or a value has a wrong type or range.
        """
        options: dict[str, Any] = {}
        for argument, text in arguments.items():
            if argument != "prune" and (name := argument.removeprefix(CLI_PREFIX)) in REMOVED:
                options[name] = rules.flag_or_text(text)
            elif argument != "prune":
                name = known_name(name, HELP_TEXTS, CLI_PREFIX, argument)
                options[name] = _parse(name, text)
        if "prune" not in arguments:
            raise ConfigError(
                f"{', '.join(arguments) or 'no argument'} without prune: say how much to remove, e.g. prune=0.5."
            )
        return cls.from_dict({**(defaults or {}), **cls.given(rules.flag_or_text(arguments["prune"])), **options})

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain data: what YAML, JSON and ``from_dict`` take."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def to_cli(self) -> dict[str, str]:
        """Return the target, and the options that are not the defaults, as what ``from_cli`` takes.

        Raises:
            ConfigError: If a name cannot be typed, because it has commas or quotes.
        """
        changed = {name: value for name, value in vars(self).items() if value != getattr(PruneConfig(), name)}
        options = {f"{CLI_PREFIX}{name}": as_text(value) for name, value in changed.items() if name != "target"}
        for name, text in options.items():
            value = changed[option := name.removeprefix(CLI_PREFIX)]
            if _parse(option, text) != value:
                raise ConfigError(f"{option}={value!r} cannot be passed on as {name}={text}; use plain names.")
        return {"prune": str(self.target), **options}

    def replace(self, **options: Any) -> PruneConfig:
        """Return a configuration with other values for some options."""
        return self.from_dict({**self.to_dict(), **options})

    def limit(self, layer: str) -> float:
        """Return the largest share of its channels that a layer may lose; the first pattern that matches decides."""
        limits = (share for p, share in self.layer_limits.items() if fnmatch.fnmatchcase(layer, p))
        return next(limits, self.max_pruning_ratio)

    def check_patterns(self, layers: Iterable[str]) -> None:
        """Raise a ConfigError if a pattern of ``ignored_layers`` or ``layer_limits`` matches none of these layers."""
        paths = list(layers)
        for name in ("ignored_layers", "layer_limits"):
            check_matches(name, getattr(self, name), paths)

    def is_ignored(self, layer: str) -> str | None:
        """Return the pattern of ``ignored_layers`` that matches a layer path, or None."""
        return next((p for p in self.ignored_layers if fnmatch.fnmatchcase(layer, p)), None)


OPTIONS: dict[str, Field[Any]] = {f.name: f for f in fields(PruneConfig)}
"""Each option's declaration, in order."""

HELP_TEXTS: dict[str, str] = {name: option.metadata["help"] for name, option in OPTIONS.items()}
"""Each option's one-line description."""


def _rule(option: Field[Any]) -> Rule:
    rule: Rule = option.metadata["rule"]
    return rule


def _parse(name: str, text: str) -> Any:
    """Return the value that a text on the command line stands for."""
    option, text = OPTIONS[name], text.strip()
    return _rule(option).read(name, text, option.default)
