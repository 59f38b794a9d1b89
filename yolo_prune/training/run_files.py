"""Files of a run: its state in checkpoints and beside them, its report, and the dense network."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from yolo_prune.host import checkpoint, ddp
from yolo_prune.host.trainer import Randomness, preserve_attributes, save_checkpoint, save_epoch, validate
from yolo_prune.report.records import EpochRecord
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.training import exact_state
from yolo_prune.training.guard import Guard
from yolo_prune.utils.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable

    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.training.run import Run


def write_record(run: Run, undo: UndoLog) -> None:
    """Note where the run is in the ``model.yaml`` of its networks, which checkpoints are made of."""
    model, ema, trainer = run.model, run.ema, run.trainer
    if (run.report.cuts or run.progress.starts_pruned) and not run.report.quantization:
        # the live one may hold graphs of its last batch
        yaml = checkpoint.marked(ema, run.progress.to_dict(), zeros=run.has_zeros)
    else:  # of a network in INT8, the widths are those of the last cut
        plain = model.yaml if run.report.quantization else checkpoint.unmarked(model.yaml)
        yaml = checkpoint.with_run(plain, run.progress.to_dict())
    for network in {model, ema, unwrap_model(trainer.model), trainer.ema.ema}:  # a wrapper has its own
        undo.set(network, "yaml", yaml)


def save_run(run: Run, undo: UndoLog | None = None, randomness: Randomness | None = None) -> None:
    """Write where the run is to its networks, the report, ``last.pt`` and the exact state beside it.

    Args:
        run: Between two epochs, or after the last batch of one.
        undo: Records what changes in the networks, to take it back.
        randomness: Random states to go on from (default: those of this moment).
    """
    write_record(run, undo or UndoLog())
    if not ddp.is_first():
        return
    trainer, guard = run.trainer, run.progress.guard
    run.report.guard = guard.to_dict() if guard else None
    run.report.save(run.folder.path)
    finished = trainer.epoch - 1 if run.in_epoch else trainer.epoch
    if trainer.args.save and finished >= 0:
        path = _save_state(run, finished, randomness or Randomness())
        save_checkpoint(trainer, trainer.last, epoch=finished)
        run.folder.forget_states(but=path)


def save_finished_epoch(run: Run) -> bool:
    """Do what a trainer's ``save_model`` does; nothing that a resume needs is overwritten before all is written."""
    write_record(run, UndoLog())
    path = _save_state(run, run.trainer.epoch, Randomness())
    is_saved = save_epoch(run.trainer)
    run.folder.forget_states(but=path)
    return is_saved


def _save_state(run: Run, finished: int, randomness: Randomness) -> Path:
    path = run.folder.state(finished, run.progress.changes)
    exact_state.save(run.trainer, path, run.steps.waiting, run.gradients, randomness)
    return path


def validate_and_note(run: Run, stock: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Do what a trainer's ``validate`` does; loggers and ``results.csv`` get the figures of the pruning, too."""
    metrics, fitness = stock()
    if fitness is not None and isfinite(fitness):  # rank 0 has it
        epoch = int(run.trainer.epoch)
        earlier = [e for e in run.report.epochs if e.epoch < epoch]  # an epoch can be repeated
        run.report.epochs = [*earlier, EpochRecord(epoch, run.stage.macs, float(fitness))]
    return (metrics if metrics is None else {**metrics, **run.figures}), fitness


def note_recovered(run: Run) -> None:
    """Note the best fitness since the last cut, or since the step to INT8."""
    if stage := run.report.quantization or (run.report.cuts[-1] if run.report.cuts else None):
        best = run.trainer.best_fitness
        stage.fitness_recovered = None if best is None else float(best)


def note_dense(run: Run) -> None:
    """Write the dense network's file and note its fitness, just before the first cut."""
    trainer, dense = run.trainer, run.report.dense
    fitness = ddp.broadcast(trainer.best_fitness)
    if fitness is None and trainer.args.val:
        fitness = ddp.broadcast(validate(trainer)[1])
    path = trainer.wdir / "dense.pt"
    ddp.on_rank_zero(lambda: _save_dense(run, path))
    dense.fitness = None if fitness is None else float(fitness)
    dense.bytes, dense.checkpoint, dense.epochs = path.stat().st_size, str(path), int(trainer.epoch)
    if run.config.max_drop is not None and dense.fitness is not None:
        set_guard(run)


def set_guard(run: Run) -> None:
    """Let cuts be judged by the dense model: one that was trained to the end, or what the run has, which is said."""
    config, dense, named = run.config, run.report.dense, run.progress.reference
    bar = dense.reference if named is None else named
    finished = bool(dense.finished) or named is not None
    guard = Guard(config.max_drop or 0.0, bar or 0.0, finished=finished, is_search=config.is_auto)
    run.progress.guard = guard
    run.log(f"max_drop={guard.max_drop:g} of the dense fitness {guard.dense:.4f} asks for {guard.floor:.4f}")
    if not finished:
        run.log(
            f"that is a low bar: the dense model is in the middle of its training (epoch {run.trainer.epoch}); name "
            "one that was trained to the end with dense=best.pt, or start from it"
        )


def save_best(run: Run, path: Path) -> None:
    """Write the best network since the latest cut, or before the first, stripped as Ultralytics strips ``best.pt``."""
    trainer: BaseTrainer = run.trainer
    is_of_this_run = trainer.best_fitness is not None and trainer.args.save
    with atomic_write(path) as draft:
        if is_of_this_run and trainer.best.exists():
            strip_optimizer(trainer.best, s=str(draft))
        else:
            with preserve_attributes(trainer, "metrics"):
                trainer.metrics = trainer.metrics or {}
                save_checkpoint(trainer, draft, epoch=trainer.epoch - 1)
            strip_optimizer(draft)


def _save_dense(run: Run, path: Path) -> None:
    save_best(run, path)
    if not checkpoint.is_pruned(run.model.yaml):
        checkpoint.unmark_file(path)
