"""Where a run is: what it has done and still has to do, as plain data that its checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_prune.config.settings import PruneConfig
from yolo_prune.cost.budget import Goal
from yolo_prune.errors import CheckpointError, describe_error
from yolo_prune.report.records import Report
from yolo_prune.training.guard import Guard
from yolo_prune.training.schedule import ScheduledCut, attempts


@dataclass(frozen=True)
class Size:
    """One of several models that a run hands over.

    Attributes:
        name: Its target, as it was typed.
        fraction: Of the way from the dense model to the smallest, on which it lies, 0 < fraction <= 1.
        goal: What it is to cost.
    """

    name: str
    fraction: float
    goal: Goal


@dataclass
class Progress:
    """The state of a run that is no tensor, to continue after an interruption.

    Attributes:
        config: The options.
        report: What has happened.
        epochs: Length of the run that the schedule was made for.
        goal: What the network is to cost in the end.
        sizes: Models that are handed over, the largest first; none where there is one, ``best.pt``.
        dense_units: Units of each channel group before the first cut.
        schedule: All cuts, those that are made and those to come.
        quantize_epoch: When the run turns to INT8, or None.
        guard: What has held and failed, from the first cut of a run with ``max_drop`` on.
        deadline: The epoch before which the latest cut is judged, or None.
        starts_pruned: Whether the network had the record of a pruned one before the first cut.
        reference: Fitness of the dense model where it was measured before the first epoch, or None.
    """

    config: PruneConfig
    report: Report
    epochs: int
    goal: Goal = field(default_factory=lambda: Goal({}))
    sizes: list[Size] = field(default_factory=list)
    dense_units: dict[str, int] = field(default_factory=dict)
    schedule: list[ScheduledCut] = field(default_factory=list)
    quantize_epoch: int | None = None
    guard: Guard | None = None
    deadline: int | None = None
    starts_pruned: bool = False
    reference: float | None = None

    def settle(self, **options: Any) -> None:
        """Let options that were left open have a value."""
        self.config = self.config.replace(**options)
        self.report.config = self.config.to_dict()

    def budget(self, fraction: float) -> dict[str, float]:
        """Return what may stay at a fraction of the way; between sizes it is on the way to the next one."""
        size = next((size for size in self.sizes if fraction <= size.fraction), None)
        return size.goal.at(fraction / size.fraction) if size else self.goal.at(fraction)

    @property
    def fraction(self) -> float:
        """How far on the way the latest cut went; 0 before the first."""
        made = len(self.report.cuts)
        return self.schedule[made - 1].fraction if made else 0.0

    @property
    def landed(self) -> Size | None:
        """The size that the latest cut landed on, or None."""
        return next((size for size in self.sizes if size.fraction == self.fraction), None)

    def lands(self, fraction: float) -> bool:
        """Whether a model that is handed over lies at a fraction of the way."""
        return fraction == 1.0 or any(size.fraction == fraction for size in self.sizes)

    def due(self, now: int) -> list[ScheduledCut]:
        """Return the cuts whose time has come, to be made as one: with ``time=`` a run may pass several in one epoch.

        No size is passed: what goes beyond it waits for the next epoch.
        """
        passed = [scheduled for scheduled in self.pending if scheduled.epoch <= now]
        first = next((i for i, scheduled in enumerate(passed) if self.lands(scheduled.fraction)), len(passed))
        return passed[: first + 1]

    @property
    def part(self) -> tuple[int, int]:
        """The first epoch of what the size that comes next has of the run, and the epoch after its last."""
        ends = [i for i, scheduled in enumerate(self.schedule) if self.lands(scheduled.fraction)]
        now = max(len(self.report.cuts) - 1, 0)
        begins = [0, *(self.schedule[i + 1].epoch for i in ends if i + 1 < len(self.schedule)), self.epochs]
        number = sum(i < now for i in ends)
        return begins[number], begins[number + 1]

    @property
    def attempts(self) -> tuple[int, int, int]:
        """When a run that finds its own target makes its first attempt and a long one, and the length of the others."""
        start, end = self.config.span(self.report.dense.finished is not False)
        return attempts(epochs=self.float_epochs, start=start, end=end)

    @property
    def is_active(self) -> bool:
        """Whether the run is or was to change its network."""
        return bool(self.schedule) or self.quantize_epoch is not None or self.report.given is not None

    @property
    def pending(self) -> list[ScheduledCut]:
        """Cuts that have not been made yet."""
        return self.schedule[len(self.report.cuts) :]

    @property
    def quantizes(self) -> bool:
        """Whether the run still has to turn to INT8."""
        return self.quantize_epoch is not None and self.report.quantization is None

    @property
    def float_epochs(self) -> int:
        """How long the run computes in float: until the step to INT8, or the end."""
        return self.quantize_epoch if self.quantizes and self.quantize_epoch is not None else self.epochs

    @property
    def changes(self) -> int:
        """How often the network has changed, cuts that were taken back included."""
        failures = len(self.guard.failures) if self.guard else 0
        return len(self.report.cuts) + 2 * failures + (self.report.quantization is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "config": self.config.to_dict(),
            "report": {k: v for k, v in self.report.to_dict().items() if k in Report.NOTED},
            "epochs": self.epochs,
            "goal": self.goal.to_dict(),
            "sizes": [[size.name, size.fraction, size.goal.to_dict()] for size in self.sizes],
            "dense_units": self.dense_units,
            "schedule": [[cut.epoch, cut.fraction] for cut in self.schedule],
            "quantize_epoch": self.quantize_epoch,
            "guard": self.guard.to_dict() if self.guard else None,
            "deadline": self.deadline,
            "starts_pruned": self.starts_pruned,
            "reference": self.reference,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """Read what ``to_dict`` wrote.

        Raises:
            CheckpointError: If something is missing or wrong.
        """
        try:
            return cls(
                config=PruneConfig.from_dict(data["config"]),
                report=Report.from_dict(data["report"]),
                epochs=int(data["epochs"]),
                goal=Goal.from_dict(data["goal"]),
                sizes=[Size(name, fraction, Goal.from_dict(goal)) for name, fraction, goal in data.get("sizes", ())],
                dense_units=dict(data.get("dense_units", {})),  # 0.2.0 noted others
                schedule=[ScheduledCut(*cut) for cut in data["schedule"]],
                quantize_epoch=data["quantize_epoch"],
                guard=Guard(**data["guard"]) if data["guard"] else None,
                deadline=data["deadline"],
                starts_pruned=bool(data.get("starts_pruned")),
                reference=data.get("reference"),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"what the interrupted run noted in its checkpoint cannot be read ({describe_error(e)}); "
                "resume it with the version of yolo_prune that it was started with."
            ) from e
