from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_prune.deploy.coreml import disagreement, inspect, store_sparsely
from yolo_prune.deploy.formats import file_size

SAYS: dict[str, Any] = {
    "input": {"name": "image", "type": "RGB", "shape": [64, 96], "scale": 1 / 255},
    "outputs": [{"name": "boxes", "shape": [1, 7, 126]}, {"name": "masks", "shape": [1, 32, 16, 24]}],
    "classes": 3,
    "weight_bytes": 10,
}
SHAPES = ((1, 32, 16, 24), (1, 7, 126))


def test_a_package_of_the_same_shapes_and_classes_agrees() -> None:
    assert disagreement(SAYS, (64, 96), 3, SHAPES) is None


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (
            {"input": {**SAYS["input"], "shape": [96, 64]}},
            "its input has the shape (96, 64), the checkpoint's is (64, 96)",
        ),
        ({"input": {**SAYS["input"], "scale": None}}, "its pixels are scaled by 1 / None, the checkpoint's is 255"),
        ({"classes": 80}, "its number of classes is 80, the checkpoint's is 3"),
        (
            {"outputs": SAYS["outputs"][:1]},
            "its outputs have the shapes [(1, 7, 126)], the checkpoint's is [(1, 7, 126), (1, 32, 16, 24)]",
        ),
    ],
)
def test_what_differs_is_named(says: dict[str, Any], reason: str) -> None:
    assert disagreement({**SAYS, **says}, (64, 96), 3, SHAPES) == reason


def test_the_label_and_probabilities_of_a_classifier_have_no_shape_to_compare() -> None:
    outputs = [{"name": "classLabel", "shape": []}, {"name": "probabilities", "shape": []}]
    assert disagreement({**SAYS, "outputs": outputs}, (64, 96), 3, [(1, 3)]) is None


@pytest.mark.parametrize("scale", [1 / 255, 1.0])
def test_a_package_tells_its_input_outputs_classes_and_weights(own_folder: Path, scale: float) -> None:
    ct = pytest.importorskip("coremltools", reason='coremltools is missing: pip install ".[coreml]"')
    network = torch.nn.Conv2d(3, 8, 3, 2, 1).eval()
    traced = torch.jit.trace(network, torch.zeros(1, 3, 64, 96))
    image = ct.ImageType("image", shape=(1, 3, 64, 96), scale=scale, color_layout=ct.colorlayout.RGB)
    package = ct.convert(
        traced, inputs=[image], skip_model_load=True, compute_precision=ct.precision.FLOAT32, convert_to="mlprogram"
    )
    package.user_defined_metadata["names"] = str({0: "a", 1: "b"})
    package.save(str(own_folder / "best.mlpackage"))
    found = inspect(own_folder / "best.mlpackage")
    given = found.pop("input")
    assert given.pop("scale") == (None if scale == 1 else pytest.approx(scale))
    assert given == {"name": "image", "type": "RGB", "shape": [64, 96]}
    assert [output["shape"] for output in found["outputs"]] == [[1, 8, 32, 48]]
    assert found["classes"] == 2
    assert 4 * (8 * 27 + 8) <= found["weight_bytes"] < 2000


def test_weights_of_which_most_are_zero_are_stored_as_what_is_not(own_folder: Path) -> None:
    ct = pytest.importorskip("coremltools", reason='coremltools is missing: pip install ".[coreml]"')
    network = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, 1, 1) for _ in range(3))).eval()
    with torch.no_grad():
        for layer in network[:2]:
            layer.weight.flatten()[: 3 * layer.weight.numel() // 4] = 0
    traced = torch.jit.trace(network, torch.zeros(1, 64, 8, 8))
    package = ct.convert(
        traced,
        inputs=[ct.TensorType("image", shape=(1, 64, 8, 8))],
        skip_model_load=True,
        compute_precision=ct.precision.FLOAT32,
        convert_to="mlprogram",
    )
    package.user_defined_metadata["names"] = "{0: 'a'}"
    path = own_folder / "best.mlpackage"
    package.save(str(path))
    weights, dense = network[0].weight.numel(), file_size(path)
    assert store_sparsely(path) == 2
    saved = 2 * (
        weights * 4 * 3 / 4 - weights / 8
    )  # three quarters of the values go, a bit for each comes, and the file has a head
    assert dense - file_size(path) == pytest.approx(saved, rel=0.05)
    again = ct.models.MLModel(str(path), skip_model_load=True)
    assert again.user_defined_metadata["names"] == "{0: 'a'}"
