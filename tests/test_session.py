"""The live run: real trainings of small networks on eight images, several looked at by many tests."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import ultralytics
from nets import assert_same, assert_same_tensors, narrow_yaml, per_value, snapshot, state, tiny_yaml
from trainings import DEFAULTS, Interrupted, Run, knowing, report_of, soon, train
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER
from ultralytics.utils.plotting import plot_results
from ultralytics.utils.torch_utils import unwrap_model

import yolo_prune
from yolo_prune import PruneCallback
from yolo_prune.cost import budget
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy import bench
from yolo_prune.deploy.network_files import export_form
from yolo_prune.device.stopwatch import Timing
from yolo_prune.errors import CheckpointError, CutError, ExportError, TargetError
from yolo_prune.graph.layers import named_layers
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint, qat
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.latency_fit import PlannedCut
from yolo_prune.report import page
from yolo_prune.training import latency_feedback, setup, steps
from yolo_prune.training.guard import Guard


@pytest.fixture
def yolo(own_folder: Path) -> YOLO:
    return YOLO(tiny_yaml(own_folder))


# One run, with all defaults ------------------------------------------------------------------------------------------


def seen_at(trainer: Any) -> dict[str, Any]:
    """Return what a trainer is at the start of an epoch, after a cut."""
    shapes = {k: v.shape for k, v in unwrap_model(trainer.model).state_dict().items()}
    last = torch.load(trainer.last, weights_only=False) if trainer.last.exists() else {"epoch": None, "ema": None}
    return {
        "best": trainer.best_fitness,
        "stopper": trainer.stopper.best_fitness,
        "best.pt": trainer.best.exists(),
        "last fits": last["ema"] is not None and shapes == {k: v.shape for k, v in last["ema"].state_dict().items()},
        "last epoch": last["epoch"],
    }


@cache
def finished(family: str, folder: Path, data: Path) -> Any:
    """Return a run with a narrow network of a family, with the model, the callback and what was seen in each epoch."""
    found = SimpleNamespace(prune=soon(**DEFAULTS, export=("onnx",)), epochs={}, metrics=[])
    (folder / family).mkdir(exist_ok=True)
    found.yolo = YOLO(narrow_yaml(family, folder))
    found.prune.attach(found.yolo)
    found.yolo.add_callback("on_train_epoch_start", lambda t: found.epochs.update({t.epoch: seen_at(t)}))
    found.yolo.add_callback("on_fit_epoch_end", lambda t: found.metrics.append(dict(t.metrics)))
    found.trainer = train(folder / family, data, found.yolo)
    found.report = report_of(found.trainer)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs that several tests look at."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def done(folder: Path, tiny_data: Path) -> Any:
    """The run of YOLOv8n."""
    return finished("yolov8n", folder, tiny_data)


@pytest.mark.parametrize(
    "family",
    [  # older releases export an end-to-end head that asks for 300 boxes, of which 64 pixels have 84
        pytest.param("yolov8n", marks=pytest.mark.drift),
        pytest.param("yolo26n", marks=pytest.mark.slow),
    ],
)
def test_one_run_trains_cuts_recovers_and_hands_over_a_slim_model(family: str, folder: Path, tiny_data: Path) -> None:
    done = finished(family, folder, tiny_data)
    trainer, report = done.trainer, done.report
    dense, final = report["dense"], report["final"]
    assert 0.48 <= final["macs"] / dense["macs"] <= 0.5
    assert final["params"] < 0.6 * dense["params"] and final["bytes"] < dense["bytes"]
    assert [cut["epoch"] for cut in report["cuts"]] == [1, 2]
    assert final["macs"] == report["cuts"][-1]["macs"]
    assert report["exports"][0]["ok"] and report["exports"][0]["max_abs_diff"] < 1e-3
    assert Path(report["exports"][0]["path"]).parent == trainer.wdir

    slim, _ = load_checkpoint(trainer.best)
    assert sum(p.numel() for p in slim.parameters()) == final["params"] == report["cuts"][-1]["params"]
    assert {k: v.shape for k, v in slim.state_dict().items()} == {
        k: v.shape for k, v in load_checkpoint(trainer.last)[0].state_dict().items()
    }
    dense_model, _ = load_checkpoint(trainer.wdir / "dense.pt")
    assert sum(p.numel() for p in dense_model.parameters()) == dense["params"]
    for i, cut in enumerate(report["cuts"], 1):
        plan = PrunePlan.load(trainer.save_dir / "pruning" / f"plan-{i}.json")
        assert plan.sha256 == cut["plan_sha256"]
        plan.apply(dense_model)  # the plans in order lead from the dense network to the pruned one
    assert sum(p.numel() for p in dense_model.parameters()) == final["params"]


@pytest.mark.drift
def test_the_report_keeps_its_contract(done: Any) -> None:
    trainer, report = done.trainer, done.report
    assert report["schema"] == 1 and report["imgsz"] == [64, 64]
    for key in ("dense", "final"):
        assert {"macs", "params", "bytes", "fitness"} <= report[key].keys()
        assert report[key]["bytes"] == Path(report[key]["checkpoint"]).stat().st_size
    for cut in report["cuts"]:
        keys = {"epoch", "macs", "params", "fitness_cut", "fitness_recovered", "plan_sha256", "locked"}
        assert keys <= cut.keys() and cut["fitness_recovered"] is not None
        assert all({"layer", "why"} == entry.keys() for entry in cut["locked"])
    macs = [report["dense"]["macs"], report["cuts"][0]["macs"], report["cuts"][1]["macs"]]
    assert [(e["epoch"], e["macs"]) for e in report["epochs"]] == list(enumerate([*macs, macs[-1]]))
    best = max(e["fitness"] for e in report["epochs"][2:])
    assert best == report["cuts"][1]["fitness_recovered"]
    dense, slim = (dict(named_layers(load_checkpoint(trainer.wdir / f)[0])) for f in ("dense.pt", "best.pt"))
    assert {path: (n["before"], n["after"]) for path, n in report["layers"].items()} == {
        path: (layer.weight.shape[0], slim[path].weight.shape[0])
        for path, layer in dense.items()
        if isinstance(layer, torch.nn.Conv2d)
    }
    assert len(set(report["samples"])) == 4 and all(Path(file).is_file() for file in report["samples"])
    page = (trainer.save_dir / "pruning" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert report["config"] == {**done.prune.config.to_dict(), "distill": False}  # it had to learn the classes
    assert {"yolo-prune", "ultralytics", "torch", "torch-pruning", "python"} <= report["versions"].keys()


def test_the_yolo_object_holds_the_pruned_model_afterwards(done: Any) -> None:
    assert sum(p.numel() for p in done.yolo.model.parameters()) == done.report["final"]["params"]


def test_after_a_cut_the_stage_starts_anew_and_last_has_the_live_shapes(done: Any) -> None:
    seen = done.epochs
    for epoch in (1, 2):
        assert seen[epoch]["best"] is None and seen[epoch]["stopper"] == 0.0 and not seen[epoch]["best.pt"]
    assert all(seen[e]["last fits"] and seen[e]["last epoch"] == e - 1 for e in (1, 2, 3))
    assert seen[3]["best.pt"]


def test_loggers_and_results_get_the_figures_of_the_pruning(done: Any) -> None:
    cuts, results = done.report["cuts"], done.trainer.csv
    macs = [row["prune/GMACs"] for row in done.metrics[:4]]
    assert macs[1:3] == [cut["macs"] / 1e9 for cut in cuts] and macs[0] > macs[1] > macs[2] == macs[3]
    header, *rows = results.read_text().splitlines()
    assert header.split(",")[-5:-3] == ["prune/GMACs", "prune/params(M)"] and len(rows) == 4
    plot_results(results)
    assert results.with_name("results.png").exists()


# One run of the tiny network, and what comes after it -----------------------------------------------------------------


@cache
def quick(folder: Path, data: Path) -> Any:
    """Return the trainer of a run."""
    (folder / "quick").mkdir(exist_ok=True)
    return train(folder / "quick", data, prune=soon())


@pytest.mark.slow
def test_what_fails_after_the_last_epoch_costs_nothing_else(
    run: Run,
    folder: Path,
    tiny_data: Path,
    own_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The page, the timing and an export; and the same seed gives the same plans."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(page, "render", fail)
    monkeypatch.setattr(bench, "check_runtime", lambda runtime: 1 / 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LOGGER, "propagate", True)
    with pytest.raises(ExportError, match="engine: TensorRT needs an NVIDIA GPU and this machine has none"):
        run(prune=soon(benchmark=True, export=("engine", "torchscript")))
    at = own_folder / "runs" / "train"
    report = json.loads((at / "pruning" / "report.json").read_text())
    assert report["final"]["fitness"] is not None and (at / "weights" / "best.pt").exists()
    assert not (at / "pruning" / "report.html").exists()
    assert "no report.html (RuntimeError: no ink)" in caplog.text
    assert report["timed"] is None and report["final"]["latency"] is None and not report["scales"]
    assert [e["ok"] for e in report["exports"]] == [False, True]
    assert (at / "weights" / "best.torchscript").exists()

    plans = [[cut["plan_sha256"] for cut in of["cuts"]] for of in (report, report_of(quick(folder, tiny_data)))]
    assert plans[0] == plans[1] and plans[0][0] != plans[0][1]


@pytest.mark.slow
def test_a_pruned_checkpoint_is_trained_on_as_it_is_and_can_be_cut_further(
    run: Run, folder: Path, tiny_data: Path
) -> None:
    first = quick(folder, tiny_data)
    slim = {k: v.shape for k, v in load_checkpoint(first.best)[0].state_dict().items()}
    again = run(first.best, PruneCallback(0), epochs=2)
    assert {k: v.shape for k, v in load_checkpoint(again.best)[0].state_dict().items()} == slim
    assert checkpoint.is_pruned(load_checkpoint(again.best)[0].yaml)
    further = run(again.best, soon(0.3, round_to=1))
    report = report_of(further)
    assert report["dense"]["macs"] == report_of(first)["final"]["macs"]
    assert 0.68 <= report["final"]["macs"] / report["dense"]["macs"] <= 0.7
    with pytest.raises(KeyError, match="pruned by yolo_prune"):
        run(further.best, epochs=1)


@pytest.mark.slow
def test_a_pruned_checkpoint_can_learn_from_its_dense_model(run: Run, folder: Path, tiny_data: Path) -> None:
    first = quick(folder, tiny_data)
    again = run(first.best, PruneCallback(0), epochs=2, distill_model=str(first.wdir / "dense.pt"))
    assert report_of(again)["final"]["macs"] == report_of(first)["final"]["macs"]


@pytest.mark.slow
def test_what_an_earlier_run_left_in_the_folder_is_not_taken_for_this_one(
    run: Run, folder: Path, tiny_data: Path
) -> None:
    first = quick(folder, tiny_data)
    same = {"project": first.save_dir.parent, "name": first.save_dir.name, "exist_ok": True}
    dense = report_of(first)["dense"]
    again = run(prune=PruneCallback(0.3, schedule="one-shot", start=0, benchmark=False), epochs=2, **same)
    quick.cache_clear()
    assert again.save_dir == first.save_dir
    assert sorted(p.name for p in (again.save_dir / "pruning").iterdir()) == [
        "plan-1.json",
        "report.html",
        "report.json",
    ]
    reference, _ = load_checkpoint(again.wdir / "dense.pt")
    assert sum(p.numel() for p in reference.parameters()) == dense["params"]
    report = report_of(again)
    assert report["cuts"][0]["epoch"] == 0 and report["dense"]["fitness"] is not None  # a cut before the first epoch
    assert (report["dense"]["finished"], report["dense"]["epochs"]) == (False, 0)
    assert report["final"]["macs"] <= 0.7 * report["dense"]["macs"]


# The schedule and the target ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cuts_come_later_where_the_model_has_to_learn_its_classes_first(run: Run) -> None:
    def prune(**knobs: Any) -> PruneCallback:
        return soon(0.3, **{"schedule": "one-shot", "start": None, "end": None, **knobs})

    learning = run(prune=prune(), epochs=4)
    knowing = run(YOLO(learning.wdir / "dense.pt"), prune(), epochs=4)
    assert [report_of(trainer)["cuts"][0]["epoch"] for trainer in (learning, knowing)] == [1, 0]
    dense = [report_of(trainer)["dense"] for trainer in (learning, knowing)]
    assert [(d["finished"], d["epochs"]) for d in dense] == [(False, 1), (True, 0)]
    assert [d["fitness_at_start"] for d in dense] == [None, None]  # measured before the cut, which comes first
    too_short = run(prune=soon(0.3, steps=3, start=None, end=None), epochs=9)  # 3, 4 and 4
    assert [cut["epoch"] for cut in report_of(too_short)["cuts"]] == [1, 2, 4]


@pytest.mark.slow
def test_what_a_run_begins_with_is_measured_before_it_is_trained_on(run: Run, tiny_data: Path) -> None:
    """At the run's own image size, which the checkpoint cannot tell, and without a change of what is trained."""
    learned = run(epochs=2).best
    size = {"imgsz": 96, "batch": 4}
    begun = report_of(run(YOLO(learned), soon(0.3), **size))["dense"]
    found = YOLO(learned).val(data=str(tiny_data), rect=False, plots=False, workers=0, **size).fitness
    assert begun["finished"] and begun["fitness_at_start"] == pytest.approx(found, abs=1e-6)
    plain, measured = (
        next(csv.DictReader((run(YOLO(learned), prune, **size).csv).open())) for prune in (None, soon(0.3))
    )
    del plain["time"]
    assert plain == {name: measured[name] for name in plain}  # of the epoch before the first cut


@pytest.mark.slow
def test_a_run_lands_on_targets_in_the_users_units(run: Run) -> None:
    trainer = run(prune=soon("40% params, 0.47 MB"))
    report = report_of(trainer)
    dense, final = report["dense"], report["final"]
    assert report["config"]["target"] == "40% params, 0.47 MB"
    assert final["params"] <= 0.6 * dense["params"] and final["bytes"] <= 0.47e6
    assert final["params"] > 0.58 * dense["params"] or final["bytes"] > 0.42e6
    first, second = (cut["params"] for cut in report["cuts"])
    assert dense["params"] > first > second == final["params"]


@pytest.mark.slow
def test_a_run_lands_on_the_bytes_of_an_export(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    trainer = run(prune=soon("30% onnx:32"))
    sizes = []
    for path in (trainer.wdir / "dense.pt", trainer.best):
        folder = tmp_path / path.stem
        folder.mkdir()
        sizes.append(export_form(load_checkpoint(path)[0], "onnx", (64, 64), folder).stat().st_size)
    assert 0.6 * sizes[0] < sizes[1] <= 0.7 * sizes[0]
    assert f"exported, {trainer.best} has " in caplog.text and "MB onnx:32; 30% onnx:32 was asked for" in caplog.text


@pytest.mark.slow
def test_a_run_lands_on_a_latency_that_was_measured_before_it_and_measures_again(
    run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def measure(network: Any, graph: Any, runtime: str | None, kit: str | None = None) -> LatencyModel:
        """Stand in for a stopwatch."""
        asked.append(runtime)
        return replace(per_value(graph, fixed=1e-4, multiple=1), where={"runtime": "pytorch"})

    monkeypatch.setattr(setup, "latency_of", measure)

    exported: list[Any] = []

    def export(networks: list[Any], *_: Any) -> list[Any]:
        exported.extend(networks)
        return networks

    def as_predicted(networks: Any) -> list[float]:
        """Stand in for a stopwatch that agrees with the table, on a machine that is busy for now."""
        graph = trace(networks[0], 64)
        table = measure(networks[0], graph, "")
        return [1.25 * CostModel(trace(n, 64), table).seconds() for n in networks]

    def watch(seconds: Callable[[Any], list[float]]) -> None:
        timer = SimpleNamespace(seconds=lambda networks, *_: (np.array(seconds(networks)), None))
        monkeypatch.setattr(latency_feedback, "timer_of", lambda *_: timer)

    monkeypatch.setattr(latency_feedback, "exported_files", export)
    watch(as_predicted)
    monkeypatch.setattr(LOGGER, "propagate", True)
    timing = Timing.of(np.array([[0.03] * 8, [0.02] * 8]), share=0.99)
    monkeypatch.setattr(bench, "compare_networks", lambda networks, runtime, imgsz: timing)
    trainer = run(prune=soon("1.4x", runtime="pytorch"))
    assert "the dense network takes 1.25 times as long as before" in caplog.text
    report = report_of(trainer)
    assert [runtime for runtime in asked if runtime] == ["pytorch"]
    table = LatencyModel.load(trainer.save_dir / "pruning" / "latency.json")
    predicted = [
        CostModel(trace(load_checkpoint(path)[0], 64), table).seconds()
        for path in (trainer.wdir / "dense.pt", trainer.best)
    ]
    assert report["cuts"][-1]["latency"] == pytest.approx(0.03 * predicted[1] / predicted[0])
    assert 1.4 <= predicted[0] / predicted[1] <= 1.45
    assert (report["dense"]["latency"], report["final"]["latency"]) == (0.03, 0.02)
    assert report["final"]["speedup"] == {"low": 1.5, "value": 1.5, "high": 1.5, "share": 0.99, "settled": True}

    def slower(networks: Any) -> list[float]:
        """Stand in for a stopwatch by which what is pruned takes a tenth longer than the table says."""
        dense, pruned = as_predicted(networks)
        return [dense, 1.1 * pruned]

    watch(slower)
    trainer = run(prune=soon("1.4x"), name="corrected")
    dense, pruned = slower([load_checkpoint(path)[0] for path in (trainer.wdir / "dense.pt", trainer.best)])
    assert 1.37 <= dense / pruned <= 1.47
    assert report_of(trainer)["cuts"][-1]["latency"] == pytest.approx(0.03 * pruned / dense)

    errors = 2 * [1.1, 0.95, 1.04]

    def swinging(networks: Any) -> list[float]:
        """Stand in for a stopwatch by which a plan is too slow, the next too fast, one between them right; twice."""
        dense, pruned = as_predicted(networks)
        return [dense, errors.pop(0) * pruned]

    exported.clear()
    watch(swinging)
    trainer = run(prune=soon("1.4x", allocation="global"), name="swinging")
    dense, pruned = as_predicted([load_checkpoint(p)[0] for p in (trainer.wdir / "dense.pt", trainer.best)])
    assert len(exported) == 1 + 6  # the dense network once, and what each measurement is of
    assert not errors and 1.4 * 1.1**0.5 <= dense / pruned <= 1.4 * 1.1**0.5 * 1.03

    watch(as_predicted)
    monkeypatch.setattr(bench, "compare_networks", lambda networks, runtime, imgsz: 1 / 0)
    with pytest.raises(ExportError, match="the result could not be timed: ZeroDivisionError"):
        run(prune=soon("1.4x"), name="untimed")
    assert (own_folder / "runs" / "untimed" / "pruning" / "report.json").exists()


@pytest.mark.slow
def test_a_run_ends_with_a_measured_speed_up_beside_the_official_scales(
    run: Run, yolo: YOLO, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = yolo.model
    monkeypatch.setattr(bench, "siblings", lambda network: [("yolov8n", scale)])
    trainer = run(prune=soon(benchmark=True))
    report = report_of(trainer)
    assert report["scales"]["yolov8n"]["params"] == sum(p.numel() for p in scale.parameters())
    times = [stage["latency"] for stage in (report["dense"], report["final"], *report["scales"].values())]
    assert all(seconds > 0 for seconds in times) and report["timed"]["runtime"] == "onnx"


@pytest.mark.slow
def test_a_file_that_is_larger_than_asked_is_an_error_after_saving(
    run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "NOTES", -200_000)  # as if a checkpoint shrank by what is noted in it
    with pytest.raises(TargetError, match=r"best.pt has \d\.\d+ MB, 0\.4 MB were asked for: ask for a little less"):
        run(prune=soon("0.4 MB"))
    assert (own_folder / "runs" / "train" / "weights" / "best.pt").exists()


# Bit for bit the same -------------------------------------------------------------------------------------------------


def final_weights(trainer: Any) -> list[dict[str, torch.Tensor]]:
    return [state(unwrap_model(trainer.model)), state(trainer.ema.ema)]


@cache
def plain(optimizer: str, folder: Path, data: Path) -> tuple[list[dict[str, torch.Tensor]], list[list[float]]]:
    """Return the last weights of a run without pruning, and its learning rates."""
    return watched(folder / f"plain-{optimizer}", data, None, optimizer)


def watched(
    folder: Path, data: Path, prune: PruneCallback | None, optimizer: str
) -> tuple[list[dict[str, torch.Tensor]], list[list[float]]]:
    """Return the last weights of a run, and the learning rates of each batch."""
    folder.mkdir(exist_ok=True)
    model, rates = YOLO(tiny_yaml(folder)), []
    model.add_callback("on_train_batch_end", lambda t: rates.append([g["lr"] for g in t.optimizer.param_groups]))
    return final_weights(train(folder, data, model, prune, optimizer=optimizer)), rates


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, "5000 GMACs"])
def test_with_nothing_to_cut_the_run_is_the_same_bit_for_bit(
    folder: Path, own_folder: Path, tiny_data: Path, target: Any
) -> None:
    weights, _ = watched(own_folder, tiny_data, soon(target), "SGD")
    (report,) = (json.loads(file.read_text()) for file in own_folder.rglob("report.json"))
    assert not report["cuts"] and report["final"] == report["dense"]
    for a, b in zip(plain("SGD", folder, tiny_data)[0], weights, strict=True):
        assert_same_tensors(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_cuts_that_keep_every_channel_leave_the_run_the_same_bit_for_bit(
    folder: Path, own_folder: Path, tiny_data: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_everything(model: Any, graph: Any, *_: Any) -> PlannedCut:
        widths = {p: layer.sides for p, layer in graph.layers.items()}
        kept = {p: {s: list(range(n)) for s, n in w.items()} for p, w in widths.items()}
        same = {"before": 1, "after": 1}
        return PlannedCut(PrunePlan(kept, widths, same, same, graph.imgsz))

    monkeypatch.setattr(steps, "plan_traced", keep_everything)
    expected, rates = plain(optimizer, folder, tiny_data)
    weights, same_rates = watched(own_folder, tiny_data, soon(), optimizer)
    (report,) = own_folder.rglob("report.json")
    assert len(json.loads(report.read_text())["cuts"]) == 2
    for a, b in zip(expected, weights, strict=True):
        assert_same_tensors(a, b)
    assert same_rates == rates, "the learning-rate curve does not notice the cuts"


# All or nothing -------------------------------------------------------------------------------------------------------


class Paused(Exception):
    """Ends a run of which all has been seen."""


@contextmanager
def failing_at(n: int, error: type[BaseException], stages: list[Any]) -> Iterator[None]:
    """Let the n-th stage fail: of the functions of ours and of the host that the steps of a run call."""
    training = str(Path(steps.__file__).parent)
    stage = str(Path(yolo_prune.__file__).parent), str(Path(ultralytics.__file__).parent)

    def look(frame: Any, event: str, _: Any) -> None:
        code, caller = frame.f_code, frame.f_back.f_code if frame.f_back else None
        if event != "call" or code in stages or caller is None or not caller.co_filename.startswith(training):
            return
        if code.co_name in ("set", "extend", "forget_states"):  # the list of what is to be undone; after last.pt
            return
        if code.co_name == "__del__":  # of what is collected just then; nobody hears what that raises
            return
        if code.co_filename.startswith(stage) and not code.co_filename.startswith(training):
            stages.append(code)
            if len(stages) == n + 1:
                raise error("no space left on device")

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "first"), [("AdamW", 0), ("MuSGD", 1)])
def test_a_cut_that_fails_at_any_stage_leaves_the_trainer_as_it_was(
    run: Run, yolo: YOLO, optimizer: str, first: int
) -> None:
    prune = soon(
        ignored_layers=("model.0.*", "model.4.*"), reconstruction=True
    )  # what is not cut is reconstructed all the same
    message = r"cut 1 of 2 at epoch 1 failed and was taken back; .*last\.pt can be resumed\. .*: no space left"
    failed: list[str] = []

    def fail_everywhere(trainer: Any) -> None:
        if trainer.epoch != 1:
            return
        before, dense = snapshot(trainer), sum(p.numel() for p in trainer.model.parameters())
        for n in (*range(6), *range(first, 99, 2)):  # the dense model is noted once, before the first cut
            kind = KeyboardInterrupt if n == 10 + first else RuntimeError
            stages: list[Any] = []
            error: BaseException | None = None
            try:
                with failing_at(n, kind, stages):
                    prune.on_train_epoch_start(trainer)
            except (CutError, kind) as e:
                error = e
            if isinstance(error, CutError):
                assert re.match(message, str(error))
                failed.append(stages[-1].co_name)
            elif sum(p.numel() for p in trainer.model.parameters()) < dense:
                raise Paused  # all was done
            assert_same(before, snapshot(trainer))

    yolo.add_callback("on_train_epoch_start", fail_everywhere)  # before ours
    with pytest.raises(Paused):
        run(yolo, prune, optimizer=optimizer)
    assert len(failed) > 12, failed


# What is frozen, and when a run ends ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_frozen_layers_stay_frozen_and_keep_their_statistics(run: Run, yolo: YOLO) -> None:
    start: dict[str, torch.Tensor] = {}
    yolo.add_callback("on_train_start", lambda t: start.update(state(t.model)))
    trainer = run(yolo, soon(ignored_layers=("model.0.*",)), freeze=1)
    model = unwrap_model(trainer.model)
    assert not any(p.requires_grad for p in model.model[0].parameters())
    for name, value in model.model[0].state_dict().items():
        assert torch.equal(value, start[f"model.0.{name}"])
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("model.0.") and ".dfl" not in n)


@pytest.fixture
def converged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no epoch be better than another."""

    def validate(trainer: Any) -> tuple[dict[str, float], float]:
        trainer.best_fitness = 0.5
        return trainer.metrics, 0.5

    monkeypatch.setattr(BaseTrainer, "validate", validate)


@pytest.mark.slow
@pytest.mark.usefixtures("converged")
def test_patience_that_runs_out_before_the_last_cut_brings_the_cut_forward(run: Run) -> None:
    trainer = run(prune=soon(start=0.1, end=0.8), epochs=12, patience=2)
    report = report_of(trainer)
    assert [cut["epoch"] for cut in report["cuts"]] == [1, 4]
    assert trainer.epoch == 6  # after the last cut, patience ends the run
    assert report["final"]["macs"] <= 0.5 * report["dense"]["macs"]


@pytest.mark.slow
def test_a_cut_that_does_not_hold_is_judged_before_patience_brings_the_next_one_forward(
    run: Run, folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(trainer: Any) -> tuple[dict[str, float], float]:
        sizes.append(sum(p.numel() for p in trainer.ema.ema.parameters()))
        trainer.best_fitness = 0.8 if sizes[-1] == sizes[0] else 0.2
        return trainer.metrics, trainer.best_fitness

    sizes: list[int] = []
    monkeypatch.setattr(BaseTrainer, "validate", validate)
    guarded = soon(start=0.1, end=0.8, max_drop=0.01, distill=False)
    trainer = run(knowing(folder, tiny_data), guarded, epochs=12, patience=2)
    report = report_of(trainer)
    assert not report["cuts"] and report["final"]["params"] == report["dense"]["params"]
    assert len(report["guard"]["failures"]) > 1


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Epochs at which runs turn to INT8; where ModelOpt is missing, the schedule can be tested without it."""
    epochs: list[int] = []
    monkeypatch.setattr(qat, "check_available", lambda: None)
    monkeypatch.setattr(qat, "begin", lambda done, trainer: epochs.append(trainer.epoch))
    return epochs


@pytest.mark.slow
def test_a_run_turns_to_int8_once_after_its_last_cut_and_starts_anew(run: Run, yolo: YOLO, turned: list[int]) -> None:
    asked: list[Any] = []
    soon(quantize_at=0.75).attach(yolo)
    yolo.add_callback("on_train_epoch_start", lambda t: asked.append((t.args.quantize, t.best_fitness is None)))
    report = report_of(run(yolo, quantize=8))
    assert turned == [3]
    assert asked == [(None, True), (None, True), (None, True), (None, True)]
    assert report["quantization"]["epoch"] == 3
    assert report["quantization"]["fitness_float"] == report["cuts"][-1]["fitness_recovered"] is not None
    assert None not in report["quantization"].values()


@pytest.mark.slow
def test_a_run_whose_target_holds_already_turns_to_int8_all_the_same(run: Run, turned: list[int]) -> None:
    report = report_of(run(prune=soon("5000 GMACs"), quantize=8))
    assert turned == [3] and not report["cuts"] and report["quantization"]["epoch"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("converged")
def test_patience_that_runs_out_before_int8_brings_it_forward(run: Run, turned: list[int]) -> None:
    trainer = run(prune=soon(steps=1, start=0.1, end=0.1), quantize=8, epochs=12, patience=2)
    assert turned == [4]
    assert trainer.epoch == 6  # after it, patience ends the run


@pytest.mark.slow
def test_a_guarded_cut_is_judged_before_int8(run: Run, turned: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    monkeypatch.setattr(Guard, "holds", lambda guard, fitness: bool(judged.append(len(turned))))
    prune = soon(schedule="one-shot", start=0.1, max_drop=0.5, quantize_at=0.5)
    report = report_of(run(prune=prune, quantize=8, epochs=10))
    assert turned == [5] and judged and not any(judged)
    assert not report["cuts"] and report["quantization"]["epoch"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 4])
def test_an_interrupted_run_turns_to_int8_once(
    run: Run, yolo: YOLO, own_folder: Path, turned: list[int], after: int
) -> None:
    def stop(trainer: Any) -> None:
        if trainer.epoch == after:
            raise Interrupted

    yolo.add_callback("on_fit_epoch_end", stop)
    with pytest.raises(Interrupted):
        run(yolo, soon(quantize_at=0.7), quantize=8, epochs=6, name="interrupted")
    resumed = YOLO(own_folder / "runs" / "interrupted" / "weights" / "last.pt")
    report = report_of(run(resumed, PruneCallback(None), resume=True))
    assert turned == [4] and report["quantization"]["epoch"] == 4
    assert [e["epoch"] for e in report["epochs"]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_run_that_is_stopped_before_int8_ends_with_an_error_after_saving(
    run: Run, yolo: YOLO, turned: list[int]
) -> None:
    yolo.add_callback("on_train_epoch_end", lambda t: setattr(t, "stop", t.epoch == 2))
    with pytest.raises(TargetError, match=r"stopped at epoch 3 of 4, before the step to INT8 at epoch 3, so .* float"):
        run(yolo, soon(), quantize=8)
    assert not turned and report_of(yolo.trainer)["final"]["macs"] <= 0.5 * report_of(yolo.trainer)["dense"]["macs"]


@pytest.mark.slow
def test_a_run_that_is_stopped_before_its_last_cut_ends_with_an_error_after_saving(run: Run, yolo: YOLO) -> None:
    yolo.add_callback("on_train_epoch_end", lambda t: setattr(t, "stop", t.epoch == 1))
    with pytest.raises(TargetError, match="the run was stopped at epoch 2 of 4 with 1 of 2 cuts not made"):
        run(yolo, soon())
    assert report_of(yolo.trainer)["final"]["macs"] > 0.5 * report_of(yolo.trainer)["dense"]["macs"]


@pytest.mark.slow
def test_without_validation_the_run_still_ends_pruned(run: Run) -> None:
    trainer = run(prune=soon(), val=False)
    report = report_of(trainer)
    with trainer.csv.open() as file:
        rows = [*csv.DictReader(file)]
    dense, *cuts = (of["macs"] / 1e9 for of in (report["dense"], *report["cuts"]))
    assert [float(row["prune/GMACs"]) for row in rows] == pytest.approx([dense, cuts[0], cuts[1], cuts[1]], rel=1e-4)
    assert [*rows[0]][-5:-3] == ["prune/GMACs", "prune/params(M)"]
    assert [cut["fitness_cut"] for cut in report["cuts"]] == [None, None]
    assert report["final"]["macs"] <= 0.5 * report["dense"]["macs"]


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_loss_that_is_not_finite_takes_the_run_back_to_its_last_epoch_and_not_its_cuts(
    run: Run, yolo: YOLO, epoch: int
) -> None:
    """Ultralytics loads last.pt into the live network: before a cut follows, in the epoch of a cut, and after it."""
    spoilt: list[int] = []

    def spoil(trainer: Any) -> None:
        if trainer.epoch == epoch and not spoilt:
            spoilt.append(epoch)
            trainer.loss = trainer.loss * float("nan")

    yolo.add_callback("on_train_epoch_end", spoil)
    trainer = run(yolo, soon(start=0.5, end=0.7), epochs=5)
    report = report_of(trainer)
    assert spoilt == [epoch] and [e["epoch"] for e in report["epochs"]] == [0, 1, 2, 3, 4]
    assert len(report["cuts"]) == 2 and report["final"]["macs"] <= 0.5 * report["dense"]["macs"]
    assert all(torch.isfinite(t).all() for t in load_checkpoint(trainer.best)[0].state_dict().values())


@pytest.mark.slow
def test_memory_that_runs_out_in_the_first_epoch_halves_the_batch_and_does_not_cut_twice(run: Run, yolo: YOLO) -> None:
    failed: list[int] = []

    def fail(trainer: Any) -> None:
        def preprocess(batch: Any) -> Any:
            if not failed:
                failed.append(trainer.epoch)
                raise RuntimeError("CUDA out of memory")  # what Ultralytics looks for
            return type(trainer).preprocess_batch(trainer, batch)

        trainer.preprocess_batch = preprocess

    yolo.add_callback("on_train_start", fail)
    trainer = run(yolo, soon(start=0.0, end=0.5))
    report = report_of(trainer)
    assert failed == [0] and trainer.batch_size == 2
    assert [c["epoch"] for c in report["cuts"]] == [0, 2]
    assert report["final"]["macs"] <= 0.5 * report["dense"]["macs"]


@pytest.mark.slow
def test_resuming_a_run_that_never_pruned_needs_a_target(run: Run, yolo: YOLO, own_folder: Path) -> None:
    yolo.add_callback("on_fit_epoch_end", lambda t: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        run(yolo, name="dense")
    with pytest.raises(CheckpointError, match=r"last\.pt holds no pruning run to continue; say how much to remove"):
        run(YOLO(own_folder / "runs" / "dense" / "weights" / "last.pt"), PruneCallback(None), resume=True)
