"""Ultralytics' blocks: how each is made traceable, what a cut has to respect, and which of its attributes follow."""

from yolo_prune.blocks import attention, convolutions, heads  # noqa: F401 (they register their adapters)
from yolo_prune.blocks.channelwise import channel_dim, channel_parameters, inherited, norm_width, norms, simplify
from yolo_prune.blocks.heads import map_readers
from yolo_prune.blocks.inner import InnerBlock, inner_blocks, inner_lists, misfit, remove
from yolo_prune.blocks.reading import is_read, shadow_of
from yolo_prune.blocks.registry import BlockAdapter, InnerBlocks, adapter_for, followed, register_block
from yolo_prune.blocks.shadow import Call, ChannelSlice, Parts, Shadow, Unit, flat, mapped

__all__ = [
    "BlockAdapter",
    "Call",
    "ChannelSlice",
    "InnerBlock",
    "InnerBlocks",
    "Parts",
    "Shadow",
    "Unit",
    "adapter_for",
    "channel_dim",
    "channel_parameters",
    "flat",
    "followed",
    "inherited",
    "inner_blocks",
    "inner_lists",
    "is_read",
    "map_readers",
    "mapped",
    "misfit",
    "norm_width",
    "norms",
    "register_block",
    "remove",
    "shadow_of",
    "simplify",
]
