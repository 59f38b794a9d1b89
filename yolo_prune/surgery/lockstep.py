"""Forward passes of several batches that wait for each other, layer by layer.

A layer that is solved needs its inputs for all images, made by layers that have been solved already. Each batch goes
through the network in a thread of its own, one at a time, and waits at the first layer that is not done yet. So only
what a forward pass still needs at that point is held for all images, whatever the network computes in between.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import torch
from torch import nn


class Lockstep:
    """Forward passes without gradients, one per batch; a context manager, at whose end all of them are given up.

    Args:
        model: The network.
        images: Batches of shape (B, C, H, W), each asked for when its pass begins.
        layers: Path -> layer at which the passes wait until it is `done`.
    """

    def __init__(self, model: nn.Module, images: Sequence[torch.Tensor], layers: Mapping[str, nn.Module]) -> None:
        self._done: set[str] = set()
        self._passes = [_Pass(model, images, n) for n in range(len(images))]
        self._here = threading.local()
        self._hooks = [layer.register_forward_pre_hook(self._hook(path)) for path, layer in layers.items()]

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for forward in self._passes:
            forward.give_up()

    def inputs(self, path: str, batch: int) -> torch.Tensor | None:
        """Return what a layer takes of a batch, or None if the forward pass does not come to it.

        Raises:
            Exception: Whatever the forward pass raises.
        """
        forward = self._passes[batch]
        while not forward.is_over and (forward.layer is None or forward.layer in self._done):
            forward.go_on(self._here)
        return forward.inputs if forward.layer == path else None

    def done(self, path: str) -> None:
        """Let the passes go through a layer from now on."""
        self._done.add(path)

    def _hook(self, path: str) -> Any:
        def wait(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if path not in self._done:
                self._here.forward.wait(path, inputs[0])

        return wait


class _GivenUp(BaseException):
    """Ends a forward pass whose rest nobody needs."""


class _Pass:
    """The forward pass of one batch: either it runs, or the thread that waits for it."""

    def __init__(self, model: nn.Module, images: Sequence[torch.Tensor], batch: int) -> None:
        self.layer: str | None = None
        """Where it waits."""
        self.inputs: torch.Tensor | None = None
        self.is_over = False
        self._model, self._images, self._batch = model, images, batch
        self._may_run, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_given_up = False

    def go_on(self, here: threading.local) -> None:
        """Run to the next layer that is not done, or to the end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(here,), daemon=True)
            self._thread.start()
        self.layer = self.inputs = None
        self._may_run.release()
        self._has_stopped.acquire()
        if self._error:
            raise self._error

    def wait(self, layer: str, inputs: torch.Tensor) -> None:
        """Wait at a layer, in the pass' own thread."""
        self.layer, self.inputs = layer, inputs
        self._has_stopped.release()
        self._may_run.acquire()
        if self._is_given_up:
            raise _GivenUp

    def give_up(self) -> None:
        """End the thread."""
        self._is_given_up = True
        if self._thread is not None:
            self._may_run.release()
            self._thread.join()
        self.layer = self.inputs = None

    def _run(self, here: threading.local) -> None:
        here.forward = self
        self._may_run.acquire()
        try:
            if not self._is_given_up:
                with suppress(_GivenUp), torch.no_grad():
                    self._model(self._images[self._batch].to(next(self._model.parameters()).dtype))
        except BaseException as e:
            self._error = e
        finally:
            self.is_over = True
            self._has_stopped.release()
