"""What a student learns from a teacher, in place of the features that Ultralytics compares.

A `DistillationModel` compares maps level by level in `loss_sl2`, and adds up what that returns. Here it returns one of

    outputs   class probabilities and boxes, where the teacher sees something: Hinton, Vinyals & Dean 2015, "Distilling
              the Knowledge in a Neural Network", section 2, and of boxes' distributions Zheng et al. 2022,
              "Localization Distillation for Dense Object Detection", section 3.2
    cwd       maps, each channel as a distribution over positions: Shu et al. 2021, "Channel-wise Knowledge Distillation
              for Dense Prediction", section 3.2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.distill_model import DistillationModel

from yolo_prune.config.choices import DISTILL_LOSSES
from yolo_prune.errors import ConfigError
from yolo_prune.host.patches import patch

OUTPUTS, FEATURES, CWD = DISTILL_LOSSES
CLASS_GAIN, BOX_GAIN = 0.1, 0.3
"""Of both parts of `OUTPUTS`, times Ultralytics' ``dis`` of 6."""
BRANCHES = ("one2many", "one2one")
"""Of an end-to-end head; others have one that has no name."""
_STOCK: Callable[..., torch.Tensor] = DistillationModel.loss_sl2


def choose(model: nn.Module, kind: str) -> None:
    """Let a `DistillationModel` learn what is asked for.

    Args:
        model: As it is trained, unwrapped.
        kind: One of `DISTILL_LOSSES`.

    Raises:
        ConfigError: If a teacher's outputs are no such as the student's.
    """
    if not isinstance(model, DistillationModel) or kind == FEATURES:
        return
    mine, theirs = ((of.model[-1].nc, of.model[-1].reg_max) for of in (model.student_model, model.teacher_model))
    if kind == OUTPUTS and mine != theirs:
        raise ConfigError(
            f"distill_loss={kind} compares outputs, and the teacher's head has {theirs[0]} classes and {theirs[1]} "
            f"bins for a side of a box where this one has {mine[0]} and {mine[1]}; use distill_loss={FEATURES}, or a "
            "teacher of the same classes and family."
        )
    model.kind_of_loss = kind
    patch(DistillationModel, "loss_sl2", _loss_sl2)


def channel_wise(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the divergence of two maps of shape (B, C, H, W), in nats per channel: a mean over channels and images."""
    mine, theirs = (x.flatten(2).float().log_softmax(2) for x in (student, teacher))
    return (theirs.exp() * (theirs - mine)).sum(2).mean()


def outputs(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> torch.Tensor:
    """Return the divergence of what two heads make, per object that the teacher sees.

    Args:
        student: Has ``scores``, logits of shape (B, classes, anchors), and ``boxes``, of shape (B, 4 * bins, anchors).
        teacher: Has the same.
    """
    mine, theirs = (of["scores"].float() for of in (student, teacher))
    seen = theirs.sigmoid()
    weight = seen.amax(1, keepdim=True)
    objects = weight.sum().clamp_min(1)
    entropy = F.binary_cross_entropy_with_logits(theirs, seen, reduction="sum")
    classes = F.binary_cross_entropy_with_logits(mine, seen, reduction="sum") - entropy
    sides = (of["boxes"].float().unflatten(1, (4, -1)) for of in (student, teacher))
    boxes = (_of_sides(*sides).mean(1, keepdim=True) * weight).sum()
    return (CLASS_GAIN * classes + BOX_GAIN * boxes) / objects


def _of_sides(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the divergence of each side of boxes of shape (B, 4, bins, anchors), shape (B, 4, anchors)."""
    if student.shape[2] == 1:  # a distance, not a distribution of it
        return F.smooth_l1_loss(student, teacher, reduction="none")[:, :, 0]
    mine, theirs = student.log_softmax(2), teacher.log_softmax(2)
    return (theirs.exp() * (theirs - mine)).sum(2)


def _loss_sl2(
    model: DistillationModel, student_feat: torch.Tensor, teacher_feat: torch.Tensor, feat_idx: int, **more: Any
) -> torch.Tensor:
    """Stand in for `DistillationModel.loss_sl2`."""
    kind = getattr(model, "kind_of_loss", FEATURES)
    if kind == FEATURES:
        return _STOCK(model, student_feat, teacher_feat, feat_idx=feat_idx, **more)
    if kind == CWD:
        return channel_wise(student_feat, teacher_feat)
    if feat_idx:  # all levels at once, with the first
        return student_feat.new_zeros(())
    return torch.stack([outputs(*pair) for pair in _branches(model)]).mean()


def _branches(model: DistillationModel) -> list[tuple[Any, Any]]:
    """Return what student and teacher have made, in each branch of an end-to-end head, or in the only one."""
    made = [[*feats.values()][-1] for feats in (model._student_feats, model._teacher_feats)]  # a head runs last
    mine, theirs = (of[1] if isinstance(of, tuple) else of for of in made)  # in evaluation behind what is decoded
    named = [branch for branch in BRANCHES if branch in mine and branch in theirs]
    if named:
        return [(mine[branch], theirs[branch]) for branch in named]
    return [tuple(model.decouple_outputs(of, branch=BRANCHES[1]) for of in (mine, theirs))]
