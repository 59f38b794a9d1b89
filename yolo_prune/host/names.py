"""Names of Ultralytics, Torch-Pruning and PyTorch that yolo_prune works with and that are no promise of theirs.

They are listed here once, as read in ultralytics 8.4.190, torch-pruning 1.6.1 and torch 2.14.1. The classes of
Ultralytics' blocks are in `blocks`, each with its adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

from yolo_prune.errors import UnsupportedError

TESTED = {"ultralytics": ("8.4.110", "8.4.190"), "torch-pruning": ("1.6.0", "1.6.1"), "torch": ("2.14.1", "2.14.1")}
"""Distribution -> the oldest and the newest release that the tests were run on."""


class Names(NamedTuple):
    """Names that yolo_prune needs in one place of the host.

    Attributes:
        where: A module, or a class in one.
        names: Separated by blanks.
        use: What for.
        since: The first release that has them; older ones do without.
        on_instances: Whether the constructor of the class sets them, so that they are known of a live instance only.
    """

    where: str
    names: str
    use: str
    since: str = "0"
    on_instances: bool = False


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
    Names("ultralytics.engine.tuner.Tuner", "_mutate", "options on the command lines of the trials"),
    Names("ultralytics.engine.tuner.Tuner", "args", "the same", on_instances=True),
    Names("ultralytics.utils.tuner", "run_ray_tune", "trials that prune"),
    Names("ultralytics.engine.model.Model", "_smart_load add_callback train tune", "what is attached to a model"),
    Names(
        "ultralytics.engine.model.Model",
        "callbacks ckpt_path model_name",
        "the same, and a trainer that cuts without training",
        on_instances=True,
    ),
    Names(
        TRAINER,
        "args batch_size csv data device epochs resume save_dir start_epoch validator wdir",
        "what the run is",
        on_instances=True,
    ),
    Names(TRAINER, "get_dataset get_model", "pruned checkpoints are rebuilt pruned, with the classes of the data"),
    Names(TRAINER, "callbacks ddp", "the same in every process", on_instances=True),
    Names(TRAINER, "_setup_train build_dataset preprocess_batch", "images to look at"),
    Names(TRAINER, "test_loader train_loader", "the same", on_instances=True),
    Names(TRAINER, "ema freeze_layer_names model optimizer scaler", "what a cut changes", on_instances=True),
    Names(TRAINER, "get_validator validate", "the fitness of a stage, and of a dense model"),
    Names(
        TRAINER,
        "best_fitness epoch fitness loss_items metrics stop stopper",
        "stages, early stopping",
        on_instances=True,
    ),
    Names(TRAINER, "lf scheduler", "the learning rate after a cut", on_instances=True),
    Names(TRAINER, "build_optimizer save_metrics", "distillation that begins after a cut"),
    Names(TRAINER, "loss_names", "the same", on_instances=True),
    Names(TRAINER, "final_eval save_model", "files that are complete at any moment"),
    Names(TRAINER, "best last save_period", "the same", on_instances=True),
    Names(TRAINER, "optimizer_step", "batches that wait for a step, when a run is resumed"),
    Names(TRAINER, "accumulate", "the same", on_instances=True),
    Names("ultralytics.utils.torch_utils.ModelEMA", "ema updates", "the average is cut as well", on_instances=True),
    Names("ultralytics.utils.torch_utils.ModelEMA", "_pairs", "its cache of tensors", "8.4.155", on_instances=True),
    Names(
        "ultralytics.utils.torch_utils.EarlyStopping",
        "best_epoch patience",
        "cuts before the run is ended",
        on_instances=True,
    ),
    Names("ultralytics.data.base", "BaseDataset", "a data set of some of its classes"),
    Names("ultralytics.data.base.BaseDataset", "get_img_files", "the same"),
    Names("ultralytics.data.utils", "IMG_FORMATS check_cls_dataset check_det_dataset img2label_paths", "the same"),
    Names("ultralytics.nn.modules.head", "Classify", "the rows of its classes"),
    Names("ultralytics.utils.loss", "E2ELoss v8DetectionLoss", "the assigner tells the level of a box"),
    Names("ultralytics.utils.loss.E2ELoss", "one2many", "the same", on_instances=True),
    Names("ultralytics.utils.loss.v8DetectionLoss", "assigner", "the same", on_instances=True),
    Names("ultralytics.data.base.BaseDataset", "load_image", "the images that a mosaic draws from"),
    Names("ultralytics.data.base.BaseDataset", "buffer", "the same", on_instances=True),
    Names("ultralytics.nn.autobackend", "AutoBackend", "exports that are compared"),
    Names("ultralytics.nn.distill_model", "DistillationModel FeatureHook", "distillation across cuts"),
    Names("ultralytics.nn.distill_model.DistillationModel", "decouple_outputs loss_sl2", "what is learned there"),
    Names(
        "ultralytics.nn.distill_model.DistillationModel",
        "_student_feats _teacher_feats projector student_model teacher_model",
        "the same",
        on_instances=True,
    ),
    Names("ultralytics.nn.modules", "SemanticSegment activation block conv head transformer", "adapters"),
    Names("ultralytics.nn.modules.block", "DFL", "layers that are not solved for"),
    Names("ultralytics.nn.modules.conv", "DWConvTranspose2d", "layers with channels"),
    Names("ultralytics.nn.modules.head", "Detect", "what can be distilled"),
    Names("ultralytics.nn.tasks", "guess_model_task load_checkpoint torch_safe_load yaml_model_load", "checkpoints"),
    Names("ultralytics.utils", "LOGGER RANK TQDM VERBOSE YAML checks colorstr", "one voice, from one rank"),
    Names("ultralytics.utils.checks", "check_imgsz check_requirements check_version", "image sizes, what is installed"),
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
    """Yield the names that a package does not have; the adapters are looked at only where nothing else is gone."""
    is_whole = True
    for where, names, use, since, on_instances in HOST_NAMES:
        if where.split(".")[0] == package and _numbers(since) <= installed:
            for name in () if on_instances else names.split():
                if not _has(where, name):
                    is_whole = False
                    yield f"{where}.{name} ({use})"
    if package == "ultralytics" and is_whole:
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
        _find(f"{where}.{name}")
    except (ImportError, AttributeError):
        return False
    return True


def _find(path: str) -> Any:
    """Return a module, or what is in one."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        where, _, name = path.rpartition(".")
        return getattr(_find(where), name)
