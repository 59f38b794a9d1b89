"""Help texts of ``yolo-prune``: of all commands, and of each one with its arguments and an example."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from yolo_prune.config.choices import BY_DATA, BY_WEIGHTS, DATA_FREE, PORTABLE, RUNTIMES
from yolo_prune.config.settings import HELP_TEXTS, PruneConfig
from yolo_prune.config.text import CLI_PREFIX, as_text

_MODEL = {"model=best.pt": "a checkpoint, or a model's YAML for random weights, e.g. yolo11n.yaml"}
_DATA = {"data=my.yaml": "a data set as Ultralytics takes it, labelled, of the model's classes"}
_IMGSZ = {"imgsz=640": "side of the images in pixels; by default the model's own"}
_HOSTS = {"batch=8 device=cpu ...": "any other argument of 'yolo train'; 'yolo cfg' lists them"}


@dataclass(frozen=True)
class Usage:
    """Help of one command.

    Attributes:
        does: What it does, in a line.
        takes: What follows the command.
        example: The same as it could be typed.
        arguments: What is taken, each with a value as it could be typed -> what it says.
        options: Those that mean something there.
        more: What else there is to know.
    """

    does: str
    takes: str = ""
    example: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    more: str = ""


USAGES = {
    "train": Usage(
        "the same as 'yolo train', with pruning",
        "model=FILE data=FILE prune=TARGET [key=value ...]",
        "model=yolo11n.pt data=coco8.yaml epochs=60 prune=0.5",
        {
            "model=yolo11n.pt": "a checkpoint, or a model's YAML",
            "data=coco8.yaml": "a data set as Ultralytics takes it",
            "epochs=60 ...": "any other argument of 'yolo train'; 'yolo cfg' lists them",
        },
        tuple(HELP_TEXTS),
        "An interrupted run goes on with yolo-prune train resume model=runs/detect/train/weights/last.pt prune=True.",
    ),
    "prune": Usage(
        "one cut without training",
        "model=FILE data=FILE prune=TARGET [key=value ...]",
        "model=best.pt data=my.yaml prune=0.15",
        {"model=best.pt": "a checkpoint", **_DATA, **_IMGSZ, **_HOSTS},
        BY_DATA,
        "Channels are chosen and weights solved on a few training images; a run's folder is left, as by a training.",
    ),
    "plan": Usage(
        "what would be cut, what is locked, and what is left, without cutting",
        "model=FILE prune=TARGET [data=FILE] [key=value ...]",
        "model=best.pt prune=0.5",
        {
            **_MODEL,
            "data=my.yaml": "a data set as Ultralytics takes it, for criteria that look at images",
            **_IMGSZ,
            "batch=8 device=cpu ...": "any other argument of 'yolo train', where data is given",
        },
        (*BY_WEIGHTS, "depth", "calibration", "reconstruction"),
        f"Without data {' and '.join(f'{CLI_PREFIX}{name}={value}' for name, value in DATA_FREE.items())} are the "
        f"defaults, and nothing is calibrated or solved.\nWith {CLI_PREFIX}runtime given the latency is told, too.",
    ),
    "bench": Usage(
        "dense and pruned side by side, with the exports that lie beside them",
        "MODEL [MODEL ...] [key=value ...]",
        "dense.pt best.pt imgsz=640",
        {
            "dense.pt best.pt": "checkpoints, exported files, or names such as yolo11n.yaml for random weights; "
            "speed-ups are relative to the first",
            "imgsz=640": "side of the image in pixels, or [height,width]; by default that of the first checkpoint",
            "data=my.yaml": "a data set, to tell the accuracy of each file on its validation images",
            "runtimes=onnx,openvino": f"of {', '.join(RUNTIMES)}: an export that is not there is made for the while",
            "scales=False": "without the official scales of their size beside them; by default with them",
            "threads=4": "of the processor; by default all",
            "rounds=20": "times that each runs, which is the default",
            "results=latency-result.json": "what a kit of these models has measured on a device, instead of times here",
            "latency=latency.json": "what these were pruned by: it is corrected by results=, for the next run",
            "save=bench.json": "a file to write the figures to as well",
            "verbose=False": "show no bars where work takes long",
        },
    ),
    "kit": Usage(
        "a file that times networks on the device where they will run: python kit.pyz",
        "model=FILE [key=value ...], or MODEL MODEL ... [key=value ...]",
        "model=best.pt imgsz=640 runtime=onnx",
        {
            "model=best.pt": "a checkpoint that will be pruned: the kit writes latency.json, for prune_latency=",
            "dense.pt best.pt": "finished ones instead: the kit times them side by side, for yolo-prune bench results=",
            **_IMGSZ,
            "runtime=onnx": f"of {', '.join(PORTABLE)}, with a precision as in onnx:8, or a command that times a file: "
            '"command: my-timer {file}"',
            "format=onnx": "what a command gets, as a runtime is named",
            "out=kit.pyz": "the file to write, which is the default",
            "data=my.yaml": "a data set that calibrates INT8; by default noise, since times do not depend on it",
            "verbose=False": "show no bars where work takes long",
        },
        more="The device needs Python 3.9 or newer, numpy and the runtime.",
    ),
    "sensitivity": Usage(
        "measure what narrowing each layer costs",
        "model=FILE data=FILE [key=value ...]",
        "model=best.pt data=my.yaml",
        {
            "model=best.pt": "a checkpoint",
            **_DATA,
            **_IMGSZ,
            "calibration=128": "training images to look at, >= 4, of which half judge; by default 64, or 128 of more "
            "than 20 classes",
            **_HOSTS,
        },
        more="It cuts nothing for good, and takes no prune arguments.",
    ),
    "curve": Usage(
        "cut to eight sizes without training: accuracy against size, the knee, and what to type next",
        "model=FILE data=FILE [key=value ...]",
        "model=best.pt data=my.yaml",
        {
            "model=best.pt": "a checkpoint",
            **_DATA,
            **_IMGSZ,
            "sizes=0.1,0.3,0.5": "what is cut to, as prune= takes it, all of one quantity; by default 0.1 to 0.8",
            "latency=latency.json": "what a kit has measured of the model, to draw the curve against milliseconds, too",
            "runtime=onnx": f"the same, measured here: of {', '.join(RUNTIMES)}",
            "out=curve": "the folder to write curve.json, curve.png and curve.html to; by default a run's folder",
            **_HOSTS,
        },
        more="Each size is what 'yolo-prune prune' would make of it; nothing is saved but the figures.",
    ),
    "inspect": Usage(
        "what a checkpoint is, how many of its weights are zero, and what was cut when",
        "FILE [FILE ...] [key=value ...]",
        "best.pt",
        {
            "best.pt": "a checkpoint of Ultralytics, pruned or not",
            **_IMGSZ,
            "layers=True": "a row for each layer whose weights may be zero, too",
            "save=inspect.json": "a file to write the figures of one checkpoint to as well",
        },
        more="Nothing runs, and no data is needed.",
    ),
    "report": Usage(
        "write pruning/report.html of a finished run anew",
        "FOLDER",
        "runs/detect/train",
        {"runs/detect/train": "the folder of one run, with pruning/report.json in it"},
    ),
    "compare": Usage(
        "finished runs on one page and one curve, with dense ones and official scales among them",
        "FOLDER [FOLDER ...] [key=value ...]",
        "runs/detect/train*",
        {
            "runs/detect/train*": "folders of runs, with pruning or without; the first one's data set and image size "
            "decide, others are left out",
            "out=compare": "the folder to write compare.json, compare.png and compare.html to; by default 'compare' "
            "beside the first run",
            "verbose=False": "show no bar",
        },
    ),
    "demo": Usage(
        "make a small data set, train a YOLO11n on it, prune it, export ONNX: a few minutes, no download",
        "[key=value ...]",
        "epochs=60",
        {"epochs=60 ...": "arguments of 'yolo train', for both trainings; 'yolo cfg' lists them"},
        tuple(HELP_TEXTS),
        "Everything lands in ./yolo-prune-demo.",
    ),
    "help": Usage(
        "print the commands and all options, or what one command takes",
        "[COMMAND]",
        "plan",
        {"plan": "a command; the same as yolo-prune plan --help"},
    ),
    "version": Usage("print the version"),
}
"""Command -> what it says of itself."""


def of_all() -> str:
    """Return all commands, and all options with their defaults."""
    commands = {name: f"{usage.does}: yolo-prune {name} {usage.example}".rstrip() for name, usage in USAGES.items()}
    return "\n".join(
        [
            "Usage: yolo-prune COMMAND [key=value ...]",
            *("", "Commands; yolo-prune COMMAND --help tells more of one:", *_table(commands)),
            *(
                "",
                "Options of train, with defaults; 'yolo train' takes them too, and other commands some:",
                *_options(HELP_TEXTS, {}),
            ),
        ]
    )


def of_command(name: str) -> str:
    """Return the help of a command: its arguments, an example, and the options that mean something there."""
    usage = USAGES[name]
    lines = [f"Usage: yolo-prune {name} {usage.takes}".rstrip(), "", f"{usage.does[0].upper()}{usage.does[1:]}."]
    lines += [usage.more] * bool(usage.more)
    if usage.arguments:
        lines += ["", "Arguments:", *_table(usage.arguments)]
    if usage.example:
        lines += ["", "Example:", f"  yolo-prune {name} {usage.example}"]
    if usage.options:
        lines += ["", "Options that mean something here, with defaults:", *_options(usage.options, _defaults(name))]
    return "\n".join(lines)


def _defaults(name: str) -> Mapping[str, str]:
    """Return the options for which a command has defaults of its own, as they would be typed."""
    if name != "demo":
        return {}
    from yolo_prune.cli.demo import PRUNE  # loads numpy

    return PRUNE


def _options(names: Container[str], own: Mapping[str, str]) -> list[str]:
    """Return a line for each option; ``own`` defaults go first, and without one the target has none."""
    defaults = PruneConfig()
    rows = {f"prune={own.get('prune', 'TARGET')}": f"{HELP_TEXTS['target']}; or a YAML file of options without prefix"}
    for name in HELP_TEXTS:
        if name in names and name != "target":
            argument = f"{CLI_PREFIX}{name}"
            rows[f"{argument}={own.get(argument, as_text(getattr(defaults, name)))}"] = HELP_TEXTS[name]
    return _table(rows)


def _table(rows: Mapping[str, str]) -> list[str]:
    """Return a line for each name and its text, with two spaces between them at least."""
    width = max(map(len, rows)) + 2
    return [f"  {name:<{width}}{text}" for name, text in rows.items()]
