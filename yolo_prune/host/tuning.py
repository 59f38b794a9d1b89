"""Ultralytics' search for hyperparameters, ``model.tune``, over runs that prune; our options can be searched as well.

What is attached to a model does not reach the trials: Ultralytics starts each of them as a ``yolo train`` command, and
Ray Tune takes the callbacks off a copy of the model. So the commands get the options as arguments, which `startup`
takes, and the copies are given them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

from ultralytics import __version__
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.engine import tuner
from ultralytics.utils import tuner as ray_tuner
from ultralytics.utils.checks import check_version

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.text import CLI_PREFIX, is_argument
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.host.patches import patched
from yolo_prune.utils.console import log
from yolo_prune.utils.files import write_json
from yolo_prune.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from ultralytics import YOLO

Attach: TypeAlias = "Callable[[YOLO, PruneConfig], None]"


def tune(
    stock: Callable[..., Any],
    config: PruneConfig | None,
    attach: Attach,
    use_ray: bool = False,
    *arguments: Any,
    **settings: Any,
) -> Any:
    """Stand in for a model's ``tune``: the same, but the trials prune.

    Args:
        stock: The model's own.
        config: The options of what is attached to the model.
        attach: Lets a model prune.
        use_ray: Whether Ray Tune runs the trials.
        *arguments: What else ``tune`` takes.
        **settings: What else ``tune`` takes. ``space`` may have options as the command line names them: ``prune``,
            ``prune_start``.

    Raises:
        UnsupportedError: If there is no configuration, or the trials of this release cannot be told of it.
        ConfigError: If an option in ``space`` does not exist, or cannot have such a value.
    """
    if config is None:
        raise UnsupportedError(
            "PruneCallback(None) resumes one run, and tune() starts many: say how much to remove, e.g. "
            "PruneCallback(0.5)."
        )
    if not use_ray and not check_version(__version__, "8.4.129"):  # the older ones check what they pass on
        raise UnsupportedError(
            f"tune() with pruning needs ultralytics 8.4.129 or newer, and this is {__version__}: pip install -U "
            "ultralytics."
        )
    owner, name, stand_in = (
        (ray_tuner, "run_ray_tune", partial(_run_ray_tune, ray_tuner.run_ray_tune, config, attach))
        if use_ray
        else (tuner, "Tuner", partial(Trials, config))
    )
    with patched(owner, name, stand_in):
        return stock(use_ray, *arguments, **settings)


class Trials(tuner.Tuner):
    """Ultralytics' tuner, whose trials prune: it makes their command lines of its own arguments.

    Args:
        config: The options.
        args: What Ultralytics gives its tuner.
        **settings: What Ultralytics gives its tuner.
    """

    def __init__(self, config: PruneConfig, args: dict[str, Any], **settings: Any) -> None:
        searched = _start_values(config, args.get("space") or {})
        super().__init__(args, **settings)
        for name, value in {**config.to_cli(), **searched}.items():
            setattr(self.args, name, value)
        self._whole = [name for name, value in searched.items() if isinstance(value, int)]

    def _mutate(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        chosen: dict[str, float] = super()._mutate(*arguments, **settings)
        return {name: round(value) if name in self._whole else value for name, value in chosen.items()}


def _start_values(config: PruneConfig, space: Mapping[str, Any]) -> dict[str, float]:
    """Return the options in a search space with the values that the search starts from.

    Raises:
        ConfigError: If one does not exist, is no number, or cannot have the values at its bounds.
    """
    values = {}
    for name, bounds in space.items():
        if not is_argument(name):
            continue
        for bound in bounds[:2]:
            PruneConfig.from_cli({**config.to_cli(), name: str(bound)})
        start, end = config.span()
        known = {"prune": config.target, f"{CLI_PREFIX}start": start, f"{CLI_PREFIX}end": end}
        value = known[name] if name in known else getattr(config, name.removeprefix(CLI_PREFIX))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"space: {name}={value} is no number for the search to start from; give the option a number in "
                "PruneCallback, or search with use_ray=True and ray.tune.choice."
            )
        values[name] = value
    return values


def _run_ray_tune(
    stock: Callable[..., Any], config: PruneConfig, attach: Attach, model: YOLO, *arguments: Any, **settings: Any
) -> Any:
    """Stand in for Ultralytics' ``run_ray_tune``: what it trains are copies that prune, and their sizes are noted.

    Its schedulers stop trials that are less accurate than others, which smaller models are; so where sizes are searched
    none is stopped, unless the user gives a ``grace_period``. They also stop each at its last epoch, before the pruned
    model is measured and written down; here the final validation and the results count as two more.
    """
    try:
        from ray.tune import schedulers
    except ImportError:  # Ultralytics says how to install it
        schedulers = None
    if SIZE_OPTIONS & (settings.get("space") or {}).keys() and "grace_period" not in settings:
        settings["grace_period"] = settings.get("epochs") or DEFAULT_CFG_DICT["epochs"]
    with ExitStack() as patches:
        for name in SCHEDULERS if schedulers else ():
            patches.enter_context(patched(schedulers, name, partial(_patient, getattr(schedulers, name))))
        results = stock(RayModel(model, config, attach), *arguments, **settings)
    if folder := getattr(results, "experiment_path", None):
        log(f"the sizes of all trials, and which of them no other beats, are in {note_trials(results, Path(folder))}")
    return results


def _patient(scheduler: Callable[..., Any], *, max_t: int, **settings: Any) -> Any:
    """Make a scheduler that lets a trial report its final validation and its results."""
    return scheduler(max_t=max_t + 2, **settings)


SCHEDULERS = ("ASHAScheduler", "HyperBandForBOHB")
"""Ray's, that Ultralytics uses."""
SIZE_OPTIONS = {"prune", f"{CLI_PREFIX}sizes", f"{CLI_PREFIX}max_drop"}
"""Options that say how large a model becomes."""
FIGURES = ("macs", "params", "bytes", "fitness", "checkpoint")
"""What is noted of a trial's model, as `Stage` has it."""


def note_trials(results: Iterable[Any], folder: Path) -> Path:
    """Write ``trials.json``: the model of each trial of a search that was trained to its end, the largest first.

    Args:
        results: Ray Tune's results, with ``metrics`` and ``config`` each.
        folder: Where to.

    Returns:
        The file: ``{"schema", "trials": [{"run", "options", *FIGURES, "front"}]}``. ``run`` is the trial's folder, and
        ``front`` tells whether no other trial is as small and as accurate.
    """
    trials = []
    for result in results:
        found = result.metrics or {}
        if f"{NOTED}run" in found:
            figures = {name: found[f"{NOTED}{name}"] for name in ("run", *FIGURES)}
            trials.append({**figures, "options": {k: v for k, v in result.config.items() if k != "data"}})
    trials.sort(key=lambda trial: (-trial["macs"], trial["fitness"] or 0.0))
    best = -1.0
    for trial in reversed(trials):  # from the smallest on, only what is more accurate than all that is smaller
        trial["front"] = trial["fitness"] is not None and trial["fitness"] > best
        best = trial["fitness"] if trial["front"] else best
    path = folder / "trials.json"
    write_json(path, {"schema": 1, "trials": trials})
    return path


NOTED = "prune_"
"""Begins the names of what a trial tells Ray Tune of its model."""


class RayModel:
    """Stands in for the model of which Ray Tune trains copies.

    Args:
        model: The model.
        config: The options where the search does not say otherwise.
        attach: Lets a model prune.
    """

    def __init__(self, model: YOLO, config: PruneConfig, attach: Attach) -> None:
        self.task, self.trainer = model.task, None
        self._model, self._config, self._attach = model, config, attach

    def reset_callbacks(self) -> None:
        """Forget what is attached."""
        self._model.reset_callbacks()

    def train(self, **arguments: Any) -> Any:
        """Train, with the options among the arguments; the results tell of the model, too.

        Raises:
            ConfigError: If an option does not exist, or cannot have this value.
        """
        options = {name: str(arguments.pop(name)) for name in [*arguments] if is_argument(name)}
        defaults = self._config.to_cli()
        if {"prune", f"{CLI_PREFIX}sizes"} & options.keys():  # one stands instead of the other
            defaults = {k: v for k, v in defaults.items() if k not in ("prune", f"{CLI_PREFIX}sizes")}
        self._attach(self._model, PruneConfig.from_cli({**defaults, **options}))
        results = self._model.train(**arguments)
        run = Path(self._model.trainer.save_dir)
        if not hasattr(results, "results_dict") or not (report := RunFolder(run).path / "report.json").exists():
            return results
        final = json.loads(report.read_text(encoding="utf-8"))["final"]
        noted = {f"{NOTED}{name}": final[name] for name in FIGURES}
        return SimpleNamespace(results_dict={**results.results_dict, **noted, f"{NOTED}run": str(run)})
