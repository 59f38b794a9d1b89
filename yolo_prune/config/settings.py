"""The options of a pruning run, checked, and the way through dict, YAML and command line.

This module knows neither torch nor ultralytics, so that a typing error in an option is refused within milliseconds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from yolo_prune.config import rules
from yolo_prune.config.choices import (
    REMOVED,
    SPAN,
    SPAN_OF_AUTO,
    SPAN_OF_NEW_CLASSES,
    SPAN_OF_NEW_CLASSES_AUTO,
    USUAL_MAX_DROP,
    without_removed,
)
from yolo_prune.config.options import Options
from yolo_prune.config.rules import Rule
from yolo_prune.config.sizes import target_of
from yolo_prune.config.targets import AUTO, LATENCY, MACS, TWO_OF_FOUR, ZEROS, Target, read_targets
from yolo_prune.config.text import CLI_PREFIX, as_text, check_matches, known_name, read_yaml
from yolo_prune.errors import ConfigError, short_repr


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Options):
    """The validated options of one pruning run.

    Examples:
        >>> PruneConfig(target=0.5, steps=3, start=0.1, end=0.4)  # half of the MACs, in three cuts
        >>> PruneConfig.load("prune.yaml")
        >>> PruneConfig.load(0.5)

    Raises:
        ConfigError: If an option has a wrong name, type or value. The message names the option, the value and the way
            out.
    """

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value = rules.plain(getattr(self, name))
            object.__setattr__(self, name, _rule(option).check(name, value, HELP_TEXTS[name]))
        if self.sizes:
            self._settle_sizes()
        if self.is_auto:
            self._settle_auto()
        for name, option in OPTIONS.items():
            self._check_is_of_use(name, option)
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

        if self.depth and not self.removes_blocks:
            raise ConfigError(
                f"depth=True with importance={self.importance}, allocation={self.allocation} and "
                f"per_cost={self.per_cost}: what a block costs is known with importance=reconstruction, "
                "allocation=global and per_cost=True alone; leave depth out, or use these."
            )

    def span(self, knows_classes: bool = True) -> tuple[float, float]:
        """Return first and last cut as fractions of the run.

        Args:
            knows_classes: Whether the model has learned the data's classes before the run. Where it has not, what
                matters shows later, and the cuts come later, unless the user says when.
        """
        is_given = self.start is not None or self.end is not None
        usual, of_new = (SPAN_OF_AUTO, SPAN_OF_NEW_CLASSES_AUTO) if self.is_auto else (SPAN, SPAN_OF_NEW_CLASSES)
        start, end = usual if knows_classes or is_given else of_new
        return start if self.start is None else self.start, end if self.end is None else self.end

    @property
    def targets(self) -> tuple[Target, ...]:
        """Targets that the final network, or those of the sizes, have to meet; none where nothing is cut.

        Of ``target=auto`` it is what is made less: latency where a runtime or what a kit has measured is named.
        """
        if self.is_auto:
            return (Target(LATENCY if self.runtime or self.latency else MACS, removed=1.0, text=AUTO),)
        return tuple(target for size in self.sizes or (self.target,) for target in read_targets(size))

    @property
    def is_auto(self) -> bool:
        """Whether the run finds its own target."""
        return self.target == AUTO

    @property
    def learning_rate(self) -> str:
        """What happens to the learning rate at a cut."""
        return self.lr_after_cut or ("cycle" if len(self.sizes) > 1 or self.is_auto else "keep")

    @property
    def zeros(self) -> Target | None:
        """The target for zeros among the weights, of several the strictest, or None."""
        asked = [target for target in self.targets if target.quantity in ZEROS]
        return max(asked, key=lambda target: target.removed or 0.0, default=None)

    @property
    def asks_two_of_four(self) -> bool:
        """Whether the zeros are to be two of every four input channels."""
        return self.zeros is not None and self.zeros.quantity == TWO_OF_FOUR

    @property
    def cuts_channels(self) -> bool:
        """Whether a target is of something that channels cost."""
        return any(target.quantity not in ZEROS for target in self.targets)

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
        value = rules.plain(value)
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
        if "prune" not in arguments and not options.get("sizes"):
            raise ConfigError(
                f"{', '.join(arguments) or 'no argument'} without prune: say how much to remove, e.g. prune=0.5."
            )
        given = cls.given(rules.flag_or_text(arguments["prune"])) if "prune" in arguments else {}
        if "target" in given and options.get("sizes"):
            raise ConfigError(
                f"prune={given['target']} with prune_sizes={','.join(arguments['prune_sizes'].split())}: sizes stand "
                "instead of one target; leave out prune, or add it to them."
            )
        return cls.from_dict({**(defaults or {}), **given, **options})

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
        return options if self.sizes else {"prune": str(self.target), **options}

    def replace(self, **options: Any) -> PruneConfig:
        """Return a configuration with other values for some options."""
        return self.from_dict({**self.to_dict(), **options})

    def limit(self, layer: str) -> float:
        """Return the largest share of its channels that a layer may lose; the first pattern that matches decides."""
        limits = (share for p, share in self.layer_limits.items() if fnmatch.fnmatchcase(layer, p))
        return next(limits, self.max_pruning_ratio)

    def limit_of_zeros(self, layer: str) -> float:
        """Return the largest share of a layer's weights that may be zero, as `limit` does; 1 where no pattern says."""
        return next((share for p, share in self.layer_limits.items() if fnmatch.fnmatchcase(layer, p)), 1.0)

    @property
    def removes_blocks(self) -> bool:
        """Whether inner blocks may go: their price is known in terms of the default criterion alone."""
        can_tell = self.importance == "reconstruction" and self.allocation == "global" and self.per_cost
        return can_tell and (self.is_timed if self.depth is None else self.depth)

    def is_limited(self, layer: str) -> bool:
        """Whether a pattern of ``layer_limits`` matches a layer, so that not all of it may go."""
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in self.layer_limits)

    def _check_is_of_use(self, name: str, option: Field[Any]) -> None:
        """Raise a ConfigError if an option was given that does nothing without another, which was not."""
        other, value = option.metadata["of"], getattr(self, name)
        if not other or value == option.default:
            return
        if getattr(self, other) is False or getattr(self, other) == OPTIONS[other].default:
            raise ConfigError(
                f"{name}={short_repr(value)} does nothing without {other} ({HELP_TEXTS[other]}); give both, or leave "
                f"out {name}."
            )

    def _settle_sizes(self) -> None:
        """Let the target be that of the smallest size.

        Raises:
            ConfigError: If another one was given.
        """
        smallest = target_of(self.sizes)
        if self.target not in (OPTIONS["target"].default, smallest):
            raise ConfigError(
                f"target={self.target} with sizes={','.join(self.sizes)}: sizes stand instead of one target; leave out "
                "the target, or add it to them."
            )
        object.__setattr__(self, "target", smallest)

    def _settle_auto(self) -> None:
        """Let ``target=auto`` have a ``max_drop``.

        Raises:
            ConfigError: If an option was given that says how far each cut goes.
        """
        for name in ("steps", "schedule"):
            if getattr(self, name) != OPTIONS[name].default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} with target=auto, which chooses its cuts; leave it out."
                )
        if self.max_drop is None:
            object.__setattr__(self, "max_drop", USUAL_MAX_DROP)

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
