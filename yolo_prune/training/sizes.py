"""Several models of one run: the file of each, once a cut has landed on its size and recovered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolo_prune.config.sizes import checkpoint_name
from yolo_prune.host import ddp
from yolo_prune.host.trainer import validate_file
from yolo_prune.report.records import SizeRecord
from yolo_prune.training.run_files import save_best
from yolo_prune.utils.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    from yolo_prune.training.run import Run


def keep_size(run: Run) -> None:
    """Keep the best model since the latest cut as that of its size, if it has landed on one; again changes nothing."""
    size, trainer, report = run.progress.landed, run.trainer, run.report
    if size is None:
        return
    path = trainer.wdir / checkpoint_name(size.name)
    ddp.on_rank_zero(lambda: save_best(run, path))
    _note(run, size.name, path, ddp.broadcast(report.cuts[-1].fitness_recovered))


def validate_sizes(run: Run) -> None:
    """Measure the fitness of the files of all sizes but the last, as a run's end measures that of ``best.pt``."""
    landed = run.progress.landed
    for record in run.report.sizes:
        if landed is None or record.size != landed.name:
            record.fitness = validate_file(run.trainer, str(record.checkpoint))


def keep_last_size(run: Run) -> None:
    """Give ``best.pt``, validated and stripped, the name of its size as well."""
    trainer, landed = run.trainer, run.progress.landed
    if landed is None or not trainer.best.exists():
        return
    path = trainer.wdir / checkpoint_name(landed.name)
    if ddp.is_first():
        with atomic_write(path) as draft:
            draft.write_bytes(trainer.best.read_bytes())
    fitness = getattr(getattr(trainer.validator, "metrics", None), "fitness", None)
    _note(run, landed.name, path, None if fitness is None else float(fitness))


def _note(run: Run, name: str, path: Path, fitness: float | None) -> None:
    """Write a size's figures into the report, as the latest one."""
    cut, others = run.report.cuts[-1], [record for record in run.report.sizes if record.size != name]
    record = SizeRecord(
        macs=cut.macs,
        params=cut.params,
        bytes=path.stat().st_size if ddp.is_first() else None,
        fitness=fitness,
        checkpoint=str(path),
        latency=cut.latency,
        size=name,
        cut=len(run.report.cuts),
    )
    run.report.sizes = [*others, record]
