"""Names of Ultralytics, Torch-Pruning and PyTorch that yolo_prune works with and that are no promise of theirs.

They are listed here once, as read in ultralytics 8.4.190, torch-pruning 1.6.1 and torch 2.14.1. The classes of
Ultralytics' blocks are in `blocks`, each with its adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dis import get_instructions
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from inspect import unwrap
from types import FunctionType
from typing import Any, NamedTuple

from yolo_prune.errors import UnsupportedError

TESTED = {"ultralytics": ("8.4.110", "8.4.190"), "torch-pruning": ("1.6.0", "1.6.1"), "torch": ("2.14.1", "2.14.1")}
"""Distribution -> the oldest and the newest release that the tests were run on."""


class Names(NamedTuple):
    """Names that yolo_prune needs in one place of the host.

    Attributes:
        where: A module, or a class in one. A class has what its instances have, too.
        names: Separated by blanks.
        use: What for.
        since: The first release that has them; older ones do without.
    """

    where: str
    names: str
    use: str
    since: str = "0"


TRAINER = "ultralytics.engine.trainer.BaseTrainer"
HOST_NAMES = (
    Names(
        "ultralytics.cfg",
        "DEFAULT_CFG_DICT QUANTIZE_ALIASES entrypoint get_cfg smart_value",
        "arguments read alike",
    ),
    Names(
        "ultralytics.engine.exporter",
        "EXPORT_ENVS FP16_FORMATS FP32_UNSUPPORTED_FORMATS INT8_FORMATS W8A16_FORMATS W8A32_FORMATS export_formats",
        "which formats and precisions there are",
    ),
    Names("ultralytics.engine.trainer", "BaseTrainer strip_optimizer", "checkpoints that are not stripped in place"),
    Names("ultralytics.engine.tuner", "Tuner", "trials that prune"),
    Names("ultralytics.engine.tuner.Tuner", "_mutate args", "knobs on the command lines of the trials"),
    Names("ultralytics.utils.tuner", "run_ray_tune", "trials that prune"),
    Names("ultralytics.engine.model.Model", "_smart_load add_callback callbacks tune", "what is attached to a model"),
    Names("ultralytics.engine.model.Model", "ckpt_path model_name", "a trainer that cuts without training"),
    Names(
        TRAINER, "args data device epochs resume save_dir start_epoch validator wdir batch_size csv", "what the run is"
    ),
    Names(TRAINER, "callbacks ddp get_model", "pruned checkpoints are rebuilt pruned, in every process"),
    Names(TRAINER, "_setup_train build_dataset preprocess_batch test_loader train_loader", "images to look at"),
    Names(TRAINER, "ema freeze_layer_names model optimizer scaler", "what a cut changes"),
    Names(TRAINER, "best_fitness epoch fitness loss_items metrics stop stopper validate", "stages, early stopping"),
    Names(TRAINER, "lf scheduler", "the learning rate after a cut"),
    Names(TRAINER, "build_optimizer loss_names save_metrics", "distillation that begins after a cut"),
    Names(TRAINER, "best final_eval last save_model save_period", "files that are complete at any moment"),
    Names(TRAINER, "accumulate optimizer_step", "batches that wait for a step, when a run is resumed"),
    Names("ultralytics.utils.torch_utils.ModelEMA", "ema updates", "the average is cut as well"),
    Names("ultralytics.utils.torch_utils.ModelEMA", "_pairs", "its cache of the tensors before a cut", "8.4.155"),
    Names("ultralytics.utils.torch_utils.EarlyStopping", "best_epoch patience", "cuts before the run is ended"),
    Names("ultralytics.data.base.BaseDataset", "buffer load_image", "the images that a mosaic draws from"),
    Names("ultralytics.nn.autobackend", "AutoBackend", "exports that are compared"),
    Names("ultralytics.nn.distill_model", "DistillationModel", "distillation across cuts"),
    Names("ultralytics.nn.distill_model.DistillationModel", "projector student_model teacher_model", "the same"),
    Names("ultralytics.nn.modules", "SemanticSegment activation block conv head transformer", "adapters"),
    Names("ultralytics.nn.modules.block", "DFL", "layers that are not solved for"),
    Names("ultralytics.nn.modules.conv", "DWConvTranspose2d", "layers with channels"),
    Names("ultralytics.nn.modules.head", "Detect", "what can be distilled"),
    Names("ultralytics.nn.tasks", "guess_model_task load_checkpoint torch_safe_load yaml_model_load", "checkpoints"),
    Names("ultralytics.utils", "LOGGER RANK TQDM VERBOSE YAML checks colorstr", "one voice, from one rank"),
    Names("ultralytics.utils.tqdm.TQDM", "last_print_n last_print_t last_rate start_t", "bars that appear late"),
    Names("ultralytics.utils.checks", "check_requirements check_version", "what is installed"),
    Names("ultralytics.utils.torch_utils", "strip_optimizer unwrap_model", "checkpoints, wrapped networks"),
    Names(
        "ultralytics.utils.torch_utils",
        "MODELOPT_REQUIREMENTS prepare_qat qat_state restore_qat strip_qat",
        "INT8 after the last cut",
        "8.4.143",
    ),
    Names("torch.utils.data.DataLoader", "_get_iterator", "a resumed run's order of images"),
    Names("torch.utils.data.dataloader._BaseDataLoaderIter", "_next_index", "a resumed run's order of images"),
    Names("torch_pruning", "DependencyGraph importance", "channel groups, criteria"),
    Names(
        "torch_pruning",
        "prune_batchnorm_out_channels prune_conv_in_channels prune_conv_out_channels "
        "prune_depthwise_conv_out_channels prune_linear_in_channels prune_linear_out_channels",
        "which side of a layer a criterion looks at",
    ),
    Names(
        "torch_pruning.importance",
        "BNScaleImportance FPGMImportance GroupHessianImportance GroupMagnitudeImportance GroupTaylorImportance "
        "LAMPImportance RandomImportance",
        "criteria",
    ),
)


def check_host() -> None:
    """Raise an UnsupportedError that names what the installed releases do not have of this."""
    for distribution, (oldest, newest) in TESTED.items():
        installed = version(distribution)
        if gone := list(_gone(distribution.replace("-", "_"), _numbers(installed))):
            raise UnsupportedError(
                f"{distribution} {installed} has no {'; no '.join(gone)}. yolo_prune was tested with {distribution} "
                f'{oldest} to {newest}: pip install "{distribution}=={newest}", or a newer yolo-prune.'
            )


def _gone(package: str, installed: list[int]) -> Iterator[str]:
    for where, names, use, since in HOST_NAMES:
        if where.split(".")[0] == package and _numbers(since) <= installed:
            for name in names.split():
                if not _has(where, name):
                    yield f"{where}.{name} ({use})"
    if package == "ultralytics":
        try:
            import_module("yolo_prune.blocks")
        except AttributeError as e:
            yield f"{getattr(e.obj, '__name__', e.obj)}.{e.name} (an adapter is for it)"


def _numbers(release: str) -> list[int]:
    """Return ``[8, 4, 190]``, without what stands behind the numbers."""
    numbers = []
    for part in release.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return numbers


def _has(where: str, name: str) -> bool:
    try:
        owner = _find(where)
        return name in _instance_names(owner) or bool(_find(f"{where}.{name}")) or True
    except (ImportError, AttributeError):
        return False


def _find(path: str) -> Any:
    """Return a module, or what is in one."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        where, _, name = path.rpartition(".")
        return getattr(_find(where), name)


@lru_cache
def _instance_names(owner: Any) -> set[str]:
    """Return the attributes that the methods of a class set."""
    bases = owner.__mro__ if isinstance(owner, type) else ()
    functions = [unwrap(value) for base in bases for value in vars(base).values() if callable(value)]
    instructions = (i for f in functions if isinstance(f, FunctionType) for i in get_instructions(f))
    return {i.argval for i in instructions if i.opname == "STORE_ATTR"}
