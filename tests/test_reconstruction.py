from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import Chain, assert_same_tensors, build, fast_and_slow, labelled_batches, make, state
from torch import nn
from ultralytics.nn.modules import block, conv

from yolo_prune.graph.outline import norms_behind
from yolo_prune.importance import statistics
from yolo_prune.importance.objective import calibrating
from yolo_prune.importance.statistics import layer_statistics
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.verification import largest_difference, outputs
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import UndoLog, cut


def images(n: int = 8, size: int = 32, seed: int = 0, dtype: torch.dtype = torch.double) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plan_for(model: nn.Module, removed: dict[str, dict[str, list[int]]]) -> PrunePlan:
    """Return a plan that removes channels, written by hand."""
    layers, widths = {}, {}
    for path, sides in removed.items():
        layer = model.get_submodule(path)
        has = {"out": getattr(layer, "out_channels", None) or layer.num_features}
        if hasattr(layer, "in_channels"):
            has["in"] = layer.in_channels
        widths[path] = has
        layers[path] = {s: [i for i in range(n) if i not in sides.get(s, [])] for s, n in has.items()}
    same = {"before": 1, "after": 1}
    return PrunePlan(layers, widths, same, same, (32, 32))


def labelled(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a batch of images with made-up labels for detection and segmentation."""
    masks = torch.ones(len(x), x.shape[2] // 4, x.shape[3] // 4)
    return {**labelled_batches(1, size=len(x))[0], "img": x, "masks": masks}


@pytest.fixture
def every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw each position once, so that means are those of whole maps."""

    def draw(energy: torch.Tensor, each: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(energy.shape[1]).expand(len(energy), -1), torch.ones_like(energy)

    monkeypatch.setattr(statistics, "_draw", draw)


class Plain(nn.Module):
    """Three convolutions without anything between them, so that channels can be linear combinations of others."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        return self(batch["img"]).square().sum(), None


def combined(middle: nn.Module, first: nn.Module | None = None) -> Plain:
    """Return a network whose first layer's channels 6 and 7 are linear combinations of the others."""
    torch.manual_seed(0)
    first = first or nn.Conv2d(3, 8, 3, padding=1)
    for tensor in (first.weight, first.bias):
        tensor.data[6] = 2 * tensor.data[0] - tensor.data[3]
        tensor.data[7] = 0.5 * tensor.data[1] + tensor.data[6]
    return Plain(first, middle).double()


MIDDLES: dict[str, Any] = {
    "1x1": lambda: nn.Conv2d(8, 5, 1),
    "3x3": lambda: nn.Conv2d(8, 5, 3, padding=1),
    "strided 3x3": lambda: nn.Conv2d(8, 5, 3, stride=2, padding=1),
    "dilated, not square": lambda: nn.Conv2d(8, 5, (3, 5), padding=(2, 4), dilation=2, bias=False),
    "reflected": lambda: nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(8, 5, 2, stride=2),
}


@pytest.mark.parametrize("kind", MIDDLES)
def test_removing_linear_combinations_of_what_stays_changes_no_output(kind: str) -> None:
    model = combined(MIDDLES[kind]())
    dense, x = copy.deepcopy(model), images()
    plan = plan_for(model, {"model.0": {"out": [6, 7]}, "model.1": {"in": [6, 7]}})
    seen = layer_statistics(model, [{"img": x}])
    done = cut(plan, [model])
    fresh = images(seed=1)
    assert largest_difference([model(fresh)], [dense(fresh)]) > 0.01
    reconstruct(done, model, plan, seen, [x])
    assert largest_difference([model(fresh)], [dense(fresh)]) < 1e-6


def test_a_bias_makes_up_for_the_mean_of_what_is_gone() -> None:
    first = nn.Conv2d(3, 8, 3, padding=1)
    model = combined(nn.Conv2d(8, 5, 1), first)
    model.model[0].weight.data[7], model.model[0].bias.data[7] = 0, 3.0  # a constant channel
    dense, x = copy.deepcopy(model), images()
    plan = plan_for(model, {"model.0": {"out": [7]}, "model.1": {"in": [7]}})
    seen = layer_statistics(model, [{"img": x}])
    done = cut(plan, [model])
    reconstruct(done, model, plan, seen, [x])
    assert largest_difference([model(x)], [dense(x)]) < 1e-6


def test_depthwise_layers_are_solved_group_by_group() -> None:
    torch.manual_seed(0)
    model = Plain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1)).double()
    dense, x = copy.deepcopy(model), images()
    seen = layer_statistics(model, [{"img": x}])
    model.model[0].weight.data *= 2  # what the depthwise layer takes has changed, and it can make up for that
    model.model[0].bias.data *= 2
    plan = plan_for(model, {"model.2": {}})
    reconstruct(UndoLog(), model, plan, seen, [x])
    assert largest_difference([model(x)], [dense(x)]) < 1e-6


@pytest.mark.parametrize("norms", [False, True])
def test_a_batchnorm_makes_up_for_the_mean_of_what_is_gone(norms: bool, every_position: None) -> None:
    torch.manual_seed(0)
    model = Chain(8, conv.Conv(8, 8, 3)).double()
    first = model.model[0].bn
    first.weight.data[7], first.bias.data[7] = 0, 3.0  # a constant channel
    dense, x = copy.deepcopy(model), images()
    plan = plan_for(model, {"model.0.conv": {"out": [7]}, "model.0.bn": {"out": [7]}, "model.1.conv": {"in": [7]}})
    seen = layer_statistics(model, [{"img": x}])
    reconstruct(cut(plan, [model]), model, plan, seen, [x], norms=norms)
    with calibrating(model), calibrating(dense), torch.no_grad():
        ours, theirs = (m.model[1].bn(m.model[1].conv(m.model[0](x))).mean((0, 2, 3)) for m in (model, dense))
    torch.testing.assert_close(ours, theirs)


class PreActivation(nn.Module):
    """A norm in front of the convolution, which is declared behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.bn(x).relu())


class TwoInARow(nn.Module):
    """Two convolutions, and a norm behind the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.second(self.first(x)))


def test_only_a_norm_that_takes_what_a_layer_makes_is_behind_it() -> None:
    found = norms_behind(Chain(8, PreActivation(8), TwoInARow(8), block.BottleneckCSP(8, 8)))
    of_blocks = {path: norm for path, norm in found.items() if path[6] in "123" and path.count(".") == 2}
    assert of_blocks == {"model.2.second": "model.2.bn"}
    assert found["model.0.conv"] == "model.0.bn" and found["model.3.cv1.conv"] == "model.3.cv1.bn"


@pytest.mark.parametrize("kind", [PreActivation, lambda width: block.BottleneckCSP(width, width)])
def test_a_norm_elsewhere_keeps_its_statistics(kind: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = Chain(8, kind(8)).double(), images()
    seen, plan = layer_statistics(model, [{"img": x}]), make(model, 0.4)
    done = cut(plan, [model])
    before = model.model[1].bn.running_mean.clone(), model.model[1].bn.running_var.clone()
    reconstruct(done, model, plan, seen, [x])
    assert torch.equal(model.model[1].bn.running_mean, before[0])
    assert torch.equal(model.model[1].bn.running_var, before[1])


def test_training_starts_from_what_evaluation_makes_of_the_solution(every_position: None) -> None:
    torch.manual_seed(0)
    model = Chain(8, conv.Conv(8, 8, 3)).double()
    x = images()
    with torch.no_grad():
        for _ in range(300):  # until the running statistics are those of these images
            model.train()(x)
    model.eval()
    seen, first, second = layer_statistics(model, [{"img": x}]), model.model[0], model.model[1]
    dense = second.bn(second.conv(first(x)))
    gone = [5, 6, 7]
    plan = plan_for(model, {"model.0.conv": {"out": gone}, "model.0.bn": {"out": gone}, "model.1.conv": {"in": gone}})
    reconstruct(cut(plan, [model]), model, plan, seen, [x])

    inputs = second.conv(first(x))
    solved = second.bn(inputs)
    assert solved.var() < 0.98 * dense.var()  # least squares makes less
    torch.testing.assert_close(second.bn.train()(inputs), solved, rtol=0.02, atol=0.02)


def test_a_batchnorm_makes_of_its_inputs_what_it_made_before() -> None:
    torch.manual_seed(0)
    model = Chain(8, conv.Conv(8, 8, 3)).double()
    dense, x = copy.deepcopy(model), images()
    seen = layer_statistics(model, [{"img": x}])
    norm, before = model.model[1].bn, {}
    model.model[1].conv.weight.data *= 3
    hook = norm.register_forward_hook(lambda *_: before.update(out=_[2]))
    with calibrating(dense), calibrating(model), torch.no_grad():
        dense_out = dense.model[1].bn(dense.model[1].conv(dense.model[0](x)))
        reconstruct(UndoLog(), model, plan_for(model, {"model.0.conv": {}}), seen, [x], weights=False, norms=True)
        model(x)
    hook.remove()
    torch.testing.assert_close(before["out"], dense_out)


def test_a_solution_is_never_worse_than_the_slice_on_the_layers_own_target() -> None:
    model = build("tiny")
    x = images(4, 64, dtype=torch.float)
    plan = make(model, 0.5)
    sliced, solved = copy.deepcopy(model), model
    seen = layer_statistics(model, [labelled(x)])
    with calibrating(model), torch.no_grad():
        target = torch.cat([t.flatten() for t in outputs(model, x)])
    cut(plan, [sliced])
    reconstruct(cut(plan, [solved]), solved, plan, seen, [x])

    def error(network: nn.Module) -> float:
        with calibrating(network), torch.no_grad():
            return float((torch.cat([t.flatten() for t in outputs(network, x)]) - target).square().mean())

    assert error(solved) < 0.5 * error(sliced)


@pytest.mark.parametrize(
    "family", fast_and_slow("tiny", "yolov8n-seg", "yolo11n", "yolo26n", "yolo12n", "yolo11n-cls", "yolov10n")
)
def test_undo_brings_back_the_dense_network_bit_for_bit(family: str) -> None:
    model, x = build(family), images(4, 64, dtype=torch.float)
    before, flags = state(model), [m.training for m in model.modules()]
    plan = make(model, 0.5)
    batch = {"img": x, "cls": torch.zeros(len(x), dtype=torch.long)} if family.endswith("-cls") else labelled(x)
    seen = layer_statistics(model, [batch])
    assert_same_tensors(before, state(model))
    done = cut(plan, [model])
    reconstruct(done, model, plan, seen, [x])
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert flags == [m.training for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    done.undo()
    assert_same_tensors(before, state(model))


def test_tensors_keep_their_identity_since_an_optimizer_holds_them() -> None:
    model, x = build("tiny"), images(4, 64, dtype=torch.float)
    plan, seen = make(model, 0.5), layer_statistics(model, [labelled(x)])
    done = cut(plan, [model])
    held = [id(p) for p in model.parameters()]
    reconstruct(done, model, plan, seen, [x])
    assert held == [id(p) for p in model.parameters()]


def test_constant_layers_stay_constant() -> None:
    model, x = build("tiny"), images(4, 64, dtype=torch.float)
    plan, seen = make(model, 0.5), layer_statistics(model, [labelled(x)])
    assert isinstance(model.model[-1].dfl, block.DFL)
    before = model.model[-1].dfl.conv.weight.clone()
    reconstruct(cut(plan, [model]), model, plan, seen, [x])
    assert torch.equal(before, model.model[-1].dfl.conv.weight)


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    model, x = build("tiny"), images(4, 64, dtype=torch.float)
    before, same = state(model), {"before": 1, "after": 1}
    reconstruct(UndoLog(), model, PrunePlan({}, {}, same, same, (64, 64)), layer_statistics(model, [labelled(x)]), [x])
    assert_same_tensors(before, state(model))
