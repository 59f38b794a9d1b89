"""Before the first epoch: refuse what cannot work, measure the dense network, schedule the cuts, or resume a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.sizes import checkpoint_name
from yolo_prune.config.targets import LATENCY
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.file_sizes import check_file_targets
from yolo_prune.deploy.formats import check_formats
from yolo_prune.deploy.latency_profile import latency_of
from yolo_prune.deploy.network_files import read_form
from yolo_prune.device.command import is_command
from yolo_prune.errors import CheckpointError, ConfigError, UnsupportedError
from yolo_prune.graph.layers import named_layers
from yolo_prune.host import checkpoint, ddp, distillation, qat
from yolo_prune.host.distillation import student_of
from yolo_prune.host.distillation_losses import choose
from yolo_prune.host.patches import patch
from yolo_prune.host.trainer import calibration_batches, forget_later_results, preserved_rng
from yolo_prune.planning.calibration import BY_GRADIENT, HELD_OUT, CalibrationData
from yolo_prune.planning.zeros import zeros_to_make
from yolo_prune.report.given import Given
from yolo_prune.report.records import Report, Stage
from yolo_prune.surgery.classes import names_of
from yolo_prune.surgery.slicing import check_optimizer
from yolo_prune.training import exact_state
from yolo_prune.training.exact_state import StepCount
from yolo_prune.training.goals import fitness_at_start, fitness_of_named, schedule_of, set_goals
from yolo_prune.training.progress import Progress
from yolo_prune.training.reduction import check_reduction, classes_to_keep, keep_classes_of_data, reduce, rows_by_name
from yolo_prune.training.run import Run
from yolo_prune.training.run_files import note_recovered
from yolo_prune.training.schedule import quantization as quantization_epoch
from yolo_prune.training.snapshot import Snapshot
from yolo_prune.training.sparsity import Sparsity
from yolo_prune.utils.console import PREFIX, log, verbosity
from yolo_prune.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.engine.trainer import BaseTrainer


@dataclass
class Prepared:
    """State of a run before its network is built.

    Attributes:
        quantizes: Whether ``quantize=8`` was asked for and is put off until after the last cut.
        knows_classes: Whether the network is made from weights of the data's classes.
        given: The network before levels and classes of it were removed, or None where none are.
        was_cut_short: Whether the checkpoint of these weights says that its training was not over.
    """

    quantizes: bool = False
    knows_classes: bool = False
    given: Given | None = None
    was_cut_short: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether the network was trained to the end before this run, as far as can be told."""
        return self.knows_classes and not self.was_cut_short


def prepare(trainer: BaseTrainer, config: PruneConfig | None, launched: Prepared | None = None) -> Prepared:
    """Before the network is built: refuse what cannot work, and let pruned checkpoints be rebuilt pruned.

    Args:
        trainer: At ``on_pretrain_routine_start``.
        config: The options, or None to take them from the checkpoint that is resumed.
        launched: What was prepared in the process that has started this one, and built the network.

    Returns:
        What `open_run` needs to know; the classes are known once the network has been built.

    Raises:
        UnsupportedError: If the run uses a feature that cannot be combined with pruning.
        ConfigError: If the schedule does not fit the run's epochs.
        CheckpointError: If the teacher of a run that is resumed is not there.
    """
    prepared = Prepared(knows_classes=launched.knows_classes, given=launched.given) if launched else Prepared()
    if config is not None:
        check_reduction(trainer, config)
        check_formats(config.export)
        check_file_targets(config.targets)
        # How much is removed, nobody knows yet.
        n = len(config.sizes) or bool(config.targets)
        planned = schedule_of(config, trainer.epochs, removed=[(i + 1) / (n + 1) for i in range(n)])
        if trainer.args.quantize == 8 and len(config.sizes) > 1:
            raise ConfigError(
                f"sizes={','.join(config.sizes)} with quantize=8: the run turns to INT8 once, after its last cut; ask "
                "for one size, or train without quantize=8 and give export=onnx:8."
            )
        prepared.quantizes = qat.prepare(trainer, config)
        if prepared.quantizes:
            quantization_epoch(epochs=trainer.epochs, at=config.quantize_at, cuts=planned)
        if config.distill and not trainer.resume:
            distillation.prepare(trainer, config.distill)
        if config.max_drop is not None and not trainer.args.val:
            raise ConfigError(f"max_drop={config.max_drop:g} needs validation after each epoch; give val=True.")
    distillation.find_teacher(trainer)
    is_verbose = None if config is None else config.verbose
    if keeps := classes_to_keep(trainer, config):
        keep_classes_of_data(trainer, keeps)
    build = partial(_get_model, trainer.get_model, bool(trainer.resume), is_verbose)

    def build_and_note(*arguments: Any, **keywords: Any) -> nn.Module:
        given = {**dict(zip(_GET_MODEL, arguments, strict=False)), **keywords}
        learned, asked = (
            names_of(names) for names in (getattr(given.get("weights"), "names", ()), trainer.data.get("names", ()))
        )
        prepared.knows_classes = set(asked) <= set(learned) if keeps else learned == asked
        if path := getattr(given.get("weights"), "pt_path", None):
            prepared.was_cut_short = checkpoint.training_of(path).finished is False
        if keeps and "weights" in given:
            given["weights"] = rows_by_name(given["weights"], asked)
        model = build(given)
        if config is not None and config.drop_levels and not trainer.resume:
            with verbosity(config.verbose):
                stride = max(int(model.stride.max()), 32)  # as Ultralytics will have it
                imgsz = check_imgsz(trainer.args.imgsz, stride, floor=stride, max_dim=1)
                prepared.given = reduce(model, config.replace(keep_classes=()), imgsz)
        if keeps and not trainer.resume:
            prepared.given = replace(prepared.given or Given([], [], {}), classes=asked)
        return model

    patch(trainer, "get_model", build_and_note)
    return prepared


def open_run(trainer: BaseTrainer, config: PruneConfig | None, prepared: Prepared | None = None) -> Run:
    """Start a run, or resume one.

    Args:
        trainer: At ``on_pretrain_routine_end``: network, optimizer and EMA exist.
        config: The options, or None to take them from the checkpoint that is resumed.
        prepared: What `prepare` returned, or None if nothing will be trained.

    Raises:
        CheckpointError: If there is nothing to resume, or no configuration.
        UnsupportedError: If the network or the run cannot be pruned.
        TargetError: If the target cannot be reached.
    """
    model = student_of(trainer.model)
    noted = checkpoint.run_record(getattr(model, "yaml", None)) if trainer.resume else None
    if noted:
        progress = Progress.from_dict(noted)
        if config and config.distill is None:
            config = config.replace(distill=progress.config.distill)
        if config not in (None, progress.config):
            LOGGER.warning(f"{PREFIX}a resumed run keeps its own configuration, the given one is not used")
    elif config is None:
        raise CheckpointError(
            f"{trainer.args.model} holds no pruning run to continue; say how much to remove, e.g. prune=0.5, or "
            "prune=0 where a pruned model is trained on."
        )
    else:
        report = Report([trainer.args.imgsz] * 2, Stage(), config.to_dict(), start=str(trainer.args.model or ""))
        progress = Progress(config, report, trainer.epochs)
    run = Run(trainer, progress, RunFolder(Path(trainer.save_dir)), StepCount(trainer))
    with verbosity(run.config.verbose):
        if noted:
            resume(run)
        elif run.config.targets or run.config.drop_levels or run.config.keep_classes:
            start(run, prepared)
        if run.config.distill:
            distillation.check_distillable(model)
            distillation.keep_columns(trainer)
            choose(unwrap_model(trainer.model), run.config.distill_loss)
        if progress.pending:
            listen(run)
    return run


def start(run: Run, given: Prepared | None) -> None:
    """Look at the dense network, refuse what it cannot reach, and schedule the cuts."""
    prepared, trainer, config, progress = given or Prepared(), run.trainer, run.config, run.progress
    model = run.model
    progress.starts_pruned = checkpoint.is_pruned(model.yaml)
    check_optimizer(trainer.optimizer)
    if config.lr_after_cut not in (None, "keep") and not hasattr(trainer.scheduler, "lr_lambdas"):
        raise UnsupportedError(
            f"lr_after_cut={config.lr_after_cut} bends Ultralytics' own learning-rate curve, and this run's "
            f"scheduler is a {type(trainer.scheduler).__name__}; use lr_after_cut=keep."
        )
    cost, (*larger, smallest) = _look_at_channels(run, prepared)
    if config.distill is None and not (prepared.knows_classes and _may_be_distilled(run)):
        progress.settle(distill=False)
    removed = [*larger, max(smallest, zeros_to_make(model, config))]
    progress.schedule = schedule_of(config, trainer.epochs, removed, prepared.knows_classes)
    if not progress.schedule and config.targets:
        run.log(f"target={config.target} holds already: nothing is cut")
    if prepared.quantizes:
        progress.quantize_epoch = quantization_epoch(
            epochs=trainer.epochs, at=config.quantize_at, cuts=progress.schedule
        )
    run.report.dense = Stage(
        cost.macs() if cost else None,
        cost.params() if cost else sum(p.numel() for p in model.parameters()),
        latency=run.latency.dense if run.latency else None,
        finished=given is None or prepared.is_finished,  # without, nothing is trained
        fitness_at_start=fitness_at_start(run) if prepared.knows_classes else None,
    )
    if given is not None:
        progress.reference = fitness_of_named(run)
    for network in {model, unwrap_model(trainer.model)}:
        network.yaml = checkpoint.with_run(model.yaml, progress.to_dict())
    if ddp.is_first():
        run.folder.clear()
        for size in progress.sizes:
            (trainer.wdir / checkpoint_name(size.name)).unlink(missing_ok=True)
        if run.latency:
            run.latency.save(run.folder.latency)


def _may_be_distilled(run: Run) -> bool:
    """Whether a run to one smaller network is one that Ultralytics distils."""
    if not run.progress.goal.amounts or len(run.config.sizes) > 1 or run.config.is_auto:
        return False
    try:
        distillation.prepare(run.trainer, distill=True)
        distillation.check_distillable(run.model)
    except (ConfigError, UnsupportedError):
        return False
    return True


def _look_at_channels(run: Run, prepared: Prepared) -> tuple[CostModel | None, list[float]]:
    """Set a run's goal, and return what its network costs, and the share that each size removes.

    Nobody knows the cost of a network that cannot be traced; only weights become zero there.
    """
    trainer, config, progress, model = run.trainer, run.config, run.progress, run.model
    try:
        graph = run.trace(model)
    except UnsupportedError:
        if config.cuts_channels or not config.zeros:
            raise
        config.check_patterns(path for path, _ in named_layers(model))
        return None, [0.0]
    config.check_patterns(graph.layers)
    if config.allocation in HELD_OUT:
        with preserved_rng():
            CalibrationData(model, calibration_batches(trainer, config.calibration)).halves()
    if config.is_timed or config.latency:
        run.latency = ddp.on_rank_zero(lambda: latency_of(model, graph, config.runtime, config.latency))
    elif config.runtime and not is_command(config.runtime):
        read_form(config.runtime)  # the run ends with it
    cost = CostModel(graph, run.latency)
    run.report.given = prepared.given
    progress.dense_units = graph.units()
    return cost, set_goals(run, graph, cost, prepared.given.amounts if prepared.given else None)


def resume(run: Run) -> None:
    """Read what the interrupted run left in its folder, and remove what it had begun and will do again."""
    trainer, progress = run.trainer, run.progress
    if [run.imgsz] * 2 != run.report.imgsz:
        raise UnsupportedError(
            f"imgsz={run.imgsz}: this run counts at imgsz={max(run.report.imgsz)} what is to be removed; resume it "
            "with that size, and with a smaller batch where memory is short."
        )
    if dense := run.report.dense.checkpoint:
        run.report.dense.checkpoint = str(checkpoint.found_again(Path(dense), Path(trainer.args.model)))
    if LATENCY in progress.goal.amounts or run.config.latency:
        run.latency = LatencyModel.load(run.folder.latency)
    if progress.quantizes:
        qat.check_available()
    try:
        run.resumed = exact_state.load(run.folder.state(trainer.start_epoch - 1, progress.changes))
    except CheckpointError as e:
        LOGGER.warning(f"{PREFIX}resuming from {trainer.last.name} alone, so later cuts will differ a little: {e}")
    if progress.deadline is not None:
        run.before_cut = Snapshot.load(run.folder.before_cut, trainer)
    note_recovered(run)
    if ddp.is_first():
        forget_later_results(trainer)
        if trainer.best_fitness is None:  # of before a cut that has been made since
            trainer.best.unlink(missing_ok=True)


def listen(run: Run) -> None:
    """Collect gradients from the run's own steps, and regularise until the first cut.

    Steps come after Ultralytics has undone AMP's loss scaling and clipped, and those that are skipped do not come.
    """
    model, config = run.model, run.config

    def collect(*_: Any) -> None:
        if run.progress.pending:
            run.gradients.add(model.parameters())

    if config.importance in BY_GRADIENT:
        run.trainer.optimizer.register_step_pre_hook(collect)
    if config.sparsity != "none" and not run.report.cuts:
        run.sparsity = Sparsity(model, run.trace(model), config.sparsity, config.sparsity_strength)
        run.sparsity.attach(run.trainer.optimizer)


_GET_MODEL = ("cfg", "weights", "verbose")
"""Parameters of a trainer's ``get_model``, in Ultralytics' order; a user's may lack ``verbose``, or have others."""


def _get_model(
    stock: Callable[..., nn.Module], resumes: bool, is_verbose: bool | None, given: dict[str, Any]
) -> nn.Module:
    """Build the network as a trainer's ``get_model`` does, but let pruned networks stay pruned.

    Args:
        stock: The trainer's own.
        resumes: Whether an interrupted run goes on.
        is_verbose: Whether the user wants lines, or None to ask the checkpoint.
        given: What it was called with, which is passed on; a user's own may take other arguments.
    """
    cfg: Any = given.get("cfg")
    if not checkpoint.is_marked(cfg):
        return stock(**given)
    if not resumes and not checkpoint.is_pruned(cfg):
        return stock(**{**given, "cfg": checkpoint.unmarked(cfg)})
    shows_model = given.get("verbose", True)
    quiet = {"verbose": False} if "verbose" in given else {}
    others = {name: value for name, value in given.items() if name not in _GET_MODEL}
    model = checkpoint.rebuild(stock, cfg, given.get("weights"), resumes, **quiet, **others)
    if shows_model and ddp.is_first() and checkpoint.is_pruned(cfg):
        noted = (checkpoint.run_record(cfg) or {}).get("config", {})
        with verbosity(noted.get("verbose", True) if is_verbose is None else is_verbose):
            log("the checkpoint is pruned, and its network is rebuilt pruned")
        model.info()
    return model
