"""The exact state of a run: killed, resumed, and the same in the end, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nets import assert_same_tensors, narrow_yaml
from runs import Interrupted, Run, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback


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
    "sparsity": ({"optimizer": "SGD", "nbs": 4}, {"sparsity": "growing", "sparsity_strength": 0.01}),
    "two optimizers in one": ({"optimizer": "MuSGD", "nbs": 4, "close_mosaic": 2}, {"lr_after_cut": "rewarm"}),
    "guard": ({"nbs": 4, "optimizer": "AdamW"}, {"max_drop": 0.99}),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("when", "epoch"), [("on_fit_epoch_end", 0), ("on_train_epoch_end", 2)])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    run: Run, own_folder: Path, name: str, when: str, epoch: int
) -> None:
    from nets import narrow_yaml

    arguments, knobs = RUNS[name]
    undisturbed = run(prune=soon(**knobs), name="undisturbed", **arguments)
    model = narrow_yaml("yolov8n", own_folder)
    left = interrupted(run, own_folder, when, epoch, soon(**knobs), model=model, **arguments)
    resumed = run(left, PruneCallback(None), resume=True)
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
