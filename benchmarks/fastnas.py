"""Whether NVIDIA ModelOpt's FastNAS, its pruning of vision networks, can be used on stock YOLO models.

    pip install nvidia-modelopt huggingface_hub scipy tqdm     # not in any extra of yolo_prune
    python benchmarks/fastnas.py                               # seconds; it does not get as far as a search

A model is converted to FastNAS' search space, the first step of `modelopt.torch.prune.prune`, which needs no data.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from training import write

RESULTS = Path(__file__).parent / "results" / "fastnas.json"
MODELS = ("yolov8n", "yolo11n", "yolo26n")


def main() -> None:
    """Try to convert each model, and write down what came of it."""
    from modelopt.torch import nas
    from modelopt.torch.opt.utils import named_hparams
    from ultralytics import YOLO

    rows = {}
    for model in MODELS:
        try:
            converted = nas.convert(YOLO(f"{model}.yaml").model, mode="fastnas")
            rows[model] = {"layers_with_choices": len(list(named_hparams(converted, configurable=True)))}
        except Exception as e:  # whatever it raises is the result
            rows[model] = {"error": f"{type(e).__name__}: {e}", "at": _place(e)}
    versions = {name: version(name) for name in ("nvidia-modelopt", "ultralytics", "torch")}
    write(RESULTS, {"versions": versions, "rows": rows})
    print(json.dumps(rows, indent=1))


def _place(error: BaseException) -> str:
    """Return the module and function that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}: {trace.tb_frame.f_code.co_name}"


if __name__ == "__main__":
    main()
