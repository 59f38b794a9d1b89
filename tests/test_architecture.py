"""Who may know whom: the promises of the house, read off the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import yolo_prune

HOUSE = Path(yolo_prune.__file__).parent
ROOMS = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in HOUSE.rglob("*.py")
}


def imports(room: str, *, only_at_import: bool) -> set[str]:
    """Return the modules that a room names in its import statements."""
    tree = ast.parse(ROOMS[room].read_text(encoding="utf-8"))
    nodes = tree.body if only_at_import else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            rooms = [name for name in inside if name.removeprefix("yolo_prune.") in ROOMS]
            names |= set(rooms) if len(rooms) == len(inside) else {node.module or ""}
    return names


@pytest.mark.parametrize(
    "room",
    [
        "allocation",
        "channels",
        "config",
        "coreml",
        "cost",
        "errors",
        "guard",
        "host_names",
        "plan",
        "latency",
        "report",
        "schedule",
        "startup",
        "targets",
    ],
)
def test_plain_data_rooms_import_neither_torch_nor_ultralytics(room: str) -> None:
    heavy = {
        n for n in imports(room, only_at_import=True) if n.split(".")[0] in {"torch", "torch_pruning", "ultralytics"}
    }
    assert not heavy


def test_only_two_rooms_know_torch_pruning() -> None:
    assert {r for r in ROOMS if "torch_pruning" in imports(r, only_at_import=False)} == {"graph", "importance"}


def test_only_named_rooms_touch_the_engine_of_the_host() -> None:
    engine = {r for r in ROOMS if any(n.startswith("ultralytics.engine") for n in imports(r, only_at_import=False))}
    assert engine <= {
        "session",
        "host",
        "snapshot",
        "distillation",
        "quantization",
        "callback",
        "export",
        "state",
        "handover",
        "tuning",
    }


ORDER = (
    ("errors", "files", "targets", "latency", "channels", "coreml", "host_names"),
    ("config", "schedule", "guard", "cost", "report", "zoo"),
    ("blocks.shadow", "blocks.registry", "blocks.reading"),
    ("blocks.convolutions", "blocks.attention", "blocks.heads", "blocks"),
    ("layers", "statistics", "plan", "allocation", "surgery", "graph"),
    (
        "importance",
        "elimination",
        "reconstruction",
        "sparsity",
        "sensitivity",
        "search",
        "budget",
        "planner",
        "runtimes",
        "profiling",
    ),
    ("checkpoint", "verification", "rewinding", "ranks", "distillation", "snapshot", "host", "state"),
    ("quantization", "export", "bench", "handover", "progress"),
    ("session", "oneshot", "tuning"),
    ("callback",),
    ("startup",),
    ("demo",),
    ("cli",),
    ("__main__", "__init__"),
)
"""Each room may import rooms of earlier rows, and of its own row to the left."""


def test_imports_go_one_way() -> None:
    rank = {room: i for i, room in enumerate(r for row in ORDER for r in row)}
    assert rank.keys() == ROOMS.keys()
    lazily = {
        ("plan", "surgery"),
        ("plan", "checkpoint"),
        ("cli", "__init__"),
    }  # plans are plain data until they are applied; the version
    for room in ROOMS:
        for name in imports(room, only_at_import=False):
            if name == "yolo_prune" or name.startswith("yolo_prune."):
                other = name.partition(".")[2] or "__init__"
                assert rank[other] < rank[room] or (room, other) in lazily or room == "__init__", (room, other)
