"""Every option of a pruning run: its name, unit, range, default and help text.

This module knows neither torch nor ultralytics, so that a typing error in an option is refused within milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yolo_prune.config import rules
from yolo_prune.config.choices import (
    ALLOCATIONS,
    DISTILL_LOSSES,
    IMPORTANCES,
    LEARNING_RATES,
    NORMALIZERS,
    RUNTIMES,
    SCHEDULES,
    SPARSITIES,
)
from yolo_prune.config.rules import Rule


def _option(default: Any, rule: Rule, help: str, of: str | None = None) -> Any:
    """Declare an option with its rule and its one-line description, of which help texts and documents are made.

    Args:
        default: Its value where none is given.
        rule: What it may be.
        help: The description.
        of: Another option, without which it does nothing.
    """
    given: dict[str, Any] = {"default_factory": dict} if isinstance(default, dict) else {"default": default}
    return field(**given, metadata={"help": help, "rule": rule, "of": of})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options, each beside its rule and its description."""

    target: float | str = _option(
        0.5,
        rules.target(),
        "share to remove, of the MACs (0.5, 50%) or of params, size or latency (50% params), or limit to keep "
        "(3.2 GMACs, 1.2M params, 2 MB, 1.5 MB litert:8, 256 kB ram:8, 8 ms, 2x), or zeros among the weights (60% "
        "sparsity, 2:4); several must all hold; 0 cuts nothing; auto is as much as max_drop allows",
    )
    sizes: tuple[str, ...] = _option(
        (),
        rules.sizes(),
        "targets of several models from one run, instead of one target, e.g. 0.3,0.5,0.7; each stays as "
        "weights/best-0.3.pt and so on",
    )
    importance: str = _option(
        "reconstruction",
        rules.choice(*IMPORTANCES),
        f"criterion that ranks channels: {', '.join(IMPORTANCES)}; with the last zeros are solved, else by magnitude",
    )
    allocation: str = _option(
        "global",
        rules.choice(*ALLOCATIONS, removed={"search": "use global, which cost no accuracy and no time in comparison"}),
        f"how much each layer loses: {', '.join(ALLOCATIONS)}",
    )
    normalizer: str = _option(
        "mean",
        rules.choice(*NORMALIZERS),
        f"how scores of different layers are made comparable: {', '.join(NORMALIZERS)}",
    )
    per_cost: bool = _option(
        True, rules.flag(), "divide a channel's importance by what it saves of the target (global, isomorphic)"
    )
    steps: int = _option(3, rules.whole(1), "number of cuts to each size, >= 1 (a one-shot schedule has one)")
    start: float | None = _option(
        None,
        rules.number(lambda x: 0 <= x < 1, "is not a fraction of the run in 0 <= start < 1; try start=0.1.").or_none(),
        "first cut, as a fraction of the run's epochs, 0 <= start < 1; by default 0.1, or 0.3 of a model that has to "
        "learn the data's classes first",
    )
    end: float | None = _option(
        None,
        rules.number().or_none(),
        "last cut, as a fraction of the run's epochs, start <= end < 1; the rest recovers; one-shot has none; by "
        "default 0.4, or 0.5 of such a model",
    )
    schedule: str = _option(
        "cubic", rules.choice(*SCHEDULES), f"how the target is divided among the cuts: {', '.join(SCHEDULES)}"
    )
    depth: bool | None = _option(
        None,
        rules.flag().or_none(),
        "whether whole inner blocks may go as well, where that costs less than channels; by default for a latency "
        "target; needs importance=reconstruction and allocation=global",
    )
    round_to: int | None = _option(
        None,
        rules.whole(1).or_none(),
        "pruned widths are multiples of this, >= 1; by default of 8, or of a quarter of a layer that is narrower, and "
        "of what is fast there for a latency target",
    )
    runtime: str | None = _option(
        None,
        rules.runtime(*RUNTIMES).or_none(),
        f"where the model will run, some with a precision as in onnx:8: {', '.join(RUNTIMES)}, or a command that times "
        'an ONNX file, "command: my-timer {file}"; latency targets are measured there; by default onnx, or what '
        "latency was measured in",
    )
    latency: str | None = _option(
        None, rules.path().or_none(), "what a kit has measured on the device: latency targets are of that device"
    )
    max_pruning_ratio: float = _option(
        0.9,
        rules.number(lambda x: 0 < x < 1, "is not in 0 < max_pruning_ratio < 1; try 0.9."),
        "largest share of channels that one group may lose over the run, 0 < x < 1",
    )
    layer_limits: dict[str, float] = _option(  # noqa: RUF009  # it declares a factory
        {},
        rules.shares(),
        "the same by name pattern of layers, e.g. model.22.*:0.5,model.0.*:0.2; also the largest share of zeros there",
    )
    ignored_layers: tuple[str, ...] = _option(
        (), rules.names(), "layers that keep their width, and all their weights, as name patterns, e.g. model.0.*"
    )
    drop_levels: tuple[int, ...] = _option(
        (),
        rules.levels(),
        "detection levels to remove before the first cut, with what only they read: 5 (stride 32), 3 (stride 8), or "
        "several, e.g. 4,5",
    )
    keep_classes: tuple[str, ...] = _option(
        (),
        rules.names(numbered=True),
        "classes to keep, as names, name patterns or numbers, e.g. person,*bus; the others go, with their labels",
    )
    reid: bool = _option(
        False,
        rules.flag(),
        "keep the maps that the head reads multiples of the smallest in width, as tracking with with_reid and "
        "model: auto needs",
    )
    calibration: int | None = _option(
        None,
        rules.whole(4).or_none(),
        "training images for criteria and reconstruction, >= 4; by default 64, or 128 of more than 20 classes",
    )
    reconstruction: bool = _option(
        True, rules.flag(), "refit the remaining weights to the dense outputs after each cut (least squares)"
    )
    lr_after_cut: str | None = _option(
        None,
        rules.choice(*LEARNING_RATES, removed={"rewarm": "use keep, which recovers as much"}).or_none(),
        f"learning rate after a cut: {', '.join(LEARNING_RATES)}; by default keep, or cycle with several sizes or "
        "target=auto",
    )
    max_drop: float | None = _option(
        None,
        rules.number(lambda x: 0 <= x < 1, "is not a share in 0 <= max_drop < 1; 0.01 allows 1 %.").or_none(),
        "largest loss of fitness, as a share of the dense one, e.g. 0.01; a cut that costs more is taken back; by "
        "default 0.01 with target=auto",
    )
    dense: str | None = _option(
        None,
        rules.path().or_none(),
        "checkpoint of the dense model, trained to the end, whose fitness max_drop is a share of; by default the model "
        "that the run starts from, or what it is before the first cut",
        of="max_drop",
    )
    distill: bool | str | None = _option(
        None,
        rules.flag_or_path().or_none(),
        "learn from the dense model after the first cut, or from a given checkpoint; by default with one target, of a "
        "model that knows the data's classes, where Ultralytics can distil it",
    )
    distill_loss: str = _option(
        "outputs",
        rules.choice(*DISTILL_LOSSES),
        f"what it learns there, beside the labels: {', '.join(DISTILL_LOSSES)}",
        of="distill",
    )
    sparsity: str = _option(
        "none",
        rules.choice(
            *SPARSITIES,
            removed={"growing": "use group_lasso, or none, which costs no accuracy"},
            else_="Zeros among the weights are a target: prune='60% sparsity'.",
        ),
        f"regularise until the first cut: {', '.join(SPARSITIES)}; no zeros come of it, those are a target",
    )
    sparsity_strength: float = _option(
        1e-4, rules.number(lambda x: x > 0, "is not > 0; try 1e-4."), "weight of that penalty, > 0", of="sparsity"
    )
    rewind: float | None = _option(
        None,
        rules.number().or_none(),
        "after a cut the weights of this fraction of the run come back, 0 <= rewind <= start (lottery ticket)",
    )
    quantize_at: float = _option(
        0.7,
        rules.number(lambda x: 0 < x < 1, "is not a fraction of the run in 0 < quantize_at < 1; try 0.7."),
        "when a run with quantize=8 turns to INT8, as a fraction of its epochs, after the last cut, 0 < x < 1",
    )
    benchmark: bool = _option(
        True, rules.flag(), "time dense and pruned at the end in the runtime, beside official scales of their size"
    )
    export: tuple[str, ...] = _option(
        (),
        rules.names(),
        "Ultralytics export formats made and checked at the end, some with a precision, e.g. onnx,openvino:8",
    )
    verbose: bool = _option(
        True, rules.flag(), "show a line per cut, a summary at the end, and progress bars where work takes long"
    )
