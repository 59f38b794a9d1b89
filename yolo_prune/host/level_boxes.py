"""Which detection level the boxes of a data set are learned at: Ultralytics' own assignment, counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from yolo_prune.importance.objective import calibrating, copy_of


def boxes_per_level(network: nn.Module, batches: Iterable[dict[str, Any]]) -> list[int]:
    """Return how many boxes are learned at each level of a head, in the order of its maps; nothing of a foreign loss.

    A box counts for the level whose positions have the largest sum of target scores for it, by the task-aligned
    assigner of the training's loss (Feng et al. 2021, "Task-aligned One-stage Object Detection", section 3.2)
    with the network's own predictions. One that the assigner gives to no position counts for none.

    Args:
        network: A detection network of a trainer; it stays as it is.
        batches: Preprocessed batches with labels.
    """
    copy: Any = copy_of(network)
    copy.criterion = criterion = copy.init_criterion()
    head, calls = copy.model[-1], []
    branch = criterion.one2many if isinstance(criterion, E2ELoss) else criterion
    if not isinstance(branch, v8DetectionLoss):
        return []
    branch.assigner.register_forward_hook(lambda module, taken, made: calls.append((taken[1].shape[1], made)))
    maps: list[list[int]] = []
    head.register_forward_pre_hook(lambda module, taken: maps.append([x.shape[-2] * x.shape[-1] for x in taken[0]]))
    counts = torch.zeros(head.nl, dtype=torch.long)
    for batch in batches:
        calls.clear()
        maps.clear()
        with torch.no_grad(), calibrating(copy):
            copy.loss(batch)
        positions, (_, _, scores, is_positive, box) = calls[0][0], calls[0][1]
        level = torch.repeat_interleave(torch.arange(head.nl), torch.tensor(maps[0])).to(box.device)
        assert len(level) == positions
        at = is_positive.bool().nonzero(as_tuple=True)
        boxes = int(box.max()) + 1 if box.numel() else 1
        weights = torch.zeros(len(box), boxes, head.nl, device=box.device)
        weights.index_put_((at[0], box[at].long(), level[at[1]]), scores[at].sum(-1).float(), accumulate=True)
        found = weights.flatten(0, 1)
        found = found[found.sum(-1) > 0]
        counts += torch.bincount(found.argmax(-1), minlength=head.nl).cpu()
    return [int(n) for n in counts]
