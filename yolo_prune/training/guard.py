"""The guard: how much accuracy a run may lose, and what to do when a cut costs more.

After a cut the network has its recovery epochs to come back to the floor. If it does not, the run goes back to the
state before that cut and tries half of the step, twice at most; then it stops cutting, and the epochs that are left
recover.

A run that finds its own target (``target=auto``) goes on from what holds, by a share of the way that is left to the
least that can be reached. The share is halved where a cut does not hold, and doubled where one holds at once. A size
that has failed is no bound: the network has trained on since, and may come back from what was too large before. Where
no step is small enough, the network trains on, and the rest of the run is for one more attempt.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ATTEMPTS = 2
"""Smaller steps that are tried after the first one that was too large."""
FIRST = 0.5
"""Share of the way that is left to the least that can be reached: what a search tries first, and its largest step."""
SMALLEST = 0.05
"""A search makes no step that is a smaller share."""
LAST = 0.125
"""What it tries with the rest of the run where smaller steps have failed in less time."""


@dataclass
class Guard:
    """Decides after each cut; `steps` carries it out.

    Attributes:
        max_drop: Largest loss, as a share of the dense fitness.
        dense: The dense fitness.
        held: Fraction of the target that is known to hold.
        failures: Cuts that were taken back, in order: the fraction of the target that was tried (``way``), the epoch,
            the multiply-adds, the fitness reached, and the epoch from which the network before it went on (``until``).
        finished: Whether the dense fitness is that of a model that was trained to the end.
        is_search: Whether the run finds its own target.
        tried: Of such a run the cuts that held, as ``failures``, without ``until``.
        step: Of such a run the share of the way that is left which the next cut takes.
    """

    max_drop: float
    dense: float
    held: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = True
    is_search: bool = False
    tried: list[dict[str, Any]] = field(default_factory=list)
    step: float = FIRST

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

    def is_clear(self, fitness: float | None) -> bool:
        """Whether a fitness is allowed with half of the drop to spare, so that a search need not wait for more."""
        return fitness is not None and fitness >= self.dense * (1 - self.max_drop / 2)

    def last(self) -> float:
        """Return the fraction that a search tries once more, where no step was small enough."""
        self.step = LAST
        return self._further

    @property
    def following(self) -> float | None:
        """The fraction that a search tries next, or None where the step would be too small."""
        return self._further if self.step >= SMALLEST else None

    @property
    def _further(self) -> float:
        return self.held + self.step * (1 - self.held)

    def accept(
        self,
        fraction: float,
        epoch: int = 0,
        macs: int | None = 0,
        fitness: float | None = None,
        *,
        at_once: bool = False,
    ) -> float | None:
        """Note that a cut holds.

        Args:
            fraction: Of the target, that was tried.
            epoch: Of the cut.
            macs: Multiply-adds after it.
            fitness: What the network came to.
            at_once: Whether half of an attempt was enough, or less.

        Returns:
            The fraction that a search tries next, or None.
        """
        self.held = max(self.held, fraction)
        if not self.is_search:
            return None
        self.step = min(FIRST, 2 * self.step) if at_once else self.step
        self.tried.append({"way": fraction, "epoch": epoch, "macs": macs, "fitness": fitness})
        return self.following

    def reject(self, fraction: float, epoch: int, macs: int | None, fitness: float | None, until: int) -> float | None:
        """Note that a cut does not hold.

        Args:
            fraction: Of the target, that was tried.
            epoch: Of the cut.
            macs: Multiply-adds after it.
            fitness: What the network came to.
            until: Epoch from which the network before the cut goes on.

        Returns:
            The fraction of the target to try instead, or None to stop cutting.
        """
        self.failures.append({"way": fraction, "epoch": epoch, "macs": macs, "fitness": fitness, "until": until})
        if self.is_search:
            self.step /= 2
            return self.following
        return self.held + (fraction - self.held) / 2 if len(self.failures) <= ATTEMPTS else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data, for the report and to continue after an interruption."""
        return asdict(self)
