"""What a user can get wrong, in one table: what is given, how it is refused, and what the message says.

Each message tells what was wrong with the value seen, and the way out. A wrong command line ends with exit code 2, what
fails later with 1. The files that were there are as they were, and nothing that was given has run.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from nets import build, make, tiny_yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks

from yolo_prune import PruneCallback, PruneConfig, PrunePlan, prune_model
from yolo_prune.cli import main as cli
from yolo_prune.cli import startup
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.deploy.bench import bench
from yolo_prune.deploy.bench_table import Bench
from yolo_prune.errors import (
    CheckpointError,
    ConfigError,
    PlanError,
    PruneError,
    TargetError,
    UnsupportedError,
    WriteError,
)
from yolo_prune.host import checkpoint, distillation
from yolo_prune.host.trainer import open_model
from yolo_prune.report.records import Report, Stage
from yolo_prune.surgery.rewinding import recall, remember
from yolo_prune.training.exact_state import load as load_state
from yolo_prune.training.session import Session
from yolo_prune.training.snapshot import Snapshot

Content = bytes | str | Callable[[], bytes]


class Act(NamedTuple):
    """What a user does, in a folder where the data set is ``tiny.yaml``.

    Attributes:
        do: Does it; what returns a number is a command.
        files: Name -> content of what is there before.
        missing: Packages that are not installed.
    """

    do: Callable[[], object]
    files: Mapping[str, Content] = {}
    missing: tuple[str, ...] = ()


class Wrong(NamedTuple):
    """A row of the table: ``refused`` is the class of the error, or a command's exit code."""

    refused: type[PruneError] | int
    act: Act
    says: str
    way_out: str


def refused(by: type[PruneError] | int, *rows: tuple[Act, str, str]) -> list[Wrong]:
    return [Wrong(by, *row) for row in rows]


# What a user does -----------------------------------------------------------------------------------------------------


def knobs(**given: Any) -> Act:
    return Act(lambda: PruneConfig.from_dict(given))


def prune(value: Any) -> Act:
    return Act(lambda: PruneConfig.load(value))


def typed(prune: str | None = "0.5", **given: str) -> Act:
    arguments = {f"prune_{name}": text for name, text in given.items()}
    return Act(lambda: PruneConfig.from_cli(arguments if prune is None else {"prune": prune, **arguments}))


def in_yaml(content: Content) -> Act:
    return Act(lambda: PruneConfig.load("my.yaml"), {"my.yaml": content})


def yolo(*arguments: str) -> Act:
    """Type ``yolo …``, as far as the import of Ultralytics."""

    def begin() -> None:
        startup.prepare(["yolo", *arguments])
        sys.meta_path[0].find_spec("ultralytics", None)

    return Act(begin)


def command(line: str, missing: tuple[str, ...] = (), **files: Content) -> Act:
    """Type ``yolo-prune …``; ``HERE`` is the folder, and the file ``best_pt`` is ``best.pt``."""
    named = {"small.yaml": small, **{name.replace("_", "."): content for name, content in files.items()}}
    return Act(lambda: cli.main(line.replace("HERE", str(Path.cwd())).split()), named, missing)


def train(model: str = "small.yaml", arguments: Mapping[str, Any] = {}, **given: Any) -> Act:  # only read
    """Train with a PruneCallback as ``yolo train`` does."""

    def begin() -> None:
        class Model(YOLO):
            """Whose ``train`` is wrapped, as that of the stock class is in a command."""

        startup.wrap_train(Model, PruneConfig(**{"target": 0.5, "steps": 2, "start": 0.25, "end": 0.5, **given}))
        settings = {"data": "tiny.yaml", "epochs": 4, "imgsz": 64, "batch": 4, "workers": 0, "project": str(Path.cwd())}
        yolo = Model(model, task="detect")
        yolo.add_callback("on_train_start", lambda trainer: pytest.fail("the training has begun"))
        yolo.train(**{**settings, **arguments})

    return Act(begin, {"small.yaml": small, "best.onnx": b"", "torn.pt": torn})


def plan_file(content: Content) -> Act:
    return Act(lambda: PrunePlan.load("plan-1.json"), {"plan-1.json": content})


def plan_with(**changes: Any) -> Act:
    return plan_file(json.dumps({**PLAN.to_dict(), **changes}))


def applied(plan: Callable[[], PrunePlan], to: Callable[[], Any]) -> Act:
    return Act(lambda: plan().apply(to()), {"best.onnx": b""})


def latency_with(**changes: Any) -> Act:
    return latency_file(json.dumps({**asdict(LatencyModel(0.01)), **changes}))


def latency_file(content: Content) -> Act:
    return Act(lambda: LatencyModel.load(Path("latency.json")), {"latency.json": content})


def state_file(content: Content) -> Act:
    return Act(lambda: load_state(Path("state-1-0.pt")), {"state-1-0.pt": content})


def rewind_file(content: Content) -> Act:
    return Act(lambda: recall(nn.Linear(2, 2), Path("rewind-0.pt")), {"rewind-0.pt": content})


def before_cut(content: Content) -> Act:
    return Act(lambda: Snapshot.load(Path("before-cut.pt"), SimpleNamespace()), {"before-cut.pt": content})


def noted(**note: Any) -> Act:
    """Resume a run whose ``last.pt`` has a note in its ``model.yaml``."""
    yaml = {checkpoint.KEY: {"schema": 1, **note}}
    arguments = SimpleNamespace(imgsz=64, model="last.pt")
    trainer = SimpleNamespace(resume=True, epochs=4, save_dir="run", model=SimpleNamespace(yaml=yaml), args=arguments)
    return Act(lambda: Session(trainer, None))


def rebuilt(**record: Any) -> Act:
    """Train a pruned checkpoint on whose ``model.yaml`` has this record."""
    network = build("yolov8n")
    yaml = {**network.yaml, checkpoint.KEY: {"schema": 1, "module": "Conv", "widths": {}, **record}}
    return Act(lambda: checkpoint.rebuild(lambda **_: network, yaml, None))


def written(write: Callable[[Path], object], name: str = "plan-1.json") -> Act:
    """Write a file where one is, on a disk that is full: what is written to the draft goes to ``/dev/full``."""

    def begin() -> None:
        Path(f"{name}.part").symlink_to("/dev/full")
        write(Path(name))

    return Act(begin, {name: b"of before"})


def beneath_a_file(write: Callable[[Path], object]) -> Act:
    """Write a file in a folder that cannot be made."""
    return Act(lambda: write(Path("notes.txt", "run", "file")), {"notes.txt": b"mine"})


# What is given --------------------------------------------------------------------------------------------------------

COST: Any = ({"before": 2, "after": 1}, {"before": 2, "after": 1}, (64, 64))
PLAN = PrunePlan({"a": {"out": [0, 2], "in": [0]}}, {"a": {"out": 3, "in": 1}}, *COST)
BEYOND = PrunePlan({"model.0.conv": {"out": [99], "in": [0]}}, {"model.0.conv": {"out": 16, "in": 3}}, *COST)
LATENCY = LatencyModel(1e-3)
HUGE = 10**5000
DEEP = "[" * 20_000


class Malicious:
    """Makes a file as soon as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('pwned', 'w')",)


def saved(content: Any) -> bytes:
    """Return a checkpoint of anything."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def malicious() -> bytes:
    return saved({"model": Malicious(), "networks": [], "extra": Malicious()})


def foreign() -> bytes:
    return saved({"weights": torch.zeros(2)})


def torn() -> bytes:
    return dense()[:9000]


@cache
def dense() -> bytes:
    return saved({"model": build("yolov8n").half(), "train_args": {"imgsz": 64}})


@cache
def small() -> bytes:
    return tiny_yaml(Path.cwd()).read_bytes()


@cache
def plan_of(family: str) -> PrunePlan:
    return make(build(family))


def twice_cut() -> Any:
    model = build("yolov8n")
    plan_of("yolov8n").apply(model)
    return model


def no_network() -> nn.Module:
    """Something with rows that is none of Ultralytics'."""
    model = nn.Module()
    model.model = nn.Sequential(nn.Linear(2, 2))
    return model


def listening() -> YOLO:
    model = YOLO("yolov8n.yaml")
    PruneCallback(0.5).attach(model)
    return model


SHARE = "0.5 and 50% remove half of the MACs"
FORMS = (
    "give 0.5, 50%, 50% params, 3.2 GMACs, 1.2M params, 2 MB, 1.5 MB litert:8, 256 kB ram:8, 8 ms, 2x, 60% sparsity or "
    "2:4; several, separated by commas, must all hold"
)
LINES = "'option: value' lines such as 'target: 0.5'"
KNOB_YAML = "write 'option: value' lines such as 'target: 0.5'"
FINISH = "an epoch left after the last cut"
PLAN_AGAIN = "make it anew"
ANY_PLAN = "give the path of a plan-<n>.json"
ANY_MODEL = "give a .pt or .yaml of Ultralytics"
LAST = "last.pt alone is enough to resume"
ROOM = "make room, or choose a folder that can be written to"

WRONGS: dict[str, list[Wrong]] = {
    "values": refused(
        ConfigError,
        (knobs(target=1), "target=1 is not a share to remove in 0 <= target < 1", SHARE),
        (knobs(target=-0.1), "target=-0.1 is not a share to remove", SHARE),
        (knobs(target="150%"), "target=150% is not a share to remove", SHARE),
        (
            knobs(target="50% cats"),
            "target=50% cats: 'cats' is nothing that can be cut",
            "percentages are of macs, params, size, latency",
        ),
        (knobs(target="2 cats"), "target=2 cats: 'cats' is no unit", FORMS),
        (knobs(target="half"), "target=half is not a number with a unit", FORMS),
        (knobs(target=""), "target= is not a number with a unit", FORMS),
        (knobs(target=float("nan")), "target=nan is not a number with a unit", FORMS),
        (knobs(target="0 MB"), "target=0 MB is not above 0 and finite", FORMS),
        (knobs(target="-2 MB"), "target=-2 MB is not above 0 and finite", FORMS),
        (knobs(target="1e300 MB"), "target=1e300 MB is not above 0 and", FORMS),
        (knobs(target="0.5x"), "target=0.5x is no speed-up >= 1", "2x is twice as fast"),
        (knobs(target=[]), "target=[] says nothing", FORMS),
        (knobs(target=HUGE), "target=a int too long to print is not a number", FORMS),
        (knobs(start=1.0), "start=1 is not a fraction", "try start=0.1"),
        (
            knobs(start=0.5, end=0.2),
            "end=0.2 is not in start <= end < 1 with start=0.5",
            "bring the accuracy back, so leave some",
        ),
        (knobs(end=1.0), "end=1 is not in start <= end < 1", "so leave some"),
        (knobs(max_pruning_ratio=1.0), "max_pruning_ratio=1 is not in", "try 0.9"),
        (knobs(steps=0), "steps=0 is not a whole number >= 1", "number of cuts"),
        (knobs(steps=HUGE), "steps=a int too long to print is", "of cuts"),
        (knobs(round_to=0), "round_to=0 is not a whole number >= 1", "widths are"),
        (knobs(calibration=3), "calibration=3 is not a whole number >= 4", "images"),
        (knobs(max_drop=1.0), "max_drop=1 is not a share in", "0.01 allows 1 %"),
        (knobs(rewind=0.2), "rewind=0.2 is not in 0 <= rewind <=", "before the first"),
        (knobs(sparsity_strength=0.0), "sparsity_strength=0 is not > 0", "try 1e-4"),
        (knobs(dense="a.pt"), "dense='a.pt' does nothing without max_drop", "give both, or leave out dense"),
        (knobs(distill_loss="cwd"), "distill_loss='cwd' does nothing without distill", "leave out distill_loss"),
        (knobs(sparsity_strength=0.1), "sparsity_strength=0.1 does nothing without sparsity", "sparsity_strength."),
        (knobs(quantize_at=1), "quantize_at=1 is not a fraction", "try 0.7"),
        (knobs(distill=""), "distill='' is neither True", "the path of a checkpoint"),
        (
            knobs(layer_limits={"model.0.*": 1.0}),
            "layer_limits: model.0.* has 1.0, not a share in 0 <= x < 1",
            "e.g. model.22.*:0.5",
        ),
        (knobs(importance="lampe"), "importance='lampe' is not", "Did you mean lamp?"),
        (knobs(allocation="globall"), "allocation='globall' is", "Did you mean global?"),
        (knobs(schedule="cubik"), "schedule='cubik' is not one", "Did you mean cubic?"),
    ),
    "types": refused(
        ConfigError,
        (knobs(target=None), "target=None is a NoneType", FORMS),
        (knobs(target=True), "target=True is a bool", FORMS),
        (knobs(target=[[0.5]]), "target=[0.5] is a list", FORMS),
        (prune(True), "prune=True does not say how much", "use prune=0.5"),
        (prune(None), "prune=None is a NoneType", "use a target, a dict or a YAML file"),
        (prune({0.5}), "prune={0.5} is a set", "use a target, a dict or a YAML file"),
        (
            Act(lambda: PruneConfig.from_dict([("target", 0.5)])),
            "[('target', 0.5)] is a list",
            "not a dict of options such as {'target': 0.5, 'steps': 3}",
        ),
        (knobs(steps=1.5), "steps=1.5 is not a whole number >= 1", "number of cuts"),
        (knobs(steps=True), "steps=True is not a whole number >= 1", "number of cuts"),
        (knobs(bn_recalibration=True), "bn_recalibration was removed in 0.2.0: reconstruction", "leave it out"),
        (typed(bn_recalibration="True"), "bn_recalibration was removed in 0.2.0", "leave it out"),
        (knobs(allocation="search"), "allocation=search was removed in 0.2.0", "use global"),
        (knobs(sparsity="growing"), "sparsity=growing was removed in 0.2.0", "use group_lasso"),
        (knobs(sparsity="60%"), "sparsity='60%' is not one of none, bn_scale, group_lasso", "prune='60% sparsity'"),
        (knobs(lr_after_cut="rewarm"), "lr_after_cut=rewarm was removed in 0.2.0", "use keep"),
        (knobs(reconstruction=16), "reconstruction=16 is not", "True or False"),
        (knobs(per_cost=None), "per_cost=None is not a bool", "use True or False"),
        (knobs(verbose=1), "verbose=1 is not a bool", "use True or False"),
        (knobs(max_drop="1%"), "max_drop='1%' is not a number", "e.g. 0.01"),
        (knobs(ignored_layers=3), "ignored_layers=3 is not a list of", "e.g. model.0.*"),
        (knobs(export=["onnx", ""]), "export=['onnx', ''] is not", "e.g. onnx,openvino:8"),
        (knobs(layer_limits=[0.5]), "layer_limits=[0.5] does not map", "e.g."),
        (
            knobs(layer_limits={"model.0.*": "a"}),
            "layer_limits: model.0.* has 'a', not a share in 0 <= x < 1",
            "e.g. model.22.*:0.5",
        ),
    )
    + refused(
        UnsupportedError,
        (
            Act(lambda: PruneCallback(None, steps=3)),
            "options cannot be changed when a run is resumed",
            "PruneCallback(None) takes none",
        ),
    ),
    "names of knobs": refused(
        ConfigError,
        (knobs(stpes=2), "unknown option stpes", "did you mean steps? Valid: target,"),
        (knobs(zzzzzzzz=2), "unknown option zzzzzzzz", "see the list. Valid: target,"),
        (Act(lambda: PruneConfig.load({3: 2})), "unknown option 3", "Valid: target,"),
        (Act(lambda: PruneCallback(0.5, step=3)), "unknown option step", "mean steps?"),
    ),
    "YAML files": refused(
        ConfigError,
        (prune("none.yaml"), "prune=none.yaml: there is no such file", "or a path"),
        (prune("a\x00.yaml"), "cannot be read (ValueError: embedded null byte)", KNOB_YAML),
        (in_yaml("target: ["), "prune=my.yaml is not valid YAML: while pars", KNOB_YAML),
        (in_yaml("- 0.5\n"), "prune=my.yaml holds a list, not", LINES),
        (in_yaml(""), "prune=my.yaml holds a NoneType, not", LINES),
        (in_yaml(b"\xff\xfe\xfa"), "cannot be read (UnicodeDecodeError: 'utf-8'", KNOB_YAML),
        (Act(lambda: PruneConfig.load("a.yaml"), {"a.yaml/b": b""}), "IsADir", KNOB_YAML),
        (
            in_yaml("target: !!python/object/apply:builtins.open [pwned, w]"),
            "is not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object",
            KNOB_YAML,
        ),
        (in_yaml(DEEP), "prune=my.yaml cannot be read (RecursionError:", KNOB_YAML),
        (in_yaml("steps: !!bool maybe"), "cannot be read (KeyError: 'maybe')", KNOB_YAML),
        (in_yaml("target: 2001-99-99"), "cannot be read (ValueError: month", KNOB_YAML),
        (in_yaml("target: 2001-02-03"), "is a date", FORMS),
        (in_yaml("steps: 2\nsteps: 3"), "my.yaml has steps twice", "leave one of them"),
        (in_yaml("prune_steps: 3"), "unknown option prune_steps", "did you mean"),
        (in_yaml("target: 0.5\nsteps: many"), "steps='many' is not", "number of cuts"),
    ),
    "texts of a command line": refused(
        ConfigError,
        (typed(stpes="3"), "unknown option prune_stpes", "did you mean prune_steps?"),
        (typed(None, steps="3"), "prune_steps without prune", "e.g. prune=0.5"),
        (typed("True"), "prune=True does not say how much to remove", "use prune=0.5"),
        (typed("false"), "prune=False does not say how much", "use prune=0.5"),
        (typed("nan"), "target=nan is not a number with a unit", FORMS),
        (typed(steps="3.5"), "steps=3.5 is not a whole number", "the default is 3"),
        (typed(start="soon"), "start=soon is not a number", "the default is None"),
        (typed(verbose="maybe"), "verbose=maybe is not a bool", "use True or False"),
        (typed(layer_limits="model.0.*"), "model.0.* has '', not a share", "model.22.*:0.5"),
    ),
    "yolo ...": refused(
        2,
        (yolo("train", "prune=0.5", "prune_stpes=3"), "unknown option prune_stpes", "prune_steps?"),
        (yolo("train", "prune=1.5"), "target=1.5 is not a share to remove", SHARE),
        (yolo("train", "prune=none.yaml"), "prune=none.yaml: there is no such file", "a path"),
        (yolo("train", "prune"), "prune=True does not say how much to remove", "use prune=0.5"),
        (yolo("val", "prune=0.5"), "prune works in training only, not in val", "yolo train ... prune=0.5"),
        (yolo("prune=0.5"), "and this command does not say train", "write 'yolo train ... prune=0.5'"),
        (yolo("train", "resume=False", "prune=True"), "prune=True does not say", "use prune=0.5"),
        (train(arguments={"epochs": 1}), "2 cuts do not fit epochs=1", "fewer steps or more epochs"),
    )
    + refused(
        1,
        (train("best.onnx"), "best.onnx is an exported model, which cannot be trained", "pass its .pt file"),
    ),
    "schedules that do not fit the epochs, and targets out of reach": refused(
        2,
        (train(end=0.3, arguments={"epochs": 3}), "do not fit epochs=3", FINISH),
        (train(start=0.9, end=0.99), "would fall before epochs 4, 4", FINISH),
        (train(max_drop=0.01, arguments={"val": False}), "max_drop=0.01 needs", "give val=True"),
        (train(export=("onxx",)), "export='onxx' is no export format", "did you mean onnx?"),
        (train(export=("pb:8",)), "export='pb:8': Ultralytics exports no pb of", "Valid: pb:32"),
        (train(runtime="onnx:fp16"), "runtime=onnx:fp16 is of no precision", "give onnx:32, onnx:16, onnx:8"),
        (train(distill="none.pt"), "distill=none.pt: there is no such file", "the path of a .pt file"),
        (train(ignored_layers=("modl.0.*",)), "'modl.0.*' matches no layer", "names like model.0.bn"),
        (train(layer_limits={"x*": 0.1}), "layer_limits: 'x*' matches no layer", "have names like"),
    )
    + refused(
        1,
        (train(distill="torn.pt"), "torn.pt is no checkpoint that can be read", "give a .pt"),
        (train(target=0.999), "is the least that can be reached", "ask for less"),
        (train(target="1 params"), "1 params asked, but", "ask for less"),
    )
    + refused(
        TargetError,
        (
            Act(lambda: prune_model(build("yolov8n"), 0.99, imgsz=64)),
            "is the least that can be reached from",
            "ask for less, raise max_pruning_ratio, lower round_to or ignore fewer layers. Locked: ",
        ),
    )
    + refused(
        ConfigError,
        (
            Act(lambda: prune_model(build("yolov8n"), 0.5, steps=3)),
            "steps: no option of a cut without training and data",
            "Valid: importance, allocation",
        ),
        (
            Act(lambda: prune_model(build("yolov8n"), 0.3, imgsz=64, importance="taylor")),
            "this criterion looks at data",
            "give data, or use one of l1, l2",
        ),
    ),
    "models that are not YOLO": refused(
        UnsupportedError,
        (Act(lambda: prune_model(None)), "None is no YOLO model", "load a .pt"),
        (Act(lambda: prune_model(nn.Linear(2, 2))), "Linear(in_", "load a .pt or .yaml"),
        (Act(lambda: prune_model(no_network())), "Module has no convolution to cut", "pass YOLO('….pt')"),
        (Act(lambda: prune_model("a.pt")), "'a.pt' is no YOLO model", "load a .pt or .yaml"),
        (
            Act(lambda: prune_model(build("yolov8n"), 0.3, data="tiny.yaml")),
            "data needs a YOLO, not its network (DetectionModel)",
            "pass YOLO('….pt')",
        ),
        (Act(lambda: PruneCallback(0.5).attach("a.pt")), "str takes no callbacks", "pass YOLO('….pt')"),
        (
            Act(lambda: PruneCallback(0.5).attach(YOLO("best.onnx", task="detect")), {"best.onnx": b""}),
            "best.onnx is an exported model, which cannot be trained",
            "pass its .pt file",
        ),
        (
            Act(lambda: PruneCallback(0.3).attach(listening())),
            "this model already has a PruneCallback",
            "load the model anew to attach another",
        ),
        (
            Act(
                lambda: distillation.prepare(
                    SimpleNamespace(args=SimpleNamespace(distill_model=None, task="classify")), True
                )
            ),
            "Ultralytics distils detect, segment, pose, obb, and this run's task is classify",
            "use distill=False",
        ),
    )
    + refused(
        ConfigError,
        (Act(lambda: prune_model(build("yolov8n"), imgsz=0)), "imgsz=0 is no size", "640"),
        (
            Act(lambda: prune_model(YOLO("yolov8n.yaml"), 0.3, data="tiny.yaml", imgsz=64, project=str(Path.cwd()))),
            "tiny.yaml has 3 classes, the model 80",
            "give the data set that it was trained on",
        ),
    ),
    "yolo-prune ...": refused(
        2,
        (command("trai"), "unknown command trai", "Did you mean train?"),
        (
            command("zzz"),
            "unknown command zzz",
            "Valid: train, prune, plan, bench, kit, sensitivity, curve, inspect, report, compare, demo, help, version",
        ),
        (command("help plna"), "unknown command plna", "Did you mean plan?"),
        (command("help plan bench"), "help plan bench: help tells of one command", "e.g. yolo-prune help plan"),
        (command("train epochs=3"), "train without prune", "e.g. prune=0.5, or use 'yolo train'"),
        (command("prune model=a.pt prune=0.3"), "prune without data", "e.g. data=my.yaml"),
        (command("prune data=a.yaml prune=0.3"), "prune without model", "e.g. model=best.pt"),
        (command("plan model= prune=0.3"), "plan without model", "e.g. model=best.pt"),
        (command("prune model=a.pt data=a.yaml"), "without prune", "e.g. prune=0.5"),
        (command("prune a.pt prune=0.3"), "a.pt is no key=value", "yolo-prune prune model=best.pt"),
        (command("plan model=small.yaml"), "no argument without prune", "e.g. prune=0.5"),
        (command("plan model=small.yaml imgz=64 prune=0.5"), "imgz=64 is no argument", "mean imgsz?"),
        (command("plan model=a.pt round_to=8 prune=0.5"), "round_to=8 is no argument", "prune_round_to?"),
        (
            command("prune model=a.pt data=b zzz=1 prune=0.5"),
            "zzz=1 is no argument of prune",
            "'yolo-prune prune --help'",
        ),
        (command("plan model=small.yaml batch=4 prune=0.5"), "batch: says how to read data", "give data"),
        (command("plan model=small.yaml imgsz=big prune=0.5"), "imgsz='big' is no size", "such as 640"),
        (command("prune model=a.pt data=b epochs=x prune=0.5"), "'epochs=x' is of invalid", "an int"),
        (command("sensitivity model=a.pt data=a.yaml prune=0.5"), "prune: sensitivity", "takes no"),
        (
            command("sensitivity model=small.yaml data=tiny.yaml project=HERE calibration=3"),
            "calibration=3 is not a whole number >= 4",
            "training images for criteria",
        ),
        (
            command("prune model=small.yaml data=none.yaml project=HERE prune=0.3"),
            "Ultralytics refuses an argument (RuntimeError: Dataset 'none.yaml' error",
            "give what its train() takes",
        ),
        (
            command("prune model=small.yaml data=tiny.yaml project=HERE/notes.txt prune=0.3", notes_txt=b"mine"),
            "Ultralytics refuses an argument (NotADirectoryError: [Errno 20] Not a directory: ",
            "give what its train() takes",
        ),
        (command("bench"), "bench without models", "yolo-prune bench dense.pt best.pt imgsz=640"),
        (command("bench none.pt"), "there is no none.pt", "give checkpoints, exported files"),
        (
            command("bench small.yaml data=none.yaml"),
            "data=none.yaml cannot be read (FileNot",
            "give what 'yolo val' takes",
        ),
        (
            command("kit model=small.yaml imgsz=64 runtime=onnx:8 data=none.yaml"),
            "data=none.yaml cannot be read",
            "give what 'yolo val' takes",
        ),
        (
            command("plan model=small.yaml prune=0.3 prune_steps=7 prune_distill=True"),
            "prune_steps, prune_distill: no option of plan, which does not train",
            "'yolo-prune plan --help'",
        ),
        (
            command("prune model=small.yaml data=tiny.yaml prune=0.3 prune_rewind=0.05"),
            "prune_rewind: no option of prune",
            "'yolo-prune prune --help'",
        ),
        (command("bench a.pt runtime=onnx"), "runtime is no argument", "Valid: imgsz, data, ru"),
        (command("bench a.pt runtimes=onxx"), "runtimes=onxx is none of", "onnx, openvino, ncnn, litert"),
        (command("bench a.pt rounds=0"), "rounds=0 is no whole number >= 1", "leave it out"),
        (command("bench a.pt threads=many"), "threads=many is no whole number", "leave it out"),
        (command("bench a.pt scales=few"), "scales=few is not a bool", "use True or False"),
        (command("bench small.yaml imgsz=[1,2,3]"), "imgsz=[1, 2, 3] is no size", "such as 640"),
        (command("demo epochs=2 fast"), "key=value arguments such as epochs=20", "not fast"),
    )
    + refused(
        1,
        (command("bench notes.txt", notes_txt=b""), "notes.txt is neither", "give a .pt, .onnx"),
    ),
    "files of models": refused(
        2,
        (command("plan model=none.yaml prune=0.5"), "there is no none.yaml", "give a checkpoint"),
    )
    + refused(
        1,
        (command("plan model=a.pt prune=0.5", a_pt=torn), "a.pt cannot be loaded (OSError:", ANY_MODEL),
        (command("plan model=a.pt prune=0.5", a_pt=b""), "a.pt cannot be loaded (TypeError:", ANY_MODEL),
        (command("plan model=a.pt prune=0.5", a_pt=foreign), "a.pt cannot be loaded (T", ANY_MODEL),
        (command("plan model=a.txt prune=0.5", a_txt=b"yolo"), "'a.txt' is no YOLO", "load a .pt or .yaml"),
        (command("plan model=a.yaml prune=0.5", a_yaml=b"a: ["), "a.yaml cannot be loaded", ANY_MODEL),
        (command("plan model=a.yaml prune=0.5", a_yaml=b"nc: 3"), "a.yaml cannot be loaded", ANY_MODEL),
        (command("plan model=a.onnx prune=0.5", a_onnx=b""), "a.onnx' is no YOLO", "load a .pt"),
        (command("sensitivity model=a.onnx data=tiny.yaml", a_onnx=b""), "is no YOLO", "load a .pt"),
        (command("prune model=a.onnx data=tiny.yaml prune=0.5", a_onnx=b""), "is no YOLO", "load a .pt"),
        (command("bench a.pt", a_pt=torn), "a.pt is no checkpoint that can be read", "give a .pt of"),
    )
    + refused(
        CheckpointError,
        (noted(run=None), "holds no pruning run", "e.g. prune=0.5"),
        (noted(run={"config": 3}), "interrupted run noted in its checkpoint", "the version"),
        (noted(schema=3, run={}), "{'run': {}, 'schema': 3}", "update yolo_prune"),
        (rebuilt(schema=None), "and this version reads those of schema 1 and 2", "update"),
        (rebuilt(widths={"x": {}}), "has a layer x that this version", "use the version"),
        (rebuilt(widths={"model.0.conv": {"out": -8}}), "widths that the", "another checkpoint"),
        (rebuilt(widths=3), "notes cannot be built (TypeError:", "another checkpoint"),
        (rebuilt(blocks=3), "notes cannot be built (AttributeError:", "another checkpoint"),
        (rebuilt(blocks={"model.2.m": 3}), "notes cannot be built (TypeError:", "another checkpoint"),
    ),
    "files of a run": refused(
        CheckpointError,
        (Act(lambda: load_state(Path("s.pt"))), "s.pt cannot be read (FileNotFoundError", LAST),
        (state_file(torn), "state-1-0.pt cannot be read (", LAST),
        (state_file(b""), "state-1-0.pt cannot be read (EOFError", LAST),
        (state_file(foreign), "state-1-0.pt cannot be read (ValueError: it holds something else)", LAST),
        (state_file(malicious), "cannot be read (UnpicklingError: Weights", LAST),
        (state_file(pickle.dumps(Malicious())), "cannot be read (UnpicklingError", LAST),
        (Act(lambda: recall(nn.Linear(2, 2), Path("r.pt"))), "r.pt, the", "without rewind"),
        (rewind_file(torn), "rewind-0.pt, the state to rewind", "without rewind"),
        (rewind_file(foreign), "loading state_dict for Linear", "without rew"),
        (rewind_file(partial(saved, [1])), "cannot be used (TypeError", "without rew"),
        (rewind_file(malicious), "cannot be used (Unpickling", "without rewind"),
        (before_cut(torn), "before-cut.pt, the state before", "start the run anew"),
        (before_cut(foreign), "(KeyError: '_copies')", "start the run anew"),
    )
    + refused(
        PlanError,
        (Act(lambda: LatencyModel.load(Path("l.json"))), "latencies l.json cannot be", "run anew"),
        (latency_file(""), "latency.json cannot be read (JSONDecodeError", "start the run"),
        (latency_file("[]"), "latency.json cannot be read (TypeError", "the run anew"),
        (latency_file(DEEP), "latency.json cannot be read (RecursionError", "the run anew"),
        (latency_file(malicious), "latency.json cannot be read (Unicode", "the run anew"),
        (latency_with(weights=[float("nan")] * 6), "nan is no time", "start the run anew"),
        (latency_with(weights=[0.0]), "1 weights, not 9", "start the run anew"),
        (latency_with(dense=-1.0), "-1.0 is no time", "start the run anew"),
        (latency_with(multiple=0), "no widths are multiples of 0", "start the run anew"),
    ),
    "plans": refused(
        PlanError,
        (Act(lambda: PrunePlan.load("p.json")), "p.json cannot be read as a plan", ANY_PLAN),
        (plan_file(""), "plan-1.json cannot be read as a plan (JSONDecodeError", ANY_PLAN),
        (plan_file(b"\xff"), "cannot be read as a plan (UnicodeDecodeError", ANY_PLAN),
        (plan_file(DEEP), "cannot be read as a plan (RecursionError", ANY_PLAN),
        (plan_file("1" * 5000), "cannot be read as a plan (ValueError: Exceeds", ANY_PLAN),
        (plan_file(malicious), "plan-1.json cannot be read as a plan", ANY_PLAN),
        (plan_file("[]"), "a plan is a mapping with 'layers', this is []", "use a plan-<n>"),
        (plan_file("{}"), "with 'layers', this is {}", "use a plan-<n>.json"),
        (plan_with(schema=2), "plan schema 2 is unknown, this version reads 1", "update"),
        (plan_with(layers=None), "the plan is damaged (AttributeError", PLAN_AGAIN),
        (plan_with(widths={}), "'layers' and 'widths' name different", PLAN_AGAIN),
        (plan_with(widths={"a": {"out": 3}}), "different layers or sides", PLAN_AGAIN),
        (plan_with(widths={"a": {"out": 3.5, "in": 1}}), "3.5 is no whole", PLAN_AGAIN),
        (plan_with(macs=[1]), "the plan is damaged (TypeError", PLAN_AGAIN),
        (plan_with(imgsz=[64]), "the plan is damaged (IndexError", PLAN_AGAIN),
        (plan_with(layers={"a": {"out": [1, 0]}}), "a out is no rising list of chan", PLAN_AGAIN),
        (plan_with(layers={"a": {"out": [0, 0]}}), "no rising list of channels: [0, 0]", "anew"),
        (plan_with(layers={"a": {"out": [-1]}}), "no rising list of channels: [-1]", "anew"),
        (plan_with(layers={"a": {"out": []}}), "no rising list of channels: []", "anew"),
        (plan_with(layers={"a": {"out": [True]}}), "list of channels: [True]", "anew"),
        (plan_with(layers={"a": {"up": [1]}}), "a has a side 'up', not 'out' or 'in'", "anew"),
        (plan_with(layers={"a": {"out": [0, 1], "in": [0]}}), "its sha256 is", PLAN_AGAIN),
        (plan_with(sha256=None), "it says None", PLAN_AGAIN),
        (
            applied(lambda: plan_of("yolov8n"), lambda: build("yolo11n")),
            "the plan is for another network: model.",
            "to the network that they were made for",
        ),
        (
            applied(lambda: plan_of("yolov8n"), twice_cut),
            "the plan is for another network: model.0.conv has widths",
            "apply plans in order",
        ),
        (applied(lambda: BEYOND, lambda: build("yolov8n")), "model.0.conv out keeps channel 99 of 16", PLAN_AGAIN),
    )
    + refused(
        UnsupportedError,
        (
            applied(lambda: plan_of("yolov8n"), lambda: YOLO("best.onnx", task="detect")),
            "is no YOLO model with weights that can be cut",
            "load a .pt or .yaml file",
        ),
    ),
    "disks": refused(
        WriteError,
        (written(PLAN.save), "plan-1.json cannot be written (OSError: [Err", ROOM),
        (written(LATENCY.save), "No space left on device", ROOM),
        (written(Bench((64, 64), 1).save), "No space left on device", ROOM),
        (
            written(lambda path: Report([64, 64], Stage(), {}).save(path.parent), "report.json"),
            "report.json cannot be written (OSError: [Errno 28]",
            ROOM,
        ),
        (
            written(lambda path: remember(nn.Linear(99, 99), path), "rewind-0.pt"),
            "rewind-0.pt cannot be written (",
            ROOM,
        ),
        (beneath_a_file(PLAN.save), "notes.txt/run/file cannot be written (NotADir", ROOM),
        (beneath_a_file(LATENCY.save), "file cannot be written (NotADirectory", ROOM),
        (beneath_a_file(partial(remember, nn.Linear(2, 2))), "cannot be writ", ROOM),
    ),
    "packages that are missing": refused(
        1,
        (
            command("plan model=small.yaml prune=8ms", missing=("onnxruntime",)),
            "runtime=onnx needs onnxruntime",
            "pip install onnxruntime.",
        ),
        (
            command("plan model=small.yaml prune=8ms", missing=("onnx",)),
            "runtime=onnx needs onnx (",
            "pip install onnx, or use runtime=pytorch",
        ),
        (
            command("bench small.yaml runtimes=openvino", missing=("openvino",)),
            "runtime=openvino needs openvino",
            "pip install openvino.",
        ),
        (
            Act(train(arguments={"quantize": 8, "epochs": 10}).do, {"small.yaml": small}, ("modelopt",)),
            "quantize=8 needs nvidia-modelopt",
            "install yolo_prune with its extra qat",
        ),
    )
    + refused(
        2,
        (
            command("demo", missing=("onnx",)),
            "the demo exports ONNX, but onnx is not installed",
            "pip install onnx onnxslim onnxruntime, or leave the export out with prune_export=",
        ),
    ),
}


# How it is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keep what start-up changes of a process to the test."""
    monkeypatch.setattr(sys, "argv", ["yolo-prune"])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    with mock.patch.dict(os.environ):
        os.environ.pop(startup.CHILD_ARGUMENTS, None)
        yield


def lay_out(files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        made = content() if callable(content) else content
        path.write_bytes(made.encode() if isinstance(made, str) else made)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(act: Act, capsys: pytest.CaptureFixture[str]) -> tuple[type[PruneError] | int, str]:
    """Return the class of the error, or the exit code, and what is said."""
    try:
        code = act.do()
    except PruneError as e:
        return type(e), str(e)
    except SystemExit as e:
        code = e.code
    assert isinstance(code, int), f"not refused: {code!r}"
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("yolo-prune: ")
    return code, line.removeprefix("yolo-prune: ")


def rows() -> list[Any]:
    return [pytest.param(wrong, id=f"{group}: {wrong.says:.40}") for group, of in WRONGS.items() for wrong in of]


@pytest.mark.parametrize("wrong", rows())
def test_what_is_wrong_is_refused_with_the_value_and_the_way_out(
    wrong: Wrong,
    own_folder: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(tiny_data, "tiny.yaml")
    lay_out(wrong.act.files)
    for package in wrong.act.missing:
        monkeypatch.setitem(sys.modules, package, None)
    before = contents(own_folder)

    by, message = refusal(wrong.act, capsys)

    assert by == wrong.refused
    assert wrong.says in message
    assert wrong.way_out in message
    after = contents(own_folder)
    assert {path: after.get(path) for path in before} == before
    assert not [path.name for path in after if path.suffix == ".part" or path.name == "pwned"]


def test_the_table_has_every_class_of_error_that_bad_input_can_be() -> None:
    listed = [wrong for of in WRONGS.values() for wrong in of]
    assert len(listed) >= 60
    assert {ConfigError, UnsupportedError, TargetError, PlanError, CheckpointError, WriteError, 1, 2} == {
        wrong.refused for wrong in listed
    }


@pytest.mark.parametrize(
    "read",
    [
        lambda: checkpoint.load_network("a.pt"),
        lambda: checkpoint.unmark_file(Path("a.pt")),
        lambda: Snapshot.load(Path("a.pt"), SimpleNamespace()),
        lambda: open_model("a.pt"),
        lambda: bench(["a.pt"]),
        lambda: distillation.prepare(
            SimpleNamespace(args=SimpleNamespace(distill_model=None, task="detect", compile=False)), "a.pt"
        ),
    ],
    ids=["a network", "a dense model", "the state before a cut", "a model", "a benchmark", "a teacher"],
)
def test_with_the_safe_load_of_ultralytics_nothing_that_a_checkpoint_brings_is_run(
    read: Callable[[], object], own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out({"a.pt": malicious})
    monkeypatch.setattr(tasks, "SAFE_LOAD", True)  # ULTRALYTICS_SAFE_LOAD=1
    with pytest.raises((CheckpointError, TypeError), match="references types outside the supported"):
        read()
    assert [path.name for path in own_folder.iterdir()] == ["a.pt"]


def test_a_malicious_file_would_do_what_the_tests_look_for(own_folder: Path) -> None:
    pickle.loads(pickle.dumps(Malicious()))
    assert (own_folder / "pwned").exists()
