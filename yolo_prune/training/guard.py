"""The guard: how much accuracy a run may lose, and what to do when a cut costs more.

After a cut the network has its recovery epochs to come back to the floor. If it does not, the run goes back to the
state before that cut and tries half of the step, twice at most; then it stops cutting, and the epochs that are left
recover.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ATTEMPTS = 2
"""Smaller steps that are tried after the first one that was too large."""


@dataclass
class Guard:
    """Decides after each cut; `steps` carries it out.

    Attributes:
        max_drop: Largest loss, as a share of the dense fitness.
        dense: The dense fitness.
        held: Fraction of the target that is known to hold.
        failures: Cuts that were taken back, in order: the fraction of the target that was tried (``way``), the epoch,
            the multiply-adds, and the fitness reached.
    """

    max_drop: float
    dense: float
    held: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def floor(self) -> float:
        """The lowest fitness that is allowed."""
        return self.dense * (1 - self.max_drop)

    def holds(self, fitness: float | None) -> bool:
        """Whether a fitness is allowed; a run that does not validate has none and is not judged."""
        return fitness is None or fitness >= self.floor

    def deadline(self, epoch: int, next_epoch: int | None, epochs: int) -> int:
        """Return the epoch before which a cut is judged.

        Args:
            epoch: The cut's epoch.
            next_epoch: That of the next cut, or None.
            epochs: Length of the run. After the last cut half of the rest is for recovery, and half for another try.
        """
        return next_epoch if next_epoch is not None else epoch + max(1, (epochs - epoch + 1) // 2)

    def accept(self, fraction: float) -> None:
        """Note that a cut holds."""
        self.held = max(self.held, fraction)

    def reject(self, fraction: float, epoch: int, macs: int | None, fitness: float | None) -> float | None:
        """Note that a cut does not hold.

        Returns:
            The fraction of the target to try instead, or None to stop cutting.
        """
        self.failures.append({"way": fraction, "epoch": epoch, "macs": macs, "fitness": fitness})
        return self.held + (fraction - self.held) / 2 if len(self.failures) <= ATTEMPTS else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data, for the report and to continue after an interruption."""
        return asdict(self)
