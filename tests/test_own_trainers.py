"""Trainers, losses, optimizers and callbacks as users write them: they prune, or are refused before the first epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import build, tiny_yaml
from torch import nn
from torch.nn import functional as F
from trainings import DEFAULTS, Run, report_of, soon
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune import PruneCallback, prune_model
from yolo_prune.errors import ConfigError, TargetError, UnsupportedError
from yolo_prune.plan import PrunePlan
from yolo_prune.surgery.slicing import check_optimizer

EPOCHS: list[int] = []
"""Epochs that were begun in a test."""


@pytest.fixture(autouse=True)
def no_epochs() -> None:
    EPOCHS.clear()


@pytest.fixture
def saved(own_folder: Path) -> Path:
    """A checkpoint of the tiny model."""
    YOLO(tiny_yaml(own_folder)).save(own_folder / "saved.pt")
    return own_folder / "saved.pt"


class Counting(DetectionTrainer):
    def _model_train(self) -> None:
        EPOCHS.append(self.epoch)
        super()._model_train()


# get_model ------------------------------------------------------------------------------------------------------------


class Terse(Counting):
    """Takes no ``verbose``, which Ultralytics does not always give."""

    def get_model(self, cfg: Any = None, weights: Any = None) -> nn.Module:
        return super().get_model(cfg, weights, verbose=False)


class Synchronised(Counting):
    def get_model(self, *arguments: Any, **keywords: Any) -> nn.Module:
        return nn.SyncBatchNorm.convert_sync_batchnorm(super().get_model(*arguments, **keywords))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [Terse, Synchronised])
def test_a_get_model_of_the_users_own_is_called_as_ultralytics_calls_it(run: Run, saved: Path, trainer: type) -> None:
    # From a YAML, Ultralytics itself gives ``verbose``.
    first = run(YOLO(saved), soon(**DEFAULTS), trainer=trainer, epochs=3)
    assert [cut["epoch"] for cut in report_of(first)["cuts"]] == [1, 2]
    widths = {name: p.shape for name, p in load_checkpoint(first.best)[0].named_parameters()}
    again = run(YOLO(first.best), PruneCallback(0), trainer=trainer, epochs=1)
    assert {name: p.shape for name, p in unwrap_model(again.model).named_parameters()} == widths


# What reads feature maps outside of the forward pass ------------------------------------------------------------------


class Auxiliary(DetectionModel):
    """Has a layer on a feature map that its loss alone runs."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.aux = nn.Conv2d(self.model[4].cv2.conv.out_channels, 2, 1)
        self.seen: list[torch.Tensor] = []

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def loss(self, batch: dict[str, Any], preds: Any = None) -> Any:
        if preds is not None:  # in validation
            return super().loss(batch, preds)
        hook = self.model[4].register_forward_hook(lambda *call: self.seen.append(call[-1]))
        total, items = super().loss(batch, preds)
        hook.remove()
        return total + self.aux(self.prepared(self.seen.pop())).square().mean(), items


class Resized(Auxiliary):
    """Its layer takes something that was made of a feature map."""

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2)


class WithAuxiliary(Counting):
    kind: type[DetectionModel] = Auxiliary

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        model = self.kind(cfg, nc=self.data["nc"], verbose=False)
        if weights:
            model.load(weights)
        return model


class WithResized(WithAuxiliary):
    kind = Resized


class WithAdaptor(Counting):
    """Distils by hand: it owns an adaptor on a feature map that it takes by a hook."""

    def _setup_train(self) -> None:
        super()._setup_train()
        model, maps = unwrap_model(self.model), {}
        model.model[6].register_forward_hook(lambda module, taken, made: maps.update(p4=made))
        self.adaptor = nn.Conv2d(model.model[6].cv2.conv.out_channels, 3, 1)
        stock = model.loss

        def loss(batch: dict[str, Any], preds: Any = None) -> Any:
            total, items = stock(batch, preds)
            return total + self.adaptor(maps["p4"]).square().mean(), items

        model.loss = loss


@pytest.mark.slow
def test_an_auxiliary_layer_of_the_network_is_cut_along(run: Run) -> None:
    trainer = run(prune=soon(importance="l2", allocation="uniform"), trainer=WithAuxiliary, epochs=3)
    model = unwrap_model(trainer.model)
    plans = [PrunePlan.load(trainer.save_dir / "pruning" / f"plan-{i}.json") for i in (1, 2)]
    assert any("aux" in plan.layers for plan in plans)
    assert model.aux.in_channels == model.model[4].cv2.conv.out_channels == model.aux.weight.shape[1] < 48
    for plan in plans:
        made = plan.layers.get("model.4.cv2.conv", {}).get("out")
        is_whole = made is not None and len(made) == plan.widths["model.4.cv2.conv"]["out"]
        assert plan.layers.get("aux", {}).get("in", made if is_whole else None) == made
    again = run(YOLO(trainer.best), PruneCallback(0), trainer=WithAuxiliary, epochs=1)
    assert unwrap_model(again.model).aux.in_channels == model.aux.in_channels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "broken", "source"),
    [
        (WithResized, r"aux \(Conv2d\) reads a feature map", ""),
        (WithAdaptor, r"trainer\.adaptor \(Conv2d\) takes what model\.6", "model.6"),
    ],
)
def test_what_cannot_follow_a_cut_is_refused_with_the_layers_to_leave(
    run: Run, trainer: type, broken: str, source: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"{broken}.*ignored_layers=") as refused:
        run(prune=soon(), trainer=trainer, epochs=3)
    assert not EPOCHS, "no epoch has begun"
    whole = str(refused.value).partition("ignored_layers=")[2].partition(", or")[0].split(",")
    assert whole and all(layer.startswith(f"{source or 'model'}.") for layer in whole)
    done = run(prune=soon(0.2, ignored_layers=tuple(whole)), trainer=trainer, epochs=3)
    assert len(report_of(done)["cuts"]) == 2


@pytest.mark.slow
def test_a_trial_leaves_no_trace_in_the_run(run: Run) -> None:
    ends = []
    for kind in (Counting, WithAuxiliary):
        pruned = run(prune=soon(start=0.75, steps=1, end=0.75), trainer=kind, epochs=4, seed=3)
        dense = run(trainer=kind, epochs=4, seed=3)
        rows = [trainer.csv.read_text().splitlines()[1:4] for trainer in (pruned, dense)]
        keep = [[row.split(",")[2:5] for row in part] for part in rows]  # the losses of the epochs before the cut
        ends.append(keep[0] == keep[1])
    assert ends == [True, True]


class OnlyInItsLoop(Counting):
    """Its loss needs what the trainer's own loop sets."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**super().preprocess_batch(batch), "epoch": self.epoch if EPOCHS else None}

    def _setup_train(self) -> None:
        super()._setup_train()
        model = unwrap_model(self.model)
        stock = model.loss

        def loss(batch: dict[str, Any], preds: Any = None) -> Any:
            total, items = stock(batch, preds)
            return total * (1 + 0 * batch["epoch"]), items

        model.loss = loss


@pytest.mark.slow
def test_a_loss_that_works_in_its_own_loop_only_is_no_reason_to_refuse(run: Run) -> None:
    assert len(report_of(run(prune=soon(), trainer=OnlyInItsLoop, epochs=3))["cuts"]) == 2


def test_without_data_a_layer_that_no_forward_pass_runs_is_refused(own_folder: Path) -> None:
    model = Auxiliary(tiny_yaml(own_folder), nc=3, verbose=False)
    with pytest.raises(UnsupportedError, match=r"aux belongs to the network.*give data="):
        prune_model(model, 0.3, imgsz=64)


# Optimizers, images, schedulers ---------------------------------------------------------------------------------------


class Factored(Counting):
    def build_optimizer(self, model: nn.Module, *arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        stock = super().build_optimizer(model, *arguments, **keywords)
        groups = [{"params": g["params"], "param_group": g.get("param_group")} for g in stock.param_groups]
        return torch.optim.Adafactor(groups, lr=1e-3)


class Nested(torch.optim.SGD):
    """Remembers a list of tensors."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["both"] = [torch.zeros_like(p), torch.zeros(7)]


@pytest.mark.slow
def test_an_optimizer_whose_state_is_factored_is_refused_before_training(run: Run) -> None:
    with pytest.raises(UnsupportedError, match=r"Adafactor keeps 'row_var'.*use SGD, MuSGD or an Adam"):
        run(prune=soon(), trainer=Factored, epochs=3)
    assert not EPOCHS


def test_an_optimizer_is_tried_on_copies() -> None:
    model = build("yolov8n")
    before = {name: p.clone() for name, p in model.named_parameters()}
    for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam):
        optimizer = kind(model.parameters(), lr=1.0)
        optimizer.register_step_pre_hook(lambda *_: pytest.fail("the run's own hooks are not called"))
        check_optimizer(optimizer)
        assert not optimizer.state
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(UnsupportedError, match="Nested keeps 'both' of shape \\(7,\\)"):
        check_optimizer(Nested(model.parameters(), lr=1.0))


@pytest.mark.slow
def test_too_few_images_to_judge_by_are_refused_before_training(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"4 images make one batch.*raise calibration"):
        run(prune=soon(allocation="sensitivity"), trainer=Counting, epochs=3)
    assert not EPOCHS


class OwnScheduler(Counting):
    def _setup_scheduler(self) -> None:
        super()._setup_scheduler()
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)


@pytest.mark.slow
def test_a_learning_rate_that_cannot_be_bent_is_refused_before_training(run: Run) -> None:
    with pytest.raises(UnsupportedError, match=r"this run's scheduler is a StepLR; use lr_after_cut=keep"):
        run(prune=soon(lr_after_cut="rewind"), trainer=OwnScheduler, epochs=3)
    assert not EPOCHS
    assert report_of(run(prune=soon(), trainer=OwnScheduler, epochs=3))["cuts"]


# Callbacks ------------------------------------------------------------------------------------------------------------


def attached(folder: Path) -> YOLO:
    yolo = YOLO(tiny_yaml(folder))
    soon().attach(yolo)
    return yolo


@pytest.mark.slow
def test_callbacks_that_were_reset_are_told_of_before_training(run: Run, own_folder: Path) -> None:
    yolo = attached(own_folder)
    yolo.reset_callbacks()
    with pytest.raises(UnsupportedError, match=r"is not told of on_pretrain_routine_start.*call attach\(model\) again"):
        run(yolo, trainer=Counting)
    assert not EPOCHS
    soon().attach(yolo)
    assert report_of(run(yolo, trainer=Counting, epochs=3))["cuts"]


@pytest.mark.slow
@pytest.mark.parametrize("event", ["on_pretrain_routine_start", "on_train_epoch_start", "on_train_end", "teardown"])
def test_an_event_that_was_cleared_is_told_of_before_training(run: Run, own_folder: Path, event: str) -> None:
    yolo = attached(own_folder)
    yolo.clear_callback(event)
    with pytest.raises(UnsupportedError, match=rf"is not told of {event}: .*clear_callback"):
        run(yolo, trainer=Counting)
    assert not EPOCHS


@pytest.mark.slow
def test_events_added_by_hand_and_removed_are_told_of(run: Run, own_folder: Path) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    for event, function in soon().events.items():
        if event != "on_train_epoch_start":
            yolo.add_callback(event, function)
    with pytest.raises(UnsupportedError, match="is not told of on_train_epoch_start"):
        run(yolo, trainer=Counting)
    assert not EPOCHS


@pytest.mark.slow
def test_a_run_that_something_stops_says_at_once_what_is_missing(
    run: Run, own_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    yolo = attached(own_folder)
    yolo.add_callback("on_fit_epoch_end", lambda trainer: setattr(trainer, "stop", trainer.epoch == 1))
    validated: list[int] = []
    yolo.add_callback("on_val_start", lambda validator: validated.append(len(caplog.records)))
    with pytest.raises(TargetError, match=r"stopped at epoch 2 of 4 with 1 of 2 cuts not made"):
        run(yolo)
    told = [i for i, record in enumerate(caplog.records) if "with 1 of 2 cuts not made" in record.getMessage()]
    assert told, "the log says so"
    assert told[0] < validated[-1], "before the final validation"


# Networks that were used before ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_that_predicted_is_read_again_and_one_that_cannot_be_is_refused(
    run: Run, saved: Path, tiny_data: Path
) -> None:
    yolo, fresh = YOLO(saved), YOLO(saved)
    yolo.predict(torch.zeros(1, 3, 64, 64), verbose=False)
    assert prune_model(yolo, 0.3, imgsz=64).plan == prune_model(fresh, 0.3, imgsz=64).plan
    trainer = run(yolo, PruneCallback(0), epochs=1)
    assert trainer.best.exists()

    gone = YOLO(saved)
    gone.fuse()
    with torch.no_grad():
        gone.model.model[0].conv.weight.mul_(2)  # not what the file holds
    for arguments in ({}, {"data": tiny_data}):
        with pytest.raises(UnsupportedError, match=r"the network is fused.*Load it anew"):
            prune_model(gone, 0.3, imgsz=64, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_a_wrapped_network_is_unwrapped(run: Run, saved: Path, wrap: Any) -> None:
    yolo, plain = YOLO(saved), YOLO(saved)
    yolo.model = wrap(yolo.model)
    assert prune_model(yolo, 0.3, imgsz=64).plan == prune_model(plain, 0.3, imgsz=64).plan
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(yolo.model.eval()(x)[0], plain.model.eval()(x)[0])
    again = YOLO(saved)
    again.model = wrap(again.model)
    assert report_of(run(again, soon(), epochs=3))["cuts"]
