"""INT8 after the last cut: refusals, and real runs where NVIDIA ModelOpt is installed."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
import trainings
from conftest import Python
from nets import assert_same, snapshot, tiny_yaml
from onnx import numpy_helper
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune import PruneCallback, PruneConfig
from yolo_prune.errors import ConfigError, CutError, UnsupportedError
from yolo_prune.graph.layers import is_quantized
from yolo_prune.graph.trace import trace
from yolo_prune.graph.zeros import share_of_zeros, sparse_layers
from yolo_prune.host import qat as quantization
from yolo_prune.host.distillation import student_of
from yolo_prune.training import run_files

HAS_MODELOPT = find_spec("modelopt") is not None


def needs_modelopt(test: Any) -> Any:
    """Mark a test that trains in INT8."""
    reason = 'INT8 training needs NVIDIA ModelOpt: pip install ".[qat]"'
    return pytest.mark.slow(pytest.mark.skipif(not HAS_MODELOPT, reason=reason)(test))


def asking(quantize: Any = 8, resume: bool = False, compile: bool = False) -> Any:
    """Return what `prepare` reads of a trainer."""
    return SimpleNamespace(args=SimpleNamespace(quantize=quantize, compile=compile), resume=resume)


def test_int8_is_put_off_only_where_something_is_to_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "check_available", lambda: None)
    trainer = asking()
    assert quantization.prepare(trainer, PruneConfig(target=0.5)) and trainer.args.quantize is None
    for trainer, target in ((asking(None), 0.5), (asking(16), 0.5), (asking(), 0), (asking(resume=True), 0.5)):
        before = trainer.args.quantize
        assert not quantization.prepare(trainer, PruneConfig(target=target)) and trainer.args.quantize == before


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"export": ("onnx", "openvino")},
            "export=openvino: Ultralytics exports what was trained with quantize=8 as onnx, onnx:8, engine, ",
        ),
        (
            {"target": "2 MB"},
            'target=2 MB with quantize=8: the size is that of a float checkpoint; .*, e.g. target="2 MB onnx:8"',
        ),
        ({"target": "50%, 8 ms"}, "target=50%, 8 ms with quantize=8: latency is measured of float networks"),
    ],
)
def test_what_int8_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(quantization, "check_available", lambda: None)
    with pytest.raises(ConfigError, match=message):
        quantization.prepare(asking(), PruneConfig(**knobs))


@pytest.mark.parametrize(
    "knobs",
    [
        {"target": "8 ms", "runtime": "onnx:8"},
        {"target": "8 ms", "latency": "latency.json"},
        {"target": "2 MB onnx:8"},
        {"target": "2 MB litert:8, 2x", "runtime": "onnx:8"},
    ],
)
def test_a_latency_and_a_size_in_int8_are_met(monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any]) -> None:
    monkeypatch.setattr(quantization, "check_available", lambda: None)
    assert quantization.prepare(asking(), PruneConfig(**knobs))


def test_int8_and_compile_exclude_each_other() -> None:
    with pytest.raises(UnsupportedError, match=r"quantize=8 with compile=True: .* use compile=False"):
        quantization.prepare(asking(compile=True), PruneConfig())


def test_a_release_without_int8_training_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(quantization.torch_utils, "prepare_qat")
    with pytest.raises(UnsupportedError, match=r"trains in INT8 since 8\.4\.143, and this is .*: pip install -U ultra"):
        quantization.check_available()


@pytest.mark.slow
def test_without_modelopt_a_run_is_refused_before_it_starts(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)  # type: ignore[arg-type]  # cannot be imported
    yolo = YOLO(tiny_yaml(own_folder))
    PruneCallback(0.5).attach(yolo)
    with pytest.raises(
        UnsupportedError, match=r"needs nvidia-modelopt>=.* huggingface_hub.*install yolo_prune with its extra qat"
    ):
        yolo.train(data=str(tiny_data), quantize=8, epochs=10, imgsz=64, project=own_folder)


def train(folder: Path, data: Path, prune: PruneCallback, *watch: tuple[str, Any], **arguments: Any) -> Any:
    """Train for four short epochs and return the trainer."""
    yolo = YOLO(arguments.pop("model", None) or tiny_yaml(folder))
    prune.attach(yolo)
    for event, function in watch:
        yolo.callbacks[event].insert(0, function)
    short = {"data": str(data), "epochs": 4, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "quantize": 8}
    yolo.train(**{**short, "project": str(folder / "runs"), "name": "train", **arguments})
    return yolo.trainer


def soon(**knobs: Any) -> PruneCallback:
    """One cut before epoch 1 of four, INT8 before epoch 2."""
    return trainings.soon(**{"schedule": "one-shot", "start": 0.25, "quantize_at": 0.5, **knobs})


def report_of(trainer: Any) -> dict[str, Any]:
    return json.loads((trainer.save_dir / "pruning" / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Any:
    """The trainer of a run that was cut, quantized, trained on and exported."""
    return train(tmp_path_factory.mktemp("int8"), tiny_data, soon(export=("onnx",)))


def widths(network: nn.Module) -> list[torch.Size]:
    return [p.shape for p in network.parameters()]


@needs_modelopt
def test_one_run_cuts_recovers_quantizes_and_hands_over_a_slim_int8_model(finished: Any) -> None:
    report = report_of(finished)
    assert 0.48 <= report["final"]["macs"] / report["dense"]["macs"] <= 0.5
    assert report["final"]["params"] == report["cuts"][-1]["params"]
    assert report["quantization"]["epoch"] == 2 and None not in report["quantization"].values()
    assert report["versions"]["nvidia-modelopt"]
    assert (
        is_quantized(unwrap_model(finished.model))
        and is_quantized(finished.ema.ema)
        and is_quantized(load_checkpoint(finished.best)[0])
    )


@needs_modelopt
def test_the_optimizer_holds_the_parameters_of_the_quantized_network(finished: Any) -> None:
    held = {id(p) for group in finished.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in unwrap_model(finished.model).parameters() if p.requires_grad} <= held


@needs_modelopt
def test_the_checkpoint_holds_stock_layers_and_the_quantizers_beside_them(finished: Any) -> None:
    ckpt = torch.load(finished.best, weights_only=False)
    assert ckpt["modelopt"] and ckpt["train_args"]["quantize"] == 8 and not is_quantized(ckpt["model"])
    assert type(ckpt["model"].model[0].conv) is nn.Conv2d
    assert sum(p.numel() for p in ckpt["model"].parameters()) == report_of(finished)["final"]["params"]


@needs_modelopt
def test_the_quantized_checkpoint_loads_without_yolo_prune(finished: Any, python: Python) -> None:
    code = (
        "import sys; from ultralytics import YOLO; from ultralytics.utils.torch_utils import is_qat; import numpy\n"
        "model = YOLO(sys.argv[1]); model.predict(numpy.zeros((64, 64, 3), 'uint8'), imgsz=64, verbose=False)\n"
        "assert not [name for name in sys.modules if name.startswith('yolo_prune')]\n"
        "print('quantized:', is_qat(model.model), sum(p.numel() for p in YOLO(sys.argv[1]).model.parameters()))"
    )
    done = python("-c", code, finished.best)
    assert f"quantized: True {report_of(finished)['final']['params']}" in done.stdout, done.stderr


@needs_modelopt
def test_the_export_computes_in_int8_what_the_checkpoint_does(finished: Any) -> None:
    (record,) = report_of(finished)["exports"]
    assert record["ok"] and record["precision"] == "8", record  # its fitness decides
    operators = [node.op_type for node in onnx.load(record["path"]).graph.node]
    assert operators.count("QuantizeLinear") > operators.count("Conv") / 2


@needs_modelopt
def test_a_quantized_network_is_not_cut(finished: Any) -> None:
    network, _ = load_checkpoint(finished.best)
    with pytest.raises(UnsupportedError, match="the network has INT8 quantizers"):
        trace(network, 64)
    quantization.torch_utils.strip_qat(network)
    assert trace(network, 64).groups


@needs_modelopt
def test_without_a_target_int8_is_ultralytics_business_from_the_start(
    finished: Any, own_folder: Path, tiny_data: Path
) -> None:
    seen: list[bool] = []
    look = ("on_train_start", lambda trainer: seen.append(is_quantized(unwrap_model(trainer.model))))
    again = train(own_folder, tiny_data, PruneCallback(0), look, model=finished.best, epochs=1)
    assert seen == [True] and report_of(again)["quantization"] is None
    assert report_of(again)["final"]["macs"] == report_of(finished)["final"]["macs"]
    assert widths(load_checkpoint(again.best)[0]) == widths(load_checkpoint(finished.best)[0])


class Interrupted(Exception):
    """Stands for a lost machine."""


@needs_modelopt
def test_an_interrupted_run_goes_on_in_int8(own_folder: Path, tiny_data: Path) -> None:
    def stop(trainer: Any) -> None:
        if trainer.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(own_folder, tiny_data, soon(), ("on_train_epoch_end", stop))
    last = own_folder / "runs" / "train" / "weights" / "last.pt"
    trainer = train(own_folder, tiny_data, PruneCallback(None), model=last, resume=True)
    assert report_of(trainer)["quantization"]["epoch"] == 2
    assert is_quantized(load_checkpoint(trainer.best)[0])
    for parameter, remembered in trainer.optimizer.state.items():
        assert all(value.shape == parameter.shape for value in remembered.values() if value.ndim)


@needs_modelopt
@pytest.mark.parametrize(
    ("owner", "stage"), [(quantization.torch_utils, "restore_qat"), (run_files, "save_checkpoint")]
)
def test_a_step_to_int8_that_fails_leaves_the_trainer_as_it_was(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, stage: str
) -> None:
    before: dict[str, Any] = {}
    trainers: list[Any] = []

    def look(trainer: Any) -> None:
        if trainer.epoch == 2:
            trainers.append(trainer)
            before.update(snapshot(trainer))
            monkeypatch.setattr(owner, stage, lambda *_, **__: 1 / 0)

    with pytest.raises(CutError, match=r"the step to INT8 at epoch 2 failed and was taken back; .*ZeroDivisionError"):
        train(own_folder, tiny_data, soon(), ("on_train_epoch_start", look))
    (trainer,) = trainers
    assert_same(before, snapshot(trainer))
    assert not is_quantized(unwrap_model(trainer.model)) and trainer.args.quantize is None
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in unwrap_model(trainer.model).parameters() if p.requires_grad} <= held


@needs_modelopt
def test_a_student_is_quantized_and_its_teacher_is_not(own_folder: Path, tiny_data: Path) -> None:
    networks: list[nn.Module] = []
    look = ("on_train_epoch_end", lambda trainer: networks.append(unwrap_model(trainer.model)))
    trainer = train(own_folder, tiny_data, soon(distill=True), look, epochs=3, name="distilled")
    assert is_quantized(student_of(networks[-1])) and not is_quantized(networks[-1].teacher_model)
    assert is_quantized(load_checkpoint(trainer.best)[0])


@needs_modelopt
def test_zeros_stay_zero_in_int8(own_folder: Path, tiny_data: Path) -> None:
    trainer = train(own_folder, tiny_data, soon(target="60% sparsity", export=("onnx",)), name="zeros")
    report = report_of(trainer)
    asked = report["cuts"][-1]["sparsity"]
    assert 0.6 <= asked < 0.6 + 1e-4
    for network in (unwrap_model(trainer.model), trainer.ema.ema, load_checkpoint(trainer.best)[0]):
        assert is_quantized(network)
        assert asked <= share_of_zeros(sparse_layers(network)) < asked + 1e-3  # FP16 and training make some more
    weights = {of.name: numpy_helper.to_array(of) for of in onnx.load(report["exports"][0]["path"]).graph.initializer}
    kernels = [of for of in weights.values() if of.ndim == 4 and len(of) > 1]
    assert asked <= sum(int((of == 0).sum()) for of in kernels) / sum(of.size for of in kernels)
