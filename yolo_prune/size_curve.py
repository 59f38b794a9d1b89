"""Accuracy against size before any training: one model, cut to several sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultralytics import YOLO

from yolo_prune.config.choices import BY_DATA
from yolo_prune.config.settings import HELP_TEXTS, PruneConfig
from yolo_prune.config.targets import LATENCY, QUANTITIES, Target, read_targets
from yolo_prune.cost.budget import Goal, file_bytes
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.latency_profile import latency_of
from yolo_prune.errors import ConfigError, TargetError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.image import image_size
from yolo_prune.graph.trace import trace
from yolo_prune.host.trainer import (
    calibration_batches,
    never_training,
    preserve_attributes,
    preserved_rng,
    validate,
)
from yolo_prune.importance.objective import copy_of
from yolo_prune.oneshot import unfused
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest, seconds_of
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.nested import nested_plans
from yolo_prune.report import curve_page
from yolo_prune.report.size_curve import Curve, CurvePoint
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import cut
from yolo_prune.training.rehearsal import REHEARSED, outside_readers
from yolo_prune.utils.console import log, progress_bar, silence, verbosity
from yolo_prune.utils.memory import borrowed_memory

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.engine.trainer import BaseTrainer

SIZES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of the multiply-adds that go."""
_OTHERS = {"target", "runtime", "latency", "benchmark", "export", "drop_levels", "keep_classes"}
OPTIONS = tuple(name for name in BY_DATA if name not in _OTHERS)
"""Prune options that mean something here."""


def curve(
    model: YOLO,
    data: str | Path,
    *,
    imgsz: int | None = None,
    sizes: str | Sequence[float | str] = SIZES,
    latency: str | None = None,
    runtime: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Curve:
    """Cut a model to several sizes without training, and validate each; the model stays as it is.

    Each size is cut and reconstructed as by `prune_model`. All of them are planned in one go (see
    `planning.nested.nested_plans`), which takes minutes for a nano model on two cores.

    Args:
        model: A ``YOLO`` that has learned the data's classes.
        data: A data set as Ultralytics takes it, labelled, of the model's classes.
        imgsz: Side of the images in pixels (default: the model's own).
        sizes: Targets, all of one quantity: shares of the multiply-adds to remove, or ``"50% params"``, ``"2 MB"``,
            ``"2x"``.
        latency: What a kit has measured of the model on a device: the curve is drawn against milliseconds, too.
        runtime: The same, measured on this machine in a runtime.
        out: Folder for ``curve.json``, its page and its picture (default: a run's folder of Ultralytics).
        **options: Options of PruneConfig that mean something without training, and arguments of Ultralytics' ``train``
            such as ``batch``, ``device``, ``project`` and ``name``.

    Raises:
        ConfigError: If an option or a size is wrong, or Ultralytics refuses an argument.
        UnsupportedError: If the model is not a YOLO network that can be cut, or a size is a latency and none is known.
        TargetError: If the largest of the sizes is out of reach.
    """
    targets = read_sizes(sizes)
    given = {name: options.pop(name) for name in options.keys() & HELP_TEXTS.keys()}
    if meaningless := sorted(given.keys() - set(OPTIONS)):
        raise ConfigError(f"{', '.join(meaningless)}: no option of a curve. Valid: {', '.join(OPTIONS)}.")
    config = PruneConfig.from_dict({**given, "latency": latency, "runtime": runtime})
    size = image_size(unfused(model), imgsz)
    if out is not None:
        folder = Path(out).resolve()  # Ultralytics reads a relative one below its own folder of runs
        options |= {"project": str(folder.parent), "name": folder.name, "exist_ok": True}
    arguments = {"name": "curve", **options, "data": str(data), "imgsz": size}
    with verbosity(config.verbose), never_training(model, arguments) as trainer, borrowed_memory(), preserved_rng():
        found = _measure(trainer, config, targets, str(model.ckpt_path or model.model_name))
    log(f"{found.table()}\n{found.advice}\n{found.folder}")
    return found


def read_sizes(sizes: Any) -> list[Target]:
    """Return the targets of a curve.

    Raises:
        ConfigError: If there is none, or they are not all of one quantity.
    """
    targets = list(read_targets(sizes if isinstance(sizes, (str, list, tuple)) else [sizes]))
    quantities = sorted({target.quantity for target in targets})
    if len(quantities) != 1 or quantities[0] not in QUANTITIES:
        raise ConfigError(
            f"sizes={sizes} are of {' and '.join(quantities) or 'nothing'}; give sizes of one of "
            f"{', '.join(QUANTITIES)}, e.g. 0.1,0.3,0.5 or 2 MB,1 MB."
        )
    return targets


def _measure(trainer: BaseTrainer, config: PruneConfig, targets: Sequence[Target], model: str) -> Curve:
    """Cut and validate size by size; ``curve.json`` grows with each."""
    dense, folder = trainer.ema.ema, Path(trainer.save_dir)
    imgsz, quantity = trainer.args.imgsz, targets[0].quantity
    graph = trace(dense, imgsz, config.is_ignored, reid=config.reid)
    config.check_patterns(graph.layers)
    with progress_bar("curve", 1 + len(targets)) as step:
        readers = outside_readers(trainer, graph, calibration_batches(trainer, REHEARSED)[0]) or {}
        graph = trace(dense, imgsz, config.is_ignored, readers, reid=config.reid)
        is_timed = bool(config.latency or config.runtime or quantity == LATENCY)
        latency = latency_of(dense, graph, config.runtime, config.latency) if is_timed else None
        requests = _requests(dense, graph, config, targets, latency)
        data = CalibrationData(dense, calibration_batches(trainer, config.calibration), readers=readers)
        started, cost = time.time(), CostModel(graph, latency)
        fitness = _fitness(trainer)
        first = CurvePoint(
            *("", cost.macs(), cost.params(), file_bytes(dense), fitness, latency.dense if latency else None),
            seconds=round(time.time() - started, 2),
        )
        found = Curve(model, str(trainer.args.data), str(trainer.args.task), [*graph.imgsz], quantity, first)
        found.timed, found.folder = dict(latency.where) if latency else None, folder
        step()
        try:
            for point in _points(trainer, graph, config, requests, data, latency):
                found.points.append(point)
                found.save(folder)
                step()
        except TargetError as e:
            if not found.points:
                raise
            found.out_of_reach = f"{[*requests][len(found.points)]}: {e}"
    found.save(folder)
    curve_page.write(found, folder)
    return found


def _requests(
    dense: nn.Module,
    graph: ChannelGraph,
    config: PruneConfig,
    targets: Sequence[Target],
    latency: LatencyModel | None,
) -> dict[str, PlanRequest]:
    """Return what to plan for each size, the largest first.

    Raises:
        ConfigError: If the dense network is as small as a size already.
    """
    cost = CostModel(graph, latency)
    requests = {}
    for target in targets:
        budget = Goal.of([target], cost, dense).at(1.0)
        if not budget:
            raise ConfigError(f"sizes: {target} is not smaller than the model is; leave it out.")
        requests[str(target)] = PlanRequest.of(config, budget, graph.units(), latency)
    return dict(sorted(requests.items(), key=lambda entry: -entry[1].budget[targets[0].quantity]))


def _points(
    trainer: BaseTrainer,
    graph: ChannelGraph,
    config: PruneConfig,
    requests: dict[str, PlanRequest],
    data: CalibrationData,
    latency: LatencyModel | None,
) -> Iterator[CurvePoint]:
    """Yield size by size what is left of the network."""
    plans = nested_plans(graph, config, [*requests.values()], data)
    for target in requests:
        started = time.time()
        planned = next(plans)
        network = cut_copy(data, planned.plan, config, trainer.freeze_layer_names)
        with preserve_attributes(trainer.ema, "ema"):
            trainer.ema.ema = network
            fitness = _fitness(trainer)
        yield CurvePoint(
            target=target,
            macs=planned.plan.macs["after"],
            params=planned.plan.params["after"],
            bytes=file_bytes(network),
            fitness=fitness,
            latency=seconds_of(graph, planned.plan, latency) if latency else None,
            plan_sha256=planned.plan.sha256,
            seconds=round(time.time() - started, 2),
        )


def _fitness(trainer: BaseTrainer) -> float | None:
    """Return the fitness of a trainer's EMA, without a table for each."""
    if not trainer.args.val:
        return None
    with silence():
        return validate(trainer)[1]


def cut_copy(data: CalibrationData, plan: PrunePlan, config: PruneConfig, frozen: Sequence[str] = ()) -> nn.Module:
    """Return a copy of a network that is cut and reconstructed, as a run does with its EMA."""
    network = copy_of(data.model)
    undo = cut(plan, [network])
    if config.reconstruction:
        reconstruct(undo, network, plan, data.statistics, data.images, frozen=frozen)
    return network
