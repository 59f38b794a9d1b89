"""Whole blocks beside channels, or channels alone: accuracy at equal multiply-adds, and speed.

    python benchmarks/accuracy.py --only bccd-s0-start        # the dense models that it starts from
    python benchmarks/blocks.py --shared ../shared            # cuts without training whose result is not there yet
    python benchmarks/blocks.py --only yolo11n,-50            # rows with all of this in their names
    python benchmarks/blocks.py --trained                     # the same cuts in trainings of 25 epochs
    python benchmarks/blocks.py --timed                       # time what the cuts left, on a machine that is idle
    python benchmarks/blocks.py --latency                     # trainings for a latency that benchmarks/devices.py knows
    python benchmarks/blocks.py --table                       # print the tables of what is there

Each cut is `prune_model` with defaults on bccd at 224 px, with ``depth`` on or off, and the result is validated in a
process that cannot import yolo_prune. YOLO11s has random weights, for its speed alone. Networks are timed at 640 px, in
turns with the dense one. Cuts for a latency are made by what the kits of ``benchmarks/devices.py`` have measured, at
320 px on one thread, in trainings of 25 epochs, and what they leave is timed in the same way.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import TRAIN, Case
from training import ALONE, data_of, is_missing, least_speedup, parser_of, prune, rows_of, train, write
from validation import ENVIRONMENT, Judged, difference, validate

RESULTS = Path(__file__).parent / "results" / "blocks.json"
MODELS, RANDOM = ("yolov8n", "yolo11n"), "yolo11s"
KEPT = (67, 50)
"""Per cent of the multiply-adds that stay: 1.5 and 2 times fewer."""
SPEEDUPS = ("2x", "1.5x")
DATA, TRAINED_AT, TIMED_AT, EPOCHS = "bccd", 224, 640, 25
RUNTIMES = ("onnx", "openvino")
KIT_AT, KIT_THREADS = 320, 1
"""Size of the images in pixels, and threads, that the kits have measured with."""
METRIC = "mAP50-95(B)"
TIME = """
import json, sys
from yolo_prune.deploy.latency_profile import compare_networks
from yolo_prune.host.checkpoint import load_network
runtime, imgsz, threads, *paths = sys.argv[1:]
timing = compare_networks([load_network(path) for path in paths], runtime, int(imgsz), threads=int(threads))
print(json.dumps([vars(timing.speedup(i)) for i in range(len(paths))]))
"""


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        model: Ultralytics' name of the model.
        kept: Per cent of the multiply-adds that stay, or how many times as fast it is to be.
        depth: Whether blocks may go.
        is_trained: Whether it is made in a training.
        runtime: In which it is to be so fast.
    """

    model: str
    kept: int | str
    depth: bool
    is_trained: bool = False
    runtime: str = ""

    def __str__(self) -> str:
        target = f"{self.kept}-{self.runtime}" if self.runtime else str(self.kept)
        trained = "-trained" if self.is_trained else ""
        return f"{self.model}-{target}-{'blocks' if self.depth else 'channels'}{trained}"

    def target(self, runs: Path) -> tuple[str, ...]:
        """Return the options that ask for it."""
        if self.runtime:
            latency = runs / f"device-{self.model}-{self.runtime}" / "latency.json"
            return f"prune={self.kept}", f"prune_latency={latency}", *ALONE
        return f"prune={1 - int(self.kept) / 100:g}", *ALONE

    def best(self, runs: Path) -> Path:
        """Return the checkpoint that it leaves."""
        return runs / f"depth-{self}" / "weights" / "best.pt"


def cuts(is_trained: bool = False) -> list[Cut]:
    """Return all cuts."""
    models = MODELS if is_trained else (*MODELS, RANDOM)
    return [Cut(model, kept, depth, is_trained) for model, kept, depth in product(models, KEPT, (True, False))]


def latency_cuts() -> list[Cut]:
    """Return the cuts for a latency, the most important first."""
    every = product(SPEEDUPS, RUNTIMES, MODELS, (True, False))
    return [Cut(model, speedup, depth, True, runtime) for speedup, runtime, model, depth in every]


def start(model: str, runs: Path) -> Path:
    """Return the dense checkpoint, which of random weights is made here."""
    if model != RANDOM:
        return Case(model, DATA).start(runs)
    path = runs / f"{model}-random.pt"
    if not path.exists():
        from ultralytics import YOLO

        yolo = YOLO(f"{model}.yaml")
        yolo.model = type(yolo.model)(f"{model}.yaml", nc=3, verbose=False)
        yolo.model.names = dict(enumerate(("Platelets", "RBC", "WBC")))
        yolo.save(path)
    return path


def made(cut: Cut, shared: Path, runs: Path) -> dict[str, Any]:
    """Make a cut, and return its row."""
    folder, data = cut.best(runs).parent.parent, str(data_of(shared, DATA))
    dense, imgsz = start(cut.model, runs), KIT_AT if cut.runtime else TRAINED_AT
    if cut.is_trained:
        given = (f"model={dense}", f"data={data}", f"epochs={EPOCHS}", f"imgsz={imgsz}", "seed=0", *TRAIN)
        options = (*cut.target(runs), f"prune_depth={cut.depth}", "prune_benchmark=False")
        found = train((*given, *options), folder, shared)["plain_process"]
    else:
        prune(dense, Path(data), imgsz, 1 - int(cut.kept) / 100, folder, depth=cut.depth)
        found = validate(cut.best(runs), data, imgsz) if cut.model != RANDOM else {"metrics": {}}
    report = json.loads((folder / "pruning" / "report.json").read_text(encoding="utf-8"))
    return {
        "macs_kept": report["final"]["macs"] / report["dense"]["macs"],
        "params_kept": report["final"]["params"] / report["dense"]["params"],
        "blocks": [path for record in report["cuts"] for path in record["blocks"]],
        "dense": validate(dense, data, imgsz)["metrics"][METRIC] if found["metrics"] else None,
        "pruned": found["metrics"].get(METRIC),
        **({"resampled": found["resampled"][METRIC]} if cut.runtime else {}),
        "seconds_cut": sum(record["seconds"] for record in report["cuts"]),
    }


def timed(model: str, runtime: str, runs: Path) -> dict[str, Any]:
    """Time what the cuts of a model left, and return the speed-ups over the dense network."""
    there = [cut for cut in cuts() if cut.model == model]
    speedups = speedups_of(runtime, TIMED_AT, 2, [start(model, runs), *(cut.best(runs) for cut in there)])
    return {str(cut): speedup for cut, speedup in zip(there, speedups, strict=True)}


def speedups_of(runtime: str, imgsz: int, threads: int, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Time checkpoints in turns, and return the speed-ups over the first of all others."""
    done = subprocess.run(
        [sys.executable, "-c", TIME, runtime, str(imgsz), str(threads), *map(str, paths)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)},
    )
    speedups: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return speedups[1:]


def main() -> None:
    """Make the rows that are missing, and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="parts of names, with commas between them")
    parser.add_argument("--trained", action="store_true", help="make the cuts in trainings")
    parser.add_argument("--latency", action="store_true", help="train for latencies instead, and time the results")
    parser.add_argument("--timed", action="store_true", help="time the networks that the cuts without training left")
    args = parser.parse_args()
    shared, runs = args.shared.resolve(), args.runs.resolve()

    def note(name: str, row: dict[str, Any]) -> None:
        imgsz = {"trained": TRAINED_AT, "timed": TIMED_AT, "latency": KIT_AT}
        write(RESULTS, {"imgsz": imgsz, "rows": {**rows_of(RESULTS), name: row}})

    if args.timed:
        for model, runtime in product((*MODELS, RANDOM), RUNTIMES):
            if is_missing(name := f"{model}-{runtime}", RESULTS, args.only):
                note(name, timed(model, runtime, runs))
    elif not args.table:
        for cut in latency_cuts() if args.latency else cuts(args.trained):
            if is_missing(str(cut), RESULTS, args.only):
                row = made(cut, shared, runs)
                if cut.runtime:
                    both = start(cut.model, runs), cut.best(runs)
                    (row["speedup"],) = speedups_of(cut.runtime, KIT_AT, KIT_THREADS, both)
                note(str(cut), row)
    print(table(), latency_table(), sep="\n\n")


def table() -> str:
    """Return the table of the documentation."""
    rows = rows_of(RESULTS)
    lines = [
        "| model, MACs kept | | blocks removed | params kept | mAP50-95, not trained | after 25 epochs "
        "| ONNX Runtime | OpenVINO |",
        "|---" * 8 + "|",
    ]
    for cut in (cut for cut in cuts() if str(cut) in rows):
        row, trained = rows[str(cut)], rows.get(f"{cut}-trained", {})
        speedups = [rows.get(f"{cut.model}-{runtime}", {}).get(str(cut)) for runtime in RUNTIMES]
        cells = [
            f"{cut.model}, {row['macs_kept']:.0%}",
            "blocks and channels" if cut.depth else "channels alone",
            str(len(row["blocks"])) if cut.depth else "",
            f"{row['params_kept']:.0%}",
            *("" if of.get("pruned") is None else f"{of['pruned']:.3f}" for of in (row, trained)),
            *("" if speedup is None else f"{least_speedup(speedup):.2f}x" for speedup in speedups),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def latency_table() -> str:
    """Return the table of the documentation on cuts for a latency."""
    rows = rows_of(RESULTS)
    lines = [
        "| model, asked | | MACs kept | blocks removed | measured | dense | after 25 epochs | difference |",
        "|---" * 8 + "|",
    ]
    for cut in (cut for cut in latency_cuts() if str(cut) in rows):
        row = rows[str(cut)]
        cells = [
            f"{cut.model}, {cut.kept} in {cut.runtime}",
            "blocks and channels" if cut.depth else "channels alone",
            f"{row['macs_kept']:.0%}",
            str(len(row["blocks"])) if cut.depth else "",
            f"{least_speedup(row['speedup']):.2f}x",
            f"{row['dense']:.3f}",
            f"{row['pruned']:.3f}",
            _difference(row, rows.get(str(replace(cut, depth=False)))) if cut.depth else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(*rows: dict[str, Any] | None) -> str:
    """Return by how many points a row is above another, or nothing where that is not there."""
    return difference(*(Judged([row["pruned"]], [row["resampled"]]) if row else Judged([], []) for row in rows))


if __name__ == "__main__":
    main()
