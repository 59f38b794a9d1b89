"""Kits, run as on a device: in a process of their own, and timed by a command that tells multiply-adds as time."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzz import mutated
from hypothesis import given
from hypothesis import strategies as st
from nets import IMGSZ, build, graph_of, tiny_yaml
from reports import full_report
from torch import nn
from trainings import report_of, soon, train
from ultralytics import YOLO
from ultralytics.utils import LOGGER

import yolo_prune
from yolo_prune.cost.latency import Workload
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy import kit
from yolo_prune.deploy.bench import bench
from yolo_prune.deploy.kit_results import describe, read_comparison, read_latency
from yolo_prune.deploy.samples import EVERY, random_plan, widths_of
from yolo_prune.device.kit import TURN
from yolo_prune.errors import ConfigError
from yolo_prune.graph.trace import trace
from yolo_prune.utils.run_folder import RunFolder

NUMBER = 16
TIMER = """
import pathlib, sys
file, folder = map(pathlib.Path, sys.argv[1:])
timed, limit = folder / "timed", folder / "limit"
names = timed.read_text().split() if timed.exists() else []
if limit.exists() and len(names) == int(limit.read_text()):
    sys.exit(print("the board is gone"))
timed.write_text(" ".join([*names, file.name]))
print(float(file.read_text()) * 1e-9)
"""


@pytest.fixture
def timer(tmp_path: Path) -> str:
    """A command that says a file's number, notes its name in ``timed``, and is gone after ``limit`` files."""
    (tmp_path / "timer.py").write_text(TIMER, encoding="utf-8")
    return f"command: {sys.executable} {tmp_path}/timer.py {{file}} {tmp_path}"


@pytest.fixture
def macs_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file of a network hold its multiply-adds."""

    def export(network: nn.Module, form: str, imgsz: Any, folder: Path, data: Any, *, portable: bool) -> Path:
        assert portable
        (folder / "network.onnx").write_text(str(CostModel(trace(network, imgsz)).macs()))
        return folder / "network.onnx"

    monkeypatch.setattr(kit, "export", export)
    monkeypatch.setattr(kit, "NUMBER", NUMBER)
    monkeypatch.setattr(kit, "QUICK", 8)


def run(archive: Path, *arguments: str, succeeds: bool = True) -> str:
    """Run a kit in its folder, and return what it printed, errors as well."""
    command = [sys.executable, archive.name, *arguments]
    done = subprocess.run(command, cwd=archive.parent, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is succeeds, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def sample_kit(tmp_path: Path, timer: str, macs_as_files: None) -> Path:
    path = tmp_path / "kit.pyz"
    kit.make_sample_kit(build("tiny"), graph_of("tiny"), path, timer, "onnx", data=None, name="tiny.pt")
    return path


def test_a_kit_carries_what_python_39_and_numpy_can_run() -> None:
    package = Path(yolo_prune.__file__).parent
    carried = {f"yolo_prune.{module[:-3].replace('/', '.').removesuffix('.__init__')}" for module in kit.CARRIED}
    assert {p.name for p in (package / "device").glob("*.py")} == {Path(m).name for m in kit.CARRIED} - {"errors.py"}
    for module in kit.CARRIED:
        tree = ast.parse((package / module).read_text(encoding="utf-8"), feature_version=(3, 9))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                known = name.partition(".")[0] in {*sys.stdlib_module_names, "numpy", "PIL"}
                assert known or name in carried, (module, name)


def test_what_a_kit_measures_predicts_any_widths(sample_kit: Path, tmp_path: Path) -> None:
    said = run(sample_kit)
    assert "tiny.pt: " in said and "prune_latency=latency.json" in said
    graph, work = graph_of("tiny"), Workload(graph_of("tiny"))
    latency = read_latency(tmp_path / "latency.json", graph)
    assert latency.dense == pytest.approx(CostModel(graph).macs() * 1e-9)
    assert len(latency.errors) == NUMBER // EVERY and max(latency.errors) < 1e-3 and latency.stairs == 1
    cost = CostModel(graph)
    for kept in (cost.widths * 0.5, cost.widths * 0.75):
        assert latency.seconds(work, *cost.widths_of(kept)) == pytest.approx(cost.macs(kept) * 1e-9, rel=0.02)
    assert "predictions were off by 0.0%, at most 0.0%, of 4 networks" in describe(latency)


def test_a_kit_goes_on_where_it_was_and_times_nothing_twice(sample_kit: Path, tmp_path: Path) -> None:
    (tmp_path / "limit").write_text(str(TURN + 4))  # the board is gone in the second turn
    assert "said 'the board is gone' in its last line" in run(sample_kit, succeeds=False)
    first = json.loads((tmp_path / "latency.json").read_text())
    assert len(first["ratios"]) == TURN and not first["complete"]
    with pytest.raises(ConfigError, match=f"is not finished: {TURN} networks are timed; start the kit again"):
        read_latency(tmp_path / "latency.json", graph_of("tiny"))
    (tmp_path / "limit").unlink()
    (tmp_path / "timed").unlink()
    run(sample_kit)
    again = [name for name in (tmp_path / "timed").read_text().split() if name != "dense.onnx"]
    assert len(again) == NUMBER - TURN and not set(again) & set(first["ratios"])
    assert read_latency(tmp_path / "latency.json", graph_of("tiny")).errors


def test_a_quick_run_times_fewer_and_a_thorough_one_adds_the_others(sample_kit: Path, tmp_path: Path) -> None:
    run(sample_kit, "--quick")
    assert len(read_latency(tmp_path / "latency.json", graph_of("tiny")).errors) == 8 // EVERY
    (tmp_path / "timed").unlink()
    run(sample_kit)
    assert len(read_latency(tmp_path / "latency.json", graph_of("tiny")).errors) == NUMBER // EVERY
    assert len([name for name in (tmp_path / "timed").read_text().split() if name != "dense.onnx"]) == NUMBER - 8
    other = json.loads((tmp_path / "latency.json").read_text()) | {"id": "another"}
    (tmp_path / "latency.json").write_text(json.dumps(other))
    assert "is of another kit, device or number of threads" in run(sample_kit, succeeds=False)
    run(sample_kit, "--again", "--quick")


def test_what_was_measured_of_something_else_is_refused(sample_kit: Path, tmp_path: Path) -> None:
    run(sample_kit, "--quick")
    graph, path = graph_of("tiny"), tmp_path / "latency.json"
    with pytest.raises(ConfigError, match=r"measured at \[96, 96\] px, and this is \[96, 64\] px; make a kit"):
        read_latency(path, replace(graph, imgsz=(96, 64)))
    with pytest.raises(ConfigError, match=r"of another network \(tiny\.pt\), or of other classes; make a kit"):
        read_latency(path, graph_of("yolo11n"))
    with pytest.raises(ConfigError, match="runtime=ncnn is asked for; leave it out, or make a kit"):
        read_latency(path, graph, "ncnn")
    with pytest.raises(ConfigError, match="there is no such file; a kit writes it"):
        read_latency(tmp_path / "none.json", graph)
    with pytest.raises(ConfigError, match=r"is a 'latency' of a kit, not a latency-result\.json"):
        read_comparison(path)


WIDTHS = Workload(graph_of("tiny")).dense.astype(int).tolist()
RESULT = {
    **{"kind": "latency", "runtime": "onnx", "imgsz": [IMGSZ, IMGSZ], "model": "tiny.pt", "complete": True},
    **{"network": "", "where": {"runtime": "onnx", "device": "a board", "threads": 1}, "turns": [{"first": 0.1}]},
    "ratios": {str(i): 0.5 + i / 20 for i in range(8)},
    "networks": [{"name": str(i), "widths": WIDTHS} for i in range(8)],
}


@given(mutated(st.just(json.dumps(RESULT))))
def test_any_file_gives_a_model_that_tells_times_or_an_error_of_ours(text: str) -> None:
    Path("latency.json").write_text(text, errors="surrogatepass")
    graph = graph_of("tiny")
    with suppress(ConfigError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolo_prune.deploy.kit_results.digest_of", lambda graph: "")
        latency = read_latency("latency.json", graph)
        assert latency.seconds(Workload(graph), *Workload(graph).dense) >= 0


def test_finished_files_are_timed_side_by_side_and_the_report_says_so(
    tmp_path: Path, timer: str, macs_as_files: None
) -> None:
    weights, archive = tmp_path / "run" / "weights", tmp_path / "kit.pyz"
    weights.mkdir(parents=True)
    for name, seconds in (("dense", "8e6"), ("best", "4e6")):
        (weights / f"{name}.onnx").write_text(seconds)
    models = [weights / "dense.onnx", weights / "best.onnx"]
    kit.make_comparison_kit(models, archive, timer, "onnx", IMGSZ, None)
    (archive.parent / "file").write_text("")
    said = run(archive, "--out", "file/result.json", succeeds=False)
    assert "run-best.onnx: 4.00 ms" in said and "name another file with --out" in said  # what was timed is told
    run(archive, "--out", "new/result.json")
    assert (archive.parent / "new" / "result.json").is_file()
    said = run(archive)
    assert "run-dense.onnx: 8.00 ms\n" in said and "run-best.onnx: 4.00 ms, 2.00x" in said
    folder = RunFolder(tmp_path / "run").path
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(full_report()))
    found = bench(models, results=str(tmp_path / "latency-result.json"), imgsz=IMGSZ)
    assert [row.speedup for row in found.rows] == [1, 2] and "2.00x" in found.table()
    report = json.loads((RunFolder(tmp_path / "run").path / "report.json").read_text())
    assert (report["dense"]["latency"], report["final"]["latency"]) == pytest.approx((8e-3, 4e-3))
    assert report["final"]["speedup"]["value"] == 2 and report["timed"]["device"] == "what the command runs on"
    assert "what the command runs on" in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is of 2 networks at .*give the same models in the same order"):
        bench(models[:1], results=str(tmp_path / "latency-result.json"), imgsz=IMGSZ)
    with pytest.raises(ConfigError, match=r"is of run-dense, run-best, in this order; give them so"):
        bench(models[::-1], results=str(tmp_path / "latency-result.json"), imgsz=IMGSZ)


def test_the_report_is_of_the_dense_model_and_the_result_wherever_the_command_is_given(
    tmp_path: Path, timer: str, macs_as_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, folder = tmp_path / "run" / "weights", RunFolder(tmp_path / "run").path
    weights.mkdir(parents=True)
    folder.mkdir()
    for name, seconds in (("dense", "8e6"), ("best-0.3", "5e6"), ("best", "4e6")):
        (weights / f"{name}.onnx").write_text(seconds)
    (folder / "report.json").write_text(plain := json.dumps(full_report()))
    monkeypatch.chdir(weights)
    for first, is_dense in (("best-0.3", False), ("dense", True)):
        models = [Path(f"{first}.onnx"), Path("best.onnx")]
        kit.make_comparison_kit(models, tmp_path / "kit.pyz", timer, "onnx", IMGSZ, None)
        assert f"run-{first}.onnx: " in run(tmp_path / "kit.pyz")
        bench(models, results=str(tmp_path / "latency-result.json"), imgsz=IMGSZ)
        assert ((folder / "report.json").read_text() != plain) == is_dense


def test_what_finished_files_take_corrects_the_file_that_they_were_planned_by(
    sample_kit: Path, tmp_path: Path, timer: str, macs_as_files: None
) -> None:
    run(sample_kit)
    graph, path = graph_of("tiny"), tmp_path / "latency.json"
    plain, before = read_latency(path, graph), path.read_text()
    yolo, models = YOLO(tiny_yaml(tmp_path)), [tmp_path / "dense.pt", tmp_path / "best.pt"]
    yolo.save(models[0])
    plan = random_plan(graph, 0.5, 8, seed=0)
    plan.apply(yolo)
    yolo.save(models[1])

    def compared(slower: float) -> str:
        """Compare them on a device on which the pruned one takes so many times as long as it computes."""
        exported = kit.export

        def export(network: nn.Module, *of: Any, **how: Any) -> Path:
            file = exported(network, *of, **how)
            if CostModel(trace(network, IMGSZ)).macs() == plan.macs["after"]:
                file.write_text(str(float(file.read_text()) * slower))
            return file

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kit, "export", export)
            kit.make_comparison_kit(models, tmp_path / "compare.pyz", timer, "onnx", IMGSZ, None)
        run(tmp_path / "compare.pyz")
        return str(tmp_path / "latency-result.json")

    widths = widths_of(graph, plan)
    for slower in (1.2, 0.9):  # the second replaces the first
        found = bench(models, results=compared(slower), latency=str(path), imgsz=IMGSZ)
        assert found.corrected == {"best.onnx": pytest.approx(slower, rel=0.02)}
        assert f"best.onnx takes {found.corrected['best.onnx']:.2f} times as long as predicted" in found.table()
        latency = read_latency(path, graph)
        assert latency.seconds(Workload(graph), *widths) == pytest.approx(slower * plan.macs["after"] * 1e-9)
        assert "and are corrected by 1 finished ones" in describe(latency) and latency.weights == plain.weights
    results, after = str(tmp_path / "latency-result.json"), path.read_text()
    with pytest.raises(ConfigError, match="give results= too"):
        bench(models, latency=str(path))
    told = json.loads(Path(results).read_text())
    told["speedups"][1]["settled"] = False
    Path(results).with_name("restless.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"the speed-up of best\.onnx has not settled; run its kit again"):
        bench(models, results=str(tmp_path / "restless.json"), latency=str(path), imgsz=IMGSZ)
    assert path.read_text() == after
    path.write_text(before.replace('"threads": ', '"threads": 9'))
    with pytest.raises(ConfigError, match=r"was measured in .* threads, and what results= names in .* on one device"):
        bench(models, results=results, latency=str(path), imgsz=IMGSZ)
    path.write_text(after.replace('"convolutions": ', '"konvolutions": '))
    with pytest.raises(ConfigError, match="is damaged"):
        read_latency(path, graph)


@pytest.mark.parametrize(
    ("runtime", "form", "says"),
    [
        ("pytorch", "pytorch", 'runtime=pytorch is none of onnx, openvino, .* "command: my-timer {file}"'),
        ("onnx", "onnx:4", "runtime=onnx:4 is of no precision that Ultralytics exports; give onnx:32, onnx:16, onnx:8"),
        ("command: timer {file}", "pytorch", "format=pytorch is none of onnx"),
        ("command: timer", "onnx", "does not say where the file goes"),
    ],
)
def test_a_kit_is_for_a_runtime_that_a_device_can_have(runtime: str, form: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kit.check_form(runtime, form)


def test_models_that_are_compared_have_names_of_their_own(tmp_path: Path) -> None:
    for models, says in (([tmp_path / "a.pt"], "two or more models"), ([tmp_path / "a.pt", tmp_path / "b.pt"], "no ")):
        with pytest.raises(ConfigError, match=says):
            kit.make_comparison_kit(models, tmp_path / "kit.pyz", "onnx", "onnx", 64, None)


@pytest.mark.slow
def test_a_file_that_the_runtime_cannot_read_is_named(tmp_path: Path, macs_as_files: None) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "kit.pyz"
    kit.make_sample_kit(build("tiny"), graph_of("tiny"), path, "onnx", "onnx", data=None, name="tiny.pt")
    assert re.search(r"error: onnx \S+ cannot open dense.onnx \(.*install another version", run(path, succeeds=False))
    assert "--threads: 0 is no whole number above 0" in run(path, "--threads", "0", succeeds=False)


@pytest.mark.slow
def test_a_kit_of_onnx_files_runs_beside_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "NUMBER", 8)
    monkeypatch.setattr(kit, "QUICK", 8)
    path = tmp_path / "kit.pyz"
    kit.make_sample_kit(build("tiny"), graph_of("tiny"), path, "onnx", "onnx", data=None, name="tiny.pt")
    code = "import runpy, sys; sys.modules['torch'] = sys.modules['ultralytics'] = None; sys.argv = sys.argv[1:]"
    start = f"{code}; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", start, path.name, "--quick", "--threads", "1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    latency = read_latency(tmp_path / "latency.json", graph_of("tiny"))
    assert latency.dense > 0 and latency.where["threads"] == 1


@pytest.mark.slow
def test_a_training_plans_by_what_a_kit_has_measured_and_says_how_to_check_it(
    own_folder: Path,
    tiny_data: Path,
    tmp_path: Path,
    timer: str,
    macs_as_files: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = YOLO(tiny_yaml(tmp_path)).model
    kit.make_sample_kit(dense, trace(dense, 64), tmp_path / "kit.pyz", timer, "onnx", data=None, name="tiny.yaml")
    run(tmp_path / "kit.pyz")
    monkeypatch.setattr(LOGGER, "propagate", True)
    trainer = train(own_folder, tiny_data, prune=soon("1.5x", latency=str(tmp_path / "latency.json"), benchmark=True))
    report = report_of(trainer)
    macs = [report[stage]["macs"] for stage in ("dense", "final")]
    assert 1.5 <= macs[0] / macs[1] < 1.7  # the device takes as long as there are multiply-adds
    assert report["dense"]["latency"] / report["final"]["latency"] == pytest.approx(macs[0] / macs[1], rel=0.01)
    assert report["timed"] is None and report["final"]["speedup"] is None
    assert (
        "latency.json: the network takes" in caplog.text and "predicted for what the command runs on: " in caplog.text
    )
    assert f"yolo-prune kit {trainer.wdir / 'dense.pt'} {trainer.best} imgsz=64" in caplog.text
