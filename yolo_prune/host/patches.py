"""Parts of Ultralytics that are replaced at run time: the one list, and the functions that replace.

Everything that is replaced goes through `patch` or `patched`, which know nothing but this list. What is replaced on an
instance ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Patch(NamedTuple):
    """One name that is replaced.

    Attributes:
        owner: What has it.
        name: The attribute.
        adds: What it does beside what Ultralytics' own does.
        ends: When Ultralytics' own is back.
    """

    owner: str
    name: str
    adds: str
    ends: str


_RUN = "with the trainer"
PATCHES = (
    Patch("Model, the class", "train", "prune arguments of the command line are attached to the model", "never"),
    Patch("Model", "train", "refuses to train where the callbacks were removed", "with the model"),
    Patch("Model", "tune", "trials prune", "with the model"),
    Patch("Model", "_smart_load", "a trainer class that tells every process of a run", "with the model"),
    Patch("BaseTrainer", "get_model", "pruned checkpoints are rebuilt pruned", _RUN),
    Patch("BaseTrainer", "get_dataset", "classes that are not kept are left out", _RUN),
    Patch("BaseTrainer", "save_model", "files are complete at any moment, with the exact state beside them", _RUN),
    Patch("BaseTrainer", "final_eval", "no checkpoint is stripped in place; says which cuts are missing", _RUN),
    Patch("BaseTrainer", "validate", "figures of the pruning for loggers and results.csv", _RUN),
    Patch("BaseTrainer", "save_metrics", "columns of the distillation from the first epoch on", _RUN),
    Patch("BaseTrainer", "optimizer_step", "batches since the last step are counted", _RUN),
    Patch("BaseTrainer", "preprocess_batch", "a resumed run's first step comes when it was due", "at that step"),
    Patch("BaseTrainer", "lf", "the learning-rate curve is read elsewhere after a cut (lr_after_cut)", _RUN),
    Patch("LambdaLR", "lr_lambdas", "the same", _RUN),
    Patch("DistillationModel, the class", "loss_sl2", "other losses, of models that were asked for them", "never"),
    Patch("DataLoader", "_get_iterator", "a resumed run's order of images", "at its first epoch"),
    Patch("ultralytics.engine.trainer", "strip_optimizer", "writes beside and replaces", "after final_eval"),
    Patch("ultralytics.engine.tuner", "Tuner", "trials prune", "after tune()"),
    Patch("ultralytics.utils.tuner", "run_ray_tune", "trials prune", "after tune()"),
    Patch("ray.tune.schedulers", "ASHAScheduler", "trials are over when the pruned model is measured", "after tune()"),
    Patch("ray.tune.schedulers", "HyperBandForBOHB", "the same", "after tune()"),
    Patch("ultralytics.utils.checks", "AUTOINSTALL", "no export installs packages", "after the exports"),
)


def patch(owner: Any, name: str, new: Any) -> None:
    """Replace an attribute of Ultralytics, for as long as its owner is there.

    Raises:
        KeyError: If `PATCHES` does not list it.
    """
    _check_listed(name)
    setattr(owner, name, new)


@contextmanager
def patched(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Replace an attribute of Ultralytics meanwhile.

    Raises:
        KeyError: If `PATCHES` does not list it.
    """
    _check_listed(name)
    stock = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, stock)


def _check_listed(name: str) -> None:
    if name not in {listed.name for listed in PATCHES}:
        raise KeyError(f"{name} is replaced, and host.patches does not list it")
