"""Ultralytics' command that trains in bfloat16 on a CPU, as ``amp=bf16`` does on a GPU.

    python benchmarks/bfloat16.py train model=yolov8n.pt data=my.yaml prune=0.5

Forward passes of a training are in bfloat16 (`torch.autocast`). In single precision are weights, gradients, the loss of
what a network predicts, validation, and all that yolo_prune measures. Images are in channels-last order in training and
in validation. An epoch takes about 60 % of the time. With a GPU this is Ultralytics' own command, with its AMP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from yolo_prune.cli.startup import prepare


def in_channels_last(predict_once: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``BaseModel._predict_once``, with images in channels-last order in a training and its validation."""

    @wraps(predict_once)
    def run(network: Any, x: torch.Tensor, *others: Any, **given: Any) -> Any:
        if torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():  # Ultralytics validates so
            x = x.contiguous(memory_format=torch.channels_last)
        return predict_once(network, x, *others, **given)

    return run


def in_single_precision(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``BaseModel.loss``, of which the forward pass alone is in bfloat16."""

    @wraps(loss)
    def run(network: Any, batch: dict[str, Any], preds: Any = None) -> Any:
        preds = single(network.forward(batch["img"]) if preds is None else preds)
        with torch.autocast("cpu", enabled=False):
            return loss(network, batch, preds)

    return run


def single(value: Any) -> Any:
    """Return tensors, in containers as they come, in single precision."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: single(of) for key, of in value.items()}
    return type(value)(map(single, value)) if isinstance(value, (list, tuple)) else value


def main() -> None:
    """Run the command."""
    prepare(sys.argv)
    from ultralytics.cfg import entrypoint
    from ultralytics.engine import trainer
    from ultralytics.nn.tasks import BaseModel

    if not torch.cuda.is_available():
        trainer.autocast = lambda *_, **__: torch.autocast("cpu", torch.bfloat16)
        BaseModel._predict_once = in_channels_last(BaseModel._predict_once)
        BaseModel.loss = in_single_precision(BaseModel.loss)
    entrypoint()


if __name__ == "__main__":
    main()
