"""The exact state of a run: killed, resumed, and the same in the end, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import assert_same_tensors, narrow_yaml
from trainings import Interrupted, Run, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback
from yolo_prune.errors import CheckpointError
from yolo_prune.training import exact_state as state


def interrupted(run: Run, folder: Path, when: str, epoch: int, callback: PruneCallback, **arguments: Any) -> YOLO:
    """Lose the machine at an event of an epoch, and return what is left."""

    def stop(trainer: Any) -> None:
        if trainer.epoch == epoch:
            raise Interrupted

    yolo = YOLO(arguments.pop("model"))
    callback.attach(yolo)
    yolo.add_callback(when, stop)
    with pytest.raises(Interrupted):
        run(yolo, name="interrupted", **arguments)
    return YOLO(folder / "runs" / "interrupted" / "weights" / "last.pt")


RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "steps across epochs": ({"nbs": 12, "warmup_epochs": 1}, {}),
    "gradients": ({"optimizer": "AdamW", "nbs": 4}, {"importance": "taylor"}),
    "sparsity": ({"optimizer": "SGD", "nbs": 4}, {"sparsity": "group_lasso", "sparsity_strength": 0.01}),
    "two optimizers in one": ({"optimizer": "MuSGD", "nbs": 4, "close_mosaic": 2}, {"lr_after_cut": "rewind"}),
    "guard": ({"nbs": 4, "optimizer": "AdamW"}, {"max_drop": 0.99}),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(run: Run, own_folder: Path, name: str) -> None:
    arguments, knobs = RUNS[name]
    undisturbed = run(prune=soon(**knobs), name="undisturbed", **arguments)
    for when, epoch in (("on_fit_epoch_end", 0), ("on_train_epoch_end", 2)):
        model = narrow_yaml("yolov8n", own_folder)
        left = interrupted(run, own_folder, when, epoch, soon(**knobs), model=model, exist_ok=True, **arguments)
        assert_same_end(undisturbed, run(left, PruneCallback(None), resume=True))


def assert_same_end(undisturbed: Any, resumed: Any) -> None:
    """Check that a resumed run has the cuts, the results and the weights of one that was not interrupted."""
    expected, found = report_of(undisturbed), report_of(resumed)
    assert [c["plan_sha256"] for c in found["cuts"]] == [c["plan_sha256"] for c in expected["cuts"]]
    assert len(found["cuts"]) == 2
    assert found["final"]["fitness"] == expected["final"]["fitness"]
    for file in ("best", "last"):
        networks = [load_checkpoint(getattr(trainer, file))[0] for trainer in (undisturbed, resumed)]
        assert_same_tensors(*(network.state_dict() for network in networks))
    rows = [t.csv.read_text().splitlines() for t in (undisturbed, resumed)]
    untimed = [[",".join([r.split(",")[0], *r.split(",")[2:]]) for r in of] for of in rows]
    assert untimed[0] == untimed[1]
    assert not list((resumed.save_dir / "pruning").glob("state-*"))


def test_without_its_exact_state_a_run_resumes_all_the_same(
    run: Run, own_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = interrupted(run, own_folder, "on_train_epoch_end", 2, soon(), model=narrow_yaml("yolov8n", own_folder))
    (file,) = (own_folder / "runs" / "interrupted" / "pruning").glob("state-*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level("WARNING"):
        report = report_of(run(left, PruneCallback(None), resume=True))
    assert "resuming from last.pt alone, so later cuts will differ a little" in caplog.text
    assert len(report["cuts"]) == 2 and report["final"]["macs"] <= 0.5 * report["dense"]["macs"]


def test_a_state_of_another_network_is_refused(run: Run, own_folder: Path) -> None:
    left = interrupted(run, own_folder, "on_train_epoch_end", 2, soon(), model=narrow_yaml("yolov8n", own_folder))
    (file,) = (own_folder / "runs" / "interrupted" / "pruning").glob("state-*.pt")
    content = state.load(file)
    content["networks"][0].popitem()
    content["networks"][0]["other.weight"] = torch.zeros(1)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"the state beside last\.pt belongs to another network"):
        run(left, PruneCallback(None), resume=True)


@pytest.mark.parametrize("content", [b"", b"not a file of torch", None])
def test_a_state_that_cannot_be_read_says_so(own_folder: Path, content: bytes | None) -> None:
    file = own_folder / "state.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        state.load(file)
