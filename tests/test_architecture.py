"""Who may know whom, read off the imports; the order of the packages is held by import-linter (`pyproject.toml`)."""

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
        "planning.allocation",
        "graph.groups",
        "config.settings",
        "deploy.coreml",
        "cost.model",
        "errors",
        "utils.run_folder",
        "training.guard",
        "host.names",
        "plan",
        "cost.latency_table",
        "report.pictures",
        "report.records",
        "training.schedule",
        "cli.startup",
        "config.targets",
        "cli.usage",
    ],
)
def test_plain_data_rooms_import_neither_torch_nor_ultralytics(room: str) -> None:
    heavy = {
        n for n in imports(room, only_at_import=True) if n.split(".")[0] in {"torch", "torch_pruning", "ultralytics"}
    }
    assert not heavy


def test_only_two_rooms_know_torch_pruning() -> None:
    assert {r for r in ROOMS if "torch_pruning" in imports(r, only_at_import=False)} == {
        "graph.trace",
        "importance.scores",
    }


def test_only_named_rooms_touch_the_engine_of_the_host() -> None:
    engine = {r for r in ROOMS if any(n.startswith("ultralytics.engine") for n in imports(r, only_at_import=False))}
    assert engine <= {
        "training.session",
        "host.trainer",
        "training.snapshot",
        "host.distillation",
        "host.qat",
        "callback",
        "deploy.export",
        "training.exact_state",
        "training.finish",
        "training.rehearsal",
        "host.tuning",
    }


RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.load"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch_safe_load", "load_checkpoint"),
}
"""Calls that can run what they read; of torch.load only those without ``weights_only=True``."""
FOREIGN_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "runpy", "code"}
"""Modules that nothing here needs."""
YAML_ROOMS = {"config.settings", "report.page"}
SAFE_YAML = {"yaml.safe_load", "yaml.compose", "yaml.SafeLoader", "yaml.YAMLError"}
ALLOWED = {
    ("host.checkpoint", "load_checkpoint"): "Ultralytics' own loader, safe with ULTRALYTICS_SAFE_LOAD=1",
    ("host.checkpoint", "torch_safe_load"): "the same, of a file that the run has just written",
    ("training.snapshot", "torch_safe_load"): "the same: the file holds networks, which plain tensors cannot tell",
    ("oneshot", "load_checkpoint"): "the same, of a file that has just been written",
    ("deploy.runtimes", "load_checkpoint"): "the same, of a file that is to be run",
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
