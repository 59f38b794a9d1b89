"""What pruning costs in time and memory: cuts, reconstruction, gradients, the hooks between cuts, exact checkpoints.

    python benchmarks/overhead.py

Times, on random weights at 640 px, one plan by weights alone (trace, score, choose) and one cut (model, EMA and AdamW
state) of yolo11n and yolo11x; the hooks that run in every epoch and batch without a cut; on 64 noise images of 224 px,
what data adds to a cut of yolov8n with default settings; and gradient collection as a share of an optimizer step's
batches. Then yolov8n is trained for four epochs on 64 drawn images of 224 px in processes of their own, stock and with
two cuts: the peak of their memory, and what saving the exact state takes of an epoch. Writes ``results/overhead.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from training import ENVIRONMENT, write
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from yolo_prune.cli.demo import make_dataset
from yolo_prune.config.choices import DATA_FREE
from yolo_prune.config.settings import PruneConfig
from yolo_prune.importance.gradients import Gradients
from yolo_prune.planning.calibration import CalibrationData
from yolo_prune.planning.planner import plan_cut
from yolo_prune.surgery.reconstruction import reconstruct
from yolo_prune.surgery.slicing import cut
from yolo_prune.training.progress import Progress
from yolo_prune.training.run import Run
from yolo_prune.training.session import Session
from yolo_prune.utils.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "overhead.json"
REPEATS = 3


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(os.cpu_count() or 1)
    trained = runs()  # first: a process that is started counts the memory of this one as its own
    results: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "seconds": {name: plan_and_cut(name) for name in ("yolo11n", "yolo11x")},
        "hooks_per_epoch_seconds": hooks(),
        "data_seconds": on_data(),
        "gradient_collection": gradient_collection(),
        **trained,
    }
    write(RESULTS, results)
    print(json.dumps(results, indent=1))


def plan_and_cut(name: str) -> dict[str, float]:
    """Return the median seconds of a plan and of a cut; the first, cold round is left out."""
    dense = DetectionModel(f"{name}.yaml", verbose=False)
    plans, cuts = [], []
    for _ in range(REPEATS + 1):
        model = deepcopy(dense)
        ema = deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters())
        for p in model.parameters():
            optimizer.state[p] = {"step": torch.ones(()), "exp_avg": p.data * 0, "exp_avg_sq": p.data * 0}
        seconds, plan = timed(lambda model=model: plan_cut(model, PruneConfig(target=0.5, **DATA_FREE), 640))
        plans.append(seconds)
        cuts.append(timed(lambda m=model, e=ema, o=optimizer, p=plan: cut(p, [m, e], o))[0])
    median = {"plan": statistics.median(plans[1:]), "cut": statistics.median(cuts[1:])}
    return {k: round(v, 3) for k, v in (*median.items(), ("total", sum(median.values())))}


def hooks() -> float:
    """Return the seconds that the hooks of one epoch take when no cut is due."""
    session = Session.__new__(Session)  # a session in the middle of a run, without the run
    report: Any = SimpleNamespace(cuts=[SimpleNamespace(fitness_recovered=None)], quantization=None)
    trainer: Any = SimpleNamespace(
        epoch=3, epochs=10, best_fitness=0.5, stop=False, args=SimpleNamespace(time=None),
        stopper=SimpleNamespace(best_epoch=3, patience=100),
    )  # fmt: skip
    steps: Any = None
    session.run = Run(trainer, Progress(PruneConfig(), report, epochs=10), RunFolder(Path()), steps)
    rounds = 10_000

    def epochs() -> None:
        for _ in range(rounds):
            session.before_epoch()
            session.after_epoch()

    return timed(epochs)[0] / rounds


def noise(images: int) -> dict[str, torch.Tensor]:
    """Return a batch of noise at 224 px with a made-up box in each image."""
    return {
        "img": torch.rand(images, 3, 224, 224),
        "cls": torch.zeros(images, 1),
        "bboxes": torch.full((images, 4), 0.5),
        "batch_idx": torch.arange(images).float(),
    }


def on_data() -> dict[str, float]:
    """Return the seconds that each use of data takes at a cut of yolov8n; a run reconstructs model and EMA."""
    model = DetectionModel("yolov8n.yaml", verbose=False)
    model.args = get_cfg()
    batches = [noise(16) for _ in range(4)]
    data = CalibrationData(model, batches)
    plan_seconds, plan = timed(lambda: plan_cut(model, PruneConfig(target=0.5), 224, data))
    dense, done = data.statistics, cut(plan, [model])
    solved, _ = timed(lambda: reconstruct(done, model, plan, dense, data.images))
    return {"plan": round(plan_seconds, 2), "reconstruction": round(solved, 2)}


def gradient_collection() -> dict[str, float]:
    """Return the seconds of a batch of 16 (forward, backward, step) of yolov8n, and of collecting its gradients."""
    model = DetectionModel("yolov8n.yaml", verbose=False).train()
    model.args = get_cfg()
    optimizer, collected, batch = torch.optim.AdamW(model.parameters()), Gradients(), noise(16)

    def step() -> None:
        model(batch)[0].sum().backward()
        optimizer.step()

    step()
    collected.add(model.parameters())
    seconds = statistics.median(timed(step)[0] for _ in range(5))
    collecting = statistics.median(timed(lambda: collected.add(model.parameters()))[0] for _ in range(20))
    return {"batch": round(seconds, 3), "collecting": round(collecting, 4), "share": round(collecting / seconds, 4)}


def runs() -> dict[str, Any]:
    """Return the peak memory of a stock run and of a pruned one, and the seconds of an epoch and of an exact state."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder) / "data", train=64, val=16, size=224)
        for name in ("stock", "pruned"):
            file = Path(folder) / f"{name}.json"
            command = [sys.executable, __file__, "--train", name, folder, str(file)]
            _, code, usage = os.wait4(subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL).pid, 0)
            if code:
                raise RuntimeError(f"the {name} run ended with {code}")
            found[name] = {"peak_bytes": usage.ru_maxrss * 1024, **json.loads(file.read_text())}
    peaks = {name: run.pop("peak_bytes") for name, run in found.items()}
    ratio = round(peaks["pruned"] / peaks["stock"], 3)
    return {"memory": {**peaks, "ratio": ratio}, "exact_state": found["pruned"]}


def train(name: str, folder: Path, file: Path) -> None:
    """Train in this process, and write the seconds of an epoch, and of saving the exact state."""
    from ultralytics import YOLO

    from yolo_prune import PruneCallback
    from yolo_prune.cli.demo import use_private_settings
    from yolo_prune.training import exact_state as state

    use_private_settings(folder / "settings")
    spent: list[float] = []
    save = state.save

    def timed_save(*args: Any) -> None:
        spent.append(timed(lambda: save(*args))[0])

    state.save = timed_save
    model = YOLO("yolov8n.yaml")
    if name == "pruned":
        PruneCallback(0.5, steps=2, start=0.25, end=0.5, benchmark=False).attach(model)
    started = time.perf_counter()
    data = str(folder / "data" / "data.yaml")
    model.train(data=data, epochs=4, imgsz=224, batch=16, workers=0, plots=False, amp=False, project=str(folder / name))
    epoch = (time.perf_counter() - started) / 4
    state_seconds = round(statistics.median(spent), 3) if spent else None
    file.write_text(json.dumps({"epoch_seconds": round(epoch, 2), "save_seconds": state_seconds}))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return (seconds, result)."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
