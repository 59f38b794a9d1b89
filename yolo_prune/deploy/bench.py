"""Networks side by side: how fast each runs here, how large it is, and what the official scales next to it would do."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn
from ultralytics.nn.tasks import guess_model_task

from yolo_prune.config.choices import RUNTIMES
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.bench_table import Bench, Row
from yolo_prune.deploy.formats import exports_of, file_size, form_of
from yolo_prune.deploy.kit import name_in_kit
from yolo_prune.deploy.kit_results import Comparison, note_in_latency, note_in_report, read_comparison
from yolo_prune.deploy.latency_profile import compare_networks
from yolo_prune.deploy.network_files import export
from yolo_prune.deploy.parity import fitness
from yolo_prune.deploy.runtimes import FORMATS, check_runtime, described, file_runner, is_on_gpu
from yolo_prune.device.stopwatch import Speedup, settle, typical
from yolo_prune.device.system import all_threads
from yolo_prune.errors import ConfigError, describe_error
from yolo_prune.graph.image import height_and_width, image_channels, image_size
from yolo_prune.graph.trace import trace
from yolo_prune.host.checkpoint import is_pruned, load_network
from yolo_prune.host.data_sets import check_data
from yolo_prune.host.trainer import open_model
from yolo_prune.host.zoo import siblings
from yolo_prune.report.records import Report, Stage
from yolo_prune.utils.console import progress_bar, silence, verbosity
from yolo_prune.utils.run_folder import RunFolder, run_of

ROUNDS = 20


def bench(
    models: Sequence[str | Path],
    *,
    imgsz: int | tuple[int, int] | None = None,
    data: str | None = None,
    runtimes: Sequence[str] = (),
    scales: bool = True,
    threads: int | None = None,
    rounds: int = ROUNDS,
    results: str | None = None,
    latency: str | None = None,
    verbose: bool = True,
) -> Bench:
    """Time models in turns, in every form in which they are there.

    Args:
        models: Checkpoints, each with the exports that lie beside it; exported files; or names such as ``yolo11n.yaml``
            for random weights. Speed-ups are relative to the first.
        imgsz: Side of the image in pixels, or (height, width) (default: that of the first checkpoint). Exports have a
            size of their own, which has to be this one.
        data: A data set as Ultralytics takes it: fitness of each file on its validation split.
        runtimes: Of `config.RUNTIMES`: where a checkpoint has no export for one of them, a temporary one is made.
        scales: Whether to put the official scales beside them that are next to them in size, with random weights.
        threads: For a CPU (default: all).
        rounds: Times that each runs.
        results: What a kit of these models, in this order, has measured on a device: its times are in the table instead
            of this machine's, and in the report of the run that ``dense`` and ``best`` are of. ``runtimes`` are timed
            here as well.
        latency: What a kit has measured of the first model, by which the others were pruned: ``results`` are written
            into it too, and correct the next plan that is made by it.
        verbose: Whether to show bars where work takes long.

    Raises:
        ConfigError: If a file is not there, a runtime or the image size is none, the data cannot be read, or
            ``latency`` is of another device.
        CheckpointError: If a checkpoint cannot be read.
        UnsupportedError: If an asked runtime is not there, or a file is no export of Ultralytics.
    """
    _check_runtimes(runtimes)
    if latency and not results:
        raise ConfigError(f"latency={latency} is corrected by what a kit of finished models says; give results= too.")
    with tempfile.TemporaryDirectory() as folder, silence(), verbosity(verbose):
        subjects = [_given(str(model), Path(folder) / str(i)) for i, model in enumerate(models)]
        networks = [s.network for s in subjects if s.network is not None]
        size = height_and_width(next(map(image_size, networks), 640) if imgsz is None else imgsz)
        if data and networks:
            check_data(str(data), guess_model_task(networks[0]))
        found = Bench(size, rounds)
        known = {*runtimes, *(runtime for s in subjects for runtime in s.files if not results)}
        subjects += _measure_sizes(subjects, size, scales and not results)
        if results:
            comparison = _add_results(found, subjects, results, [Path(model) for model in models])
            if latency:
                found.corrected = _correct(latency, comparison, subjects, size)
        _export_missing(subjects, known, runtimes, size, folder)
        judged = _time_all(found, subjects, known, next(map(image_channels, networks), 3), threads or all_threads())
        if data:
            _judge([(row, subject) for row, subject in judged if row.seconds and not subject.is_official], data, size)
    return found


def _add_results(found: Bench, subjects: Sequence[_Subject], results: str, models: Sequence[Path]) -> Comparison:
    """Add what a kit has measured of models, note it in the report of the run that they are of, and return it."""
    comparison = read_comparison(results)
    if len(comparison.names) != len(models) or comparison.imgsz != found.imgsz:
        raise ConfigError(
            f"results={results} is of {len(comparison.names)} networks at {comparison.imgsz} px "
            f"({', '.join(comparison.names)}); give the same models in the same order, and that imgsz."
        )
    given = tuple(map(name_in_kit, models))
    if given != comparison.models and sorted(given) == sorted(comparison.models):
        raise ConfigError(f"results={results} is of {', '.join(comparison.models)}, in this order; give them so.")
    where = dict(comparison.where)
    runtime = f"{where['runtime']} on {where['device']}"
    found.where[runtime] = where
    for i, subject in enumerate(subjects):
        speedup = comparison.speedups[i]
        found.shares[runtime] = speedup.share
        times, macs, params = comparison.seconds[i], subject.size.macs, subject.size.params
        ratio, spread = comparison.seconds[0][0] / times[0], (speedup.low, speedup.high)
        found.rows.append(Row(subject.name, runtime, macs, params, None, times, ratio, spread, speedup.settled))
    run = run_of(models[0])
    if run and models[0].stem == "dense" and (RunFolder(run).path / "report.json").is_file():
        for i, path in enumerate(models[1:], 1):
            if run_of(path) == run and path.stem == "best":
                note_in_report(run, comparison, i)
    return comparison


def _correct(
    latency: str, comparison: Comparison, subjects: Sequence[_Subject], imgsz: tuple[int, int]
) -> dict[str, float]:
    """Note what a kit has measured in a latency file, and return how many times as long as predicted each takes."""
    networks = [subject.network for subject in subjects if subject.network is not None]
    if len(networks) < len(subjects):
        raise ConfigError(f"latency={latency} is corrected by checkpoints: give dense.pt best.pt, not their exports.")
    return note_in_latency(latency, comparison, [trace(network, imgsz) for network in networks])


def _check_runtimes(names: Sequence[str]) -> None:
    for name in names:
        if name.partition(":")[0] not in RUNTIMES:
            raise ConfigError(f"runtimes={name} is none of {', '.join(RUNTIMES)}.")
        check_runtime(name)


def _measure_sizes(subjects: Sequence[_Subject], imgsz: tuple[int, int], scales: bool) -> list[_Subject]:
    """Count what each network has, and return the official scales that lie beside them, if they are asked for."""
    known = [s for s in subjects if s.network is not None]
    networks = [s.network for s in known if s.network is not None]
    for subject, network in zip(known, networks, strict=True):
        subject.size = measured(network, imgsz)
    beside = neighbours(networks, [s.size.macs or 0 for s in known], imgsz) if scales and networks else {}
    return [_Subject(name, {}, *of, is_official=True) for name, of in beside.items()]


def _export_missing(
    subjects: Sequence[_Subject], known: set[str], runtimes: Sequence[str], imgsz: tuple[int, int], folder: str
) -> None:
    """Make what is asked for and not there, for the while."""
    missing = []
    for subject in subjects:
        wanted = known & set(RUNTIMES) if subject.is_official else set(runtimes)
        if subject.network:
            missing += [(subject, subject.network, runtime) for runtime in sorted(wanted - subject.files.keys())]
    with progress_bar("exporting networks", len(missing)) as step:
        for subject, network, runtime in missing:
            subject.files[runtime] = export(network, runtime, imgsz, Path(tempfile.mkdtemp(dir=folder)))
            step()


def _time_all(
    found: Bench, subjects: Sequence[_Subject], known: set[str], channels: int, threads: int
) -> list[tuple[Row, _Subject]]:
    """Time what runs in each runtime, add the rows, and return each with what it is of."""
    timed: list[tuple[Row, _Subject]] = []
    for runtime in sorted(known):
        found.where[runtime] = described(runtime.partition(":")[0], threads)
        here = [s for s in subjects if runtime in s.files]
        rows, found.shares[runtime] = _timed(here, runtime, (1, channels, *found.imgsz), threads, found.rounds)
        timed += zip(rows, here, strict=True)
        found.rows += rows
    return timed


def _judge(judged: Sequence[tuple[Row, _Subject]], data: str, imgsz: tuple[int, int]) -> None:
    """Validate each file; a row tells what failed."""
    with progress_bar("validating", len(judged)) as step:
        for row, subject in judged:
            task = subject.network and guess_model_task(subject.network)
            try:
                row.fitness = fitness(subject.files[row.runtime], str(data), max(imgsz), task)
            except Exception as e:  # whatever a runtime raises, the times that are measured are told
                row.reason = describe_error(e)[:100]
            step()


def measured(network: nn.Module, imgsz: int | tuple[int, int]) -> Stage:
    """Return the multiply-adds and parameters of a network."""
    cost = CostModel(trace(network, imgsz))
    return Stage(cost.macs(), cost.params())


def neighbours(
    networks: Sequence[nn.Module], macs: Sequence[int], imgsz: int | tuple[int, int]
) -> dict[str, tuple[nn.Module, Stage]]:
    """Return the official scales that lie among networks of one family, and the next smaller and the next larger one.

    Args:
        networks: Those that are compared; an official scale that is one of them is left out.
        macs: Their multiply-adds.
        imgsz: Image size in pixels.

    Returns:
        Name -> network with random weights, and its size.
    """
    own = {Path(network.yaml.get("yaml_file", "")).stem for network in networks if not is_pruned(network.yaml)}
    found: dict[str, tuple[nn.Module, Stage]] = {}
    with silence():
        for name, other in siblings(networks[0]):
            if name in own:
                continue
            size = measured(other, imgsz)
            if (size.macs or 0) < min(macs):
                found.clear()
            found[name] = (other, size)
            if (size.macs or 0) > max(macs):
                break
    return found


def time_result(report: Report, best: Path, runtime: str) -> Speedup:
    """Measure a run's dense and final network and official scales next to them in turns, and note it in the report.

    Args:
        report: With the dense network's checkpoint, and the sizes of both.
        best: The final network's checkpoint.
        runtime: One of `config.RUNTIMES`.

    Returns:
        How many times as fast as the dense network the final one is, as far as that can be told.

    Raises:
        UnsupportedError: If the runtime is not there.
    """
    check_runtime(runtime)
    assert report.final is not None and report.dense.checkpoint is not None
    imgsz = (report.imgsz[0], report.imgsz[1])
    networks = [load_network(path) for path in (report.dense.checkpoint, best)]
    beside = neighbours(networks, [report.dense.macs or 0, report.final.macs or 0], imgsz)
    networks += [network for network, _ in beside.values()]
    report.scales = {name: size for name, (_, size) in beside.items()}
    timing = compare_networks(networks, runtime, imgsz)
    report.dense.latency, *latencies = map(float, typical(timing.seconds))
    for i, stage in enumerate((report.final, *report.scales.values())):
        stage.latency, stage.speedup = latencies[i], timing.speedup(1 + i)
    report.timed = described(runtime, all_threads())
    assert report.final.speedup is not None
    return report.final.speedup


@dataclass
class _Subject:
    """A network with its files."""

    name: str
    files: dict[str, Path]
    network: nn.Module | None = None
    size: Stage = field(default_factory=Stage)
    is_official: bool = False


def _given(model: str, folder: Path) -> _Subject:
    """Find a model and its exports; one that is built from a YAML is written to a folder."""
    path = Path(model)
    if path.suffix in {".yaml", ".yml"}:
        network = open_model(model).model
        folder.mkdir()
        return _Subject(path.stem, {"pytorch": export(network, "pytorch", (640, 640), folder)}, network)
    if not path.exists():
        raise ConfigError(f"there is no {model}: give checkpoints, exported files, or a model's YAML.")
    if path.suffix != ".pt":
        return _Subject(path.name, {_label(form_of(path)): path})
    exports = {_label(form): file for form, file in exports_of(path).items()}
    return _Subject(_short(path), {"pytorch": path, **exports}, load_network(path))


def _short(path: Path) -> str:
    """Return a checkpoint's name, with its run's where it lies in a run's folder."""
    return f"{run.name}/{path.name}" if (run := run_of(path)) else path.name


def _label(form: str) -> str:
    """Return a runtime's name, with the precision where it is not the usual one, for a form of `exports_of`."""
    name, colon, precision = form.partition(":")
    runtime = next((runtime for runtime, format in FORMATS.items() if format == name), name)
    return f"{runtime}{colon}{precision}"


def _timed(
    subjects: Sequence[_Subject], runtime: str, shape: tuple[int, ...], threads: int, rounds: int
) -> tuple[list[Row], float | None]:
    """Time what runs in one runtime, in turns, and return the share of the machine; a row tells what failed."""
    rows, runners, timed = [], [], []
    for subject in subjects:
        row = Row(subject.name, runtime, subject.size.macs, subject.size.params)
        rows.append(row)
        if not subject.is_official:
            row.bytes = file_size(subject.files[runtime])
        try:
            runner = file_runner(subject.files[runtime], shape, threads)
            runner()
        except Exception as e:  # whatever a runtime raises, the others can be timed
            row.reason = describe_error(e)[:100]
            continue
        runners.append(runner)
        timed.append(row)
    if not runners:
        return rows, None
    timing = settle(runners, rounds, None if is_on_gpu(runtime) else threads, progress_bar)
    lower, seconds = typical(timing.seconds), timing.seconds
    for i, row in enumerate(timed):
        row.seconds = (float(lower[i]), float(np.median(seconds[i])), float(np.quantile(seconds[i], 0.75)))
        found = timing.speedup(i)
        row.speedup, row.spread, row.settled = float(lower[0] / lower[i]), (found.low, found.high), found.settled
    return rows, timing.share
