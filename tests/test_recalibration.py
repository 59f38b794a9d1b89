from __future__ import annotations

import torch
from nets import IMGSZ, assert_same_tensors, build, make, state
from torch import nn

from yolo_prune.recalibration import recalibrate
from yolo_prune.surgery import Cut


def test_statistics_become_the_exact_average_over_the_batches() -> None:
    norm = nn.BatchNorm2d(3)
    batches = [torch.randn(4, 3, 5, 5) * (i + 1) + i for i in range(3)]
    recalibrate(Cut(), [norm], batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))


def test_a_cut_network_predicts_like_in_training_mode_after_recalibration() -> None:
    model = build("yolov8n")
    make(model).apply(model)
    x = torch.rand(4, 3, IMGSZ, IMGSZ)
    norm = model.model[5].bn
    recalibrate(Cut(), [model], [x])
    inputs: list[torch.Tensor] = []
    model.model[5].conv.register_forward_hook(lambda m, i, o: inputs.append(o))
    with torch.no_grad():
        model.train()(x)
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)))


def test_nothing_else_changes_and_undo_restores_everything() -> None:
    model = build("yolov8n").eval()
    model.model[3].train()
    before, flags = state(model), [m.training for m in model.modules()]
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    done = Cut()
    recalibrate(done, [model], [torch.rand(2, 3, IMGSZ, IMGSZ)], frozen=["model.0."])
    after = state(model)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.endswith(("running_mean", "running_var")) for k in changed)
    assert not any(k.startswith("model.0.") for k in changed)
    assert flags == [m.training for m in model.modules()]
    assert momenta == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    done.undo()
    assert_same_tensors(before, state(model))
