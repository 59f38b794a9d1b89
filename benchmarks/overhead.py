"""What pruning costs in time: planning and cutting, and the hooks between cuts.

    python benchmarks/overhead.py

Times, on random weights at 640 px, one plan (trace, score, choose) and one cut (model, EMA and AdamW state) of yolo11n
and yolo11x, and the hooks that run in every epoch and batch without a cut. Writes ``results/overhead.json``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ultralytics.nn.tasks import DetectionModel

from yolo_prune.config import PruneConfig
from yolo_prune.planner import plan_cut
from yolo_prune.session import Session
from yolo_prune.surgery import cut

RESULTS = Path(__file__).parent / "results" / "overhead.json"
REPEATS = 3


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(os.cpu_count() or 1)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "seconds": {name: plan_and_cut(name) for name in ("yolo11n", "yolo11x")},
        "hooks_per_epoch_seconds": hooks(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
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
        seconds, plan = timed(lambda model=model: plan_cut(model, PruneConfig(target=0.5), 640))
        plans.append(seconds)
        cuts.append(timed(lambda m=model, e=ema, o=optimizer, p=plan: cut(p, [m, e], o))[0])
    median = {"plan": statistics.median(plans[1:]), "cut": statistics.median(cuts[1:])}
    return {k: round(v, 3) for k, v in (*median.items(), ("total", sum(median.values())))}


def hooks() -> float:
    """Return the seconds that the hooks of one epoch take when no cut is due."""
    session = Session.__new__(Session)  # a session in the middle of a run, without the run
    session.schedule = []
    session.report = SimpleNamespace(cuts=[SimpleNamespace(fitness_recovered=None)])  # type: ignore[assignment]
    trainer = SimpleNamespace(epoch=3, best_fitness=0.5, stop=False)
    rounds = 10_000

    def epochs() -> None:
        for _ in range(rounds):
            session.before_epoch(trainer)
            session.after_epoch(trainer)

    return timed(epochs)[0] / rounds


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return (seconds, result)."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
