"""Who may know whom, read off the imports; the order of the packages is held by import-linter (`pyproject.toml`)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import yolo_prune
from yolo_prune.host.patches import PATCHES, patch
from yolo_prune.host.tuning import SCHEDULERS

PACKAGE = Path(yolo_prune.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(module: str, *, only_at_import: bool) -> set[str]:
    """Return the modules that a module names in its import statements."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = tree.body if only_at_import else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            whole = [name for name in inside if name.removeprefix("yolo_prune.") in MODULES]
            names |= set(whole) if len(whole) == len(inside) else {node.module or ""}
    return names


def test_few_modules_stand_at_the_top_and_none_is_long() -> None:
    top = [name for name, path in MODULES.items() if path.parent == PACKAGE]
    assert len(top) <= 8, top
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: n for name, n in lines.items() if n > 350}


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {f"yolo_prune.{name}": name for name in MODULES}
    knows = {name: {known[n] for n in imports(name, only_at_import=True) if n in known} for name in MODULES}
    while leaves := [name for name, others in knows.items() if not others]:
        knows = {name: others - set(leaves) for name, others in knows.items() if name not in leaves}
    assert not knows, f"in a circle, or behind one: {knows}"


def test_what_is_replaced_in_ultralytics_is_listed_and_nothing_else() -> None:
    calls = [
        node
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"patch", "patched"}
    ]
    names = {node.args[1].value for node in calls if isinstance(node.args[1], ast.Constant)}
    in_loops = {"train", "tune", "_smart_load", "Tuner", "run_ray_tune", *SCHEDULERS}  # named by a variable
    assert names | in_loops == {listed.name for listed in PATCHES}
    with pytest.raises(KeyError, match=r"host\.patches does not list it"):
        patch(object(), "something_else", None)


@pytest.mark.parametrize(
    "module",
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
        "cost.latency",
        "report.pictures",
        "report.records",
        "training.schedule",
        "cli.startup",
        "config.targets",
        "cli.usage",
    ],
)
def test_plain_data_modules_import_neither_torch_nor_ultralytics(module: str) -> None:
    heavy = {
        n for n in imports(module, only_at_import=True) if n.split(".")[0] in {"torch", "torch_pruning", "ultralytics"}
    }
    assert not heavy


def test_only_two_modules_know_torch_pruning() -> None:
    assert {r for r in MODULES if "torch_pruning" in imports(r, only_at_import=False)} == {
        "graph.grouping",
        "importance.scores",
    }


def test_only_named_modules_touch_the_engine_of_the_host() -> None:
    engine = {r for r in MODULES if any(n.startswith("ultralytics.engine") for n in imports(r, only_at_import=False))}
    assert engine <= {
        "training.run",
        "training.run_files",
        "training.session",
        "training.setup",
        "training.steps",
        "host.trainer",
        "training.snapshot",
        "host.distillation",
        "host.qat",
        "callback",
        "deploy.export",
        "deploy.formats",
        "training.exact_state",
        "training.finish",
        "training.rehearsal",
        "host.kept_data",
        "training.reduction",
        "host.tuning",
        "size_curve",
    }


RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.load"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch_safe_load", "load_checkpoint"),
}
"""Calls that can run what they read; of torch.load only those without ``weights_only=True``."""
FOREIGN_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "runpy", "code"}
"""Modules that nothing here needs."""
YAML_MODULES = {"config.text", "report.page"}
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
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in RUNS_CODE:
                if not (name == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords)):
                    found.add((module, name))
            elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("yaml."):
                assert module not in YAML_MODULES or ast.unparse(node) in SAFE_YAML, module
        names = {name.split(".")[0] for name in imports(module, only_at_import=False)}
        names -= {"subprocess"} if module == "device.command" else set()  # the user names the command
        assert not names & FOREIGN_CODE and ("yaml" not in names or module in YAML_MODULES), module
    assert found == ALLOWED.keys()
