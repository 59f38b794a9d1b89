"""The live run: the one place that touches an Ultralytics trainer.

What happens at a cut, in this order and all or nothing:

    plan -> slice model, EMA and optimizer -> reconstruct -> validate -> write last.pt -> retire best.pt

A run with ``quantize=8`` turns to INT8 after the last one, in the same manner. All of it falls at
``on_train_epoch_start``: after the previous epoch has been validated and saved, before its successor's learning rate is
set. Whatever fails is undone, and the trainer is as it was.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import LATENCY
from yolo_prune.cost.budget import Goal, file_bytes
from yolo_prune.cost.latency_table import LatencyTable
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.export import check_formats
from yolo_prune.deploy.latency_profile import measure, time_networks
from yolo_prune.errors import CheckpointError, ConfigError, CutError, PruneError, TargetError, UnsupportedError
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint, distillation
from yolo_prune.host import ddp as ranks
from yolo_prune.host import qat as quantization
from yolo_prune.host.distillation import student_of, wrapped_plan
from yolo_prune.host.trainer import (
    Randomness,
    calibration_batches,
    evaluate_finally,
    forget_later_results,
    kept,
    preserved_rng,
    save_checkpoint,
    save_epoch,
    validate,
)
from yolo_prune.importance.statistics import Gradients, copy_of
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import check_reachable
from yolo_prune.planning.planner import BY_GRADIENT, EXACT, MEASURED, Evidence, plan_cut
from yolo_prune.report.records import CutRecord, EpochRecord, QuantizationRecord, Report, Stage, count
from yolo_prune.surgery.reconstruction import DenseOutputs, reconstruct
from yolo_prune.surgery.rewinding import recall, remember, rewind
from yolo_prune.surgery.slicing import Cut, check_optimizer, cut
from yolo_prune.training import exact_state as state
from yolo_prune.training.exact_state import StepCount
from yolo_prune.training.finish import hand_over
from yolo_prune.training.guard import Guard
from yolo_prune.training.progress import Progress
from yolo_prune.training.rehearsal import check_step, outside_readers, rehearse
from yolo_prune.training.schedule import Cut as ScheduledCut
from yolo_prune.training.schedule import cuts as schedule_cuts
from yolo_prune.training.schedule import learning_rate_epoch
from yolo_prune.training.schedule import quantization as quantization_epoch
from yolo_prune.training.snapshot import Snapshot
from yolo_prune.training.sparsity import Sparsity
from yolo_prune.utils.console import PREFIX, say, talking
from yolo_prune.utils.memory import borrowed_memory
from yolo_prune.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.engine.trainer import BaseTrainer

BUSY = 1.1
"""Times as long as before that a network takes on a machine that does something else as well."""
REHEARSED = 4
"""Images of the training step that is tried before a network is cut."""


@dataclass
class Prepared:
    """What is known of a run before its network is there.

    Attributes:
        quantizes: Whether ``quantize=8`` was asked for and is put off until after the last cut.
        knows_classes: Whether the network is made from weights of the data's classes.
    """

    quantizes: bool = False
    knows_classes: bool = False


def prepare(trainer: BaseTrainer, config: PruneConfig | None) -> Prepared:
    """Before the network is built: refuse what cannot work, and let pruned checkpoints be rebuilt pruned.

    Returns:
        What `Session` needs to know; the classes are known once the network has been built.

    Raises:
        UnsupportedError: If the run uses a feature that cannot be combined with pruning.
        ConfigError: If the schedule does not fit the run's epochs.
    """
    prepared = Prepared()
    if config is not None:
        check_formats(config.export)
        # How much is removed, nobody knows yet.
        planned = _schedule(config, trainer.epochs, removed=0.5 if config.targets else 0.0)
        prepared.quantizes = quantization.prepare(trainer, config)
        if prepared.quantizes:
            quantization_epoch(epochs=trainer.epochs, at=config.quantize_at, cuts=planned)
        if config.distill and not trainer.resume:
            distillation.prepare(trainer, config.distill)
        if config.max_drop is not None and not trainer.args.val:
            raise ConfigError(f"max_drop={config.max_drop:g} needs validation after each epoch; give val=True.")
    is_verbose = None if config is None else config.verbose
    build = partial(_get_model, trainer.get_model, bool(trainer.resume), is_verbose)

    def build_and_note(*arguments: Any, **keywords: Any) -> nn.Module:
        given = {**dict(zip(_GET_MODEL, arguments, strict=False)), **keywords}
        learned, asked = (
            _listed(names) for names in (getattr(given.get("weights"), "names", ()), trainer.data.get("names", ()))
        )
        prepared.knows_classes = learned == asked
        return build(given)

    trainer.get_model = build_and_note
    return prepared


_GET_MODEL = ("cfg", "weights", "verbose")
"""Parameters of a trainer's ``get_model``, in Ultralytics' order; a user's may lack ``verbose``, or have others."""


def _listed(names: Mapping[int, str] | Sequence[str]) -> list[str]:
    """Return class names in order; old checkpoints have them as a list."""
    return [*names.values()] if isinstance(names, Mapping) else [*names]


def _get_model(
    stock: Callable[..., nn.Module], resumes: bool, is_verbose: bool | None, given: dict[str, Any]
) -> nn.Module:
    """Stand in for a trainer's ``get_model``: the same, but pruned networks stay pruned.

    Args:
        stock: The trainer's own.
        resumes: Whether an interrupted run goes on.
        is_verbose: Whether the user wants to be told, or None to ask the checkpoint.
        given: What it was called with, which is passed on; a user's own may take other arguments.
    """
    cfg: Any = given.get("cfg")
    if not checkpoint.is_marked(cfg):
        return stock(**given)
    if not resumes and not checkpoint.is_pruned(cfg):
        return stock(**{**given, "cfg": checkpoint.unmarked(cfg)})
    is_told = given.get("verbose", True)
    quiet = {"verbose": False} if "verbose" in given else {}
    others = {name: value for name, value in given.items() if name not in _GET_MODEL}
    model = checkpoint.rebuild(stock, cfg, given.get("weights"), **quiet, **others)
    if is_told and ranks.is_first() and checkpoint.is_pruned(cfg):
        noted = (checkpoint.run_record(cfg) or {}).get("config", {})
        with talking(noted.get("verbose", True) if is_verbose is None else is_verbose):
            say("the checkpoint is pruned, and its network is rebuilt pruned")
        model.info()
    return model


def _schedule(config: PruneConfig, epochs: int, removed: float, knows_classes: bool = True) -> list[ScheduledCut]:
    """Return the cuts of a run; where it is too short for the late ones of new classes, they come early after all."""
    start, end = config.span(knows_classes)
    try:
        return schedule_cuts(
            epochs=epochs, removed=removed, start=start, end=end, steps=config.steps, schedule=config.schedule
        )
    except ConfigError:
        if knows_classes:
            raise
        return _schedule(config, epochs, removed)


class Session:
    """One run, from the moment that its network, optimizer and EMA exist.

    Args:
        trainer: A trainer at ``on_pretrain_routine_end``.
        config: The knobs, or None to take them from the checkpoint that is resumed.
        prepared: What `prepare` returned, or None if nothing will be trained.

    Raises:
        CheckpointError: If there is nothing to resume, or no configuration.
        UnsupportedError: If the network or the run cannot be pruned.
        TargetError: If the target cannot be reached.
    """

    def __init__(self, trainer: BaseTrainer, config: PruneConfig | None, prepared: Prepared | None = None) -> None:
        model = student_of(trainer.model)
        noted = checkpoint.run_record(getattr(model, "yaml", None)) if trainer.resume else None
        self.imgsz: int = trainer.args.imgsz
        self.folder = RunFolder(Path(trainer.save_dir))
        self.latency: LatencyTable | None = None
        self._looks: dict[float, float] = {}
        """Predicted seconds of a network that was planned -> how many times as long it takes."""
        self._complaint: PruneError | None = None
        self._in_epoch = False
        self._gradients = Gradients()
        self._sparsity: Sparsity | None = None
        self._good: Snapshot | None = None
        self._resumed: dict[str, Any] | None = None
        self._readers: dict[str, str] | None = None
        """Layers that only a training step runs -> the modules whose results they take; None if none can be tried."""
        self._has_rehearsed = False
        if noted:
            self.progress = Progress.from_dict(noted)
            self.config, self.report = self.progress.config, self.progress.report
            self._take_up(trainer)
            if config not in (None, self.config):
                LOGGER.warning(f"{PREFIX}a resumed run keeps its own configuration, the given one is not used")
        elif config is None:
            raise CheckpointError(
                f"{trainer.args.model} holds no pruning run to continue; say how much to remove, e.g. prune=0.5."
            )
        else:
            self.config = config
            self.report = Report([self.imgsz, self.imgsz], Stage(), config.to_dict())
            self.progress = Progress(config, self.report, trainer.epochs)
            if config.targets:
                with talking(config.verbose):
                    self._begin(trainer, prepared)
        if self.config.distill:
            distillation.check_distillable(model)
            distillation.keep_columns(trainer)
        self._steps = StepCount(trainer)
        if self.progress.pending:
            with talking(self.config.verbose):
                self._listen(trainer)
        if self.progress.is_active:
            trainer.save_model = partial(self._save_epoch, trainer)
            trainer.final_eval = partial(self._evaluate_finally, trainer)
            trainer.validate = partial(self._validate, trainer, trainer.validate)
            if trainer.metrics is not None:
                trainer.metrics.update(self._figures())

    def _begin(self, trainer: BaseTrainer, given: Prepared | None) -> None:
        """Look at the dense network, refuse what it cannot reach, and schedule the cuts."""
        prepared = given or Prepared()
        model = student_of(trainer.model)
        check_optimizer(trainer.optimizer)
        if self.config.lr_after_cut != "keep" and not hasattr(trainer.scheduler, "lr_lambdas"):
            raise UnsupportedError(
                f"lr_after_cut={self.config.lr_after_cut} bends Ultralytics' own learning-rate curve, and this run's "
                f"scheduler is a {type(trainer.scheduler).__name__}; use lr_after_cut=keep."
            )
        graph = trace(model, self.imgsz, self.config.is_ignored, reid=self.config.reid)
        self.config.check_patterns(graph.layers)
        if self.config.allocation in MEASURED:
            with preserved_rng():
                Evidence(model, calibration_batches(trainer, self.config.calibration)).halves()
        if self.config.is_timed:
            self.latency = ranks.once(lambda: measure(model, graph, self.config.runtime))
            graph = replace(graph, latency=self.latency)
        cost = CostModel(graph)
        self.progress.goal = Goal.of(self.config.targets, cost, model)
        check_reachable(graph, self.progress.goal.at(1.0), self.config.round_to, self.config.limit)
        self.progress.schedule = _schedule(
            self.config, trainer.epochs, self.progress.goal.removed, prepared.knows_classes
        )
        if not self.progress.schedule:
            self._log(f"target={self.config.target} holds already: nothing is cut")
        if prepared.quantizes:
            self.progress.quantize_epoch = quantization_epoch(
                epochs=trainer.epochs, at=self.config.quantize_at, cuts=self.progress.schedule
            )
        self.progress.dense_widths = {path: layer.out for path, layer in graph.layers.items()}
        self.report.dense = Stage(
            cost.macs(),
            cost.params(),
            latency=self.latency.dense if self.latency else None,
            finished=given is None or prepared.knows_classes,  # without, nothing is trained
        )
        for network in {model, unwrap_model(trainer.model)}:
            network.yaml = checkpoint.with_run(model.yaml, self.progress.to_dict())
        if ranks.is_first():
            self.folder.clear()
            if self.latency:
                self.latency.save(self.folder.latency)

    def _listen(self, trainer: BaseTrainer) -> None:
        """Collect gradients from the run's own steps, and regularise until the first cut.

        Steps come after Ultralytics has undone AMP's loss scaling and clipped, and those that are skipped do not come.
        """
        model = student_of(trainer.model)

        def collect(*_: Any) -> None:
            if self.progress.pending:
                self._gradients.add(model.parameters())

        if self.config.importance in BY_GRADIENT:
            trainer.optimizer.register_step_pre_hook(collect)
        if self.config.sparsity != "none" and not self.report.cuts:
            graph = trace(model, self.imgsz, self.config.is_ignored, reid=self.config.reid)
            self._sparsity = Sparsity(model, graph, self.config.sparsity, self.config.sparsity_strength)
            self._sparsity.attach(trainer.optimizer)

    def _take_up(self, trainer: BaseTrainer) -> None:
        """Read what the interrupted run left in its folder, and remove what it had begun and will do again."""
        if LATENCY in self.progress.goal.amounts:
            self.latency = LatencyTable.load(self.folder.latency)
        if self.progress.quantizes:
            quantization.check_available()
        try:
            self._resumed = state.load(self.folder.state(trainer.start_epoch - 1, self.progress.changes))
        except CheckpointError as e:
            LOGGER.warning(f"{PREFIX}resuming from {trainer.last.name} alone, so later cuts will differ a little: {e}")
        if self.progress.deadline is not None:
            self._good = Snapshot.load(self.folder.before_cut, trainer)
        self._note_recovered(trainer)
        if ranks.is_first():
            forget_later_results(trainer)
            if trainer.best_fitness is None:  # of before a cut that has been made since
                trainer.best.unlink(missing_ok=True)

    def before_epoch(self, trainer: BaseTrainer) -> None:
        """Do what the schedule says; a repeated epoch (after a NaN, or out of memory) is not cut again."""
        self._in_epoch = True
        with talking(self.config.verbose):
            if self.progress.pending and not self._has_rehearsed:
                self._has_rehearsed = True
                self._rehearse(trainer)
            waiting = self._restore(trainer) if self._resumed else None
            if self.progress.schedule:
                self._follow_schedule(trainer)
            is_due = self.progress.quantizes and not self.progress.pending
            if is_due and self._now(trainer) >= self.progress.float_epochs:
                self._quantize(trainer)
        if waiting is not None:
            self._steps.resume(trainer, waiting)  # the batches above were none of the run's

    def _rehearse(self, trainer: BaseTrainer) -> None:
        """Find what reads feature maps outside of the forward pass, and refuse what could not follow a cut of them.

        Raises:
            UnsupportedError: If a training step of a cut network fails.
        """
        with preserved_rng():
            batch, model = calibration_batches(trainer, REHEARSED)[0], student_of(trainer.model)
            graph = trace(model, self.imgsz, self.config.is_ignored, reid=self.config.reid)
            self._readers = outside_readers(trainer, graph, batch)
            if self._readers is None:
                return
            if self._readers:
                graph = trace(model, self.imgsz, self.config.is_ignored, self._readers, reid=self.config.reid)
            rehearse(trainer, graph, self.config, batch)

    def after_batch(self) -> None:
        """Count the batches since the last optimizer step."""
        self._steps.after_batch()

    def _restore(self, trainer: BaseTrainer) -> int:
        """Make a resumed run what it was when its checkpoint was written; return the batches that wait for a step."""
        assert self._resumed is not None
        resumed, self._resumed = self._resumed, None
        state.restore(trainer, resumed, self._gradients)
        return int(resumed["waiting"])

    def _now(self, trainer: BaseTrainer) -> int:
        """Return the epoch that the schedule goes by.

        With ``time=`` Ultralytics estimates anew after each epoch how many there will be. The schedule was made for as
        many as were asked for, and what counts is the share of the run that is over.
        """
        if not trainer.args.time:
            return int(trainer.epoch)
        return ranks.agreed(round(trainer.epoch * self.progress.epochs / trainer.epochs))

    def _follow_schedule(self, trainer: BaseTrainer) -> None:
        """Judge the latest cut and make the next one, if it is time."""
        now = self._now(trainer)
        if (
            self.config.rewind is not None
            and not self.report.cuts
            and now >= round(self.config.rewind * self.progress.epochs)
        ):
            early = self.folder.early(0)
            ranks.once(lambda: None if early.exists() else remember(student_of(trainer.model), early))
        if self.progress.guard and self.progress.deadline is not None and now >= self.progress.deadline:
            self._judge(trainer)
        made = len(self.report.cuts)
        if due := [scheduled for scheduled in self.progress.pending if scheduled.epoch <= now]:
            self.progress.schedule[made : made + len(due)] = due[-1:]  # with time=, a run may pass several in one epoch
            self._cut(trainer, due[-1].way)
        self._prepare_epoch(trainer)

    def _prepare_epoch(self, trainer: BaseTrainer) -> None:
        """Set what depends on the epoch: the learning rate, and what the next cut needs."""
        if self.config.lr_after_cut != "keep":
            last = self.report.cuts[-1].epoch if self.report.cuts else None
            _bend_learning_rate(trainer, last, self.config.lr_after_cut)
        self._gradients.clear()  # the epoch before a cut is what counts

    def after_epoch(self, trainer: BaseTrainer) -> None:
        """Note the fitness of the stage, and do not let early stopping end the run before its last step."""
        if not self._in_epoch:
            return  # the final validation fires the event once more
        self._in_epoch = False
        self._note_recovered(trainer)
        upcoming, stopper = self._now(trainer) + 1, trainer.stopper
        is_early = trainer.epoch + 1 < trainer.epochs
        ran_out = trainer.stop and is_early and trainer.epoch + 1 - stopper.best_epoch >= stopper.patience
        ran_out, is_last = ranks.agreed((bool(ran_out), bool(trainer.stop)))
        if ran_out and (self.progress.pending or self.progress.quantizes):
            trainer.stop = False
            if self.progress.pending:
                self.progress.schedule[len(self.report.cuts)] = ScheduledCut(upcoming, self.progress.pending[0].way)
            else:
                self.progress.quantize_epoch = upcoming
                self.progress.deadline = upcoming if self.progress.deadline is not None else None
            step = "cut" if self.progress.pending else "step to INT8"
            self._save(trainer)
            self._log(f"patience ran out before the last {step}: the next one comes early, at epoch {upcoming}")
        elif is_last and self.progress.guard and self.progress.deadline is not None and not self.progress.pending:
            self._judge(trainer)  # the last chance to hand back something that holds

    def finish(self, trainer: BaseTrainer) -> None:
        """After the final validation: measure, export, write the report, print the tables."""
        self.report.guard = self.progress.guard.to_dict() if self.progress.guard else None
        with talking(self.config.verbose):
            self._complaint = hand_over(trainer, self.config, self.report, self._unfinished(trainer))
        self.folder.forget_states()
        self.folder.before_cut.unlink(missing_ok=True)

    def _evaluate_finally(self, trainer: BaseTrainer) -> None:
        """Stand in for a trainer's ``final_eval``: say at once what is missing where something has ended the run."""
        if missing := self._unfinished(trainer):
            LOGGER.warning(f"{PREFIX}{missing}")
        evaluate_finally(trainer)

    def _unfinished(self, trainer: BaseTrainer) -> TargetError | None:
        """Return what to say if the run ended before its last step."""
        stopped = f"the run was stopped at epoch {trainer.epoch + 1} of {trainer.epochs}"
        if missing := len(self.progress.pending):
            return TargetError(
                f"{stopped} with {missing} of {len(self.progress.schedule)} cuts not made, so {trainer.best} is not "
                "the model that was asked for; train it on with the rest as target, or start anew."
            )
        if self.progress.quantizes:
            return TargetError(
                f"{stopped}, before the step to INT8 at epoch {self.progress.quantize_epoch}, so {trainer.best} is a "
                "float model; quantize it at export, or start anew."
            )
        return None

    def close(self) -> None:
        """Raise what went wrong, now that everything else is done and saved.

        Raises:
            TargetError: If the run was stopped before its last cut or the step to INT8, or the file is larger than was
                asked for.
            ExportError: If an asked export was not made or disagrees with the checkpoint, or the result of a latency
                target could not be timed.
        """
        if self._complaint:
            raise self._complaint

    # The step to INT8 -------------------------------------------------------------------------------------------------

    def _quantize(self, trainer: BaseTrainer) -> None:
        """Let the rest of the run be quantization-aware, or leave everything as it was.

        Raises:
            CutError: If anything failed; the trainer is as it was.
        """
        started, best = time.time(), ranks.agreed(trainer.best_fitness)
        with _attempt(trainer, "the step to INT8") as (done, randomness):
            if self.report.dense.checkpoint is None:
                self._note_dense(trainer)
            with ranks.together("the step to INT8"):
                quantization.begin(done, trainer)
            ranks.synchronize(unwrap_model(trainer.model), trainer.ema.ema)
            self._start_anew(done, trainer)
            before = None if best is None else float(best)
            record = QuantizationRecord(trainer.epoch, before, trainer.fitness, None, round(time.time() - started, 2))
            done.set(self.report, "quantization", record)
            self._save(trainer, done, randomness)
        self._good = None  # a state without quantizers, which nothing goes back to any more
        self._log(
            f"INT8 from epoch {trainer.epoch} on: fitness {_score(before)} -> {_score(trainer.fitness)}, "
            f"{record.seconds:.1f} s"
        )

    # A cut ------------------------------------------------------------------------------------------------------------

    def _cut(self, trainer: BaseTrainer, way: float) -> None:
        """Make one cut, or leave everything as it was.

        Raises:
            CutError: If anything failed; the trainer is as it was.
        """
        started = time.time()
        name = f"cut {len(self.report.cuts) + 1} of {len(self.progress.schedule)}"
        with borrowed_memory(), _attempt(trainer, name) as (done, randomness):
            if self.report.dense.checkpoint is None:
                self._note_dense(trainer)
            with ranks.together("looking at calibration images"):
                batches = calibration_batches(trainer, self.config.calibration)
            plan = ranks.once(lambda: self._plan(trainer, way, batches))
            if self.progress.guard:
                done.set(self, "_good", Snapshot(trainer))
                after = self.progress.pending[1].epoch if len(self.progress.pending) > 1 else None
                deadline = self.progress.guard.deadline(self._now(trainer), after, self.progress.float_epochs)
                done.set(self.progress, "deadline", deadline)
            record = self._apply(trainer, plan, done, batches)
            record.seconds = round(time.time() - started, 2)
            self._keep(trainer, plan, record, done, randomness)
        if self._sparsity:
            self._sparsity.detach()
            self._sparsity = None
        self._log(
            f"cut {len(self.report.cuts)}/{len(self.progress.schedule)} at epoch {trainer.epoch}: "
            f"MACs {_from_to(plan.macs)}, params {_from_to(plan.params)}, {len(record.locked)} layers locked, "
            f"fitness {_score(record.fitness_cut)}, {record.seconds:.1f} s"
        )

    def _judge(self, trainer: BaseTrainer) -> None:
        """Keep the latest cut, or go back to before it and try less."""
        assert self.progress.guard is not None and self._good is not None
        self.progress.deadline = None
        record, way = self.report.cuts[-1], self.progress.schedule[len(self.report.cuts) - 1].way
        record.fitness_recovered, is_last = ranks.agreed((record.fitness_recovered, bool(trainer.stop)))
        if self.progress.guard.holds(record.fitness_recovered):
            self.progress.guard.accept(way)
            return
        self._good.restore(trainer)
        self._gradients.clear()  # of parameters that are gone
        self.report.cuts.pop()
        less = self.progress.guard.reject(way, record.epoch, record.macs, record.fitness_recovered)
        upcoming = self._now(trainer) + (0 if self._in_epoch else 1)
        is_possible = less is not None and upcoming < self.progress.float_epochs - 1 and not is_last
        self.progress.schedule = [*self.progress.schedule[: len(self.report.cuts)]]
        if less is not None and is_possible:
            self.progress.schedule.append(ScheduledCut(upcoming, less))
        self._save(trainer)
        if ranks.is_first():
            self.folder.plan(len(self.report.cuts) + 1).unlink(missing_ok=True)
            if is_last and not trainer.best.exists():
                save_checkpoint(trainer, trainer.best, epoch=trainer.epoch)
        self._log(
            f"the cut of epoch {record.epoch} was taken back: fitness came to {record.fitness_recovered:.4f}, "
            f"max_drop={self.progress.guard.max_drop:g} asks for {self.progress.guard.floor:.4f}; "
            f"{'a smaller one follows' if is_possible else 'no more cuts, the rest of the run recovers'}"
        )

    def _plan(self, trainer: BaseTrainer, way: float, batches: list[dict[str, Any]]) -> PrunePlan:
        model, ema = student_of(trainer.model), student_of(trainer.ema.ema)
        evidence = Evidence(ema, batches, self._gradients.of(model, ema), self._readers or {})
        return plan_cut(
            ema,  # what is saved is judged
            self.config,
            self.imgsz,
            self.progress.goal.at(way),
            self.progress.dense_widths,
            evidence,
            self.latency,
            slowness=self._slowness if self.latency and way == 1.0 else None,
        )

    def _slowness(self, network: nn.Module) -> float:
        """Return how many times as long as predicted a planned network takes, timed next to the dense one."""
        assert self.report.dense.latency is not None and self.report.dense.checkpoint is not None and self.latency
        dense = quantization.load_plain(Path(self.report.dense.checkpoint))
        of_dense, of_pruned = time_networks([dense, network], self.config.runtime, self.imgsz)
        if (longer := of_dense / self.latency.dense) > BUSY:
            LOGGER.warning(
                f"{PREFIX}the dense network takes {longer:.2f} times as long as before: something else keeps this "
                f"machine busy, and the plan may miss its latency once it is idle"
            )
        predicted = self._predicted(network) or 0.0
        found = of_pruned / of_dense / (predicted / self.report.dense.latency)
        self._looks[predicted] = found
        if abs(found - 1) > EXACT:
            self._log(f"a planned network takes {found:.2f} times as long as predicted, and the plan allows for it")
        return found

    def _apply(self, trainer: BaseTrainer, plan: PrunePlan, done: Cut, batches: list[dict[str, Any]]) -> CutRecord:
        """Slice, reconstruct and validate."""
        model, ema = student_of(trainer.model), student_of(trainer.ema.ema)
        early = None
        weights = self.config.reconstruction
        if self.config.rewind is not None:
            early = recall(ema, self.folder.early(len(self.report.cuts)))
            weights = False  # early weights make of their inputs what they made then
        images = [batch["img"] for batch in batches]
        live, averaged, wrapper = unwrap_model(trainer.model), trainer.ema.ema, trainer.model
        with ranks.together("cutting"):
            networks = (model, ema) if weights else ()
            before = [copy_of(ema) for _ in networks]  # the live one may hold graphs of its last batch
            for copy, network in zip(before, networks, strict=True):
                copy.load_state_dict(network.state_dict())
            done.extend(cut(wrapped_plan(plan, live), [live, averaged], trainer.optimizer))
            done.set(trainer.ema, "_pairs", None)  # it caches the old tensors
            for network, dense in zip(networks, before, strict=True):
                frozen = trainer.freeze_layer_names
                outputs = DenseOutputs(dense, images)  # of one network at a time: they are large
                reconstruct(done, network, plan, outputs, frozen=frozen)
            if early is not None:
                cut(plan, [early])
                rewind(done, (model, ema), early)
                done.set(trainer.optimizer, "state", defaultdict(dict))  # it belongs to other weights
            if self.config.distill is True and not self.report.cuts:
                distillation.begin(done, trainer, trainer.wdir / "dense.pt")
            if self._readers is not None:
                check_step(trainer, batches[0])
            if trainer.args.compile:
                torch.compiler.reset()  # what was compiled for the old widths
        if early is not None:
            ranks.once(lambda: remember(early, self.folder.early(len(self.report.cuts) + 1)))
        ranks.synchronize(unwrap_model(trainer.model), trainer.ema.ema)
        done.set(trainer, "model", ranks.wrapped_like(wrapper, trainer.model))
        self._start_anew(done, trainer)
        return CutRecord(
            epoch=trainer.epoch,
            macs=plan.macs["after"],
            params=plan.params["after"],
            bytes=file_bytes(ema),
            fitness_cut=trainer.fitness,
            fitness_recovered=None,
            plan_sha256=plan.sha256,
            locked=plan.locked,
            seconds=0.0,
            latency=self._expected(ema),
        )

    def _predicted(self, network: nn.Module) -> float | None:
        """Return the seconds that a network takes for one image, as far as the table tells, or None without one."""
        return CostModel(replace(trace(network, self.imgsz), latency=self.latency)).seconds() if self.latency else None

    def _expected(self, network: nn.Module) -> float | None:
        """Return the same, corrected by what a look at a network of these widths has shown."""
        predicted = self._predicted(network)
        return predicted and predicted * self._looks.get(predicted, 1.0)

    def _keep(
        self, trainer: BaseTrainer, plan: PrunePlan, record: CutRecord, done: Cut, randomness: Randomness
    ) -> None:
        """Write down what was cut; from here on an interrupted run continues with the cut network."""
        done.set(self.report, "cuts", [*self.report.cuts, record])
        done.set(self, "_gradients", Gradients())  # of parameters that are gone
        if ranks.is_first():
            plan.save(self.folder.plan(len(self.report.cuts)))
            if self._good:
                self._good.save(self.folder.before_cut)
        self._save(trainer, done, randomness)

    def _save(self, trainer: BaseTrainer, done: Cut | None = None, randomness: Randomness | None = None) -> None:
        """Note in the networks, the report and ``last.pt`` where the run is."""
        self._mark(trainer, done or Cut())
        if not ranks.is_first():
            return
        self.report.guard = self.progress.guard.to_dict() if self.progress.guard else None
        self.report.save(self.folder.path)
        finished = trainer.epoch - 1 if self._in_epoch else trainer.epoch
        if trainer.args.save and finished >= 0:
            path = self._save_state(trainer, finished, randomness or Randomness())
            save_checkpoint(trainer, trainer.last, epoch=finished)
            self.folder.forget_states(but=path)

    def _mark(self, trainer: BaseTrainer, done: Cut) -> None:
        """Note where the run is in the networks, which checkpoints are made of."""
        model, ema = student_of(trainer.model), student_of(trainer.ema.ema)
        if self.report.cuts and not self.report.quantization:
            yaml = checkpoint.marked(ema, self.progress.to_dict())  # the live one may hold graphs of its last batch
        else:  # of a network in INT8, the widths are those of the last cut
            plain = model.yaml if self.report.quantization else checkpoint.unmarked(model.yaml)
            yaml = checkpoint.with_run(plain, self.progress.to_dict())
        for network in {model, ema, unwrap_model(trainer.model), trainer.ema.ema}:  # a wrapper has its own
            done.set(network, "yaml", yaml)

    def _save_epoch(self, trainer: BaseTrainer) -> bool:
        """Stand in for a trainer's ``save_model``: nothing that a resume needs is overwritten before all is written."""
        self._mark(trainer, Cut())
        path = self._save_state(trainer, trainer.epoch, Randomness())
        is_saved = save_epoch(trainer)
        self.folder.forget_states(but=path)
        return is_saved

    def _save_state(self, trainer: BaseTrainer, finished: int, randomness: Randomness) -> Path:
        path = self.folder.state(finished, self.progress.changes)
        state.save(trainer, path, self._steps.waiting, self._gradients, randomness)
        return path

    def _validate(self, trainer: BaseTrainer, stock: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Stand in for a trainer's ``validate``: loggers and ``results.csv`` get the figures of the pruning, too."""
        metrics, fitness = stock()
        if fitness is not None and isfinite(fitness):  # rank 0 has it
            earlier = [e for e in self.report.epochs if e.epoch < trainer.epoch]  # an epoch can be repeated
            record = EpochRecord(int(trainer.epoch), self._stage.macs, float(fitness))
            self.report.epochs = [*earlier, record]
        return (metrics if metrics is None else {**metrics, **self._figures()}), fitness

    def _figures(self) -> dict[str, float]:
        """Return name -> value for the loggers of Ultralytics, the same names in every epoch of a run."""
        return {"prune/GMACs": (self._stage.macs or 0) / 1e9, "prune/params(M)": (self._stage.params or 0) / 1e6}

    @property
    def _stage(self) -> CutRecord | Stage:
        """The network as it is now."""
        return self.report.cuts[-1] if self.report.cuts else self.report.dense

    def _start_anew(self, done: Cut, trainer: BaseTrainer) -> None:
        """Let best fitness and early stopping begin anew with a network that has changed, and validate it."""
        for name, fresh in (
            ("best_fitness", None),
            ("stopper", type(trainer.stopper)(patience=trainer.args.patience)),
            ("fitness", None),
            ("metrics", trainer.metrics),
        ):
            done.set(trainer, name, fresh)
        if trainer.args.val:
            metrics, trainer.fitness = validate(trainer)
            trainer.metrics = {**metrics, **self._figures()} if metrics else None

    def _note_recovered(self, trainer: BaseTrainer) -> None:
        """Note the best fitness since the last cut, or since the step to INT8."""
        if stage := self.report.quantization or (self.report.cuts[-1] if self.report.cuts else None):
            best = trainer.best_fitness
            stage.fitness_recovered = None if best is None else float(best)

    def _note_dense(self, trainer: BaseTrainer) -> None:
        """Note the dense network's fitness and file, just before the first cut."""
        dense = self.report.dense
        fitness = ranks.agreed(trainer.best_fitness)
        if fitness is None and trainer.args.val:
            fitness = ranks.agreed(validate(trainer)[1])
        path = trainer.wdir / "dense.pt"
        ranks.once(lambda: self._save_dense(trainer, path))
        dense.fitness = None if fitness is None else float(fitness)
        dense.bytes, dense.checkpoint, dense.epochs = path.stat().st_size, str(path), int(trainer.epoch)
        if self.config.max_drop is not None and dense.fitness is not None:
            self.progress.guard = Guard(self.config.max_drop, dense.fitness)

    @staticmethod
    def _save_dense(trainer: BaseTrainer, path: Path) -> None:
        is_of_this_run = trainer.best_fitness is not None and trainer.args.save
        if is_of_this_run and trainer.best.exists():
            strip_optimizer(trainer.best, s=str(path))
        else:
            with kept(trainer, "metrics"):
                trainer.metrics = trainer.metrics or {}
                save_checkpoint(trainer, path, epoch=trainer.epoch - 1)
            strip_optimizer(path)
        if not checkpoint.is_pruned(student_of(trainer.model).yaml):
            checkpoint.unmark_file(path)

    def _log(self, text: str) -> None:
        with talking(self.config.verbose):
            say(text)


def _bend_learning_rate(trainer: BaseTrainer, last_cut: int | None, mode: str) -> None:
    """Let the run's scheduler read its own curve where `learning_rate_epoch` says."""
    scheduler, curve = trainer.scheduler, trainer.lf
    stock = getattr(curve, "stock", curve)

    def bent(epoch: float) -> float:
        return float(stock(learning_rate_epoch(int(epoch), trainer.epochs, last_cut, mode)))

    bent.stock = stock  # type: ignore[attr-defined]  # the next cut bends the run's own curve, not this one
    trainer.lf, scheduler.lr_lambdas = bent, [bent] * len(scheduler.lr_lambdas)


@contextmanager
def _attempt(trainer: BaseTrainer, what: str) -> Iterator[tuple[Cut, Randomness]]:
    """Record what happens to a run between two epochs; if it fails, take it back, and if not, retire the best model.

    Nothing of it draws on the run's random numbers, whose states are handed out.

    Raises:
        CutError: If anything failed; the trainer is as it was.
    """
    done = Cut()
    with preserved_rng() as randomness:
        try:
            yield done, randomness
        except BaseException as e:  # an interrupt, too, must not leave half a cut
            done.undo()
            if not isinstance(e, Exception):
                raise
            raise CutError(
                f"{what} at epoch {trainer.epoch} failed and was taken back; {trainer.last} can be resumed. "
                f"{type(e).__name__}: {e}"
            ) from e
    if ranks.is_first():
        trainer.best.unlink(missing_ok=True)


def _score(fitness: float | None) -> str:
    return "not validated" if fitness is None else f"{fitness:.3f}"


def _from_to(cost: dict[str, int]) -> str:
    """Return ``1.62G -> 1.21G (-25.3%)``."""
    before, after = cost["before"], cost["after"]
    return f"{count(before)} -> {count(after)} ({after / before - 1:+.1%})"
