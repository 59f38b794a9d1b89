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
        "folder",
        "guard",
        "host_names",
        "plan",
        "latency",
        "pictures",
        "report",
        "schedule",
        "startup",
        "targets",
        "usage",
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
        "rehearsal",
        "tuning",
    }


ORDER = (
    ("errors", "files", "folder", "targets", "latency", "channels", "coreml", "host_names", "console"),
    ("config", "schedule", "guard", "cost", "report", "zoo"),
    ("pictures", "predictions", "page"),
    ("blocks.channelwise", "blocks.shadow", "blocks.registry", "blocks.reading"),
    ("blocks.convolutions", "blocks.attention", "blocks.heads", "blocks"),
    ("layers", "memory", "statistics", "plan", "allocation", "surgery", "graph"),
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
        "stopwatch",
        "profiling",
    ),
    ("checkpoint", "verification", "rewinding", "ranks", "distillation", "snapshot", "host", "state"),
    ("quantization", "export", "bench", "handover", "progress", "rehearsal"),
    ("session", "oneshot", "tuning"),
    ("callback",),
    ("startup",),
    ("demo", "usage"),
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


RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.load"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch_safe_load", "load_checkpoint"),
}
"""Calls that can run what they read; of torch.load only those without ``weights_only=True``."""
FOREIGN_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "runpy", "code"}
"""Modules that nothing here needs."""
YAML_ROOMS = {"config", "page"}
SAFE_YAML = {"yaml.safe_load", "yaml.compose", "yaml.SafeLoader", "yaml.YAMLError"}
ALLOWED = {
    ("checkpoint", "load_checkpoint"): "Ultralytics' own loader, safe with ULTRALYTICS_SAFE_LOAD=1",
    ("checkpoint", "torch_safe_load"): "the same, of a file that the run has just written",
    ("snapshot", "torch_safe_load"): "the same: the file holds networks, which plain tensors cannot tell",
    ("oneshot", "load_checkpoint"): "the same, of a file that has just been written",
    ("runtimes", "load_checkpoint"): "the same, of a file that is to be run",
}


def test_what_is_read_runs_no_code_but_through_the_loader_of_the_host() -> None:
    found = set()
    for room, path in ROOMS.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in RUNS_CODE:
                if not (name == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords)):
                    found.add((room, name))
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("yaml."):
                assert room not in YAML_ROOMS or ast.unparse(node) in SAFE_YAML, room
        modules = {name.split(".")[0] for name in imports(room, only_at_import=False)}
        assert not modules & FOREIGN_CODE and ("yaml" not in modules or room in YAML_ROOMS), room
    assert found == ALLOWED.keys()
