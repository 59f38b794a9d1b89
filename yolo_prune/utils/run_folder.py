"""Which files pruning writes into a run's folder, beside Ultralytics' own."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def run_of(file: Path) -> Path | None:
    """Return the folder of the run in whose ``weights`` a file lies, or None for a file elsewhere."""
    folder = file.absolute().parent
    return folder.parent if folder.name == "weights" else None


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Args:
        run: The run's folder, Ultralytics' ``save_dir``.
    """

    run: Path

    @property
    def path(self) -> Path:
        """The folder that all the others are in; the report lies there, too."""
        return self.run / "pruning"

    @property
    def latency(self) -> Path:
        """Latency table of the dense network."""
        return self.path / "latency.json"

    @property
    def before_cut(self) -> Path:
        """The state that the guard would go back to."""
        return self.path / "before-cut.pt"

    @property
    def data(self) -> Path:
        """The data set of a run that keeps some of its classes."""
        return self.path / "data"

    def plan(self, number: int) -> Path:
        """Return the file of a plan, counted from 1."""
        return self.path / f"plan-{number}.json"

    def early(self, cuts: int) -> Path:
        """Return the file of the state to rewind to, as so many cuts have left it."""
        return self.path / f"rewind-{cuts}.pt"

    def state(self, finished: int, changes: int) -> Path:
        """Return the file of the exact state after an epoch and so many changes to the network: one per ``last.pt``."""
        return self.path / f"state-{finished}-{changes}.pt"

    def forget_states(self, but: Path | None = None) -> None:
        """Remove all exact states but one, halves of them included; one that cannot be removed stays."""
        for file in self.path.glob("state-*.pt*"):
            if file != but:
                with suppress(OSError):  # a cut that is made must not fail by what is left over
                    file.unlink()

    def clear(self) -> None:
        """Remove what an earlier run with ``exist_ok=True`` has left, which may have made more cuts."""
        for stale in ("*.json", "*.pt"):
            for file in self.path.glob(stale):
                file.unlink()
