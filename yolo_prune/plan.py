"""A cut as plain data: which channels of which layers stay, which blocks go, and its JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_prune.errors import PlanError, describe_error, short_repr
from yolo_prune.utils.files import write_json
from yolo_prune.utils.paths import is_inside, outermost

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1


@dataclass(frozen=True)
class PrunePlan:
    """Which channels each layer keeps, and which inner blocks go.

    Attributes:
        layers: Layer path -> ``{"out": kept, "in": kept}``; only layers that lose channels. Indices are sorted and
            refer to the network before this cut. A normalisation has only ``"out"``. Layers of removed blocks are
            missing.
        widths: Layer path -> ``{"out": n, "in": n}`` before the cut, for the same layers: what the plan fits.
        macs: Multiply-adds for one image before and after, ``{"before": …, "after": …}``.
        params: Parameters before and after.
        imgsz: Height and width in pixels for which ``macs`` was counted.
        locked: What could not be cut and why, ``[{"layer": …, "why": …}]``.
        blocks: Paths of the inner blocks that are removed, such as ``model.4.m.1``, none inside another, sorted.
    """

    layers: dict[str, dict[str, list[int]]]
    widths: dict[str, dict[str, int]]
    macs: dict[str, int]
    params: dict[str, int]
    imgsz: tuple[int, int]
    locked: list[dict[str, str]] = field(default_factory=list)
    blocks: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of what the plan does; equal plans have equal hashes on every machine and rank."""
        does = {"layers": self.layers, "widths": self.widths, **({"blocks": self.blocks} if self.blocks else {})}
        text = json.dumps(does, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def removed(self) -> dict[str, dict[str, list[int]]]:
        """Return the removed channels: layer path -> side -> channels."""
        return {
            path: {side: sorted(set(range(self.widths[path][side])) - set(kept)) for side, kept in sides.items()}
            for path, sides in self.layers.items()
        }

    def then(self, later: PrunePlan) -> PrunePlan:
        """Return the one plan that does what this and then a later one do.

        Args:
            later: Made for the network that this plan leaves.
        """
        layers, widths = dict(self.layers), dict(self.widths)
        for path, sides in later.layers.items():
            widths.setdefault(path, later.widths[path])
            present = layers.get(path) or {side: list(range(n)) for side, n in widths[path].items()}
            layers[path] = {side: [present[side][i] for i in kept] for side, kept in sides.items()}
        blocks = outermost((*self.blocks, *later.blocks))
        layers = {path: sides for path, sides in layers.items() if not is_inside(path, blocks)}
        widths = {path: widths[path] for path in layers}
        macs = {"before": self.macs["before"], "after": later.macs["after"]}
        params = {"before": self.params["before"], "after": later.params["after"]}
        return PrunePlan(layers, widths, macs, params, self.imgsz, self.locked, blocks)

    def apply(self, model: nn.Module) -> None:
        """Cut a model in place: see `yolo_prune.apply_plan`."""
        from yolo_prune import apply_plan  # type: ignore[attr-defined]  # a short form of the public function

        apply_plan(self, model)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return {
            "schema": SCHEMA,
            "sha256": self.sha256,
            "imgsz": list(self.imgsz),
            "macs": self.macs,
            "params": self.params,
            "layers": self.layers,
            "widths": self.widths,
            "blocks": list(self.blocks),
            "locked": self.locked,
        }

    @classmethod
    def from_dict(cls, data: Any) -> PrunePlan:
        """Read what ``to_dict`` wrote.

        Raises:
            PlanError: If the data is no plan, is damaged, or comes from a newer schema.
        """
        if not isinstance(data, Mapping) or "layers" not in data:
            raise PlanError(
                f"a plan is a mapping with 'layers', this is {short_repr(data)}; use a plan-<n>.json of a run."
            )
        if data.get("schema") != SCHEMA:
            raise PlanError(
                f"plan schema {short_repr(data.get('schema'))} is unknown, this version reads {SCHEMA}; update "
                "yolo_prune."
            )
        try:
            plan = cls(
                layers={
                    str(p): {s: _indices(p, s, v) for s, v in sides.items()} for p, sides in data["layers"].items()
                },
                widths={str(p): {s: _whole(n) for s, n in sides.items()} for p, sides in data["widths"].items()},
                macs={k: _whole(data["macs"][k]) for k in ("before", "after")},
                params={k: _whole(data["params"][k]) for k in ("before", "after")},
                imgsz=(_whole(data["imgsz"][0]), _whole(data["imgsz"][1])),
                locked=[{"layer": str(x["layer"]), "why": str(x["why"])} for x in data.get("locked", [])],
                blocks=_blocks(data.get("blocks", [])),
            )
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as e:
            raise PlanError(
                f"the plan is damaged ({describe_error(e)}); make it anew or use another plan-<n>.json."
            ) from e
        if {p: sides.keys() for p, sides in plan.layers.items()} != {p: of.keys() for p, of in plan.widths.items()}:
            raise PlanError("the plan is damaged: 'layers' and 'widths' name different layers or sides; make it anew.")
        if data.get("sha256") != plan.sha256:
            raise PlanError(
                f"the plan is damaged: its sha256 is {plan.sha256}, it says {short_repr(data.get('sha256'))}; "
                "make it anew."
            )
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; a reader never sees half of it.

        Raises:
            WriteError: If it cannot be written.
        """
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> PrunePlan:
        """Read a plan from JSON; reading can run no code.

        Raises:
            PlanError: If the file is missing, is not JSON, or holds no plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as e:
            raise PlanError(
                f"{path} cannot be read as a plan ({describe_error(e)}); give the path of a plan-<n>.json."
            ) from e
        return cls.from_dict(data)


def _blocks(values: Any) -> tuple[str, ...]:
    """Return the paths of removed blocks."""
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) and v for v in values):
        raise PlanError(f"the plan is damaged: 'blocks' is no list of paths: {short_repr(values)}; make it anew.")
    blocks = outermost(values)
    if list(blocks) != list(values):
        raise PlanError(
            f"the plan is damaged: 'blocks' are not sorted, or one lies inside another: {short_repr(values)}; make it "
            "anew."
        )
    return blocks


def _indices(path: Any, side: Any, values: Any) -> list[int]:
    if side not in ("out", "in"):
        raise PlanError(f"the plan is damaged: {path} has a side {side!r}, not 'out' or 'in'; make it anew.")
    kept = [int(v) for v in values if not isinstance(v, bool)]
    if kept != list(values) or not kept or kept[0] < 0 or any(b <= a for a, b in pairwise(kept)):
        raise PlanError(
            f"the plan is damaged: {path} {side} is no rising list of channels: {short_repr(values)}; make it anew."
        )
    return kept


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{short_repr(value)} is no whole number >= 0")
    return value
