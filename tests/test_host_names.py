"""The table of the host's names: what is in it is there, what is gone is told, and the code uses nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import torch_pruning
from nets import narrow_yaml
from ultralytics import YOLO
from ultralytics import __version__ as ULTRALYTICS
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.modules import block
from ultralytics.utils import torch_utils

import yolo_prune
from yolo_prune import PruneCallback
from yolo_prune.errors import UnsupportedError
from yolo_prune.host import names as host_names
from yolo_prune.host.names import HOST_NAMES, TESTED, TRAINER, check_host

pytestmark = pytest.mark.drift
ROOMS = [path for path in Path(yolo_prune.__file__).parent.rglob("*.py") if path.name != "names.py"]
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
LISTED = {(where, name) for where, names, *_ in HOST_NAMES for name in names.split()}


def test_the_installed_releases_have_every_name() -> None:
    check_host()


@pytest.mark.parametrize(
    ("owner", "name", "told"),
    [
        (BaseTrainer, "save_model", "ultralytics.engine.trainer.BaseTrainer.save_model (files that are complete"),
        (torch_utils, "unwrap_model", "ultralytics.utils.torch_utils.unwrap_model (checkpoints, wrapped networks)"),
        (torch_pruning, "DependencyGraph", "torch_pruning.DependencyGraph (channel groups, criteria)"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_name_that_is_gone_is_told_before_a_run_with_the_releases_that_have_it(
    own_folder: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, told: str
) -> None:
    host = told.split(".")[0].replace("_", "-")
    yolo = YOLO(narrow_yaml("yolov8n", own_folder))
    PruneCallback(0.5).attach(yolo)
    monkeypatch.delattr(owner, name)
    with pytest.raises(UnsupportedError, match=re.escape(f"{host} {version(host)} has no {told}")) as refusal:
        yolo.train(data=str(tiny_data), epochs=4, imgsz=64, project=own_folder)
    oldest, newest = TESTED[host]
    way_out = f'was tested with {host} {oldest} to {newest}: pip install "{host}=={newest}", or a newer yolo-prune.'
    assert str(refusal.value).endswith(way_out)
    assert not list(own_folder.rglob("*.pt"))


def test_live_instances_have_what_is_listed_of_them(own_folder: Path, tiny_data: Path) -> None:
    """What constructors set, or a run does, is known of a live run only."""
    yolo, missing = YOLO(narrow_yaml("yolov8n", own_folder)), []

    def look(trainer: BaseTrainer) -> None:
        dataset = trainer.train_loader.dataset
        owners = {"BaseTrainer": trainer, "Model": yolo, "ModelEMA": trainer.ema, "EarlyStopping": trainer.stopper}
        owners |= {"BaseDataset": dataset}
        for where, names, _, since, on_instances in HOST_NAMES:
            owner = owners.get(where.rpartition(".")[2])
            if on_instances and owner is not None and host_names._numbers(since) <= host_names._numbers(ULTRALYTICS):
                missing.extend(f"{where}.{name}" for name in names.split() if not hasattr(owner, name))

    yolo.add_callback("on_fit_epoch_end", look)
    yolo.train(data=str(tiny_data), epochs=1, imgsz=32, batch=4, workers=0, plots=False, project=own_folder)
    assert not missing


def test_several_names_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("optimizer_step", "final_eval"):
        monkeypatch.delattr(BaseTrainer, name)
    with pytest.raises(UnsupportedError, match=r"has no .*\.final_eval \(.*\); no .*\.optimizer_step \(") as refusal:
        check_host()
    assert str(refusal.value).count("; no ") == 1


def test_a_module_that_is_gone_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_names, "HOST_NAMES", (host_names.Names("ultralytics.nn.gone", "Anything", "a test"),))
    with pytest.raises(UnsupportedError, match=r"has no ultralytics\.nn\.gone\.Anything \(a test\)"):
        check_host()


def test_a_name_is_not_asked_of_releases_from_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (host_names.Names("ultralytics.utils.torch_utils", "not_yet", "a test", since="8.4.143"),)
    monkeypatch.setattr(host_names, "HOST_NAMES", names)
    monkeypatch.setattr(host_names, "version", lambda distribution: "8.4.110")
    check_host()
    monkeypatch.setattr(host_names, "version", lambda distribution: "8.5.0.dev1+local")
    with pytest.raises(UnsupportedError, match=r"8\.5\.0\.dev1\+local has no .*not_yet"):
        check_host()


def test_a_block_class_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_blocks(name: str) -> object:
        return block.Gone if name == "yolo_prune.blocks" else import_module(name)

    monkeypatch.setattr(host_names, "import_module", import_blocks)
    with pytest.raises(UnsupportedError, match=r"no ultralytics\.nn\.modules\.block\.Gone \(an adapter"):
        check_host()


@pytest.mark.skipif(not PYPROJECT.is_file(), reason="the tests of the sdist have no pyproject.toml beside them")
def test_the_oldest_tested_releases_are_the_lower_bounds() -> None:
    bounds = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)"', PYPROJECT.read_text(), re.MULTILINE))
    for distribution in ("ultralytics", "torch-pruning"):
        assert bounds[distribution] == TESTED[distribution][0]


def imported() -> Iterator[tuple[str, str]]:
    """Yield (module, name) of everything that the package imports from Ultralytics."""
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ultralytics":
                yield from ((node.module or "", alias.name) for alias in node.names)


def test_the_table_has_what_is_imported_and_nothing_that_nobody_uses() -> None:
    modules = {"trainer", "tuner", "torch_utils"}  # imported whole
    public = {(module, name) for module, name in imported() if module == "ultralytics" or name in modules}
    assert set(imported()) - public <= LISTED
    words = {word for path in ROOMS for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert {name for _, name in LISTED} <= words


def test_the_table_has_what_is_read_of_a_trainer() -> None:
    used = set()
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"trainer", "type(trainer)"}:
                used.add(node.attr)
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in {"undo.set", "preserve_attributes"}
                and ast.unparse(node.args[0]) == "trainer"
            ):
                used |= {a.value for a in node.args[1:] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    assert len(used) > 30
    assert used <= {name for where, name in LISTED if where == TRAINER}
