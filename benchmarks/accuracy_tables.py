"""Tables of what `accuracy.py` has made, which prints them.

An accuracy stands with its standard error, a difference with its 95 % interval, where the runs were judged by resampled
validation images (see `validation.py`); both count the spread of the seeds where there are several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from accuracy import CONTENDERS, INGREDIENTS, TIMED, Case, Run, planned, result, score
from validation import differences, standard_error

NAMES = {
    "usual": "usual recipe",
    "cwd": "L1 and CWD",
    "narrow": "narrower",
    "scratch": "ours from scratch",
    "ours:random channels": "random channels",
    "one-run": "in one run",
}
INTERVAL = 1.96
"""Half of a normal distribution's 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Row:
    """A model and data set at a share of the MACs, of the seeds for which ours is made.

    Attributes:
        cases: One for each seed.
        kept: Percent of the MACs that stay.
    """

    cases: tuple[Case, ...]
    kept: int

    @property
    def name(self) -> str:
        """Model and data set."""
        return f"{self.cases[0].model}, {self.cases[0].data}"

    def runs(self, contender: str) -> list[Run]:
        """Return a contender's runs of all seeds, or none where one is missing."""
        runs = [Run(case, contender, 100 if contender == "dense" else self.kept) for case in self.cases]
        return runs if all(result(run) for run in runs) else []


def rows() -> list[Row]:
    """Return the rows of the comparison."""
    cases: dict[tuple[str, str, int], list[Case]] = {}
    for run in planned():
        if run.contender == "ours" and result(run):
            cases.setdefault((run.case.model, run.case.data, run.kept), []).append(run.case)
    order = list(dict.fromkeys(key[:2] for key in cases))
    keys = sorted(cases, key=lambda key: (order.index(key[:2]), -key[2]))
    return [Row(tuple(cases[key]), key[2]) for key in keys]


def contenders() -> list[str]:
    """Return the contenders of which there is something to show."""
    return [contender for contender in CONTENDERS if any(row.runs(contender) for row in rows())]


def accuracy(runs: Sequence[Run]) -> str:
    """Return ``0.603 ± 0.011``: the mean over trainings, and its standard error."""
    if not runs:
        return ""
    error, said = error_of(draws(runs)), f"{mean(map(score, runs)):.3f}"
    return said if error is None else f"{said} ± {error:.3f}"


def difference(ours: Sequence[Run], others: Sequence[Run]) -> str:
    """Return ``-1.4 ± 0.8``: the difference of two contenders in points, and its 95 % interval."""
    if not (ours and others):
        return ""
    points = 100 * (mean(map(score, ours)) - mean(map(score, others)))
    one, other = draws(ours), draws(others)
    error = error_of(differences(one, other)) if one and other else None
    return f"{points:+.1f}" if error is None else with_interval(points, error)


def with_interval(points: float, error: float) -> str:
    """Return points with their 95 % interval, of a standard error as a share: ``-1.4 ± 0.8``."""
    return f"{points:+.1f} ± {100 * INTERVAL * error:.1f}"


def draws(runs: Sequence[Run]) -> list[list[float]]:
    """Return the resampled accuracies of each run, or none where a run was not judged by them."""
    found = [(result(run) or {})["plain_process"].get("resampled", {}).get(run.case.metric) for run in runs]
    return found if all(found) else []


def error_of(found: Sequence[Sequence[float]]) -> float | None:
    """Return the standard error of the mean over trainings, or None without resampled accuracies."""
    return standard_error(found) if found else None


def table() -> str:
    """Return the comparison: what each contender reached."""
    shown = contenders()
    lines = [
        "| model, data | seeds | MACs kept | " + " | ".join(NAMES.get(c, c) for c in shown) + " |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for row in rows():
        cells = (accuracy(row.runs(contender)) for contender in shown)
        lines.append(f"| {row.name} | {len(row.cases)} | {row.kept} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference_table() -> str:
    """Return by how many points of mAP50-95 ours is above the others."""
    others = [contender for contender in contenders() if contender not in ("ours", "one-run")]
    lines = [
        "| ours, in points above | seeds | MACs kept | " + " | ".join(NAMES.get(c, c) for c in others) + " |",
        "|---" * (3 + len(others)) + "|",
    ]
    for row in rows():
        cells = (difference(row.runs("ours"), row.runs(contender)) for contender in others)
        lines.append(f"| {row.name} | {len(row.cases)} | {row.kept} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary() -> str:
    """Return the rows of the comparison that the README shows."""
    shown = ("dense", "usual", "narrow", "ours")
    lines = [
        "| model, data | MACs kept | dense | usual recipe | narrower model | yolo_prune |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows():
        if row.kept == 50 or (row.cases[0].model, row.kept) == ("yolov8n", 30):
            cells = (f"{mean(map(score, row.runs(contender))):.3f}" for contender in shown)
            lines.append(f"| {row.name} | {row.kept} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation() -> str:
    """Return what each ingredient brings: the lowest accuracy right after a cut, the final one, and its change."""
    lines = [
        "| ours at 50 % of the MACs | seeds | right after a cut | mAP50-95 | change, in points |",
        "|---|---|---|---|---|",
    ]
    for name, runs in _ablated():
        lowest = mean(min(cut["fitness_cut"] for cut in (result(run) or {})["report"]["cuts"]) for run in runs)
        change = difference(runs, [replace(run, contender="ours") for run in runs]) if name else ""
        lines.append(f"| {name or 'defaults'} | {len(runs)} | {lowest:.3f} | {accuracy(runs)} | {change} |")
    return "\n".join(lines)


def _ablated() -> Iterator[tuple[str, list[Run]]]:
    """Yield each ingredient with its runs, the defaults first, on the seeds of the first ingredient."""
    runs = [run for run in planned() if run.contender.startswith("ours:") and run.case.data == "bccd"]
    for name in ("", *INGREDIENTS):
        cases = [run.case for run in runs if run.contender == f"ours:{name or next(iter(INGREDIENTS))}"]
        made = [run for case in cases if result(run := Run(case, f"ours:{name}" if name else "ours", 50))]
        if made:
            yield name, made


def time_table() -> str:
    """Return what training took: seconds per epoch, and minutes in total, with what is done between the epochs."""
    shown = contenders()
    lines = [
        "| model, data | " + " | ".join(NAMES.get(c, c) for c in shown) + " |",
        "|---" * (1 + len(shown)) + "|",
    ]
    for case in TIMED:
        cells = []
        for contender in shown:
            made = result(Run(case, contender, 100 if contender == "dense" else 50))
            cells.append(f"{made['seconds']['per_epoch']} s ({made['seconds']['total'] / 60:.1f} min)" if made else "")
        lines.append(f"| {case.model}, {case.data} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables() -> str:
    """Return all tables."""
    return "\n\n".join((table(), difference_table(), ablation(), time_table()))
