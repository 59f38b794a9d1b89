"""Quantization-aware training (QAT) after the last cut: Ultralytics' own, later than Ultralytics would begin it.

Ultralytics puts INT8 quantizers around the layers before the first epoch, and what has quantizers can no longer be
cut. Here a run with ``quantize=8`` trains, is cut and recovers in float; then Ultralytics' `prepare_qat` takes over,
with the run's own training batches. From there on checkpoints, validation, resume and export are Ultralytics' own.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn
from ultralytics import __version__
from ultralytics.utils import torch_utils
from ultralytics.utils.checks import check_requirements

from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import BYTES, LATENCY
from yolo_prune.errors import ConfigError, UnsupportedError
from yolo_prune.graph.layers import is_quantized
from yolo_prune.host.checkpoint import load_network
from yolo_prune.host.distillation import student_of
from yolo_prune.host.trainer import training_batches
from yolo_prune.surgery.slicing import UndoLog

if TYPE_CHECKING:
    from pathlib import Path

    from ultralytics.engine.trainer import BaseTrainer

BATCHES = 8
"""Training batches that set the ranges of the quantizers, as many as in a run of Ultralytics."""
EXPORTS = ("onnx", "onnx:8", "engine", "engine:8")
"""Formats that Ultralytics exports a quantized network to."""


def prepare(trainer: BaseTrainer, config: PruneConfig) -> bool:
    """Before the network is built: take ``quantize=8`` away from a run that will cut, and refuse what cannot work.

    Args:
        trainer: At ``on_pretrain_routine_start``. A resumed one is left alone: it says whether it is quantized already.
        config: Without targets, quantizing is Ultralytics' business from the start.

    Returns:
        Whether the run has to be quantized later.

    Raises:
        UnsupportedError: If NVIDIA ModelOpt is missing, or the run compiles its network.
        ConfigError: If an export format or a target cannot be combined with it.
    """
    if trainer.args.quantize != 8 or trainer.resume or not config.targets:
        return False
    if others := [export for export in config.export if export not in EXPORTS]:
        raise ConfigError(
            f"export={','.join(others)}: Ultralytics exports what was trained with quantize=8 as "
            f"{', '.join(EXPORTS)} only; leave the others out, or train without quantize=8 and quantize at export."
        )
    quantities = {target.quantity for target in config.targets}
    if BYTES in quantities:
        raise ConfigError(
            f"target={config.target} with quantize=8: the size is that of a float checkpoint; give that of an export "
            'in INT8, e.g. target="2 MB onnx:8", MACs or parameters.'
        )
    if LATENCY in quantities and not (config.latency or str(config.runtime).endswith(":8")):
        raise ConfigError(
            f"target={config.target} with quantize=8: latency is measured of float networks; give runtime=onnx:8, or "
            "the latency that a kit of runtime=onnx:8 or tensorrt:8 has measured."
        )
    if trainer.args.compile:
        raise UnsupportedError(
            f"quantize=8 with compile={trainer.args.compile}: Ultralytics compiles no network with quantizers; use "
            "compile=False."
        )
    check_available()
    trainer.args.quantize = None
    return True


def check_available() -> None:
    """Raise an UnsupportedError where NVIDIA ModelOpt is missing: nothing is to be installed in the middle of a run."""
    if not hasattr(torch_utils, "prepare_qat"):
        raise UnsupportedError(
            f"quantize=8: Ultralytics trains in INT8 since 8.4.143, and this is {__version__}: pip install -U "
            "ultralytics, or train without it and quantize the pruned best.pt at export."
        )
    requirements = torch_utils.MODELOPT_REQUIREMENTS
    try:
        is_there = check_requirements(requirements, install=False)
        import_module("modelopt.torch.quantization")
    except ImportError:
        is_there = False
    if not is_there:
        raise UnsupportedError(
            f"quantize=8 needs {' and '.join(requirements)}, and they cannot be imported here: "
            "install yolo_prune with its extra qat, or train without it and quantize the pruned best.pt at export."
        )


def begin(undo: UndoLog, trainer: BaseTrainer) -> None:
    """From now on, let the network of a run and its EMA compute what they would in INT8.

    Layers become ModelOpt's in place: parameters, and with them the optimizer, stay the same objects.

    Args:
        undo: Records what is replaced.
        trainer: A run between two epochs, with a plain network.
    """
    model, averaged = student_of(trainer.model), student_of(trainer.ema.ema)
    undo.on_undo(_way_back(model))
    undo.on_undo(_way_back(averaged))
    torch_utils.prepare_qat(model, training_batches(trainer, BATCHES), preprocess=lambda batch: batch, batches=BATCHES)
    torch_utils.restore_qat(averaged, torch_utils.qat_state(model))
    undo.set(trainer.ema, "_pairs", None)  # it does not have the ranges
    undo.set(trainer.args, "quantize", 8)  # what a checkpoint says, and a resumed run goes by


def load_plain(path: Path) -> nn.Module:
    """Return the network of a checkpoint without quantizers."""
    network = load_network(path)
    if is_quantized(network):
        torch_utils.strip_qat(network)
    return network


def _way_back(network: nn.Module) -> Callable[[], None]:
    """Return a function that makes a network plain again, with the parameters that it has now."""
    modules = [(module, module.training, dict(module._parameters)) for module in network.modules()]

    def revert() -> None:
        torch_utils.strip_qat(network)  # makes copies of the parameters, and an optimizer has the originals
        for module, training, parameters in modules:
            module.training = training
            module._parameters.update(parameters)

    return revert
