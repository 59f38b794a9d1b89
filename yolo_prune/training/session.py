"""The events of a live run: when a cut, the step to INT8, and a look at the latest cut are due.

All of it falls at ``on_train_epoch_start``: after the previous epoch has been validated and saved, before its
successor's learning rate is set.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ultralytics.utils import LOGGER

from yolo_prune.errors import PruneError, TargetError
from yolo_prune.host import ddp
from yolo_prune.host.patches import patch
from yolo_prune.host.trainer import evaluate_finally
from yolo_prune.training import exact_state
from yolo_prune.training.finish import hand_over
from yolo_prune.training.learning_rate import bend_learning_rate
from yolo_prune.training.rehearsal import try_steps
from yolo_prune.training.run_files import note_recovered, save_finished_epoch, save_run, validate_and_note
from yolo_prune.training.schedule import ScheduledCut
from yolo_prune.training.setup import Prepared, open_run
from yolo_prune.training.sizes import keep_last_size, keep_size, validate_sizes
from yolo_prune.training.steps import accept_or_roll_back, prune_step, quantize_step, remember_early
from yolo_prune.utils.console import PREFIX, verbosity

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.config.settings import PruneConfig


class Session:
    """One run, from the moment that its network, optimizer and EMA exist.

    Args:
        trainer: A trainer at ``on_pretrain_routine_end``.
        config: The options, or None to take them from the checkpoint that is resumed.
        prepared: What `setup.prepare` returned, or None if nothing will be trained.

    Raises:
        CheckpointError: If there is nothing to resume, or no configuration.
        UnsupportedError: If the network or the run cannot be pruned.
        TargetError: If the target cannot be reached.
    """

    def __init__(self, trainer: BaseTrainer, config: PruneConfig | None, prepared: Prepared | None = None) -> None:
        self.run = run = open_run(trainer, config, prepared)
        self._deferred_error: PruneError | None = None
        self._has_tried_step = False
        if run.progress.is_active:
            patch(trainer, "save_model", partial(save_finished_epoch, run))
            patch(trainer, "final_eval", self._evaluate_finally)
            patch(trainer, "validate", partial(validate_and_note, run, trainer.validate))
            if trainer.metrics is not None:
                trainer.metrics.update(run.figures)

    def before_epoch(self) -> None:
        """Do what the schedule says; a repeated epoch (after a NaN, or out of memory) is not cut again."""
        run = self.run
        run.in_epoch = True
        with verbosity(run.config.verbose):
            if run.progress.pending and not self._has_tried_step:
                self._has_tried_step = True
                try_steps(run)
            waiting = None
            if run.resumed:
                waiting, state, run.resumed = int(run.resumed["waiting"]), run.resumed, None
                exact_state.restore(run.trainer, state, run.gradients)
            if run.progress.schedule:
                self._follow_schedule()
            is_due = run.progress.quantizes and not run.progress.pending
            if is_due and run.epoch >= run.progress.float_epochs:
                quantize_step(run)
        run.hold_zeros()
        if waiting is not None:
            run.steps.resume(run.trainer, waiting)  # the batches above were none of the run's

    def after_batch(self) -> None:
        """Count the batches since the last optimizer step, and keep what loggers get up to date without validation."""
        run, trainer = self.run, self.run.trainer
        run.steps.after_batch()
        if run.progress.is_active and trainer.metrics is not None:  # the first batch has added columns
            trainer.metrics = {**{k: v for k, v in trainer.metrics.items() if k not in run.figures}, **run.figures}

    def after_epoch(self) -> None:
        """Note the fitness of the stage, and do not let early stopping end the run before its last step."""
        run, trainer, progress = self.run, self.run.trainer, self.run.progress
        if not run.in_epoch:  # the final validation fires the event once more
            validate_sizes(run)
            return
        run.in_epoch = False
        note_recovered(run)
        upcoming, stopper = run.epoch + 1, trainer.stopper
        is_early = trainer.epoch + 1 < trainer.epochs
        ran_out = trainer.stop and is_early and trainer.epoch + 1 - stopper.best_epoch >= stopper.patience
        ran_out, is_last = ddp.broadcast((bool(ran_out), bool(trainer.stop)))
        is_searching = bool(progress.guard and progress.guard.is_search) and (
            progress.deadline is not None and progress.deadline < progress.float_epochs
        )
        if ran_out and is_searching:
            trainer.stop, progress.deadline = False, upcoming
            save_run(run)
            run.log("patience ran out before the last attempt: this one is judged now")
        elif ran_out and (progress.pending or progress.quantizes):
            trainer.stop = False
            progress.deadline = upcoming if progress.deadline is not None else None
            if progress.pending:
                progress.schedule[len(run.report.cuts)] = ScheduledCut(upcoming, progress.pending[0].fraction)
            else:
                progress.quantize_epoch = upcoming
            step = "cut" if progress.pending else "step to INT8"
            save_run(run)
            run.log(f"patience ran out before the last {step}: the next one comes early, at epoch {upcoming}")
        elif is_last and progress.guard and progress.deadline is not None and not progress.pending:
            accept_or_roll_back(run)  # the last chance to hand back something that holds

    def finish(self) -> None:
        """After the final validation: measure, export, write the report, print the tables."""
        run, guard = self.run, self.run.progress.guard
        run.report.guard = guard.to_dict() if guard else None
        with verbosity(run.config.verbose):
            self._deferred_error = hand_over(run.trainer, run.config, run.report, self._unfinished())
        run.folder.forget_states()
        run.folder.before_cut.unlink(missing_ok=True)

    def close(self) -> None:
        """Raise what went wrong, now that everything else is done and saved.

        Raises:
            TargetError: If the run was stopped before its last cut or the step to INT8, or the file is larger than was
                asked for.
            ExportError: If an asked export was not made or disagrees with the checkpoint, or the result of a latency
                target could not be timed.
        """
        if self._deferred_error:
            raise self._deferred_error

    def _follow_schedule(self) -> None:
        """Judge the latest cut, make the next one if it is time, and set what depends on the epoch."""
        run, progress, now = self.run, self.run.progress, self.run.epoch
        remember_early(run)
        if progress.guard and progress.deadline is not None and (now >= progress.deadline or self._is_clear()):
            accept_or_roll_back(run)
        made = len(run.report.cuts)
        if due := progress.due(now):
            progress.schedule[made : made + len(due)] = due[-1:]
            keep_size(run)
            prune_step(run, due[-1].fraction)
        bend_learning_rate(run)
        run.gradients.clear()  # the epoch before a cut is what counts

    def _is_clear(self) -> bool:
        """Whether a search need not wait for its deadline to go on."""
        guard, report = self.run.progress.guard, self.run.report
        if not (guard and guard.is_search):
            return False
        return bool(ddp.broadcast(guard.is_clear(report.cuts[-1].fitness_recovered)))

    def _evaluate_finally(self) -> None:
        """Do what a trainer's ``final_eval`` does; say first what is missing where something has ended the run."""
        if missing := self._unfinished():
            LOGGER.warning(f"{PREFIX}{missing}")
        evaluate_finally(self.run.trainer)
        keep_last_size(self.run)

    def _unfinished(self) -> TargetError | None:
        """Return an error if the run ended before its last step."""
        trainer, progress = self.run.trainer, self.run.progress
        stopped = f"the run was stopped at epoch {trainer.epoch + 1} of {trainer.epochs}"
        if missing := len(progress.pending):
            return TargetError(
                f"{stopped} with {missing} of {len(progress.schedule)} cuts not made, so {trainer.best} is not "
                "the model that was asked for; train it on with the rest as target, or start anew."
            )
        if progress.quantizes:
            return TargetError(
                f"{stopped}, before the step to INT8 at epoch {progress.quantize_epoch}, so {trainer.best} is a "
                "float model; quantize it at export, or start anew."
            )
        return None
