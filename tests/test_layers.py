from __future__ import annotations

import pytest
import torch
from nets import Chain
from torch import nn
from ultralytics.nn.modules import block
from ultralytics.nn.modules.conv import DWConvTranspose2d

from yolo_prune.graph import layers

KINDS = [
    (nn.Conv2d(8, 6, 3, bias=False), {"out": 3, "in": 5}),
    (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), {"out": 3, "in": 5}),
    (nn.Conv2d(8, 8, 3, groups=8), {"out": 5, "in": 5}),
    (nn.Conv2d(8, 16, 3, groups=4), {"out": 8, "in": 4}),
    (nn.ConvTranspose2d(8, 6, 2, 2), {"out": 3, "in": 5}),
    (DWConvTranspose2d(8, 8, 2, 2), {"out": 5, "in": 5}),
    (nn.Linear(8, 6), {"out": 3, "in": 5}),
    (nn.BatchNorm2d(8), {"out": 5}),
]


@pytest.mark.parametrize(("layer", "sides"), KINDS, ids=lambda x: type(x).__name__)
def test_a_resized_layer_differs_in_its_widths_only(layer: nn.Module, sides: dict[str, int]) -> None:
    layer.i, layer.f = 3, -1  # as Ultralytics marks the rows of a network
    new = layers.resized(layer, sides)
    assert type(new) is type(layer) and layers.widths(new) == sides
    assert (new.i, new.f) == (3, -1)
    assert (new.bias is None) == (layer.bias is None)
    told = layers.attributes(layer, sides)
    same = {k for k in vars(layer) if not k.startswith("_")} - told.keys() - {"i", "f"}
    assert all(getattr(new, k) == getattr(layer, k) for k in same)
    assert all(getattr(new, k) == v for k, v in told.items())


@pytest.mark.parametrize(("layer", "sides"), KINDS, ids=lambda x: type(x).__name__)
def test_slicing_gives_the_shapes_of_a_resized_layer(layer: nn.Module, sides: dict[str, int]) -> None:
    kept = {side: list(range(n)) for side, n in sides.items()}
    new = layers.resized(layer, sides)
    for name, tensor, slices in layers.tensors(layer, kept):
        for dim, indices in slices.items():
            tensor = tensor.index_select(dim, indices)
        assert tensor.shape == getattr(new, name).shape


def test_parameters_of_blocks_with_one_value_per_channel_are_layers() -> None:
    model = Chain(64, block.A2C2f(64, 64, 1, True, 1, True))
    found = dict(layers.named_layers(model))
    assert layers.widths(found["model.1.gamma"]) == {"out": 64}
    assert list(found)[-1] == "model.1.gamma", "what makes the channels comes first, so that groups have its name"
    resized = layers.resized(found["model.1.gamma"], {"out": 40})
    assert isinstance(resized, nn.Parameter) and resized.shape == (40,)
    assert "model.1.gamma" not in dict(layers.named_layers(Chain(64, block.A2C2f(64, 64))))


def test_only_convolutions_with_groups_are_grouped() -> None:
    assert layers.is_grouped(nn.Conv2d(4, 4, 1, groups=2))
    assert not layers.is_grouped(nn.Conv2d(4, 4, 1)) and not layers.is_grouped(nn.Linear(4, 4))
    assert not layers.is_grouped(nn.Parameter(torch.ones(3)))
