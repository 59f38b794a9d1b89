"""Adapters of heads: hidden widths are free, what a branch predicts is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from ultralytics.nn.modules import block, head

from yolo_prune.blocks.registry import BlockAdapter, adapter_for, register_block
from yolo_prune.blocks.shadow import Shadow

_TWIN = "one2one_"


def map_readers(network: nn.Module) -> dict[str, int]:
    """Return a layer that reads each map of a detection head, with the map's channels; nothing of other heads.

    These are the maps that Ultralytics takes the features of objects from, in tracking and in nothing else.
    """
    rows: Any = network.model
    last = rows[-1]
    if not isinstance(last, head.Detect):
        return {}
    branch = "cv2" if getattr(last, "cv2", None) is not None else f"{_TWIN}cv2"  # the other is gone in a fused network
    readers = {}
    for i, level in enumerate(getattr(last, branch)):
        name, layer = next(((n, m) for n, m in level.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
        if layer is None:  # the head of a user's, with its real layers elsewhere
            return {}
        readers[".".join(filter(None, (f"model.{len(rows) - 1}.{branch}.{i}", name)))] = layer.in_channels
    return readers


@register_block(head.Detect, head.v10Detect)
class _Detect(BlockAdapter):
    """Heads with one branch per kind of prediction and level.

    The twin branches of an end-to-end head keep equal widths: `fuse` drops one of the two, and the deployed network
    costs the same whichever it keeps.
    """

    predicts: ClassVar[dict[str, str]] = {"cv2": "the box distribution", "cv3": "the class scores"}
    """Branch -> what its last convolutions predict."""
    hidden: ClassVar[tuple[str, ...]] = ()
    """Branches that predict nothing by themselves, but feed others."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        for name in (*self.predicts, *self.hidden):
            for branch in (name, f"{_TWIN}{name}"):
                for i, level in enumerate(getattr(module, branch, None) or ()):
                    if name in self.predicts:
                        shadow.fixed[f"{path}.{branch}.{i}{_last_of(level)}"] = f"predicts {self.predicts[name]}"
            if getattr(module, name, None) is not None and getattr(module, f"{_TWIN}{name}", None) is not None:
                self._tie_twins(shadow, path, module, name)
        shadow.unused_when_deployed += [
            f"{path}.{branch}."
            for branch in module._modules
            if branch.startswith(_TWIN) and getattr(module, branch.removeprefix(_TWIN), None) is not None
        ]
        if isinstance(module.dfl, block.DFL):
            shadow.lock_unread(f"{path}.dfl", "the box distribution has fixed bins")

        def forward(x: list[torch.Tensor], *_: Any) -> list[torch.Tensor]:
            # raw outputs, without decoding; the stock head detaches what the twin reads, and autograd would not see it
            maps = x[: module.nl]
            return [*self.outputs(module, maps), *self.tail(module, maps)]

        module.forward = forward
        return None

    def _tie_twins(self, shadow: Shadow, path: str, module: nn.Module, name: str) -> None:
        for inner, layer in getattr(module, name).named_modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                both = (f"{path}.{branch}.{inner}" for branch in (name, f"{_TWIN}{name}"))
                shadow.tie(*((layer_path, "out", range(layer.out_channels)) for layer_path in both))

    def outputs(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield what each branch makes of each level."""
        for name in self.predicts:
            for branch in (name, f"{_TWIN}{name}"):
                for level, xi in zip(getattr(module, branch, None) or (), x, strict=False):
                    yield level(xi)

    def tail(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield what the head makes beside its branches."""
        return iter(())


def _last_of(level: nn.Module) -> str:
    return f".{len(level) - 1}" if isinstance(level, nn.Sequential) else ""


@register_block(head.OBB, head.OBB26)
class _OBB(_Detect):
    predicts: ClassVar[dict[str, str]] = {**_Detect.predicts, "cv4": "the angle"}


@register_block(head.Pose)
class _Pose(_Detect):
    predicts: ClassVar[dict[str, str]] = {**_Detect.predicts, "cv4": "the keypoints"}


@register_block(head.Pose26)
class _Pose26(_Detect):
    """Features of ``cv4`` feed keypoints, and in training also their spread."""

    predicts: ClassVar[dict[str, str]] = {
        **_Detect.predicts,
        "cv4_kpts": "the keypoints",
        "cv4_sigma": "the spread of the keypoints",
    }
    hidden: ClassVar[tuple[str, ...]] = ("cv4",)

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        if module.flow_model is not None:  # absent in a fused network
            shadow.lock_unread(
                f"{path}.flow_model", "the likelihood of a keypoint's two coordinates; dropped when deployed"
            )
        return super().trace(shadow, path, module)

    def outputs(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for branch in ("cv2", "cv3", f"{_TWIN}cv2", f"{_TWIN}cv3"):
            for level, xi in zip(getattr(module, branch, None) or (), x, strict=False):
                yield level(xi)
        for twin in ("", _TWIN):
            for i, level in enumerate(getattr(module, f"{twin}cv4", None) or ()):
                features = level(x[i])
                for name in ("cv4_kpts", "cv4_sigma"):
                    if (predict := getattr(module, f"{twin}{name}", None)) is not None:
                        yield predict[i](features)


@register_block(head.Segment, head.Segment26)
class _Segment(_Detect):
    predicts: ClassVar[dict[str, str]] = {**_Detect.predicts, "cv4": "the mask coefficients"}

    def tail(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        yield module.proto(x if isinstance(module.proto, block.Proto26) else x[0])


@register_block(head.WorldDetect, head.YOLOEDetect)
class _TextGuided(_Detect):
    """Open-vocabulary heads: the class branch ends in the width of the text embedding."""

    predicts: ClassVar[dict[str, str]] = {**_Detect.predicts, "cv3": "what the text embedding is compared with"}

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> str | None:
        if hasattr(module, "reprta"):
            shadow.lock_unread(f"{path}.reprta", "works on the text embedding")
        return super().trace(shadow, path, module)

    def outputs(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for twin in ("", _TWIN):
            compare: Any = getattr(module, f"{twin}cv4", None)
            for name in self.predicts:
                for i, level in enumerate(getattr(module, f"{twin}{name}", None) or ()):
                    y = level(x[i])
                    yield compare[i].norm(y) if name == "cv3" and hasattr(compare[i], "norm") else y

    def tail(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        if hasattr(module, "savpe"):
            yield from module.savpe(x)


@register_block(head.YOLOESegment, head.YOLOESegment26)
class _YOLOESegment(_TextGuided):
    predicts: ClassVar[dict[str, str]] = {**_TextGuided.predicts, "cv5": "the mask coefficients"}

    def tail(self, module: nn.Module, x: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        yield from super().tail(module, x)
        yield module.proto(x if isinstance(module.proto, block.Proto26) else x[0])


@register_block(block.ContrastiveHead, block.BNContrastiveHead)
class _Contrastive(BlockAdapter):
    """Compares with the text; the head's adapter traces what there is of it."""


@register_block(block.SAVPE)
class _VisualPrompts(BlockAdapter):
    """The visual prompt encoder of YOLOE, which an ordinary forward pass does not run."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        shadow.fixed[f"{path}.cv3"] = "makes an embedding as wide as the text's"
        shadow.fixed[f"{path}.cv4"] = "makes one map per group of the embedding"
        for name in ("cv5", "cv6"):
            shadow.lock_unread(f"{path}.{name}", "works on one map per group of the embedding")

        def forward(x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            wide, narrow = ([level(xi) for level, xi in zip(cv, x, strict=True)] for cv in (module.cv1, module.cv2))
            return module.cv3(torch.cat(wide, 1)), module.cv4(torch.cat(narrow, 1))

        module.forward = forward


@register_block(head.Classify)
class _Classify(BlockAdapter):
    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        shadow.fixed[f"{path}.linear"] = "predicts the class scores"
        linear = shadow.as_conv(path, "linear")

        def forward(x: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
            return linear(module.pool(module.conv(torch.cat(x, 1) if isinstance(x, list) else x)))

        module.forward = forward


@register_block(head.SemanticSegment)
class _SemanticSegment(BlockAdapter):
    """A classifier per position, and a second one that only training sees."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        for name, branch in (("classifier", module.classifier), ("aux_head", module.aux_head)):
            if branch is not None:
                shadow.fixed[f"{path}.{name}.{len(branch) - 1}"] = "predicts the class of each position"

        def forward(x: list[torch.Tensor]) -> list[torch.Tensor]:
            branches = (module.classifier, module.aux_head)
            return [branch(xi) for branch, xi in zip(branches, x, strict=False) if branch is not None]

        module.forward = forward


@register_block(head.Depth)
class _Depth(BlockAdapter):
    """Traced as it is: sums of projected levels, then a decoder."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        shadow.fixed[f"{path}.head.{len(module.head) - 1}"] = "predicts the depth"


@register_block(head.RTDETRDecoder)
class _RTDETRDecoder(BlockAdapter):
    """A transformer decoder: what it reads is free, and so are hidden widths of feed-forwards and of box predictors."""

    def trace(self, shadow: Shadow, path: str, module: nn.Module) -> None:
        for i in range(module.nl):
            shadow.fixed[f"{path}.input_proj.{i}.0"] = "feeds LayerNorms and attention over the whole width"
        for name, child in module.named_children():
            if name != "input_proj":
                why = "embeds the classes" if isinstance(child, nn.Embedding) else "only hidden widths are cut"
                shadow.lock_unread(f"{path}.{name}", f"{why}; LayerNorms and attention work on the whole width")
        for name, layer in module.named_modules():
            if layer is not module and (adapter := adapter_for(layer)):
                adapter.trace(shadow, f"{path}.{name}", layer)
        module.forward = lambda x, *_: [project(xi) for project, xi in zip(module.input_proj, x, strict=True)]
