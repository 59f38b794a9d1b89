"""The description inside a Core ML package, which runs on macOS only, but can be read anywhere."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def inspect(path: Path) -> dict[str, Any]:
    """Read an ``.mlpackage`` of Ultralytics without running it.

    Returns:
        ``input`` with its ``name``, ``type`` ("RGB" or "GRAYSCALE", 8 bits a channel), ``shape`` (height, width) and
        the ``scale`` that the program multiplies pixels with, or None; ``outputs``, each with ``name`` and ``shape``,
        which is empty for the label and the probabilities of a classifier; ``classes``; ``weight_bytes``.
    """
    from coremltools.models import MLModel

    spec = MLModel(str(path), skip_model_load=True).get_spec()
    description = spec.description
    (given,) = description.input
    image = given.type.imageType
    return {
        "input": {
            "name": given.name,
            "type": image.ColorSpace.Name(image.colorSpace),
            "shape": [image.height, image.width],
            "scale": _scale(spec.mlProgram, given.name),
        },
        "outputs": [{"name": o.name, "shape": list(o.type.multiArrayType.shape)} for o in description.output],
        "classes": len(ast.literal_eval(description.metadata.userDefined["names"])),
        "weight_bytes": sum(f.stat().st_size for f in path.rglob("weight.bin")),
    }


def store_sparsely(path: Path) -> int:
    """Let an ``.mlpackage`` hold weights of which most are zero as a mask and what is not zero.

    Returns:
        How many weights are held so: those of more than half zeros and 2048 values at least, as coremltools has it.
    """
    from coremltools.models import MLModel
    from coremltools.optimize import coreml

    model = MLModel(str(path), skip_model_load=True)
    config = coreml.OptimizationConfig(global_config=coreml.OpThresholdPrunerConfig())
    sparse = coreml.prune_weights(model, config)
    sparse.save(str(path))
    (block,) = sparse.get_spec().mlProgram.functions["main"].block_specializations.values()
    return sum(op.type == "constexpr_sparse_to_dense" for op in block.operations)


def disagreement(
    inspected: dict[str, Any], imgsz: Sequence[int], classes: int, outputs: Sequence[Sequence[int]]
) -> str | None:
    """Return how a package differs from the checkpoint that it was made from, or None.

    Args:
        inspected: What `inspect` found.
        imgsz: (height, width) in pixels that was exported for.
        classes: Number of the checkpoint's classes.
        outputs: Shapes of what the checkpoint computes.
    """
    arrays = [tuple(o["shape"]) for o in inspected["outputs"] if o["shape"]]
    scale = inspected["input"]["scale"] or 0.0
    for what, found, expected in (
        ("its input has the shape", tuple(inspected["input"]["shape"]), tuple(imgsz)),
        ("its pixels are scaled by 1 /", round(1 / scale) if scale else None, 255),
        ("its number of classes is", inspected["classes"], classes),
        ("its outputs have the shapes", sorted(arrays), sorted(map(tuple, outputs)) if arrays else arrays),
    ):
        if found != expected:
            return f"{what} {found}, the checkpoint's is {expected}"
    return None


def _scale(program: Any, image: str) -> float | None:
    """Return the constant that the image is multiplied with before anything else, or None if it is taken as it is."""
    (block,) = program.functions["main"].block_specializations.values()
    constants = {op.outputs[0].name: op.attributes["val"] for op in block.operations if op.type == "const"}
    for op in block.operations:
        if op.type == "mul" and op.inputs["x"].arguments[0].name == image:
            return float(constants[op.inputs["y"].arguments[0].name].immediateValue.tensor.floats.values[0])
    return None
