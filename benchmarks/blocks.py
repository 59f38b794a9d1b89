"""Whole blocks beside channels, or channels alone: accuracy at equal multiply-adds, and speed.

    python benchmarks/accuracy.py --only bccd-s0-start        # the dense models that it starts from
    python benchmarks/blocks.py --shared ../shared            # cuts without training whose result is not there yet
    python benchmarks/blocks.py --only yolo11n,-50            # rows with all of this in their names
    python benchmarks/blocks.py --trained                     # the same cuts in trainings of 25 epochs
    python benchmarks/blocks.py --timed                       # time what the cuts left, on a machine that is idle
    python benchmarks/blocks.py --table                       # print the tables of what is there

Each cut is `prune_model` with defaults on bccd at 224 px, with ``depth`` on or off, and the result is validated in a
process that cannot import yolo_prune. YOLO11s has random weights, for its speed alone. Networks are timed at 640 px, in
turns with the dense one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import TRAIN, Case
from training import data_yaml, is_missing, parser_of, prune, rows_of, train, write
from validation import ENVIRONMENT, validate

RESULTS = Path(__file__).parent / "results" / "blocks.json"
MODELS, RANDOM = ("yolov8n", "yolo11n"), "yolo11s"
KEPT = (67, 50)
"""Per cent of the multiply-adds that stay: 1.5 and 2 times fewer."""
DATA, TRAINED_AT, TIMED_AT, EPOCHS = "bccd", 224, 640, 25
RUNTIMES = ("onnx", "openvino")
METRIC = "mAP50-95(B)"
TIME = """
import json, sys
from yolo_prune.deploy.latency_profile import compare_networks
from yolo_prune.host.checkpoint import load_network
runtime, imgsz, *paths = sys.argv[1:]
timing = compare_networks([load_network(path) for path in paths], runtime, int(imgsz), threads=2)
print(json.dumps([vars(timing.speedup(i)) for i in range(len(paths))]))
"""


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        model: Ultralytics' name of the model.
        kept: Per cent of the multiply-adds that stay.
        depth: Whether blocks may go.
        is_trained: Whether it is made in a training.
    """

    model: str
    kept: int
    depth: bool
    is_trained: bool = False

    def __str__(self) -> str:
        trained = "-trained" if self.is_trained else ""
        return f"{self.model}-{self.kept}-{'blocks' if self.depth else 'channels'}{trained}"

    def best(self, runs: Path) -> Path:
        """Return the checkpoint that it leaves."""
        return runs / f"depth-{self}" / "weights" / "best.pt"


def cuts(is_trained: bool = False) -> list[Cut]:
    """Return all cuts."""
    models = MODELS if is_trained else (*MODELS, RANDOM)
    return [Cut(model, kept, depth, is_trained) for model, kept, depth in product(models, KEPT, (True, False))]


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
    folder, data = cut.best(runs).parent.parent, str(data_yaml(shared, DATA))
    dense, removed = start(cut.model, runs), 1 - cut.kept / 100
    if cut.is_trained:
        given = (f"model={dense}", f"data={data}", f"epochs={EPOCHS}", f"imgsz={TRAINED_AT}", "seed=0", *TRAIN)
        options = (f"prune={removed:g}", f"prune_depth={cut.depth}", "prune_benchmark=False")
        found = train((*given, *options), folder, shared)["plain_process"]
    else:
        prune(dense, Path(data), TRAINED_AT, removed, folder, depth=cut.depth)
        found = validate(cut.best(runs), data, TRAINED_AT) if cut.model != RANDOM else {"metrics": {}}
    report = json.loads((folder / "pruning" / "report.json").read_text(encoding="utf-8"))
    return {
        "macs_kept": report["final"]["macs"] / report["dense"]["macs"],
        "params_kept": report["final"]["params"] / report["dense"]["params"],
        "blocks": [path for record in report["cuts"] for path in record["blocks"]],
        "dense": validate(dense, data, TRAINED_AT)["metrics"][METRIC] if found["metrics"] else None,
        "pruned": found["metrics"].get(METRIC),
        "seconds_cut": sum(record["seconds"] for record in report["cuts"]),
    }


def timed(model: str, runtime: str, runs: Path) -> dict[str, Any]:
    """Time what the cuts of a model left, and return the speed-ups over the dense network."""
    there = [cut for cut in cuts() if cut.model == model]
    paths = [start(model, runs), *(cut.best(runs) for cut in there)]
    done = subprocess.run(
        [sys.executable, "-c", TIME, runtime, str(TIMED_AT), *map(str, paths)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "2"},
    )
    _, *speedups = json.loads(done.stdout.splitlines()[-1])
    return {str(cut): speedup for cut, speedup in zip(there, speedups, strict=True)}


def main() -> None:
    """Make the rows that are missing, and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="parts of names, with commas between them")
    parser.add_argument("--trained", action="store_true", help="make the cuts in trainings")
    parser.add_argument("--timed", action="store_true", help="time the networks that the cuts without training left")
    args = parser.parse_args()
    shared, runs = args.shared.resolve(), args.runs.resolve()

    def note(name: str, row: dict[str, Any]) -> None:
        write(RESULTS, {"imgsz": {"trained": TRAINED_AT, "timed": TIMED_AT}, "rows": {**rows_of(RESULTS), name: row}})

    if args.timed:
        for model, runtime in product((*MODELS, RANDOM), RUNTIMES):
            if is_missing(name := f"{model}-{runtime}", RESULTS, args.only):
                note(name, timed(model, runtime, runs))
    elif not args.table:
        for cut in cuts(args.trained):
            if is_missing(str(cut), RESULTS, args.only):
                note(str(cut), made(cut, shared, runs))
    print(table())


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
            *("" if speedup is None else f"{speedup['value'] or speedup['low']:.2f}x" for speedup in speedups),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
