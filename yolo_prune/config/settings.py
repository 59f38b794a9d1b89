"""Every knob of a pruning run: its name, unit, range and default, and the round trip through dict, YAML and CLI.

This module knows neither torch nor ultralytics, so that a typing error in a knob is refused within milliseconds.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from yolo_prune.config.targets import LATENCY, Target, canonical, read_targets
from yolo_prune.errors import ConfigError, seen, told

IMPORTANCES = (
    *("l1", "l2", "bn_scale", "lamp", "fpgm", "random"),
    *("taylor", "hessian", "activation", "reconstruction"),
)
ALLOCATIONS = ("uniform", "global", "isomorphic", "sensitivity", "search")
NORMALIZERS = ("mean", "sum", "max", "gaussian", "none")
SPARSITIES = ("none", "bn_scale", "group_lasso", "growing")
RUNTIMES = ("onnx", "openvino", "pytorch", "tensorrt")
LEARNING_RATES = ("keep", "rewarm", "rewind")
SCHEDULES = ("one-shot", "linear", "cubic", "exponential")
_CHOICES = {
    "importance": IMPORTANCES,
    "allocation": ALLOCATIONS,
    "normalizer": NORMALIZERS,
    "schedule": SCHEDULES,
    "sparsity": SPARSITIES,
    "lr_after_cut": LEARNING_RATES,
    "runtime": RUNTIMES,
}
BY_WEIGHTS = (
    *("target", "importance", "allocation", "normalizer", "per_cost"),
    *("round_to", "runtime", "max_pruning_ratio", "layer_limits", "ignored_layers", "reid", "verbose"),
)
"""The knobs that mean something without training and without data."""
BY_DATA = (*BY_WEIGHTS, "calibration", "reconstruction", "bn_recalibration", "benchmark", "export")
"""The knobs that mean something without training."""
DATA_FREE = {"importance": "l2", "allocation": "uniform"}
"""Defaults where there is no data to look at."""
_EXAMPLE = {"target": 0.5, "steps": 3}
SPAN, SPAN_OF_NEW_CLASSES = (0.1, 0.4), (0.3, 0.5)
"""First and last cut, as fractions of a run that starts from a model of the data's classes, or of others."""
CLI_PREFIX = "prune_"
"""A knob ``steps`` is ``prune_steps`` on the command line; ``prune`` alone is the target or a YAML file."""


def _knob(default: Any, help: str) -> Any:
    """Declare a knob with its one-line description, from which the CLI's help and the docs are made."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """The validated knobs of one pruning run.

    Examples:
        >>> PruneConfig(target=0.5, steps=3, start=0.1, end=0.4)  # half of the MACs, in three cuts
        >>> PruneConfig.load("prune.yaml")
        >>> PruneConfig.load(0.5)

    Raises:
        ConfigError: If a knob has a wrong name, type or value. The message names the knob, the value and the way out.
    """

    target: float | str = _knob(
        0.5,
        "what goes as a share, of the MACs (0.5, 50%) or of params, size or latency (50% params), or what may stay "
        "(3.2 GMACs, 1.2M params, 2 MB, 8 ms, 2x as fast); several must all hold; 0 cuts nothing",
    )
    importance: str = _knob("reconstruction", f"criterion that ranks channels: {', '.join(IMPORTANCES)}")
    allocation: str = _knob("global", f"which layers lose how much: {', '.join(ALLOCATIONS)}")
    normalizer: str = _knob("mean", f"makes scores of different layers comparable: {', '.join(NORMALIZERS)}")
    per_cost: bool = _knob(True, "weigh a channel against what it saves of the target (global, isomorphic)")
    steps: int = _knob(3, "number of cuts, >= 1 (a one-shot schedule has one)")
    start: float | None = _knob(
        None,
        "first cut, as a fraction of the run's epochs, 0 <= start < 1; by default 0.1, or 0.3 of a model that has to "
        "learn the data's classes first",
    )
    end: float | None = _knob(
        None,
        "last cut, as a fraction of the run's epochs, start <= end < 1; the rest recovers; one-shot has none; by "
        "default 0.4, or 0.5 of such a model",
    )
    schedule: str = _knob("cubic", f"how the cuts share the way to the target: {', '.join(SCHEDULES)}")
    round_to: int | None = _knob(
        None,
        "pruned widths are multiples of this, >= 1; by default of 8, or of a quarter of a layer that is narrower, and "
        "of 16 or 32 for a latency target",
    )
    runtime: str = _knob("onnx", f"where the model will run; latency targets are measured there: {', '.join(RUNTIMES)}")
    max_pruning_ratio: float = _knob(0.9, "largest share of channels that one group may lose over the run, 0 < x < 1")
    layer_limits: dict[str, float] = field(
        default_factory=dict, metadata={"help": "the same by name pattern of layers, e.g. model.22.*:0.5,model.0.*:0.2"}
    )
    ignored_layers: tuple[str, ...] = _knob((), "layers that keep their width, as name patterns, e.g. model.0.*")
    reid: bool = _knob(
        False,
        "keep the maps that the head reads multiples of the smallest in width, as tracking with with_reid and "
        "model: auto needs",
    )
    calibration: int = _knob(64, "training images for criteria, reconstruction and recalibration, >= 4")
    reconstruction: bool = _knob(True, "solve the weights that stay for what the network made before a cut")
    bn_recalibration: bool = _knob(
        False, "match BatchNorms in mean and variance after a cut; solving matches means alone"
    )
    lr_after_cut: str = _knob("keep", f"learning rate after a cut: {', '.join(LEARNING_RATES)}")
    max_drop: float | None = _knob(
        None, "largest loss of fitness, as a share of the dense one, e.g. 0.01; a cut that costs more is taken back"
    )
    distill: bool | str = _knob(False, "learn from the dense model after the first cut, or from a given checkpoint")
    sparsity: str = _knob("none", f"regularise until the first cut: {', '.join(SPARSITIES)}")
    sparsity_strength: float = _knob(1e-4, "weight of that penalty, > 0")
    rewind: float | None = _knob(
        None, "after a cut the weights of this fraction of the run come back, 0 <= rewind <= start (lottery ticket)"
    )
    quantize_at: float = _knob(
        0.7, "when a run with quantize=8 turns to INT8, as a fraction of its epochs, after the last cut, 0 < x < 1"
    )
    benchmark: bool = _knob(
        True, "time dense and pruned at the end in the runtime, beside official scales of their size"
    )
    export: tuple[str, ...] = _knob(
        (), "Ultralytics export formats made and checked at the end, some with a precision, e.g. onnx,openvino:8"
    )
    verbose: bool = _knob(True, "show a line per cut, a summary at the end, and bars where work takes long")

    def __post_init__(self) -> None:
        for name in ("ignored_layers", "export"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        object.__setattr__(self, "layer_limits", _shares("layer_limits", self.layer_limits))
        optional = [name for name in ("start", "end", "max_drop", "rewind") if getattr(self, name) is not None]
        object.__setattr__(self, "target", canonical(read_targets(self.target)))
        for name in ("max_pruning_ratio", "sparsity_strength", "quantize_at", *optional):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name, low in (("steps", 1), ("round_to", 1), ("calibration", 4)):
            if getattr(self, name) is not None or name != "round_to":
                _whole(name, getattr(self, name), low)
        for name, allowed in _CHOICES.items():
            _choice(name, getattr(self, name), allowed)
        for name in (f.name for f in fields(self) if isinstance(f.default, bool) and f.name != "distill"):
            _bool(name, getattr(self, name))
        if not isinstance(self.distill, (bool, str)) or not str(self.distill):
            raise ConfigError(f"distill={seen(self.distill)} is neither True, False nor the path of a checkpoint.")
        start, end = self.span()
        if not 0 <= start < 1:
            raise ConfigError(f"start={start:g} is not a fraction of the run in 0 <= start < 1; try start=0.1.")
        if self.schedule != "one-shot" and not start <= end < 1:
            raise ConfigError(
                f"end={end:g} is not in start <= end < 1 with start={start:g}; "
                "the epochs after the last cut bring the accuracy back, so leave some."
            )
        if not 0 < self.max_pruning_ratio < 1:
            raise ConfigError(
                f"max_pruning_ratio={self.max_pruning_ratio:g} is not in 0 < max_pruning_ratio < 1; try 0.9."
            )

        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ConfigError(f"max_drop={self.max_drop:g} is not a share in 0 <= max_drop < 1; 0.01 allows 1 %.")
        if self.sparsity_strength <= 0:
            raise ConfigError(f"sparsity_strength={self.sparsity_strength:g} is not > 0; try 1e-4.")
        if self.rewind is not None and not 0 <= self.rewind <= start:
            raise ConfigError(
                f"rewind={self.rewind:g} is not in 0 <= rewind <= start with start={start:g}: only a state from "
                "before the first cut can come back."
            )
        if not 0 < self.quantize_at < 1:
            raise ConfigError(
                f"quantize_at={self.quantize_at:g} is not a fraction of the run in 0 < quantize_at < 1; try 0.7."
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
        """What has to hold in the end; nothing where nothing is cut."""
        return read_targets(self.target)

    @property
    def is_timed(self) -> bool:
        """Whether a target is a latency, so that layers have to be measured."""
        return any(target.quantity == LATENCY for target in self.targets)

    @classmethod
    def load(cls, value: Any) -> PruneConfig:
        """Make a configuration from whatever a user may pass as ``prune``.

        Args:
            value: A target (``0.5``, ``"2 MB"``, ``["50%", "8 ms"]``), a dict of knobs, a path to a YAML file, or a
                PruneConfig.

        Raises:
            ConfigError: If the value is none of these or has a wrong knob.
        """
        return value if isinstance(value, cls) else cls.from_dict(cls.given(value))

    @classmethod
    def given(cls, value: Any) -> Mapping[str, Any]:
        """Return the knobs that a user gives as ``prune``, without the defaults of the others.

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
            return _read_yaml(value)
        if isinstance(value, (int, float, str, list, tuple)):
            return {"target": value}
        raise ConfigError(f"prune={seen(value)} is a {type(value).__name__}; use a target, a dict or a YAML file.")

    @classmethod
    def from_dict(cls, knobs: Mapping[str, Any]) -> PruneConfig:
        """Make a configuration from a mapping of knob names to values; unknown names are refused."""
        if not isinstance(knobs, Mapping):
            raise ConfigError(f"{seen(knobs)} is a {type(knobs).__name__}, not a dict of knobs such as {_EXAMPLE}.")
        for name in knobs:
            _known(name if isinstance(name, str) else seen(name), prefix="")
        return cls(**knobs)

    @classmethod
    def from_yaml(cls, path: str | Path) -> PruneConfig:
        """Read a YAML file of knobs; reading can run no code."""
        return cls.from_dict(_read_yaml(path))

    @classmethod
    def from_cli(cls, arguments: Mapping[str, str], defaults: Mapping[str, Any] | None = None) -> PruneConfig:
        """Make a configuration from command-line arguments.

        Args:
            arguments: ``{"prune": "0.5", "prune_steps": "3"}``; ``prune`` may name a YAML file, which single knobs
                then override.
            defaults: Knobs that are not the usual ones where nothing is given.

        Raises:
            ConfigError: If a name is unknown (with the nearest valid one), or a value has a wrong type or range.
        """
        knobs: dict[str, Any] = {}
        for argument, text in arguments.items():
            if argument != "prune":
                name = _known(argument.removeprefix(CLI_PREFIX), prefix=CLI_PREFIX, seen=argument)
                knobs[name] = _parse(name, text)
        if "prune" not in arguments:
            raise ConfigError(
                f"{', '.join(arguments) or 'no argument'} without prune: say how much to remove, e.g. prune=0.5."
            )
        return cls.from_dict({**(defaults or {}), **cls.given(_bool_or_text(arguments["prune"])), **knobs})

    def to_dict(self) -> dict[str, Any]:
        """Return all knobs as plain data: what YAML, JSON and ``from_dict`` take."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def to_cli(self) -> dict[str, str]:
        """Return the target, and the knobs that are not the defaults, as what ``from_cli`` takes.

        Raises:
            ConfigError: If a name cannot be typed, because it has commas or quotes.
        """
        changed = {name: value for name, value in vars(self).items() if value != getattr(PruneConfig(), name)}
        knobs = {f"{CLI_PREFIX}{name}": as_text(value) for name, value in changed.items() if name != "target"}
        for name, text in knobs.items():
            knob = name.removeprefix(CLI_PREFIX)
            if _parse(knob, text) != changed[knob]:
                raise ConfigError(f"{knob}={changed[knob]!r} cannot be passed on as {name}={text}; use plain names.")
        return {"prune": str(self.target), **knobs}

    def replace(self, **knobs: Any) -> PruneConfig:
        """Return a configuration with other values for some knobs."""
        return self.from_dict({**self.to_dict(), **knobs})

    def limit(self, layer: str) -> float:
        """Return the largest share of its channels that a layer may lose; the first pattern that matches decides."""
        limits = (share for p, share in self.layer_limits.items() if fnmatch.fnmatchcase(layer, p))
        return next(limits, self.max_pruning_ratio)

    def check_patterns(self, layers: Iterable[str]) -> None:
        """Raise a ConfigError if a pattern of ``ignored_layers`` or ``layer_limits`` matches none of these layers."""
        paths = list(layers)
        for name in ("ignored_layers", "layer_limits"):
            for pattern in getattr(self, name):
                if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                    near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
                    raise ConfigError(
                        f"{name}: {seen(pattern)} matches no layer of this network; its layers have names like "
                        f"{', '.join(near)}."
                    )

    def is_ignored(self, layer: str) -> str | None:
        """Return the pattern of ``ignored_layers`` that matches a layer path, or None."""
        return next((p for p in self.ignored_layers if fnmatch.fnmatchcase(layer, p)), None)


KNOBS: dict[str, str] = {f.name: f.metadata["help"] for f in fields(PruneConfig)}
"""Each knob's one-line description, in order."""


def _read_yaml(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file holds, with a loader that cannot run code."""
    import yaml  # only where a file is read: start-up must stay cheap

    lines = "'knob: value' lines such as 'target: 0.5'"
    try:
        text = Path(path).read_text(encoding="utf-8")
        knobs, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"prune={path}: there is no such file; give a number such as prune=0.5 or a path.") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"prune={path} is not valid YAML: {' '.join(str(e).split())}; write {lines}.") from e
    except Exception as e:  # yaml raises whatever a tag such as !!bool finds in its text
        raise ConfigError(f"prune={path} cannot be read ({told(e)}); write {lines}.") from e
    if not isinstance(knobs, dict):
        raise ConfigError(f"prune={path} holds a {type(knobs).__name__}, not {lines}.")
    names = [key.value for key, _ in tree.value] if tree else []
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"prune={path} has {twice} twice; leave one of them.")
    return knobs


def is_argument(name: str) -> bool:
    """Whether a command-line argument is one of ours."""
    return name == "prune" or name.startswith(CLI_PREFIX)


def as_text(value: object) -> str:
    """Return the value of a knob as it would be typed."""
    if isinstance(value, dict):
        return ",".join(f"{pattern}:{share}" for pattern, share in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _known(name: str, prefix: str, seen: str | None = None) -> str:
    """Return ``name`` if it is a knob, else raise with the nearest valid name."""
    if name in KNOBS:
        return name
    near = difflib.get_close_matches(name, KNOBS, n=1, cutoff=0.4)
    hint = f"did you mean {prefix}{near[0]}?" if near else "see the list."
    raise ConfigError(f"unknown knob {seen or name!s}: {hint} Valid: {', '.join(prefix + k for k in KNOBS)}.")


def _bool_or_text(text: str) -> Any:
    """Keep a word that a user may type for yes or no apart from a number or path."""
    return {"true": True, "false": False}.get(text.strip().lower(), text.strip())


def _parse(name: str, text: str) -> Any:
    """Read one command-line value with the type of the knob's default."""
    default = next(f.default for f in fields(PruneConfig) if f.name == name)
    text = text.strip()
    if name == "target":
        return text
    if name == "layer_limits":
        pairs = (part.partition(":") for part in _split_names(text.strip("{}")))
        return {pattern.strip(" '\""): _number_or_text(share) for pattern, _, share in pairs}
    if isinstance(default, tuple):
        return _split_names(text)
    if name == "distill":
        return _bool_or_text(text)
    if text.lower() == "none" and default is None:
        return None
    if isinstance(default, bool):
        if text.lower() not in {"true", "false"}:
            raise ConfigError(f"{name}={text} is not a bool; use True or False.")
        return text.lower() == "true"
    if isinstance(default, str):
        return text.strip("'\"")
    is_whole = isinstance(default, int) or name == "round_to"
    kind = "whole number" if is_whole else "number"
    try:
        return int(text) if is_whole else float(text)
    except ValueError:
        raise ConfigError(f"{name}={text} is not a {kind}; the default is {default}.") from None


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _split_names(text: str) -> tuple[str, ...]:
    """Read ``a,b`` or ``[a, b]``."""
    return tuple(part for part in (p.strip(" '\"") for p in text.strip("[]()").split(",")) if part)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:  # nor infinite, nor NaN
        raise ConfigError(f"{name}={seen(value)} is not a number; {KNOBS[name]}.")
    return float(value)


def _whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1e9:
        raise ConfigError(f"{name}={seen(value)} is not a whole number >= {low}; {KNOBS[name]}.")


def _bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={seen(value)} is not a bool; use True or False.")


def _shares(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, str):
        value = _parse(name, value)
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and k for k in value):
        raise ConfigError(f"{name}={seen(value)} does not map name patterns to shares; {KNOBS[name]}.")
    for pattern, share in value.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ConfigError(f"{name}: {pattern} has {seen(share)}, not a share in 0 <= x < 1; {KNOBS[name]}.")
    return {pattern: float(share) for pattern, share in value.items()}


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(seen(value), allowed, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name}={seen(value)} is not one of {', '.join(allowed)}.{hint}")


def _names(name: str, value: Any) -> tuple[str, ...]:
    values = _split_names(value) if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) and v for v in values):
        raise ConfigError(f"{name}={seen(value)} is not a list of names; {KNOBS[name]}.")
    return tuple(values)
