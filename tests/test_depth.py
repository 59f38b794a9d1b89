"""Removing inner blocks: exact, all or nothing, and known to everything that a cut goes through."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import (
    IMGSZ,
    Chain,
    assert_same_tensors,
    build,
    fast_and_slow,
    graph_of,
    labelled_batches,
    make,
    state,
    tiny_yaml,
    weights_of,
)
from test_blocks import BUILT, WIDTH
from test_checkpoint import get_model, save
from test_snapshot import everything, trainer_of
from test_snapshot import step as train_step
from test_state import assert_same_end
from test_surgery import optimizer_of, step
from torch import nn
from trainings import DEFAULTS, Run, soon
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import block

from yolo_prune import PruneCallback, PruneConfig, prune_model
from yolo_prune.blocks import inner_blocks, inner_lists
from yolo_prune.config.targets import MACS
from yolo_prune.cost.latency import STAIRS, LatencyModel, Workload
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.samples import cut_networks, sample_plans, widths_of
from yolo_prune.errors import ConfigError, PlanError, TargetError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint
from yolo_prune.importance.reconstruction_error import BLOCK_WEIGHT, Elimination
from yolo_prune.importance.statistics import layer_statistics
from yolo_prune.oneshot import dry_run
from yolo_prune.plan import PrunePlan
from yolo_prune.planning.allocation import PlanRequest, make_plan, plan_of
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.planner import plan_traced, request_for
from yolo_prune.planning.ranking import ByScore
from yolo_prune.planning.verification import largest_difference, outputs, verify_cut
from yolo_prune.surgery.slicing import cut
from yolo_prune.training.guard import Guard
from yolo_prune.training.snapshot import Snapshot

pytestmark = pytest.mark.drift

NAMES = (
    "yolo11n",
    "yolov8n",
    "yolo12n",
    "yolov5nu",
    "yolov9t",
    "yolov10n",
    "yolo26n",
    "rtdetr-resnet50",
    "yolo11n-seg",
)
FAMILIES = fast_and_slow(*NAMES)


def removal(graph: ChannelGraph, blocks: Collection[str]) -> PrunePlan:
    """Return the plan that removes blocks and no channels."""
    steps, order = [b.steps for b in graph.bundles], [np.arange(group.width) for group in graph.groups]
    return plan_of(graph, steps, order, blocks)


def last_layers(inner: nn.Module) -> list[nn.Module]:
    """Return the layers that make what an inner block adds to its input, or what it makes of it."""
    if isinstance(inner, nn.Sequential):
        return [layer for entry in inner for layer in last_layers(entry)]
    if isinstance(inner, block.PSABlock):
        return [inner.attn.proj, inner.ffn[-1]]
    if isinstance(inner, block.ABlock):
        return [inner.attn.proj, inner.mlp[-1]]
    if isinstance(inner, block.ResNetBlock):
        return [inner.cv3]
    if isinstance(inner, block.LightConv):
        return [inner.conv2]
    if isinstance(inner, block.CIB):
        return [inner.cv1[-1]]
    return [inner.cv3 if isinstance(inner, block.C3) else inner.cv2]


@pytest.mark.parametrize("family", FAMILIES)
def test_removing_blocks_that_do_nothing_changes_no_output(family: str) -> None:
    model, blocks = build(family).double(), graph_of(family).blocks
    assert blocks
    for entry in blocks:
        for layer in last_layers(model.get_submodule(entry.path)):
            nn.init.zeros_(layer.bn.weight)
            nn.init.zeros_(layer.bn.bias)
    image = torch.rand(1, 3, IMGSZ, IMGSZ, dtype=torch.float64)
    pruned = copy.deepcopy(model)
    plan = removal(graph_of(family), [entry.path for entry in blocks])
    assert plan.macs["after"] < plan.macs["before"]
    cut(plan, [pruned])
    for mode in (False, True):  # a pass in training mode changes running statistics, so it comes last
        expected, made = (outputs(network.train(mode), image) for network in (model, pruned))
        assert largest_difference(expected, made) < 1e-9


WITH_LISTS = (
    *(block.A2C2f, block.BottleneckCSP, block.C1, block.C2, block.C2f, block.C2fCIB, block.C2fPSA, block.C2PSA),
    *(block.C3, block.C3f, block.C3Ghost, block.C3k, block.C3k2, block.C3x, block.HGBlock, block.RepC3, block.RepCSP),
    *(block.RepNCSPELAN4, block.ResNetLayer),
)


def chain_of(kind: type[nn.Module]) -> Chain | None:
    """Return a network of a block, or None where the release has no attention of so few channels."""
    try:
        return Chain(WIDTH, BUILT[kind]())
    except ZeroDivisionError:
        return None


def test_the_blocks_that_have_lists_are_known() -> None:
    chains = {kind: chain for kind in BUILT if (chain := chain_of(kind))}
    assert {kind for kind, chain in chains.items() if any(inner_lists(chain))} == {*WITH_LISTS} & chains.keys()


@pytest.mark.parametrize("kind", WITH_LISTS, ids=lambda kind: kind.__name__)
def test_every_list_of_blocks_can_be_shortened(kind: type[nn.Module]) -> None:
    model = chain_of(kind)
    if model is None:
        pytest.skip("this release of Ultralytics has no attention of so few channels")
    graph, known = trace(model, 64), inner_blocks(model)
    for entry in known.values():
        plan = removal(graph, [entry.path]) if entry in graph.blocks and not entry.after else None
        if not entry.reader:  # a plan that names it alone, as a user may write it
            plan = PrunePlan({}, {}, dict.fromkeys(("before", "after"), 1), {}, graph.imgsz, blocks=(entry.path,))
        if plan and keeps_shape(model, entry.path):
            assert max(verify_cut(model, plan, 64).values()) < 1e-9, entry.path
    removed = removal(graph, [entry.path for entry in graph.blocks])
    assert max(verify_cut(model, removed, 64).values()) < 1e-9
    cut(removed, [model])
    assert CostModel(trace(model, 64)).macs() == removed.macs["after"]


def keeps_shape(model: nn.Module, path: str) -> bool:
    """Whether a block of a network makes maps of the shape that it takes."""
    shapes = []
    hook = model.get_submodule(path).register_forward_hook(lambda m, x, y: shapes.append((x[0].shape, y.shape)))
    outputs(model.eval(), torch.rand(1, 3, 64, 64))
    hook.remove()
    return shapes[0][0] == shapes[0][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_of_each_kind_can_go_alone_and_saves_what_the_plan_says(family: str) -> None:
    graph, whole = graph_of(family), build(family)
    modules = {entry: whole.get_submodule(entry.path) for entry in graph.blocks}
    of_each_kind = {(type(module), getattr(module, "add", None)): entry for entry, module in modules.items()}
    assert of_each_kind
    for entry in of_each_kind.values():
        plan, model = removal(graph, {entry.path, *entry.after}), build(family)
        assert max(verify_cut(model, plan, IMGSZ).values()) < 1e-9, entry.path
        cut(plan, [model])
        left = CostModel(trace(model, IMGSZ))
        assert (left.macs(), left.params()) == (plan.macs["after"], plan.params["after"]), entry.path
        assert left.params() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_can_go_and_stock_classes_stay(family: str) -> None:
    model, plan = build(family), removal(graph_of(family), [entry.path for entry in graph_of(family).blocks])
    assert verify_cut(model, plan, IMGSZ)["eval"] < 1e-9
    kinds = {type(m) for m in model.modules()}
    cut(plan, [model])
    assert {type(m) for m in model.modules()} <= kinds and not trace(model, IMGSZ).blocks
    assert verify_cut(model, 0.2, IMGSZ)["eval"] < 1e-9
    outputs(model.eval().fuse(verbose=False), torch.rand(1, 3, IMGSZ, IMGSZ))


@given(data=st.data())
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
def test_random_plans_of_blocks_and_channels_are_exact(data: st.DataObject) -> None:
    graph = graph_of(data.draw(st.sampled_from(["tiny"])))
    chosen = data.draw(st.sets(st.sampled_from(graph.blocks)))
    blocks = {path for entry in chosen for path in (entry.path, *entry.after)}
    seed = data.draw(st.integers(0, 99))
    scores = [np.random.default_rng(seed).random(group.width) for group in graph.groups]
    request = PlanRequest({MACS: data.draw(st.floats(0.3, 0.9)) * CostModel(graph).macs()})
    plan = make_plan(graph, ByScore(graph, scores), request, blocks)
    assert set(plan.blocks) == blocks
    model = build("tiny")
    assert max(verify_cut(model, plan, IMGSZ, seed).values()) < 1e-9
    cut(plan, [model])
    assert CostModel(trace(model, IMGSZ)).macs() == plan.macs["after"] <= request.budget[MACS]
    assert PrunePlan.from_dict(plan.to_dict()).sha256 == plan.sha256


def test_a_plan_without_blocks_has_the_hash_that_it_always_had() -> None:
    plan = make(build("tiny"), importance="random")
    data = plan.to_dict()
    assert data.pop("blocks") == []
    does = json.dumps({"layers": plan.layers, "widths": plan.widths}, sort_keys=True, separators=(",", ":"))
    assert plan.sha256 == hashlib.sha256(does.encode()).hexdigest()
    assert PrunePlan.from_dict(data) == plan
    assert removal(graph_of("tiny"), ["model.2.m.0"]).sha256 != removal(graph_of("tiny"), ["model.4.m.0"]).sha256


def test_two_plans_with_blocks_in_one_do_what_they_do_one_after_the_other() -> None:
    model, at_once = build("yolo11n"), build("yolo11n")
    first = removal(graph_of("yolo11n"), ["model.6.m.0.m.1"])
    channels = make(model, 0.3, importance="random")
    cut(first, [model])
    second = make(model, 0.2, importance="random")
    cut(second, [model])
    third = removal(trace(model, IMGSZ), ["model.6.m.0", "model.8.m.0.m.0"])
    cut(third, [model])
    both = first.then(second).then(third)
    assert both.blocks == ("model.6.m.0", "model.8.m.0.m.0") and channels.blocks == ()
    assert not any(path.startswith("model.6.m.0") for path in both.layers)
    assert PrunePlan.from_dict(both.to_dict()) == both
    cut(both, [at_once])
    assert {k: v.shape for k, v in state(model).items()} == {k: v.shape for k, v in state(at_once).items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": ("model.9.m.0",)}, r"another network: model\.9\.m\.0 is no inner block"),
        (
            {"blocks": ("model.2.m.0",), "layers": {}, "widths": {}},
            r"removes model\.2\.m\.0, and",
        ),
    ],
)
def test_a_plan_whose_blocks_do_not_fit_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    model = build("tiny")
    before = state(model)
    with pytest.raises(PlanError, match=message):
        cut(replace(removal(graph_of("tiny"), ["model.2.m.0"]), **change), [model])
    assert_same_tensors(before, state(model))


def test_blocks_that_others_read_go_last() -> None:
    model = build("yolov8n")
    plan = removal(graph_of("yolov8n"), ["model.4.m.0"])
    with pytest.raises(PlanError, match=r"model\.4\.m\.0 cannot be removed without model\.4\.m\.1"):
        cut(plan, [model])


@pytest.mark.parametrize("blocks", [["b", "a"], ["a", "a"], ["a", "a.b"], "a", [1], [""], None])
def test_a_list_of_blocks_that_is_none_is_refused(blocks: Any) -> None:
    with pytest.raises(PlanError, match="the plan is damaged: 'blocks'"):
        PrunePlan.from_dict({**removal(graph_of("tiny"), []).to_dict(), "blocks": blocks})


@pytest.mark.parametrize("name", ["AdamW", "MuSGD"])
def test_the_optimizer_has_the_models_parameters_and_all_comes_back(name: str) -> None:
    model, ema = build("tiny"), build("tiny", seed=1)
    optimizer = optimizer_of(model, name)
    step(model, optimizer)
    before = state(model), state(ema), copy.deepcopy(optimizer.state_dict())
    modules = [*model.modules()], [*ema.modules()]
    undo = cut(removal(graph_of("tiny"), ["model.2.m.0", "model.6.m.0"]), [model, ema], optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()} and {id(p) for p in optimizer.state} <= held
    assert all(block.np == sum(p.numel() for p in block.parameters()) for block in model.model)
    step(model, optimizer)
    undo.undo()
    assert ([*model.modules()], [*ema.modules()]) == modules
    after = optimizer.state_dict()
    assert after["param_groups"] == before[2]["param_groups"] and after["state"].keys() == before[2]["state"].keys()
    assert_same_tensors(before[1], state(ema))
    step(model, optimizer)


@pytest.mark.slow
def test_the_record_rebuilds_the_network_without_its_blocks_for_any_data(tmp_path: Path, python: Python) -> None:
    model = build("yolo11n")
    plan = make(model, 0.3, importance="random")
    plan.apply(model)
    cut(removal(trace(model, IMGSZ), ["model.2.m.0", "model.6.m.0.m.0", "model.10.m.0"]), [model])
    checkpoint.mark(model)
    again = checkpoint.rebuild(get_model, model.yaml, model)
    assert_same_tensors(state(model), state(again))
    assert again.yaml == model.yaml and checkpoint.rebuild(partial(get_model, 7), again.yaml, again).model[-1].nc == 7
    file = save(model, tmp_path / "pruned.pt")
    (tmp_path / "plain.py").write_text(PLAIN)
    done = python(tmp_path / "plain.py", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(sum(p.numel() for p in model.parameters()))


PLAIN = """
import sys
sys.modules["yolo_prune"] = None
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import torch_safe_load

torch_safe_load(sys.argv[1], safe_only=True)
yolo = YOLO(sys.argv[1])
count = sum(p.numel() for p in yolo.model.parameters())
yolo.predict(torch.rand(1, 3, 96, 96), verbose=False)
print(count)
"""


def test_a_record_of_an_earlier_version_still_builds() -> None:
    model = build("tiny")
    checkpoint.mark(model)
    record = model.yaml[checkpoint.KEY]
    earlier = {**model.yaml, checkpoint.KEY: {**{k: v for k, v in record.items() if k != "blocks"}, "schema": 1}}
    assert_same_tensors(state(model), state(checkpoint.rebuild(get_model, earlier, model)))


@pytest.fixture
def cheap_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks that a layer reads cost nothing."""
    monkeypatch.setattr(Elimination, "block_error", lambda self, block: 0.0 if block.reader else math.inf)


EVERYTHING = {**DEFAULTS, "depth": True}


@pytest.mark.usefixtures("cheap_blocks")
def test_a_run_that_removes_blocks_says_so_everywhere_and_trains_on(
    run: Run, own_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at = run(None, soon(**EVERYTHING), name="run").save_dir
    report = json.loads((at / "pruning" / "report.json").read_text())
    removed = {path for record in report["cuts"] for path in record["blocks"]}
    assert removed and report["final"]["macs"] <= 0.5 * report["dense"]["macs"]
    page = (at / "pruning" / "report.html").read_text()
    assert all(path in page for path in removed)
    assert any(widths["after"] == 0 for widths in report["layers"].values())
    best = at / "weights" / "best.pt"
    assert not any(path in dict(YOLO(best).model.named_modules()) for path in removed)
    again = run(YOLO(best), PruneCallback(0), name="again", epochs=1)
    assert sum(p.numel() for p in YOLO(best).model.parameters()) == sum(p.numel() for p in again.ema.ema.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_blocks")
@pytest.mark.parametrize("knobs", [{}, {"max_drop": 0.99}, {"distill": True}, {"rewind": 0.0}])
def test_an_interrupted_run_that_removes_blocks_ends_as_if_nothing_had_happened(
    run: Run, own_folder: Path, knobs: dict[str, Any]
) -> None:
    yolo = YOLO(tiny_yaml(own_folder))

    def keep(trainer: Any) -> None:
        if trainer.epoch == 2:
            shutil.copytree(trainer.save_dir, own_folder / "lost")

    yolo.add_callback("on_train_epoch_end", keep)
    at = run(yolo, soon(**EVERYTHING, **knobs), name="run").save_dir
    undisturbed = at.rename(own_folder / "undisturbed")
    assert json.loads((undisturbed / "pruning" / "report.json").read_text())["cuts"][0]["blocks"]
    shutil.copytree(own_folder / "lost", at)
    assert_same_end(undisturbed, run(YOLO(at / "weights" / "last.pt"), PruneCallback(None), resume=True).save_dir)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_blocks")
def test_a_cut_of_blocks_that_costs_too_much_is_taken_back(
    run: Run, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "holds", lambda self, fitness: False)
    at = run(None, soon(**EVERYTHING, max_drop=0.5), name="run").save_dir
    network = YOLO(at / "weights" / "best.pt").model
    assert "model.2.m.0" in dict(network.named_modules())
    assert json.loads((at / "pruning" / "report.json").read_text())["guard"]["failures"]


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_blocks")
def test_one_cut_without_training_removes_blocks_and_tells_it_beforehand(own_folder: Path, tiny_data: Path) -> None:
    where = {"batch": 4, "workers": 0, "plots": False, "project": str(own_folder), "exist_ok": True}
    yolo = YOLO(tiny_yaml(own_folder))
    yolo.model = tasks.DetectionModel(yolo.model.yaml, nc=3, verbose=False)
    told = dry_run(yolo, PruneConfig(target=0.4, depth=True, calibration=4), data=str(tiny_data), imgsz=64, **where)
    plan = prune_model(
        yolo, 0.4, depth=True, calibration=4, data=str(tiny_data), imgsz=64, benchmark=False, **where
    ).plan
    assert plan.blocks and f"blocks removed: {', '.join(plan.blocks)}" in told
    assert not any(path in dict(yolo.model.named_modules()) for path in plan.blocks)
    again = build("tiny")
    plan.apply(again)
    assert sum(p.numel() for p in again.parameters()) == plan.params["after"]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW])
def test_going_back_restores_blocks(optimizer: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    trainer = trainer_of("tiny", optimizer, tmp_path)
    train_step(trainer)
    before, good = everything(trainer), Snapshot(trainer)
    cut(removal(graph_of("tiny"), ["model.2.m.0"]), [trainer.model, trainer.ema.ema], trainer.optimizer)
    trainer.ema._pairs = None
    train_step(trainer)
    for _ in range(2):
        good.restore(trainer)
        assert_same_tensors(before, everything(trainer))
        train_step(trainer)


def test_blocks_go_only_where_they_cost_less_than_channels() -> None:
    model, batches = build("tiny"), labelled_batches(2)
    data = CalibrationData(model, batches)
    for layer in last_layers(model.model[6].m[0]):  # it adds nothing
        nn.init.zeros_(layer.bn.weight)
        nn.init.zeros_(layer.bn.bias)
    graph = trace(model, IMGSZ)
    for depth in (True, False):
        config = PruneConfig(target=0.3, depth=depth)
        plan = plan_traced(model, graph, config, request_for(model, graph, config), data).plan
        assert ("model.6.m.0" in plan.blocks) is depth
        assert plan.macs["after"] <= 0.7 * plan.macs["before"]
    kept = PruneConfig(target=0.3, depth=True, layer_limits={"model.6.m.0.cv1.conv": 0.5})
    assert "model.6.m.0" not in plan_traced(model, graph, kept, request_for(model, graph, kept), data).plan.blocks
    named = trace(model, IMGSZ, PruneConfig(ignored_layers=["model.6.m.0.*"]).is_ignored)
    assert "model.6.m.0" not in {entry.path for entry in named.blocks}


@pytest.mark.parametrize("others", [{"importance": "l2"}, {"allocation": "uniform"}, {"per_cost": False}])
def test_blocks_are_refused_where_nobody_knows_what_they_cost(others: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"depth=True with .*; leave depth out, or use these"):
        PruneConfig(depth=True, **others)
    assert not PruneConfig(**others).removes_blocks and not PruneConfig(depth=False).removes_blocks
    assert PruneConfig(target="2x").removes_blocks and PruneConfig(depth=True).removes_blocks
    assert not PruneConfig().removes_blocks


def test_a_target_beyond_what_channels_allow_is_reached_with_blocks() -> None:
    model = build("tiny")
    graph, data = trace(model, IMGSZ), CalibrationData(model, labelled_batches(2))
    tight = {"target": 0.2, "max_pruning_ratio": 0.05, "round_to": 1}
    alone = PruneConfig(**tight, depth=False)
    with pytest.raises(TargetError, match="is the least that can be reached"):
        plan_traced(model, graph, alone, request_for(model, graph, alone), data)
    both = PruneConfig(**tight, depth=True)
    plan = plan_traced(model, graph, both, request_for(model, graph, both), data).plan
    assert plan.blocks and plan.macs["after"] <= 0.8 * plan.macs["before"]


def test_seconds_count_the_layers_of_blocks() -> None:
    graph = graph_of("tiny")
    per_layer = LatencyModel(dense=1e-6, weights=weights_of(layers=1e-3))
    whole, gone = CostModel(graph, per_layer), CostModel(graph, per_layer, {"model.2.m.0"})
    assert whole.seconds() - gone.seconds() == pytest.approx(2e-3)  # two convolutions
    widths = widths_of(graph, removal(graph, ["model.2.m.0"]))
    assert per_layer.seconds(Workload(graph), *widths) == pytest.approx(gone.seconds())
    plans = sample_plans(graph, 12)
    assert len({len(plan.blocks) for plan in plans}) > 2
    for plan, network in zip(plans, cut_networks(build("tiny"), plans), strict=True):
        own = trace(network, IMGSZ)
        assert CostModel(own).macs() == plan.macs["after"]
        for stairs in STAIRS:  # a finished network computes what was planned, seen from its own graph
            features = Workload(own).features(*Workload(own).dense, stairs)
            assert features == pytest.approx(Workload(graph).features(*widths_of(graph, plan), stairs))


@pytest.mark.parametrize("stairs", [1, 16])
def test_latencies_of_an_earlier_version_do_not_count_layers(tmp_path: Path, stairs: int) -> None:
    names = ("convolutions", "pointwise") if stairs == 1 else ("stepped", "stepped pointwise")
    rest = {"grouped": 3.0, "made": 4.0, "read": 5.0, "fixed": 6.0}
    model = LatencyModel(1.0, weights_of(**dict(zip(names, (1.0, 2.0), strict=True)), **rest), stairs)
    for earlier in ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 6.0]):
        (tmp_path / "latency.json").write_text(json.dumps({**asdict(model), "weights": earlier}))
        assert LatencyModel.load(tmp_path / "latency.json") == model


def test_the_error_of_a_block_is_that_of_its_readers_inputs_together() -> None:
    model = build("tiny")
    graph = trace(model, IMGSZ)
    ranking = Elimination(model, graph, layer_statistics(model, labelled_batches(2)))
    entry = next(b for b in graph.blocks if b.path == "model.4.m.0")
    reader = ranking._consumers[entry.reader]
    one_by_one = 0.0
    expected = ranking.block_error(entry)
    for channel in entry.channels:
        one_by_one += reader.errors()[channel]
        reader.drop_inputs(np.array([channel]))
    assert expected == pytest.approx(BLOCK_WEIGHT * one_by_one, rel=1e-6, abs=0)
