"""Speed: how much of a cut in multiply-adds arrives in the runtime, and how exactly a latency target is met.

    python benchmarks/accuracy.py --only -s0-start     # the dense models that it starts from
    python benchmarks/speed.py --shared ../shared      # about two hours on two idle cores
    python benchmarks/speed.py --table                 # print the tables of what is there

yolov8n and yolo11n, fine-tuned on bccd, are cut once, without training, in the ways of ``CUTS``. Then dense and cut are
timed in turns in one process with all threads, at 320 and 640 px, in ONNX Runtime, OpenVINO and PyTorch (``bench``).
The error of the latency prediction is taken from random plans. Cuts for a latency and cuts for MACs are also trained
on, equally long, to compare what they have recovered at the same speed.

A shared machine is slower for minutes when its neighbours are busy, and memory more so than arithmetic, which changes
speed-ups. The dense network tells: what was timed while it took longer than at its best is timed, or cut, once more.
What is there already, and was not disturbed, is not made again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from accuracy import TRAIN, Case
from training import ENVIRONMENT, data_of, parser_of, train, write

if TYPE_CHECKING:
    from torch import nn

    from yolo_prune.graph.groups import ChannelGraph

RESULTS = Path(__file__).parent / "results" / "speed"
MODELS = ("yolov8n", "yolo11n")
RUNTIMES = ("onnx", "openvino", "pytorch")
SIZES = (320, 640)
RANDOM_PLANS = 20
ROUNDS = 40
"""Times that each network runs at 640 px; at smaller sizes as much more often as it takes less."""
DISTURBED = 1.1
"""Times as long as at its best that the dense network takes when something else keeps the machine busy."""
BUSY = "something else keeps this machine busy"
"""What a cut for a latency warns of then."""
TRIES = 2
"""Times that what was disturbed is made, at most."""
CUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "30 % fewer MACs": (224, ("prune=0.3",)),
    "50 % fewer MACs": (224, ("prune=0.5",)),
    "70 % fewer MACs": (224, ("prune=0.7",)),
    "80 % fewer MACs": (224, ("prune=0.8",)),
    "50 %, any width": (224, ("prune=0.5", "prune_round_to=1")),
    "50 %, multiples of 4": (224, ("prune=0.5", "prune_round_to=4")),
    "50 %, multiples of 16": (224, ("prune=0.5", "prune_round_to=16")),
    "50 %, same share everywhere": (224, ("prune=0.5", "prune_allocation=uniform")),
    **{
        f"{target} in {runtime} at {imgsz} px": (
            imgsz,
            (f"prune={target}", f"prune_runtime={runtime}", "prune_calibration=16"),
        )
        for runtime, imgsz in (("onnx", 320), ("onnx", 640), ("openvino", 640))
        for target in ("1.5x", "2x")
    },
    **{f"{target} in onnx at 224 px": (224, (f"prune={target}",)) for target in ("1.5x", "1.75x", "2x")},
}
"""Name -> image size of the cut and its arguments. Latency targets are met at the size that they are planned for."""
FOR_MACS = tuple(name for name in CUTS if "x in " not in name)
PLAIN = tuple(name for name in FOR_MACS if name.endswith("fewer MACs"))
"""Those for MACs, and those of them with nothing else changed."""
FOR_LATENCY = {imgsz: tuple(name for name in CUTS if name.endswith(f"at {imgsz} px")) for imgsz in (224, *SIZES)}
"""Image size -> those for a latency there."""
ABOUT = {"seed": 0, "data": "bccd"}
"""What all results have in common."""
PARTS = ("macs", "latency", "prediction", "multiples", "recovery")
"""Of the measurement: cuts for a target in MACs, cuts for a latency; random plans, predicted or of some widths; and
cuts that are trained on."""
MULTIPLES, PLANS_PER_MULTIPLE = (8, 16, 32), 4


def main() -> None:
    """Make what is missing and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    if not args.table:
        RESULTS.mkdir(parents=True, exist_ok=True)
        data = str(data_of(args.shared))
        for case, part in product((Case(model, "bccd") for model in MODELS), args.parts):
            if part == "prediction":
                measure_prediction(case, args.runs.resolve())
            elif part == "multiples":
                measure_multiples(case, args.runs.resolve())
            elif part == "recovery":
                measure_recovery(case, args.shared.resolve(), args.runs.resolve())
            else:
                measure(case, part, data, args.runs.resolve())
    print(
        speed_table(), target_table(), width_table(), equal_speed_table(), multiple_table(), error_table(), sep="\n\n"
    )


def folder_of(case: Case, name: str, runs: Path) -> Path:
    """Return where a cut lies."""
    return runs / f"{case}-speed" / name.replace(" ", "-").replace("%", "percent")


def cut(case: Case, name: str, data: str, runs: Path) -> tuple[Path, str]:
    """Return the checkpoint of a cut, which is made if it is not there, and why it was refused, if it was."""
    imgsz, knobs = CUTS[name]
    folder = folder_of(case, name, runs)
    best, refusal = folder / "weights" / "best.pt", folder / "refused.txt"
    if not best.exists() and not refusal.exists():
        what = (
            f"model={case.start(runs)}",
            f"data={data}",
            f"imgsz={imgsz}",
            *knobs,
            "workers=0",
            "prune_benchmark=False",
        )
        where = (f"project={folder.parent}", f"name={folder.name}", "exist_ok=True")
        command = [Path(sys.executable).with_name("yolo-prune"), "prune", *what, *where]
        done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        folder.mkdir(parents=True, exist_ok=True)
        log_of(folder).write_text(done.stdout)
        if done.returncode:
            refusal.write_text(done.stdout.strip().splitlines()[-1] + "\n")
    return best, refusal.read_text().strip() if refusal.exists() else ""


def cut_calmly(case: Case, name: str, data: str, runs: Path) -> tuple[Path, str]:
    """Return the same; what was planned for a latency while the machine was busy is made again."""
    folder = folder_of(case, name, runs)
    for _ in range(TRIES - 1):
        made = cut(case, name, data, runs)
        if not log_of(folder).exists() or BUSY not in log_of(folder).read_text():
            return made
        shutil.rmtree(folder)
    return cut(case, name, data, runs)


def log_of(folder: Path) -> Path:
    """Return the file that keeps what a cut printed."""
    return folder / "log.txt"


def speed_at_once(folder: Path) -> float | None:
    """Return the speed-up that a cut for a latency measured itself, as soon as it was made; None of others."""
    file = folder / "pruning" / "report.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    dense, final = (report.get(stage, {}).get("latency") for stage in ("dense", "final"))
    return dense / final if dense and final else None


def is_disturbed(known: Mapping[str, Any], case: Case) -> bool:
    """Return whether the dense network took longer than it does at its best."""
    files = [json.loads(file.read_text()) for file in RESULTS.glob(f"{case.model}-{known['imgsz']}-*.json")]
    return any(
        seconds > DISTURBED * min(dict(dense_times(found["rows"])).get(runtime, seconds) for found in files)
        for runtime, seconds in dense_times(known["rows"])
    )


def dense_times(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield each runtime and the lower quartile of the times of the dense network in it."""
    for row in rows:
        if row["cut"] == "dense":
            yield row["runtime"], row["seconds"][0]


def measure(case: Case, part: str, data: str, runs: Path) -> None:
    """Time dense and cut networks, in turns for each runtime and size; at 224 px, their training's, also judge them."""
    by_size = FOR_LATENCY if part == "latency" else dict.fromkeys(FOR_LATENCY, FOR_MACS)
    made = {name: cut_calmly(case, name, data, runs) for name in dict.fromkeys(chain(*by_size.values(), PLAIN))}
    files = {name: best for name, (best, refusal) in made.items() if not refusal}
    for imgsz, here in by_size.items():
        file = RESULTS / f"{case.model}-{imgsz}-{part}.json"
        if part == "latency" and imgsz not in SIZES:
            here = (*here, *PLAIN)  # to compare them in one run
        subjects = {"dense": case.start(runs)} | {name: files[name] for name in here if name in files}
        how = {"runtimes": RUNTIMES} if imgsz in SIZES else {"runtimes": ("onnx",), "data": data}
        refused = {name: made[name][1] for name in here if name not in files}
        at_once = {name: speed_at_once(folder_of(case, name, runs)) for name in here}
        for _ in range(TRIES):
            is_newer = file.exists() and file.stat().st_mtime > max(f.stat().st_mtime for f in subjects.values())
            known = json.loads(file.read_text()) if is_newer else None
            if known and not is_disturbed(known, case):
                break
            found = passed(subjects, imgsz, how)
            write(file, {**ABOUT, **calmest(found, known or found), "refused": refused, "at_once": at_once})


def passed(subjects: Mapping[str, Path], imgsz: int, how: Mapping[str, Any]) -> dict[str, Any]:
    """Time networks once."""
    from yolo_prune.deploy.bench import bench

    found = bench(list(subjects.values()), imgsz=imgsz, scales=False, rounds=ROUNDS * SIZES[-1] ** 2 // imgsz**2, **how)
    rows = [
        {"cut": name, "runtime": row.runtime, "macs": row.macs, "params": row.params}
        | {"seconds": row.seconds, "speedup": row.speedup, "fitness": row.fitness}
        for row, name in zip(found.rows, [*subjects] * len(found.where), strict=True)
    ]
    return {"imgsz": imgsz, "rounds": found.rounds, "where": found.where, "rows": rows}


def calmest(found: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was found, with the rows of that pass, for each runtime, in which the dense network took less."""
    new, old = dict(dense_times(found["rows"])), dict(dense_times(known["rows"]))
    rows = [
        row
        for runtime, seconds in new.items()
        for row in (found if seconds <= old.get(runtime, seconds) else known)["rows"]
        if row["runtime"] == runtime
    ]
    return {**found, "rows": rows}


def measure_prediction(case: Case, runs: Path) -> None:
    """Compare predictions with measurements."""
    file = RESULTS / f"{case.model}-prediction.json"
    if not file.exists():
        dense = case.start(runs)
        write(file, {**ABOUT, "imgsz": SIZES[0], "errors": {runtime: errors(dense, runtime) for runtime in RUNTIMES}})


def measure_multiples(case: Case, runs: Path) -> None:
    """Time networks of half of the multiply-adds, of random widths: multiples or whole fractions of a number."""
    from yolo_prune.deploy.samples import cut_networks, random_plan

    file = RESULTS / f"{case.model}-multiples.json"
    if file.exists():
        return
    dense, graph = traced(case.start(runs))
    plans = [random_plan(graph, 0.5, m, 200 + seed) for m, seed in product(MULTIPLES, range(PLANS_PER_MULTIPLE))]
    networks = [dense, *cut_networks(dense, plans)]
    seconds = {runtime: seconds_of(networks, runtime) for runtime in RUNTIMES}
    speedups = {
        runtime: {
            multiple: [of[0] / s for s in of[1 + PLANS_PER_MULTIPLE * i :][:PLANS_PER_MULTIPLE]]
            for i, multiple in enumerate(MULTIPLES)
        }
        for runtime, of in seconds.items()
    }
    write(file, {**ABOUT, "imgsz": SIZES[0], "speedups": speedups})


def measure_recovery(case: Case, shared: Path, runs: Path) -> None:
    """Train on what was cut at 224 px, for a latency or for MACs; runs that are there are not made again."""
    file = RESULTS / f"{case.model}-recovery.json"
    known = json.loads(file.read_text())["fitness"] if file.exists() else {}
    data = data_of(shared, case.data)
    for name in (name for name in (*FOR_LATENCY[224], *PLAIN) if name not in known):
        best, refusal = cut_calmly(case, name, str(data), runs)
        if refusal:
            continue
        size = (f"epochs={case.epochs}", f"imgsz={case.imgsz}")
        how = (*size, f"seed={case.seed}", *TRAIN, "prune=0", "prune_benchmark=False")
        trained = train((f"model={best}", f"data={data}", *how), folder_of(case, name, runs) / "recovery", shared)
        known[name] = trained["plain_process"]["metrics"][case.metric]
        write(file, {**ABOUT, "imgsz": case.imgsz, "epochs": case.epochs, "fitness": known})


def traced(checkpoint: Path) -> tuple[nn.Module, ChannelGraph]:
    """Return a network and its channel groups."""
    from ultralytics.nn.tasks import load_checkpoint

    from yolo_prune.graph.trace import trace

    network = load_checkpoint(checkpoint)[0]
    return network, trace(network, SIZES[0])


def seconds_of(networks: Sequence[nn.Module], runtime: str) -> list[float]:
    """Return the seconds of networks for one image, in turns."""
    from yolo_prune.deploy.latency_profile import compare_networks
    from yolo_prune.device.stopwatch import typical

    return [float(s) for s in typical(compare_networks(networks, runtime, SIZES[0]).seconds)]


def errors(checkpoint: Path, runtime: str) -> list[float]:
    """Return the relative errors of the predicted speed-up over dense, for networks of random widths."""
    from yolo_prune.cost.latency import Workload
    from yolo_prune.deploy.latency_profile import measure
    from yolo_prune.deploy.samples import cut_networks, random_plan, widths_of

    network, graph = traced(checkpoint)
    latency, work = measure(network, graph, runtime), Workload(graph)
    draw = np.random.default_rng(0)  # other seeds than those of the networks that the weights were fitted to
    plans = [random_plan(graph, draw.uniform(0.25, 0.9), 8, 100 + seed) for seed in range(RANDOM_PLANS)]
    dense, *measured = seconds_of([network, *cut_networks(network, plans)], runtime)
    predicted = [latency.seconds(work, *widths_of(graph, plan)) for plan in plans]
    return [p / latency.dense / (m / dense) - 1 for p, m in zip(predicted, measured, strict=True)]


def rows_of(model: str, imgsz: int) -> dict[str, dict[str, Any]]:
    """Return cut -> MACs kept, fitness, and runtime -> speed-up, of one measurement; nothing if it is not there.

    A runtime in which the quartiles of dense and cut overlap is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in (RESULTS / f"{model}-{imgsz}-{part}.json" for part in PARTS):
        rows = json.loads(file.read_text())["rows"] if file.exists() else []
        dense = {row["runtime"]: row["seconds"] for row in rows if row["cut"] == "dense"}
        for row in rows:
            cell = found.setdefault(row["cut"], {"macs": row["macs"], "fitness": row["fitness"]})
            (low, _, high), (least, _, most) = row["seconds"], dense[row["runtime"]]
            if row["cut"] == "dense" or high < least or most < low:
                cell[row["runtime"]] = row["speedup"]
    return found


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def speedups(cell: Mapping[str, Any]) -> list[str]:
    """Return the speed-ups in all runtimes as text; nothing for one that is left out or was not timed."""
    return [f"{cell[runtime]:.2f}x" if runtime in cell else "" for runtime in RUNTIMES]


def speed_table() -> str:
    """Return what a cut in MACs brings."""
    rows = [
        (model, str(imgsz), name, f"{cell['macs'] / found['dense']['macs']:.0%}", *speedups(cell))
        for model in MODELS
        for imgsz in SIZES
        for found in (rows_of(model, imgsz),)
        for name, cell in found.items()
        if name in PLAIN or name.endswith("everywhere")
    ]
    return table_of(("model", "px", "cut", "MACs kept", "ONNX Runtime", "OpenVINO", "PyTorch"), rows)


def target_table() -> str:
    """Return how latency targets are met."""
    rows = []
    for model, (imgsz, names) in product(MODELS, FOR_LATENCY.items()):
        file, found = RESULTS / f"{model}-{imgsz}-latency.json", rows_of(model, imgsz)
        known = json.loads(file.read_text()) if file.exists() else {"refused": {}, "at_once": {}}
        for name in names:
            if name in known["refused"]:
                rows.append((model, name, "refused", *[""] * 4))
            elif name in found:
                kept = f"{found[name]['macs'] / found['dense']['macs']:.0%}"
                rows.append((model, name, kept, f"{known['at_once'][name]:.2f}x", *speedups(found[name])))
    again = ("again: ONNX Runtime", "OpenVINO", "PyTorch")
    return table_of(("model", "asked", "MACs kept", "at once", *again), rows)


def width_table() -> str:
    """Return what widths that are multiples of a number bring, at half of the MACs and 640 px."""
    rows = []
    names = ("50 %, any width", "50 %, multiples of 4", "50 % fewer MACs", "50 %, multiples of 16")
    for model in MODELS:
        found, judged = rows_of(model, 640), rows_of(model, 224)
        for name, text in zip(names, ("1", "4", "default (8)", "16"), strict=True):
            if name in found:
                rows.append((model, text, *speedups(found[name]), f"{judged[name]['fitness']:.3f}"))
    return table_of(("model", "round_to", "ONNX Runtime", "OpenVINO", "PyTorch", "mAP50-95, not trained"), rows)


def equal_speed_table() -> str:
    """Return the accuracy of cuts that were planned for latency, and of cuts planned for MACs that are as fast."""
    rows = []
    for model in MODELS:
        found, file = rows_of(model, 224), RESULTS / f"{model}-recovery.json"
        cut_only = {name: cell["fitness"] for name, cell in found.items()}
        recovered = json.loads(file.read_text())["fitness"] if file.exists() else {}
        for name in (name for name in FOR_LATENCY[224] if name in found):
            speed = found[name]["onnx"]
            scores = (f"{of[name]:.3f}" if name in of else "" for of in (cut_only, recovered))
            others = (as_fast(speed, found, of) for of in (cut_only, recovered))
            rows.append((model, name, f"{speed:.2f}x", *chain(*zip(scores, others, strict=True))))
    header = ("for latency", "for MACs, as fast", "for latency, 25 epochs later", "for MACs, as fast")
    return table_of(("model", "asked", "measured", *header), rows)


def as_fast(speed: float, found: Mapping[str, Mapping[str, Any]], scores: Mapping[str, float]) -> str:
    """Return the score of a cut for MACs that is as fast, between those that are there; nothing if it is beyond."""
    known = sorted((found[name]["onnx"], scores[name]) for name in PLAIN if name in scores)
    if not known or not known[0][0] <= speed <= known[-1][0]:
        return ""
    return f"{np.interp(speed, *zip(*known, strict=True)):.3f}"


def multiple_table() -> str:
    """Return how fast random networks of half of the multiply-adds are, by what their widths are multiples of."""
    rows = []
    for model in MODELS:
        file = RESULTS / f"{model}-multiples.json"
        for runtime, by_multiple in (json.loads(file.read_text())["speedups"] if file.exists() else {}).items():
            rows.append((model, runtime, *(f"{fmean(by_multiple[str(m)]):.2f}x" for m in MULTIPLES)))
    return table_of(("model", "runtime", *(f"multiples of {m}" for m in MULTIPLES)), rows)


def error_table() -> str:
    """Return the errors of the prediction."""
    rows = []
    for model in MODELS:
        file = RESULTS / f"{model}-prediction.json"
        for runtime, values in (json.loads(file.read_text())["errors"] if file.exists() else {}).items():
            sizes = sorted(abs(value) for value in values)
            rows.append((model, runtime, str(len(sizes)), f"{median(sizes):.1%}", f"{sizes[-1]:.1%}"))
    return table_of(("model", "runtime", "random plans", "median error", "largest"), rows)


if __name__ == "__main__":
    main()
