"""The exact state of a run: killed, resumed, and the same in the end, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import assert_same_tensors, tiny_yaml
from trainings import DEFAULTS, Interrupted, Run, knowing, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback
from yolo_prune.errors import CheckpointError, UnsupportedError
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
    "defaults": ({}, DEFAULTS),
    "steps across epochs": ({"nbs": 12, "warmup_epochs": 1}, {}),
    "gradients": ({"optimizer": "AdamW", "nbs": 4}, {"importance": "taylor"}),
    "sparsity": ({"optimizer": "SGD", "nbs": 4}, {"sparsity": "group_lasso", "sparsity_strength": 0.01}),
    "two optimizers in one": ({"optimizer": "MuSGD", "nbs": 4, "close_mosaic": 2}, {"lr_after_cut": "rewind"}),
    "guard": ({"nbs": 4, "optimizer": "AdamW"}, {"max_drop": 0.99}),
}


LOST = {"before a cut": ("on_fit_epoch_end", 0), "after two": ("on_train_epoch_end", 2)}
"""When a machine is lost: with an epoch validated, and in the middle of one."""
AT = [
    ("defaults", ("after two",)),
    pytest.param("defaults", ("before a cut",), marks=pytest.mark.slow),
    *(pytest.param(name, ("before a cut",), marks=pytest.mark.slow) for name in ("gradients", "sparsity")),
    *(
        pytest.param(name, ("after two",), marks=pytest.mark.slow)
        for name in ("steps across epochs", "two optimizers in one", "guard")
    ),
]


@pytest.mark.parametrize(("name", "lost"), AT)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    run: Run, own_folder: Path, name: str, lost: tuple[str, ...]
) -> None:
    arguments, knobs = RUNS[name]
    yolo = YOLO(tiny_yaml(own_folder))
    for when in lost:  # what is on the disk then is what a lost machine leaves
        event, epoch = LOST[when]

        def keep(trainer: Any, epoch: int = epoch, copy: Path = own_folder / when) -> None:
            if trainer.epoch == epoch:
                shutil.copytree(trainer.save_dir, copy, dirs_exist_ok=True)

        yolo.add_callback(event, keep)
    at = run(yolo, soon(**knobs), name="run", **arguments).save_dir
    undisturbed = at.rename(own_folder / "undisturbed")
    for when in lost:
        shutil.copytree(own_folder / when, at)
        assert_same_end(undisturbed, run(YOLO(at / "weights" / "last.pt"), PruneCallback(None), resume=True).save_dir)
        shutil.rmtree(at)


def assert_same_end(undisturbed: Path, resumed: Path) -> None:
    """Check that the folder of a resumed run has the cuts, results and weights of one that was not interrupted."""
    runs = undisturbed, resumed
    expected, found = (json.loads((folder / "pruning" / "report.json").read_text()) for folder in runs)
    assert [c["plan_sha256"] for c in found["cuts"]] == [c["plan_sha256"] for c in expected["cuts"]]
    assert len(found["cuts"]) == 2 and found["start"] == expected["start"] != ""
    assert found["final"]["fitness"] == expected["final"]["fitness"]
    for file in ("best.pt", "last.pt"):
        networks = [load_checkpoint(folder / "weights" / file)[0] for folder in runs]
        assert_same_tensors(*(network.state_dict() for network in networks))
    rows = [(folder / "results.csv").read_text().splitlines() for folder in runs]
    untimed = [[",".join([r.split(",")[0], *r.split(",")[2:]]) for r in of] for of in rows]
    assert untimed[0] == untimed[1]
    assert not list((resumed / "pruning").glob("state-*"))


@pytest.mark.slow
def test_without_its_exact_state_a_run_resumes_all_the_same(
    run: Run, own_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = interrupted(run, own_folder, "on_train_epoch_end", 2, soon(), model=tiny_yaml(own_folder))
    (file,) = (own_folder / "runs" / "interrupted" / "pruning").glob("state-*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level("WARNING"):
        report = report_of(run(left, PruneCallback(None), resume=True))
    assert "resuming from last.pt alone, so later cuts will differ a little" in caplog.text
    assert len(report["cuts"]) == 2 and report["final"]["macs"] <= 0.5 * report["dense"]["macs"]


@pytest.mark.slow
def test_a_run_that_trains_a_pruned_model_on_is_resumed_as_that_and_not_as_the_run_before(
    run: Run, own_folder: Path, tiny_data: Path
) -> None:
    left = interrupted(run, own_folder, "on_train_epoch_end", 1, soon(), model=tiny_yaml(own_folder))  # one cut of two
    last = own_folder / "one-cut.pt"
    shutil.copy(left.ckpt_path, last)
    again = interrupted(run, own_folder, "on_train_epoch_end", 1, PruneCallback(0), model=last, exist_ok=True)
    with pytest.raises(CheckpointError, match=r"no pruning run to continue; .* or prune=0 where"):
        run(YOLO(again.ckpt_path), PruneCallback(None), resume=True)
    trainer = run(again, PruneCallback(0), resume=True)
    widths = [{k: v.shape for k, v in load_checkpoint(file)[0].state_dict().items()} for file in (last, trainer.best)]
    assert widths[0] == widths[1] and not report_of(trainer)["cuts"]


@pytest.mark.slow
def test_a_run_is_resumed_with_the_image_size_that_it_counts_at(run: Run, own_folder: Path) -> None:
    left = interrupted(run, own_folder, "on_train_epoch_end", 1, soon(), model=tiny_yaml(own_folder))
    with pytest.raises(UnsupportedError, match=r"imgsz=96: this run counts at imgsz=64 .* a smaller batch"):
        run(left, PruneCallback(None), resume=True, imgsz=96)


@pytest.mark.slow
def test_a_run_that_was_moved_finds_its_teacher_beside_its_checkpoint(
    run: Run, own_folder: Path, tiny_data: Path
) -> None:
    model = knowing(own_folder, tiny_data)
    left = Path(interrupted(run, own_folder, "on_train_epoch_end", 2, soon(), model=model).ckpt_path)
    there = own_folder / "another machine"
    there.mkdir()
    for name in ("last.pt", "dense.pt"):
        shutil.copy(left.with_name(name), there)
    shutil.rmtree(left.parent.parent)
    alone = there / "alone"
    alone.mkdir()
    shutil.copy(there / "last.pt", alone)
    with pytest.raises(CheckpointError, match=r"needs .*dense\.pt, which is not there; put it beside last\.pt"):
        run(YOLO(alone / "last.pt"), PruneCallback(None), resume=True)
    trainer = run(YOLO(there / "last.pt"), PruneCallback(None), resume=True)
    report = report_of(trainer)
    assert trainer.args.distill_model == report["dense"]["checkpoint"] == str(there / "dense.pt")
    assert len(report["cuts"]) == 2 and report["layers"]


@pytest.mark.slow
def test_a_state_of_another_network_is_refused(run: Run, own_folder: Path) -> None:
    left = interrupted(run, own_folder, "on_train_epoch_end", 2, soon(), model=tiny_yaml(own_folder))
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
