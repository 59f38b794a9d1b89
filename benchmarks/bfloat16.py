"""Ultralytics' command with forward passes in bfloat16 on a CPU, as ``amp=bf16`` has them on a GPU.

    python benchmarks/bfloat16.py train model=yolov8n.pt data=my.yaml prune=0.5

An epoch takes about 60 % of the time. In bfloat16, on images in channels-last order, are the layers, in training and in
the validation after each epoch. Single precision are weights, gradients, the loss, the decoding of boxes, all that
yolo_prune measures, and the validation at the end of a run. With a GPU this is Ultralytics' own command, with its AMP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolo_prune.cli.startup import prepare


class Bfloat16:
    """Forward passes of Ultralytics' networks that are in bfloat16 where a trainer asks for them.

    Attributes:
        is_on: Whether they are now.
    """

    is_on = False

    @contextmanager
    def on(self, *_: Any, **__: Any) -> Iterator[None]:
        """Have it on, whatever precision is asked for."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False

    def layers(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``BaseModel._predict_once`` that computes in bfloat16 where that is on."""

        def predict_once(network: Any, x: torch.Tensor, *others: Any, **given: Any) -> Any:
            if not self.is_on:
                return stock(network, x, *others, **given)
            with torch.autocast("cpu", torch.bfloat16):
                return single(stock(network, x.contiguous(memory_format=torch.channels_last), *others, **given))

        return predict_once

    def validate(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``BaseTrainer.validate`` with it on."""

        def validate(trainer: Any) -> Any:
            with self.on():
                return stock(trainer)

        return validate


def decoded(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Detect._inference`` that decodes in single precision."""

    def inference(head: Any, preds: dict[str, Any]) -> Any:
        with torch.autocast("cpu", enabled=False):
            return stock(head, single(preds))

    return inference


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
    from ultralytics.nn.modules.head import Detect
    from ultralytics.nn.tasks import BaseModel

    if not torch.cuda.is_available():
        half = Bfloat16()
        trainer.autocast = half.on
        trainer.BaseTrainer.validate = half.validate(trainer.BaseTrainer.validate)
        BaseModel._predict_once = half.layers(BaseModel._predict_once)
        Detect._inference = decoded(Detect._inference)
    entrypoint()


if __name__ == "__main__":
    main()
