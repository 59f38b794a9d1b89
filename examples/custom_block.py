"""A block of one's own in a model YAML, with an adapter so that it is cut like any other.

python examples/custom_block.py data=coco8.yaml epochs=60
"""

import sys
from pathlib import Path

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv

from yolo_prune import BlockAdapter, PruneCallback, register_block, verify_cut

arguments = {"data": "coco8.yaml", "epochs": "60", "imgsz": "640"}
arguments |= dict(a.split("=", 1) for a in sys.argv[1:])


class TwoPaths(nn.Module):
    """Splits its channels in two halves, sends one of them through a larger kernel, and mixes both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2
        self.cv1 = Conv(width, 2 * self.half)
        self.wide = Conv(self.half, self.half, 5)
        self.cv2 = Conv(2 * self.half, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape (B, C, H, W)."""
        a, b = self.cv1(x).split(self.half, dim=1)
        return x + self.cv2(torch.cat((a, self.wide(b)), 1))


@register_block(TwoPaths)
class TwoPathsAdapter(BlockAdapter):
    """Without it, every TwoPaths would be locked: what `split` does cannot be read off the block."""

    def trace(self, shadow, path, module):
        """Trace cv1 as two convolutions, which keep equally many channels: `split` takes equal halves."""
        halves = (range(module.half), range(module.half, 2 * module.half))
        shadow.split(path, "cv1", halves)
        shadow.tie(*((f"{path}.cv1.conv", "out", half) for half in halves))

    def follow(self, module):
        """Say what `half` is after a cut."""
        return {"half": module.cv1.conv.out_channels // 2}


tasks.TwoPaths = TwoPaths  # where Ultralytics looks for the names in a model YAML
model = YOLO(Path(__file__).with_name("custom_block.yaml"))

# An adapter is right if removing channels that are zero changes nothing.
print(verify_cut(model))  # {'eval': 2e-16, 'train': 3e-15}

PruneCallback(0.5).attach(model)
model.train(data=arguments["data"], epochs=int(arguments["epochs"]), imgsz=int(arguments["imgsz"]))
