"""Before the first cut: detection levels and classes that go, and what the network had with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from ultralytics.nn.modules.head import Classify

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import BYTES, LATENCY, MACS, PARAMS, RAM
from yolo_prune.cost.budget import file_bytes
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.file_sizes import file_sizes
from yolo_prune.deploy.latency_profile import latency_of
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.graph.trace import trace
from yolo_prune.host import ddp
from yolo_prune.host.checkpoint import load_network, remarked, run_record
from yolo_prune.host.kept_data import with_classes
from yolo_prune.host.level_boxes import boxes_per_level
from yolo_prune.host.patches import patch
from yolo_prune.importance.objective import copy_of
from yolo_prune.report.given import Given
from yolo_prune.surgery.classes import chosen, keep_classes, names_of
from yolo_prune.surgery.levels import drop_levels, levels_of
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.utils.console import log
from yolo_prune.utils.text import count

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

RARE = 0.02
"""Share of the boxes below which it is said that a level could go."""


def reduce(
    network: nn.Module, config: PruneConfig, imgsz: int | tuple[int, int], undo: UndoLog | None = None
) -> Given | None:
    """Remove the levels and classes of a network that a configuration says, in place.

    Args:
        network: Not fused; a pruned one stays pruned.
        config: The options.
        imgsz: Image size in pixels, for which multiply-adds are counted.
        undo: Takes what was done, to take it back.

    Returns:
        What the network had, or None if nothing was asked for.

    Raises:
        ConfigError: If it has no such level or class.
        UnsupportedError: If levels or classes of it cannot be removed.
    """
    if not (config.drop_levels or config.keep_classes):
        return None
    undo = UndoLog() if undo is None else undo
    with remarked(network, undo):
        if config.keep_classes:
            undo.extend(keep_classes(network, chosen(network.names, config.keep_classes)))
        kept = names_of(network.names) if config.keep_classes else []
        amounts = {}
        if config.drop_levels:
            levels_of(network)  # refuses what has none, before it is traced
            amounts = _amounts(network, config, imgsz)
            undo.extend(drop_levels(network, config.drop_levels))
    given = Given([*config.drop_levels], kept, amounts)
    if ddp.is_first():
        log(f"{given.told()}: {count(sum(p.numel() for p in network.parameters()))} parameters are left")
    return given


def check_reduction(trainer: BaseTrainer, config: PruneConfig) -> None:
    """Raise an UnsupportedError if levels cannot go in a run for what else it does."""
    if config.drop_levels and (isinstance(config.distill, str) or trainer.args.distill_model):
        raise UnsupportedError(
            "drop_levels with a teacher that has all levels: there is nothing to compare its maps with; use "
            "distill=True, which learns from the network without the levels, or leave one out."
        )


def classes_to_keep(trainer: BaseTrainer, config: PruneConfig | None) -> tuple[str, ...]:
    """Return the classes that a run keeps, as they were asked for; a resumed one goes on with its own."""
    if trainer.resume and (noted := run_record(getattr(load_network(trainer.args.model), "yaml", None))):
        return tuple(noted["config"].get("keep_classes", ()))
    return config.keep_classes if config else ()


def keep_classes_of_data(trainer: BaseTrainer, asked: Sequence[str]) -> None:
    """Let a trainer's data set have some of its classes, now or as soon as it is read."""
    if getattr(trainer, "data", None) is not None:
        trainer.data = with_classes(trainer, trainer.data, asked)
        return
    stock = trainer.get_dataset

    def get_dataset() -> dict[str, Any]:
        return with_classes(trainer, stock(), asked)

    patch(trainer, "get_dataset", get_dataset)


def rows_by_name(weights: Any, names: Sequence[str]) -> Any:
    """Return weights for these classes: Ultralytics' own ``load`` finds rows by name, but not those of a classifier."""
    if isinstance(weights, nn.Module) and isinstance(weights.model[-1], Classify):
        known = {name: i for i, name in enumerate(names_of(weights.names))}
        if set(names) <= known.keys():
            weights = copy_of(weights)
            keep_classes(weights, [known[name] for name in names])
    return weights


def describe_levels(network: nn.Module, imgsz: int | tuple[int, int], batches: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each level that could be removed: which boxes are learned there, and what it costs.

    Args:
        network: A detection network of a trainer; it stays as it is.
        imgsz: Image size in pixels.
        batches: Preprocessed batches with labels.
    """
    try:
        levels = levels_of(network)
    except UnsupportedError:
        return []
    lines, whole, boxes = [], CostModel(trace(network, imgsz)), boxes_per_level(network, batches)
    for level, place in levels.items() if sum(boxes) else ():
        copy, undo = copy_of(network), UndoLog()
        try:
            with remarked(copy, undo):
                drop_levels(copy, (level,))
        except (ConfigError, UnsupportedError):
            continue
        rest, share = CostModel(trace(copy, imgsz)), boxes[place] / sum(boxes)
        params, macs = 1 - rest.params() / whole.params(), 1 - rest.macs() / whole.macs()
        saved = f"{params:.0%} of the parameters, {macs:.0%} of the MACs"
        lines.append(f"P{level}: {share:.1%} of the boxes, {saved}{f': drop_levels={level}' if share < RARE else ''}")
    return lines


def _amounts(network: nn.Module, config: PruneConfig, imgsz: int | tuple[int, int]) -> dict[str, float]:
    """Return what a network has of multiply-adds, of parameters, and of what targets are shares of."""
    shares = [target for target in config.targets if target.removed is not None]
    graph = trace(network, imgsz, reid=config.reid)
    cost = CostModel(graph)
    amounts: dict[str, Any] = {MACS: cost.macs(), PARAMS: cost.params()}
    asked = {target.quantity for target in shares}
    amounts |= {quantity: cost.amount(quantity) for quantity in asked if quantity in RAM}
    if BYTES in asked:
        amounts[BYTES] = file_bytes(network)
    if LATENCY in asked and not config.latency:  # a kit has measured the network without the levels
        amounts[LATENCY] = latency_of(network, graph, config.runtime, None).dense
    return {**amounts, **file_sizes(network, shares, graph.imgsz)}
