"""Reconstruction: the remaining weights are refit to the dense network's outputs after a cut.

One forward pass of the cut network over the calibration images solves layer after layer. Just before a layer computes,
its inputs for all images are there, made by layers that have been solved already, and its weights become

    W = argmin |W x - y|^2 + ridge |W - W_sliced|^2

with x the unfolded inputs at a sample of output positions and y what the same layer made there in the dense network.
The closed form, with inputs of the cut and outputs of the dense network, is that of He, Zhang & Sun 2017, "Channel
Pruning for Accelerating Very Deep Neural Networks", sections 3.1 and 3.2. The offset of a layer without a bias lies in
the running mean of the BatchNorm behind it, and is solved there. Least squares makes less variance than there was; the
BatchNorm's variance follows, and its scale takes up the difference: evaluation makes what it made, and training, which
normalises by what it sees, starts from that instead of blowing it up.

In the same pass a BatchNorm may be recalibrated: its statistics alone become those with which it makes, in mean and
variance of each channel, what it made before. That is for weights that have not been solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.modules.block import DFL

from yolo_prune.graph.layers import is_grouped, named_layers
from yolo_prune.importance.statistics import calibrating
from yolo_prune.plan import PrunePlan
from yolo_prune.surgery.least_squares import least_squares
from yolo_prune.surgery.samples import grid_size, inputs_at, kernel_taps, of_channels, outputs_at, values_per_position
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.memory import return_free

MOST_SAMPLES = 8192
"""Positions sampled per layer, over all images."""
MOST_FLOATS = 2**28
"""Memory for the dense network's outputs, over all layers (1 GiB); larger networks get fewer samples."""
MOST_PIXELS = 2**22
"""Pixels of all images together, since all go through the network at once: 83 images of 224 px, 10 of 640 px."""
MOST_INPUTS = 2400
"""Unfolded inputs that are solved together; a larger kernel is solved tap by tap, each for what the others leave."""


@dataclass(frozen=True)
class _Seen:
    """Outputs of one layer in the dense network.

    Attributes:
        positions: Sampled output positions of each image, shape (B, m); for a transposed convolution input positions.
        outputs: What the layer made there, shape (B, m, channels).
    """

    positions: torch.Tensor
    outputs: torch.Tensor


class DenseOutputs:
    """Outputs of a network's layers on some images: observed before a cut, refit to after it.

    Args:
        model: The dense network; it is only read.
        images: Batches of shape (B, C, H, W), on its device; they are padded to one size.
        seed: Chooses the positions.
    """

    def __init__(self, model: nn.Module, images: Iterable[torch.Tensor], seed: int = 0) -> None:
        self.images = _one_batch(list(images)).to(next(model.parameters()).dtype)
        self.layers: dict[str, _Seen] = {}
        self.norms: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        """Path of a BatchNorm -> mean and variance of its inputs, per channel."""
        solvable = dict(_solvable(model))
        samples = min(
            MOST_SAMPLES, MOST_FLOATS // max(1, sum(values_per_position(layer) for layer in solvable.values()))
        )
        generator = torch.Generator().manual_seed(seed)

        def observe(path: str) -> Callable[..., None]:
            def hook(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
                if path not in self.layers:  # a layer that is used twice is solved for its first use
                    grid = grid_size(layer, inputs[0], output)
                    each = min(grid, -(-samples // len(output)))
                    positions = torch.stack([torch.randperm(grid, generator=generator)[:each] for _ in output])
                    positions = positions.to(output.device)
                    self.layers[path] = _Seen(positions, outputs_at(layer, output, positions))

            return hook

        def observe_norm(path: str) -> Callable[..., None]:
            def hook(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                self.norms.setdefault(path, _mean_and_variance(inputs[0]))

            return hook

        hooks = [layer.register_forward_hook(observe(path)) for path, layer in solvable.items()]
        hooks += [norm.register_forward_pre_hook(observe_norm(path)) for path, norm in _norms(model)]
        _run(model, self.images, hooks, "looking at outputs")


def reconstruct(
    undo: UndoLog,
    model: nn.Module,
    plan: PrunePlan,
    dense: DenseOutputs,
    *,
    weights: bool = True,
    norms: bool = False,
    frozen: Sequence[str] = (),
) -> None:
    """Let every layer of a cut network make, as well as it can, what it made before.

    Args:
        undo: Records what is overwritten, so that it comes back with the cut's ``undo()``.
        model: The cut network; tensors keep their identity, since an optimizer may hold them.
        plan: The cut.
        dense: What the layers made before it.
        weights: Whether to solve for weights and offsets.
        norms: Whether BatchNorms make the mean and variance that they made before; with ``weights`` alone, the mean.
        frozen: Parts of names of layers that stay as they are, unless the cut has made them narrower.
    """
    if not plan.layers or not (weights or norms):
        return

    def is_free(path: str) -> bool:
        return path in plan.layers or not any(part in path for part in frozen)

    layers, present, hooks = dict(_solvable(model)), dict(_norms(model)), []
    normed = {path.rpartition(".")[0] for path in present}

    def solve(path: str, seen: _Seen) -> Callable[..., None]:
        kept, pending = _kept(plan, path), [seen]

        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if pending:
                seen = pending.pop()
                outputs = seen.outputs if kept is None else of_channels(layer, seen.outputs, kept)
                is_normed = path.rpartition(".")[0] in normed
                _solve(undo, layer, inputs[0], seen.positions, outputs, is_normed)

        return hook

    def match(path: str, before: tuple[torch.Tensor, torch.Tensor]) -> Callable[..., None]:
        kept, pending = _kept(plan, path), [before]

        def hook(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
            if pending:
                mean, variance = (m if kept is None else m[kept] for m in pending.pop())
                new_mean, new_variance = _mean_and_variance(inputs[0])
                shift = norm.running_mean - mean  # how the run's images differ from these
                growth = ((new_variance + 1e-12) / (variance + 1e-12)).clamp(1e-6, 1e6)
                old = norm.running_var + norm.eps
                new = (norm.running_var + old * (growth - 1)).clamp_min(0)
                if norms:
                    shift *= growth.sqrt()
                else:
                    undo.overwrite(norm.weight, norm.weight.detach() * ((new + norm.eps) / old).sqrt())
                undo.overwrite(norm.running_var, new)
                undo.overwrite(norm.running_mean, new_mean + shift)

        return hook

    if weights:
        hooks += [
            layers[path].register_forward_pre_hook(solve(path, seen))
            for path, seen in dense.layers.items()
            if is_free(path)
        ]
    hooks += [
        present[path].register_forward_pre_hook(match(path, m)) for path, m in dense.norms.items() if is_free(path)
    ]
    _run(model, dense.images, hooks, "solving weights")


def _one_batch(batches: list[torch.Tensor]) -> torch.Tensor:
    """Return as many images as may go through a network at once, padded with Ultralytics' grey to one size."""
    height, width = (max(b.shape[d] for b in batches) for d in (2, 3))
    padded = [F.pad(b, (0, width - b.shape[3], 0, height - b.shape[2]), value=114 / 255) for b in batches]
    return torch.cat(padded)[: max(4, MOST_PIXELS // (height * width))]


def _kept(plan: PrunePlan, path: str) -> list[int] | None:
    """Return the channels that a layer still makes, or None for all."""
    return plan.layers.get(path, {}).get("out")


def _solvable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose outputs are linear in their weights, position by position."""
    for path, layer in named_layers(model):
        if isinstance(layer, nn.ConvTranspose2d):
            apart = layer.kernel_size == layer.stride and not any((*layer.padding, *layer.output_padding))
            if apart and layer.groups == 1:
                yield path, layer
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            is_constant = isinstance(model.get_submodule(path.rpartition(".")[0]), DFL)
            if not is_constant:
                yield path, layer


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats and module.affine:
            yield path, module


def _run(model: nn.Module, images: torch.Tensor, hooks: list[Any], what: str) -> None:
    """Run a network once, and remove the hooks; ``what`` they do is told."""
    return_free()
    layers = [layer for _, layer in _solvable(model)]
    with progress_bar(what, len(layers)) as step:
        hooks += [layer.register_forward_hook(lambda *_: step()) for layer in layers]
        try:
            with calibrating(model), torch.no_grad():
                model(images)
        finally:
            for hook in hooks:
                hook.remove()


def _mean_and_variance(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of an activation of shape (B, C, H, W) per channel."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square_().mean((0, 2, 3))  # twice as fast as torch.var_mean on a CPU
    return mean.flatten(), variance


# Positions of a layer -------------------------------------------------------------------------------------------------


# Least squares --------------------------------------------------------------------------------------------------------


def _solve(
    undo: UndoLog, layer: nn.Module, x: torch.Tensor, positions: torch.Tensor, outputs: torch.Tensor, is_normed: bool
) -> None:
    """Overwrite a layer's weight, and its bias if it has one, with the best for ``outputs``.

    A BatchNorm behind the layer (``is_normed``) takes any offset away, so that only what varies needs to be met.
    """
    groups = layer.groups if is_grouped(layer) else 1
    weight, bias = layer.weight.detach(), getattr(layer, "bias", None)
    is_transposed = isinstance(layer, nn.ConvTranspose2d)
    if is_transposed and bias is not None:  # one bias for all taps stays as it is
        outputs = outputs - bias.detach().repeat_interleave(kernel_taps(layer))
    matrix = weight.flatten(1).T if is_transposed else weight.flatten(1)
    matrix = matrix.reshape(groups, -1, matrix.shape[1])
    inputs = inputs_at(layer, x, positions)
    taps = inputs.shape[-1]
    # (groups, images, positions, values)
    inputs = inputs.unflatten(2, (groups, -1)).permute(2, 0, 1, 3, 4).flatten(3)
    outputs = outputs.unflatten(2, (groups, -1)).permute(2, 0, 1, 3)
    is_centred = is_normed or (bias is not None and not is_transposed)
    if is_centred:
        input_means, output_means = inputs.mean((1, 2), keepdim=True), outputs.mean((1, 2), keepdim=True)
        inputs, outputs = inputs - input_means, outputs - output_means

    if matrix.shape[2] <= MOST_INPUTS:
        new = least_squares(inputs, outputs, matrix)
    else:
        new = matrix.clone()
        for tap in range(taps):
            rest = outputs - inputs @ new.transpose(1, 2)[:, None]
            rest += inputs[..., tap::taps] @ new[..., tap::taps].transpose(1, 2)[:, None]
            new[..., tap::taps] = least_squares(inputs[..., tap::taps], rest, new[..., tap::taps])
    if new is not matrix:
        flat = new.flatten(0, 1)
        undo.overwrite(layer.weight, (flat.T if is_transposed else flat).reshape(weight.shape))
    if bias is not None and is_centred:
        made = torch.einsum("goi,gi->go", new, input_means[:, 0, 0])
        undo.overwrite(bias, (output_means[:, 0, 0] - made).flatten())
