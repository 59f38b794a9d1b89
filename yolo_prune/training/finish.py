"""After the last epoch: what came out is measured, exported and written down."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from yolo_prune.blocks import map_readers
from yolo_prune.config.settings import PruneConfig
from yolo_prune.config.targets import BYTES, LATENCY, Target, in_units, read_targets
from yolo_prune.cost.latency import LatencyModel
from yolo_prune.cost.model import CostModel
from yolo_prune.deploy.bench import time_result
from yolo_prune.deploy.export import export_all
from yolo_prune.deploy.file_sizes import file_sizes
from yolo_prune.deploy.formats import compressed_size
from yolo_prune.deploy.latency_profile import USUAL
from yolo_prune.device.command import is_command
from yolo_prune.errors import ExportError, PruneError, TargetError, UnsupportedError, listed
from yolo_prune.graph.groups import are_multiples
from yolo_prune.graph.layers import named_layers, widths
from yolo_prune.graph.trace import trace
from yolo_prune.graph.zeros import share_of_zeros, sparse_layers, zeros_of
from yolo_prune.host import qat
from yolo_prune.host.checkpoint import is_marked, is_pruned, unmark_file
from yolo_prune.host.trainer import validation_files, validation_images
from yolo_prune.report import page, zeros
from yolo_prune.report.records import Report, Stage
from yolo_prune.utils.console import log
from yolo_prune.utils.paths import is_inside
from yolo_prune.utils.run_folder import RunFolder
from yolo_prune.utils.text import aligned, change, count, milliseconds, score

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.engine.trainer import BaseTrainer


def hand_over(
    trainer: BaseTrainer, config: PruneConfig, report: Report, unfinished: PruneError | None
) -> PruneError | None:
    """Complete and save the report of a run, export its best checkpoint, and tell of all in one summary.

    Args:
        trainer: At ``on_train_end``, after the final validation.
        config: The options.
        report: With what has happened; what came out is added.
        unfinished: What to say if the run ended before its last step, or None.

    Returns:
        What is wrong with the result, or None.
    """
    best = trainer.best if trainer.best.exists() else trainer.last
    network = qat.load_plain(best)
    folder = RunFolder(trainer.save_dir).path
    has_changed = _complete(trainer, config, report, network, best, bool(unfinished))
    path = report.save(folder)  # what follows can take minutes, and a run can be killed
    timed, untimed = "", None
    is_comparable = config.cuts_channels and (bool(config.latency) or not report.quantization)  # zeros take as long
    if report.cuts and is_comparable and (report.dense.latency or config.benchmark):
        timed, untimed = _time(config, report, best, RunFolder(trainer.save_dir))
        for size in report.sizes:
            size.latency = report.cuts[size.cut - 1].latency
        report.save(folder)
    summary = [f"done\n{report.table()}" if has_changed else "done", timed]
    if report.given:
        summary.append(report.given.told())
    if report.guard:
        summary.append(_held(report, report.guard))
    if report.sizes:
        summary.append(f"sizes: {', '.join(Path(str(size.checkpoint)).name for size in report.sizes)}")
    summary.append(reid_hint(network) if report.cuts else "")
    if report.zeros:
        summary += zeros.lines(report.zeros, str(best))
    failed = None
    if config.export:
        failed = _export(trainer, config, report, best)
        failed = _export_sizes(trainer, config, report) or failed
        report.save(folder)
        summary.append(f"exports, compared with {best.name}:\n{report.export_table()}")
    try:
        path = page.write(trainer.save_dir, plots=trainer.args.plots)
    except Exception as e:  # whatever it is, the run is done
        summary.append(f"no {page.NAME} ({type(e).__name__}: {e}); yolo-prune report {trainer.save_dir} tries it again")
    log("\n".join(filter(None, (*summary, f"checkpoint {best}, report {path}"))))
    return unfinished or _too_large(config, report, network) or untimed or failed


def _complete(
    trainer: BaseTrainer,
    config: PruneConfig,
    report: Report,
    network: nn.Module,
    best: Path,
    is_unfinished: bool,
) -> bool:
    """Write what came out into the report, and make checkpoints plain again where nothing was cut.

    Returns:
        Whether the run has or was to change its network.
    """
    has_changed = bool(report.cuts or report.guard or report.quantization or is_unfinished)
    report.final = final = _final_stage(network, best, trainer.args.imgsz)
    fitness = getattr(getattr(trainer.validator, "metrics", None), "fitness", None)
    final.fitness = None if fitness is None else float(fitness)
    if config.zeros and report.cuts:
        report.zeros = zeros_of(sparse_layers(network, config.is_ignored))
        dense = Path(str(report.dense.checkpoint))
        for stage, of, file in ((report.dense, qat.load_plain(dense), dense), (final, network, best)):
            stage.sparsity, stage.compressed = (
                share_of_zeros(sparse_layers(of, config.is_ignored)),
                compressed_size(file),
            )
    if not has_changed:
        report.dense = final
    if not report.cuts and is_marked(network.yaml) and not is_pruned(network.yaml):
        for file in (trainer.best, trainer.last):
            if file.exists():
                unmark_file(file)
    if report.cuts and report.dense.checkpoint:
        blocks = {path for record in report.cuts for path in record.blocks}
        report.layers = _widths(qat.load_plain(Path(report.dense.checkpoint)), network, blocks)
    report.samples, report.maps = validation_files(trainer), [*map_readers(network).values()]
    return has_changed


def _export(trainer: BaseTrainer, config: PruneConfig, report: Report, best: Path) -> ExportError | None:
    """Make the exports, and return what failed."""
    report.exports = export_all(best, config.export, validation_images(trainer), trainer.args.data)
    reasons = [f"{e.format}: {e.reason}" for e in report.exports if not e.ok]
    return ExportError("; ".join(reasons)) if reasons else None


def reid_hint(network: nn.Module) -> str:
    """Return a hint for a pruned network in which a tracker finds no features of objects, else nothing.

    Ultralytics takes features from the maps of any detection head but an end-to-end one; there it loads another model.
    """
    maps, rows = list(map_readers(network).values()), cast("nn.Sequential", network.model)
    if are_multiples(maps) or getattr(rows[-1], "end2end", False):
        return ""
    return (
        f"the head reads maps of {listed(maps)} channels: tracking with with_reid and model: auto needs multiples of "
        "the smallest (prune with reid=True)"
    )


def _time(config: PruneConfig, report: Report, best: Path, run_folder: RunFolder) -> tuple[str, ExportError | None]:
    """Measure what came out, and return how it compares with what was predicted, and what is wrong."""
    if config.latency:
        return _elsewhere(report, best, LatencyModel.load(run_folder.latency)), None
    expected, runtime = report.dense.latency, config.runtime or USUAL
    try:
        speedup = time_result(report, best, runtime)
    except Exception as e:  # whatever an exporter or a runtime raises, the run is done
        reason = f"the result could not be timed: {e if isinstance(e, PruneError) else repr(e)}"
        if any(target.quantity == LATENCY for target in config.targets):
            return "", ExportError(reason)
        return reason, None
    told = f"{runtime}: {speedup.told()}"
    if expected:
        told += f"; {expected / (report.cuts[-1].latency or expected):.2f}x were predicted"
        for record in report.cuts:  # a machine has fast and slow hours: what was predicted is a share of dense
            record.latency = (record.latency or 0.0) * (report.dense.latency or 0.0) / expected
    if not speedup.settled:
        told += f"\ntime both again when the machine is idle: {_again(report, best, runtime)}"
    return told, None


def _elsewhere(report: Report, best: Path, latency: LatencyModel) -> str:
    """Return what is predicted of the device that a kit has measured, and how to time the result there."""
    assert report.final is not None
    report.final.latency = predicted = report.cuts[-1].latency or latency.dense
    spread = f" (±{max(latency.errors):.1%})" if latency.errors else ""
    return (
        f"predicted for {latency.where['device']}: {milliseconds(predicted)}{spread}, "
        f"{_predicted(latency.dense / predicted, max(latency.errors, default=0.0))}; to time both there: "
        f"{_again(report, best, latency.where['runtime'], in_kit=True)}"
    )


def _again(report: Report, best: Path, runtime: str, in_kit: bool = False) -> str:
    """Return the command that times a run's dense and final network side by side, here or elsewhere."""
    sides = f"{shlex.quote(str(report.dense.checkpoint))} {shlex.quote(str(best))}"
    if in_kit or is_command(runtime):
        return f"yolo-prune kit {sides} imgsz={max(report.imgsz)} {shlex.quote(f'runtime={runtime}')}"
    return f"yolo-prune bench {sides} runtimes={runtime}"


def _predicted(ratio: float, error: float) -> str:
    """Return a predicted speed-up as text, as far as predictions of other networks were right."""
    low, high = ratio / (1 + error), ratio / (1 - error) if error < 1 else float("inf")
    if not error:
        return f"{ratio:.2f}x as fast as dense"
    return "about as fast as dense" if low <= 1 <= high else f"{low:.2f}-{high:.2f}x as fast as dense"


def _held(report: Report, guard: Mapping[str, Any]) -> str:
    """Return lines on the outcome of ``max_drop``, or nothing."""
    floor, is_search = guard["dense"] * (1 - guard["max_drop"]), guard.get("is_search", False)
    told = f"max_drop={guard['max_drop']:g} asks for fitness {floor:.4f}"
    if guard["failures"] or is_search:
        told += f": {_outcome(report, floor)}"
    if not guard.get("finished", report.dense.finished is not False):
        told += f"; that is a low bar, since the dense model {report.dense.unfinished}"
    elif not (guard["failures"] or is_search):
        return ""
    made = {size.size for size in report.sizes}
    if missing := [size for size in report.config.get("sizes", ()) if size not in made]:
        told += f"\nnot made, since no cut on the way there held: {', '.join(missing)}"
    return f"{told}\n{_tried(report, guard)}" if is_search else told


def _outcome(report: Report, floor: float) -> str:
    """Return what is handed over where cuts have been judged."""
    if report.cuts:
        return "this is the smallest model that held"
    fitness = report.final.fitness if report.final else None
    if fitness is None or fitness >= floor:
        return "no cut held, so this is dense"
    return f"no cut held, so this is dense, which training has brought to {fitness:.4f}; keep what the run began with"


def _tried(report: Report, guard: Mapping[str, Any]) -> str:
    """Return a table of the cuts that a search has tried."""
    rows: list[tuple[str, ...]] = [("tried", "MACs", "fitness", "")]
    for attempt in sorted([*guard["tried"], *guard["failures"]], key=lambda attempt: int(attempt["epoch"])):
        macs = count(attempt["macs"]) + change(attempt["macs"], report.dense.macs)
        outcome = "held" if attempt in guard["tried"] else "taken back"
        rows.append((f"epoch {attempt['epoch']}", macs, score(attempt["fitness"]), outcome))
    return aligned(rows)


def _export_sizes(trainer: BaseTrainer, config: PruneConfig, report: Report) -> ExportError | None:
    """Make the exports of all sizes but the last, which is the run's, and return what failed."""
    reasons = []
    for size in report.sizes[:-1]:
        file = Path(str(size.checkpoint))
        size.exports = export_all(file, config.export, validation_images(trainer), trainer.args.data)
        reasons += [f"{file.name}, {e.format}: {e.reason}" for e in size.exports if not e.ok]
    return ExportError("; ".join(reasons)) if reasons else None


def _too_large(config: PruneConfig, report: Report, network: nn.Module) -> TargetError | None:
    """Return an error if a file is larger than was asked for; everything else is exact.

    Args:
        config: The options.
        report: With the dense network's checkpoint, and the bytes of all checkpoints.
        network: The final one.
    """
    final = report.final
    if final is None or not report.cuts or report.guard:
        return None
    if not report.sizes:
        return _larger(config.targets, report, final, network)
    sizes = ((size, qat.load_plain(Path(str(size.checkpoint)))) for size in report.sizes)
    found = (_larger(read_targets(size.size), report, size, of) for size, of in sizes)
    return next(filter(None, found), None)


def _larger(targets: Sequence[Target], report: Report, stage: Stage, network: nn.Module) -> TargetError | None:
    """Return an error if the file of a network is larger than targets ask for."""
    found = [(t, report.dense.bytes or 0, stage.bytes or 0) for t in targets if t.quantity == BYTES]
    if files := [target for target in targets if target.form]:
        size = (report.imgsz[0], report.imgsz[1])
        dense = file_sizes(qat.load_plain(Path(str(report.dense.checkpoint))), files, size)
        now = file_sizes(network, files, size)
        found += [(target, dense[target.quantity], now[target.quantity]) for target in files]
    for target, before, after in found:
        if after > target.limit(before):
            asked, has = (in_units(target.quantity, of, digits=4) for of in (target.limit(before), after))
            return TargetError(f"{stage.checkpoint} has {has}, {asked} were asked for: ask for a little less.")
        if target.form:
            log(f"exported, {stage.checkpoint} has {in_units(target.quantity, after)}; {target} was asked for")
    return None


def _widths(dense: nn.Module, final: nn.Module, removed: Collection[str]) -> dict[str, dict[str, int]]:
    """Return the report's ``layers``, of networks between which blocks were removed."""
    after = dict(named_layers(final))
    return {
        path: {"before": sides["out"], "after": widths(after[path])["out"] if path in after else 0}
        for path, layer in named_layers(dense)
        if "in" in (sides := widths(layer)) and (path in after or is_inside(path, removed))
    }


def _final_stage(network: nn.Module, best: Path, imgsz: int) -> Stage:
    """Return the figures of a checkpoint; where nothing was cut, it may be of a kind that cannot be traced."""
    stage = Stage(params=sum(p.numel() for p in network.parameters()), bytes=best.stat().st_size, checkpoint=str(best))
    with suppress(UnsupportedError):
        stage.macs = CostModel(trace(network, imgsz)).macs()
    return stage
