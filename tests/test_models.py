"""Every architecture of the installed ultralytics, and models drawn at random from the same blocks."""

from __future__ import annotations

import copy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from nets import build, make
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn import tasks
from ultralytics.utils import YAML

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import BYTES, MACS, PARAMS
from yolo_prune.cost.model import CostModel
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.trace import trace
from yolo_prune.host import checkpoint
from yolo_prune.host.zoo import build_model, model_yamls, scaled
from yolo_prune.planning.allocation import plan_of, units_of
from yolo_prune.planning.planner import plan_cut, plan_traced, request_for
from yolo_prune.planning.verification import largest_difference, outputs, randomise_norms, verify_cut
from yolo_prune.surgery.slicing import cut

LARGE = ("rtdetr", "yolov3", "yolov9", "yolov10")


def architectures() -> list[Path]:
    """Return the smallest scale of each model YAML but those with the kinds of rows of a smaller one of its version."""
    smallest: dict[Any, tuple[int, Path]] = {}
    for path in model_yamls():
        yaml = YAML.load(path)
        rows = [*yaml["backbone"], *yaml["head"]]
        kinds = path.parent.name, frozenset(str(row[2]) for row in rows), str(rows[-1][0]).count(",")
        size = sum(row[1] * sum(n for n in row[3] if isinstance(n, int)) for row in rows)
        smallest[kinds] = min(smallest.get(kinds, (size, path)), (size, path))
    return [scaled(path)[0] for _, path in smallest.values()]


@pytest.mark.slow
@pytest.mark.parametrize("path", architectures(), ids=lambda path: path.stem)
def test_half_of_the_macs_can_be_cut_from_every_architecture_and_the_cut_is_right(path: Path, tmp_path: Path) -> None:
    pixels = 128 if "p6" in path.stem else 64
    network = build_model(narrower(path, tmp_path)).model
    randomise_norms(network)
    graph = trace(network, pixels)
    config = PruneConfig(target=0.5, importance="random")
    plan = plan_traced(network, graph, config, request_for(network, graph, config)).plan
    assert 0.48 <= plan.macs["after"] / plan.macs["before"] <= 0.5
    assert max(verify_cut(network, plan, pixels).values()) < 1e-9

    assert plan.params["before"] == sum(p.numel() for p in network.parameters())
    plan.apply(network)
    assert plan.params["after"] == sum(p.numel() for p in network.parameters())
    units = units_of(graph, plan)
    predicted = {quantity: CostModel(graph).amount(quantity, units) for quantity in (MACS, PARAMS, BYTES)}
    assert predicted == counted(network, (pixels, pixels))

    again = checkpoint.rebuild(partial(fresh, type(network)), network.yaml, network)
    if hasattr(network, "txt_feats"):  # no parameter: a WorldModel draws them until it is told its classes
        again.txt_feats = network.txt_feats
    image = torch.rand(1, 3, pixels, pixels)
    assert largest_difference(*(outputs(n.eval(), image) for n in (network, again))) == 0


def narrower(path: Path, folder: Path) -> Path:
    """Return a model YAML, of a large one with fewer channels and rows: ``benchmarks/support.py`` cuts it whole."""
    if not path.stem.startswith(LARGE) or path.stem.startswith("yolov9e"):  # whose widths are given twice
        return path
    yaml = YAML.load(path)
    if "scales" in yaml:
        yaml["scales"] = {k: [min(d, 0.33), min(w, 0.25), most] for k, (d, w, most) in yaml["scales"].items()}
    else:
        yaml |= {"depth_multiple": 0.33, "width_multiple": 0.25}
    YAML.save(folder / path.name, yaml)
    return folder / path.name


def counted(network: tasks.BaseModel, imgsz: tuple[int, int], ch: int = 3) -> dict[str, int]:
    """Count by what torch has: its counter on the deployed network, parameters, and tensors in half precision."""
    with FlopCounterMode(display=False) as counter:
        assert outputs(copy.deepcopy(network).eval().fuse(verbose=False), torch.zeros(1, ch, *imgsz))
    half = copy.deepcopy(network).half()
    return {
        MACS: counter.get_total_flops() // 2,
        PARAMS: sum(p.numel() for p in network.parameters()),
        BYTES: sum(t.numel() * t.element_size() for t in (*half.parameters(), *half.buffers())),
    }


def fresh(kind: type[tasks.BaseModel], cfg: dict[str, Any], weights: None, verbose: bool = True) -> tasks.BaseModel:
    """Build a network as a trainer's ``get_model`` does."""
    torch.manual_seed(1)
    return kind(copy.deepcopy(cfg), ch=cfg["channels"], nc=cfg["nc"], verbose=verbose)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ch", "nc", "imgsz"),
    [
        ("yolov8n", 1, 1, (128, 64)),
        ("yolo11n", 4, 3, (64, 192)),
        ("yolo12n", 6, 200, (128, 96)),
        ("yolo26n-p2", 3, 2, (64, 128)),
        ("yolov8n-p6", 2, 120, (128, 192)),
        ("yolo26n-obb", 5, 1, (96, 64)),
        ("yolov8n-cls", 1, 7, (64, 96)),
    ],
)
def test_other_inputs_classes_levels_and_rectangles(name: str, ch: int, nc: int, imgsz: tuple[int, int]) -> None:
    kind = {"cls": tasks.ClassificationModel, "obb": tasks.OBBModel}.get(name[-3:], tasks.DetectionModel)
    network = kind(f"{name}.yaml", ch=ch, nc=nc, verbose=False)
    plan = plan_cut(network, PruneConfig(target=0.5, importance="random"), imgsz)
    assert 0.48 <= plan.macs["after"] / plan.macs["before"] <= 0.5
    assert max(verify_cut(network, plan, imgsz).values()) < 1e-9
    plan.apply(network)
    assert counted(network, imgsz, ch)[MACS] == plan.macs["after"]


WIDTHS = st.sampled_from((16, 24, 32, 64))
KEEPING = {  # rows that keep the resolution: name -> arguments after the width
    "C1": (), "C2": (True,), "C2f": (True,), "C2fCIB": (True, True), "C3": (True,), "C3Ghost": (), "C3x": (),
    "C3k2": (True,), "RepC3": (), "BottleneckCSP": (), "GhostConv": (3,), "SPP": (),
    "SPPF": (5,), "Conv": (3,), "DWConv": (3,),
}  # fmt: skip
KEEPING_OWN = {  # rows that need a width of their own kind
    "A2C2f": (64, True, 1, True), "C2PSA": (64,), "C2fPSA": (64,), "PSA": (64,), "RepNCSPELAN4": (32, 32, 16, 1),
    "GhostBottleneck": (64,), "ELAN1": (32, 32, 16), "SPPELAN": (32, 16),
}  # fmt: skip
HALVING = {"Conv": (3, 2), "ADown": (), "AConv": (), "SCDown": (3, 2), "GhostConv": (3, 2), "Focus": (3,)}


@st.composite
def model_yaml(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a small detection model of up to nine rows, with concatenations, additions and one or two levels."""
    rows: list[list[Any]] = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]
    level = [1, 2]  # how often each row has halved the image
    for _ in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(("keep", "keep", "own", "halve", "join")))
        same = [i for i, n in enumerate(level) if n == level[-1] and i != len(level) - 1]
        if kind == "join" and same:
            rows.append([[-1, draw(st.sampled_from(same))], 1, "Concat", [1]])
        elif kind == "halve" and level[-1] < 5:
            name = draw(st.sampled_from(sorted(HALVING)))
            rows.append([-1, 1, name, [draw(WIDTHS), *HALVING[name]]])
        elif kind == "own":
            name = draw(st.sampled_from(sorted(KEEPING_OWN)))
            width, *others = KEEPING_OWN[name]
            rows.append([-1, 1, "Conv", [width, 1]])
            level.append(level[-1])
            rows.append([-1, 1, name, [width, *others]])
        else:
            name = draw(st.sampled_from(sorted(KEEPING)))
            repeats = draw(st.integers(1, 2)) if name.startswith(("C", "B", "Rep")) and name != "Conv" else 1
            rows.append([-1, repeats, name, [draw(WIDTHS), *KEEPING[name]]])
        halved = rows[-1][2] in HALVING and tuple(rows[-1][3][1:]) == HALVING[rows[-1][2]]
        level.append(level[-1] + halved)
    last = len(rows) - 1
    levels = [last]
    if other := [i for i, n in enumerate(level) if n < level[last]]:
        levels.insert(0, draw(st.sampled_from(other)))
    end2end = draw(st.booleans())
    detect = [levels, 1, "Detect", ["nc"]]
    return {"nc": 2, "end2end": end2end, "reg_max": draw(st.sampled_from((1, 16))), "backbone": rows, "head": [detect]}


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    yaml=model_yaml(),
    target=st.floats(0.05, 0.6),
    allocation=st.sampled_from(("uniform", "global", "isomorphic")),
    round_to=st.sampled_from((1, 2, 4)),
    importance=st.sampled_from(("random", "l2")),
)
def test_any_model_of_known_blocks_is_cut_right(
    yaml: dict[str, Any], target: float, allocation: str, round_to: int, importance: str
) -> None:
    torch.manual_seed(0)
    network = tasks.DetectionModel(copy.deepcopy(yaml), verbose=False)
    plan = make(network, target, allocation=allocation, round_to=round_to, importance=importance)
    assert plan.layers
    assert max(verify_cut(network, plan, 64).values()) < 1e-9
    smaller = copy.deepcopy(network)
    cut(plan, [smaller])
    second = make(smaller, 0.2, allocation=allocation, importance=importance)
    assert max(verify_cut(smaller, second, 64).values()) < 1e-9


@lru_cache
def traced(name: str) -> tuple[tasks.BaseModel, ChannelGraph]:
    network = build(name)
    return network, trace(network, 64)


@pytest.mark.slow
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("name", ["yolov8n-seg", "yolov9t", "yolov10n", "yolo12n", "yolo26n-pose"])
def test_any_widths_that_keep_ties_are_cut_right(name: str, data: st.DataObject) -> None:
    network, graph = traced(name)
    steps = [
        bundle.steps
        if bundle.locked
        else data.draw(st.integers(1, bundle.steps), label=graph.groups[bundle.groups[0]].name)
        for bundle in graph.bundles
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    ranked = [rng.permutation(group.width) for group in graph.groups]
    plan = plan_of(graph, steps, ranked)
    assert max(verify_cut(network, plan, 64).values()) < 1e-9

    smaller, cost, units = copy.deepcopy(network), CostModel(graph), units_of(graph, plan)
    cut(plan, [smaller])
    assert {quantity: cost.amount(quantity, units) for quantity in (MACS, PARAMS, BYTES)} == counted(smaller, (64, 64))


def test_a_yaml_is_found_with_each_of_its_scales() -> None:
    names = {name.stem for path in model_yamls() for name in scaled(path)}
    assert {"yolov8n", "yolov8x-seg-p6", "yolov10n", "yolov9t", "yolo26s-pose", "yoloe-11l", "rtdetr-x"} <= names
    path = next(p for p in model_yamls() if p.stem == "yolo11")
    assert [p.stem[-1] for p in scaled(path)] == list(YAML.load(path)["scales"])
    assert build_model(scaled(path)[0]).model.yaml["scale"] == "n"


def test_the_name_of_the_folder_that_ultralytics_lies_in_does_not_matter() -> None:
    assert build_model(Path("/home/W9sy/ultralytics/cfg/models/11/yolo11n.yaml")).model.yaml["scale"] == "n"
