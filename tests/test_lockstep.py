from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from yolo_prune.surgery.lockstep import Lockstep


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))


def batches() -> list[torch.Tensor]:
    return [torch.rand(2, 3, 4, size, generator=torch.Generator().manual_seed(size)) for size in (4, 6, 5)]


def test_inputs_are_made_by_what_layers_have_become() -> None:
    model, images = network(), batches()
    threads = threading.active_count()
    with Lockstep(model, images, {"0": model[0], "2": model[2], "3": model[3]}) as passes:
        for path in ("0", "2", "3"):
            for n, batch in enumerate(images):
                expected = model[: int(path)](batch)
                torch.testing.assert_close(passes.inputs(path, n), expected)
            model[int(path)].weight.data.mul_(2)  # all have come, and none has gone through
            passes.done(path)
    assert threading.active_count() == threads
    assert not any(layer._forward_pre_hooks for layer in model)


def test_a_batch_that_is_not_asked_for_comes_later() -> None:
    model, images = network(), batches()
    with Lockstep(model, images, {"0": model[0], "2": model[2]}) as passes:
        assert passes.inputs("0", 0) is images[0]
        passes.done("0")
        for n, batch in enumerate(images):
            torch.testing.assert_close(passes.inputs("2", n), model[:2](batch))


def test_a_layer_that_no_pass_comes_to_has_no_inputs() -> None:
    model, images = network(), batches()
    unused = nn.Conv2d(1, 1, 1)
    with Lockstep(model, images, {"0": model[0], "unused": unused}) as passes:
        passes.done("0")
        assert passes.inputs("unused", 0) is None


def test_a_layer_that_runs_twice_waits_once() -> None:
    layer = nn.Conv2d(3, 3, 1)
    model, images = nn.Sequential(layer, layer), batches()
    with Lockstep(model, images, {"0": layer}) as passes:
        assert passes.inputs("0", 0) is images[0]
        passes.done("0")
        assert passes.inputs("0", 0) is None


def test_what_a_pass_raises_is_raised_where_it_is_asked_for() -> None:
    model, threads = network(), threading.active_count()
    images = [*batches(), torch.rand(1, 5, 4, 4)]
    with (
        pytest.raises(RuntimeError, match="channels"),
        Lockstep(model, images, {"2": model[2]}) as passes,
    ):
        for n in range(len(images)):
            passes.inputs("2", n)
    assert threading.active_count() == threads
