from __future__ import annotations

from typing import Any

import pytest
import torch
from nets import assert_same_tensors, build, labelled_batches, state
from torch import nn

from yolo_prune.importance import objective, statistics
from yolo_prune.importance.gradients import Gradients, gradients
from yolo_prune.importance.objective import calibrating, loss_of
from yolo_prune.importance.samples import inputs_at, outputs_at
from yolo_prune.importance.statistics import layer_statistics


def observed(model: nn.Module, path: str, batches: list[dict[str, torch.Tensor]]) -> list[tuple[Any, torch.Tensor]]:
    """Return what a layer takes and makes of each batch."""
    found: list[tuple[Any, torch.Tensor]] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _, x, y: found.append((x[0], y)))
    with calibrating(model), torch.no_grad():
        for batch in batches:
            model(batch["img"])
    hook.remove()
    return found


@pytest.mark.parametrize("is_unfolded", [True, False])
def test_moments_are_those_of_the_drawn_positions(is_unfolded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_UNFOLDED", 1200 if is_unfolded else 0)
    model, batches = build("yolov8n"), labelled_batches(2)
    seen, layer = layer_statistics(model, batches)["model.1.conv"], model.model[1].conv
    rows = []
    for n, (x, y) in enumerate(observed(model, "model.1.conv", batches)):
        inputs = inputs_at(layer, x, seen.positions[n])
        rows.append((inputs.flatten(2) if is_unfolded else inputs.transpose(2, 3)).flatten(0, -2).double())
        assert seen.positions[n].shape[0] == len(x)
        torch.testing.assert_close(seen.targets[n], outputs_at(layer, y, seen.positions[n]))
        made = torch.einsum("bmct,oct->bmo", inputs, layer.weight.flatten(2))
        torch.testing.assert_close(seen.targets[n], made, rtol=1e-3, atol=1e-4)
    expected = torch.cat(rows).T.cov(correction=0)
    assert seen.images == 4 and seen.samples == len(torch.cat(rows))
    torch.testing.assert_close(seen.covariance(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 6)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 8, 6)),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 8, 6)),
        (nn.Linear(3, 4), (2, 8, 3)),
    ],
    ids=["strided", "depthwise", "transposed", "linear"],
)
def test_inputs_outputs_and_gradients_are_summed_over_all_positions(layer: nn.Module, shape: tuple[int, ...]) -> None:
    class Net(nn.Sequential):
        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
            return self(batch["img"]).square().sum(), None

    batches = [{"img": torch.randn(shape) + 3} for _ in range(2)]
    net = Net(layer)
    seen = layer_statistics(net, batches)["0"]
    x = torch.cat([batch["img"] for batch in batches])
    y = net(x).detach()
    taken, made = (v.movedim(1 if v.ndim == 4 else -1, 0).flatten(1).double() for v in (x, y))
    torch.testing.assert_close(seen.energy, taken.square().sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.variance(), made.var(1, correction=0), rtol=1e-3, atol=1e-4)
    gradients_of_images = 2 * made / 2  # of the loss per image
    products = gradients_of_images @ gradients_of_images.T / 4
    is_depthwise = getattr(layer, "groups", 1) > 1
    expected = products.diagonal().diag() if is_depthwise else products
    torch.testing.assert_close(seen.fisher(), expected, rtol=1e-4, atol=1e-4)


def test_what_is_estimated_from_a_part_of_the_positions_is_right_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Sequential):
        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
            return self(batch["img"]).pow(3).sum(), None

    net, batches = Net(nn.Conv2d(3, 4, 3, padding=1)), [{"img": torch.randn(2, 3, 16, 16)}]
    exact = layer_statistics(net, batches)["0"].fisher()  # so few positions are all looked at
    for name in ("FEWEST_SAMPLES", "MOST_SAMPLES"):
        monkeypatch.setattr(statistics, name, 64)
    drawn = [layer_statistics(net, batches, seed)["0"] for seed in range(200)]
    assert drawn[0].positions[0].shape == (2, 32)
    mean = torch.stack([seen.fisher() for seen in drawn]).mean(0)
    error = (drawn[0].fisher() - exact).norm() / exact.norm()
    assert 0.005 < error < 0.5
    assert (mean - exact).norm() / exact.norm() < 0.03


def test_positions_are_drawn_where_the_loss_looks() -> None:
    class Net(nn.Sequential):
        def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
            return self(batch["img"])[:, :, :2, :2].square().sum(), None

    net = Net(nn.Conv2d(3, 200, 3, padding=1), nn.Conv2d(200, 1, 1))
    positions = layer_statistics(net, [{"img": torch.rand(2, 3, 40, 40)}])["1"].positions[0]
    is_seen = (positions // 40 < 2) & (positions % 40 < 2)
    assert 0.75 < is_seen.float().mean() < 0.85  # a fifth is drawn anywhere
    assert positions.unique().numel() > 200


def test_twice_the_density_draws_twice_the_positions() -> None:
    once, twice = (layer_statistics(build("tiny"), labelled_batches(8), density=n) for n in (1, 2))
    drawn = [found["model.0.conv"].positions[0].shape[1] for found in (once, twice)]
    assert drawn == [64, 128]  # of 1024 over 16 images


def test_only_so_many_images_take_part_as_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD_BYTES", 3 * statistics.LIVE * 4 * (3 * 64 * 64 + 16 * 32 * 32))
    monkeypatch.setattr(statistics, "FEWEST_IMAGES", 2)
    found = layer_statistics(build("yolov8n"), labelled_batches(5))
    batches = [len(found[path].positions) for path in ("model.0.conv", "model.22.cv2.2.2")]
    assert batches == [2, 5]
    assert found["model.0.conv"].images == 10  # sums are over all


def test_gradients_go_through_the_branch_that_is_deployed() -> None:
    model, batches = build("yolo26n"), labelled_batches()
    found = layer_statistics(model, batches)
    assert all(seen.positions for path, seen in found.items() if "one2one" in path)


def test_classes_count_more_than_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = build("yolov8n"), labelled_batches()
    gain = model.args.cls
    found = layer_statistics(model, batches)
    monkeypatch.setattr(objective, "CLASS_EMPHASIS", 1.0)
    plain = layer_statistics(model, batches)
    for branch, expected in (("cv3", 3.0), ("cv2", 1.0)):
        whole, part = (sum(s[f"model.22.{branch}.{n}.2"].fisher().trace() for n in range(3)) for s in (found, plain))
        assert float(whole / part) == pytest.approx(expected**2, rel=1e-3)
    assert model.args.cls == gain == 0.5


def test_an_output_that_the_loss_does_not_see_has_no_sensitivity() -> None:
    model = build("yolov8n")
    model.model[1].conv.weight.data[:, 5] = 0  # nobody reads channel 5 of the first layer
    seen = layer_statistics(model, labelled_batches())
    fisher = seen["model.0.conv"].fisher().diagonal()
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
