"""One cut without training: the same trace, plan, surgery and reconstruction as in a run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.modules import conv
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune.config.choices import BY_DATA, BY_WEIGHTS, DATA_FREE
from yolo_prune.config.settings import HELP_TEXTS, PruneConfig
from yolo_prune.config.targets import LATENCY, MACS, PARAMS, QUANTITIES, RAM, in_units
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.file_sizes import file_sizes
from yolo_prune.deploy.formats import check_formats
from yolo_prune.deploy.latency_profile import latency_of
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.image import image_size
from yolo_prune.graph.trace import trace
from yolo_prune.graph.zeros import share_of_zeros, sparse_layers
from yolo_prune.host.checkpoint import marked
from yolo_prune.host.trainer import calibration_batches, never_training, save_checkpoint
from yolo_prune.importance.objective import copy_of
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import units_of
from yolo_prune.planning.calibration import CalibrationData, ranking_factory
from yolo_prune.planning.planner import plan_traced, request_for
from yolo_prune.planning.sensitivity import Sensitivity, scan
from yolo_prune.planning.zeros import plan_zeros, set_zeros
from yolo_prune.report.given import Given
from yolo_prune.report.records import Report
from yolo_prune.surgery.slicing import UndoLog, cut, network_of
from yolo_prune.training.finish import reid_hint
from yolo_prune.training.reduction import describe_levels, reduce
from yolo_prune.training.session import Session
from yolo_prune.training.setup import Prepared
from yolo_prune.utils.console import log, verbosity
from yolo_prune.utils.text import aligned, count


@dataclass(frozen=True)
class PruneResult:
    """Result of `prune_model`.

    Attributes:
        plan: What was cut, with its cost before and after; ``plan.apply`` does the same to a copy of the network.
        report: Accuracies, sizes and exports, or None without data.
        save_dir: The run's folder, with ``weights/best.pt`` and ``pruning/report.json``, or None without data.
    """

    plan: PrunePlan
    report: Report | None = None
    save_dir: Path | None = None


def apply_plan(plan: PrunePlan, model: YOLO | nn.Module) -> None:
    """Cut a model in place, all or nothing, and let its checkpoints say that it was pruned.

    Args:
        plan: The cut.
        model: A ``YOLO`` or its network, with the widths that the plan was made for.

    Raises:
        PlanError: If the plan was made for another network; nothing has been changed.
        UnsupportedError: If the model has no network to cut.
    """
    _apply(plan, model)


def _apply(plan: PrunePlan, model: YOLO | nn.Module) -> UndoLog:
    """Do what `apply_plan` does, and return how to take it back."""
    network = network_of(model)
    undo = cut(plan, [network])
    with undo.or_nothing():
        if plan.layers or plan.blocks:
            undo.set(network, "yaml", marked(network))
    if hasattr(model, "predictor"):
        model.predictor = None  # it holds a fused copy of the network before
    return undo


def prune_model(
    model: YOLO | nn.Module,
    target: Any = 0.5,
    *,
    data: str | Path | None = None,
    imgsz: int | tuple[int, int] | None = None,
    **options: Any,
) -> PruneResult:
    """Cut a model once, in place, without training.

    With ``data`` channels are chosen, weights reconstructed and BatchNorms matched on a few of its training images, the
    result is validated, and a run's folder is left like that of a training: one to three minutes for a nano model on
    two cores. Without data only the weights decide and nothing makes up for what is cut, so accuracy is lost until the
    model has been trained again, e.g. with ``PruneCallback(0).attach(model)`` and ``model.train(...)``.

    Args:
        model: A ``YOLO``; without data also its network (``YOLO(...).model``).
        target: Share of the multiply-adds to remove; also a PruneConfig, a dict of options or a YAML file.
        data: A data set as Ultralytics takes it, labelled, of the model's classes.
        imgsz: Image size in pixels, or (height, width), for which multiply-adds are counted (default: the model's own,
            else 640, for classification 224). With data it is the side of calibration and validation images.
        **options: Options of PruneConfig that mean something without training. With data also arguments of Ultralytics'
            ``train``, such as ``batch``, ``device``, ``project`` and ``name``.

    Returns:
        The plan, and with data the report and the run's folder.

    Raises:
        ConfigError: If an option is wrong, or means nothing without training, or Ultralytics refuses an argument.
        UnsupportedError: If the model is not a YOLO network that can be cut.
        TargetError: If the target is out of reach.
        CutError: If the cut failed; the model is as it was.
        ExportError: If an asked export failed; everything else is done and saved.

    Examples:
        >>> result = prune_model(YOLO("best.pt"), 0.15, data="my.yaml")
        >>> result.report.dense.fitness, result.report.final.fitness
        (0.585, 0.585)
    """
    others = {name: options.pop(name) for name in options.keys() - HELP_TEXTS.keys()} if data is not None else {}
    allowed = BY_WEIGHTS if data is None else BY_DATA
    if meaningless := sorted(options.keys() - set(allowed)):
        kind = "a cut without training" if data is not None else "a cut without training and data"
        raise ConfigError(f"{', '.join(meaningless)}: no option of {kind}. Valid: {', '.join(allowed[1:])}.")
    config = PruneConfig.from_dict({**(DATA_FREE if data is None else {}), **PruneConfig.given(target), **options})
    _check_one_target(config)
    network = unfused(model)
    imgsz = image_size(network, imgsz)
    undo = UndoLog()
    with verbosity(config.verbose), undo.or_nothing():
        given = reduce(network, config, imgsz, undo)
        if data is not None:
            return _prune_on_data(model, config, {**others, "data": str(data), "imgsz": imgsz}, given)
        graph, latency = _traced(network, config, imgsz, config.is_timed)
        sizes = file_sizes(network, config.targets, graph.imgsz)
        request = request_for(network, graph, config, latency, sizes, given.amounts if given else None)
        plan = plan_traced(network, graph, config, request).plan
        undo.extend(_apply(plan, model))
        if zeros := plan_zeros(network, config):
            set_zeros(undo, network, zeros)
            undo.set(network, "yaml", marked(network, zeros=True))
            log(f"{share_of_zeros(sparse_layers(network, config.is_ignored)):.1%} of the weights are zero")
        torch.compiler.reset()  # what was compiled for the old widths
        if hint := reid_hint(network):
            log(hint)
    return PruneResult(plan)


def sensitivity(
    model: YOLO, data: str | Path, *, imgsz: int | None = None, calibration: int | None = None, **arguments: Any
) -> tuple[Sensitivity, Path]:
    """Measure layer by layer what narrowing it costs, on held-out training images; the model stays as it is.

    Args:
        model: A ``YOLO``.
        data: A data set as Ultralytics takes it, labelled, of the model's classes.
        imgsz: Side of the images in pixels (default: the model's own).
        calibration: Training images; half of them judge. By default 64, or 128 of more than 20 classes.
        **arguments: Arguments of Ultralytics' ``train``, such as ``batch``, ``device``, ``project`` and ``name``.

    Returns:
        What was measured, and the run's folder with ``sensitivity.json`` and ``sensitivity.png``.

    Raises:
        ConfigError: If there are too few images, the data set has other classes, or Ultralytics refuses an argument.
        UnsupportedError: If the model is not a YOLO network that can be cut.
    """
    config, size = PruneConfig(calibration=calibration), image_size(network_of(model), imgsz)
    arguments = {"name": "sensitivity", **arguments, "data": str(data), "imgsz": size}
    with verbosity(arguments.get("verbose", True)), never_training(model, arguments) as trainer:
        network, graph = trainer.ema.ema, trace(trainer.ema.ema, trainer.args.imgsz)
        known = CalibrationData(network, calibration_batches(trainer, config.calibration))
        measured = scan(network, graph, ranking_factory(graph, config, known), *known.halves())
        measured.save(Path(trainer.save_dir))
        return measured, Path(trainer.save_dir)


def dry_run(
    model: YOLO,
    config: PruneConfig,
    *,
    data: str | None = None,
    imgsz: int | None = None,
    timed: bool = False,
    **arguments: Any,
) -> str:
    """Return the effect of one cut to the target, as text: the model stays as it is and nothing is trained.

    Args:
        model: A ``YOLO``.
        config: The options; without data the criterion has to be one that needs none.
        data: A data set as Ultralytics takes it, of whose training images criteria may look at some; with it
            Ultralytics makes an empty run's folder.
        imgsz: Side of the images in pixels (default: the model's own).
        timed: Whether to tell the latency, too; with a latency target it is told anyhow.
        **arguments: Arguments of Ultralytics' ``train``, such as ``batch`` and ``device``.

    Raises:
        ConfigError: If an argument is wrong, or means nothing without data.
        TargetError: If the target is out of reach.
        UnsupportedError: If the model cannot be cut, or latency cannot be measured here.
    """
    if data is None and arguments:
        raise ConfigError(f"{', '.join(arguments)}: says how to read data, and there is none; give data=… as well.")
    _check_one_target(config)
    network = network_of(model)
    size, undo = image_size(network, imgsz), UndoLog()
    with verbosity(config.verbose), ExitStack() as stack:
        stack.callback(undo.undo)
        given = reduce(network, config, size, undo)
        graph, latency = _traced(network, config, size, timed or config.is_timed)
        sizes = file_sizes(network, config.targets, graph.imgsz)
        request = request_for(network, graph, config, latency, sizes, given.amounts if given else None)
        levels: list[str] = []
        if data is None:
            plan = plan_traced(network, graph, config, request).plan
        else:
            arguments = {**arguments, "data": data, "imgsz": size}
            with never_training(model, arguments, bool(config.keep_classes)) as trainer:
                batches = calibration_batches(trainer, config.calibration)
                levels = describe_levels(network, size, batches)
                plan = plan_traced(network, graph, config, request, CalibrationData(network, batches)).plan
    cost, left, units = CostModel(graph, latency), CostModel(graph, latency, plan.blocks), units_of(graph, plan)
    rows: list[tuple[str, ...]] = [("layer", "channels", "kept")]
    for path, sides in plan.layers.items():
        if (kept := len(sides["out"])) < (width := plan.widths[path]["out"]) and "in" in sides:
            rows.append((path, str(width), f"{kept} ({kept / width:.0%})"))
    amounts = []
    memory = [target.quantity for target in config.targets if target.quantity in RAM] or [*RAM][:1]
    for q in dict.fromkeys((*(q for q in QUANTITIES if latency or q != LATENCY), *memory)):
        before, after = cost.dense(q), left.amount(q, units)
        amounts.append(f"{in_units(q, before)} -> {in_units(q, after)} ({after / before - 1:+.1%})")
    for q in dict.fromkeys(target.quantity for target in config.targets if target.form):
        rest = sizes[q] - cost.amount(q)  # which no width changes
        before, after = rest + cost.amount(q), rest + left.amount(q, units)
        amounts.append(f"{in_units(q, before)} -> {in_units(q, after)} ({after / before - 1:+.1%})")
    if zeros := plan_zeros(network, config):
        layers = sparse_layers(network, config.is_ignored)
        weights, zero = sum(of.weight.numel() for of in layers.values()), sum(of.count for of in zeros.values())
        before, after = share_of_zeros(layers), zero / weights
        amounts.append(f"zeros {before:.1%} -> {after:.1%} of {count(weights)} weights, in {len(zeros)} layers")
    locked = [f"  {entry['layer']}: {entry['why']}" for entry in plan.locked]
    if given and given.levels:
        told = (f"{in_units(q, given.amounts[q])} -> {in_units(q, cost.dense(q))}" for q in (MACS, PARAMS))
        amounts.insert(0, f"{given.told()}: {', '.join(told)}")
    blocks = [f"blocks removed: {', '.join(plan.blocks)}"] if plan.blocks else []
    return "\n".join([aligned(rows), *blocks, "locked:", *(locked or ["  nothing"]), *levels, *amounts])


def unfused(model: Any) -> nn.Module:
    """Return the network of a model with its BatchNorms: ``predict``, ``val`` and ``fuse`` merge them in place.

    Raises:
        UnsupportedError: If they are merged, and the model's file does not hold them: what is left of a cut could not
            be trained.
    """
    network = network_of(model)
    if not is_fused(network):
        return network
    path = getattr(model, "ckpt_path", None)
    if path and Path(path).is_file():
        whole: nn.Module = load_checkpoint(path)[0]
        merged = copy_of(whole).fuse(verbose=False).state_dict()
        now = network.state_dict()
        if merged.keys() == now.keys() and all(torch.equal(merged[name], now[name].to(merged[name])) for name in now):
            log(f"the network was fused by predict or val, so its weights are read again from {path}")
            model.model = whole
            return whole
    raise UnsupportedError(
        "the network is fused: predict(), val() or fuse() has merged its BatchNorms into its convolutions, and what is "
        "left of a cut could not be trained. Load it anew, e.g. YOLO('best.pt'), and cut it before anything else."
    )


def _check_one_target(config: PruneConfig) -> None:
    """Raise a ConfigError if a cut without training is to find its target, or to hand over several models."""
    if config.is_auto or len(config.sizes) > 1:
        given = "target=auto" if config.is_auto else f"sizes={','.join(config.sizes)}"
        raise ConfigError(f"{given} needs a training, which recovers and is judged; give one target, e.g. 0.3.")


def is_fused(network: nn.Module) -> bool:
    """Whether a network has lost the BatchNorms of its convolutions."""
    return any(
        isinstance(module, (conv.Conv, conv.ConvTranspose)) and not hasattr(module, "bn") and "forward" in vars(module)
        for module in network.modules()
    )


def _traced(
    network: nn.Module, config: PruneConfig, imgsz: int | tuple[int, int], timed: bool
) -> tuple[ChannelGraph, LatencyModel | None]:
    """Return the channel groups of a network, and what has been measured of it where that is needed."""
    graph = trace(network, imgsz, config.is_ignored, reid=config.reid)
    config.check_patterns(graph.layers)
    if unread := [p for p, layer in graph.layers.items() if not (p.startswith("model.") or layer.positions)]:
        raise UnsupportedError(
            f"{unread[0]} belongs to the network, but no forward pass runs it, so that nobody knows which feature map "
            "it takes: give data=…, with which a training step shows it, or prune in a training."
        )
    return graph, latency_of(network, graph, config.runtime, config.latency) if timed or config.latency else None


def _prune_on_data(model: Any, config: PruneConfig, arguments: dict[str, Any], given: Given | None) -> PruneResult:
    """Let a run that never trains make its only cut."""
    if not isinstance(model, (YOLO, RTDETR)):
        raise UnsupportedError(f"data needs a YOLO, not its network ({type(model).__name__}): pass YOLO('….pt').")
    check_formats(config.export)
    whole = config.replace(schedule="one-shot", start=0.0)
    with never_training(model, arguments, bool(config.keep_classes)) as trainer:
        session = Session(trainer, whole, Prepared(knows_classes=True, given=given))
        session.before_epoch()
        save_checkpoint(trainer, trainer.best, epoch=0)
        trainer.final_eval()
        session.finish()
    model.model, model.ckpt = load_checkpoint(trainer.best)
    model.predictor, model.ckpt_path = None, str(trainer.best)
    run = session.run
    plan = PrunePlan.load(run.folder.plan(1)) if run.report.cuts else _nothing(trace(model.model, run.imgsz))
    session.close()
    return PruneResult(plan, run.report, Path(trainer.save_dir))


def _nothing(graph: ChannelGraph) -> PrunePlan:
    """Return the plan that cuts nothing of a network."""
    macs, params = ({"before": n, "after": n} for n in (CostModel(graph).macs(), CostModel(graph).params()))
    return PrunePlan({}, {}, macs, params, graph.imgsz)
