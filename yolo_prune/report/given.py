"""The network as it was given to a run, where whole parts of it went before the first cut."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_prune.errors import listed


@dataclass
class Given:
    """A network as it was given, where levels or classes of it went before the first cut.

    Attributes:
        levels: Numbers of the detection levels that were removed.
        classes: Names of the classes that were kept, or nothing where all were.
        amounts: Quantity -> how much it had with all levels, and with the kept classes only: multiply-adds, parameters,
            and what targets are of. Shares of targets are of these.
    """

    levels: list[int]
    classes: list[str]
    amounts: dict[str, float]

    def told(self) -> str:
        """Return what went, in words."""
        parts = [f"without level{'s' * (len(self.levels) > 1)} {listed(self.levels)}"] if self.levels else []
        parts += [f"{len(self.classes)} classes kept ({', '.join(self.classes[:10])})"] if self.classes else []
        return ", ".join(parts)
