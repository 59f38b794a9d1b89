"""Whether a cut computes what it should: removing channels that are already zero must change no output.

This one property proves a whole plan. If a layer kept a channel that its producer lost, lost one that its producer
kept, or if an attribute did not follow, some output would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from yolo_prune.blocks import channel_dim, inner_blocks, norm_width
from yolo_prune.config.settings import PruneConfig
from yolo_prune.graph.image import height_and_width, image_channels, smallest_image
from yolo_prune.graph.layers import named_layers
from yolo_prune.planning.planner import plan_cut
from yolo_prune.surgery.slicing import check_fit, cut, network_of

if TYPE_CHECKING:
    from ultralytics import YOLO

    from yolo_prune.plan import PrunePlan


def verify_cut(
    model: YOLO | nn.Module, plan: PrunePlan | float = 0.5, imgsz: int | tuple[int, int] | None = None, seed: int = 0
) -> dict[str, float]:
    """Compare a network whose removed channels are set to zero with the network that is cut.

    Both are copies in double precision with the same random BatchNorms; the model itself is only read. Channels count
    as zero when everything that makes them is: an activation with f(0) != 0, such as a sigmoid, shows as a difference.
    A block that is removed adds nothing to what it takes; one that could not add makes zeros, or is passed by where
    another one stands behind it.

    Args:
        model: A ``YOLO`` or its network, with the widths that the plan was made for.
        plan: The cut; or the share of the multiply-adds that a plan with random scores is made for.
        imgsz: Height and width in pixels of the random image that both see (default: two strides, mostly 64).
        seed: Of the image and the BatchNorms.

    Returns:
        Largest difference of an output, relative to its largest value, in ``"eval"`` and ``"train"`` mode: about 1e-12
        for a cut that is right. A fused network has no training mode.

    Raises:
        PlanError: If the plan was made for another network.
        TargetError: If the share is out of reach.
        CutError: If the plan cannot be applied.

    Examples:
        >>> verify_cut(YOLO("my-own-blocks.yaml"))
        {'eval': 2.1e-16, 'train': 4.3e-15}
    """
    network = network_of(model)
    height, width = smallest_image(network) if imgsz is None else height_and_width(imgsz)
    if isinstance(plan, float):
        plan = plan_cut(network, PruneConfig(target=plan, importance="random"), (height, width))
    check_fit(plan, [network])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = deepcopy(network).cpu().double()
        randomise_norms(dense)
        zero_removed(dense, plan)
        pruned = deepcopy(dense)
        cut(plan, [pruned])
        silence(dense, plan.blocks)
        image = torch.rand(1, image_channels(dense), height, width, dtype=torch.float64)
        differences = {}
        for mode in ("eval",) if dense.is_fused() else ("eval", "train"):
            expected, actual = (outputs(network.train(mode == "train"), image, seed) for network in (dense, pruned))
            differences[mode] = largest_difference(expected, actual)
    return differences


def randomise_norms(model: nn.Module) -> None:
    """Give every normalisation statistics and scales that do something, so that equal outputs mean something."""
    for m in model.modules():
        if norm_width(m) is not None:
            for name, tensor in (*m._buffers.items(), *m._parameters.items()):
                if tensor is not None and tensor.ndim:
                    _FRESH[name](tensor.data)


_FRESH: dict[str, Callable[[torch.Tensor], object]] = {
    "running_mean": nn.init.normal_,
    "running_var": partial(nn.init.uniform_, a=0.5, b=2),
    "weight": partial(nn.init.uniform_, a=0.5, b=1.5),
    "bias": nn.init.normal_,
}


def zero_removed(model: nn.Module, plan: PrunePlan) -> None:
    """Set everything that makes a channel which the plan removes to zero, in place."""
    layers = dict(named_layers(model))
    for path, kept in plan.layers.items():
        layer = layers[path]
        gone = sorted(set(range(plan.widths[path]["out"])) - set(kept["out"]))
        for tensor in [layer] if isinstance(layer, nn.Parameter) else _makers(layer):
            values = tensor.data
            if isinstance(layer, nn.Parameter):
                values = values.transpose(0, channel_dim(layer))
            elif isinstance(layer, nn.ConvTranspose2d) and values.ndim == 4:
                by_group = values.unflatten(0, (layer.groups, -1)).transpose(1, 2)  # (groups, outputs, inputs, H, W)
                for group, channel in (divmod(channel, values.shape[1]) for channel in gone):
                    by_group[group, channel] = 0
                continue
            values[gone] = 0


def silence(model: nn.Module, blocks: Iterable[str]) -> None:
    """Let inner blocks of a network do nothing, in place."""
    known = inner_blocks(model)
    for path in blocks:
        container, _, name = path.rpartition(".")
        makes_zeros = known[path].reader and not known[path].instead
        stand_in = _Zeros(len(known[path].channels)) if makes_zeros else nn.Identity()
        setattr(model.get_submodule(container), name, stand_in)


class _Zeros(nn.Module):
    """Makes zeros in so many channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(len(x), self.width, *x.shape[2:])


def _makers(layer: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the weight and the bias of a layer; those of a frozen normalisation are buffers."""
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None and name in ("weight", "bias"):
            yield tensor


def outputs(model: nn.Module, image: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Return all predictions of a forward pass, without the feature maps that heads hand through."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(tensors_in(model(image)))


def largest_difference(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """Return the largest difference of two lists of outputs, each relative to the largest expected value.

    Other shapes, or values that are not a number, are infinitely different.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    differences = [(a - b).abs().max() / a.abs().max().clamp(min=1) for a, b in zip(expected, actual, strict=True)]
    return float(torch.stack(differences).nan_to_num(nan=torch.inf).max())


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested predictions, without the feature maps that heads hand through."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "feats":
                yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
