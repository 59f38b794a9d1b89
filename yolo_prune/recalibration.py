"""BatchNorm statistics after a cut: the mean and variance of what now flows, over a few training batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from yolo_prune.surgery import Cut


def recalibrate(
    done: Cut, models: Sequence[nn.Module], images: Iterable[torch.Tensor], frozen: Sequence[str] = ()
) -> None:
    """Replace the running statistics by exact averages over ``images`` ("precise BN", Wu & Johnson 2021, section 3).

    Args:
        done: Records the replaced statistics, so that they come back with the cut's ``undo()``.
        models: Networks that see the same batches. No weight changes, and training flags are afterwards as before.
        images: Batches of shape (B, C, H, W), on the models' device; one is held at a time.
        frozen: Parts of names of layers that the run keeps frozen; their statistics stay.
    """
    norms = {
        m: m.momentum
        for model in models
        for name, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and m.track_running_stats and not any(part in name for part in frozen)
    }
    flags = {m: m.training for model in models for m in model.modules()}
    counts = {m: m.num_batches_tracked for m in norms}
    try:
        for m in flags:  # heads too: in training mode they do not decode boxes
            m.training = m in norms or not isinstance(m, nn.BatchNorm2d)
        for m in norms:
            m.momentum = None  # cumulative average
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                done.set(m._buffers, name, torch.zeros_like(m._buffers[name]))
        with torch.no_grad():
            for batch in images:
                for model in models:
                    model(batch)
    finally:
        for m, training in flags.items():
            m.training = training
        for m, momentum in norms.items():
            m.momentum = momentum
            m.num_batches_tracked = counts[m]
