"""A cut as plain data: which channels of which layers stay, how it is chosen, and its JSON form.

Choosing has two parts: *allocation* (how many units each bundle of channel groups keeps, to meet the target) and
*ranking* (which units of a group those are, from the importance scores).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolo_prune.channels import ChannelGraph
from yolo_prune.cost import CostModel
from yolo_prune.errors import PlanError, TargetError

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1


@dataclass(frozen=True)
class PrunePlan:
    """Which channels each layer keeps.

    Attributes:
        layers: Layer path -> ``{"out": kept, "in": kept}``; only layers that lose channels. Indices are sorted and
            refer to the network before this cut. A normalisation has only ``"out"``.
        widths: Layer path -> ``{"out": n, "in": n}`` before the cut, for the same layers: what the plan fits.
        macs: Multiply-adds for one image before and after, ``{"before": …, "after": …}``.
        params: Parameters before and after.
        imgsz: Height and width in pixels for which ``macs`` was counted.
        locked: What could not be cut and why, ``[{"layer": …, "why": …}]``.
    """

    layers: dict[str, dict[str, list[int]]]
    widths: dict[str, dict[str, int]]
    macs: dict[str, int]
    params: dict[str, int]
    imgsz: tuple[int, int]
    locked: list[dict[str, str]] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Hash of what the plan does; equal plans have equal hashes on every machine and rank."""
        text = json.dumps({"layers": self.layers, "widths": self.widths}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def apply(self, model: nn.Module) -> None:
        """Cut a model in place, all or nothing, and let its checkpoints say that it was pruned.

        Args:
            model: A ``YOLO`` or its network, with the widths that the plan was made for.

        Raises:
            PlanError: If the plan was made for another network; nothing has been changed.
            UnsupportedError: If the model has no network to cut.
        """
        from yolo_prune.checkpoint import mark  # plans are plain data until they are applied
        from yolo_prune.surgery import cut, network_of

        network = network_of(model)
        cut(self, [network])
        if self.layers:
            mark(network)

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
            "locked": self.locked,
        }

    @classmethod
    def from_dict(cls, data: Any) -> PrunePlan:
        """Read what ``to_dict`` wrote.

        Raises:
            PlanError: If the data is no plan, is damaged, or comes from a newer schema.
        """
        if not isinstance(data, Mapping) or "layers" not in data:
            raise PlanError(f"a plan is a mapping with 'layers', this is {_short(data)}; use a plan-<n>.json of a run.")
        if data.get("schema") != SCHEMA:
            raise PlanError(
                f"plan schema {data.get('schema')!r} is unknown, this version reads {SCHEMA}; update yolo_prune."
            )
        try:
            plan = cls(
                layers={
                    str(p): {s: _indices(p, s, v) for s, v in sides.items()} for p, sides in data["layers"].items()
                },
                widths={str(p): {s: int(n) for s, n in sides.items()} for p, sides in data["widths"].items()},
                macs={k: int(v) for k, v in data["macs"].items()},
                params={k: int(v) for k, v in data["params"].items()},
                imgsz=(int(data["imgsz"][0]), int(data["imgsz"][1])),
                locked=[{"layer": str(x["layer"]), "why": str(x["why"])} for x in data.get("locked", [])],
            )
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
            raise PlanError(
                f"the plan is damaged ({type(e).__name__}: {e}); make it anew or use another plan-<n>.json."
            ) from e
        if plan.layers.keys() != plan.widths.keys():
            raise PlanError("the plan is damaged: 'layers' and 'widths' name different layers; make it anew.")
        if "sha256" in data and data["sha256"] != plan.sha256:
            raise PlanError(
                f"the plan is damaged: its sha256 is {plan.sha256}, it says {data['sha256']}; make it anew."
            )
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PrunePlan:
        """Read a plan from JSON; reading can run no code.

        Raises:
            PlanError: If the file is missing, is not JSON, or holds no plan.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
            raise PlanError(f"{path} cannot be read as a plan: {e}; give the path of a plan-<n>.json.") from e


def make_plan(
    graph: ChannelGraph,
    scores: Sequence[np.ndarray],
    target_macs: float,
    *,
    scope: str = "local",
    round_to: int = 1,
    max_pruning_ratio: float = 0.9,
    dense_widths: Mapping[str, int] | None = None,
) -> PrunePlan:
    """Choose the units that stay, so that the network lands on the target.

    Args:
        graph: The network's channel groups.
        scores: Per group, an array of shape (width,): higher is more important.
        target_macs: Multiply-adds to land on, from below and as close as whole channels allow.
        scope: ``local`` gives every bundle the same ratio, ``global`` removes the lowest normalised scores first.
        round_to: Kept widths are multiples of this.
        max_pruning_ratio: Largest share of its dense width that a group may lose.
        dense_widths: Output width of each layer before the run's first cut (default: as it is now).

    Raises:
        TargetError: If the target lies below what the free channels allow; the message names what is locked.
    """
    cost = CostModel(graph)
    options = check_reachable(graph, target_macs, round_to, max_pruning_ratio, dense_widths)
    ranked = [np.argsort(-s, kind="stable") for s in scores]  # most important unit first
    kept = [bundle.steps for bundle in graph.bundles]
    if cost.macs() > target_macs:
        wish = _uniform(options) if scope == "local" else _by_score(graph, scores, ranked)
        kept = _land(graph, cost, options, wish, target_macs)
    return _to_plan(graph, cost, _units(graph, kept), ranked)


def check_reachable(
    graph: ChannelGraph,
    target_macs: float,
    round_to: int,
    max_pruning_ratio: float,
    dense_widths: Mapping[str, int] | None = None,
) -> list[np.ndarray]:
    """Return per bundle the numbers of steps that may be kept, ascending; a locked bundle has one.

    Raises:
        TargetError: If the network costs more than the target even at the lowest of them.
    """
    options = []
    for bundle in graph.bundles:
        layer = graph.layers[graph.groups[bundle.groups[0]].name]
        dense = (dense_widths or {}).get(layer.path, layer.out) / layer.out
        fewest = max(1, int(np.ceil(bundle.steps * dense * (1 - max_pruning_ratio) - 1e-9)))
        steps = np.arange(1, bundle.steps + 1)
        allowed = steps[(steps >= fewest) & (steps * bundle.stride % round_to == 0)]
        everything = np.array([bundle.steps])
        options.append(everything if bundle.locked else np.union1d(allowed, everything))
    cost, lowest = CostModel(graph), _units(graph, [o[0] for o in options])
    if cost.macs(lowest) > target_macs:
        raise TargetError(_unreachable(graph, cost.macs(), cost.macs(lowest), target_macs))
    return options


Wish = tuple[float, Callable[[float], np.ndarray]]
"""The strongest setting of an allocation, and the (real) number of kept steps that each bundle wishes at a setting."""


def _uniform(options: Sequence[np.ndarray]) -> Wish:
    """Every bundle loses the same share: the setting is the pruning ratio."""
    steps = np.array([o[-1] for o in options], dtype=float)
    return 1.0, lambda ratio: steps * (1 - ratio)


def _by_score(graph: ChannelGraph, scores: Sequence[np.ndarray], ranked: Sequence[np.ndarray]) -> Wish:
    """The least important steps of the whole network go first: the setting is how many of them."""
    free = [b for b, bundle in enumerate(graph.bundles) if not bundle.locked]
    step_scores, owner = [], []
    for b in free:
        bundle = graph.bundles[b]
        lanes = [
            (scores[g][ranked[g]] / max(float(scores[g].mean()), 1e-12))[::-1].reshape(bundle.steps, -1).mean(1)
            for g in bundle.groups
        ]
        step_scores.append(np.mean(lanes, axis=0))
        owner.append(np.full(bundle.steps, b))
    order = np.concatenate(owner)[np.argsort(np.concatenate(step_scores), kind="stable")]
    steps = np.array([bundle.steps for bundle in graph.bundles], dtype=float)
    return float(len(order)), lambda n: steps - np.bincount(order[: int(n)], minlength=len(steps))


def _land(
    graph: ChannelGraph, cost: CostModel, options: Sequence[np.ndarray], wish: Wish, target_macs: float
) -> list[int]:
    """Find the mildest setting that meets the target, then give back steps while the target still holds."""
    strongest, wished = wish

    def kept_at(setting: float) -> list[int]:
        return [int(o[np.abs(o - w).argmin()]) for o, w in zip(options, wished(setting), strict=True)]

    mild, strong = 0.0, strongest
    for _ in range(40):
        middle = (mild + strong) / 2
        if cost.macs(_units(graph, kept_at(middle))) <= target_macs:
            strong = middle
        else:
            mild = middle
    kept = kept_at(strong)
    shortfall = (wished(strong) - kept) / [o[-1] for o in options]
    for b in np.argsort(-shortfall, kind="stable"):
        position = int(np.searchsorted(options[b], kept[b]))
        if position + 1 < len(options[b]):
            more = [*kept[:b], int(options[b][position + 1]), *kept[b + 1 :]]
            if cost.macs(_units(graph, more)) <= target_macs:
                kept = more
    return kept


def _units(graph: ChannelGraph, kept_steps: Sequence[int]) -> np.ndarray:
    """Return kept units per group from kept steps per bundle."""
    units = np.zeros(len(graph.groups), dtype=np.int64)
    for bundle, steps in zip(graph.bundles, kept_steps, strict=True):
        for g, per_step in zip(bundle.groups, bundle.per_step, strict=True):
            units[g] = steps * per_step
    return units


def _to_plan(graph: ChannelGraph, cost: CostModel, kept: np.ndarray, ranked: Sequence[np.ndarray]) -> PrunePlan:
    removed: dict[tuple[str, str], set[int]] = {}
    for group, n, ranking in zip(graph.groups, kept, ranked, strict=True):
        for member, table in group.members.items():
            removed.setdefault(member, set()).update(table[ranking[n:]].ravel().tolist())
    layers: dict[str, dict[str, list[int]]] = {}
    widths: dict[str, dict[str, int]] = {}
    for path, layer in graph.layers.items():
        sides = {"out": layer.out} if layer.kind == "BatchNorm2d" else {"out": layer.out, "in": layer.inp}
        if any(removed.get((path, side)) for side in sides):
            widths[path] = sides
            layers[path] = {
                side: [i for i in range(n) if i not in removed.get((path, side), ())] for side, n in sides.items()
            }
    return PrunePlan(
        layers=layers,
        widths=widths,
        macs={"before": cost.macs(), "after": cost.macs(kept)},
        params={"before": cost.params(), "after": cost.params(kept)},
        imgsz=graph.imgsz,
        locked=graph.locked(),
    )


def _unreachable(graph: ChannelGraph, now: int, least: int, target_macs: float) -> str:
    reasons: dict[str, list[str]] = {}
    for entry in graph.locked():
        reasons.setdefault(entry["why"], []).append(entry["layer"])
    locked = "; ".join(f"{', '.join(layers)} ({why})" for why, layers in reasons.items())
    return (
        f"{target_macs / 1e6:.1f}M MACs asked, but {least / 1e6:.1f}M is the least that can be reached from "
        f"{now / 1e6:.1f}M ({least / now - 1:+.1%}): ask for less, raise max_pruning_ratio, lower round_to or ignore "
        f"fewer layers. Locked: {locked or 'nothing'}."
    )


def _indices(path: Any, side: Any, values: Any) -> list[int]:
    if side not in ("out", "in"):
        raise PlanError(f"the plan is damaged: {path} has a side {side!r}, not 'out' or 'in'; make it anew.")
    kept = [int(v) for v in values if not isinstance(v, bool)]
    if kept != list(values) or not kept or kept[0] < 0 or any(b <= a for a, b in pairwise(kept)):
        raise PlanError(
            f"the plan is damaged: {path} {side} is no rising list of channels: {_short(values)}; make it anew."
        )
    return kept


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
