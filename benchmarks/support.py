"""Which models can be pruned: every model YAML of the installed ultralytics, cut to half of its MACs and checked.

    python benchmarks/support.py                # the smallest scale of each YAML
    python benchmarks/support.py --scales all   # every scale (hours)
    python benchmarks/support.py --table        # only print the table

Per model, from random weights: asked 50 % of the MACs with default settings, then

* dead channels: setting the removed channels to zero or removing them gives the same outputs, in both modes;
* the MACs of the plan are those that torch counts in the fused network;
* a forward and backward pass reaches every parameter that it reached before the cut;
* in a process that cannot import yolo_prune: a safe load, equal outputs, fusing changes no more than it does for the
  dense model, and the ONNX export computes the same.

Writes ``benchmarks/results/support.json``. A check that fails is a result, with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "support.json"
IMGSZ = 192
"""Image size in pixels at which networks really run; MACs are counted for 640 (classification: 224). A multiple of 96:
YOLO-World's pooling can be exported to ONNX at no other size."""
TOLERANCE = {"dead_channels": 1e-9, "plain_load": 0.0}
"""Largest difference that counts as equal, relative to the largest value of an output."""


def main() -> None:
    """Check what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of YAMLs")
    parser.add_argument("--scales", choices=("smallest", "all"), default="smallest")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="check nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(check(Path(args.one))))
        return
    if not args.table:
        from yolo_prune.host.zoo import model_yamls, scaled

        which = slice(None) if args.scales == "all" else slice(1)
        paths = [p for p in model_yamls() if any(part in p.name for part in args.only)]
        names = [name for path in paths for name in scaled(path)[which]]
        with ThreadPoolExecutor(args.workers) as pool:
            rows = list(pool.map(check_in_own_process, names))
        versions = {package: version(package) for package in ("ultralytics", "torch", "torch-pruning", "onnxruntime")}
        result = {"imgsz": IMGSZ, "tolerance": TOLERANCE, "versions": versions, "models": rows}
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(args.output.read_text(encoding="utf-8"))))


def check_in_own_process(name: Path) -> dict[str, Any]:
    """Check one model in a process of its own, so that nothing carries over; a crash is a result."""
    environment = os.environ | {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(name)], capture_output=True, text=True, env=environment, check=False
    )
    try:
        row = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        row = {"model": name.stem, "problems": [f"the check died: {done.stderr.strip().splitlines()[-1:]}"]}
    print(row["model"], f"{row.get('macs_kept', 0):.1%}", row["problems"] or "ok", file=sys.stderr, flush=True)
    return row


def check(name: Path) -> dict[str, Any]:
    """Cut one model to half of its MACs and check everything."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from ultralytics.utils import LOGGER

    from yolo_prune import prune_model, verify_cut
    from yolo_prune.deploy.export import export_all
    from yolo_prune.host.zoo import build_model
    from yolo_prune.planning.verification import largest_difference, outputs

    LOGGER.setLevel("ERROR")
    torch.manual_seed(0)
    problems: list[str] = []
    remarks: list[str] = []
    row: dict[str, Any] = {"model": name.stem, "problems": problems, "remarks": remarks}
    model = build_model(name)
    dense = deepcopy(model.model)
    imgsz = 224 if model.task == "classify" else 640
    plan = prune_model(model, 0.5, imgsz=imgsz).plan
    row |= {
        "task": model.task,
        "macs": plan.macs["before"],
        "macs_kept": plan.macs["after"] / plan.macs["before"],
        "params": plan.params["before"],
        "params_kept": plan.params["after"] / plan.params["before"],
        "locked": _locked(plan.locked),
        "dead_channels": verify_cut(dense, plan, IMGSZ),
    }
    if not 0.48 <= row["macs_kept"] <= 0.52:
        problems.append(f"{row['macs_kept']:.1%} of the MACs kept")
    if max(row["dead_channels"].values()) > TOLERANCE["dead_channels"]:
        problems.append(f"dead channels: outputs differ by {max(row['dead_channels'].values()):.1e}")

    network = model.model
    reached = [_reached(n) for n in (dense, network)]
    row["train_step"] = reached[0] == reached[1]
    if not row["train_step"]:
        problems.append(f"backward: {sorted(reached[0] ^ reached[1])[:3]} changed")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deepcopy(model.model).eval().fuse(verbose=False)(torch.zeros(1, 3, imgsz, imgsz))
    row["counted_macs"] = counter.get_total_flops() // 2
    if row["counted_macs"] != plan.macs["after"]:
        problems.append(f"torch counts {row['counted_macs']} MACs, the plan says {plan.macs['after']}")

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{kind}.pt" for kind in ("dense", "pruned")]
        for network, file in zip((dense, model.model), files, strict=True):
            model.model = network
            model.save(file)
        done = subprocess.run(
            [sys.executable, "-c", PLAIN, *map(str, files), str(IMGSZ)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            problems.append(f"plain process: {done.stderr.strip().splitlines()[-1]}")
            return row
        plain = json.loads(done.stdout.splitlines()[-1])
        (onnx,) = export_all(files[1], ("onnx",), torch.rand(1, 3, IMGSZ, IMGSZ))
        image = torch.rand(1, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0))
        shown = outputs(deepcopy(model.model).half().float().eval(), image)
        row["plain_load"] = largest_difference(shown, torch.load(Path(folder) / "outputs.pt"))
    row |= plain
    if not row["safe_load"]["pruned"]:
        (problems if row["safe_load"]["dense"] else remarks).append("a safe load refuses its classes, dense or pruned")
    if row["plain_load"] > TOLERANCE["plain_load"]:
        problems.append(f"plain load: outputs differ by {row['plain_load']:.1e}")
    if row["fuse"]["pruned"] > 10 * max(row["fuse"]["dense"], TOLERANCE["dead_channels"]):
        problems.append(f"fuse changes outputs by {row['fuse']['pruned']:.1e}, dense {row['fuse']['dense']:.1e}")
    row |= {"onnx": onnx.max_abs_diff, "onnx_boxes": onnx.max_abs_diff_boxes}
    if not onnx.ok:
        problems.append(f"ONNX: {onnx.reason}")
    return row


def _locked(locked: list[dict[str, str]]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for entry in locked:
        reasons[entry["why"]] = reasons.get(entry["why"], 0) + 1
    return reasons


def _reached(network: Any) -> set[str]:
    """Return the parameters that get a finite gradient in a training step."""
    import torch

    from yolo_prune.planning.verification import tensors_in

    torch.manual_seed(0)
    results = tensors_in(network.train()(torch.rand(2, 3, IMGSZ, IMGSZ)))
    sum(t.float().square().mean() for t in results if t.requires_grad).backward()
    found = {n for n, p in network.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}
    network.zero_grad(set_to_none=True)
    return found


PLAIN = """
import json, sys
sys.modules["yolo_prune"] = None  # importing it now raises
from pathlib import Path
import torch
from ultralytics.nn.tasks import load_checkpoint, torch_safe_load
from ultralytics.utils import LOGGER
LOGGER.setLevel("ERROR")
dense, pruned, imgsz = sys.argv[1:]
image = torch.rand(1, 3, int(imgsz), int(imgsz), generator=torch.Generator().manual_seed(0))


def flat(value):
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k != "feats"]  # feature maps that heads hand through
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else []


def run(model, image):
    with torch.no_grad():
        return flat(model(image))


def difference(a, b):
    if [t.shape for t in a] != [t.shape for t in b]:
        raise ValueError(f"shapes {[list(t.shape) for t in a]} and {[list(t.shape) for t in b]}")
    return max(float((x - y).abs().max() / max(1.0, float(x.abs().max()))) for x, y in zip(a, b))


fuse, safe = {}, {}
for kind, path in (("dense", dense), ("pruned", pruned)):
    try:
        safe[kind] = bool(torch_safe_load(path, safe_only=True))
    except TypeError:
        safe[kind] = False
    model = load_checkpoint(path)[0].float().eval()
    if kind == "pruned":
        torch.save(run(model, image), Path(path).with_name("outputs.pt"))
    model.double()  # where many scores are nearly equal, rounding would decide which of them are selected
    before = run(model, image.double())[:1]  # the predictions
    fuse[kind] = difference(before, run(model.fuse(verbose=False), image.double())[:1])
print(json.dumps({"safe_load": safe, "fuse": fuse}))
"""


def table(result: dict[str, Any]) -> str:
    """Return the table of the documentation, with what is locked told by letters that are explained below it."""
    lines = [
        "| model | task | MACs kept | params kept | locked | dead channels | train step | plain load | ONNX | remark |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    letters: dict[str, str] = {}
    for row in result["models"]:
        if "macs_kept" not in row:
            lines.append(f"| {row['model']} {'| ' * 9}{'; '.join(row['problems'])} |")
            continue
        for why in row["locked"]:
            letters.setdefault(why, string.ascii_lowercase[len(letters)])
        onnx = row.get("onnx")
        cells = (
            row["model"],
            row["task"],
            f"{row['macs_kept']:.1%}",
            f"{row['params_kept']:.1%}",
            " ".join(f"{letters[why]}{n}" for why, n in row["locked"].items()),
            f"{max(row['dead_channels'].values()):.0e}",
            "yes" if row["train_step"] else "no",
            "yes" if row.get("plain_load") == 0 else "no",
            "no" if onnx is None else f"{onnx:.0e}",
            "; ".join((*row["problems"], *row["remarks"])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    legend = (f"- {letter}: {why}" for why, letter in letters.items())
    return "\n".join((*lines, "", "What is locked, each letter with the number of layers or blocks:", "", *legend))


if __name__ == "__main__":
    main()
