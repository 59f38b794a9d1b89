"""The fault campaign: a short real run is killed (SIGKILL) again and again, and each time resumed to its end.

    python benchmarks/faults.py              # about 25 minutes on two idle cores; results/faults.json
    python benchmarks/faults.py --table      # print what is there

Every fault gets a folder of its own. The process kills itself at a chosen moment of ``MOMENTS`` (each stage of a cut,
each file that is written, also half-way through), or is killed from outside after a time drawn at random. What is left
is resumed as a user would, with ``PruneCallback(None)`` and ``resume=True``. The undisturbed run with the same seed
says which plans are to come out, and which weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import ENVIRONMENT, write

RESULTS = Path(__file__).parent / "results" / "faults.json"
EPOCHS = 6
RANDOM_KILLS = 12
MOMENTS: dict[str, tuple[int, ...]] = {
    "before the dense network is noted": (1,),
    "after the dense network is noted": (1,),
    "before a plan is made": (1, 2, 3),
    "after a plan is made": (1, 2),
    "after the networks are sliced": (1, 2, 3),
    "after the weights are reconstructed": (1, 4),
    "before the cut network is validated": (2,),
    "after the cut network is validated": (2,),
    "before a plan is written": (1, 3),
    "after a plan is written": (1, 3),
    "half-way through the state before a cut": (2,),
    "half-way through an exact state": (1, 2, 5, 8),
    "half-way through last.pt": (1, 2, 3, 5, 8),
    "before last.pt takes its place": (2, 6),
    "half-way through best.pt": (2, 3),
    "before the old best.pt goes": (1, 2),
    "after an epoch is saved": (1, 3, 5),
    "before the last epoch's checkpoints are stripped": (1,),
    "half-way through stripping": (1, 2),
}
"""Moment -> at which of its occurrences the process is killed; each is a fault."""


def main() -> None:
    """Run the campaign, or the part of it that this process is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/faults"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--train", metavar="NAME", help="train, as a process of the campaign")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill", nargs=2, metavar=("MOMENT", "OCCURRENCE"))
    args = parser.parse_args()
    runs = args.runs.resolve()
    if args.train:
        if args.kill:
            kill_at(args.kill[0], int(args.kill[1]))
        train(runs, args.train, args.resume)
    elif not args.table:
        campaign(runs)
    if not args.train:
        print(table())


def campaign(runs: Path) -> None:
    """Make all faults and write what became of the runs."""
    from yolo_prune.cli.demo import make_dataset

    make_dataset(runs / "data", train=16, val=8, size=64)
    started = time.time()
    child(runs, "undisturbed")
    length = time.time() - started
    expected = outcome(runs / "undisturbed")
    draw = random.Random(0)
    faults: list[tuple[str, int | float]] = [
        (moment, n) for moment, occurrences in MOMENTS.items() for n in occurrences
    ]
    faults += [("at random", round(draw.uniform(0.2, 1.0) * length, 2)) for _ in range(RANDOM_KILLS)]
    rows = []
    for i, (moment, when) in enumerate(faults):
        row = {"moment": moment, "when": when, **fault(runs, f"fault-{i}", moment, when, expected)}
        print(f"{i + 1}/{len(faults)}", row, flush=True)
        rows.append(row)
        about = {"seed": 0, "data": "16 drawn images", "epochs": EPOCHS, "imgsz": 64}
        write(RESULTS, {**about, "undisturbed": expected, "faults": rows})


def fault(runs: Path, name: str, moment: str, when: float, expected: dict[str, Any]) -> dict[str, Any]:
    """Kill a run once, bring it to its end, and compare it with the undisturbed one."""
    is_random = moment == "at random"
    code = child(runs, name, timeout=when) if is_random else child(runs, name, "--kill", moment, str(int(when)))
    left = describe(runs / name)
    if code == 0:
        return {"left": left, "ended": "before the kill", **compare(runs / name, expected)}
    if code != -signal.SIGKILL:
        raise RuntimeError(f"{name}, which was to be killed {moment}, ended with {code}")
    if left == "nothing saved":  # nothing to resume from, so the user starts anew
        ended = "started anew" if child(runs, name) == 0 else "failed"
    elif left == "complete":
        ended = "was complete"
    else:
        ended = "resumed" if child(runs, name, "--resume") == 0 else "failed"
    return {"left": left, "ended": ended, **compare(runs / name, expected)}


def child(runs: Path, name: str, *options: str, timeout: float | None = None) -> int:
    """Train in a process of its own and return its exit code; after a time it is killed."""
    command = [sys.executable, __file__, "--runs", str(runs), "--train", name, *options]
    with (runs / f"{name}.log").open("a") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def train(runs: Path, name: str, resume: bool) -> None:
    """Train as a user would: three cuts in six epochs, with a guard."""
    from ultralytics import YOLO

    from yolo_prune import PruneCallback
    from yolo_prune.cli.demo import use_private_settings

    use_private_settings(runs / "settings")
    if resume:
        model = YOLO(runs / name / "weights" / "last.pt")
        PruneCallback(None).attach(model)
        model.train(resume=True)
        return
    model = YOLO("yolov8n.yaml")
    knobs = {"steps": 3, "start": 0.2, "end": 0.7, "calibration": 4, "max_drop": 0.99, "benchmark": False}
    PruneCallback(0.5, importance="taylor", **knobs).attach(model)
    model.train(
        data=str(runs / "data" / "data.yaml"), epochs=EPOCHS, imgsz=64, batch=4, nbs=8, workers=0, optimizer="AdamW",
        plots=False, amp=False, close_mosaic=2, seed=0, project=str(runs), name=name, exist_ok=True,
    )  # fmt: skip


def kill_at(moment: str, occurrence: int) -> None:
    """Let this process kill itself when something happens for the nth time."""
    import torch
    from ultralytics.engine.trainer import BaseTrainer

    from yolo_prune.host import trainer as host
    from yolo_prune.plan import PrunePlan
    from yolo_prune.training import exact_state as state
    from yolo_prune.training import run_files, snapshot, steps
    from yolo_prune.utils import files

    left = occurrence

    def happened() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, when: str, which: Callable[..., bool] = lambda *_, **__: True) -> None:
        stock = getattr(owner, name)

        def function(*args: Any, **kwargs: Any) -> Any:
            if when == "before" and which(*args):
                happened()
            result = stock(*args, **kwargs)
            if when == "after" and which(*args):
                happened()
            return result

        setattr(owner, name, function)

    def half_way(owner: Any, name: str, file: Callable[[Any], bool]) -> None:
        """Write half of a file before the end."""
        stock = getattr(owner, name)

        def function(*args: Any, **kwargs: Any) -> Any:
            path = next((Path(a) for a in args if isinstance(a, (str, Path))), None)
            if path is None or not file(path):
                return stock(*args, **kwargs)
            if left == 1:
                stock(*args, **kwargs)
                os.truncate(path, path.stat().st_size // 2)
            happened()
            return stock(*args, **kwargs)

        setattr(owner, name, function)

    def is_part(start: str) -> Callable[[Path], bool]:
        return lambda path: path.name.startswith(start) and path.name.endswith(".part")

    at: dict[str, Callable[[], None]] = {
        "before the dense network is noted": lambda: around(steps, "note_dense", "before"),
        "after the dense network is noted": lambda: around(steps, "note_dense", "after"),
        "before a plan is made": lambda: around(steps, "plan_traced", "before"),
        "after a plan is made": lambda: around(steps, "plan_traced", "after"),
        "after the networks are sliced": lambda: around(steps, "cut", "after"),
        "after the weights are reconstructed": lambda: around(steps, "reconstruct", "after"),
        "before the cut network is validated": lambda: around(steps, "validate", "before"),
        "after the cut network is validated": lambda: around(steps, "validate", "after"),
        "before a plan is written": lambda: around(PrunePlan, "save", "before"),
        "after a plan is written": lambda: around(PrunePlan, "save", "after"),
        "half-way through the state before a cut": lambda: half_way(snapshot.torch, "save", is_part("before-cut")),
        "half-way through an exact state": lambda: half_way(state.torch, "save", is_part("state-")),
        "half-way through last.pt": lambda: half_way(Path, "write_bytes", is_part("last.pt")),
        "before last.pt takes its place": lambda: around(
            files.os, "replace", "before", lambda _, path: Path(path).name == "last.pt"
        ),
        "half-way through best.pt": lambda: half_way(Path, "write_bytes", is_part("best.pt")),
        "before the old best.pt goes": lambda: around(Path, "unlink", "before", lambda path: path.name == "best.pt"),
        "after an epoch is saved": lambda: around(run_files, "save_epoch", "after"),
        "before the last epoch's checkpoints are stripped": lambda: around(BaseTrainer, "final_eval", "before"),
        "half-way through stripping": lambda: half_way(
            torch, "save", lambda path: path.name in ("last.pt.part", "best.pt.part")
        ),
    }
    assert at.keys() == MOMENTS.keys() and host
    at[moment]()


def describe(folder: Path) -> str:
    """Return what a killed run has left: nothing saved, something to resume, or all that it was to make."""
    from ultralytics.nn.tasks import torch_safe_load

    last = folder / "weights" / "last.pt"
    if not last.exists():
        return "nothing saved"
    epoch = torch_safe_load(last)[0]["epoch"]  # whole, or this raises
    return "complete" if epoch in (-1, EPOCHS - 1) else f"epoch {epoch}"


def outcome(folder: Path) -> dict[str, Any]:
    """Return the plans of a run, and the multiply-adds and a digest of its best model."""
    from ultralytics.nn.tasks import load_checkpoint

    from yolo_prune.cost.model import CostModel
    from yolo_prune.graph.trace import trace
    from yolo_prune.host.ddp import digest

    report = json.loads((folder / "pruning" / "report.json").read_text())
    plans = [json.loads(file.read_text()) for file in sorted((folder / "pruning").glob("plan-*.json"))]
    network = load_checkpoint(folder / "weights" / "best.pt")[0]
    return {
        "plans": [c["plan_sha256"] for c in report["cuts"]],
        "plan_files": [hashlib.sha256(json.dumps(plan).encode()).hexdigest() for plan in plans],
        "macs": CostModel(trace(network, 64)).macs(),
        "weights": digest(network.half()),
    }


def compare(folder: Path, expected: dict[str, Any]) -> dict[str, bool]:
    """Return in what a run that was killed ended as the undisturbed one."""
    found = outcome(folder)
    return {f"same_{name}": found[name] == expected[name] for name in expected}


def table() -> str:
    """Return the results as a Markdown table: faults by what was left, and in what they ended alike."""
    if not RESULTS.exists():
        return "no results yet"
    rows = json.loads(RESULTS.read_text())["faults"]
    lines = ["| ended | faults | same plans | same MACs | same weights |", "| --- | --- | --- | --- | --- |"]
    for ended in dict.fromkeys(row["ended"] for row in rows):
        of = [row for row in rows if row["ended"] == ended]
        counts = (len(of), *(sum(row[f"same_{what}"] for row in of) for what in ("plans", "macs", "weights")))
        lines.append(f"| {ended} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
