"""Steps of a run between two epochs: a cut, the step to INT8, and rolling back the latest cut.

A cut goes, all or nothing, in this order:

    plan -> slice model, EMA and optimizer -> reconstruct -> validate -> write last.pt -> retire best.pt
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.cost.budget import file_bytes
from yolo_prune.errors import CutError
from yolo_prune.graph.zeros import share_of_zeros, sparse_layers
from yolo_prune.host import ddp, distillation, qat
from yolo_prune.host.checkpoint import load_network
from yolo_prune.host.distillation import wrapped_plan
from yolo_prune.host.trainer import Randomness, calibration_batches, preserved_rng, save_checkpoint, validate
from yolo_prune.importance.gradients import Gradients
from yolo_prune.importance.statistics import sampled_outputs
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.latency_fit import PlannedCut
from yolo_prune.planning.planner import plan_traced
from yolo_prune.planning.zeros import DENSITY, held_zeros, plan_zeros, set_zeros
from yolo_prune.report.records import CutRecord, QuantizationRecord
from yolo_prune.surgery.reconstruction import Targets, reconstruct
from yolo_prune.surgery.rewinding import recall, remember, rewind
from yolo_prune.surgery.slicing import UndoLog, cut
from yolo_prune.surgery.zeros import LayerZeros
from yolo_prune.training.latency_feedback import LatencyFeedback
from yolo_prune.training.rehearsal import check_step
from yolo_prune.training.run_files import note_dense, save_run
from yolo_prune.training.schedule import ScheduledCut
from yolo_prune.training.snapshot import Snapshot
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.memory import borrowed_memory
from yolo_prune.utils.text import count

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.plan import PrunePlan
    from yolo_prune.training.guard import Guard
    from yolo_prune.training.run import Run


PLANNING, SOLVING = 2, 1
"""Shares of a cut's time, about."""


def prune_step(run: Run, fraction: float) -> None:
    """Make one cut, or leave everything as it was.

    Args:
        run: Between two epochs.
        fraction: Of the target, which is reached after this cut.

    Raises:
        CutError: If anything failed; the trainer is as it was.
    """
    started, trainer, progress = time.time(), run.trainer, run.progress
    name = f"cut {len(run.report.cuts) + 1} of {len(progress.schedule)}"
    with (
        borrowed_memory(),
        _all_or_nothing(trainer, name) as (undo, randomness),
        progress_bar(name, PLANNING + SOLVING),
    ):
        if run.report.dense.checkpoint is None:
            note_dense(run)
        with ddp.all_or_none("looking at calibration images"):
            batches = calibration_batches(trainer, run.config.calibration)
        density = DENSITY if run.config.zeros else 1
        data = CalibrationData(run.ema, batches, run.gradients.of(run.model, run.ema), run.readers or {}, density)
        with progress_bar("planning", 1, share=PLANNING):
            planned = ddp.on_rank_zero(lambda: _plan(run, fraction, data))
        if progress.guard:
            undo.set(run, "before_cut", Snapshot(trainer))
            undo.set(progress, "deadline", _deadline(run, progress.guard))
        record = _apply(run, planned, undo, data, fraction)
        record.seconds = round(time.time() - started, 2)
        _commit(run, planned.plan, record, undo, randomness)
    if run.sparsity:
        run.sparsity.detach()
        run.sparsity = None
    changes = []
    if progress.goal.amounts:
        changes.append(
            f"MACs {_from_to(planned.plan.macs)}, params {_from_to(planned.plan.params)}, {len(record.locked)} layers "
            "locked"
        )
    if record.blocks:
        changes.append(f"{len(record.blocks)} blocks removed")
    if record.sparsity is not None:
        changes.append(f"{record.sparsity:.1%} of the weights are zero")
    name = f"cut {len(run.report.cuts)}" + ("" if run.config.is_auto else f"/{len(progress.schedule)}")
    run.log(
        f"{name} at epoch {trainer.epoch}: {', '.join(changes)}, "
        f"fitness {_score(record.fitness_cut)}, {record.seconds:.1f} s"
    )


def _deadline(run: Run, guard: Guard) -> int:
    """Return the epoch before which the cut that is being made is judged."""
    progress = run.progress
    if guard.is_search:
        _, last, length = progress.attempts
        judged = run.epoch + length
        return judged if judged <= last else progress.float_epochs
    after = progress.pending[1].epoch if len(progress.pending) > 1 else None
    return guard.deadline(run.epoch, after, progress.float_epochs)


def quantize_step(run: Run) -> None:
    """Let the rest of the run be quantization-aware, or leave everything as it was.

    Raises:
        CutError: If anything failed; the trainer is as it was.
    """
    trainer = run.trainer
    started, best = time.time(), ddp.broadcast(trainer.best_fitness)
    with _all_or_nothing(trainer, "the step to INT8") as (undo, randomness):
        if run.report.dense.checkpoint is None:
            note_dense(run)
        with ddp.all_or_none("the step to INT8"):
            qat.begin(undo, trainer)
        ddp.synchronize(unwrap_model(trainer.model), trainer.ema.ema)
        reset_best(run, undo)
        before = None if best is None else float(best)
        record = QuantizationRecord(trainer.epoch, before, trainer.fitness, None, round(time.time() - started, 2))
        undo.set(run.report, "quantization", record)
        save_run(run, undo, randomness)
    run.before_cut = None  # a state without quantizers, which nothing goes back to any more
    run.log(
        f"INT8 from epoch {trainer.epoch} on: fitness {_score(before)} -> {_score(trainer.fitness)}, "
        f"{record.seconds:.1f} s"
    )


def accept_or_roll_back(run: Run) -> None:
    """Keep the latest cut, or go back to before it and schedule a smaller one."""
    trainer, progress, guard = run.trainer, run.progress, run.progress.guard
    assert guard is not None and run.before_cut is not None
    deadline, progress.deadline = progress.deadline, None
    record, fraction = run.report.cuts[-1], progress.schedule[len(run.report.cuts) - 1].fraction
    record.fitness_recovered, is_last = ddp.broadcast((record.fitness_recovered, bool(trainer.stop)))
    upcoming = run.epoch + (0 if run.in_epoch else 1)
    if guard.holds(record.fitness_recovered):
        at_once = deadline is not None and 2 * (upcoming - record.epoch) <= deadline - record.epoch
        further = guard.accept(fraction, record.epoch, record.macs, record.fitness_recovered, at_once=at_once)
        if further is not None and upcoming + progress.attempts[2] <= progress.float_epochs and not is_last:
            progress.schedule.append(ScheduledCut(upcoming, further))
        if guard.is_search:
            follows = "a further one follows" if progress.pending else "no more cuts"
            run.log(f"the cut of epoch {record.epoch} holds with fitness {_score(record.fitness_recovered)}: {follows}")
        return
    run.before_cut.restore(trainer)
    run.gradients.clear()  # of parameters that are gone
    run.report.cuts.pop()
    less = guard.reject(fraction, record.epoch, record.macs, record.fitness_recovered, upcoming)
    latest = progress.attempts[1] if guard.is_search else progress.float_epochs - 2
    is_possible = upcoming <= latest and not is_last
    progress.schedule = [*progress.schedule[: len(run.report.cuts)]]
    if is_possible and less is not None:
        progress.schedule.append(ScheduledCut(upcoming, less))
    elif is_possible and guard.is_search:
        progress.schedule.append(ScheduledCut(latest, guard.last()))
    save_run(run)
    if ddp.is_first():
        run.folder.plan(len(run.report.cuts) + 1).unlink(missing_ok=True)
        if is_last and not trainer.best.exists():
            save_checkpoint(trainer, trainer.best, epoch=trainer.epoch)
    another = [f"another one follows at epoch {scheduled.epoch}" for scheduled in progress.pending]
    run.log(
        f"the cut of epoch {record.epoch} was taken back: fitness came to {record.fitness_recovered:.4f}, "
        f"max_drop={guard.max_drop:g} asks for {guard.floor:.4f}; "
        f"{another[0] if another else 'no more cuts, the rest of the run recovers'}"
    )


def remember_early(run: Run) -> None:
    """Write the state that cuts will rewind to, once, when the run is there."""
    rewind, early = run.config.rewind, run.folder.early(0)
    if rewind is not None and not run.report.cuts and run.epoch >= round(rewind * run.progress.epochs):
        ddp.on_rank_zero(lambda: None if early.exists() else remember(run.model, early))


def reset_best(run: Run, undo: UndoLog) -> None:
    """Let best fitness and early stopping begin anew with a network that has changed, and validate it."""
    trainer = run.trainer
    for name, fresh in (
        ("best_fitness", None),
        ("stopper", type(trainer.stopper)(patience=trainer.args.patience)),
        ("fitness", None),
        ("metrics", trainer.metrics),
    ):
        undo.set(trainer, name, fresh)
    if trainer.args.val:
        metrics, trainer.fitness = validate(trainer)
        trainer.metrics = {**metrics, **run.figures} if metrics else None


def _plan(run: Run, fraction: float, data: CalibrationData) -> PlannedCut:
    """Plan a cut of the EMA: what is saved is judged."""
    ema, progress = run.ema, run.progress
    if not progress.goal.amounts:  # zeros alone
        macs, params = ({"before": n, "after": n} for n in (run.stage.macs or 0, run.stage.params or 0))
        return PlannedCut(PrunePlan({}, {}, macs, params, (run.imgsz, run.imgsz)))
    request = PlanRequest.of(run.config, progress.budget(fraction), progress.dense_units, run.latency)
    graph = run.trace(ema, data.readers)
    is_here = run.config.is_timed and not run.config.latency
    if run.latency is None or not is_here or not progress.lands(fraction):
        return plan_traced(ema, graph, run.config, request, data)
    dense = Path(str(run.report.dense.checkpoint))
    with closing(LatencyFeedback(dense, run.latency, run.imgsz)) as feedback:
        return plan_traced(ema, graph, run.config, request, data, feedback)


def _apply(run: Run, planned: PlannedCut, undo: UndoLog, data: CalibrationData, fraction: float) -> CutRecord:
    """Slice, let weights be zero, reconstruct and validate."""
    trainer, plan, ema = run.trainer, planned.plan, run.ema
    early = recall(ema, run.folder.early(len(run.report.cuts))) if run.config.rewind is not None else None
    wrapper = trainer.model
    with ddp.all_or_none("cutting"):
        _slice(run, plan, undo, data, early, fraction)
        if run.config.distill is True and not run.report.cuts:
            path = trainer.wdir / "dense.pt"
            distillation.begin(undo, trainer, load_network(path), path, run.config.distill_loss)
        if run.readers is not None:
            check_step(trainer, data.batches[0])
        if trainer.args.compile:
            torch.compiler.reset()  # what was compiled for the old widths
    if early is not None:
        ddp.on_rank_zero(lambda: remember(early, run.folder.early(len(run.report.cuts) + 1)))
    ddp.synchronize(unwrap_model(trainer.model), trainer.ema.ema)
    undo.set(trainer, "model", ddp.wrapped_like(wrapper, trainer.model))
    reset_best(run, undo)
    distillation.forget_features(trainer.ema.ema)
    return CutRecord(
        epoch=trainer.epoch,
        macs=plan.macs["after"] or None,
        params=plan.params["after"],
        bytes=file_bytes(ema),
        fitness_cut=trainer.fitness,
        fitness_recovered=None,
        plan_sha256=plan.sha256,
        locked=plan.locked,
        seconds=0.0,
        latency=planned.latency,
        sparsity=share_of_zeros(sparse_layers(ema, run.config.is_ignored)) if run.config.zeros else None,
        blocks=list(plan.blocks),
    )


def _slice(
    run: Run,
    plan: PrunePlan,
    undo: UndoLog,
    data: CalibrationData,
    early: torch.nn.Module | None,
    fraction: float,
) -> None:
    """Cut model, EMA and optimizer, and reconstruct what is left, or rewind it: early weights make what they made."""
    trainer, config = run.trainer, run.config
    live, averaged = unwrap_model(trainer.model), trainer.ema.ema
    targets: dict[torch.nn.Module, Targets | None] = {}
    with progress_bar("solving", 3, share=SOLVING) as step:
        if config.reconstruction and early is None and ddp.is_first():  # the others get what it makes
            made = sampled_outputs(run.model, data.images, data.statistics)
            targets = {run.ema: None, run.model: made}  # what is saved chooses zeros
        step()
        undo.extend(cut(wrapped_plan(plan, live), [live, averaged], trainer.optimizer))
        undo.set(trainer.ema, "_pairs", None)  # it caches the old tensors
        zeros = _zeros(run, plan, data, fraction)
        for network, outputs in targets.items():
            frozen = trainer.freeze_layer_names
            reconstruct(undo, network, plan, data.statistics, data.images, targets=outputs, frozen=frozen, zeros=zeros)
            step()
    if early is not None:
        cut(plan, [early])
        rewind(undo, (run.model, run.ema), early)
        undo.set(trainer.optimizer, "state", defaultdict(dict))  # it belongs to other weights
    for network in (run.ema, run.model):
        set_zeros(undo, network, zeros)


def _zeros(run: Run, plan: PrunePlan, data: CalibrationData, fraction: float) -> dict[str, LayerZeros]:
    """Return the zeros that layers are to have after a cut of channels: those that they have, and new ones."""
    if not ddp.is_first():
        return {}
    found = held_zeros(run.ema, run.config) if run.has_zeros else {}
    if run.config.zeros:
        statistics = data.statistics if run.config.importance == "reconstruction" else None
        found |= plan_zeros(run.ema, run.config, fraction, statistics, plan)
    return found


def _commit(run: Run, plan: PrunePlan, record: CutRecord, undo: UndoLog, randomness: Randomness) -> None:
    """Write down what was cut; from here on an interrupted run continues with the cut network."""
    undo.set(run.report, "cuts", [*run.report.cuts, record])
    undo.set(run, "gradients", Gradients())  # of parameters that are gone
    if ddp.is_first():
        plan.save(run.folder.plan(len(run.report.cuts)))
        if run.before_cut:
            run.before_cut.save(run.folder.before_cut)
    save_run(run, undo, randomness)


@contextmanager
def _all_or_nothing(trainer: BaseTrainer, what: str) -> Iterator[tuple[UndoLog, Randomness]]:
    """Record what happens to a run between two epochs; if it fails, take it back, and if not, retire the best model.

    Nothing of it draws on the run's random numbers, whose states are handed out.

    Raises:
        CutError: If anything failed; the trainer is as it was.
    """
    undo = UndoLog()
    with preserved_rng() as randomness:
        try:
            yield undo, randomness
        except BaseException as e:  # an interrupt, too, must not leave half a cut
            undo.undo()
            if not isinstance(e, Exception):
                raise
            raise CutError(
                f"{what} at epoch {trainer.epoch} failed and was taken back; {trainer.last} can be resumed. "
                f"{type(e).__name__}: {e}"
            ) from e
    if ddp.is_first():
        trainer.best.unlink(missing_ok=True)


def _score(fitness: float | None) -> str:
    return "not validated" if fitness is None else f"{fitness:.3f}"


def _from_to(cost: dict[str, int]) -> str:
    """Return ``1.62G -> 1.21G (-25.3%)``."""
    before, after = cost["before"], cost["after"]
    return f"{count(before)} -> {count(after)} ({after / before - 1:+.1%})"
