"""Records in ``model.yaml``: how a pruned network is rebuilt, and a guard against rebuilding it dense.

Ultralytics reads ``model.yaml`` only where it builds a network anew: in ``train()`` and on resume. A stock ``train()``
would so turn a pruned model back into a dense one, in silence, and a stock resume would forget the cuts that were still
to come. Here the first row's module name is replaced by a sentence, which a stock ``train()`` stops with, and a record
of plain data beside it tells yolo_prune how to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import load_checkpoint, torch_safe_load

from yolo_prune.blocks import followed, inner_lists, remove
from yolo_prune.errors import CheckpointError, describe_error, short_repr
from yolo_prune.graph.layers import named_layers, resized, widths
from yolo_prune.graph.outline import outline
from yolo_prune.host.trainer import preserved_rng
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.utils.files import atomic_write
from yolo_prune.utils.paths import outermost

SCHEMA, READ = 2, (1, 2)
"""Schema of the records that are written, and of those that are read; the first had no ``blocks``."""
KEY = "yolo_prune"
"""The record's key in ``model.yaml``: ``{"schema", "module", "widths": {path: {"out", "in"}}, "blocks", "zeros", …}``.

``widths`` are those of a pruned network, ``blocks`` tells which entries its lists of inner blocks still have (list path
-> names), ``zeros`` says that weights of its layers are zero on purpose, ``run`` is the state of a pruning run.
"""

INSTALL = "install the yolo_prune plugin (whoever made this checkpoint has it)"
"""Where to get the plugin: a checkpoint outlives addresses, and no package index is promised to have it."""

SENTENCE = (
    "This network was pruned by yolo_prune, and a plain train() would make it dense again. Way out: "
    f"{INSTALL}, then PruneCallback(0).attach(model) before model.train(), or add prune=0 to the yolo command; an "
    "interrupted run is resumed with PruneCallback(None), or prune=True."
)

RUN_SENTENCE = (
    "This checkpoint belongs to a run of yolo_prune, and a plain train() or resume would go on without its cuts. Way "
    f"out: {INSTALL}, then PruneCallback(None).attach(model) before model.train(resume=True), or add prune=True to the "
    "yolo command; prune=0 and PruneCallback(0) train the network as it is."
)


@dataclass(frozen=True)
class Training:
    """What a checkpoint tells of the training that it comes from.

    Attributes:
        finished: Whether that was over: Ultralytics strips a checkpoint then; None where the file does not say.
        fitness: Of its network, on the validation images of that training, or None.
        arguments: Ultralytics' arguments of that training, such as ``data`` and ``imgsz``.
    """

    finished: bool | None = None
    fitness: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def training_of(path: str | Path) -> Training:
    """Return what a checkpoint tells of its training; nothing where there is no file, or a damaged one."""
    try:
        content, _ = torch_safe_load(path)
        epoch, metrics = content.get("epoch"), content.get("train_metrics") or {}
        fitness, arguments = metrics.get("fitness"), dict(content.get("train_args") or {})
    except Exception:  # whatever a wrong file raises, it tells nothing
        return Training()
    finished = epoch < 0 if isinstance(epoch, int) else None
    return Training(finished, float(fitness) if isinstance(fitness, (int, float)) else None, arguments)


def load_network(path: str | Path) -> nn.Module:
    """Read the network of a checkpoint with Ultralytics' own loader, which runs no code with ULTRALYTICS_SAFE_LOAD=1.

    Raises:
        CheckpointError: If it is no checkpoint of Ultralytics, or a damaged one.
    """
    try:
        network: nn.Module = load_checkpoint(path)[0]
    except Exception as e:  # Ultralytics and torch name no common class for what a wrong file raises
        raise CheckpointError(
            f"{path} is no checkpoint that can be read ({describe_error(e)}); give a .pt of Ultralytics."
        ) from e
    return network


def is_pruned(yaml: Any) -> bool:
    """Whether a ``model.yaml`` belongs to a pruned network."""
    return is_marked(yaml) and "widths" in _record(yaml)


def is_marked(yaml: Any) -> bool:
    """Whether a ``model.yaml`` is not for Ultralytics alone."""
    return isinstance(yaml, Mapping) and KEY in yaml


def has_zeros(yaml: Any) -> bool:
    """Whether a ``model.yaml`` belongs to a network of which weights are zero on purpose."""
    return is_marked(yaml) and bool(_record(yaml).get("zeros"))


def run_record(yaml: Any) -> dict[str, Any] | None:
    """Return the record of a pruning run in a ``model.yaml``, to continue after an interruption, or None."""
    return _record(yaml).get("run") if is_marked(yaml) else None


def _record(yaml: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of a marked ``model.yaml``; raise a CheckpointError if it is not one of this version."""
    record = yaml[KEY]
    if not isinstance(record, Mapping) or record.get("schema") not in READ:
        raise CheckpointError(
            f"the checkpoint has a record {short_repr(record)} of yolo_prune, and this version reads those of schema "
            f"{' and '.join(map(str, READ))}; update yolo_prune."
        )
    return record


def marked(model: nn.Module, run: Mapping[str, Any] | None = None, zeros: bool | None = None) -> dict[str, Any]:
    """Return ``model.yaml`` with the record of a pruned network as it is now.

    Args:
        model: The network, with its present widths.
        run: State of the pruning run, to continue after an interruption.
        zeros: Whether weights of its layers are zero on purpose; by default what its ``model.yaml`` says.
    """
    is_sparse, yaml = has_zeros(model.yaml) if zeros is None else zeros, unmarked(model.yaml)
    decided = outline(model)
    record: dict[str, Any] = {}
    for path, layer in named_layers(model):
        sides = widths(layer)
        if path in decided.fixed:
            sides.pop("out")
        if path in decided.on_image:  # the data set decides
            sides.pop("in" if "in" in sides else "out")
        if not (decided.head and path.startswith(f"{decided.head}.")):
            record[path] = sides
    blocks = {
        f"{path}.{inner.name}": [name for name, _ in module.get_submodule(inner.name).named_children()]
        for path, module, inner in inner_lists(model)
    }
    others = {**({"zeros": True} if is_sparse else {}), **({"run": dict(run)} if run else {})}
    return _with_record(yaml, SENTENCE, {"widths": record, "blocks": blocks, **others})


def mark(model: nn.Module, zeros: bool | None = None) -> None:
    """Write the record of a pruned network into its ``model.yaml``; ``zeros`` as for `marked`."""
    model.yaml = marked(model, zeros=zeros)


@contextmanager
def remarked(network: nn.Module, undo: UndoLog) -> Iterator[None]:
    """Let rows and widths of a network change that its ``model.yaml`` describes: meanwhile it is Ultralytics' own.

    In the end it has the record of a pruned network if it had one, or if a plain train() would build other widths.
    """
    was_pruned, run = is_pruned(network.yaml), run_record(network.yaml)
    with undo.or_nothing():
        undo.set(network, "yaml", unmarked(network.yaml))
        yield
    if was_pruned or not _is_rebuilt_alike(network):
        undo.set(network, "yaml", marked(network, run))
    elif run:
        undo.set(network, "yaml", with_run(network.yaml, run))


def _is_rebuilt_alike(network: nn.Module) -> bool:
    """Whether Ultralytics builds a network of the same shapes from a ``model.yaml`` and the weights."""
    yaml, kind = deepcopy(network.yaml), type(network)
    with preserved_rng():
        try:
            plain = kind(yaml, ch=yaml.get("channels", 3), nc=yaml["nc"], verbose=False)
            plain.names = network.names
            plain.load(deepcopy(network), verbose=False)
        except Exception:  # a class of a user's
            return False
    shapes, theirs = ({k: t.shape for k, t in of.state_dict().items()} for of in (network, plain))
    return shapes == theirs


def with_run(yaml: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``model.yaml`` with the state of a pruning run noted."""
    noted = ("widths", "blocks", "zeros")
    kept = {name: yaml[KEY][name] for name in noted if name in yaml[KEY]} if is_pruned(yaml) else {}
    return _with_record(unmarked(yaml), SENTENCE if kept else RUN_SENTENCE, {**kept, "run": dict(run)})


def unmarked(yaml: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``model.yaml`` as Ultralytics wrote it."""
    plain = {k: v for k, v in yaml.items() if k != KEY}
    if KEY in yaml:
        first = yaml["backbone"][0]
        plain["backbone"] = [[*first[:2], _record(yaml)["module"], *first[3:]], *yaml["backbone"][1:]]
    return plain


def found_again(path: Path, last: Path) -> Path:
    """Return where a checkpoint of a run is now: where it was, or beside the one that is resumed.

    Args:
        path: Where it was.
        last: What is resumed.

    Raises:
        CheckpointError: If it is at neither place.
    """
    for place in (path, last.with_name(path.name)):
        if place.is_file():
            return place
    raise CheckpointError(
        f"{last} is of a run that needs {path}, which is not there; put it beside {last.name}, or train {last.name} on "
        "with what is left to remove."
    )


def unmark_file(path: Path) -> None:
    """Make a dense checkpoint of a pruning run one of Ultralytics; a reader never sees half of it."""
    content, _ = torch_safe_load(path)
    for network in filter(None, (content.get("model"), content.get("ema"))):
        network.yaml = unmarked(network.yaml)
    with atomic_write(path) as draft:
        torch.save(content, draft)


def _with_record(yaml: Mapping[str, Any], sentence: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an unmarked ``model.yaml`` with a record, and a sentence in place of the first module's name."""
    first = yaml["backbone"][0]
    return {
        **yaml,
        "backbone": [[*first[:2], sentence, *first[3:]], *yaml["backbone"][1:]],
        KEY: {"schema": SCHEMA, "module": first[2], **record},
    }


def rebuild(
    get_model: Callable[..., nn.Module],
    cfg: Mapping[str, Any],
    weights: nn.Module | None,
    resumes: bool = True,
    **others: Any,
) -> nn.Module:
    """Build the network that a marked ``model.yaml`` describes, for a trainer's data set.

    Args:
        get_model: The trainer's stock ``get_model``; it sets the number of classes and image channels.
        cfg: A marked ``model.yaml``.
        weights: Weights to load as Ultralytics does (matching shapes, class rows by name), or None for random ones.
        resumes: Whether the run that ``cfg`` is of goes on; another one has its own record, or none.
        **others: What else ``get_model`` was called with.

    Raises:
        CheckpointError: If the record does not fit the network, e.g. because Ultralytics changed a block.
    """
    model = get_model(cfg=unmarked(cfg), weights=None, **others)
    if is_pruned(cfg):
        try:
            _shorten(model, cfg[KEY].get("blocks", {}))
            _narrow(model, cfg[KEY]["widths"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"the widths that the pruned checkpoint notes cannot be built ({describe_error(e)}); use "
                "another checkpoint of the run."
            ) from e
    if weights is not None:
        model.load(weights)
    if is_pruned(cfg):
        model.yaml = marked(model, run_record(cfg) if resumes else None, has_zeros(cfg))
    elif run := run_record(cfg):
        model.yaml = with_run(model.yaml, run)
    return model


def _shorten(model: nn.Module, record: Mapping[str, Sequence[str]]) -> None:
    """Remove inner blocks that the record does not have."""
    gone = []
    for path, module, inner in inner_lists(model):
        container = f"{path}.{inner.name}"
        entries = [name for name, _ in module.get_submodule(inner.name).named_children()]
        gone += [f"{container}.{name}" for name in entries if name not in record.get(container, entries)]
    remove(model, outermost(gone))


def _narrow(model: nn.Module, record: Mapping[str, Mapping[str, int]]) -> None:
    """Give every layer the recorded widths, with fresh weights where they differ."""
    layers = dict(named_layers(model))
    if missing := next((path for path in record if path not in layers), None):
        raise CheckpointError(
            f"the pruned checkpoint has a layer {missing} that this version of ultralytics does not build; "
            "use the version that it was trained with."
        )
    for path, sides in record.items():
        now = widths(layers[path])
        if now != {**now, **sides}:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, resized(layers[path], {**now, **sides}))
    for module in model.modules():
        for name, value in followed(module).items():
            setattr(module, name, value)
    head = model.model[-1]
    if hasattr(head, "bias_init"):
        head.bias_init()  # fresh last convolutions start from the class prior, as Ultralytics has it
