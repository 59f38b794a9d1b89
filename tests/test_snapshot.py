from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import assert_same_tensors, build, fast_and_slow, labelled_batches, make, state
from ultralytics.utils.torch_utils import EarlyStopping, ModelEMA

from yolo_prune.surgery.slicing import cut
from yolo_prune.training.snapshot import Snapshot


def trainer_of(family: str, optimizer: type[torch.optim.Optimizer], folder: Path) -> Any:
    """Return what a snapshot reads of a trainer."""
    model = build(family).train()
    groups = [{"params": list(model.parameters()), "lr": 0.01, "param_group": "weight"}]
    return SimpleNamespace(
        model=model,
        ema=ModelEMA(model),
        optimizer=optimizer(groups, lr=0.01),
        best_fitness=0.5,
        fitness=0.4,
        metrics={"a": 1.0},
        freeze_layer_names=[".dfl"],
        loss_names=("box_loss",),
        args=SimpleNamespace(distill_model=None),
        stopper=EarlyStopping(3),
        best=folder / "best.pt",
    )


def step(trainer: Any) -> None:
    loss, _ = trainer.model(labelled_batches()[0])
    loss.sum().backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.ema.update(trainer.model)


def everything(trainer: Any) -> dict[str, torch.Tensor]:
    moments = trainer.optimizer.state_dict()["state"]
    return {
        **state(trainer.model),
        **{f"ema.{k}": v for k, v in state(trainer.ema.ema).items()},
        **{f"{i}.{k}": torch.as_tensor(v).clone() for i, kept in moments.items() for k, v in kept.items()},
    }


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolov8n", "yolo11n"))
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_going_back_restores_every_tensor_after_a_cut_and_training(
    family: str, optimizer: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    trainer = trainer_of(family, optimizer, tmp_path)
    trainer.best.write_bytes(b"good")
    step(trainer)
    model, ema = trainer.model, trainer.ema.ema
    before, widths = everything(trainer), [m.__dict__.get("out_channels") for m in model.modules()]
    good = Snapshot(trainer)

    cut(make(model, 0.5), [model, ema], trainer.optimizer)
    trainer.ema._pairs = None
    step(trainer)
    trainer.best_fitness, trainer.stopper = None, EarlyStopping(9)
    trainer.best.write_bytes(b"bad")
    assert sum(p.numel() for p in model.parameters()) < sum(v.numel() for k, v in before.items() if k[:3] == "mod")

    for _ in range(2):  # a snapshot can be used more than once
        good.restore(trainer)
        assert trainer.model is model and trainer.ema.ema is ema
        assert_same_tensors(before, everything(trainer))
        assert widths == [m.__dict__.get("out_channels") for m in model.modules()]
        assert trainer.best_fitness == 0.5 and trainer.stopper.patience == 3
        assert trainer.best.read_bytes() == b"good"
        step(trainer)  # the optimizer holds the parameters that are trained
        assert not torch.equal(before["model.0.conv.weight"], model.model[0].conv.weight)


def test_a_best_checkpoint_that_was_not_there_is_gone_again(tmp_path: Path) -> None:
    trainer = trainer_of("yolov8n", torch.optim.SGD, tmp_path)
    good = Snapshot(trainer)
    trainer.best.write_bytes(b"bad")
    good.restore(trainer)
    assert not trainer.best.exists()
