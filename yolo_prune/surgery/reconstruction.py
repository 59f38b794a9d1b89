"""Reconstruction: the remaining weights are refit to the dense network's outputs after a cut.

The cut network runs over the calibration images in `Lockstep`, and layer after layer is solved. When all images have
come to a layer, its inputs there are made by layers that have been solved already, and its weights become

    W = argmin |W x - y|^2 + ridge |W - W_sliced|^2

with x the unfolded inputs at a sample of output positions and y what the same layer made there in the dense network.
The closed form, with inputs of the cut and outputs of the dense network, is that of He, Zhang & Sun 2017, "Channel
Pruning for Accelerating Very Deep Neural Networks", sections 3.1 and 3.2. The offset of a layer without a bias lies in
the running mean of the BatchNorm behind it. Least squares makes less variance than there was; the BatchNorm's variance
follows, and its scale takes up the difference: evaluation makes what it made, and training, which normalises by what it
sees, starts from that instead of blowing it up.

In the same pass single weights become zero, where that is asked for: which of them is chosen once the layer has been
solved, and what is left is solved around the zeros (see `zeros`). A BatchNorm may be recalibrated: its statistics alone
become those with which it makes, in mean and variance of each channel, what it made before. That is for weights that
have not been solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from yolo_prune.graph.layers import is_grouped, named_layers
from yolo_prune.graph.outline import norms_behind
from yolo_prune.importance.objective import calibrating
from yolo_prune.importance.samples import inputs_at, kernel_taps, of_channels
from yolo_prune.importance.statistics import LayerStatistics
from yolo_prune.plan import PrunePlan
from yolo_prune.surgery.least_squares import Moments, least_squares
from yolo_prune.surgery.lockstep import Lockstep
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.surgery.zeros import LayerZeros, solve_around, sweep
from yolo_prune.utils.console import progress_bar

HELD_OUT_EVERY = 4
"""Of the images that take part in a layer's solution every fourth judges instead of making it."""
ROWS = 512
"""Samples whose moments are taken at once, in single precision; more would round more."""

Targets = Mapping[str, Mapping[int, torch.Tensor]]
"""Layer path -> index of a batch -> what the layer made at the drawn positions, shape (B, m, values)."""


def reconstruct(
    undo: UndoLog,
    model: nn.Module,
    plan: PrunePlan,
    dense: Mapping[str, LayerStatistics],
    images: Sequence[torch.Tensor],
    *,
    targets: Targets | None = None,
    weights: bool = True,
    norms: bool = False,
    frozen: Sequence[str] = (),
    zeros: Mapping[str, LayerZeros] | None = None,
) -> None:
    """Let every layer of a cut network make, as well as it can, what it made before.

    Args:
        undo: Records what is overwritten, so that it comes back with the cut's ``undo()``.
        model: The cut network; tensors keep their identity, since an optimizer may hold them.
        plan: The cut.
        dense: Statistics of the network before it.
        images: The batches of these statistics, each of shape (B, C, H, W), or the first of them.
        targets: What the layers made, if not that of the statistics: they may be of another network's weights.
        weights: Whether to solve for weights and offsets.
        norms: Without it: whether BatchNorms make the mean and variance that they made before.
        frozen: Parts of names of layers that stay as they are, unless the cut has made them narrower.
        zeros: Layers whose weights are to be zero, or are and stay so; the masks of those that have none are chosen
            and noted.
    """
    zeros = zeros or {}
    if not (plan.layers or plan.blocks or zeros) or not (weights or norms):
        return
    layers, modules, norms_of = dict(named_layers(model)), dict(model.named_modules()), norms_behind(model)
    paths = [path for path, seen in dense.items() if seen.positions and path in layers]
    with (
        calibrating(model),
        torch.no_grad(),
        Lockstep(model, images, {path: layers[path] for path in paths}) as passes,
        progress_bar("solving weights", len(paths)) as step,
    ):
        for path in paths:
            layer = layers[path]
            norm = _known(modules.get(norms_of.get(path, "")))
            is_free = path in plan.layers or path in zeros or not any(part in path for part in frozen)
            if is_free and (weights or norm is not None):
                made = targets[path] if targets else dense[path].targets
                positions = {batch: drawn for batch, drawn in dense[path].positions.items() if batch < len(images)}
                samples = _samples(passes, layer, path, positions, made, plan)
                if samples is not None:
                    if weights:
                        _solve(undo, layer, norm, *samples, zeros.get(path))
                    else:
                        _match(undo, layer, norm, *samples)
            passes.done(path)
            step()


def _samples(
    passes: Lockstep,
    layer: nn.Module,
    path: str,
    positions: Mapping[int, torch.Tensor],
    targets: Mapping[int, torch.Tensor],
    plan: PrunePlan,
) -> tuple[Moments, Moments | None] | None:
    """Return the moments of the images that make a solution, and of those that judge it."""
    kept = plan.layers.get(path, {}).get("out")
    groups = layer.groups if is_grouped(layer) else 1
    sums: dict[bool, Moments] = {}
    waiting: list[tuple[torch.Tensor, ...]] = []
    origin: tuple[torch.Tensor, ...] = ()

    def take_in() -> None:
        nonlocal origin
        inputs, outputs, judges = map(torch.cat, zip(*waiting, strict=True))
        waiting.clear()
        x0, y0 = origin = origin or tuple(rows.mean(0).unflatten(0, (groups, -1)) for rows in (inputs, outputs))
        for is_judge in (False, True):
            chosen = judges == is_judge
            if chosen.any():
                x, y = (t[chosen].unflatten(1, (groups, -1)).transpose(0, 1) for t in (inputs, outputs))
                moments = Moments.of(x, y, (x0, y0))
                if is_judge in sums:
                    sums[is_judge].add(moments)
                else:
                    sums[is_judge] = moments

    count = 0
    for batch, drawn in positions.items():
        x = passes.inputs(path, batch)
        if x is None:
            continue
        outputs = targets[batch] if kept is None else of_channels(layer, targets[batch], kept)
        images = torch.arange(count, count + len(x), device=x.device)
        judges = (images % HELD_OUT_EVERY == HELD_OUT_EVERY - 1).repeat_interleave(drawn.shape[1])
        count += len(x)
        waiting.append((inputs_at(layer, x, drawn).flatten(2).flatten(0, 1), outputs.flatten(0, 1), judges))
        if sum(len(rows) for rows, _, _ in waiting) >= ROWS:
            take_in()
    if waiting:
        take_in()
    return (sums[False], sums.get(True)) if False in sums else None


def _solve(
    undo: UndoLog,
    layer: nn.Module,
    norm: nn.BatchNorm2d | None,
    fitted: Moments,
    held_out: Moments | None,
    zeros: LayerZeros | None = None,
) -> None:
    """Overwrite a layer's weights, and its offset in its bias or the norm behind it, with the best for the targets."""
    bias = getattr(layer, "bias", None)
    is_patched = isinstance(layer, nn.ConvTranspose2d)
    start, whole = _matrix(layer), fitted.plus(held_out)
    is_centred = norm is not None or (bias is not None and not is_patched)
    if is_centred:
        x, y = whole.means
    else:  # one bias for all taps stays as it is
        taps = kernel_taps(layer) if is_patched else 1
        offset = torch.zeros_like(whole.y) if bias is None else bias.detach().double().repeat_interleave(taps)
        x, y = torch.zeros_like(whole.x), offset.reshape(whole.y.shape)
    for moments in (whole, fitted, held_out) if held_out else (whole,):  # alone, what is fitted is the whole
        moments.centre(x, y)
    if zeros is None:
        new = least_squares(whole, fitted, held_out, start)
    else:
        new = _with_zeros(layer, zeros, whole, fitted, held_out, start)
    if new is not start:
        undo.overwrite(layer.weight, as_weight(layer, new).to(layer.weight))
    made = _made(new, x)
    if is_centred and bias is not None:
        undo.overwrite(bias, (y - made).flatten().to(bias))
        made = y
    if norm is not None:
        mean = norm.running_mean.double() + _per_channel(layer, made - y)
        _set_norm(undo, norm, mean, _growth(layer, whole, new), is_rescaled=True)


def _with_zeros(
    layer: nn.Module,
    zeros: LayerZeros,
    whole: Moments,
    fitted: Moments,
    held_out: Moments | None,
    start: torch.Tensor,
) -> torch.Tensor:
    """Return the best weights with the zeros that a layer is to have; choose them where they have not been yet."""
    held = as_matrix(layer, layer.weight.detach() == 0)
    given = as_matrix(layer, zeros.mask.to(start.device)) if zeros.is_chosen and zeros.mask is not None else None
    if given is not None:
        held &= given
    if held.any():
        start = solve_around(whole, fitted, held_out, start.masked_fill(held, 0), held)
    else:
        start = least_squares(whole, fitted, held_out, start)
    order = _by_tap(layer, start.shape[1]).to(start.device)
    weight, mask = sweep(
        start[0, order].T,
        whole.xx[0][order][:, order],
        zeros,
        held[0, order].T,
        None if given is None else given[0, order].T,
    )
    back = order.argsort()
    start, mask = weight.T[back][None], mask.T[back][None]
    zeros.mask, zeros.is_chosen = as_weight(layer, mask), True
    return solve_around(whole, fitted, held_out, start, mask)


def _by_tap(layer: nn.Module, inputs: int) -> torch.Tensor:
    """Return the order of a layer's unfolded inputs in which those of a tap are neighbours."""
    taps = kernel_taps(layer) if isinstance(layer, nn.Conv2d) else 1
    return torch.arange(inputs).unflatten(0, (-1, taps)).T.flatten()


def _match(
    undo: UndoLog, layer: nn.Module, norm: nn.BatchNorm2d | None, fitted: Moments, held_out: Moments | None
) -> None:
    """Let a norm make of its inputs, in mean and variance of each channel, what it made before."""
    assert norm is not None
    whole, weights = fitted.plus(held_out), _matrix(layer)
    bias = getattr(layer, "bias", None)
    x, y = whole.means
    made = _made(weights, x)
    made = made if bias is None else made + bias.detach().double().reshape(made.shape)
    whole.centre(x, y)
    growth = _growth(layer, whole, weights)
    before = _per_channel(layer, y) - norm.running_mean.double()
    _set_norm(undo, norm, _per_channel(layer, made) - before * growth.sqrt(), growth, is_rescaled=False)


def _made(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return what weights of shape (groups, inputs, outputs) make of inputs of shape (groups, inputs)."""
    return (weights.transpose(1, 2) @ x[..., None])[..., 0]


def _growth(layer: nn.Module, centred: Moments, weights: torch.Tensor) -> torch.Tensor:
    """Return by which factor the variance of each channel has grown, shape (C,)."""
    variance = ((centred.xx @ weights) * weights).sum(1) / centred.samples
    growth = _per_channel(layer, (variance + 1e-12) / (centred.yy / centred.samples + 1e-12))
    return growth.clamp(1e-6, 1e6)


def _set_norm(
    undo: UndoLog, norm: nn.BatchNorm2d, mean: torch.Tensor, growth: torch.Tensor, *, is_rescaled: bool
) -> None:
    """Set a norm's running statistics.

    Args:
        undo: Records what is overwritten.
        norm: The norm.
        mean: Its new running mean, shape (C,).
        growth: By which factor the variance of what it takes has grown, shape (C,).
        is_rescaled: Whether its scale makes up for that, so that evaluation makes what it made.
    """
    old = norm.running_var.double() + norm.eps
    new = (norm.running_var.double() + old * (growth - 1)).clamp_min(0)
    undo.overwrite(norm.running_mean, mean)
    undo.overwrite(norm.running_var, new)
    if is_rescaled:
        undo.overwrite(norm.weight, norm.weight.detach().double() * ((new + norm.eps) / old).sqrt())


def _known(norm: nn.Module | None) -> nn.BatchNorm2d | None:
    """Return a BatchNorm whose statistics and scale can make up for something, or None."""
    is_known = isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats and norm.affine
    return norm if is_known else None


def _matrix(layer: nn.Module) -> torch.Tensor:
    """Return a layer's weights in double precision, shape (groups, inputs, outputs)."""
    return as_matrix(layer, layer.weight.detach().double())


def as_matrix(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return values of a layer's weights as (groups, inputs, outputs)."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.flatten(1)[None]
    groups = layer.groups if is_grouped(layer) else 1
    return weight.flatten(1).unflatten(0, (groups, -1)).transpose(1, 2)


def as_weight(layer: nn.Module, matrix: torch.Tensor) -> torch.Tensor:
    """Return values of shape (groups, inputs, outputs) as the layer holds its weights."""
    flat = matrix[0] if isinstance(layer, nn.ConvTranspose2d) else matrix.transpose(1, 2).flatten(0, 1)
    return flat.reshape(layer.weight.shape)


def _per_channel(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return values of shape (groups, values) per channel: the mean over a transposed convolution's patch."""
    flat = values.flatten()
    return flat.unflatten(0, (-1, kernel_taps(layer))).mean(1) if isinstance(layer, nn.ConvTranspose2d) else flat
