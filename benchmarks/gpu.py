"""What a cut brings on an NVIDIA GPU, and what pruning costs there.

    python benchmarks/gpu.py            # two minutes on one GPU; without one it says so
    python benchmarks/gpu.py --table    # print the table of what is there

Random weights, 640 px, PyTorch. Speed-ups at half of the multiply-adds: dense and cut in turns, in single and half
precision (channels last), for one image and for 32, launched from Python and as a captured CUDA graph, which leaves
the GPU's own work, for widths that are multiples of some numbers. Latency targets: what is asked of the runtime
``pytorch``, which is the GPU where there is one, and what is measured or why it is refused. Training with AMP on drawn
images, stock and with two cuts: seconds per epoch before and after the cuts, seconds of each cut, and the peak of the
GPU's memory. Writes ``results/gpu.json``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from copy import deepcopy
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import table_of
from training import epoch_ends, write
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from yolo_prune import PruneCallback, prune_model
from yolo_prune.cli.demo import make_dataset, use_private_settings
from yolo_prune.config.choices import DATA_FREE
from yolo_prune.config.settings import PruneConfig
from yolo_prune.deploy.bench import bench
from yolo_prune.device.stopwatch import Runner, alternating
from yolo_prune.errors import TargetError
from yolo_prune.planning.planner import plan_cut

RESULTS = Path(__file__).parent / "results" / "gpu.json"
MODELS = ("yolov8n", "yolo11n", "yolov8m")
MULTIPLES = (8, 32)
BATCHES = (1, 32)
TYPES = {
    "float32": (torch.float32, torch.contiguous_format),
    "float16": (torch.float16, torch.channels_last),
}
TARGETS = {"yolov8n": "1.25x", "yolov8m": "1.25x"}
IMGSZ = 640


def main() -> None:
    """Measure, write and print."""
    if "--table" in sys.argv:
        print(table())
        return
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs an NVIDIA GPU, and this machine has none.")
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "imgsz": IMGSZ}
    with tempfile.TemporaryDirectory() as folder:
        use_private_settings(Path(folder) / "settings")
        for name, part in {"training": training, "speedups": speedups, "targets": targets}.items():
            results[name] = part(Path(folder))
            write(RESULTS, results)  # what is there, if a later part fails
    print(table())


def speedups(_: Path) -> list[dict[str, Any]]:
    """Return the median milliseconds per image of dense and cut networks, and how many times as fast the latter are."""
    rows = []
    for name in MODELS:
        dense = DetectionModel(f"{name}.yaml", verbose=False)
        networks = [dense]
        for multiple in MULTIPLES:
            networks.append(deepcopy(dense))
            plan_cut(dense, PruneConfig(target=0.5, round_to=multiple, **DATA_FREE), IMGSZ).apply(networks[-1])
        networks = [network.eval().fuse(verbose=False).cuda() for network in networks]
        for (kind, (dtype, layout)), batch in product(TYPES.items(), BATCHES):
            images = torch.rand(batch, 3, IMGSZ, IMGSZ, device="cuda").to(dtype, memory_format=layout)
            launches = [launcher(network.to(dtype, memory_format=layout), images) for network in networks]
            ways = {
                "launched": [waited(launch) for launch in launches],
                "captured": [waited(captured(launch).replay) for launch in launches],
            }
            for way, runners in ways.items():
                ms = np.median(alternating(runners, rounds=20), axis=1) * 1000 / batch
                rows.append(
                    {"model": name, "type": kind, "batch": batch, "way": way, "dense_ms": round(ms[0], 4)}
                    | {"speedup": {m: round(ms[0] / x, 3) for m, x in zip(MULTIPLES, ms[1:], strict=True)}}
                )
    return rows


def table() -> str:
    """Return the speed-ups that were measured: of the GPU's work, and for one image also launched from Python."""
    columns = ((1, "launched"), (1, "captured"), (32, "captured"))
    header = [f"{batch} image{'s' * (batch > 1)}, {way}, {m}" for batch, way in columns for m in MULTIPLES]
    cells: dict[tuple[str, str], dict[tuple[int, str], list[str]]] = {}
    for row in json.loads(RESULTS.read_text(encoding="utf-8"))["speedups"]:
        of = cells.setdefault((row["model"], row["type"]), {})
        of[row["batch"], row["way"]] = [f"{row['speedup'][str(m)]:.2f}x" for m in MULTIPLES]
    rows = [(*key, *(cell for column in columns for cell in of[column])) for key, of in cells.items()]
    return table_of(("model", "precision", *header), rows)


def launcher(network: torch.nn.Module, images: torch.Tensor) -> Runner:
    """Return what gives the GPU a batch to compute, and does not wait for it."""

    def launch() -> None:
        with torch.inference_mode():
            network(images)

    return launch


def waited(launch: Runner) -> Runner:
    """Return what gives the GPU its work and waits until it is done."""

    def run() -> None:
        launch()
        torch.cuda.synchronize()

    return run


def captured(launch: Runner) -> torch.cuda.CUDAGraph:
    """Return the GPU's work of a launch, to be replayed."""
    with torch.cuda.stream(torch.cuda.Stream()):
        waited(launch)()  # what is made once, as anchors are
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph


def targets(folder: Path) -> dict[str, Any]:
    """Return the measured speed-up for each one asked, or the refusal."""
    found: dict[str, Any] = {}
    for name, target in TARGETS.items():
        dense, file, slim = folder / f"{name}.pt", folder / f"{name}-slim.pt", YOLO(f"{name}.yaml")
        slim.save(dense)
        try:
            prune_model(slim, target, imgsz=IMGSZ, runtime="pytorch")
        except TargetError as e:
            found[name] = {"asked": target, "refused": str(e)}
            continue
        slim.save(file)
        rows = bench([dense, file], runtimes=("pytorch",), imgsz=IMGSZ, scales=False).rows
        found[name] = {"asked": target, "macs": round(rows[1].macs / rows[0].macs, 3), "speedup": rows[1].speedup}
    return found


def training(folder: Path) -> dict[str, Any]:
    """Return seconds and peak memory of a stock run with AMP, and of one with two cuts."""
    data = make_dataset(folder / "training-data", train=512, val=64, size=224)
    found: dict[str, Any] = {}
    for name in ("warm-up", "stock", "pruned"):
        model = YOLO("yolov8n.yaml")
        if name == "pruned":
            PruneCallback(0.5, steps=2, start=0.25, end=0.5, benchmark=False).attach(model)
        scalers: set[str] = set()
        model.add_callback("on_train_batch_end", lambda t, of=scalers: of.add(f"{t.amp} {t.scaler.is_enabled()}"))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model.train(
            data=str(data), epochs=8, imgsz=224, batch=64, workers=8, plots=False, device=0, project=str(folder / name)
        )
        ends = [0.0, *epoch_ends(model.trainer.csv)]
        found[name] = {
            "amp, scaler enabled": sorted(scalers),
            "epoch_seconds": [round(b - a, 2) for a, b in pairwise(ends)],
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }
        if name == "pruned":
            report = json.loads((model.trainer.save_dir / "pruning" / "report.json").read_text())
            found[name]["cuts"] = [{k: cut.get(k) for k in ("epoch", "macs", "seconds")} for cut in report["cuts"]]
    del found["warm-up"]
    return found


if __name__ == "__main__":
    main()
