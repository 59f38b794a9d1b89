"""Small acts on a trainer: what is saved is whole, or not there."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.engine import trainer as engine

from yolo_prune.host import trainer as host


class Trainer:
    """Saves as Ultralytics does, in place."""

    def __init__(self, folder: Path, is_best: bool = True) -> None:
        self.last, self.best, self.is_best, self.fails = folder / "last.pt", folder / "best.pt", is_best, False

    def save_model(self) -> bool:
        self.last.write_text("new last")
        if self.fails:
            raise OSError(28, "No space left on device")
        if self.is_best:
            self.best.write_text("new best")
        return True

    def final_eval(self) -> None:
        engine.strip_optimizer(self.last)


@pytest.fixture
def trainer(own_folder: Path) -> Trainer:
    (own_folder / "last.pt").write_text("old last")
    (own_folder / "best.pt").write_text("old best")
    return Trainer(own_folder)


def test_an_epoch_is_saved_beside_the_old_files_first(trainer: Trainer, own_folder: Path) -> None:
    assert host.save_epoch(trainer)
    assert (trainer.last.read_text(), trainer.best.read_text()) == ("new last", "new best")
    assert sorted(file.name for file in own_folder.iterdir()) == ["best.pt", "last.pt"]


def test_an_epoch_that_is_not_the_best_leaves_the_best(trainer: Trainer) -> None:
    trainer.is_best = False
    trainer.best.with_name("best.pt.part").write_text("of a run that was killed")
    host.save_epoch(trainer)
    assert (trainer.last.read_text(), trainer.best.read_text()) == ("new last", "old best")


def test_a_full_disk_leaves_the_old_checkpoints(trainer: Trainer, own_folder: Path) -> None:
    trainer.fails = True
    with pytest.raises(OSError, match="No space left"):
        host.save_epoch(trainer)
    assert (trainer.last.read_text(), trainer.best.read_text()) == ("old last", "old best")
    assert trainer.last == own_folder / "last.pt"


def test_stripping_that_fails_leaves_the_checkpoint(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def strip(file: Any, s: str = "", updates: Any = None) -> None:
        Path(s or file).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "strip_optimizer", strip)
    with pytest.raises(OSError, match="No space left"):
        host.evaluate_finally(trainer)
    assert trainer.last.read_text() == "old last"
    assert engine.strip_optimizer is strip


def test_a_resumed_run_forgets_the_rows_that_it_writes_again(own_folder: Path) -> None:
    csv = own_folder / "results.csv"
    csv.write_text("epoch,time,a\n1,3.5,0.1\n2,7,0.2\n3,10,0.3\n4,1")
    host.forget_later_results(SimpleNamespace(csv=csv, start_epoch=2))
    assert csv.read_text() == "epoch,time,a\n1,3.5,0.1\n2,7,0.2\n"
    csv.unlink()
    host.forget_later_results(SimpleNamespace(csv=csv, start_epoch=2))
    assert not csv.exists()


def test_randomness_comes_back_from_plain_data() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()]

    draw()
    states = host.Randomness()
    first = draw()
    again = host.Randomness.from_dict(states.to_dict())
    draw()
    again.put_back()
    assert draw() == first
