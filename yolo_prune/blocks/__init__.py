"""Ultralytics' blocks: how each is made traceable, what a cut has to respect, and which of its attributes follow."""

from yolo_prune.blocks import attention, convolutions, heads  # noqa: F401 (they register their adapters)
from yolo_prune.blocks.heads import map_readers
from yolo_prune.blocks.reading import is_read, shadow_of
from yolo_prune.blocks.registry import BlockAdapter, adapter_for, register_block
from yolo_prune.blocks.shadow import Call, Lane, Parts, Shadow, Unit, mapped

__all__ = [
    "BlockAdapter",
    "Call",
    "Lane",
    "Parts",
    "Shadow",
    "Unit",
    "adapter_for",
    "is_read",
    "map_readers",
    "mapped",
    "register_block",
    "shadow_of",
]
