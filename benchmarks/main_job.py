"""The main job on real data: dense and pruned fine-tuning of the same length, through the stock ``yolo`` command.

    python benchmarks/main_job.py --shared ../shared

For each job two runs: ``yolo train …`` and the same with ``prune=0.5 prune_export=onnx``. Each checkpoint is then
loaded safely and validated in a process that cannot import yolo_prune. Every run writes a file of its own to
``benchmarks/results/main_job/``; runs whose file is there are skipped, so an interrupted benchmark goes on where it
stopped. ``--table`` only prints the table of what is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from training import parser_of, train, write

RESULTS = Path(__file__).parent / "results" / "main_job"
TRAIN = ("batch=16", "workers=0", "seed=0", "plots=False")
KINDS: dict[str, tuple[str, ...]] = {"dense": (), "pruned": ("prune=0.5", "prune_export=onnx")}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        start: Weights in ``shared/weights``, or a model YAML of Ultralytics, which then takes what fits from YOLO11n.
        data: Folder in ``shared/data``.
        imgsz: Image size in pixels.
        epochs: Length of both runs.
        metric: The key of Ultralytics' results that the table shows.
    """

    start: str
    data: str
    imgsz: int
    epochs: int = 30
    metric: str = "mAP50-95(B)"

    def arguments(self, shared: Path) -> tuple[str, ...]:
        """Return the arguments of ``yolo train``."""
        source = shared / "data" / self.data
        data = source if self.metric == "accuracy_top1" else source / "data.yaml"
        weights = shared / "weights"
        model = (
            (f"model={self.start}", f"pretrained={weights / 'yolo11n-from-int8.pt'}")
            if self.start.endswith(".yaml")
            else (f"model={weights / self.start}",)
        )
        return (*model, f"data={data}", f"imgsz={self.imgsz}", f"epochs={self.epochs}", *TRAIN)


JOBS = {
    "yolov8n": Job("yolov8n-from-int8.pt", "bccd", 224),
    "yolo11n": Job("yolo11n-from-int8.pt", "bccd", 224),
    "yolo26n": Job("yolo26n-from-int8.pt", "bccd", 224),
    "yolo12n": Job("yolo12n.yaml", "bccd", 224),
    "yolo11n-seg": Job("yolo11n-seg.yaml", "nuclei-seg", 256, metric="mAP50-95(M)"),
    "yolo11n-pose": Job("yolo11n-pose.yaml", "mouse-pose", 256, 40, "mAP50-95(P)"),
    "yolo11n-obb": Job("yolo11n-obb.yaml", "nuclei-obb", 256),
    "yolov8n-cls": Job("yolov8n-cls-from-int8.pt", "sign-digits-cls", 64, 20, "accuracy_top1"),
}


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = parser_of(__doc__, runs="runs/main_job")
    parser.add_argument("--jobs", nargs="+", default=tuple(JOBS), choices=tuple(JOBS))
    parser.add_argument("--kinds", nargs="+", default=tuple(KINDS), choices=tuple(KINDS))
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in () if args.table else args.jobs:
        for kind in args.kinds:
            file = RESULTS / f"{name}-{kind}.json"
            if not file.exists():
                folder = args.runs.resolve() / f"{name}-{kind}"
                shared = args.shared.resolve()
                result = train((*JOBS[name].arguments(shared), *KINDS[kind]), folder, shared)
                write(file, result)
    print(table())


def table() -> str:
    """Return the README's table."""
    lines = [
        "| model | data, px, epochs | MACs | params | file | metric | dense | pruned | ONNX: largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, job in JOBS.items():
        files = [RESULTS / f"{name}-{kind}.json" for kind in KINDS]
        if not all(file.exists() for file in files):
            continue
        dense, pruned = (json.loads(file.read_text()) for file in files)
        report = pruned["report"]
        macs, params, size = (
            f"{report['final'][k] / report['dense'][k] - 1:+.1%}" for k in ("macs", "params", "bytes")
        )
        scores = " | ".join(f"{result['plain_process']['metrics'][job.metric]:.3f}" for result in (dense, pruned))
        onnx = report["exports"][0]["max_abs_diff"]
        lines.append(
            f"| {name} | {job.data}, {job.imgsz}, {job.epochs} | {macs} | {params} | {size} | {job.metric} | {scores} "
            f"| {onnx:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
