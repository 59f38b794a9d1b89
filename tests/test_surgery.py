from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from nets import FAMILIES, IMGSZ, assert_same_tensors, build, fast_and_slow, make, state
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.modules import block

from yolo_prune.errors import CutError, PlanError, UnsupportedError
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.verification import outputs, verify_cut
from yolo_prune.surgery import slicing as surgery

pytestmark = pytest.mark.drift

OPTIMIZERS = ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp", "auto")
"""The optimizers of Ultralytics' trainers."""


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    """Return an optimizer as Ultralytics makes it, with its groups of parameters."""
    trainer = SimpleNamespace(args=SimpleNamespace(warmup_bias_lr=0.1, lr0=0.01, momentum=0.9), data={"nc": 3})
    return BaseTrainer.build_optimizer(trainer, model, name, lr=0.01, momentum=0.9, decay=5e-4, iterations=1000)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimizer step that gives every parameter a gradient."""
    for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def plan() -> PrunePlan:
    return make(build("yolov8n"), importance="random")


@pytest.mark.parametrize(
    ("family", "allocation"),
    [*((family, "global") for family in FAMILIES), pytest.param("yolov8n", "uniform", marks=pytest.mark.slow)],
)
def test_cutting_channels_that_are_dead_changes_no_output(family: str, allocation: str) -> None:
    model = build(family)
    plan = make(model, importance="random", allocation=allocation)
    assert plan.macs["after"] < 0.52 * plan.macs["before"]
    assert max(verify_cut(model, plan, IMGSZ).values()) < 1e-9


@pytest.mark.parametrize("family", fast_and_slow("yolo11n", "yolov8n", "yolo26n"))
def test_a_cut_network_has_only_stock_classes_and_true_attributes(family: str) -> None:
    model = build(family)
    kinds = [type(m) for m in model.modules()]
    make(model).apply(model)
    assert [type(m) for m in model.modules()] == kinds
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            assert m.weight.shape[:2] == (m.out_channels, m.in_channels // m.groups)
        elif isinstance(m, nn.BatchNorm2d):
            assert m.weight.shape == m.running_mean.shape == (m.num_features,)
        elif isinstance(m, (block.C2f, block.C2PSA)):
            assert m.c * 2 == m.cv1.conv.out_channels
        elif isinstance(m, block.Attention):
            assert m.num_heads * (2 * m.key_dim + m.head_dim) == m.qkv.conv.out_channels
            assert m.num_heads * m.head_dim == m.proj.conv.in_channels == m.pe.conv.groups
    assert all(b.np == sum(p.numel() for p in b.parameters()) for b in model.model)


def test_chunked_blocks_compute_the_same_with_split_and_chunk() -> None:
    model = build("yolo11n")
    make(model).apply(model)
    c3k2 = model.model[4]
    x = torch.rand(1, c3k2.cv1.conv.in_channels, 8, 8)
    assert torch.equal(c3k2(x), c3k2.forward_split(x))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_continues_as_if_it_had_always_held_the_kept_channels(name: str) -> None:
    model, plan = build("tiny"), make(build("tiny"), importance="random")
    optimizer = optimizer_of(model, name)
    step(model, optimizer)
    before = {n: (p.detach().clone(), copy.deepcopy(optimizer.state[p])) for n, p in model.named_parameters()}
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    sizes = [len(g["params"]) for g in optimizer.param_groups]

    surgery.cut(plan, [model], optimizer)

    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == settings
    assert [len(g["params"]) for g in optimizer.param_groups] == sizes
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= held
    for n, p in model.named_parameters():
        path, _, leaf = n.rpartition(".")
        weight, remembered = before[n]
        kept = plan.layers.get(path)
        pick = sliced(kept, leaf, weight)
        assert torch.equal(p, pick(weight))
        for key, value in remembered.items():
            now = optimizer.state[p][key]
            is_tensor = torch.is_tensor(value)
            assert (
                torch.equal(now, pick(value) if value.shape == weight.shape else value) if is_tensor else now == value
            )
    step(model, optimizer)


def sliced(
    kept: dict[str, list[int]] | None, leaf: str, weight: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the slice of a parameter, written down independently of the surgery."""
    if kept is None:
        return lambda t: t
    if weight.ndim == 4:
        return lambda t: t[kept["out"]][:, kept["in"]]
    return lambda t: t[kept["out"]]


def test_depthwise_convolutions_keep_one_group_per_channel() -> None:
    model = build("yolo11n")
    make(model).apply(model)
    dw = model.model[23].cv3[0][0][0].conv
    assert dw.groups == dw.in_channels == dw.out_channels == dw.weight.shape[0] < 64


def test_flags_gradients_dtype_and_memory_format_follow(plan: PrunePlan) -> None:
    model = build("yolov8n").to(memory_format=torch.channels_last).double()
    frozen = [n for n, p in model.named_parameters() if n.startswith("model.2.") and p.requires_grad]
    for n, p in model.named_parameters():
        p.requires_grad_(n not in frozen and ".dfl." not in n)
        p.grad = p.detach().clone() if p.requires_grad else None
    plan.apply(model)
    assert [n for n, p in model.named_parameters() if not p.requires_grad and ".dfl." not in n] == frozen
    for p in model.parameters():
        assert p.dtype == torch.float64
        assert p.grad is None or torch.equal(p.grad, p)
        assert p.ndim < 4 or p.is_contiguous(memory_format=torch.channels_last)


def test_the_device_stays(plan: PrunePlan) -> None:
    model = build("yolov8n")
    stride = model.stride.clone()
    model.to("meta")  # the only other device that every machine has
    model.model[-1].stride = stride  # Ultralytics reads its values
    plan.apply(model)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == plan.params["after"]


def test_an_identity_plan_changes_no_tensor(plan: PrunePlan) -> None:
    model = build("yolov8n")
    before = state(model)
    everything = {p: {s: list(range(n)) for s, n in w.items()} for p, w in plan.widths.items()}
    PrunePlan(everything, plan.widths, plan.macs, plan.params, plan.imgsz).apply(model)
    assert_same_tensors(before, state(model))


STAGES = ("_sliced_parameter", "_sliced", "_set_widths", "_cut_optimizer")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("late", [False, True])
def test_a_cut_that_fails_anywhere_leaves_everything_as_it_was(
    plan: PrunePlan, stage: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ema = build("yolov8n"), build("yolov8n", seed=1)
    optimizer = optimizer_of(model, "AdamW")
    step(model, optimizer)
    before = [state(model), state(ema)], copy.deepcopy(optimizer.state_dict())
    identities = [id(p) for m in (model, ema) for p in m.parameters()]
    attributes = [{k: v for k, v in m.__dict__.items() if isinstance(v, int)} for m in model.modules()]

    real = getattr(surgery, stage)
    calls = 0

    def failing(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls > (1 if late and stage in ("_set_widths",) else 200 if late and stage.startswith("_sliced") else 0):
            raise RuntimeError("out of memory")
        return real(*args)

    monkeypatch.setattr(surgery, stage, failing)
    with pytest.raises(CutError, match="nothing has changed: RuntimeError: out of memory"):
        surgery.cut(plan, [model, ema], optimizer)
    assert calls >= 1
    assert_same_tensors(before[0][0], state(model))
    assert_same_tensors(before[0][1], state(ema))
    assert [id(p) for m in (model, ema) for p in m.parameters()] == identities
    assert attributes == [{k: v for k, v in m.__dict__.items() if isinstance(v, int)} for m in model.modules()]
    after = optimizer.state_dict()
    assert after["param_groups"] == before[1]["param_groups"]
    for key, remembered in before[1]["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(after["state"][key][k])) for k, v in remembered.items()
        )


def test_a_finished_cut_can_be_taken_back(plan: PrunePlan) -> None:
    model = build("yolov8n")
    before, x = state(model), torch.rand(1, 3, IMGSZ, IMGSZ)
    expected = outputs(model.eval(), x)
    surgery.cut(plan, [model]).undo()
    assert_same_tensors(before, state(model))
    assert all(torch.equal(a, b) for a, b in zip(expected, outputs(model, x), strict=True))


def test_a_plan_for_another_network_is_refused_and_changes_nothing(plan: PrunePlan) -> None:
    for model in (build("yolo11n"), build("yolov8n")):
        if not isinstance(model.model[2], block.C3k2):
            plan.apply(model)  # the second time its widths do not fit any more
        before = state(model)
        with pytest.raises(
            PlanError, match=r"the plan is for another network: model\.\S+ has widths .*, the plan expects"
        ):
            plan.apply(model)
        assert_same_tensors(before, state(model))


def test_a_plan_that_keeps_channels_beyond_the_width_is_refused() -> None:
    model = build("yolov8n")
    plan = PrunePlan({"model.0.bn": {"out": [0, 16]}}, {"model.0.bn": {"out": 16}}, {}, {}, (8, 8))
    with pytest.raises(PlanError, match=r"model\.0\.bn out keeps channel 16 of 16"):
        plan.apply(model)


def test_an_optimizer_with_unknown_state_is_refused(plan: PrunePlan) -> None:
    model = build("yolov8n")
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    before = state(model)
    with pytest.raises(
        UnsupportedError, match=r"Adafactor keeps 'row_var' of shape .* which cannot be sliced; use SGD"
    ):
        surgery.cut(plan, [model], optimizer)
    assert_same_tensors(state(model), before)


@pytest.mark.parametrize(
    "family", fast_and_slow("yolov8n", "yolov9t", "yolov10n", "yolo12n", "yolo26n-pose", "yolo26n-seg")
)
def test_a_fused_network_can_be_cut_too(family: str) -> None:
    model = build(family).eval().fuse(verbose=False)
    plan = make(model, importance="random")
    assert 0.48 <= plan.macs["after"] / plan.macs["before"] <= 0.5
    assert verify_cut(model, plan, IMGSZ)["eval"] < 1e-9


def test_what_is_taken_back_goes_last_first_and_calls_what_asked_for_it() -> None:
    done, settings, seen = surgery.UndoLog(), {"a": 1}, []
    done.set(settings, "a", 2)
    done.on_undo(lambda: seen.append(dict(settings)))
    done.set(settings, "a", 3)
    done.undo()
    done.undo()
    assert seen == [{"a": 2}] and settings == {"a": 1}
