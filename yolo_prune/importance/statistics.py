"""Statistics of a network's layers on labelled images, where they matter.

In detection most positions of a feature map are background, and the loss hardly depends on what is there. So positions
are drawn in proportion to the squared gradient of the loss with respect to the layer's outputs, with a share that is
uniform. Moments of what a layer takes at these positions are those of the criterion, and what it makes there is what
reconstruction solves for. Everything is summed batch by batch: no layer's activations are held for all images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from yolo_prune.graph.layers import is_grouped, named_layers
from yolo_prune.importance.objective import calibrating, copy_of, emphasize_classes, loss_of, weigh_branches
from yolo_prune.importance.samples import by_channel, inputs_at, is_solvable, kernel_taps, outputs_at
from yolo_prune.utils.console import progress_bar

UNIFORM = 0.2
"""Share of the positions that is drawn without regard to gradients, so that the background stays what it was."""
SAMPLES_PER_INPUT, FEWEST_SAMPLES, MOST_SAMPLES = 8, 1024, 8192
"""Positions that are drawn of a layer, over all images: so many per unfolded input, within limits."""
MOST_UNFOLDED = 1200
"""Inputs times taps whose moments are kept in full; of a larger kernel those of the inputs alone, over all taps."""
HELD_BYTES = 2**29
"""Activations of all images together that are held at a time while weights are solved: 512 MiB."""
FEWEST_IMAGES = 8
"""So many images take part in every layer, however large its maps are."""
ROUNDING = 1e-6
"""Relative error of sums of products in single precision."""
LIVE = 3
"""Activations that a forward pass holds at a layer, in units of what that layer takes and makes."""


@dataclass
class LayerStatistics:
    """What one layer takes and makes.

    Attributes:
        images: Images seen.
        taken: Input positions seen; a strided convolution has more of them than it makes.
        made: Output positions seen.
        energy: Sum of the squared inputs over all positions, shape (in,).
        outputs: Sum of the outputs over all positions, shape (out,).
        squares: Sum of the squared outputs over all positions, shape (out,).
        sensitivity: Sum over all positions of the products of two outputs' gradients of the loss, shape (out, out); of
            a grouped convolution their squares alone, shape (out,). Of large maps it is estimated, without bias, from
            the positions that were drawn.
        positions: Index of a batch -> positions that were drawn, shape (B, m); those of the outputs, or of the inputs
            of a transposed convolution. Batches beyond what may be held at a time are missing.
        targets: Index of a batch -> what the layer made there, shape (B, m, values).
        samples: Inputs at these positions, one for each tap where the kernel is not unfolded.
        sums: Sum of these inputs, shape (in x taps,) or (in,).
        products: Sum of the products of two of them, shape (in x taps, in x taps) or (in, in); None for a grouped
            convolution.
    """

    images: int = 0
    taken: int = 0
    made: int = 0
    energy: Any = 0.0
    outputs: Any = 0.0
    squares: Any = 0.0
    sensitivity: Any = 0.0
    positions: dict[int, torch.Tensor] = field(default_factory=dict)
    targets: dict[int, torch.Tensor] = field(default_factory=dict)
    samples: int = 0
    sums: Any = 0.0
    products: Any = None

    def covariance(self) -> torch.Tensor:
        """Return the covariance of the inputs at the drawn positions, laid out as ``products``, and its rounding."""
        mean, moments = (total.double().cpu() / self.samples for total in (self.sums, self.products))
        rounding = ROUNDING * moments.diagonal().mean() * torch.eye(len(mean), dtype=torch.double)
        covariance: torch.Tensor = moments - torch.outer(mean, mean) + rounding
        return covariance

    def variance(self) -> torch.Tensor:
        """Return the variance of the outputs, shape (out,)."""
        return (self.squares / self.made - (self.outputs / self.made) ** 2).clamp_min(0).cpu()

    def fisher(self) -> torch.Tensor:
        """Return the products of two outputs' gradients per image, summed over positions, shape (out, out).

        It is the factor of the outputs in the Kronecker-factored Fisher of Grosse & Martens 2016, section 3.
        """
        products: torch.Tensor = self.sensitivity.double().cpu() / self.images
        return products if products.ndim == 2 else products.diag()


def layer_statistics(
    model: nn.Module, batches: Sequence[dict[str, Any]], seed: int = 0, density: int = 1
) -> dict[str, LayerStatistics]:
    """Return the statistics of every convolution and linear layer, in the order in which they run.

    Args:
        model: A network; a copy of it runs.
        batches: Preprocessed batches with labels, on the model's device.
        seed: Chooses the positions.
        density: So many times as many positions are drawn.
    """
    found: dict[str, LayerStatistics] = {}
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float)
    copy = copy_of(model).to(dtype).requires_grad_(False)
    emphasize_classes(copy)
    weigh_branches(copy)
    total = sum(len(batch["img"]) for batch in batches)
    generator = torch.Generator().manual_seed(seed)
    present = 0

    def observe(path: str, can_be_solved: bool) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen, x, y = found.setdefault(path, LayerStatistics()), inputs[0].detach(), output.detach()
            is_first = present not in seen.positions  # a layer that is used twice is solved for its first use

            def look(gradient: torch.Tensor) -> None:
                _add_sums(seen, layer, x, y)
                if not can_be_solved:
                    _add_sensitivity(seen, layer, by_channel(layer, gradient).mT)
                    return
                most, energy = images_held(x, y), _energy(layer, gradient)
                each = -(-density * _samples(layer) // min(most, total))
                positions, expected = _draw(energy, each, generator)
                is_small = energy.shape[1] <= each
                sensed = by_channel(layer, gradient).mT if is_small else outputs_at(layer, gradient, positions)
                _add_sensitivity(seen, layer, sensed if is_small else sensed / expected[..., None].sqrt())
                if is_first and seen.images - len(y) < most:
                    seen.positions[present] = positions
                    seen.targets[present] = outputs_at(layer, y, positions)
                    if not is_grouped(layer):
                        _add_products(seen, inputs_at(layer, x, positions))

            if output.requires_grad:
                output.register_hook(look)

        return hook

    for path, layer in named_layers(copy):
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            layer.register_forward_hook(observe(path, is_solvable(copy, path, layer)))
    with (
        torch.random.fork_rng(range(torch.cuda.device_count())),
        calibrating(copy, through_heads=True),
        torch.enable_grad(),
        progress_bar("looking at images", len(batches)) as step,
    ):
        torch.manual_seed(seed)  # some losses draw
        for batch in batches:
            image = batch["img"].detach().to(dtype, copy=True).requires_grad_(True)
            torch.autograd.grad(loss_of(copy, {**batch, "img": image}), image)
            present += 1
            step()
    return found


def sampled_outputs(
    model: nn.Module, images: Sequence[torch.Tensor], statistics: Mapping[str, LayerStatistics]
) -> dict[str, dict[int, torch.Tensor]]:
    """Return what the layers of a network make at the positions that were drawn for another of equal structure.

    Args:
        model: The network; it is only read.
        images: The batches of the statistics.
        statistics: Have the positions.

    Returns:
        Layer path -> index of a batch -> outputs of shape (B, m, values).
    """
    found: dict[str, dict[int, torch.Tensor]] = {path: {} for path in statistics}
    present = 0

    def observe(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            positions = statistics[path].positions.get(present)
            if positions is not None and present not in found[path]:
                found[path][present] = outputs_at(layer, output, positions)

        return hook

    layers = dict(named_layers(model))
    hooks = [layers[path].register_forward_hook(observe(path)) for path in statistics]
    try:
        with calibrating(model), torch.no_grad(), progress_bar("looking at outputs", len(images)) as step:
            for batch in images:
                model(batch)
                present += 1
                step()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def images_held(x: torch.Tensor, y: torch.Tensor) -> int:
    """Return how many images may wait at a layer that takes x and makes y, each of shape (B, ...)."""
    live = LIVE * (x[0].numel() + y[0].numel()) * x.element_size()
    return max(FEWEST_IMAGES, HELD_BYTES // live)


def _samples(layer: nn.Module) -> int:
    """Return how many positions of a layer are drawn over all images."""
    weights = layer.weight
    unfolded = weights[:, 0].numel() if isinstance(layer, nn.ConvTranspose2d) else weights[0].numel()
    return max(FEWEST_SAMPLES, min(MOST_SAMPLES, SAMPLES_PER_INPUT * unfolded))


def _draw(energy: torch.Tensor, each: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw positions in proportion to energies of shape (B, positions), those of all images alike.

    Returns:
        The positions, shape (B, m), and how often each of them was to be expected, alike.
    """
    total, grid = energy.sum(1, keepdim=True), energy.shape[1]
    share = torch.where(total > 0, energy / total.clamp_min(1e-38), 1 / grid)
    chances = UNIFORM / grid + (1 - UNIFORM) * share
    drawn = torch.multinomial(chances.cpu(), min(each, grid), replacement=True, generator=generator).to(energy.device)
    return drawn, chances.gather(1, drawn) * drawn.shape[1]


def _energy(layer: nn.Module, gradient: torch.Tensor) -> torch.Tensor:
    """Return the squared gradient at each position of a layer, shape (B, positions)."""
    energy = by_channel(layer, gradient.detach().float()).square().sum(1)
    if isinstance(layer, nn.ConvTranspose2d):  # one patch per input position
        energy = F.avg_pool2d(energy.view(len(energy), 1, *gradient.shape[2:]), layer.kernel_size) * kernel_taps(layer)
    return energy.flatten(1)


def _add_sums(seen: LayerStatistics, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    inputs, outputs = by_channel(layer, x), by_channel(layer, y)
    seen.images += len(y)
    seen.taken += len(x) * inputs.shape[2]
    seen.made += len(y) * outputs.shape[2]
    seen.energy = seen.energy + _energies(inputs)
    seen.outputs = seen.outputs + outputs.sum(2).double().sum(0)
    seen.squares = seen.squares + _energies(outputs)


def _energies(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squares of each channel, of shape (B, channels, positions)."""
    return torch.linalg.vector_norm(x, dim=2).double().square().sum(0)


def _add_sensitivity(seen: LayerStatistics, layer: nn.Module, gradients: torch.Tensor) -> None:
    """Take in gradients of shape (B, m, values)."""
    taps = kernel_taps(layer) if gradients.shape[2] != len(seen.outputs) else 1
    rows = gradients.detach().flatten(0, 1).unflatten(1, (-1, taps)).transpose(1, 2).flatten(0, 1)
    products = rows.square().sum(0) if is_grouped(layer) else rows.T @ rows
    seen.sensitivity = seen.sensitivity + products


def _add_products(seen: LayerStatistics, inputs: torch.Tensor) -> None:
    """Take in inputs of shape (B, m, in, taps)."""
    width, taps = inputs.shape[2:]
    is_unfolded = width * taps <= MOST_UNFOLDED
    rows = inputs.flatten(2).flatten(0, 1) if is_unfolded else inputs.transpose(2, 3).flatten(0, 2)
    seen.samples += len(rows)
    seen.sums = seen.sums + rows.sum(0)
    if seen.products is None:
        seen.products = rows.new_zeros(rows.shape[1], rows.shape[1])
    seen.products.addmm_(rows.T, rows)
