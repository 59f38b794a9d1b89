"""The live run: the one place that touches an Ultralytics trainer.

What happens at a cut, in this order and all or nothing:

    plan -> slice model, EMA and optimizer -> recalibrate BatchNorm -> validate -> write last.pt -> retire best.pt

Cuts fall at ``on_train_epoch_start``: after the previous epoch has been validated and saved, before its successor's
learning rate is set. Whatever fails is undone, and the trainer is as it was.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, RANK, colorstr
from ultralytics.utils.torch_utils import autocast, strip_optimizer, unwrap_model

from yolo_prune import checkpoint
from yolo_prune.allocation import check_reachable
from yolo_prune.config import PruneConfig
from yolo_prune.cost import CostModel
from yolo_prune.errors import CheckpointError, CutError, ExportError, PruneError, TargetError, UnsupportedError
from yolo_prune.export import check_formats, export_all
from yolo_prune.graph import trace
from yolo_prune.plan import PrunePlan
from yolo_prune.planner import plan_cut
from yolo_prune.recalibration import recalibrate
from yolo_prune.report import CutRecord, Report, Stage
from yolo_prune.schedule import Cut as ScheduledCut
from yolo_prune.schedule import cuts as schedule_cuts
from yolo_prune.surgery import Cut, cut

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.engine.trainer import BaseTrainer

PREFIX = colorstr("prune:") + " "

_REFUSED: dict[str, tuple[Callable[[BaseTrainer], bool], str]] = {
    "several GPUs": (lambda t: t.world_size > 1, "use one device"),
    "compile": (
        lambda t: bool(t.args.compile),
        "train with compile=False; the pruned model can be compiled afterwards",
    ),
    "distill_model": (lambda t: t.args.distill_model is not None, "distil in a second run: prune=0 with distill_model"),
    "quantize=8 (QAT)": (lambda t: t.args.quantize == 8, "train without it and quantize the pruned best.pt at export"),
    "time": (lambda t: bool(t.args.time), "give epochs instead: cuts are scheduled in epochs"),
}
"""Features of the host that do not work across a cut yet: name -> (whether a run uses it, the way out)."""


def prepare(trainer: BaseTrainer, config: PruneConfig | None) -> None:
    """Before the network is built: refuse what cannot work, and let pruned checkpoints be rebuilt pruned.

    Raises:
        UnsupportedError: If the run uses a feature that cannot be combined with pruning.
        ConfigError: If the schedule does not fit the run's epochs.
    """
    if config is None or config.target:
        _refuse_unsupported(trainer)
    if config is not None:
        check_formats(config.export)
        _schedule(config, trainer.epochs)
    trainer.get_model = partial(_get_model, trainer.get_model)


def _get_model(
    stock: Callable[..., nn.Module], cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True
) -> nn.Module:
    """Stand in for a trainer's ``get_model``: the same, but pruned networks stay pruned."""
    if not checkpoint.is_pruned(cfg):
        return stock(cfg=cfg, weights=weights, verbose=verbose)
    model = checkpoint.rebuild(stock, cfg, weights)
    if verbose and RANK in {-1, 0}:
        LOGGER.info(f"{PREFIX}the checkpoint is pruned, and its network is rebuilt pruned")
        model.info()
    return model


def _refuse_unsupported(trainer: BaseTrainer) -> None:
    for name, (is_used, way_out) in _REFUSED.items():
        if is_used(trainer):
            raise UnsupportedError(f"pruning cannot be combined with {name} yet: {way_out}.")


def _schedule(config: PruneConfig, epochs: int) -> list[ScheduledCut]:
    return schedule_cuts(
        epochs=epochs,
        target=config.target,
        start=config.start,
        end=config.end,
        steps=config.steps,
        schedule=config.schedule,
    )


class Session:
    """One run, from the moment that its network, optimizer and EMA exist.

    Args:
        trainer: A trainer at ``on_pretrain_routine_end``.
        config: The knobs, or None to take them from the checkpoint that is resumed.

    Raises:
        CheckpointError: If there is nothing to resume, or no configuration.
        UnsupportedError: If the network or the run cannot be pruned.
        TargetError: If the target cannot be reached.
    """

    def __init__(self, trainer: BaseTrainer, config: PruneConfig | None) -> None:
        model = unwrap_model(trainer.model)
        noted = checkpoint.run_record(getattr(model, "yaml", None)) if trainer.resume else None
        self.imgsz: int = trainer.args.imgsz
        self.dense_widths: dict[str, int] = {}
        self.config: PruneConfig
        self.report: Report
        self._complaint: PruneError | None = None
        self._in_epoch = False
        if noted:
            self._continue(noted)
            self._note_recovered(trainer)
            if config not in (None, self.config):
                LOGGER.warning(f"{PREFIX}a resumed run keeps its own configuration, the given one is not used")
        elif config is None:
            raise CheckpointError(
                f"{trainer.args.model} holds no pruning run to continue; say how much to remove, e.g. prune=0.5."
            )
        else:
            self.config = config
            self.report = Report([self.imgsz, self.imgsz], Stage(), self.config.to_dict())
        self.schedule = _schedule(self.config, trainer.epochs)
        if self.schedule and not noted:
            _refuse_unsupported(trainer)  # again: on other ranks than 0, `prepare` has not been called
            self._begin(model)
            for stale in (trainer.save_dir / "pruning").glob("*.json"):
                stale.unlink()  # an earlier run with exist_ok=True may have made more cuts

    def _begin(self, model: nn.Module) -> None:
        """Look at the dense network, and refuse a target that it cannot reach."""
        graph = trace(model, self.imgsz, self.config.is_ignored)
        cost = CostModel(graph)
        target = cost.macs() * (1 - self.config.target)
        check_reachable(graph, target, self.config.round_to, self.config.max_pruning_ratio)
        self.dense_widths = {path: layer.out for path, layer in graph.layers.items()}
        self.report.dense = Stage(cost.macs(), cost.params())
        model.yaml = checkpoint.with_run(model.yaml, self._note())

    def _continue(self, noted: dict[str, Any]) -> None:
        """Take over what an interrupted run noted in its checkpoint."""
        try:
            self.config = PruneConfig.from_dict(noted["config"])
            self.dense_widths = dict(noted["dense_widths"])
            self.report = Report.from_dict(noted["report"])
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"what the interrupted run noted in its checkpoint cannot be read ({type(e).__name__}: {e}); resume it "
                "with the version of yolo_prune that it was started with."
            ) from e

    @property
    def pending(self) -> list[ScheduledCut]:
        """Cuts that have not been made yet."""
        return self.schedule[len(self.report.cuts) :]

    def before_epoch(self, trainer: BaseTrainer) -> None:
        """Cut if the schedule says so; a repeated epoch (after a NaN, or out of memory) is not cut again."""
        self._in_epoch = True
        if self.pending and trainer.epoch >= self.pending[0].epoch:
            self._cut(trainer, self.pending[0].way)

    def after_epoch(self, trainer: BaseTrainer) -> None:
        """Note the fitness of the stage, and do not let early stopping end the run before the last cut."""
        if not self._in_epoch:
            return  # the final validation fires the event once more
        self._in_epoch = False
        self._note_recovered(trainer)
        if not self.pending:
            return
        upcoming, stopper = trainer.epoch + 1, trainer.stopper
        if trainer.stop and upcoming < trainer.epochs and upcoming - stopper.best_epoch >= stopper.patience:
            trainer.stop = False
            self.schedule[len(self.report.cuts)] = ScheduledCut(upcoming, self.pending[0].way)
            self._log(f"patience ran out before the last cut: the next one comes early, at epoch {upcoming}")

    def finish(self, trainer: BaseTrainer) -> None:
        """After the final validation: export, write the report, print the tables."""
        best = trainer.best if trainer.best.exists() else trainer.last
        self.report.final = final = _final_stage(best, self.imgsz)
        fitness = getattr(getattr(trainer.validator, "metrics", None), "fitness", None)
        final.fitness = None if fitness is None else float(fitness)
        if not self.schedule:
            self.report.dense = final  # nothing was cut
        folder = trainer.save_dir / "pruning"
        path = self.report.save(folder)
        if self.schedule:
            self._log(f"done\n{self.report.table()}")
        if self.pending:
            self._complaint = TargetError(
                f"the run was stopped at epoch {trainer.epoch + 1} of {trainer.epochs} with {len(self.pending)} of "
                f"{len(self.schedule)} cuts not made, so {best} is not the model that was asked for; train it on with "
                "the rest as target, or start anew."
            )
        if self.config.export:
            self.report.exports = export_all(best, self.config.export, _validation_images(trainer))
            path = self.report.save(folder)
            self._log(f"exports, largest difference to {best.name}\n{self.report.export_table()}")
            if failed := [f"{e.format}: {e.reason}" for e in self.report.exports if not e.ok]:
                self._complaint = self._complaint or ExportError("; ".join(failed))
        self._log(f"checkpoint {best}, report {path}")

    def close(self) -> None:
        """Raise what went wrong, now that everything else is done and saved.

        Raises:
            TargetError: If the run was stopped before its last cut.
            ExportError: If an asked export was not made or disagrees with the checkpoint.
        """
        if self._complaint:
            raise self._complaint

    # A cut ------------------------------------------------------------------------------------------------------------

    def _cut(self, trainer: BaseTrainer, way: float) -> None:
        """Make one cut, or leave everything as it was.

        Raises:
            CutError: If anything failed; the trainer is as it was.
        """
        started = time.time()
        done = Cut()
        with _preserved_rng():
            try:
                if not self.report.cuts:
                    self._note_dense(trainer)
                plan = self._plan(trainer, way)
                record = self._apply(trainer, plan, done)
                record.seconds = round(time.time() - started, 2)
                self._keep(trainer, plan, record, done)
            except BaseException as e:  # an interrupt, too, must not leave half a cut
                done.undo()
                if not isinstance(e, Exception):
                    raise
                raise CutError(
                    f"cut {len(self.report.cuts) + 1} of {len(self.schedule)} at epoch {trainer.epoch} failed and was "
                    f"taken back; {trainer.last} can be resumed. {type(e).__name__}: {e}"
                ) from e
        trainer.best.unlink(missing_ok=True)  # the model of before this cut
        self._log(
            f"cut {len(self.report.cuts)}/{len(self.schedule)} at epoch {trainer.epoch}: "
            f"MACs {_from_to(plan.macs, 1e9, 'G')}, params {_from_to(plan.params, 1e6, 'M')}, "
            f"fitness {'not validated' if record.fitness_cut is None else f'{record.fitness_cut:.3f}'}, "
            f"{len(record.locked)} layers locked, {record.seconds:.1f} s"
        )

    def _plan(self, trainer: BaseTrainer, way: float) -> PrunePlan:
        dense = self.report.dense.macs
        assert dense is not None  # counted when the run began
        target = dense * (1 - self.config.target * way)
        return plan_cut(unwrap_model(trainer.model), self.config, self.imgsz, target, self.dense_widths)

    def _apply(self, trainer: BaseTrainer, plan: PrunePlan, done: Cut) -> CutRecord:
        """Slice, recalibrate and validate."""
        model, ema = unwrap_model(trainer.model), trainer.ema.ema
        done.extend(cut(plan, [model, ema], trainer.optimizer))
        done.set(trainer.ema, "_pairs", None)  # it caches the old tensors
        if self.config.bn_recalibration:
            images = (batch["img"] for batch in _training_batches(trainer, self.config.bn_recalibration))
            amp = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
            with autocast(amp, device=trainer.device.type):
                recalibrate(done, (model, ema), images, trainer.freeze_layer_names)
        for name, fresh in (
            ("best_fitness", None),
            ("stopper", type(trainer.stopper)(patience=trainer.args.patience)),
            ("fitness", None),
            ("metrics", trainer.metrics),
        ):
            done.set(trainer, name, fresh)
        if trainer.args.val:
            trainer.metrics, trainer.fitness = _validate(trainer)
        return CutRecord(
            epoch=trainer.epoch,
            macs=plan.macs["after"],
            params=plan.params["after"],
            bytes=_checkpoint_bytes(ema),
            fitness_cut=trainer.fitness,
            fitness_recovered=None,
            plan_sha256=plan.sha256,
            locked=plan.locked,
            seconds=0.0,
        )

    def _keep(self, trainer: BaseTrainer, plan: PrunePlan, record: CutRecord, done: Cut) -> None:
        """Write down what was cut; from here on an interrupted run continues with the cut network."""
        done.set(self.report, "cuts", [*self.report.cuts, record])
        model, ema = unwrap_model(trainer.model), trainer.ema.ema
        yaml = checkpoint.marked(model, self._note())
        for network in (model, ema):
            done.set(network, "yaml", yaml)
        folder = trainer.save_dir / "pruning"
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / f"plan-{len(self.report.cuts)}.json")
        self.report.save(folder)
        if trainer.args.save and trainer.epoch > 0:
            _save_checkpoint(trainer, trainer.last, epoch=trainer.epoch - 1)

    def _note_recovered(self, trainer: BaseTrainer) -> None:
        """Note the best fitness since the last cut."""
        if self.report.cuts:
            best = trainer.best_fitness
            self.report.cuts[-1].fitness_recovered = None if best is None else float(best)

    def _note_dense(self, trainer: BaseTrainer) -> None:
        """Note the dense network's fitness and file, just before the first cut."""
        dense = self.report.dense
        fitness = trainer.best_fitness
        if fitness is None and trainer.args.val:
            _, fitness = _validate(trainer)
        path = trainer.wdir / "dense.pt"
        is_of_this_run = trainer.best_fitness is not None and trainer.args.save
        if is_of_this_run and trainer.best.exists():
            strip_optimizer(trainer.best, s=str(path))
        else:
            with _kept(trainer, "metrics"):
                trainer.metrics = trainer.metrics or {}
                _save_checkpoint(trainer, path, epoch=trainer.epoch - 1)
            strip_optimizer(path)
        dense.fitness = None if fitness is None else float(fitness)
        dense.bytes, dense.checkpoint = path.stat().st_size, str(path)

    def _note(self) -> dict[str, Any]:
        """Return what an interrupted run needs to go on."""
        return {
            "config": self.config.to_dict(),
            "dense_widths": self.dense_widths,
            "report": {k: v for k, v in self.report.to_dict().items() if k in {"imgsz", "dense", "config", "cuts"}},
        }

    def _log(self, text: str) -> None:
        if self.config.verbose and RANK in {-1, 0}:
            LOGGER.info(f"{PREFIX}{text}")


def _save_checkpoint(trainer: BaseTrainer, path: Path, epoch: int) -> None:
    """Write a training checkpoint with Ultralytics' own code, so that no reader ever sees half of it.

    Args:
        trainer: What to save.
        path: Where to; a file that is there stays as it is until the new one is complete.
        epoch: The last epoch that is finished, counted from 0: a resume starts with the one after it.
    """
    draft = path.with_suffix(".part")
    try:
        with _kept(trainer, "last", "best", "save_period", "epoch"):
            trainer.last, trainer.best, trainer.save_period, trainer.epoch = draft, draft, -1, epoch
            trainer.save_model()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _validate(trainer: BaseTrainer) -> tuple[dict[str, float], float]:
    """Validate the EMA and return (metrics, fitness), without touching the trainer's record of them."""
    if not hasattr(trainer, "loss_items"):  # before a run's first batch; the validator reads the names of the losses
        with torch.no_grad():
            _, trainer.loss_items = trainer.ema.ema.loss(next(_training_batches(trainer, 1)))
    with _kept(trainer.validator.args, "plots"):
        trainer.validator.args.plots = False
        metrics = trainer.validator(trainer)
    fitness = float(metrics.pop("fitness"))
    return metrics, fitness


def _final_stage(best: Path, imgsz: int) -> Stage:
    """Return the figures of a checkpoint; where nothing was cut, it may be of a kind that cannot be traced."""
    network, _ = load_checkpoint(best)
    stage = Stage(params=sum(p.numel() for p in network.parameters()), bytes=best.stat().st_size, checkpoint=str(best))
    with suppress(UnsupportedError):
        stage.macs = CostModel(trace(network, imgsz)).macs()
    return stage


def _checkpoint_bytes(network: nn.Module) -> int:
    """Return the size of a network as Ultralytics ships it: FP16, without optimizer."""
    buffer = io.BytesIO()
    torch.save({"model": deepcopy(network).half()}, buffer)
    return buffer.tell()


def _training_batches(trainer: BaseTrainer, batches: int) -> Iterator[dict[str, Any]]:
    """Yield preprocessed batches as training sees them, without moving the run's own loader."""
    loader = trainer.train_loader
    own = torch.utils.data.DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=torch.utils.data.RandomSampler(
            loader.dataset, generator=torch.Generator().manual_seed(trainer.args.seed)
        ),
        collate_fn=loader.collate_fn,
    )
    for _, batch in zip(range(batches), own, strict=False):
        yield trainer.preprocess_batch(batch)


def _validation_images(trainer: BaseTrainer, limit: int = 4) -> torch.Tensor:
    """Return a few validation images of shape (B, C, imgsz, imgsz), scaled to 0..1, on the CPU."""
    images = [trainer.test_loader.dataset[i]["img"] for i in range(min(limit, len(trainer.test_loader.dataset)))]
    size = (trainer.args.imgsz, trainer.args.imgsz)
    floats = [image.float() / (255 if image.dtype == torch.uint8 else 1) for image in images]
    return torch.cat([torch.nn.functional.interpolate(x[None], size, mode="bilinear") for x in floats])


def _from_to(cost: dict[str, int], unit: float, name: str) -> str:
    """Return ``1.62G -> 1.21G (-25.3%)``."""
    before, after = cost["before"], cost["after"]
    return f"{before / unit:.3g}{name} -> {after / unit:.3g}{name} ({after / before - 1:+.1%})"


@contextmanager
def _kept(owner: Any, *names: str) -> Iterator[None]:
    """Put attributes back at the end."""
    old = {name: getattr(owner, name) for name in names}
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(owner, name, value)


@contextmanager
def _preserved_rng() -> Iterator[None]:
    """Leave all random states as they were: a cut must not change what the run draws next."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
