"""The learning rate of a run after its cuts: where its own curve is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolo_prune.host.trainer import read_learning_rate_at
from yolo_prune.training.schedule import attempt_since, learning_rate_epoch, part_epoch

if TYPE_CHECKING:
    from yolo_prune.training.run import Run


def bend_learning_rate(run: Run) -> None:
    """Let the scheduler read the run's curve where the latest cut asks for, before an epoch begins."""
    mode, trainer, cuts = run.config.learning_rate, run.trainer, run.report.cuts
    if mode == "keep" or not hasattr(trainer.scheduler, "lr_lambdas"):
        return
    if mode == "rewind":
        last, epochs = cuts[-1].epoch if cuts else None, trainer.epochs
        read_learning_rate_at(trainer, lambda epoch: learning_rate_epoch(int(epoch), epochs, last, mode))
    elif part := _part(run):
        begin, end = part
        since = attempt_since(end - begin, run.progress.attempts[2]) if run.config.is_auto else 0.0
        # With time= the schedule goes by shares of the run, and its length is estimated anew after each epoch.
        share, epochs = run.progress.epochs / trainer.epochs if trainer.args.time else 1.0, run.progress.epochs
        read_learning_rate_at(trainer, lambda e: part_epoch(int(e) * share, epochs, begin, end, since) / share)
    else:
        read_learning_rate_at(trainer, float)


def _part(run: Run) -> tuple[float, float] | None:
    """Return the first epoch of what the present size or attempt has of the run, and the epoch after its last."""
    progress, trainer = run.progress, run.trainer
    if not run.config.is_auto:
        return progress.part
    if progress.deadline is None:
        return None
    share = progress.epochs / trainer.epochs if trainer.args.time else 1.0
    return run.report.cuts[-1].epoch * share, progress.deadline
