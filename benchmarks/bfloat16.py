"""Ultralytics' command that trains in bfloat16 on a CPU, as ``amp=bf16`` does on a GPU.

    python benchmarks/bfloat16.py train model=yolov8n.pt data=my.yaml prune=0.5

The layers compute in bfloat16 while a network trains. Weights, gradients, the loss, validation, and all that yolo_prune
measures are in single precision. Images are in channels-last order in training and in validation. An epoch takes about
60 % of the time. With a GPU this is Ultralytics' own command, with its AMP.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from yolo_prune.cli.startup import prepare


class Layers:
    """How the layers of Ultralytics' networks compute.

    Attributes:
        dtype: Their precision, on images in channels-last order; None leaves both as they are.
    """

    dtype: torch.dtype | None = None

    @contextmanager
    def compute_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Have them compute in a precision for a while."""
        before, self.dtype = self.dtype, dtype
        try:
            yield
        finally:
            self.dtype = before

    def wrap(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``BaseModel._predict_once``, the pass through the layers, in that precision."""

        def predict_once(network: Any, x: torch.Tensor, *others: Any, **given: Any) -> Any:
            if self.dtype is None:
                return stock(network, x, *others, **given)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.bfloat16):
                return single(stock(network, x.contiguous(memory_format=torch.channels_last), *others, **given))

        return predict_once


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
        layers, validate = Layers(), trainer.BaseTrainer.validate

        def validate_in_single_precision(of: trainer.BaseTrainer) -> Any:
            with layers.compute_in(torch.float32):
                return validate(of)

        BaseModel._predict_once = layers.wrap(BaseModel._predict_once)
        trainer.autocast = lambda *_, **__: layers.compute_in(torch.bfloat16)
        trainer.BaseTrainer.validate = validate_in_single_precision
    entrypoint()


if __name__ == "__main__":
    main()
