"""How many weights of each layer become zero, so that their share in the network is exactly what was asked for.

Without images, weights of all layers are compared by LAMP: the square over the sum of all squares of the layer that are
no smaller (Lee et al. 2021, "Layer-adaptive sparsity for the Magnitude-based Pruning", section 3). With images a weight
has a second cost, to the loss once the others of its row have made up for it: the second moments of the inputs and the
Fisher information of the outputs are the two factors of K-FAC (see `reconstruction_error`). That one takes each weight
as if the others stayed, and would empty a head; LAMP knows no data, and takes too much of the first stages. So the
larger counts of a weight's two places among all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from yolo_prune.config.settings import PruneConfig
from yolo_prune.errors import TargetError
from yolo_prune.graph.zeros import INPUTS_OF_FOUR, OUTPUTS_OF_FOUR, sparse_layers, takes_two_of_four
from yolo_prune.importance.reconstruction_error import head_weight
from yolo_prune.importance.samples import kernel_taps
from yolo_prune.importance.statistics import LayerStatistics
from yolo_prune.plan import PrunePlan
from yolo_prune.surgery.reconstruction import as_matrix, as_weight
from yolo_prune.surgery.slicing import UndoLog
from yolo_prune.surgery.zeros import LayerZeros, inverse_moments, saliency

MOST = 0.98
"""Largest share of a layer's weights that is taken while others have some left: a layer needs a few."""
DENSITY = 2
"""Times as many positions are looked at as for channels: which weights go depends on more than their sums."""
UNKNOWN, LAST = 1e29, 1e30
"""Costs of weights of which nothing is known, and of those beyond `MOST`."""


def plan_zeros(
    model: nn.Module,
    config: PruneConfig,
    fraction: float = 1.0,
    statistics: Mapping[str, LayerStatistics] | None = None,
    cut: PrunePlan | None = None,
) -> dict[str, LayerZeros]:
    """Return what a configuration's target for zeros asks of each layer.

    Args:
        model: The network, after the cut of its channels.
        config: The options: ``allocation=uniform`` takes the same share of every layer, all others take what costs
            least wherever it lies; ``ignored_layers`` stay as they are, ``layer_limits`` hold for zeros, too.
        fraction: Of the target, which is reached now. Of 2:4 that is a share of the weights, in whole layers.
        statistics: Moments of the network before that cut, for ``importance=reconstruction``.
        cut: The cut.

    Returns:
        Layer path -> what is asked. Where weights are solved, masks are chosen anew when it comes to the layer; by
        magnitude, or without ``reconstruction``, they stay as they are here.

    Raises:
        TargetError: If there are not so many weights that may be zero.
    """
    target = config.zeros
    if target is None or not target.removed:
        return {}
    layers = sparse_layers(model, config.is_ignored)
    moments = statistics if statistics is not None and config.importance == "reconstruction" else None
    values = _values(model, layers, moments, cut) if moments else {}
    if config.asks_two_of_four:
        layers = {
            path: of for path, of in layers.items() if takes_two_of_four(of) and config.limit_of_zeros(path) >= 0.5
        }
    costs = {}
    for path, layer in layers.items():
        costs[path] = _by_moments(path, layer, values.get(path), moments.get(path), cut) if moments else _lamp(layer)
        costs[path][layer.weight.detach().cpu() == 0] = -1  # it stays zero
    if config.asks_two_of_four:
        found = _two_of_four(costs, fraction)
    else:
        total = sum(of.numel() for of in costs.values())
        wanted = math.ceil(round(target.removed * fraction * total, 6))
        if config.allocation == "uniform":
            places = {path: _places({path: of})[path] for path, of in costs.items()}
        elif moments:
            places = _larger_places(costs, {path: _lamp(layer) for path, layer in layers.items()})
        else:
            places = costs
        found = _counts(places, wanted, config)
    for path, asked in found.items():
        asked.value, asked.mask = values.get(path), _cheapest(costs[path], asked)
        asked.is_chosen = not (moments and config.reconstruction)
    return found


def zeros_to_make(model: nn.Module, config: PruneConfig) -> float:
    """Return the share of weights that a configuration's target asks to be zero, or 0 where they are already.

    Raises:
        TargetError: If there are not so many weights that may be zero.
    """
    asked = plan_zeros(model, config.replace(importance="l2", allocation="uniform", depth=None))
    layers = dict(model.named_modules())
    masks = [(layers[path].weight.detach(), of.mask) for path, of in asked.items() if of.mask is not None]
    is_held = not any((weight[mask.to(weight.device)] != 0).any() for weight, mask in masks)
    return 0.0 if is_held or config.zeros is None else config.zeros.removed or 0.0


def set_zeros(undo: UndoLog, model: nn.Module, zeros: Mapping[str, LayerZeros]) -> None:
    """Let the weights be zero that have been chosen.

    Args:
        undo: Records what is overwritten.
        model: The network.
        zeros: Layer path -> what is asked, with a mask.
    """
    for path, asked in zeros.items():
        weight = model.get_submodule(path).weight
        if asked.mask is not None:
            undo.overwrite(weight, weight.detach().masked_fill(asked.mask.to(weight.device), 0))


def held_zeros(model: nn.Module, config: PruneConfig) -> dict[str, LayerZeros]:
    """Return the zeros that a network has already, as what is asked of its layers."""
    masks = {path: layer.weight.detach() == 0 for path, layer in sparse_layers(model, config.is_ignored).items()}
    return {path: LayerZeros(int(mask.sum()), mask=mask, is_chosen=True) for path, mask in masks.items() if mask.any()}


def _values(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    statistics: Mapping[str, LayerStatistics],
    cut: PrunePlan | None,
) -> dict[str, torch.Tensor]:
    """Return layer path -> what an error of each of its outputs costs, shape (outputs,)."""
    head, emphasis = f"model.{len(model.model) - 1}.", head_weight(model.model[-1])
    values = {}
    for path, layer in layers.items():
        if (seen := statistics.get(path)) is not None and seen.images:
            fisher = seen.fisher().diagonal()
            if kept := _kept(cut, path, "out"):
                fisher = fisher[kept]
            if isinstance(layer, nn.ConvTranspose2d):  # each tap has its own positions
                fisher = (fisher / kernel_taps(layer)).repeat_interleave(kernel_taps(layer))
            values[path] = fisher * (emphasis if path.startswith(head) else 1)
    return values


def _by_moments(
    path: str, layer: nn.Module, value: torch.Tensor | None, seen: LayerStatistics | None, cut: PrunePlan | None
) -> torch.Tensor:
    """Return what each weight of a layer costs the loss, in the shape of the weight; `UNKNOWN` where nobody knows."""
    weight = layer.weight.detach().cpu().double()
    if value is None or seen is None or seen.products is None:
        return torch.full_like(weight, UNKNOWN)
    covariance = seen.covariance()
    if cut and (kept := _kept(cut, path, "in")):
        rows = torch.arange(len(covariance)).unflatten(0, (cut.widths[path]["in"], -1))[kept].flatten()
        covariance = covariance[rows][:, rows]
    matrix = as_matrix(layer, weight)[0].T
    inverse = inverse_moments(covariance).diagonal().repeat_interleave(matrix.shape[1] // len(covariance))
    return as_weight(layer, saliency(matrix, inverse, value.cpu()).T[None])


def _lamp(layer: nn.Module) -> torch.Tensor:
    """Return the square of each weight over the sum of those of its layer that are no smaller."""
    squares = layer.weight.detach().cpu().double().square().flatten()
    order = squares.argsort(descending=True, stable=True)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / squares[order].cumsum(0).clamp_min(1e-300)
    return scores.view(layer.weight.shape)


def _places(costs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return each weight's place among all of them, 0 to 1, the cheapest first; negative costs stay."""
    flat = torch.cat([of.flatten() for of in costs.values()]) if costs else torch.empty(0)
    places = torch.empty(len(flat), dtype=torch.double)
    places[flat.argsort(stable=True)] = (torch.arange(len(flat), dtype=torch.double) + 0.5) / max(1, len(flat))
    parts = places.split([of.numel() for of in costs.values()])
    return {
        path: torch.where(of < 0, of, part.view(of.shape))
        for (path, of), part in zip(costs.items(), parts, strict=True)
    }


def _larger_places(costs: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the larger of each weight's two places by two costs; where the first is negative, that stays."""
    pairs = zip(_places(costs).items(), _places(others).values(), strict=True)
    return {path: torch.where(place < 0, place, torch.maximum(place, other)) for (path, place), other in pairs}


def _counts(costs: Mapping[str, torch.Tensor], wanted: int, config: PruneConfig) -> dict[str, LayerZeros]:
    """Return how many weights go of each layer, so many in all: those that cost least.

    Raises:
        TargetError: If ``layer_limits`` leave fewer.
    """
    ordered = {path: of.flatten().sort().values.float() for path, of in costs.items()}
    for path, of in ordered.items():
        for limit, cost in ((MOST, LAST), (config.limit_of_zeros(path), math.inf)):
            beyond = of[math.floor(limit * len(of)) :]
            beyond[beyond >= 0] = cost  # but what is zero already stays so
    flat = torch.cat([*ordered.values()]) if ordered else torch.empty(0)
    if wanted > (most := int(flat.isfinite().sum())):
        raise TargetError(
            f"{config.target}: {wanted} weights are to be zero, and ignored_layers and layer_limits leave {most} of "
            f"{len(flat)}; ask for less, or allow more."
        )
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.argsort(stable=True)[:wanted]] = True
    parts = chosen.split([len(of) for of in ordered.values()])
    return {path: LayerZeros(n) for path, part in zip(ordered, parts, strict=True) if (n := int(part.sum()))}


def _two_of_four(costs: Mapping[str, torch.Tensor], fraction: float) -> dict[str, LayerZeros]:
    """Return the layers that get two of four now: those that lose least per weight, up to a share of all weights.

    Raises:
        TargetError: If there are none.
    """
    if not costs:
        raise TargetError(
            f"2:4: no layer that may be changed has a multiple of {INPUTS_OF_FOUR} input channels and of "
            f"{OUTPUTS_OF_FOUR} output channels; ask for a share, e.g. 50% sparsity."
        )
    total, taken = sum(of.numel() for of in costs.values()), 0
    losses = {
        path: float(_fours(of).sort(-1).values[..., :2].clamp_min(0).sum()) / of.numel() for path, of in costs.items()
    }
    found = {}
    for path in sorted(losses, key=lambda path: losses[path]):
        if taken < fraction * total:
            taken += costs[path].numel()
            found[path] = LayerZeros(costs[path].numel() // 2, two_of_four=True)
    return found


def _fours(values: torch.Tensor) -> torch.Tensor:
    """Return values of a weight's shape with four neighbouring input channels last, shape (out, ..., in / 4, 4)."""
    return values.movedim(1, -1).unflatten(-1, (-1, 4))


def _cheapest(costs: torch.Tensor, asked: LayerZeros) -> torch.Tensor:
    """Return the mask of the weights that cost least, in the shape of the weight."""
    if asked.two_of_four:
        fours = _fours(costs)
        two = torch.zeros_like(fours, dtype=torch.bool).scatter(-1, fours.argsort(dim=-1, stable=True)[..., :2], True)
        return (two | (fours < 0)).flatten(-2).movedim(-1, 1)
    mask = torch.zeros(costs.numel(), dtype=torch.bool)
    mask[costs.flatten().argsort(stable=True)[: asked.count]] = True
    return mask.view(costs.shape)


def _kept(cut: PrunePlan | None, path: str, side: str) -> list[int]:
    """Return the channels that a cut leaves of a layer's side, or nothing where it leaves them all."""
    return cut.layers.get(path, {}).get(side, []) if cut else []
