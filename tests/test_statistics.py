from __future__ import annotations

import pytest
import torch
from nets import assert_same_tensors, build, labelled_batches, state
from torch import nn

from yolo_prune.importance.statistics import Gradients, calibrating, gradients, layer_statistics, loss_of


def test_moments_are_those_of_all_positions_of_all_batches() -> None:
    model, batches = build("yolov8n"), labelled_batches(2)
    seen = layer_statistics(model, batches)["model.1.conv"]
    taken: list[torch.Tensor] = []
    hook = model.model[1].conv.register_forward_pre_hook(lambda _, x: taken.append(x[0]))
    with calibrating(model), torch.no_grad():
        for batch in batches:
            model(batch["img"])
    hook.remove()
    x = torch.cat(taken).transpose(0, 1).flatten(1).double()
    assert seen.images == 4
    torch.testing.assert_close(seen.products, x @ x.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(seen.inputs, x.sum(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 6)),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 8, 6)),
        (nn.Linear(3, 4), (2, 8, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_and_outputs_are_counted_apart(layer: nn.Module, shape: tuple[int, ...]) -> None:
    class Net(nn.Sequential):
        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
            return self(batch["img"]).square().sum(), None

    batches = [{"img": torch.randn(shape) + 3} for _ in range(2)]
    net = Net(layer)
    seen = layer_statistics(net, batches)["0"]
    x = torch.cat([batch["img"] for batch in batches])
    y = net(x).detach()
    by_channel = [v.movedim(1 if v.ndim == 4 else -1, 0).flatten(1) for v in (x, y)]
    torch.testing.assert_close(seen.covariance(), by_channel[0].double().cov(correction=0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen.variance(), by_channel[1].double().var(1, correction=0), rtol=1e-3, atol=1e-4)


def test_an_output_that_the_loss_does_not_see_has_no_sensitivity() -> None:
    model = build("yolov8n")
    model.model[1].conv.weight.data[:, 5] = 0  # nobody reads channel 5 of the first layer
    seen = layer_statistics(model, labelled_batches())
    fisher = seen["model.0.conv"].fisher()
    assert fisher[5] == 0 and (fisher > 0).sum() == 15


def test_looking_leaves_the_network_as_it_was() -> None:
    model = build("yolo11n").train()
    model.model[3].eval()
    before, flags = state(model), [m.training for m in model.modules()]
    layer_statistics(model, labelled_batches())
    gradients(model, labelled_batches())
    assert_same_tensors(before, state(model))
    assert flags == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_those_of_the_loss_per_image() -> None:
    model, batches = build("yolov8n"), labelled_batches(2)
    collected = gradients(model, batches)
    firsts = []
    with calibrating(model):
        for batch in batches:
            model.zero_grad()
            loss_of(model, batch).backward()
            firsts.append(model.model[0].conv.weight.grad.clone())
    weight = model.model[0].conv.weight
    torch.testing.assert_close(collected.first[weight], sum(firsts))
    torch.testing.assert_close(collected.second[weight], sum(g.square() for g in firsts))


def test_gradients_are_collected_at_optimizer_steps_and_cleared() -> None:
    layer = nn.Linear(2, 1)
    optimizer, collected = torch.optim.SGD(layer.parameters(), lr=0.1), Gradients()
    optimizer.register_step_pre_hook(lambda *_: collected.add(layer.parameters()))
    for _ in range(3):
        layer.weight.grad = torch.tensor([[1.0, -2.0]])
        optimizer.step()
    assert collected.steps == 3
    assert collected.first[layer.weight].tolist() == [[3, -6]]
    assert collected.second[layer.weight].tolist() == [[3, 12]]
    twin = nn.Linear(2, 1)
    assert collected.of(layer, twin).first[twin.weight].tolist() == [[3, -6]]
    collected.clear()
    assert collected.steps == 0 and not collected.first
