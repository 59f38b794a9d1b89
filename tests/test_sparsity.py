from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import IMGSZ, Chain, assert_same_tensors, build, graph_of, state
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.modules import block, conv
from ultralytics.optim import MuSGD

from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import ChannelGraph, ChannelGroup
from yolo_prune.graph.trace import trace
from yolo_prune.training.sparsity import KINDS, Sparsity


def chain() -> nn.Module:
    return Chain(16, block.C2f(16, 16, 1, True), conv.DWConv(16, 16), conv.ConvTranspose(16, 12))


NETS: dict[str, Callable[[], nn.Module]] = {
    "split, depthwise and transposed": chain,
    "attention, and a value per channel": lambda: Chain(64, block.A2C2f(64, 64, 1, True, 1, True)),
    "groups": lambda: Chain(16, conv.Conv(16, 32, 3, g=4), nn.Sequential(conv.DWConvTranspose2d(32, 32, 2, 2))),
}


@lru_cache
def chain_graph() -> ChannelGraph:
    return trace(chain(), IMGSZ)


def chain_sparsity(model: nn.Module, kind: str, strength: float = 0.1) -> Sparsity:
    return Sparsity(model, chain_graph(), kind, strength)


def keeping(*kept: str) -> Callable[[str], str | None]:
    return lambda path: "kept" if path in kept else None


# The penalties, written out ---------------------------------------------------------------------------------------


def free_groups(graph: ChannelGraph) -> Iterator[ChannelGroup]:
    for bundle in graph.bundles:
        if bundle.locked is None:
            yield from (graph.groups[i] for i in bundle.groups)


def members(model: nn.Module, group: ChannelGroup) -> Iterator[torch.Tensor]:
    """Yield the weights of each member, shape (units, weights of a unit)."""
    for (path, side), table in group.members.items():
        parent, _, name = path.rpartition(".")
        layer = getattr(model.get_submodule(parent), name)
        if isinstance(layer, nn.Module):
            if side == ("in" if isinstance(layer, nn.ConvTranspose2d) else "out"):
                yield layer.weight[table].flatten(1)
            elif getattr(layer, "groups", 1) == 1:
                yield layer.weight[:, table].movedim(1, 0).flatten(1)


def units(model: nn.Module, graph: ChannelGraph) -> Iterator[torch.Tensor]:
    """Yield the weights of each unit that can be removed, shape (size,)."""
    for group in free_groups(graph):
        yield from torch.cat(list(members(model, group)), 1)


def group_lasso(model: nn.Module, graph: ChannelGraph) -> torch.Tensor:
    return torch.stack([math.sqrt(len(w)) * w.norm() for w in units(model, graph)]).sum()


def bn_scale(model: nn.Module, graph: ChannelGraph) -> torch.Tensor:
    scales = [
        model.get_submodule(path).weight[table.ravel()]
        for group in free_groups(graph)
        for (path, _), table in group.members.items()
        if path.endswith(".bn")
    ]
    return torch.cat(scales).abs().sum()


# What is added ----------------------------------------------------------------------------------------------------


def added(model: nn.Module, sparsity: Sparsity) -> dict[str, torch.Tensor]:
    """Return what one step adds to the gradients."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsity.attach(optimizer)
    optimizer.step()
    sparsity.detach()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_is_gradient_of(penalty: torch.Tensor, model: nn.Module, given: dict[str, torch.Tensor]) -> None:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(penalty, list(trained.values()), allow_unused=True, materialize_grads=True)
    assert any(g.any() for g in expected)
    for name, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(given[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


PENALTIES = {"bn_scale": bn_scale, "group_lasso": group_lasso}


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("net", NETS)
def test_what_is_added_is_the_gradient_of_the_penalty(net: str, kind: str) -> None:
    model = NETS[net]().double()
    graph = trace(model, IMGSZ)
    assert_is_gradient_of(0.3 * PENALTIES[kind](model, graph), model, added(model, Sparsity(model, graph, kind, 0.3)))


@pytest.mark.parametrize("kind", PENALTIES)
def test_in_a_network_with_locked_groups_it_is_so_too(kind: str) -> None:
    model, graph = build("yolo11n").double(), graph_of("yolo11n")
    assert any(bundle.locked for bundle in graph.bundles)
    assert_is_gradient_of(PENALTIES[kind](model, graph), model, added(model, Sparsity(model, graph, kind, 1)))


def test_a_unit_without_weights_gets_no_gradient_and_no_nan() -> None:
    model = chain()
    for p in model.parameters():
        nn.init.zeros_(p)
    assert all((g == 0).all() for g in added(model, chain_sparsity(model, "group_lasso")).values())


# In the host's step -----------------------------------------------------------------------------------------------


def host(model: nn.Module, scale: float = 1.0) -> Any:
    """Return what `BaseTrainer.optimizer_step` needs of a trainer."""
    return SimpleNamespace(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", init_scale=scale),
        device=torch.device("cpu"),
        ema=None,
    )


def host_step(trainer: Any, slope: float) -> None:
    """Make the host's step for a loss with the same gradient everywhere."""
    trainer.scaler.scale(sum(slope * p.sum() for p in trainer.model.parameters())).backward()
    BaseTrainer.optimizer_step(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_scale_does_not_change_a_step(kind: str) -> None:
    results = {}
    for scale in (1.0, 2.0**16, None):
        model = chain()
        model.load_state_dict(results.setdefault("initial", state(model)))
        trainer = host(model, scale or 1.0)
        if scale:
            chain_sparsity(model, kind).attach(trainer.optimizer)
        host_step(trainer, 1e-3)
        results[scale] = state(model)
    assert_same_tensors(results[1.0], results[2.0**16])
    assert any(not torch.equal(results[1.0][k], v) for k, v in results[None].items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slope", "is_clipped"), [(1e-3, False), (1e3, True)])
def test_clipping_does_not_change_what_is_added(kind: str, slope: float, is_clipped: bool) -> None:
    model = chain().double()
    sparsity = chain_sparsity(model, kind, 10.0)
    expected = {name: g.clone() for name, g in added(model, sparsity).items()}
    model.zero_grad()
    trainer, seen = host(model), []

    def look(*_: Any) -> None:
        seen.append({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer.optimizer.register_step_pre_hook(look)
    sparsity.attach(trainer.optimizer)
    trainer.optimizer.register_step_pre_hook(look)
    host_step(trainer, slope)

    before, after = seen
    assert (torch.cat([g.flatten() for g in before.values()]).norm() > 9.99) == is_clipped
    for name, gradient in expected.items():
        torch.testing.assert_close(after[name] - before[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_the_scaler_skips_changes_no_weight(kind: str) -> None:
    model = chain()
    trainer = host(model, 2.0**16)
    chain_sparsity(model, kind).attach(trainer.optimizer)
    before = state(model)
    host_step(trainer, math.inf)
    assert_same_tensors(state(model), before)
    host_step(trainer, 0.0)
    assert any(not torch.equal(v, before[k]) for k, v in state(model).items()), "the next step is none to skip"


# What stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_and_weights_without_a_gradient_get_nothing(kind: str) -> None:
    model = chain()
    sparsity = chain_sparsity(model, kind)
    free = {name: g.clone() for name, g in added(model, sparsity).items()}
    touched = [name for name, g in free.items() if g.any()]
    frozen, idle = touched[0], touched[-1]
    assert frozen != idle
    parameters = dict(model.named_parameters())
    parameters[frozen].requires_grad = False
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    parameters[idle].grad = None
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
    sparsity.attach(optimizer)
    optimizer.step()
    assert parameters[idle].grad is None
    assert not parameters[frozen].grad.any()
    rest = free.keys() - {frozen, idle}
    assert_same_tensors({n: parameters[n].grad for n in rest}, {n: free[n] for n in rest})


@pytest.mark.parametrize("kind", ["bn_scale", "group_lasso"])
def test_locked_units_get_nothing(kind: str) -> None:
    model = chain()
    given = {k: g.clone() for k, g in added(model, chain_sparsity(model, kind)).items()}
    graph = trace(model, IMGSZ, keeping("model.0.conv"))
    locked = added(model, Sparsity(model, graph, kind, 0.1))
    assert not locked["model.0.conv.weight"].any() and not locked["model.0.bn.weight"].any()
    assert given["model.0.bn.weight"].all(), "the lock makes the difference"
    same = [k for k in given if not k.startswith(("model.0.", "model.1.cv1.conv."))]  # the latter reads locked channels
    assert_same_tensors({k: locked[k] for k in same}, {k: given[k] for k in same})


def test_group_lasso_shrinks_every_unit_and_leaves_the_locked_layers() -> None:
    model = chain()
    graph = trace(model, IMGSZ, keeping("model.0.conv", "model.5.conv"))
    free = {path for group in free_groups(graph) for path, _ in group.members}
    start, before = [w.norm() for w in units(model, graph)], state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    Sparsity(model, graph, "group_lasso", 0.01).attach(optimizer)
    for _ in range(100):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(0 < w.norm() < norm for w, norm in zip(units(model, graph), start, strict=True))
    after = state(model)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed == {k for k in after if k.endswith(".weight") and k.removesuffix(".weight") in free}
    assert "model.0.conv.weight" not in changed


# A switch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, MuSGD])
def test_it_acts_in_every_optimizer_until_it_is_detached(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    model = chain()
    sparsity = chain_sparsity(model, "group_lasso")

    def gradients_of_a_step(stepped: torch.optim.Optimizer) -> list[torch.Tensor]:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        stepped.step()
        return [p.grad for p in model.parameters() if p.grad.any()]

    first, second = optimizer(model.parameters(), lr=0.0), optimizer(model.parameters(), lr=0.0)
    assert not gradients_of_a_step(first)
    sparsity.attach(first)
    once = gradients_of_a_step(first)
    assert once and not gradients_of_a_step(second)
    sparsity.attach(first)
    again = gradients_of_a_step(first)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True)), "attached anew, it acts once"
    sparsity.attach(second)
    assert gradients_of_a_step(second) and not gradients_of_a_step(first)
    sparsity.detach()
    sparsity.detach()
    assert not gradients_of_a_step(second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lasso", 1e-4), "'lasso', is unknown; use one of bn_scale, group_lasso"),
        (("bn_scale", 0.0), "0.0, is not positive and finite; try 1e-4"),
        (("bn_scale", -1e-4), "-0.0001, is not positive and finite"),
        (("group_lasso", math.inf), "inf, is not positive and finite"),
        (("group_lasso", math.nan), "nan, is not positive and finite"),
    ],
)
def test_what_cannot_work_is_refused(arguments: tuple[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sparsity(chain(), chain_graph(), *arguments)


@pytest.mark.parametrize("kind", ["bn_scale", "group_lasso"])
def test_a_network_with_nothing_to_act_on_is_refused(kind: str) -> None:
    model = chain()
    with pytest.raises(ConfigError, match=f"{kind} sparsity finds nothing to act on beside .* locked layers"):
        Sparsity(model, trace(model, IMGSZ, lambda path: "kept"), kind, 1e-4)
