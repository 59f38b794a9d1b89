"""One process of a distributed training on CPUs, started by ``torch.distributed.run`` (see `test_ranks`).

Ultralytics trains on several GPUs only. Three stand-ins make it do so on CPUs: the backend is gloo,
DistributedDataParallel gets no device, and the final validation, which looks for a GPU, is that of rank 0 alone.
Everything else is the host's.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed, nn
from trainings import Interrupted, soon
from ultralytics import YOLO
from ultralytics.engine import validator
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import unwrap_model

from yolo_prune import PruneCallback
from yolo_prune.callback import telling_all
from yolo_prune.host import ddp as ranks


class CpuParallel(nn.parallel.DistributedDataParallel):
    """Takes no device."""

    def __init__(self, module: nn.Module, device_ids: Any = None, **settings: Any) -> None:
        super().__init__(module, **settings)


class GlooTrainer(DetectionTrainer):
    """Trains in as many processes as there are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world_size = 2

    def _setup_ddp(self) -> None:
        file = self.save_dir.parent / f"{self.save_dir.name}-{self.start_epoch}-{bool(self.resume)}.store"
        distributed.init_process_group("gloo", f"file://{file}", rank=RANK, world_size=self.world_size)

    def final_eval(self) -> None:
        distributed.destroy_process_group()
        if not RANK:
            file = self.save_dir / "alone.store"
            distributed.init_process_group("gloo", f"file://{file}", rank=0, world_size=1)
            with mock.patch.object(validator, "RANK", -1):
                super().final_eval()


def main(jobs: list[dict[str, Any]], data: str, folder: Path) -> None:
    """Train once per job, and write what this rank saw after each cut."""
    nn.parallel.DistributedDataParallel = CpuParallel
    seen = []
    for job in jobs:
        seen.append(train(job, data, folder))
        if distributed.is_initialized():  # a run that was lost
            distributed.destroy_process_group()
    (folder / f"rank{RANK}.json").write_text(json.dumps(seen))


def train(job: dict[str, Any], data: str, folder: Path) -> list[Any]:
    """Train a job and return (plan, digests of model and EMA) after each cut, and the last digests."""
    seen: list[Any] = []

    def look(trainer: Any) -> None:
        cuts = callback._session.run.report.cuts
        plan = cuts[-1].plan_sha256 if cuts else ""
        wrapper = type(trainer.model).__name__
        seen.append(
            [trainer.epoch, plan, wrapper, ranks.digest(unwrap_model(trainer.model)), ranks.digest(trainer.ema.ema)]
        )

    def stop(trainer: Any) -> None:
        if trainer.epoch == job.get("lost"):
            raise Interrupted

    resumes = job.get("resume", False)
    callback = PruneCallback(None) if resumes else soon(**job.get("knobs", {}))
    model = YOLO(job["model"])
    callback.attach(model)
    model.add_callback("on_train_epoch_start", look)
    model.add_callback("on_train_epoch_end", stop)
    settings = {"epochs": 4, "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "exist_ok": True}
    settings |= {"data": data, "project": str(folder / "runs"), "name": job["name"], **job.get("arguments", {})}
    with suppress(Interrupted):
        model.train(trainer=telling_all(GlooTrainer), resume=resumes, **settings)
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
