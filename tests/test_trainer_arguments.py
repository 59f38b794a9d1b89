"""Every argument of Ultralytics that changes how a run goes: with it, a pruned run ends on target, or is refused.

``distill_model``, ``quantize=8``, ``tune()`` and several GPUs have files of their own; more on ``freeze``, ``val`` and
``patience`` is in test_session.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import tiny_yaml
from trainings import Run, report_of, soon
from ultralytics import YOLO, __version__
from ultralytics.engine import trainer as engine
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.checks import check_version
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.errors import TargetError, UnsupportedError

pytestmark = pytest.mark.slow


@pytest.fixture
def yolo(own_folder: Path) -> YOLO:
    return YOLO(tiny_yaml(own_folder))


def parameters(path: Path) -> int:
    return sum(p.numel() for p in load_checkpoint(path)[0].parameters())


def lands_on_target(trainer: Any, cuts: int = 2) -> bool:
    """Tell whether a run made its cuts, and whether its best checkpoint and the report say half of the MACs."""
    report = report_of(trainer)
    live = sum(p.numel() for p in unwrap_model(trainer.model).parameters())
    return (
        len(report["cuts"]) == cuts
        and 0.45 <= report["final"]["macs"] / report["dense"]["macs"] <= 0.5
        and parameters(trainer.best) == report["final"]["params"] == live
    )


def test_rect_cache_fraction_freeze_and_save_period(run: Run) -> None:
    trainer = run(prune=soon(), rect=True, cache="ram", fraction=0.5, freeze=2, save_period=1)
    assert lands_on_target(trainer)
    images = trainer.train_loader.dataset
    assert images.rect and images.cache == "ram" and len(images) == 4
    assert not any(p.requires_grad for layer in unwrap_model(trainer.model).model[:2] for p in layer.parameters())
    dense, once, twice, still = (parameters(trainer.wdir / f"epoch{epoch}.pt") for epoch in range(4))
    assert dense > once > twice == still


def test_multi_scale_close_mosaic_single_cls_channels_last_and_no_validation(run: Run, yolo: YOLO) -> None:
    sizes, augmentations = [], []

    def look(trainer: Any) -> None:
        augmentations.append(trainer.train_loader.dataset.transforms)
        unwrap_model(trainer.model).model[0].register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-1]))

    yolo.add_callback("on_train_batch_start", look)
    trainer = run(
        yolo,
        soon(),
        multi_scale=0.5,
        close_mosaic=2,
        single_cls=True,
        channels_last=True,
        val=False,
    )
    assert lands_on_target(trainer)
    assert len(set(sizes)) > 1 and [x is augmentations[0] for x in augmentations] == [True] * 4 + [False] * 4
    assert load_checkpoint(trainer.best)[0].model[-1].nc == 1


@pytest.mark.skipif(not check_version(__version__, "8.4.135"), reason="ultralytics before 8.4.135 has no amp=bf16")
def test_amp_in_bfloat16(run: Run, yolo: YOLO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "autocast", lambda kind, device: torch.autocast(device, kind))  # it asks for CUDA
    kinds = set()

    def look(trainer: Any) -> None:
        trainer.model.model[0].conv.register_forward_hook(lambda *x: kinds.add(x[-1].dtype))

    yolo.add_callback("on_train_start", look)
    assert lands_on_target(run(yolo, soon(importance="taylor"), amp="bf16"))
    assert torch.bfloat16 in kinds


def test_amp_with_a_scaled_loss(run: Run, yolo: YOLO, monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(engine, "check_amp", lambda model: True)  # it is False on a CPU
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler("cpu", 1024.0, enabled=enabled))
    trainer = run(yolo, soon(importance="taylor"), amp=True)
    assert lands_on_target(trainer) and trainer.scaler.get_scale() == 1024


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compile without a compiler: torch reads the network and runs what it has read; filled with widths."""
    stock, found = torch.compile, []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        found.append(sum(x.numel() for x in inputs if isinstance(x, torch.nn.Parameter)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **_: stock(model, backend=backend))
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "c++")
    yield found
    torch.compiler.reset()


def test_a_compiled_network_is_compiled_anew_after_a_cut(run: Run, yolo: YOLO, compilations: list[int]) -> None:
    widths: list[int] = []
    yolo.add_callback("on_train_epoch_end", lambda trainer: widths.append(compilations[-1]))
    trainer = run(yolo, soon(steps=1, start=0.34, end=0.34), epochs=3, compile=True)
    assert lands_on_target(trainer, cuts=1)
    assert isinstance(trainer.model, torch._dynamo.OptimizedModule)
    dense, cut, still = widths
    assert dense > cut == still


def test_what_learns_from_a_teacher_is_not_compiled(run: Run) -> None:
    with pytest.raises(UnsupportedError, match="use compile=False or distill=False"):
        run(prune=soon(distill=True), compile=True)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch, yolo: YOLO) -> Callable[[float], YOLO]:
    """Let each epoch of the model take so many seconds, by the trainer's clock."""
    now = [0.0]
    monkeypatch.setattr(engine, "time", SimpleNamespace(time=lambda: now[0]))

    def pass_time(seconds: float) -> YOLO:
        yolo.add_callback("on_train_epoch_end", lambda trainer: now.__setitem__(0, now[0] + seconds))
        return yolo

    return pass_time


def test_a_run_that_is_given_a_time_cuts_by_the_share_of_it_that_is_over(
    run: Run, slowly: Callable[[float], YOLO]
) -> None:
    prune = soon(steps=3, start=0.1, end=0.6)
    trainer = run(slowly(60), prune, epochs=100, time=4 / 60)  # cuts after 10, 35 and 60 epochs of a hundred
    assert trainer.epochs == 4 and trainer.epoch == 3
    assert [cut["epoch"] for cut in report_of(trainer)["cuts"]] == [1, 2, 3] and lands_on_target(trainer, cuts=3)


def test_a_run_of_few_epochs_makes_the_cuts_that_it_has_passed_in_one(
    run: Run, slowly: Callable[[float], YOLO]
) -> None:
    prune = soon(steps=4, start=0.1, end=0.4)
    trainer = run(slowly(60), prune, epochs=100, time=2 / 60)
    assert trainer.epochs == 2 and [cut["epoch"] for cut in report_of(trainer)["cuts"]] == [1]
    assert lands_on_target(trainer, cuts=1)


def test_a_run_whose_time_is_up_before_its_cuts_says_so(run: Run, slowly: Callable[[float], YOLO]) -> None:
    with pytest.raises(TargetError, match="stopped at epoch 1 of 1 with 2 of 2 cuts not made"):
        run(slowly(3600), soon(), epochs=100, time=0.5)


def test_several_data_sets_get_a_pruned_model_each(own_folder: Path, tiny_data: Path, yolo: YOLO) -> None:
    second = shutil.copy(tiny_data, own_folder / "second.yaml")
    soon().attach(yolo)
    settings = {"epochs": 4, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "project": own_folder}
    metrics = yolo.train(data=[str(tiny_data), str(second)], **settings)
    assert len(metrics) == 2 and all(metrics.values())
    assert all(
        lands_on_target(SimpleNamespace(best=r.best, save_dir=r.save_dir, model=YOLO(r.best).model))
        for r in yolo.trainer.trainers
    )


def test_what_is_refused_for_each_of_several_data_sets_is_told_and_leaves_no_model(
    own_folder: Path, tiny_data: Path, yolo: YOLO, caplog: pytest.LogCaptureFixture
) -> None:
    soon(0.99).attach(yolo)
    assert list(yolo.train(data=[str(tiny_data)], epochs=4, imgsz=64, project=own_folder).values()) == [None]
    assert "fine-tuning on" in caplog.text and "is the least that can be reached" in caplog.text
    assert not list(own_folder.rglob("*.pt"))
