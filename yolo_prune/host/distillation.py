"""Distillation across cuts: Ultralytics' own `DistillationModel` around the network that is pruned.

The student is planned and cut as if it were alone. What hangs on its channels follows: the projectors, which take the
same features as the head. A teacher can be there from the start (Ultralytics' ``distill_model``), or it is the dense
network of just before the first cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.nn.distill_model import DistillationModel, FeatureHook
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.host.checkpoint import found_again, load_network
from yolo_prune.host.distillation_losses import choose
from yolo_prune.host.patches import patch
from yolo_prune.plan import PrunePlan
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.utils.console import silence

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

TASKS = ("detect", "segment", "pose", "obb")
"""Tasks whose heads are Detect heads, which Ultralytics' DistillationModel looks for."""
LOSS = "dis_loss"
"""Ultralytics' name of the additional loss, as in ``results.csv``."""
TEACHER = "teacher_model."
"""Prefix of a teacher's tensors in a DistillationModel."""


def student_of(model: nn.Module) -> nn.Module:
    """Return the network that is pruned: the student of a DistillationModel, or the model itself, unwrapped."""
    model = unwrap_model(model)
    student: nn.Module = model.student_model if isinstance(model, DistillationModel) else model
    return student


def is_distilled(model: nn.Module) -> bool:
    """Whether a network learns from a teacher."""
    return isinstance(unwrap_model(model), DistillationModel)


def prepare(trainer: BaseTrainer, distill: bool | str) -> None:
    """Before the network is built: hand a given teacher to Ultralytics, and refuse what it cannot distil.

    Args:
        trainer: At ``on_pretrain_routine_start``.
        distill: True, or the path of a checkpoint.

    Raises:
        ConfigError: If there are two teachers, or there is no such file.
        CheckpointError: If the file is no checkpoint.
        UnsupportedError: If the task has no Detect head, or the run compiles its network.
    """
    if trainer.args.distill_model is not None:
        raise ConfigError(
            f"distill={distill} and distill_model={trainer.args.distill_model} both name a teacher; give one of them."
        )
    if trainer.args.task not in TASKS:
        raise UnsupportedError(
            f"distill: Ultralytics distils {', '.join(TASKS)}, and this run's task is {trainer.args.task}; use "
            "distill=False."
        )
    if trainer.args.compile:
        raise UnsupportedError(
            f"distill={distill} with compile={trainer.args.compile}: Ultralytics compiles no network that learns from "
            "a teacher; use compile=False or distill=False."
        )
    if isinstance(distill, str):
        if not Path(distill).is_file():
            raise ConfigError(f"distill={distill}: there is no such file; give the path of a .pt file, or True.")
        load_network(distill)
        trainer.args.distill_model = distill


def find_teacher(trainer: BaseTrainer) -> None:
    """Let a run that is resumed have its teacher, also where its files have come from elsewhere.

    Raises:
        CheckpointError: If it is not there any more.
    """
    asked = trainer.args.distill_model
    if trainer.resume and asked is not None and len(Path(asked).parts) > 1:  # Ultralytics may fetch a mere name
        trainer.args.distill_model = str(found_again(Path(asked), Path(trainer.args.model)))


def check_distillable(network: nn.Module) -> None:
    """Raise an UnsupportedError for a network that Ultralytics cannot distil."""
    head = network.model[-1]
    if not isinstance(head, Detect):
        raise UnsupportedError(
            f"distill: Ultralytics distils networks with a Detect head, and this one has a {type(head).__name__}; "
            "use distill=False."
        )


def wrapped_plan(plan: PrunePlan, model: nn.Module) -> PrunePlan:
    """Return the plan for a network as it is trained.

    Args:
        plan: Made for the student.
        model: The student itself, or a DistillationModel around it.
    """
    if not isinstance(model, DistillationModel):
        return plan
    layers = {f"student_model.{path}": sides for path, sides in plan.layers.items()}
    widths = {f"student_model.{path}": sides for path, sides in plan.widths.items()}
    head = len(model.student_model.model) - 1
    for level, projector in enumerate(model.projector):
        reader = f"model.{head}.cv2.{level}.0.conv"  # the head's first convolution takes what the projector takes
        if reader in plan.layers:
            sides = {"out": projector[0].out_channels, "in": plan.widths[reader]["in"]}
            widths[f"projector.{level}.0"] = sides
            layers[f"projector.{level}.0"] = {"out": list(range(sides["out"])), "in": plan.layers[reader]["in"]}
    blocks = tuple(f"student_model.{path}" for path in plan.blocks)
    return replace(plan, layers=layers, widths=widths, blocks=blocks)


def begin(undo: UndoLog, trainer: BaseTrainer, teacher: nn.Module, path: Path, loss: str) -> None:
    """From now on, let the network of a run learn from a teacher as well.

    Args:
        undo: Records what is replaced: the trainer's model, its EMA, and the optimizer's lists of parameters.
        trainer: A run whose model is not a DistillationModel yet.
        teacher: A network of the same task.
        path: Its checkpoint, where a resumed run finds it.
        loss: What is learned from it.
    """
    for network in (unwrap_model(trainer.model), trainer.ema.ema):
        undo.on_undo(partial(detach, network))
    teacher = teacher.to(trainer.device).float()
    model = DistillationModel(teacher_model=teacher, student_model=unwrap_model(trainer.model)).train()
    choose(model, loss)
    memo: dict[int, Any] = {id(model.teacher_model): None, id(model.student_model): trainer.ema.ema}
    averaged = deepcopy(model, memo).eval().requires_grad_(False)
    undo.set(trainer, "model", model)
    undo.set(trainer.ema, "ema", averaged)
    undo.set(trainer.ema, "_pairs", None)
    undo.set(trainer, "freeze_layer_names", [*trainer.freeze_layer_names, TEACHER])
    undo.set(trainer.args, "distill_model", str(path))
    if hasattr(trainer, "loss_items"):
        undo.set(trainer, "loss_items", {**trainer.loss_items, LOSS: torch.zeros(1, device=trainer.device)})
    undo.set(trainer, "loss_names", tuple(dict.fromkeys((*trainer.loss_names, LOSS))))
    # A resumed run builds its optimizer around the whole DistillationModel, and loads what is remembered by position.
    name = type(trainer.optimizer).__name__
    with silence():
        fresh = trainer.build_optimizer(model, name=name, lr=trainer.args.lr0, momentum=trainer.args.momentum)
    for group, like in zip(trainer.optimizer.param_groups, fresh.param_groups, strict=True):
        undo.set(group, "params", like["params"])


def detach(network: nn.Module) -> None:
    """Remove what reads the layers of a network that no DistillationModel is around any more.

    What was read last hangs on a graph, of which there are no copies, and would lie in each checkpoint.
    """
    for module in network.modules():
        for key, hook in [*module._forward_hooks.items()]:
            if isinstance(hook, FeatureHook):
                del module._forward_hooks[key]


def forget_features(model: nn.Module) -> None:
    """Let go of what a DistillationModel has read of its networks; their hooks would carry it into files."""
    if isinstance(model, DistillationModel):
        model._student_feats.clear()
        model._teacher_feats.clear()


def keep_columns(trainer: BaseTrainer) -> None:
    """Let ``results.csv`` have the columns of the additional loss from the first epoch on."""
    patch(trainer, "save_metrics", partial(_save_metrics, trainer.save_metrics))


def _save_metrics(stock: Callable[[dict[str, Any]], None], metrics: Mapping[str, Any]) -> None:
    row: dict[str, Any] = dict(metrics)
    for prefix in ("train/", "val/"):
        if f"{prefix}{LOSS}" not in row:
            last = max((i for i, name in enumerate(row) if name.startswith(prefix)), default=-1) + 1
            items = list(row.items())
            row = dict([*items[:last], (f"{prefix}{LOSS}", 0.0), *items[last:]])
    stock(row)
