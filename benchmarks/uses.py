"""What users do with a checkpoint, tried with a pruned one next to the dense one.

    pip install lap sahi supervision openvino                    # beside the extra "export": what the uses need
    python benchmarks/uses.py --shared ../shared

A model is cut to 85 % of its MACs without training (but see ``GENTLE``); one more is cut with ``reid``. Each use runs
on the four validation images of coco8, or on frames that a window cuts out of one of them as it moves. Its figure says
that it does the job: of an export the share of the boxes of PyTorch that it finds, too (same class, IoU above 0.9).
Every model is used in a process of its own. ``--table`` only prints the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from training import ENVIRONMENT, data_of, parser_of, write

RESULTS = Path(__file__).parent / "results" / "uses.json"
MODELS = ("yolov8n", "yolo11n", "yolo26n")
VARIANTS = ("dense", "pruned", "pruned, reid")
REMOVED = 0.15
GENTLE: dict[str, dict[str, Any]] = {"yolo26n": {"target": 0.05, "reconstruction": False}}
"""Models that find nothing any more after the usual cut, with one that leaves them detections to compare."""
IMGSZ = 320
FRAMES = 6
PACKAGES = ("ultralytics", "torch", "lap", "sahi", "supervision", "onnx", "onnxruntime", "opencv-python", "openvino")


@dataclass
class Subject:
    """A checkpoint that is used.

    Attributes:
        path: The checkpoint.
        shared: Folder of the data.
        folder: Where exports go.
    """

    path: Path
    shared: Path
    folder: Path

    @property
    def yolo(self) -> Any:
        """The model, loaded anew: no use sees what another one has done."""
        from ultralytics import YOLO

        return YOLO(self.path)

    @cached_property
    def images(self) -> list[np.ndarray]:
        """The images, BGR."""
        import cv2

        files = sorted((self.shared / "data" / "coco8").rglob("val/*.jpg"))
        return [image for file in files if (image := cv2.imread(str(file))) is not None]

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """What a window shows that moves over the image with the most objects."""
        image = self.images[max(range(len(self.images)), key=lambda i: len(self.found[i]))]
        height, width = (int(0.85 * n) for n in image.shape[:2])
        return [image[3 * i : 3 * i + height, 5 * i : 5 * i + width].copy() for i in range(FRAMES)]

    @cached_property
    def found(self) -> list[np.ndarray]:
        """What PyTorch finds in each image padded to a square: rows of x1, y1, x2, y2, score, class."""
        return boxes(self.yolo.predict(self.images, imgsz=IMGSZ, rect=False, verbose=False))


def boxes(results: Iterable[Any]) -> list[np.ndarray]:
    """Return the boxes of results of Ultralytics."""
    return [result.boxes.data.cpu().numpy() for result in results]


def agreement(found: list[np.ndarray], reference: list[np.ndarray]) -> str:
    """Return how many of the reference's boxes are found, too: ``19 of 19``."""
    total = same = 0
    for ours, theirs in zip(found, reference, strict=True):
        total += len(theirs)
        same += sum(any(a[5] == b[5] and iou(a, b) > 0.9 for a in ours) for b in theirs)
    if same < 0.8 * total or not total:
        raise AssertionError(f"{same} of {total} boxes are found")
    return f"{same} of {total} boxes"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return intersection over union of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    return shared / (sum(float(np.prod(box[2:4] - box[:2])) for box in (a, b)) - shared)


# Uses --------------------------------------------------------------------------------------------------------------


def predict(subject: Subject) -> str:
    """Predict."""
    found = boxes(subject.yolo.predict(subject.images, imgsz=IMGSZ, verbose=False))
    return f"{sum(map(len, found))} boxes"


def validate(subject: Subject) -> str:
    """Validate."""
    data = data_of(subject.shared, "coco8")
    settings = {"imgsz": IMGSZ, "workers": 0, "plots": False, "verbose": False, "project": str(subject.folder)}
    return f"mAP50-95 {subject.yolo.val(data=str(data), **settings).box.map:.3f}"


def track(tracker: str, **changes: Any) -> Callable[[Subject], str]:
    """Return a use: track over the frames."""

    def use(subject: Subject) -> str:
        from ultralytics.utils import YAML
        from ultralytics.utils.checks import check_yaml

        from yolo_prune.blocks import map_readers
        from yolo_prune.errors import listed
        from yolo_prune.graph.groups import are_multiples

        file = subject.folder / f"{tracker}.yaml"
        YAML.save(file, YAML.load(check_yaml(f"{tracker}.yaml")) | changes)
        yolo = subject.yolo
        # an end-to-end head hands out no features: Ultralytics would load another model for them
        options = {"end2end": False} if changes and getattr(yolo.model.model[-1], "end2end", False) else {}
        options |= {"tracker": str(file), "persist": True, "imgsz": IMGSZ, "verbose": False}
        followed = [yolo.track(frame, **options)[0].boxes for frame in subject.frames]
        tracked = [set(b.id.tolist()) if b.is_track else set() for b in followed]
        maps = list(map_readers(yolo.model).values())
        if changes and not are_multiples(maps):  # by chance it can be cut into as many parts, of wrong places
            raise AssertionError(f"the maps of {listed(maps)} channels give each object the features of other places")
        kept = set.intersection(*tracked)
        if not kept:
            raise AssertionError("no object is followed through all frames")
        return f"{len(kept)} of {len(tracked[0])} objects followed"

    return use


def embed(subject: Subject) -> str:
    """Make embeddings, and look whether images differ."""
    vectors = subject.yolo.embed(subject.images, imgsz=IMGSZ, verbose=False)
    assert len({tuple(v.tolist()) for v in vectors}) == len(subject.images)
    return f"vectors of {len(vectors[0])}"


def sliced(subject: Subject) -> str:
    """Predict slice by slice, with SAHI."""
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    model = AutoDetectionModel.from_pretrained(
        "ultralytics", model_path=str(subject.path), confidence_threshold=0.25, image_size=IMGSZ
    )
    sizes = {"slice_height": 320, "slice_width": 320, "verbose": 0}
    found = [
        get_sliced_prediction(np.ascontiguousarray(image[..., ::-1]), model, **sizes).object_prediction_list
        for image in subject.images
    ]
    assert any(found)
    return f"{sum(map(len, found))} boxes"


def annotate(subject: Subject) -> str:
    """Draw boxes with supervision."""
    import supervision as sv

    (result,) = subject.yolo.predict(subject.images[0], imgsz=IMGSZ, verbose=False)
    detections = sv.Detections.from_ultralytics(result)
    drawn = sv.BoxAnnotator().annotate(subject.images[0].copy(), detections)
    assert len(detections) == len(result.boxes) and (drawn != subject.images[0]).any()
    return f"{len(detections)} boxes"


def export(
    form: str, *, batch: int = 1, read: dict[str, Any] | None = None, **options: Any
) -> Callable[[Subject], str]:
    """Return a use: export, and predict with what came out.

    Args:
        form: Ultralytics' name of the format.
        batch: Images at once.
        read: Arguments of the prediction.
        **options: Arguments of the export.
    """

    def use(subject: Subject) -> str:
        from ultralytics import YOLO

        path = subject.yolo.export(format=form, imgsz=IMGSZ, batch=batch, verbose=False, device="cpu", **options)
        exported = YOLO(path, task="detect")
        settings = {"imgsz": IMGSZ, "rect": False, "verbose": False, "batch": batch, **(read or {})}
        at_once = [subject.images[i : i + batch] for i in range(0, len(subject.images), batch)]
        found = [box for images in at_once for box in boxes(exported.predict(images, **settings))]
        if options.get("dynamic"):  # and another size
            exported.predict(subject.images[:1], **{**settings, "imgsz": IMGSZ // 2})
        return agreement(found, subject.found)

    return use


USES: dict[str, Callable[[Subject], str]] = {
    "predict": predict,
    "val": validate,
    "track, ByteTrack": track("bytetrack"),
    "track, BoT-SORT": track("botsort"),
    "track, BoT-SORT with_reid, model: auto": track("botsort", with_reid=True, model="auto"),
    "embed": embed,
    "slices, SAHI": sliced,
    "supervision": annotate,
    "ONNX": export("onnx"),
    "ONNX, nms=True": export("onnx", nms=True),
    "ONNX, dynamic=True": export("onnx", batch=2, dynamic=True),
    "ONNX, half=True": export("onnx", half=True),
    "ONNX, batch=4": export("onnx", batch=4),
    "ONNX, all four": export("onnx", batch=4, nms=True, dynamic=True, half=True),
    "ONNX in OpenCV DNN": export("onnx", read={"dnn": True}),
    "TorchScript": export("torchscript"),
    "OpenVINO": export("openvino"),
}
"""Use -> what does it, and returns a figure or raises."""
ONLY_HERE = ("track, BoT-SORT with_reid, model: auto",)
"""Uses of the model that was cut with ``reid``: the others do not depend on it."""


# Running them ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Cut, use, and print the table."""
    parser = parser_of(__doc__, runs="runs/uses")
    parser.add_argument("--models", nargs="*", default=MODELS, help="only these")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    shared, runs = args.shared.resolve(), args.runs.resolve()
    if args.one:
        use_all(*args.one, shared, runs)
        return
    if not args.table:
        for name in args.models:
            if not weights(shared, name).exists():
                print(f"{name} is skipped: there is no {weights(shared, name)}", file=sys.stderr)
                continue
            rows = {v: in_own_process(name, v, ("--shared", shared, "--runs", runs)) for v in VARIANTS}
            known = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.exists() else {}
            known = {n: (known | {name: rows})[n] for n in MODELS if n in known or n == name}
            write(
                RESULTS, {"imgsz": IMGSZ, "removed": REMOVED, "gentle": GENTLE, "versions": versions(), "models": known}
            )
    print(table())


def weights(shared: Path, name: str) -> Path:
    """Return the pretrained checkpoint."""
    return shared / "weights" / f"{name}-from-int8.pt"


def in_own_process(name: str, variant: str, arguments: Iterable[str | Path]) -> dict[str, dict[str, Any]]:
    """Return use -> ``{"ok", "figure" or "reason"}``; where the process ends early, the rest has that reason."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, arguments), "--one", name, variant]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False)
    rows: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows |= json.loads(line)
    ended = {"ok": False, "reason": f"the process ended with {done.returncode}"}
    return {use: rows.get(use, ended) for use in uses_of(variant)}


def uses_of(variant: str) -> tuple[str, ...]:
    """Return the uses of a variant."""
    return ONLY_HERE if variant == VARIANTS[-1] else tuple(USES)


def use_all(name: str, variant: str, shared: Path, runs: Path) -> None:
    """Print one line of JSON per use."""
    checkpoint = weights(shared, name) if variant == VARIANTS[0] else cut(name, variant, shared, runs)
    for use in uses_of(variant):
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / f"{name}.pt"  # exports lie beside the checkpoint
            own.write_bytes(checkpoint.read_bytes())
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    row = {"ok": True, "figure": USES[use](Subject(own, shared, Path(folder)))}
            except BaseException as e:  # whatever a use raises is its result
                row = {"ok": False, "reason": f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"}
        print(json.dumps({use: row}), flush=True)


def cut(name: str, variant: str, shared: Path, runs: Path) -> Path:
    """Return the checkpoint of a model that was cut without training, made where it is not there."""
    folder = runs / f"{name}-{variant.replace(', ', '-')}"
    checkpoint = folder / "weights" / "best.pt"
    if not checkpoint.exists():
        from ultralytics import YOLO
        from ultralytics.utils import YAML

        from yolo_prune import prune_model

        source = YAML.load(data_of(shared, "coco8"))
        data = runs / "calibration.yaml"
        runs.mkdir(parents=True, exist_ok=True)
        part, eight = (shared / "data" / n for n in ("coco-part", "coco8"))
        train = part / YAML.load(part / "data.yaml")["train"]
        YAML.save(data, {"train": str(train), "val": str(eight / source["val"]), "names": source["names"]})
        where = {"project": str(runs), "name": folder.name, "exist_ok": True, "workers": 0, "plots": False}
        settings = {"imgsz": IMGSZ, "calibration": 32, "benchmark": False, "reid": variant == VARIANTS[-1]}
        settings |= {"target": REMOVED} | GENTLE.get(name, {})
        with contextlib.redirect_stdout(sys.stderr):
            prune_model(YOLO(weights(shared, name)), data=data, **settings, **where)
    return checkpoint


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def table() -> str:
    """Return the table of the documentation."""
    models: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["models"]
    lines = ["| use |" + "".join(f" {name}, dense | pruned |" for name in models), "|---|" + "---|---|" * len(models)]
    rows = [(use, use, VARIANTS[:2]) for use in USES]
    rows.insert(
        1 + list(USES).index(ONLY_HERE[0]), ("the same, cut with `reid=True`", ONLY_HERE[0], ("", VARIANTS[-1]))
    )
    for title, use, variants in rows:
        cells = (_cell(rows_of.get(v, {}).get(use)) for rows_of in models.values() for v in variants)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    """Return what one use came to."""
    if row is None:
        return ""
    if row["ok"]:
        return str(row["figure"])
    return f"**fails**: {row['reason'].partition(': ')[2].replace('|', '/')}"


if __name__ == "__main__":
    main()
