"""``tune()`` with an attached PruneCallback: a real search, and one with a stand-in for Ray Tune."""

from __future__ import annotations

import json
import pickle
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nets import tiny_yaml
from trainings import soon
from ultralytics import YOLO, __version__
from ultralytics.engine import trainer, tuner
from ultralytics.utils import checks
from ultralytics.utils import tuner as ray_tuner
from ultralytics.utils.callbacks import raytune  # before there is a stand-in for ray

from yolo_prune import PruneCallback, PruneConfig
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.host import tuning

needs_arguments = pytest.mark.skipif(
    not checks.check_version(__version__, "8.4.129"), reason="the trials of ultralytics before 8.4.129 are not told"
)
SETTINGS = {"epochs": 2, "imgsz": 64, "batch": 4, "plots": False, "save": False, "val": False, "optimizer": "SGD"}


@pytest.fixture
def yolo(own_folder: Path) -> YOLO:
    return YOLO(tiny_yaml(own_folder))


def once() -> PruneCallback:
    """One cut, before the second of two epochs."""
    return soon(0.4, steps=1, start=0.5, end=0.5)


def check_report(run: Path, target: float) -> None:
    report = json.loads((run / "pruning" / "report.json").read_text())
    asked = once().config.replace(target=target, distill=False)  # the classes are new to the model
    assert report["config"] == asked.to_dict()
    assert target - 0.05 <= 1 - report["final"]["macs"] / report["dense"]["macs"] <= target + 0.05


@pytest.mark.slow
@needs_arguments
def test_every_trial_prunes_with_the_knobs_that_it_is_given(own_folder: Path, tiny_data: Path, yolo: YOLO) -> None:
    once().attach(yolo)
    space = {"prune": (0.2, 0.6), "lr0": (1e-3, 1e-2)}
    yolo.tune(data=str(tiny_data), iterations=1, space=space, project=str(own_folder), **SETTINGS)
    (line,) = (own_folder / "tune" / "tune_results.ndjson").read_text().splitlines()
    trial = json.loads(line)
    assert trial["hyperparameters"]["prune"] == 0.4 and not trial.get("failed_datasets")
    (folder,) = trial["save_dirs"].values()
    check_report(Path(folder), 0.4)
    assert tuner.Tuner is not tuning.Trials


@pytest.mark.slow
@needs_arguments
def test_the_commands_of_the_trials_have_the_knobs(
    own_folder: Path, tiny_data: Path, yolo: YOLO, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[dict[str, str]] = []

    def note(command: list[str], check: bool) -> None:
        commands.append(dict(argument.split("=", 1) for argument in command if "=" in argument))

    monkeypatch.setattr(trainer, "subprocess", SimpleNamespace(run=note))
    monkeypatch.setattr(tuner.np.random, "default_rng", partial(np.random.default_rng, 0))  # else it draws by the clock
    PruneCallback(0.5, start=0.2, export=("onnx", "engine:16")).attach(yolo)
    space = {"prune_steps": (1, 9), "prune_start": (0.1, 0.3)}
    yolo.tune(data=str(tiny_data), iterations=6, space=space, project=str(own_folder), **SETTINGS)
    configs = [
        PruneConfig.from_cli({k: v for k, v in command.items() if k.startswith("prune")}) for command in commands
    ]
    assert configs[0] == PruneConfig(target=0.5, start=0.2, export=("onnx", "engine:16"))
    assert len(configs) == len(set(map(str, configs))) == 6
    for config in configs:
        assert config.replace(steps=3, start=0.2) == configs[0] and 0.1 <= config.start <= 0.3


def test_a_space_that_no_trial_can_use_is_refused_at_once(tiny_data: Path, yolo: YOLO) -> None:
    soon().attach(yolo)
    for space, message in (
        ({"prune_stpes": (1, 3)}, "unknown option prune_stpes: did you mean prune_steps"),
        ({"prune": (0.3, 1.5)}, "target=1.5 is not a share to remove"),
        ({"prune_steps": (0.5, 3)}, "steps=0.5 is not a whole number"),
        ({"prune_max_drop": (0, 0.1)}, r"space: prune_max_drop=None is no number for the search to start from; give"),
    ):
        with pytest.raises(ConfigError, match=message):
            yolo.tune(data=str(tiny_data), space=space)


def test_a_callback_that_only_resumes_cannot_tune(yolo: YOLO) -> None:
    PruneCallback(None).attach(yolo)
    with pytest.raises(UnsupportedError, match=r"PruneCallback\(None\) resumes one run, and tune\(\) starts many: say"):
        yolo.tune()


def test_a_release_whose_trials_cannot_be_told_is_refused(yolo: YOLO, monkeypatch: pytest.MonkeyPatch) -> None:
    soon().attach(yolo)
    monkeypatch.setattr(tuning, "__version__", "8.4.128")
    with pytest.raises(UnsupportedError, match=r"needs ultralytics 8\.4\.129 or newer, and this is 8\.4\.128: pip ins"):
        yolo.tune()


class Grid(list[Any]):
    """Stands in for Ray Tune's results."""

    experiment_path = "."


class Search:
    """Stands in for Ray Tune: one trial, with the last choice of everything, on a copy as in another process."""

    def __init__(self, trainable: Any, param_space: dict[str, Any], **_: Any) -> None:
        self._trainable, self._space = trainable, param_space
        self.results = Grid()

    @staticmethod
    def can_restore(folder: Path) -> bool:
        return False

    def fit(self) -> None:
        chosen = {k: v[-1] if isinstance(v, list) else v for k, v in self._space.items()}
        self.results.append(SimpleNamespace(metrics=self._trainable(dict(chosen)), config=chosen))

    def get_results(self) -> Any:
        return self.results


@pytest.fixture
def schedulers() -> list[dict[str, Any]]:
    """What the stand-in's schedulers were made with."""
    return []


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, schedulers: list[dict[str, Any]]) -> None:
    """Put a stand-in for Ray in place."""

    def scheduler(**settings: Any) -> None:
        schedulers.append(settings)

    assert not raytune.callbacks
    modules = {name: ModuleType(name) for name in ("ray", "ray.tune", "ray.tune.schedulers")}

    def anything(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace()

    vars(modules["ray"]).update(put=pickle.dumps, get=pickle.loads, shutdown=lambda: None, tune=modules["ray.tune"])
    vars(modules["ray.tune"]).update(
        Tuner=Search, TuneConfig=anything, RunConfig=anything, uniform=anything, randint=anything
    )
    vars(modules["ray.tune"])["with_resources"] = lambda trainable, resources: trainable
    vars(modules["ray.tune.schedulers"]).update(ASHAScheduler=scheduler, HyperBandForBOHB=scheduler)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ray_tuner.checks, "check_requirements", lambda *_, **__: True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_the_copies_that_ray_tune_trains_prune_with_the_knobs_that_it_chose(
    own_folder: Path, tiny_data: Path, yolo: YOLO, schedulers: list[dict[str, Any]]
) -> None:
    once().attach(yolo)
    space = {"prune": [0.2, 0.6], "lr0": [1e-3, 1e-2]}
    settings = {"data": str(tiny_data), "project": str(own_folder), "search_alg": "random", **SETTINGS}
    results = yolo.tune(use_ray=True, iterations=1, space=space, **settings)
    assert "metrics/mAP50-95(B)" in results[0].metrics
    (report,) = own_folder.rglob("report.json")
    check_report(report.parent.parent, 0.6)
    (trial,) = json.loads(Path("trials.json").read_text())["trials"]
    final = json.loads(report.read_text())["final"]
    assert trial == {
        **{name: final[name] for name in tuning.FIGURES},
        "run": str(report.parent.parent),
        "options": {"prune": 0.6, "lr0": 1e-2},
        "front": True,
    }
    assert schedulers[0]["grace_period"] == SETTINGS["epochs"] == schedulers[0]["max_t"] - 2
    assert once().config == next(f.__self__.config for f in yolo.callbacks["on_train_end"] if hasattr(f, "__self__"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_knob_that_ray_tune_does_not_know_is_refused_before_training(
    own_folder: Path, tiny_data: Path, yolo: YOLO
) -> None:
    once().attach(yolo)
    settings = {"data": str(tiny_data), "project": str(own_folder), "search_alg": "random", **SETTINGS}
    with pytest.raises(ConfigError, match="unknown option prune_stpes: did you mean prune_steps"):
        yolo.tune(use_ray=True, iterations=1, space={"prune_stpes": [1]}, **settings)


def test_the_trials_of_a_search_are_one_curve(own_folder: Path) -> None:
    """Only those that were trained to their end count, and a larger one only where it is more accurate."""
    models = {"a": (100, 0.6), "b": (50, 0.5), "c": (80, 0.45), "d": (30, 0.4), "e": (50, 0.3), "f": (20, None)}
    grid = [SimpleNamespace(metrics={"metrics/mAP50-95(B)": 0.1}, config={})]
    for run, (macs, fitness) in models.items():
        figures = {"run": run, "macs": macs, "params": 1, "bytes": 2, "fitness": fitness, "checkpoint": "best.pt"}
        metrics = {f"{tuning.NOTED}{name}": value for name, value in figures.items()}
        grid.append(SimpleNamespace(metrics=metrics, config={"prune": 0.5, "data": "my.yaml"}))
    trials = json.loads(tuning.note_trials(grid, own_folder).read_text())["trials"]
    assert [trial["run"] for trial in trials] == ["a", "c", "e", "b", "d", "f"]
    assert [trial["run"] for trial in trials if trial["front"]] == ["a", "b", "d"]
    assert trials[0]["options"] == {"prune": 0.5}
