"""Kits: a file that times networks on the device where they will run, with Python, numpy and a runtime alone.

There are two. One carries networks of random widths, of whose times a latency model is fitted; the other carries
finished files, which are timed side by side. `device.kit` is the program in both.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from yolo_prune import __version__
from yolo_prune.config.choices import PORTABLE
from yolo_prune.cost.latency import digest_of
from yolo_prune.deploy.network_files import export, read_form, with_noise
from yolo_prune.deploy.samples import cut_networks, sample_plans, widths_of
from yolo_prune.device.command import FILE, is_command, words_of
from yolo_prune.device.kit import COMPARISON, MANIFEST, SAMPLES
from yolo_prune.errors import ConfigError
from yolo_prune.graph.groups import ChannelGraph
from yolo_prune.graph.image import height_and_width, image_channels, image_size
from yolo_prune.host.checkpoint import load_network
from yolo_prune.importance.objective import copy_of
from yolo_prune.utils.console import progress_bar
from yolo_prune.utils.files import atomic_write
from yolo_prune.utils.run_folder import run_of

NUMBER, QUICK = 32, 16
"""Networks of random widths in a kit, and how many of them a quick run times."""
CARRIED = (
    "errors.py",
    *(f"device/{name}.py" for name in ("__init__", "command", "kit", "runners", "stopwatch", "system", "timers")),
)
"""Modules of this package that a kit carries."""
START = '''"""Start a kit: python kit.pyz"""

import sys

from yolo_prune.device.kit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[0]))
'''


_Entry = tuple[str, Path, Mapping[str, Any]]
"""A network in a kit: its name there, its file, and what is noted of it."""


def make_sample_kit(
    network: nn.Module, graph: ChannelGraph, out: Path, runtime: str, form: str, *, data: str | None, name: str
) -> None:
    """Write a kit of networks of random widths, of whose times a latency model is fitted.

    Args:
        network: The dense network; copies of it are cut.
        graph: Its channel groups, with the image size.
        out: The file to write.
        runtime: One of `config.RUNTIMES`, or a command (see `device.command`).
        form: Runtime that the files are for, with a precision where it is not the usual one: ``onnx``, ``litert:8``.
        data: A data set that calibrates INT8 (default: noise).
        name: Of the model.

    Raises:
        ConfigError: If files of this form cannot be made for another machine.
        WriteError: If the file cannot be written.
    """
    plans = sample_plans(graph, NUMBER)
    about = _about(SAMPLES, runtime, form, graph.imgsz, image_channels(network))
    about.update(model=name, network=digest_of(graph), quick=1 + QUICK)
    networks = (with_noise(of) for of in (copy_of(network).cpu().float(), *cut_networks(network, plans)))
    widths = [None, *(widths_of(graph, plan).astype(int).tolist() for plan in plans)]
    labels = ("dense", *(f"sample-{i}" for i in range(1, 1 + NUMBER)))
    with tempfile.TemporaryDirectory() as folder, progress_bar("exporting networks", len(labels)) as step:
        entries = list[_Entry]()
        for label, network_of, of in zip(labels, networks, widths, strict=True):
            file = _exported(network_of, form, graph.imgsz, Path(folder) / label, data)
            entries.append((label + file.name.removeprefix("network"), file, {"widths": of}))
            step()
        _write(out, about, entries)


def make_comparison_kit(
    models: Sequence[Path], out: Path, runtime: str, form: str, imgsz: Any, data: str | None
) -> None:
    """Write a kit of finished files, which are timed side by side.

    Args:
        models: Checkpoints, which are exported, and exported files, of different names; the first is compared with.
        out: The file to write.
        runtime: As in `make_sample_kit`, and so are the others.
        form: What checkpoints are exported to.
        imgsz: Side of the image in pixels, or (height, width); None for that of the first checkpoint.
        data: A data set that calibrates INT8.

    Raises:
        ConfigError: If there are fewer than two models, one is not there, or two have one name.
        WriteError: If the file cannot be written.
    """
    names = [*map(name_in_kit, models)]
    if len(models) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"a kit that compares takes two or more models of different names, not {names}.")
    if missing := [path for path in models if not path.exists()]:
        raise ConfigError(f"there is no {missing[0]}: give checkpoints or exported files.")
    networks = {path: load_network(path) for path in models if path.suffix == ".pt"}
    size = height_and_width(next(map(image_size, networks.values()), 640) if imgsz is None else imgsz)
    channels = next(map(image_channels, networks.values()), 3)
    with tempfile.TemporaryDirectory() as folder, progress_bar("exporting networks", len(models)) as step:
        entries = list[_Entry]()
        for name, path in zip(names, models, strict=True):
            file, stem = path, path.stem
            if path in networks:
                file, stem = _exported(networks[path], form, size, Path(folder) / name, data), "network"
            entries.append((name + file.name.removeprefix(stem), file, {}))
            step()
        _write(out, {**_about(COMPARISON, runtime, form, size, channels), "model": names[0], "models": names}, entries)


def name_in_kit(path: Path) -> str:
    """Return what a kit calls a model: by its run, too, where it lies in one."""
    return f"{run.name}-{path.stem}" if (run := run_of(path)) else path.stem


def check_form(runtime: str, form: str) -> None:
    """Refuse a runtime that no kit can be for, and files that cannot be made for it.

    Raises:
        ConfigError: Names those that can.
    """
    if is_command(runtime):
        words_of(runtime)
    elif runtime not in PORTABLE:
        raise ConfigError(
            f"runtime={runtime} is none of {', '.join(PORTABLE)}, each with a precision as in onnx:8, and no command "
            f'such as "command: my-timer {FILE}".'
        )
    if read_form(form)[0] not in PORTABLE:
        raise ConfigError(f"format={form} is none of {', '.join(PORTABLE)}, each with a precision as in onnx:8.")


def _about(kind: str, runtime: str, form: str, imgsz: tuple[int, int], channels: int) -> dict[str, Any]:
    name, precision = read_form(form)
    about = {"kind": kind, "runtime": runtime, "format": name, "precision": precision}
    return {**about, "imgsz": list(imgsz), "channels": channels, "yolo_prune": __version__}


def _exported(network: nn.Module, form: str, imgsz: tuple[int, int], folder: Path, data: str | None) -> Path:
    """Export a network for another machine into a new folder."""
    folder.mkdir()
    return export(network, form, imgsz, folder, data, portable=True)


def _write(out: Path, about: Mapping[str, Any], entries: Sequence[_Entry]) -> None:
    """Write a kit: the program, what it is about, and its networks."""
    manifest = {**about, "networks": [{"name": name, **noted} for name, _, noted in entries]}
    manifest["id"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    package = files("yolo_prune")
    with atomic_write(out) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as kit:
        kit.writestr("__main__.py", START)
        kit.writestr("yolo_prune/__init__.py", "")
        for module in CARRIED:
            kit.writestr(f"yolo_prune/{module}", package.joinpath(module).read_text(encoding="utf-8"))
        kit.writestr(MANIFEST, json.dumps(manifest))
        for name, file, _ in entries:
            if not file.is_dir():
                kit.write(file, f"networks/{name}")
            for part in sorted(file.rglob("*")) if file.is_dir() else ():
                kit.write(part, f"networks/{name}/{part.relative_to(file)}")
