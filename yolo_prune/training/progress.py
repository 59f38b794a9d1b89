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
from yolo_prune.training.schedule import ScheduledCut


@dataclass
class Progress:
    """The state of a run that is no tensor, to continue after an interruption.

    Attributes:
        config: The options.
        report: What has happened.
        epochs: Length of the run that the schedule was made for.
        goal: What the network is to cost in the end.
        dense_widths: Output width of each layer before the first cut.
        schedule: All cuts, those that are made and those to come.
        quantize_epoch: When the run turns to INT8, or None.
        guard: What has held and failed, from the first cut of a run with ``max_drop`` on.
        deadline: The epoch before which the latest cut is judged, or None.
        starts_pruned: Whether the network had the record of a pruned one before the first cut.
    """

    config: PruneConfig
    report: Report
    epochs: int
    goal: Goal = field(default_factory=lambda: Goal({}))
    dense_widths: dict[str, int] = field(default_factory=dict)
    schedule: list[ScheduledCut] = field(default_factory=list)
    quantize_epoch: int | None = None
    guard: Guard | None = None
    deadline: int | None = None
    starts_pruned: bool = False

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
            "dense_widths": self.dense_widths,
            "schedule": [[cut.epoch, cut.fraction] for cut in self.schedule],
            "quantize_epoch": self.quantize_epoch,
            "guard": self.guard.to_dict() if self.guard else None,
            "deadline": self.deadline,
            "starts_pruned": self.starts_pruned,
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
                dense_widths=dict(data["dense_widths"]),
                schedule=[ScheduledCut(*cut) for cut in data["schedule"]],
                quantize_epoch=data["quantize_epoch"],
                guard=Guard(**data["guard"]) if data["guard"] else None,
                deadline=data["deadline"],
                starts_pruned=bool(data.get("starts_pruned")),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise CheckpointError(
                f"what the interrupted run noted in its checkpoint cannot be read ({describe_error(e)}); "
                "resume it with the version of yolo_prune that it was started with."
            ) from e
