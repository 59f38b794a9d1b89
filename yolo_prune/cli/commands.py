"""The commands of ``yolo-prune`` that load Ultralytics: from texts to calls of the Python functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultralytics.cfg import smart_value

from yolo_prune.cli.usage import USAGES
from yolo_prune.config.choices import DATA_FREE
from yolo_prune.config.settings import HELP_TEXTS, PruneConfig
from yolo_prune.config.text import CLI_PREFIX
from yolo_prune.deploy.bench import bench
from yolo_prune.deploy.compare import compare
from yolo_prune.deploy.formats import file_size
from yolo_prune.deploy.inspection import inspect_checkpoint
from yolo_prune.deploy.kit import check_form, make_comparison_kit, make_sample_kit
from yolo_prune.device.command import is_command
from yolo_prune.errors import ConfigError
from yolo_prune.graph.image import image_size
from yolo_prune.graph.trace import trace
from yolo_prune.host.trainer import open_model, read_arguments
from yolo_prune.oneshot import dry_run, prune_model, sensitivity
from yolo_prune.size_curve import curve
from yolo_prune.surgery.slicing import network_of
from yolo_prune.utils.console import verbosity
from yolo_prune.utils.text import megabytes


def prune_command(arguments: Mapping[str, str], options: Mapping[str, str]) -> None:
    """Run ``yolo-prune prune``.

    Args:
        arguments: Ultralytics' arguments as name -> text, with ``model`` and ``data``.
        options: Prune arguments as name -> text.

    Raises:
        ConfigError: If one is missing or wrong.
        CheckpointError: If the model cannot be loaded.
    """
    model, values = _read(arguments, "prune")
    config = _config(options, "prune")
    prune_model(open_model(model), config, **values)


def plan_command(arguments: Mapping[str, str], options: Mapping[str, str]) -> None:
    """Run ``yolo-prune plan``: print what would be cut and what that costs; arguments as in `prune_command`."""
    model, values = _read(arguments, "plan", needed=("model",))
    config = _config(options, "plan", {} if "data" in values else DATA_FREE)
    print(dry_run(open_model(model), config, timed=f"{CLI_PREFIX}runtime" in options, **values))


def sensitivity_command(arguments: Mapping[str, str]) -> None:
    """Run ``yolo-prune sensitivity`` and print the table; arguments as in `prune_command`."""
    model, values = _read(arguments, "sensitivity", also=("calibration",))
    measured, folder = sensitivity(open_model(model), **values)
    print(f"{measured.table()}\n{folder / 'sensitivity.json'}, {folder / 'sensitivity.png'}")


def curve_command(arguments: Mapping[str, str], options: Mapping[str, str]) -> None:
    """Run ``yolo-prune curve``; arguments as in `prune_command`, and those of `curve` as text."""
    also = ("sizes", "latency", "runtime", "out")
    model, values = _read(arguments, "curve", also=also)
    texts = {name: arguments[name] for name in also if name in arguments}
    config = PruneConfig.from_cli({"prune": "0", **options}).to_dict()
    named = {name.removeprefix(CLI_PREFIX) for name in options}
    curve(open_model(model), **values | texts, **{name: config[name] for name in named})


def _read(
    arguments: Mapping[str, str],
    command: str,
    needed: Sequence[str] = ("model", "data"),
    also: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:
    """Return the model, and the other values: of arguments of Ultralytics, and of those that a command has ``also``."""
    examples = {"model": "model=best.pt", "data": "data=my.yaml"}
    for name in needed:
        if not arguments.get(name):
            raise ConfigError(f"{command} without {name}: say which, e.g. {examples[name]}.")
    values = read_arguments(arguments, command, also)
    return arguments["model"], {name: value for name, value in values.items() if name != "model"}


def _config(options: Mapping[str, str], command: str, defaults: Mapping[str, Any] | None = None) -> PruneConfig:
    """Return the options of a command that does not train.

    Raises:
        ConfigError: If one is wrong, or means something in a training only.
    """
    of_training = HELP_TEXTS.keys() - set(USAGES[command].options)
    if meaningless := [name for name in options if name.removeprefix(CLI_PREFIX) in of_training]:
        raise ConfigError(
            f"{', '.join(meaningless)}: no option of {command}, which does not train; 'yolo-prune {command} --help' "
            "has those that are."
        )
    return PruneConfig.from_cli(options, defaults)


def kit_command(models: Sequence[str], arguments: Mapping[str, str]) -> None:
    """Run ``yolo-prune kit``: write a file that times networks on the device where they will run.

    Args:
        models: Files to time side by side; none for a kit that latency targets are measured with.
        arguments: ``model`` where there are none, and ``imgsz``, ``runtime``, ``format``, ``out`` and ``data`` as text.

    Raises:
        ConfigError: If one is missing or wrong.
    """
    allowed = ("model", "imgsz", "runtime", "format", "out", "data", "verbose")
    if wrong := [name for name in arguments if name not in allowed]:
        raise ConfigError(f"{wrong[0]} is no argument of kit. Valid: {', '.join(allowed)}.")
    if bool(models) == ("model" in arguments):
        raise ConfigError(
            "kit takes either a model that will be pruned, e.g. yolo-prune kit model=best.pt imgsz=640 runtime=onnx, "
            "or finished ones to compare, e.g. yolo-prune kit dense.pt best.pt runtime=onnx."
        )
    values = {name: smart_value(text) for name, text in arguments.items() if name in {"imgsz", "verbose"}}
    runtime = arguments.get("runtime", "onnx").strip()
    form = arguments.get("format", "onnx" if is_command(runtime) else runtime)
    runtime = runtime if is_command(runtime) else runtime.partition(":")[0]
    check_form(runtime, form)
    out, data = Path(arguments.get("out", "kit.pyz")), arguments.get("data")
    with verbosity(values.get("verbose", True)):
        if models:
            paths = [Path(model) for model in models]
            make_comparison_kit(paths, out, runtime, form, values.get("imgsz"), data)
        else:
            network = network_of(open_model(name := arguments["model"]))
            graph = trace(network, image_size(network, values.get("imgsz")))
            make_sample_kit(network, graph, out, runtime, form, data=data, name=Path(name).name)
    print(f"{out} ({megabytes(file_size(out))}): take it to the device, and run it there: python {out.name}")


def compare_command(runs: Sequence[str], arguments: Mapping[str, str]) -> None:
    """Run ``yolo-prune compare`` and print the table.

    Args:
        runs: Folders.
        arguments: ``out`` and ``verbose`` as text.

    Raises:
        ConfigError: If there is another argument, or no finished run.
    """
    if wrong := [name for name in arguments if name not in {"out", "verbose"}]:
        raise ConfigError(f"{wrong[0]} is no argument of compare. Valid: out, verbose.")
    found = compare(runs, out=arguments.get("out"), verbose=smart_value(arguments.get("verbose", "True")) is True)
    print(f"{found.table()}\n{found.folder}")


def inspect_command(models: Sequence[str], arguments: Mapping[str, str]) -> None:
    """Run ``yolo-prune inspect`` and print what checkpoints are.

    Args:
        models: Checkpoints.
        arguments: ``imgsz``, ``layers`` (a row for each) and ``save``, a JSON file for one checkpoint, as text.

    Raises:
        ConfigError: If one is wrong.
    """
    values = {name: smart_value(text) for name, text in arguments.items()}
    save, layers, imgsz = values.pop("save", None), values.pop("layers", False), values.pop("imgsz", None)
    if values:
        raise ConfigError(f"{next(iter(values))} is no argument of inspect. Valid: imgsz, layers, save.")
    if not isinstance(layers, bool):
        raise ConfigError(f"layers={arguments['layers']} is not a bool; use True or False.")
    if save and len(models) > 1:
        raise ConfigError(f"save={save} takes the figures of one checkpoint; inspect them one by one.")
    for model in models:
        found = inspect_checkpoint(model, imgsz)
        print(found.text(with_layers=layers))
        if save:
            found.save(Path(save))


def bench_command(models: Sequence[str], arguments: Mapping[str, str]) -> None:
    """Run ``yolo-prune bench`` and print the table.

    Args:
        models: As for `bench`.
        arguments: The other parameters of `bench` as name -> text, and ``save``, a JSON file.

    Raises:
        ConfigError: If one is wrong.
    """
    values = {name: smart_value(text) for name, text in arguments.items()}
    save = values.pop("save", None)
    allowed = ("imgsz", "data", "runtimes", "scales", "threads", "rounds", "results", "latency", "verbose")
    if wrong := [name for name in values if name not in allowed]:
        raise ConfigError(f"{wrong[0]} is no argument of bench. Valid: {', '.join(allowed)}, save.")
    for name in ("threads", "rounds"):
        if not isinstance(number := values.get(name, 1), int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"{name}={arguments[name]} is no whole number >= 1; leave it out for the default.")
    for name in ("scales", "verbose"):
        if not isinstance(values.get(name, True), bool):
            raise ConfigError(f"{name}={arguments[name]} is not a bool; use True or False.")
    if "runtimes" in arguments:
        values["runtimes"] = tuple(arguments["runtimes"].split(","))
    found = bench(models, **values)
    print(found.table())
    if save:
        found.save(Path(save))
