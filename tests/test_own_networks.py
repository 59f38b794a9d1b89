"""Networks as users build them: other normalisations and activations, subclasses, and stems of their own.

Each is cut, and removing channels that are zero changes nothing; or it is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import build, fast_and_slow, make
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d
from ultralytics.nn.modules import block, conv, head

from yolo_prune import PrunePlan
from yolo_prune.blocks import channel_parameters
from yolo_prune.graph.image import image_channels
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint
from yolo_prune.planning.verification import randomise_norms, verify_cut


class Swish(nn.Module):
    """A user's activation with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.beta * x)


class Leaky(nn.Module):
    """A user's activation with a parameter per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(1, width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self.slope * x)


class Centred(nn.Module):
    """No activation: it looks at all channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(1, keepdim=True)


class OwnNorm(nn.BatchNorm2d):
    """A subclass that changes nothing."""


class OtherNorm(nn.BatchNorm2d):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) - x.mean(1, keepdim=True)


def with_norm(make_norm: Callable[[int], nn.Module], family: str = "yolo11n", where: str = "") -> nn.Module:
    model = build(family)
    for path, module in model.named_modules():
        if isinstance(getattr(module, "bn", None), nn.BatchNorm2d) and path.startswith(where):
            module.bn = make_norm(module.bn.num_features)
    randomise_norms(model)
    return model


def with_act(make_act: Callable[[int], nn.Module], family: str = "yolo11n") -> nn.Module:
    model = build(family)
    for module in model.modules():
        if isinstance(module, conv.Conv):
            module.act = make_act(module.conv.out_channels)
    return model


def row(model: nn.Module, i: int, new: nn.Module) -> nn.Module:
    """Exchange a row of a network."""
    old = model.model[i]
    new.i, new.f, new.type = old.i, old.f, type(new).__name__
    if hasattr(old, "stride"):
        new.stride = old.stride
    model.model[i] = new
    return model


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "SyncBatchNorm": nn.SyncBatchNorm,
    "OwnNorm": OwnNorm,
    "GroupNorm": lambda width: nn.GroupNorm(8, width),
    "InstanceNorm2d": nn.InstanceNorm2d,
    "affine InstanceNorm2d": lambda width: nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "Identity": lambda width: nn.Identity(),
}
ACTS: dict[str, Callable[[int], nn.Module]] = {
    "PReLU": lambda width: nn.PReLU(),
    "PReLU per channel": nn.PReLU,
    "Swish": lambda width: Swish(),
    "Leaky": Leaky,
    "Hardswish": lambda width: nn.Hardswish(),
}


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolo11n"))
@pytest.mark.parametrize("norm", NORMS)
def test_other_normalisations_are_cut_exactly(norm: str, family: str) -> None:
    model = with_norm(NORMS[norm], family)
    plan = make(model, 0.5, importance="random")
    assert max(verify_cut(model, plan, 64).values()) < 1e-9
    assert not [e for e in plan.locked if "unknown" in e["why"]]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["model.2.cv1", "model.4", "model.10"])
def test_another_normalisation_in_one_place_is_cut_exactly(where: str) -> None:
    for make_norm in (nn.SyncBatchNorm, lambda width: nn.GroupNorm(4, width), lambda width: nn.GroupNorm(1, width)):
        model = with_norm(make_norm, where=where)
        assert max(verify_cut(model, make(model, 0.4, importance="random"), 64).values()) < 1e-9


def test_groups_of_a_group_norm_go_whole() -> None:
    model = with_norm(NORMS["GroupNorm"], "yolov8n")
    plan = make(model, 0.5, importance="random")
    plan.apply(model)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert any(norm.num_groups < 8 for norm in norms)
    assert all(norm.weight.numel() == norm.num_channels for norm in norms)


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo11n"))
def test_a_normalisation_that_computes_something_else_locks_what_it_takes_and_nothing_more(family: str) -> None:
    model = with_norm(OtherNorm, family, where="model.2.")
    plan = make(model, 0.3, importance="random")
    assert any("OtherNorm" in e["why"] for e in plan.locked)
    assert "model.5.conv" in plan.layers
    assert max(verify_cut(model, plan, 64).values()) < 1e-9


@pytest.mark.parametrize("family", fast_and_slow("tiny", "yolo11n"))
@pytest.mark.parametrize("act", ACTS)
def test_activations_of_any_make_lock_nothing(act: str, family: str) -> None:
    model, stock = with_act(ACTS[act], family), build(family)
    plan = make(model, 0.5, importance="random")
    assert [e["layer"] for e in plan.locked] == [e["layer"] for e in make(stock, 0.5).locked]
    assert max(verify_cut(model, plan, 64).values()) < 1e-9


def test_a_parameter_per_channel_of_an_activation_is_sliced_and_rebuilt() -> None:
    model = with_act(Leaky, "yolov8n")
    before = model.model[1].act.slope.detach().clone()
    plan = make(model, 0.5)
    plan.apply(model)
    kept = plan.layers["model.1.conv"]["out"]
    torch.testing.assert_close(model.model[1].act.slope, before[:, kept], rtol=0, atol=0)
    again = checkpoint.rebuild(lambda **_: with_act(Leaky, "yolov8n"), model.yaml, model)
    assert again.model[1].act.slope.shape == (1, len(kept), 1, 1)


@pytest.mark.slow
def test_one_activation_that_all_layers_share_locks_nothing() -> None:
    shared = Swish()
    model = with_act(lambda width: shared)
    plan = make(model, 0.5, importance="random")
    assert not [e for e in plan.locked if "Swish" in e["why"]]
    assert max(verify_cut(model, plan, 64).values()) < 1e-9


@pytest.mark.parametrize("family", fast_and_slow("yolov8n", "yolo11n"))
def test_an_activation_across_channels_is_locked_wherever_it_is(family: str) -> None:
    for act in (Centred(), nn.Softmax(1)):
        model = build(family)
        for path in ("model.2.cv1", "model.3"):  # of a convolution in halves, and of a plain one
            model.get_submodule(path).act = act
        plan = make(model, 0.2, importance="random")
        assert not {"model.2.cv1.conv", "model.3.conv"} & {
            path for path, sides in plan.layers.items() if len(sides["out"]) < plan.widths[path]["out"]
        }
        assert max(verify_cut(model, plan, 64).values()) < 1e-9


@pytest.mark.parametrize(
    ("module", "names"),
    [(Swish(), ()), (Leaky(7), ("slope",)), (Centred(), None), (conv.Conv(3, 3), None), (OtherNorm(4), None)],
)
def test_whether_a_module_works_on_each_channel_alone_is_found_by_trying(
    module: nn.Module, names: tuple[str, ...] | None
) -> None:
    assert channel_parameters(module) == names


# Subclasses -----------------------------------------------------------------------------------------------------------


class SameDetect(head.Detect):
    """Changes nothing."""


class Smoothed(head.Detect):
    """Reads its maps otherwise."""

    def forward(self, x: list[torch.Tensor]) -> object:
        return super().forward([F.avg_pool2d(xi, 3, 1, 1) for xi in x])


class Renamed(head.Detect):
    """Its real branches have other names."""

    def __init__(self, nc: int, ch: list[int]) -> None:
        super().__init__(nc, ch=ch)
        self.boxes, self.classes = self.cv2, self.cv3
        self.cv2, self.cv3 = (nn.ModuleList(nn.Identity() for _ in ch) for _ in range(2))

    def forward_head(self, x: list[torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
        return super().forward_head(x, self.boxes, self.classes)

    def bias_init(self) -> None:
        pass


class OtherInside(block.C2f):
    """Makes its inner blocks otherwise, as many published variants do."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(c1, c2, 1, True)
        self.m = nn.ModuleList(nn.Sequential(conv.DWConv(self.c, self.c, 3), conv.Conv(self.c, self.c)) for _ in "ab")
        self.cv2 = conv.Conv(4 * self.c, c2)


class OtherFirst(block.C2f):
    """Its first convolution is none that can be read in parts."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(c1, c2, 1, True)
        self.cv1 = conv.GhostConv(c1, 2 * self.c)


def with_head(new: Callable[[head.Detect], nn.Module], family: str = "yolo11n") -> nn.Module:
    model = build(family)
    return row(model, -1, new(model.model[-1]))


def same(old: head.Detect) -> nn.Module:
    old.__class__ = SameDetect
    return old


def smoothed(old: head.Detect) -> nn.Module:
    old.__class__ = Smoothed
    return old


def renamed(old: head.Detect) -> nn.Module:
    return Renamed(3, [level[0].conv.in_channels for level in old.cv2])


@pytest.mark.slow
def test_a_head_that_changes_nothing_is_cut_like_the_one_that_it_inherits_from() -> None:
    model, stock = with_head(same), build("yolo11n")
    assert make(model, 0.5).sha256 == make(stock, 0.5).sha256
    assert max(verify_cut(model, 0.5, 64).values()) < 1e-9


@pytest.mark.parametrize("new", fast_and_slow(renamed, smoothed))
def test_a_head_that_is_not_what_it_inherits_from_is_locked(new: Callable[[head.Detect], nn.Module]) -> None:
    model = with_head(new)
    plan = make(model, 0.3, importance="random")
    assert any(e["layer"] == "model.23" and "unknown" in e["why"] for e in plan.locked)
    assert not any(path.startswith("model.23.") for path in plan.layers)
    assert max(verify_cut(model, plan, 64).values()) < 1e-9


@pytest.mark.slow
def test_a_pruned_network_with_an_unknown_head_is_rebuilt_for_other_classes() -> None:
    model = with_head(renamed)
    make(model, 0.3).apply(model)

    def built(**_: object) -> nn.Module:
        new = build("yolo11n")
        return row(new, -1, Renamed(5, [level[0].conv.in_channels for level in new.model[-1].cv2]))

    again = checkpoint.rebuild(built, model.yaml, None)
    assert again.model[-1].classes[0][-1].out_channels == 5
    assert again.model[4].cv2.conv.weight.shape == model.model[4].cv2.conv.weight.shape


def test_a_block_that_only_makes_its_layers_otherwise_is_cut() -> None:
    model = row(build("yolov8n"), 4, OtherInside(64, 64))
    plan = make(model, 0.5, importance="random")
    assert "model.4.cv1.conv" in plan.layers and "model.4.m.0.1.conv" in plan.layers
    assert max(verify_cut(model, plan, 64).values()) < 1e-9
    plan.apply(model)
    assert model.model[4].c == model.model[4].cv1.conv.out_channels // 2 < 32


def test_a_block_whose_first_convolution_cannot_be_read_in_parts_is_locked_and_named() -> None:
    model = row(build("yolov8n"), 4, OtherFirst(64, 64))
    plan = make(model, 0.3, importance="random")
    assert any(e["layer"] == "model.4" and "its cv1 is a GhostConv" in e["why"] for e in plan.locked)
    assert max(verify_cut(model, plan, 64).values()) < 1e-9
    plan.apply(model)
    assert model.model[4].c == 32


# Stems ----------------------------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """Declares its layers in another order than it runs them, for images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = conv.Conv(8, 16, 3, 2), conv.Conv(1, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class TwoStems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.a, self.b = conv.Conv(16, 16, 1), conv.Conv(3, 8, 3, 2), conv.Conv(3, 8, 5, 2)
        self.join = conv.Concat(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixed(self.join([self.b(x), self.a(x)]))


def normalised_image(first: nn.Module) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), first)


STEMS: dict[str, tuple[Callable[[nn.Module], nn.Module], int]] = {
    "BatchNorm on the image": (normalised_image, 3),
    "declared in another order": (lambda _: Stem(), 1),
    "two on one image": (lambda _: TwoStems(), 3),
    "Focus": (lambda _: conv.Focus(2, 16, 3), 2),
}


@pytest.mark.parametrize("stem", fast_and_slow(*STEMS))
def test_stems_of_ones_own_are_cut_and_the_image_is_not(stem: str) -> None:
    new, channels = STEMS[stem]
    model = build("yolov8n")
    row(model, 0, new(model.model[0]))
    if stem == "Focus":
        model.model[1].conv.stride = (1, 1)
    assert image_channels(model) == channels
    plan: PrunePlan = make(model, 0.5, importance="random")
    assert max(verify_cut(model, plan, 64).values()) < 1e-9
    plan.apply(model)

    def built(**_: object) -> nn.Module:
        again = build("yolov8n")
        return row(again, 0, new(again.model[0]))

    again = checkpoint.rebuild(built, model.yaml, None)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
    recorded = model.yaml[checkpoint.KEY]["widths"]
    reads_image = [path for path in recorded if path.startswith("model.0.") and recorded[path].keys() != {"out", "in"}]
    assert reads_image, "the data decides how many channels an image has"


def test_a_network_without_layers_is_refused() -> None:
    empty = build("yolov8n")
    empty.model = nn.Sequential(nn.Identity())
    empty.model[0].i, empty.model[0].f, empty.model[0].type = 0, -1, "Identity"
    with pytest.raises(Exception, match="has no convolution to cut"):
        trace(empty, 64)


@pytest.mark.parametrize("round_to", [8, 16])
def test_a_unit_of_several_channels_is_rounded_by_its_channels(round_to: int) -> None:
    model = with_norm(lambda width: nn.GroupNorm(8, width), "yolov8n")
    plan = make(model, 0.3, round_to=round_to)
    assert 0.68 < plan.macs["after"] / plan.macs["before"] <= 0.7
    free = [layer for path, layer in plan.layers.items() if len(layer["out"]) < plan.widths[path]["out"]]
    assert free and all(len(layer["out"]) % round_to == 0 for layer in free)
