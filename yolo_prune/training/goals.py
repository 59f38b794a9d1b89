"""What a run is to reach, and when: its goal or those of its sizes, the dense fitness, and its cuts."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_prune.config.targets import in_units, read_targets
from yolo_prune.cost.budget import Goal
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.file_sizes import file_sizes
from yolo_prune.errors import CheckpointError, ConfigError, TargetError, describe_error
from yolo_prune.host import ddp
from yolo_prune.host.trainer import preserved_rng, validate, validate_file
from yolo_prune.planning.allocation import PlanRequest, check_reachable, least_amounts
from yolo_prune.planning.widths import width_options
from yolo_prune.training.guard import FIRST
from yolo_prune.training.progress import Size
from yolo_prune.training.schedule import ScheduledCut, attempts, family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from yolo_prune.config.settings import PruneConfig
    from yolo_prune.graph.groups import ChannelGraph
    from yolo_prune.training.run import Run


STEP = 1e-3
"""Of the way, between two sizes in different quantities that are as far."""


def set_goals(run: Run, graph: ChannelGraph, cost: CostModel, given: Mapping[str, float] | None = None) -> list[float]:
    """Read the run's targets for its dense network.

    Args:
        run: Its progress gets them.
        graph: Channel groups of its network.
        cost: What that costs.
        given: What the network cost as it was given, before whole parts of it went (see `Goal.of`).

    Returns:
        The share that each size removes, of what it cuts hardest, ascending; of one target, that one.

    Raises:
        TargetError: If one cannot be reached, or holds already beside others.
        ConfigError: If two are the same.
    """
    config, progress, model = run.config, run.progress, run.model
    if config.is_auto:
        progress.goal = _least(run, graph, cost)
        return [progress.goal.removed]
    files = ddp.on_rank_zero(lambda: file_sizes(model, config.targets, run.imgsz))
    if config.sizes:
        ordered = _ordered(config.sizes, cost, model, files, given)
        removed = [*accumulate((goal.removed for _, goal in ordered), lambda before, share: max(share, before + STEP))]
        progress.sizes = [Size(name, r / removed[-1], goal) for (name, goal), r in zip(ordered, removed, strict=True)]
        progress.goal = progress.sizes[-1].goal
    else:
        progress.goal = Goal.of(config.targets, cost, model, files, given)
        removed = [progress.goal.removed]
    for goal in [size.goal for size in progress.sizes] or [progress.goal]:
        check_reachable(graph, PlanRequest.of(config, goal.at(1.0), progress.dense_units, run.latency))
    return removed


def _ordered(
    names: Sequence[str],
    cost: CostModel,
    network: nn.Module,
    files: Mapping[str, int],
    given: Mapping[str, float] | None,
) -> list[tuple[str, Goal]]:
    """Return what each size is to cost, the largest model first.

    Args:
        names: The targets, as they were typed.
        cost: Of the dense network.
        network: The dense network.
        files: Bytes of its exports, for targets in such (see `Goal.of`).
        given: As for `set_goals`.

    Raises:
        TargetError: If the dense network has one of the sizes already.
        ConfigError: If two are the same.
    """
    goals = [(name, Goal.of(read_targets(name), cost, network, files, given)) for name in names]
    if held := next((name for name, goal in goals if not goal.amounts), None):
        raise TargetError(f"sizes: {held} holds already, before anything is cut; leave it out, or ask for less.")
    goals.sort(key=lambda pair: pair[1].removed)
    for (larger, first), (smaller, second) in pairwise(goals):
        if first.amounts == second.amounts:
            raise ConfigError(f"sizes: {larger} and {smaller} are the same for this network; leave one of them out.")
    return goals


def _least(run: Run, graph: ChannelGraph, cost: CostModel) -> Goal:
    """Return the least that a run which finds its own target can reach; its fractions are of the way there."""
    (quantity,) = (target.quantity for target in run.config.targets)
    request = PlanRequest.of(run.config, {quantity: 0.0}, run.progress.dense_units, run.latency)
    least = least_amounts(graph, request, width_options(graph, request))[quantity]
    dense = cost.dense(quantity)
    run.log(
        f"target=auto: at least {in_units(quantity, least)} of {in_units(quantity, dense)} can be reached; "
        f"max_drop={run.config.max_drop:g} decides"
    )
    return Goal({quantity: (dense, least)} if least < dense else {})


def fitness_at_start(run: Run) -> float | None:
    """Return the fitness of weights that have learned the data's classes, before they are trained on.

    None where the run does not validate, cuts nothing, or does so before its first epoch, when it is measured anyway.
    """
    trainer, schedule = run.trainer, run.progress.schedule
    if not trainer.args.val or not schedule or not schedule[0].epoch:
        return None
    trainer.epoch = trainer.start_epoch  # which a validator reads, and the first epoch sets
    with preserved_rng():
        return ddp.broadcast(validate(trainer)[1])


def fitness_of_named(run: Run) -> float | None:
    """Return the fitness of the dense model that is named for ``max_drop``, or None where nothing is judged by one.

    Raises:
        ConfigError: If there is no such file.
        CheckpointError: If Ultralytics cannot validate it with the run's data.
    """
    if not (dense := run.config.dense) or not run.progress.schedule:
        return None
    if not Path(dense).is_file():
        raise ConfigError(f"dense={dense}: there is no such file; name the checkpoint of the dense model.")
    try:
        with preserved_rng():
            return ddp.broadcast(validate_file(run.trainer, dense))
    except Exception as e:  # Ultralytics names no common class for what a wrong file, or one of other classes, raises
        raise CheckpointError(
            f"dense={dense} cannot be validated on {run.trainer.args.data} ({describe_error(e)}); name a checkpoint of "
            "the same task and classes."
        ) from e


def schedule_of(
    config: PruneConfig, epochs: int, removed: Sequence[float], knows_classes: bool = True
) -> list[ScheduledCut]:
    """Return the cuts of a run; where it is too short for the late ones of new classes, they come early after all."""
    start, end = config.span(knows_classes)
    try:
        if config.is_auto:
            first = attempts(epochs=epochs, start=start, end=end)[0]
            return [ScheduledCut(first, FIRST)] if any(removed) else []
        return family(
            epochs=epochs, removed=removed, start=start, end=end, steps=config.steps, schedule=config.schedule
        )
    except ConfigError:
        if knows_classes:
            raise
        return schedule_of(config, epochs, removed)
