"""Zeros among the weights: how many, where, and that they stay."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from conftest import Python
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import IMGSZ, Chain, assert_same_tensors, fast_and_slow, labelled_batches, state, tiny_yaml
from onnx import numpy_helper
from torch import nn
from trainings import DEFAULTS, Interrupted, Run, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.modules import block, conv
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune import PruneCallback, PruneConfig, prune_model
from yolo_prune.errors import TargetError
from yolo_prune.graph.zeros import has_two_of_four, share_of_zeros, sparse_layers, takes_two_of_four, zeros_of
from yolo_prune.host import checkpoint
from yolo_prune.plan import PrunePlan
from yolo_prune.planning import calibration
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.zeros import _larger_places, held_zeros, plan_zeros, set_zeros
from yolo_prune.surgery.least_squares import Moments
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.surgery.zeros import LayerZeros, solve_around, sweep
from yolo_prune.training.zeros import HeldZeros

NOTHING = PrunePlan({}, {}, {"before": 0, "after": 0}, {"before": 0, "after": 0}, (IMGSZ, IMGSZ))


def small() -> nn.Module:
    """Return a network of a few layers, most of them wide enough for two of four."""
    torch.manual_seed(0)
    return Chain(16, conv.Conv(16, 32, 3, 2), block.C2f(32, 32, 1, True))


@lru_cache
def seen() -> CalibrationData:
    """Return what there is to know of it without zeros."""
    return CalibrationData(small(), labelled_batches(2))


def counts(network: nn.Module) -> tuple[int, int]:
    """Return how many weights may be zero, and how many are."""
    found = zeros_of(sparse_layers(network)).values()
    return sum(of["weights"] for of in found), sum(of["zeros"] for of in found)


def masks(network: nn.Module) -> dict[str, torch.Tensor]:
    return {path: layer.weight.detach() == 0 for path, layer in sparse_layers(network).items()}


def solved(network: nn.Module, **options: Any) -> dict[str, LayerZeros]:
    """Let weights of a network be zero as a run does, on images of noise."""
    config = PruneConfig(**options)
    data = seen() if counts(network)[1] == 0 else CalibrationData(network, labelled_batches(2))
    zeros = plan_zeros(network, config, 1.0, data.statistics)
    if config.reconstruction:
        reconstruct(UndoLog(), network, NOTHING, data.statistics, data.images, zeros=zeros)
    set_zeros(UndoLog(), network, zeros)
    return zeros


def layer_of(seed: int, inputs: int, outputs: int, samples: int = 200) -> tuple[torch.Tensor, Moments]:
    """Return random weights of shape (outputs, inputs), and the moments of correlated inputs and of what they make."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw, dtype=torch.double)
    x = torch.randn(samples, inputs, generator=draw, dtype=torch.double) @ mix
    weight = torch.randn(outputs, inputs, generator=draw, dtype=torch.double)
    return weight, Moments.of(x[None], (x @ weight.T)[None])


@pytest.mark.parametrize("options", [{}, {"allocation": "uniform"}, {"importance": "l2"}, {"reconstruction": False}])
@pytest.mark.parametrize("share", [0.37, *fast_and_slow(0.9)[1:]])
def test_the_share_of_zeros_is_exact_to_the_weight(share: float, options: dict[str, Any]) -> None:
    network = small()
    solved(network, target=f"{100 * share:g}% sparsity", **options)
    weights, zeros = counts(network)
    assert zeros == math.ceil(share * weights)


@pytest.mark.parametrize("options", [{}, {"importance": "l2"}])
def test_two_of_four_holds_along_the_inputs_of_every_layer_that_is_wide_enough(options: dict[str, Any]) -> None:
    network = small()
    solved(network, target="2:4", **options)
    for path, layer in sparse_layers(network).items():
        weight = layer.weight.detach()
        if takes_two_of_four(layer):
            fours = weight.reshape(len(weight), -1, 4, weight[0, 0].numel())
            assert ((fours != 0).sum(2) == 2).all(), path
        else:
            assert not (weight == 0).any(), path
    assert any(not takes_two_of_four(layer) for layer in sparse_layers(network).values())


def test_a_share_of_nothing_changes_nothing(own_folder: Path) -> None:
    network = small()
    before = state(network)
    assert not solved(network, target="0% sparsity") and PruneConfig(target="0% sparsity").zeros is None
    prune_model(network, "0% sparsity", imgsz=IMGSZ)
    assert_same_tensors(state(network), before)


def test_layers_are_left_out_and_limited_by_pattern() -> None:
    network = small()
    limits = {"model.2.*": 0.25}
    solved(network, target="60% sparsity", importance="l2", ignored_layers=("model.0.conv",), layer_limits=limits)
    layers = zeros_of(sparse_layers(network))
    assert layers["model.0.conv"]["zeros"] == 0
    assert all(of["zeros"] <= 0.25 * of["weights"] for path, of in layers.items() if path.startswith("model.2."))
    weights = sum(of["weights"] for path, of in layers.items() if path != "model.0.conv")
    assert sum(of["zeros"] for of in layers.values()) == math.ceil(0.6 * weights)
    with pytest.raises(TargetError, match=r"weights are to be zero, and ignored_layers and layer_limits leave \d+ of"):
        plan_zeros(small(), PruneConfig(target="60% sparsity", importance="l2", layer_limits={"*": 0.5}))
    with pytest.raises(TargetError, match="2:4: no layer that may be changed has a multiple of 16 input channels"):
        plan_zeros(small(), PruneConfig(target="2:4", importance="l2", layer_limits={"*": 0.4}))


def test_a_weight_is_as_dear_as_the_dearer_of_its_two_places() -> None:
    """Of five weights; what is zero already comes first."""
    moments = {"a": torch.tensor([1.0, 4.0, -1.0]), "b": torch.tensor([2.0, 3.0])}
    lamp = {"a": torch.tensor([9.0, 1.0, 0.0]), "b": torch.tensor([2.0, 3.0])}
    places = {path: of.tolist() for path, of in _larger_places(moments, lamp).items()}
    assert places == {"a": pytest.approx([0.9, 0.9, -1]), "b": pytest.approx([0.5, 0.7])}


def test_a_layer_that_seems_to_cost_nothing_is_not_emptied() -> None:
    """LAMP holds against moments that tell nothing of what its weights do together."""
    statistics, path = deepcopy(seen().statistics), "model.2.m.0.cv1.conv"
    statistics[path].sensitivity *= 0
    zeros = plan_zeros(small(), PruneConfig(target="30% sparsity"), 1.0, statistics)
    share = zeros[path].count / small().get_submodule(path).weight.numel()
    assert 0.3 < share < 0.8


@pytest.mark.parametrize(("target", "density"), [("50% sparsity", 2), (0.3, 1)])
def test_zeros_have_more_positions_looked_at(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, target: float | str, density: int
) -> None:
    asked: list[int] = []
    made = calibration.layer_statistics

    def look(*arguments: Any, **options: Any) -> Any:
        asked.append(options["density"])
        return made(*arguments, **options)

    monkeypatch.setattr(calibration, "layer_statistics", look)
    yolo = YOLO(tiny_yaml(own_folder))
    prune_model(yolo, target, data=tiny_data, imgsz=IMGSZ, calibration=4, workers=0, val=False, benchmark=False)
    assert asked[0] == density


def test_a_larger_share_keeps_the_zeros_of_a_smaller_one() -> None:
    network = small()
    solved(network, target="30% sparsity")
    first = masks(network)
    solved(network, target="60% sparsity")
    assert all((masks(network)[path] | ~mask).all() for path, mask in first.items())


def test_moments_that_no_inputs_can_have_change_nothing() -> None:
    weight, moments = layer_of(0, 16, 4)
    start = weight.T[None] + 0.1
    moments.xx[0].diagonal()[::2] *= -1  # as rounding makes of inputs that hardly vary
    assert solve_around(moments, moments, None, start, torch.zeros_like(start, dtype=torch.bool)) is start


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, None])
@pytest.mark.parametrize("seed", range(3))
def test_solved_zeros_cost_no_more_than_those_of_magnitude(seed: int, share: float | None) -> None:
    weight, moments = layer_of(seed, 64, 16)
    none = torch.zeros_like(weight, dtype=torch.bool)
    asked = LayerZeros(weight.numel() // 2 if share is None else math.ceil(share * weight.numel()), share is None)
    swept, mask = sweep(weight, moments.xx[0], asked, none, block=16)
    assert int(mask.sum()) == asked.count and not swept[mask].any()
    best = solve_around(moments, moments, None, swept.T[None], mask.T[None])
    assert not best[0].T[mask].any()
    sizes = weight.abs()
    if share is None:
        plain = weight.masked_fill(two_smallest(sizes), 0)
    else:
        plain = weight.masked_fill(sizes <= sizes.flatten().kthvalue(asked.count).values, 0)
    assert int((plain == 0).sum()) == asked.count
    errors = [moments.error(of) for of in (best, swept.T[None], plain.T[None])]
    assert errors[0] < errors[1] < errors[2]


def two_smallest(sizes: torch.Tensor) -> torch.Tensor:
    """Return the mask of the two smallest of every four neighbours, shape (outputs, inputs)."""
    fours = sizes.unflatten(1, (-1, 4))
    return (fours <= fours.sort(2).values[..., 1:2]).flatten(1)


@pytest.mark.parametrize("two_of_four", [False, True])
def test_a_sweep_keeps_the_zeros_that_are_there(two_of_four: bool) -> None:
    weight, moments = layer_of(0, 64, 16)
    held = torch.zeros_like(weight, dtype=torch.bool)
    held[:, ::8] = True
    _, mask = sweep(weight, moments.xx[0], LayerZeros(400, two_of_four), held, block=32)
    assert (mask | ~held).all()
    assert mask.unflatten(1, (-1, 4)).sum(2).eq(2).all() if two_of_four else int(mask.sum()) == 400


@given(st.integers(0, 1000), st.integers(1, 10))
@settings(max_examples=20)
def test_solving_around_zeros_finds_the_least_squares(seed: int, inputs: int) -> None:
    weight, moments = layer_of(seed, inputs, 3)
    mask = torch.rand(1, inputs, 3, generator=torch.Generator().manual_seed(seed)) < 0.4
    start = weight.T[None].masked_fill(mask, 0)
    found = start
    for _ in range(8):
        found = solve_around(moments, moments, None, found, mask)
    for row in range(3):
        free = ~mask[0, :, row]
        exact = torch.linalg.lstsq(moments.xx[0][free][:, free], moments.xy[0, free, row]).solution
        assert torch.allclose(found[0, free, row], exact, rtol=1e-3, atol=1e-3 * float(weight.abs().max()))


def test_an_optimizer_leaves_zeros_where_they_are_and_nothing_else() -> None:
    torch.manual_seed(0)
    network, averaged = small(), small()
    for model in (network, averaged):
        set_zeros(UndoLog(), model, plan_zeros(model, PruneConfig(target="50% sparsity", importance="l2")))
    before, first = masks(network), state(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    hold = HeldZeros()
    hold.hold(optimizer, network, averaged, lambda path: None)
    for _ in range(3):
        optimizer.zero_grad()
        sum(p.sum() for p in network.parameters() if p.requires_grad).backward()
        optimizer.step()
    assert all(torch.equal(mask, masks(network)[path]) for path, mask in before.items())
    moved = [path for path in before if not torch.equal(first[f"{path}.weight"], state(network)[f"{path}.weight"])]
    assert moved == [path for path, layer in sparse_layers(network).items() if layer.weight.requires_grad]
    hold.release()
    sum(p.sum() for p in network.parameters() if p.requires_grad).backward()
    optimizer.step()
    assert counts(network)[1] == 0


def test_without_data_weights_go_by_magnitude_and_the_checkpoint_says_so(own_folder: Path) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    dense = {path: layer.weight.detach().clone() for path, layer in sparse_layers(yolo.model).items()}
    prune_model(yolo, "50% sparsity", imgsz=IMGSZ)
    for path, layer in sparse_layers(yolo.model).items():
        mask = layer.weight.detach() == 0
        assert abs(int(mask.sum()) - mask.numel() / 2) <= 1, path
        assert dense[path][mask].abs().max() <= dense[path][~mask].abs().min()
        assert torch.equal(layer.weight.detach()[~mask], dense[path][~mask])
    assert checkpoint.has_zeros(yolo.model.yaml)
    yolo.save("slim.pt")
    assert counts(YOLO("slim.pt").model)[1] >= counts(yolo.model)[1]


def exact(share: float, network: nn.Module) -> bool:
    weights, zeros = counts(network)
    return zeros == math.ceil(share * weights)


TARGETS = {"60% sparsity": 0.6, "40%, 60% sparsity": 0.6, "2:4": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "options"), [*((target, DEFAULTS) for target in TARGETS), ("60% sparsity", {}), ("2:4", {})]
)
def test_a_run_ends_with_what_was_asked_for(run: Run, target: str, options: dict[str, Any], python: Python) -> None:
    trainer = run(prune=soon(target, export=("onnx",), **options))
    best, averaged, live = load_checkpoint(trainer.best)[0], trainer.ema.ema, unwrap_model(trainer.model)
    if (share := TARGETS[target]) is not None:
        assert exact(share, averaged)
    for network in (best, averaged, live):
        layers = sparse_layers(network).values()
        assert share is not None or all(has_two_of_four(of.weight) for of in layers if takes_two_of_four(of))
    assert all(torch.equal(mask, masks(live)[path]) for path, mask in masks(averaged).items())
    assert all((masks(best)[path] | ~mask).all() for path, mask in masks(averaged).items())
    assert counts(best)[1] - counts(averaged)[1] < 1e-4 * counts(best)[0]  # FP16 makes zeros of what is below 3e-8

    report = report_of(trainer)
    assert [cut["sparsity"] for cut in report["cuts"]] == sorted(cut["sparsity"] for cut in report["cuts"])
    assert report["cuts"][-1]["sparsity"] == share_of_zeros(sparse_layers(averaged))
    assert report["final"]["sparsity"] == share_of_zeros(sparse_layers(best))
    assert report["zeros"] == zeros_of(sparse_layers(best))
    assert report["final"]["compressed"] < report["dense"]["compressed"]
    assert (report["final"]["macs"] < report["dense"]["macs"]) == ("40%" in target)

    (export,) = report["exports"]
    assert export["ok"], export
    there = [numpy_helper.to_array(of) for of in onnx.load(export["path"]).graph.initializer]
    zeros = sorted(int((of == 0).sum()) for of in there if of.ndim == 4 and len(of) > 1)
    assert zeros == sorted(of["zeros"] for of in report["zeros"].values())

    code = (
        "import sys; sys.modules['yolo_prune'] = None; import numpy; from ultralytics import YOLO\n"
        "model = YOLO(sys.argv[1]); model.predict(numpy.zeros((64, 64, 3), 'uint8'), imgsz=64, verbose=False)\n"
        "print('predicted')"
    )
    done = python("-c", code, trainer.best)
    assert "predicted" in done.stdout, done.stderr


@pytest.mark.slow
def test_zeros_survive_a_kill_and_a_resume(run: Run, own_folder: Path) -> None:
    whole = run(prune=soon("60% sparsity", **DEFAULTS), name="whole")
    yolo = YOLO(tiny_yaml(own_folder))

    def stop(trainer: Any) -> None:
        if trainer.epoch == 2:
            raise Interrupted

    yolo.add_callback("on_train_epoch_end", stop)
    with pytest.raises(Interrupted):
        run(yolo, prune=soon("60% sparsity", **DEFAULTS), name="killed")
    again = YOLO(own_folder / "runs" / "killed" / "weights" / "last.pt")
    PruneCallback(None).attach(again)
    again.train(resume=True)
    networks = [whole.ema.ema, again.trainer.ema.ema]
    assert exact(0.6, networks[1])
    assert_same_tensors(*(state(network) for network in networks))


@pytest.mark.slow
def test_a_sparse_checkpoint_stays_sparse_when_it_is_trained_on(run: Run, own_folder: Path) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    prune_model(yolo, "50% sparsity", imgsz=64)
    yolo.save("sparse.pt")
    before = masks(load_checkpoint("sparse.pt")[0])
    trainer = run(YOLO("sparse.pt"), prune=PruneCallback(0), epochs=2)
    for network in (load_checkpoint(trainer.best)[0], trainer.ema.ema, unwrap_model(trainer.model)):
        assert all((masks(network)[path] | ~mask).all() for path, mask in before.items())
    assert checkpoint.has_zeros(load_checkpoint(trainer.best)[0].yaml)
    with pytest.raises(KeyError, match=r"a plain train\(\) would"):
        YOLO("sparse.pt").train(data=str(trainer.args.data), epochs=1, imgsz=64, project=own_folder)

    slim = run(YOLO("sparse.pt"), prune=soon(0.3, **DEFAULTS), name="slim")
    network = load_checkpoint(slim.best)[0]
    plans = [json.loads((slim.save_dir / "pruning" / f"plan-{n}.json").read_text())["layers"] for n in (1, 2)]
    untouched = [path for path in before if not any(path in layers for layers in plans)]
    assert counts(network)[1] > 0.4 * counts(network)[0] and checkpoint.has_zeros(network.yaml)
    assert all((masks(network)[path] | ~before[path]).all() for path in untouched)


@pytest.mark.slow
def test_a_run_that_starts_pruned_and_sparse_resumes_before_its_first_cut(run: Run, own_folder: Path) -> None:
    yolo = YOLO(tiny_yaml(own_folder))
    prune_model(yolo, "30%, 50% sparsity", imgsz=64)
    yolo.save("start.pt")
    again = YOLO("start.pt")

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Interrupted

    again.add_callback("on_train_batch_start", stop)
    with pytest.raises(Interrupted):
        run(again, prune=soon(0.2, start=0.5, end=0.5, steps=1), name="killed")
    last = own_folder / "runs" / "killed" / "weights" / "last.pt"
    assert checkpoint.is_pruned(load_checkpoint(last)[0].yaml) and checkpoint.has_zeros(load_checkpoint(last)[0].yaml)
    resumed = YOLO(last)
    PruneCallback(None).attach(resumed)
    resumed.train(resume=True)
    network = load_checkpoint(resumed.trainer.best)[0]
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in yolo.model.parameters())
    assert counts(network)[1] > 0.4 * counts(network)[0]


@pytest.mark.slow
def test_zeros_that_cost_too_much_are_taken_back(run: Run) -> None:
    trainer = run(
        prune=soon("90% sparsity", max_drop=0.0, schedule="one-shot"),
        epochs=6,
    )
    report = report_of(trainer)
    network = load_checkpoint(trainer.best)[0]
    asked = report["cuts"][-1]["sparsity"] if report["cuts"] else 0.0
    assert share_of_zeros(sparse_layers(network)) == pytest.approx(asked, abs=1e-4)


def test_a_layer_that_is_nearly_empty_keeps_its_zeros_in_the_count() -> None:
    network, config = small(), PruneConfig(target="50% sparsity", importance="l2", layer_limits={"model.0.*": 0.5})
    with torch.no_grad():
        for path in ("model.0.conv", "model.3.conv"):
            network.get_submodule(path).weight.view(-1)[1:] = 0
    held = counts(network)[1]
    zeros = plan_zeros(network, config)
    assert sum(of.count for of in zeros.values()) == math.ceil(counts(network)[0] / 2) > held
    set_zeros(UndoLog(), network, zeros)
    assert exact(0.5, network)


def test_held_zeros_are_those_that_are_there() -> None:
    network = small()
    assert not held_zeros(network, PruneConfig())
    solved(network, target="40% sparsity", importance="l2")
    found = held_zeros(network, PruneConfig(ignored_layers=("model.0.*",)))
    assert "model.0.conv" not in found and all(of.is_chosen for of in found.values())
    for path, of in found.items():
        assert of.mask is not None and torch.equal(of.mask, masks(network)[path]) and of.count == int(of.mask.sum())
