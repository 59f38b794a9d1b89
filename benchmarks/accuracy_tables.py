"""Tables of what `accuracy.py` has made, which prints them.

An accuracy stands with its standard error, a difference with its 95 % interval, where the runs were judged by resampled
validation images (see `validation.py`); both count the spread of the seeds where there are several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from accuracy import (
    BEST,
    CONTENDERS,
    INGREDIENTS,
    LABELS_ALONE,
    LAST,
    SMALL,
    TIMED,
    WAYS,
    WITHOUT_TEACHER,
    Case,
    Run,
    planned,
    result,
)
from validation import Judged, accuracy, difference, judged

TRIED = {f"ours:{way}": f"ours, {way}" for way in WAYS}
"""Contender -> its name, of ours in another way than by default."""
NAMES = {
    "usual": "usual recipe",
    "cwd": "L1 and CWD",
    "narrow": "narrower",
    "scratch": "ours from scratch",
    "ours:random channels": "random channels",
    LABELS_ALONE: "ours without distillation",
    **TRIED,
    "one-run": "in one run",
}
FEW = ("raccoon",)
"""Data sets whose rows at half of the MACs the README leaves out, because few images judge."""
ABOVE = "ours, in points above"
DETAILED = "deeppcb"
"""The data set of which a table of its own tells more."""
COARSE = "mAP50(B)"
"""What it tells beside mAP50-95: a metric that small shifts of boxes do not change."""


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

    def having(self, contender: str) -> Row:
        """Return the row of the seeds for which a contender is made."""
        return replace(self, cases=tuple(case for case in self.cases if replace(self, cases=(case,)).runs(contender)))


def rows() -> list[Row]:
    """Return the rows of the comparison."""
    cases: dict[tuple[str, str, int], list[Case]] = {}
    for run in planned():
        if run.contender == "ours" and result(run):
            cases.setdefault((run.case.model, run.case.data, run.kept), []).append(run.case)
    order = list(dict.fromkeys(key[:2] for key in cases))
    keys = sorted(cases, key=lambda key: (order.index(key[:2]), -key[2]))
    return [Row(tuple(cases[key]), key[2]) for key in keys]


def told(row: Row, contender: str, metric: str = "", judge: str = "") -> str:
    """Return what a contender reached, by a metric and a judge or by those that are compared: ``0.603 ± 0.011``."""
    return accuracy(_judged(row.runs(contender), metric, judge))


def above(row: Row, contender: str, metric: str = "", judge: str = "") -> str:
    """Return by how many points ours is above a contender: ``-1.4 ± 0.8``."""
    return difference(*(_judged(row.runs(of), metric, judge) for of in ("ours", contender)))


def _judged(runs: Sequence[Run], metric: str = "", judge: str = "") -> Judged:
    """Return what the judges found of runs, or none where one is missing."""
    found = [made[judge or run.case.judge] for run in runs if (made := result(run))]
    return judged(found if len(found) == len(runs) else (), metric or (runs[0].case.metric if runs else ""))


def table() -> str:
    """Return the comparison: what each contender reached."""
    return _table("model, data", told)


def difference_table() -> str:
    """Return by how many points of mAP50-95 ours is above the others."""
    return _table(ABOVE, above, without=("ours", "one-run"))


def detailed_table() -> str:
    """Return what each contender reached on `DETAILED` in its last epoch, and by how many points ours is above it."""
    return _detailed("last epoch", LAST)


def best_table() -> str:
    """Return the same of the best epoch, as Ultralytics validates it."""
    return _detailed("best epoch", BEST)


def _detailed(head: str, judge: str) -> str:
    """Return a table with a line for each contender of a row, and two columns for each of two metrics."""
    lines = [f"| {head} | | seeds | params | mAP50-95 | {ABOVE} | mAP50 | {ABOVE} |", "|---" * 8 + "|"]
    detailed = [row for row in rows() if row.cases[0].data == DETAILED]
    both = ((row.having(contender), contender) for row in detailed for contender in (*CONTENDERS, *TRIED))
    for row, contender in ((row, contender) for row, contender in both if row.cases):
        of, name = f"{row.cases[0].model}, {row.kept} %", NAMES.get(contender, contender)
        cells = [of, name, str(len(row.cases)), params(row, contender)]
        for metric in (row.cases[0].metric, COARSE):
            gain = "" if contender == "ours" else above(row, contender, metric, judge)
            cells += [told(row, contender, metric, judge), gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def params(row: Row, contender: str) -> str:
    """Return the parameters of a contender in millions, mean of its seeds; of dense those that ours begins with."""
    of, stage = ("ours", "dense") if contender == "dense" else (contender, "final")
    found = [(result(run) or {})["report"][stage]["params"] for run in row.runs(of)]
    return f"{mean(found) / 1e6:.2f} M"


def _table(head: str, cell: Callable[[Row, str], str], without: Sequence[str] = ()) -> str:
    """Return a table with a line for each row that `detailed_table` has not, and a column for each contender."""
    shown_rows = [row for row in rows() if row.cases[0].data != DETAILED]
    shown = [c for c in CONTENDERS if c not in without and any(row.runs(c) for row in shown_rows)]
    lines = [
        f"| {head} | seeds | MACs kept | " + " | ".join(NAMES.get(c, c) for c in shown) + " |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for row in shown_rows:
        cells = " | ".join(cell(row, contender) for contender in shown)
        lines.append(f"| {row.name} | {len(row.cases)} | {row.kept} % | {cells} |")
    return "\n".join(lines)


def small_table() -> str:
    """Return what half of the MACs costs a network that is small already, beside itself trained on."""
    lines = ["| model, data | MACs kept | params | mAP50-95 | change, in points |", "|---|---|---|---|---|"]
    for small in (row for row in rows() if row.kept == SMALL["small"]):
        half = replace(small, kept=SMALL["smaller"])
        if small.runs("small") and half.runs("smaller"):
            change = difference(_judged(half.runs("smaller")), _judged(small.runs("small")))
            for of, contender, cost in ((small, "small", ""), (half, "smaller", change)):
                cells = (of.name, f"{of.kept} %", params(of, contender), told(of, contender), cost)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary() -> str:
    """Return the rows of the comparison that the README shows."""
    shown = ("dense", "usual", "cwd", "narrow", "ours")
    lines = [
        "| model, data | MACs kept | dense | usual recipe | L1 and CWD | narrower model | yolo_prune |",
        "|---" * (2 + len(shown)) + "|",
    ]
    for row in sorted(rows(), key=lambda row: row.cases[0].data != DETAILED):
        data = row.cases[0].data
        if data == DETAILED or (row.kept == 50 and data not in FEW):
            shared = _shared(row, shown) if data == DETAILED else row
            cells = " | ".join(told(shared, contender) for contender in shown)
            lines.append(f"| {row.name} | {row.kept} % | {cells} |")
    return "\n".join(lines)


def _shared(row: Row, contenders: Sequence[str]) -> Row:
    """Return the row of the seeds for which all contenders are made that are made at all."""
    for contender in contenders:
        of = row.having(contender)
        row = of if of.cases else row
    return row


def ablation() -> str:
    """Return what each ingredient brings: the lowest accuracy right after a cut, the final one, and its change."""
    lines = [
        "| ours at 50 % of the MACs | seeds | right after a cut | mAP50-95 | change, in points |",
        "|---|---|---|---|---|",
    ]
    for name, runs in _ablated():
        lowest = mean(min(cut["fitness_cut"] for cut in (result(run) or {})["report"]["cuts"]) for run in runs)
        found, usual = _judged(runs), _judged([replace(run, contender=LABELS_ALONE) for run in runs])
        change = "" if name == WITHOUT_TEACHER else difference(found, usual)
        lines.append(f"| {name or 'defaults'} | {len(runs)} | {lowest:.3f} | {accuracy(found)} | {change} |")
    return "\n".join(lines)


def _ablated() -> Iterator[tuple[str, list[Run]]]:
    """Yield each ingredient with its runs, the defaults first, on the seeds of the one after distillation."""
    runs = [run for run in planned() if run.contender.startswith("ours:") and run.case.data == "bccd"]
    _, second, *_ = INGREDIENTS
    for name in ("", *INGREDIENTS):
        of = second if name in ("", WITHOUT_TEACHER) else name
        cases = [run.case for run in runs if run.contender == f"ours:{of}"]
        made = [run for case in cases if result(run := Run(case, f"ours:{name}" if name else "ours", 50))]
        if made:
            yield name, made


def time_table() -> str:
    """Return what training took: seconds per epoch, and minutes in total, with what is done between the epochs."""
    made = {(c, case): result(Run(case, c, 100 if c == "dense" else 50)) for c in CONTENDERS for case in TIMED}
    shown = [c for c in CONTENDERS if any(made[c, case] for case in TIMED)]
    lines = [
        "| model, data | " + " | ".join(NAMES.get(c, c) for c in shown) + " |",
        "|---" * (1 + len(shown)) + "|",
    ]
    for case in TIMED:
        times = [found["seconds"] if (found := made[c, case]) else None for c in shown]
        cells = (f"{of['per_epoch']} s ({of['total'] / 60:.1f} min)" if of else "" for of in times)
        lines.append(f"| {case.model}, {case.data} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> str:
    """Return all tables."""
    return "\n\n".join(
        (detailed_table(), best_table(), table(), difference_table(), small_table(), ablation(), time_table())
    )
