"""What is written for people holds where a machine can tell: code, commands, names, figures, messages, links."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from nets import build, graph_of
from test_architecture import MODULES, PACKAGE
from ultralytics import cfg

import yolo_prune
from yolo_prune import PruneCallback, PruneConfig
from yolo_prune.cli import commands as cli_commands
from yolo_prune.cli import demo, startup, usage
from yolo_prune.cli import main as cli
from yolo_prune.config import targets
from yolo_prune.config.choices import ALLOCATIONS, BY_DATA, IMPORTANCES, SCHEDULES
from yolo_prune.config.settings import HELP_TEXTS
from yolo_prune.deploy import bench
from yolo_prune.device.stopwatch import Speedup
from yolo_prune.importance import scores
from yolo_prune.report import page
from yolo_prune.report import records as report
from yolo_prune.size_curve import read_sizes

REPOSITORY = Path(__file__).parent.parent
README, MAP, DOCS = REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "docs"
DOCUMENTS = [path for path in (README, MAP, *sorted(DOCS.glob("*.md"))) if path.is_file()]
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the sdist of the tests has no documents beside it")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r'^--8<-- "([^":]+)"$', re.MULTILINE)
HOSTS_OWN = {
    "'prune' is not a valid YOLO argument",
    "Can't get attribute 'C2f_v2'",
    "shape '[1, -1, 48, 1]' is invalid for input of size …",
}
"""Messages that the troubleshooting page quotes and that are not ours."""


def read(path: Path) -> str:
    """Return a document with the files that it includes whole; sections of other documents are checked there."""
    return INCLUDE.sub(lambda found: (REPOSITORY / found[1]).read_text(encoding="utf-8"), path.read_text("utf-8"))


def blocks(*languages: str) -> list[Any]:
    """Return the code blocks of all documents in some languages, as parameters of a test."""
    return [
        pytest.param(block, id=f"{path.stem}-{n}")
        for path in DOCUMENTS
        for n, (language, block) in enumerate(FENCE.findall(read(path)))
        if language in languages
    ]


def spans(path: Path) -> list[str]:
    """Return what stands in backticks in a document's prose."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text("utf-8")))


# Generated parts ---------------------------------------------------------------------------------------------------


def test_every_generated_table_is_up_to_date() -> None:
    check = [sys.executable, DOCS / "generate.py", "--check"]
    done = subprocess.run(check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{done.stdout}run python docs/generate.py"


def test_every_table_that_can_be_made_is_on_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    parts = import_module("generate").PARTS
    shown = [name for page in DOCUMENTS for name in re.findall(r"^<!-- generated: (.+) -->$", page.read_text(), re.M)]
    assert set(shown) == parts.keys()
    assert len(shown) == len(re.findall(r"^<!-- end -->$", "".join(map(Path.read_text, DOCUMENTS)), re.M))


def test_the_table_of_options_has_each_with_its_default() -> None:
    names = [name for name, *_ in option_rows(DOCS / "options.md")]
    assert names == list(vars(PruneConfig()))


@pytest.mark.parametrize("page", [README, DOCS / "options.md"], ids=lambda p: p.stem)
def test_options_that_are_shown_have_their_flags_and_defaults(page: Path) -> None:
    rows = option_rows(page)
    assert len(rows) >= 8
    for name, flag, default in rows:
        value = getattr(PruneConfig(), name)
        assert flag == ("prune" if name == "target" else f"prune_{name}")
        assert default == ("none" if value in ((), {}, None) else str(value))


def option_rows(page: Path) -> list[tuple[str, str, str]]:
    """Return name, flag and default of each row of a page's table of options."""
    return re.findall(r"^\| `(\w+)` \| `(prune\w*)=` \| `(.+?)` \| .+ \|$", page.read_text(), re.MULTILINE)


def test_the_map_has_every_package_and_module_of_the_top() -> None:
    mapped = re.findall(r"^\| `([\w.]+)/?` \| ", MAP.read_text().partition("## The map")[2], re.MULTILINE)
    top = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert set(mapped) == top - {"__init__.py"} and len(mapped) == len(set(mapped))


def test_the_readme_is_a_tour_and_its_diagram_is_that_of_the_first_page() -> None:
    assert len(README.read_text().splitlines()) <= 220
    diagram = next(block for _, block in FENCE.findall(README.read_text()) if "train dense" in block)
    assert diagram in (DOCS / "index.md").read_text()


# Code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_code_block_is_in_a_language_that_is_checked_here(path: Path) -> None:
    assert {language for language, _ in FENCE.findall(read(path))} <= {"", "python", "pycon", "sh", "yaml", "json"}


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_is_valid_and_its_names_and_knobs_exist(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "yolo_prune":
            assert all(hasattr(import_module(str(node.module)), alias.name) for alias in node.names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            knobs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
            if node.func.id == "prune_model":
                assert knobs.keys() <= {*BY_DATA, "data", "imgsz"}
            elif node.func.id == "PruneCallback" and node.args and isinstance(node.args[0], ast.Constant):
                target = node.args[0].value
                assert str(target).endswith(".yaml") or PruneCallback(target, **knobs)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_session_in_python_answers_what_is_written(path: Path) -> None:
    text = "\n".join(block for language, block in FENCE.findall(read(path)) if language == "pycon")
    told: list[str] = []
    session = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_yaml_block_is_a_configuration(block: str) -> None:
    PruneConfig.from_dict(yaml.safe_load(block))


@pytest.mark.parametrize("block", blocks("json"))
def test_every_json_block_is_a_report(block: str) -> None:
    example = json.loads(block)
    read_again = report.Report.from_dict(example)
    read_again.final, read_again.timed = report.Stage(**example["final"]), example["timed"]
    written = {**read_again.to_dict(), "versions": example["versions"]}
    assert written == example
    PruneConfig.from_dict(example["config"])


# Commands ----------------------------------------------------------------------------------------------------------


def commands(path: Path) -> list[list[str]]:
    """Return the words of each command in a document's shell blocks, and of ours and Ultralytics' in its prose."""
    lines = [line for language, block in FENCE.findall(read(path)) if language == "sh" for line in block.splitlines()]
    lines += [span for span in spans(path) if span.startswith(("yolo ", "yolo-prune ")) and "…" not in span]
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


def check_host(values: dict[str, Any]) -> None:
    """Let Ultralytics check its arguments."""
    cfg.get_cfg(overrides=values)


def check_command(words: list[str]) -> None:
    """Parse a command as the program does that it starts, up to where it would work."""
    program, *rest = words[0].rpartition("/")[2], *words[1:]
    if program == "yolo-prune" and rest[0] != "train":
        assert cli.main(rest) == 0 if rest[1:] else rest[0] in cli.COMMANDS
    elif program in ("yolo", "yolo-prune"):
        rest = startup.join_assignments(rest)
        if taken := startup.take_arguments(rest):
            startup.read_config(taken, rest)
        bare = {word for word in rest if "=" not in word}
        assert bare <= {*cfg.MODES, *cfg.TASKS, *cfg.DEFAULT_CFG_DICT}, bare
        check_host(dict(cfg.parse_key_value_pair(word) for word in rest if "=" in word))
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        for extra in re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(rest)))):
            assert re.search(rf"^{extra} = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    elif program in ("python", "python3"):
        assert rest[0] == "-m" or (REPOSITORY / rest[0]).is_file()
    else:
        assert program in (".", "pytest"), f"nobody checks {program}"


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands read their arguments and do nothing."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(cli_commands, "open_model", str)
    monkeypatch.setattr(page, "write", str)
    monkeypatch.setattr(cli_commands, "prune_model", lambda model, config, **values: check_host(values))
    monkeypatch.setattr(cli_commands, "dry_run", lambda model, config, timed, **values: check_host(values))
    measured = SimpleNamespace(table=str)
    monkeypatch.setattr(cli_commands, "sensitivity", lambda model, **values: check_host(values) or (measured, Path()))
    monkeypatch.setattr(cli_commands, "bench", lambda models, **values: bench.Bench((64, 64), 1))
    monkeypatch.setattr(cli_commands, "curve", lambda model, **values: read_sizes(values.get("sizes", "0.5")))
    compared = SimpleNamespace(table=str, folder=Path())
    monkeypatch.setattr(cli_commands, "compare", lambda runs, **values: compared)
    looked_at = SimpleNamespace(text=lambda with_layers: "", save=str)
    monkeypatch.setattr(cli_commands, "inspect_checkpoint", lambda path, imgsz: looked_at)
    for made in ("make_sample_kit", "make_comparison_kit"):
        monkeypatch.setattr(cli_commands, made, lambda *of, **how: None)
    for looked in ("network_of", "trace", "image_size", "file_size"):
        monkeypatch.setattr(cli_commands, looked, lambda *of: 0)
    monkeypatch.setattr(demo, "run", lambda arguments: PruneConfig.from_cli(demo.PRUNE))


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_command_is_understood_by_the_program_that_it_starts(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(path):
        check_command(words)
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("command", usage.USAGES)
def test_every_example_of_the_help_is_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_command(["yolo-prune", command, *shlex.split(usage.USAGES[command].example)])
    assert not capsys.readouterr().err


def typed(text: str) -> set[str]:
    """Return the targets that a text has after ``prune=`` and ``target=``."""
    return {form.strip('"') for form in re.findall(r'\b(?:prune|target)=("\d.*?"|\d[\d.]*[%\w]*)', text)}


def written(path: Path) -> set[str]:
    """Return the targets that a document has: typed, in the table of them, and in backticks with a unit."""
    table = path.read_text("utf-8").partition("| `prune=` | |")[2].partition("\n\n")[0]
    cells = [row.split(" | ")[0] for row in table.splitlines() if re.match(r'\| `"?\d', row)]
    forms = [form for cell in cells for form in re.findall(r"`(.+?)`", cell)]
    forms += [span for span in spans(path) if re.fullmatch(r'"?\d[\d.]* ?[a-zA-Z%].*', span)]
    return typed(path.read_text("utf-8")) | {form.strip('"') for form in forms}


HELP = "\n".join([usage.of_all(), *map(usage.of_command, usage.USAGES)])
GRAMMAR = targets.__doc__ or ""
FORMS = {
    "the help": typed(HELP),
    "the knob": {form for inside in re.findall(r"\((.+?)\)", HELP_TEXTS["target"]) for form in inside.split(", ")},
    "messages": set(re.split(r", | or ", targets.EXAMPLES.partition(";")[0])),
    "targets.py": {*re.findall(r"^    (\S.*?) {2,}", GRAMMAR, re.MULTILINE), *re.findall(r"``(\d.*?)``", GRAMMAR)},
    **{path.name: written(path) for path in DOCUMENTS},
}
"""Where targets are offered -> the forms that are."""


def test_forms_of_targets_are_found_where_they_are_offered() -> None:
    assert {"0.5", "0.15"} <= FORMS["the help"] and {"2x", "50% params"} <= FORMS["the knob"]
    assert {"8 ms, 2x", "2x as fast"} <= FORMS["targets.py"] and {"2x", "3.2 GMACs"} <= FORMS["messages"]
    assert {"0.5", "1.5x", "12 ms"} <= FORMS["README.md"]
    assert {"50%", "50% size", "1.2M params, 3 MB", "2x as fast", "1.5x", "8 ms", "40%, 2 MB"} <= FORMS["target.md"]


@pytest.mark.parametrize("form", sorted(set().union(*FORMS.values())))
def test_every_form_of_a_target_that_is_offered_is_read_and_said_back(form: str) -> None:
    config = PruneConfig.load(form)
    assert config.targets or form == "0"
    assert str(config.target) == form or isinstance(config.target, float)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_prune_argument_in_prose_is_one(path: Path) -> None:
    for span in spans(path):
        given = dict(re.findall(r'(?:^|\s)(prune\w*)=(".*?"|[^\s…]+)', span)) if span.startswith("prune") else {}
        if given and given.get("prune", "0.5") != "True" and not given.get("prune", "").endswith(".yaml"):
            usual = {} if "prune_sizes" in given else {"prune": "0.5"}
            PruneConfig.from_cli(usual | {name: value.strip('"') for name, value in given.items()})


# Names and links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_file_that_is_named_or_linked_exists(path: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", FENCE.sub("", path.read_text()))
    assert [link for link in links if not (path.parent / link).exists()] == []
    ours = re.compile(r"(yolo_prune|tests|docs|examples|benchmarks)/([\w./-]*(/|\.\w+))?")
    named = [span for span in spans(path) if ours.fullmatch(span)]
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_every_section_that_is_linked_exists(path: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", FENCE.sub("", path.read_text()))
    for other, section in links:
        headings = re.findall(r"^#+ (.+)$", FENCE.sub("", (path.parent / other if other else path).read_text()), re.M)
        slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert section in slugs or section.startswith("yolo_prune."), f"{other}#{section}"


def test_the_criterion_that_is_shown_scores_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"^ +```python\n(.*?)^ +```$", (DOCS / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code
    monkeypatch.setattr(scores, "_CRITERIA", dict(scores._CRITERIA))
    exec(textwrap.dedent(code[1]), dict(vars(scores)))
    model, graph = build("yolov8n"), graph_of("yolov8n")
    found = scores.importance_scores(model, graph, "variance")
    assert [len(of) for of in found] == [group.width for group in graph.groups]
    assert all((of >= 0).all() for of in found) and any(np.ptp(of) > 0 for of in found)


def test_the_names_of_the_code_that_the_page_for_contributors_has_exist() -> None:
    text = (DOCS / "extending.md").read_text()
    named = set(re.findall(r"`(yolo_prune\.[a-z_.]+)`", text))
    assert {".".join(("yolo_prune", room)) for room in MODULES} >= named
    sources = "".join(map(Path.read_text, MODULES.values()))
    constants = set(re.findall(r"`(_?[A-Z][A-Z_]+)`", text)) - {"BUILT", "IN_MODELS", "NEVER_TRACED"}
    assert {name for name in constants if not re.search(rf"^{name}\b", sources, re.MULTILINE)} == set()
    said = re.findall(r"`(\w+)` in\s+`(yolo_prune\.[\w.]+)`", text)
    assert len(said) > 5
    for name, module in said:
        assert hasattr(importlib.import_module(module), name), f"{name} is not in {module}"
    functions = set(re.findall(r"`(\w+_\w+)`", text))
    everything = sources + "".join(map(Path.read_text, (REPOSITORY / "tests").glob("*.py")))
    assert {name for name in functions if name not in everything} == set()


def test_the_api_page_has_every_public_name() -> None:
    shown = re.findall(r"^::: (yolo_prune[\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert {name.rpartition(".")[2] for name in shown} >= set(yolo_prune.__all__)


def test_the_report_page_has_every_record_and_each_describes_its_fields() -> None:
    page = (DOCS / "report.md").read_text()
    records = (report.Report, report.Stage, report.CutRecord, report.QuantizationRecord, report.ExportRecord)
    for record in (*records, report.Given, Speedup):
        assert f"::: {record.__module__}.{record.__name__}\n" in page
        described = re.findall(r"^ {4,8}(\w+): ", record.__doc__ or "", re.MULTILINE)
        assert described == [field.name for field in fields(record)], record


@pytest.mark.parametrize(
    ("page", "choices"), [("importance", IMPORTANCES), ("importance", ALLOCATIONS), ("schedules", SCHEDULES)]
)
def test_every_choice_is_explained(page: str, choices: tuple[str, ...]) -> None:
    assert set(choices) <= set(spans(DOCS / f"{page}.md"))


def test_the_first_page_has_every_page_and_every_example() -> None:
    index = (DOCS / "index.md").read_text()
    assert all(f"({page.name})" in index for page in DOCS.glob("*.md") if page.name != "index.md")
    assert all(f"`{file.name}`" in index for file in (REPOSITORY / "examples").iterdir() if file.is_file())


# Figures and messages ----------------------------------------------------------------------------------------------


def test_measured_rows_of_exports_are_those_of_the_benchmarks() -> None:
    rows = re.findall(r"^\| `.*$", (DOCS / "export.md").read_text(), re.MULTILINE)
    assert rows and [row for row in rows if row not in (DOCS / "benchmarks.md").read_text().splitlines()] == []


def test_every_benchmark_is_listed_and_its_results_are_there() -> None:
    rows = re.findall(r"^\| .+ \| `benchmarks/(\w+)\.py` \| `(.+?)` \|", (DOCS / "benchmarks.md").read_text(), re.M)
    scripts = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
    helpers = {"accuracy_tables", "bfloat16", "check", "training", "validation"}
    assert {script for script, _ in rows} == scripts - helpers
    results = REPOSITORY / "benchmarks" / "results"
    assert {result.strip("/") for _, result in rows} == {path.name for path in results.iterdir()}


def test_the_oldest_ultralytics_that_is_named_is_the_one_that_is_asked_for() -> None:
    asked = re.search(r'"ultralytics>=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert asked and f"asks for {asked[1]} or later" in (DOCS / "troubleshooting.md").read_text("utf-8")


def test_every_message_that_is_quoted_is_one_of_ours() -> None:
    quoted = re.findall(r"^(?:- )?\*\*`(.+?)`\*\*", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    texts = [
        node.value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(quoted) > 10
    assert {message for message in quoted if not any(message in text for text in texts)} == HOSTS_OWN
