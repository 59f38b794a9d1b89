"""Which adapter belongs to which class of block, for Ultralytics' blocks and for users' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from yolo_prune.blocks.channelwise import inherited
from yolo_prune.errors import ConfigError

if TYPE_CHECKING:
    from yolo_prune.blocks.shadow import Shadow


@dataclass(frozen=True)
class InnerBlocks:
    """A ``ModuleList`` or ``Sequential`` of a block whose entries can be removed.

    Attributes:
        name: Path of the list inside the block.
        reader: The layer inside the block that takes what the entries make side by side, or None for entries that
            stand one behind the other, each in the place of which its input can go on. Side by side each entry takes
            what the one before makes, so that the last one goes first.
        leading: Inputs of that layer before those that the first entry makes.
        fewest: Entries that stay.
    """

    name: str
    reader: str | None = None
    leading: int = 0
    fewest: int = 0


class BlockAdapter:
    """How one kind of block is traced and cut. By default nothing is special.

    Attributes:
        per_channel: Names of parameters of the block itself, outside of layers, with one value per channel. A tracing
            forward pass finds a BatchNorm2d of that name in their place.
    """

    per_channel: ClassVar[tuple[str, ...]] = ()

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        """Make the shadow's copy of the block traceable, and declare what a cut has to respect.

        Args:
            shadow: The copy of the network; its methods say what can be declared.
            path: Path of the block.
            module: The copy of the block, on the meta device; give it another ``forward`` if its own cannot be traced.

        Returns:
            Why no channel that the block takes or makes can be removed, if that is so: it is then locked as a whole.
        """
        return None

    def follow(self, module: nn.Module) -> dict[str, Any]:
        """Return the attributes of the real block that depend on its widths, read off its layers after a cut."""
        return {}

    def compensate(self, module: nn.Module, follow: dict[str, Any]) -> Iterator[tuple[str, slice | list[int], float]]:
        """Yield (layer inside the block, output channels, factor) where an attribute that follows scales the function.

        Called after the layers have been cut and before the attributes are set to ``follow``.
        """
        return iter(())

    def inner(self, module: nn.Module) -> Iterator[InnerBlocks]:
        """Yield the lists of inner blocks of which some can be removed, read off the real block."""
        return iter(())

    def is_residual(self, module: nn.Module) -> bool:
        """Return whether the block adds to what it takes, so that its input is the next best thing to its output."""
        return bool(getattr(module, "add", False))


_ADAPTERS: dict[type[nn.Module], BlockAdapter] = {}
_FOUND: dict[type[nn.Module], BlockAdapter | None] = {}
"""Cache of `adapter_for`."""


def register_block(*kinds: type[nn.Module]) -> Callable[[type[BlockAdapter]], type[BlockAdapter]]:
    """Register an adapter for classes of blocks, as a decorator; a later registration replaces an earlier one.

    A subclass that changes no method of the forward pass, but makes its layers otherwise, has the same adapter; any
    other may compute something else and is registered by itself.

    Raises:
        ConfigError: If a kind is no class of modules.

    Examples:
        >>> @register_block(MyBlock)
        ... class MyBlockAdapter(BlockAdapter):
        ...     def trace(self, shadow, path, module): ...
    """
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ConfigError(f"register_block takes classes of nn.Module, not {kind!r}; give the class of the block.")

    def decorate(adapter: type[BlockAdapter]) -> type[BlockAdapter]:
        for kind in kinds:
            _ADAPTERS[kind] = adapter()
        _FOUND.clear()
        return adapter

    return decorate


def adapter_for(module: nn.Module) -> BlockAdapter | None:
    """Return the adapter of the class whose forward pass a block's class has, or None where none is needed or known."""
    kind = type(module)
    if kind not in _FOUND:
        base = inherited(kind, _ADAPTERS)
        _FOUND[kind] = None if base is None else _ADAPTERS[base]
    return _FOUND[kind]


def followed(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a block that depend on its widths (see `BlockAdapter.follow`).

    A block of a known class whose layers were exchanged for others is locked: nothing of it follows.
    """
    adapter = adapter_for(module)
    try:
        return adapter.follow(module) if adapter else {}
    except AttributeError:
        return {}
