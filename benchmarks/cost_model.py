"""Whether the cost model is exact and fast, and how long `yolo-prune plan` takes.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --timings   # measure only times anew, on a machine that does nothing else
    python benchmarks/cost_model.py --table     # only print the table

* exact: the smallest scale of every model YAML is cut to random widths, several times; MACs, parameters and bytes of
  the network that is then there, counted by torch, against those that were predicted without building it;
* fast: evaluations of yolo11x per second, in one thread;
* plan: ``yolo-prune plan model=yolo11x.yaml prune=0.5`` as a command, imports and random weights included.

Writes ``benchmarks/results/cost_model.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cost_model.json"
IMGSZ = 192
"""Image size in pixels at which networks are traced and counted; a multiple of what every head needs."""
PLANS = 3
REPEATS = 3
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
COMMAND = ("plan", "model=yolo11x.yaml", "prune=0.5")


def main() -> None:
    """Measure what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of YAMLs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--timings", action="store_true", help="keep what is known to be exact")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--speed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.speed:
        print(json.dumps(speed()))
        return
    if not args.table:
        from yolo_prune.host.zoo import model_yamls, scaled

        result = {
            "versions": {package: version(package) for package in ("ultralytics", "torch", "numpy")},
            "cores": os.cpu_count(),
            "load_before": round(os.getloadavg()[0], 1),
            "plan_command": plan_command(),
            "evaluations_per_second": in_one_thread(),
        }
        if args.timings:
            result = json.loads(args.output.read_text(encoding="utf-8")) | result
        else:
            names = [scaled(path)[0] for path in model_yamls() if any(part in path.name for part in args.only)]
            models = [exactness(name) for name in names]
            result |= {"imgsz": IMGSZ, "plans_per_model": PLANS, "models": models}
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(args.output.read_text(encoding="utf-8"))))


def plan_command() -> dict[str, float]:
    """Return the median seconds of the command on the wall and of all CPUs."""
    walls, cpus = [], []
    for _ in range(REPEATS):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "yolo_prune", *COMMAND], check=True, capture_output=True)
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_seconds": round(statistics.median(walls), 2), "cpu_seconds": round(statistics.median(cpus), 2)}


def in_one_thread() -> dict[str, int]:
    """Return what `speed` does in a process whose libraries have one thread."""
    done = subprocess.run(
        [sys.executable, __file__, "--speed"], env=os.environ | ONE_THREAD, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def speed() -> dict[str, int]:
    """Return how many random widths of yolo11x are evaluated per second."""
    import numpy as np

    from yolo_prune.cost.model import CostModel
    from yolo_prune.graph.trace import trace
    from yolo_prune.host.zoo import build_model

    cost, draw = CostModel(trace(build_model(Path("yolo11x.yaml")).model)), np.random.default_rng(0)
    many = [draw.integers(1, cost.widths + 1) for _ in range(2000)]

    def per_second(*amounts: Any) -> int:
        rates = []
        for _ in range(REPEATS):
            started = time.process_time()
            for kept in many:
                for amount in amounts:
                    amount(kept)
            rates.append(len(many) / (time.process_time() - started))
        return round(statistics.median(rates))

    return {"macs": per_second(cost.macs), "macs, params and bytes": per_second(cost.macs, cost.params, cost.bytes)}


def exactness(name: Path) -> dict[str, Any]:
    """Return, per quantity, the largest difference between prediction and count of networks cut to random widths."""
    import numpy as np
    import torch
    from ultralytics.utils import LOGGER

    from yolo_prune.cost.model import CostModel
    from yolo_prune.graph.trace import trace
    from yolo_prune.host.zoo import build_model
    from yolo_prune.planning.allocation import plan_of, units_of

    LOGGER.setLevel("ERROR")
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    dense = build_model(name).model
    graph = trace(dense, IMGSZ)
    cost = CostModel(graph)
    differences = dict.fromkeys(("macs", "params", "bytes"), 0)
    for _ in range(PLANS):
        steps = [b.steps if b.locked else int(draw.integers(1, b.steps + 1)) for b in graph.bundles]
        plan = plan_of(graph, steps, [draw.permutation(group.width) for group in graph.groups])
        network = deepcopy(dense)
        plan.apply(network)
        for quantity, counted in counts(network).items():
            off = abs(int(cost.amount(quantity, units_of(graph, plan))) - counted)
            differences[quantity] = max(differences[quantity], off)
    print(name.stem, differences, file=sys.stderr, flush=True)
    return {"model": name.stem, "differences": differences}


def counts(network: Any) -> dict[str, int]:
    """Count a network that is there: torch's own counter on it fused, its parameters, its tensors in half precision."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deepcopy(network).eval().fuse(verbose=False)(torch.zeros(1, 3, IMGSZ, IMGSZ))
    half = deepcopy(network).half()
    return {
        "macs": counter.get_total_flops() // 2,
        "params": sum(p.numel() for p in network.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in (*half.parameters(), *half.buffers())),
    }


def table(result: dict[str, Any]) -> str:
    """Return the table of the documentation."""
    rates, plan = result["evaluations_per_second"], result["plan_command"]
    exact = sum(not any(row["differences"].values()) for row in result["models"])
    lines = [
        "| cost model | |",
        "|---|---|",
        f"| models whose MACs, parameters and bytes are predicted exactly | {exact} of {len(result['models'])} |",
        f"| yolo11x, MACs of a set of widths | {rates['macs']:,} per second |",
        f"| yolo11x, MACs, parameters and bytes | {rates['macs, params and bytes']:,} per second |",
        f"| `yolo-prune {' '.join(COMMAND)}` | {plan['wall_seconds']:.1f} s, {plan['cpu_seconds']:.1f} s of CPU |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
