from __future__ import annotations

import pytest
import torch
from nets import FAMILIES, build
from torch import nn
from ultralytics.nn.modules import block, conv

from yolo_prune import blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_of_the_supported_families_is_known(family: str) -> None:
    assert all(blocks.is_known(m) for m in build(family).model.modules())


def test_a_subclass_of_a_known_block_is_not_taken_for_it() -> None:
    class Own(block.C2f):
        """Might compute anything."""

    own = Own(8, 8)
    assert blocks.adapter_for(own) is None and not blocks.is_known(own)


def test_a_registered_adapter_makes_a_block_known() -> None:
    class Own(nn.Module):
        """A user's block."""

    @blocks.register(Own)
    class OwnAdapter(blocks.Adapter):
        """Nothing to do."""

    assert isinstance(blocks.adapter_for(Own()), OwnAdapter) and blocks.is_known(Own())


def test_a_split_convolution_computes_what_the_whole_one_does() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential()
            self.inner.cv = conv.Conv(4, 6)

    net = Net().eval()
    whole = net.inner.cv
    shadow = blocks.Shadow(net)
    parts = shadow.split("inner", "cv", [[0, 2, 4], [1, 3, 5]])
    x = torch.rand(1, 4, 5, 5)
    for i, part in enumerate(parts):
        path, channels = shadow.slices[f"inner.cv.{i}.conv"]
        assert path == "inner.cv.conv"
        part.to_empty(device="cpu")
        part.conv.weight.data = whole.conv.weight.data[channels]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(part.bn, name).data = getattr(whole.bn, name).data[channels]
        part.bn.eps = whole.bn.eps
        torch.testing.assert_close(part.eval()(x), whole(x)[:, channels])


def test_the_unknown_has_no_attributes_that_follow() -> None:
    assert blocks.Adapter().follow(nn.Identity()) == {}
