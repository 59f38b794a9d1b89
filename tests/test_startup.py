from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Python
from fuzz import mutated
from hypothesis import given
from hypothesis import strategies as st

from yolo_prune.cli import startup
from yolo_prune.config.settings import HELP_TEXTS, PruneConfig
from yolo_prune.errors import ConfigError, PruneError, TargetError

HOST = ("-m", "ultralytics.cfg.__init__")
"""How Ultralytics starts its own commands (``ultralytics.cfg._YOLO_CLI_COMMAND``)."""


@pytest.mark.parametrize(
    ("argv", "orig_argv", "is_command"),
    [
        (["/usr/bin/yolo", "train"], ["python", "/usr/bin/yolo", "train"], True),
        (["/usr/bin/ultralytics"], ["python", "/usr/bin/ultralytics"], True),
        (["/usr/bin/yolo.exe", "train"], ["python", "/usr/bin/yolo.exe", "train"], True),
        (["-m", "train"], ["python", "-X", "dev", "-m", "ultralytics.cfg.__init__", "train"], True),
        (["-m"], ["python", "-m", "ultralytics"], True),
        (["-m", "train"], ["python", "-m", "torch.distributed.run", "train"], False),
        (["-m", "ultralytics"], ["python", "-m", "pip", "ultralytics"], False),
        (["-c", "yolo"], ["python", "-c", "pass", "yolo"], False),
        (["my_yolo.py", "prune=0.5"], ["python", "my_yolo.py", "prune=0.5"], False),
        (["/usr/bin/yolo-prune", "train"], ["python", "/usr/bin/yolo-prune", "train"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
    ids=str,
)
def test_only_ultralytics_commands_are_recognized(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], orig_argv: list[str], is_command: bool
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert startup.is_ultralytics_command() is is_command


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        (["a", "=", "b", "c"], ["a=b", "c"]),
        (["a=", "b", "c"], ["a=b", "c"]),
        (["a", "=b", "c"], ["a=b", "c"]),
        (["a=", "b=c"], ["a=", "b=c"]),
        (["a=[b,", "c,", "d]", "e"], ["a=[b,c,d]", "e"]),
        ([], []),
    ],
    ids=str,
)
def test_what_the_shell_split_is_joined_as_ultralytics_joins_it(arguments: list[str], joined: list[str]) -> None:
    assert startup.join_assignments(arguments) == joined


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        (["prune=0.5"], {"prune": "0.5"}),
        (["--prune=0.5"], {"prune": "0.5"}),
        (["prune=0.5,"], {"prune": "0.5"}),
        (["prune = 0.5"], {"prune": "0.5"}),
        (["prune"], {"prune": "True"}),
        (["prune="], {"prune": ""}),
        (["prune=0.5", "prune=0.3"], {"prune": "0.3"}),
        (["prune=my=file.yaml", "--prune_steps=3,"], {"prune": "my=file.yaml", "prune_steps": "3"}),
        (["pruned=1", "name=prune=1", "project=prune"], {}),
    ],
    ids=str,
)
def test_prune_arguments_are_taken_and_the_others_stay(arguments: list[str], taken: dict[str, str]) -> None:
    others = [a for a in arguments if not taken]
    mixed = ["train", *arguments, "epochs=3"]
    assert startup.take_arguments(mixed) == taken
    assert mixed == ["train", *others, "epochs=3"]


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        (["train", "model=val"], "train"),
        (["mode=train"], "train"),
        (["--mode=val,"], "val"),
        (["train", "mode=export"], "export"),
        (["detect", "model=train"], None),
        (["train", "val=False"], "train"),
        (["predict=1", "val"], "val"),
    ],
    ids=str,
)
def test_the_mode_is_the_one_that_ultralytics_sees(arguments: list[str], mode: str | None) -> None:
    assert startup.mode(arguments) == mode


@pytest.mark.parametrize(
    ("where", "arguments"),
    [(f"not in {mode}", [mode]) for mode in startup.MODES if mode != "train"]
    + [("and this command does not say train", ["model=x.pt"])],
)
def test_prune_outside_of_training_is_refused_with_the_way_out(where: str, arguments: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=rf"^prune works in training only, {where}: write 'yolo train ... prune=0.5';"
    ):
        startup.read_config({"prune": "0.5"}, arguments)


@pytest.mark.parametrize("resume", ["resume", "resume=True", "--resume=last.pt", "resume=last.pt,"])
def test_a_resumed_run_may_leave_its_configuration_to_the_checkpoint(resume: str) -> None:
    assert startup.read_config({"prune": "true"}, ["train", resume]) is None
    assert startup.read_config({"prune": "0.3"}, ["train", resume]) == PruneConfig(target=0.3)


@pytest.mark.parametrize("arguments", [["train"], ["train", "resume=False"]], ids=str)
def test_a_new_run_has_to_say_how_much_to_remove(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="prune=True does not say how much to remove"):
        startup.read_config({"prune": "True"}, arguments)


NAMES = st.sampled_from(["prune", *(f"prune_{knob}" for knob in HELP_TEXTS), "model", "resume", "mode", "imgsz"])
VALUES = st.sampled_from(["0.5", "True", "none.yaml", "[a,", "b]", "", "train"]) | st.text(max_size=6)
WORDS = st.one_of(
    st.tuples(st.sampled_from(["", "--"]), NAMES, st.sampled_from(["=", " =", "= ", ""]), VALUES).map("".join),
    st.sampled_from(["train", "val", "=", "prune", "resume"]),
    st.text(max_size=6),
)


@given(st.lists(WORDS, max_size=5))
def test_any_command_line_gives_a_config_or_a_config_error_and_keeps_what_is_not_ours(words: list[str]) -> None:
    rest = startup.join_assignments(words)
    joined = list(rest)
    taken = startup.take_arguments(rest)
    assert [word for word in joined if word in rest] == rest
    assert all(name == "prune" or name.startswith("prune_") for name in taken)
    with suppress(ConfigError):
        assert isinstance(startup.read_config(taken, rest), (PruneConfig, type(None)))


@given(st.text() | mutated(st.just('{"prune": "0.5", "prune_steps": "3"}')))
def test_any_variable_gives_texts_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        arguments = startup._json_texts(text)
        assert all(isinstance(part, str) for pair in arguments.items() for part in pair)


def test_the_modes_are_those_of_the_installed_ultralytics() -> None:
    from ultralytics.cfg import MODES

    assert startup.MODES == MODES


def test_ultralytics_starts_its_own_commands_as_we_expect_it() -> None:
    from ultralytics.cfg import _YOLO_CLI_COMMAND

    assert [sys.executable, *HOST] == _YOLO_CLI_COMMAND


# In a fresh process, with the start-up line of the installed package -------------------------------------------------


def test_without_prune_arguments_nothing_of_ours_is_imported(python: Python, fake_host: Path) -> None:
    done = python(*HOST, "train", "epochs=3", "loaded", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines() == ["arguments: train epochs=3 loaded", "loaded: []", "stock train"]
    assert (done.returncode, done.stderr) == (0, "")


def test_another_program_with_a_prune_argument_keeps_it(python: Python, own_folder: Path) -> None:
    (own_folder / "my_script.py").write_text("import sys; print(sys.argv[1:], sys.meta_path[0])")
    done = python("my_script.py", "train", "prune=0.5")
    assert done.stdout.startswith("['train', 'prune=0.5']")
    assert "ImportHook" not in done.stdout


def test_start_up_survives_an_interpreter_without_arguments(python: Python) -> None:
    line = (Path(startup.__file__).parents[2] / "yolo_prune_startup.pth").read_text()
    done = python("-c", f"import sys; del sys.argv; exec({line!r})", YOLO_PRUNE_ARGS="{}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [["prune=0.3"], ["--prune=0.3"], ["prune", "=", "0.3"], ["prune=0.3,"], ["prune=", "0.3"], ["prune", "=0.3"]],
    ids=" ".join,
)
def test_a_prune_argument_is_taken_and_its_config_attached(
    python: Python, fake_host: Path, arguments: list[str]
) -> None:
    done = python(*HOST, "train", *arguments, "epochs=3", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines() == ["arguments: train epochs=3", "attached: 0.3", "stock train"]
    assert (done.returncode, done.stderr) == (0, "")


def test_the_yolo_script_is_recognized_by_its_name(python: Python, fake_host: Path) -> None:
    (fake_host / "yolo").write_text("from ultralytics.cfg import entrypoint; entrypoint()")
    done = python(fake_host / "yolo", "train", "prune=0.3", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines() == ["arguments: train", "attached: 0.3", "stock train"]


def test_commands_that_ultralytics_starts_prune_as_well_if_they_train(python: Python, fake_host: Path) -> None:
    done = python(*HOST, "train", "prune=0.3", "spawn", PYTHONPATH=str(fake_host))
    inner = ["arguments: train", "attached: 0.3", "stock train", "arguments: val", "stock train"]
    assert done.stdout.splitlines() == ["arguments: train spawn", *inner, "attached: 0.3", "stock train"]


def test_the_own_arguments_of_a_command_go_before_inherited_ones(python: Python, fake_host: Path) -> None:
    inherited = json.dumps({"prune": "0.7"})
    done = python(*HOST, "train", "prune=0.3", PYTHONPATH=str(fake_host), YOLO_PRUNE_ARGS=inherited)
    assert "attached: 0.3" in done.stdout


def test_a_resumed_run_attaches_without_a_config(python: Python, fake_host: Path) -> None:
    done = python(*HOST, "train", "resume", "prune=True", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines() == ["arguments: train resume", "attached: None", "stock train"]


def test_a_model_trained_twice_is_attached_once(python: Python, fake_host: Path) -> None:
    done = python(*HOST, "train", "prune=0.3", "twice", PYTHONPATH=str(fake_host))
    assert done.stdout.splitlines()[1:] == ["attached: 0.3", "stock train", "stock train"]


def test_the_switch_leaves_the_prune_argument_to_ultralytics(python: Python, fake_host: Path) -> None:
    done = python(*HOST, "train", "prune=0.3", PYTHONPATH=str(fake_host), YOLO_PRUNE="0")
    assert done.stdout.splitlines() == ["arguments: train prune=0.3", "stock train"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "prune=0.5", "prune_stpes=3"], "unknown option prune_stpes: did you mean prune_steps?"),
        (["val", "prune=0.5"], "prune works in training only, not in val: write 'yolo train ... prune=0.5';"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_the_command_with_one_line_and_exit_code_2(
    python: Python, arguments: list[str], message: str
) -> None:
    done = python(*HOST, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"yolo-prune: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"prune": 0.5}'])
def test_a_damaged_variable_ends_the_command_with_one_line(python: Python, text: str) -> None:
    done = python(*HOST, "train", YOLO_PRUNE_ARGS=text)
    assert done.returncode == 2
    assert (
        done.stderr == f'yolo-prune: YOLO_PRUNE_ARGS={text} is not a JSON object of texts such as {{"prune": "0.5"}}.\n'
    )


@pytest.mark.parametrize(("error", "code"), [(TargetError, 1), (ConfigError, 2)])
def test_our_own_error_during_training_is_one_line_and_an_exit_code(
    error: type[PruneError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Model:
        def train(self) -> None:
            raise error("could only reach 38 %")

    class PruneCallback:
        def __init__(self, config: PruneConfig | None) -> None: ...

        def attach(self, model: Model) -> None: ...

    monkeypatch.setattr("yolo_prune.callback.PruneCallback", PruneCallback)
    startup.wrap_train(Model, PruneConfig())
    with pytest.raises(SystemExit) as end:
        Model().train()
    assert end.value.code == code
    assert capsys.readouterr().err == "yolo-prune: could only reach 38 %\n"


@pytest.mark.slow
def test_the_stock_command_prunes_for_real(python: Python, own_folder: Path, tiny_data: Path) -> None:
    run = own_folder / "run"
    options = ["imgsz=64", "batch=4", "workers=0", "plots=False", "amp=False", f"project={own_folder}", "name=run"]
    prune = ["prune=0.5", "prune_schedule=one-shot", "prune_start=0.5", "prune_end=0.5"]
    done = python(*HOST, "train", "model=yolo11n.yaml", f"data={tiny_data}", "epochs=2", *options, *prune)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((run / "pruning" / "report.json").read_text())
    assert report["final"]["macs"] == pytest.approx(0.5 * report["dense"]["macs"], rel=0.04)
    assert os.path.getsize(run / "weights" / "best.pt") < 4e6
