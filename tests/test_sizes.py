"""Several models from one run: their targets, their cuts, their files."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Python
from hypothesis import given
from hypothesis import strategies as st
from nets import assert_same_tensors, tiny_yaml
from trainings import Run, report_of, soon
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from yolo_prune import PruneCallback, PruneConfig
from yolo_prune.config.sizes import checkpoint_name, read_sizes
from yolo_prune.config.targets import MACS, PARAMS
from yolo_prune.cost.budget import Goal
from yolo_prune.errors import ConfigError, TargetError
from yolo_prune.report.records import Report, Stage
from yolo_prune.training.progress import Progress, Size
from yolo_prune.training.schedule import cuts, family, part_epoch

SHARES = st.lists(st.integers(1, 94), min_size=1, max_size=5, unique=True).map(
    lambda shares: [share / 100 for share in sorted(shares)]
)


@pytest.mark.parametrize(
    ("given_as", "read"),
    [
        ("0.3,0.5", ("0.3", "0.5")),
        ([0.7, "30%", 0.5], ("30%", "0.5", "0.7")),
        ("[2 MB, 4 MB]", ("4 MB", "2 MB")),
        (("1.5x", "2x"), ("1.5x", "2x")),
        (["2 MB", 0.3], ("2 MB", "0.3")),  # the network has to tell which of them is smaller
        ((), ()),
    ],
)
def test_sizes_are_targets_from_the_largest_model_on(given_as: Any, read: tuple[str, ...]) -> None:
    assert (read_sizes(given_as) if given_as else PruneConfig(sizes=given_as).sizes) == read


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (0.3, r"sizes=0\.3 is not a list of targets; give some"),
        ([0.3, "0.5, 2 MB"], r"sizes: '0\.5, 2 MB' has several limits; a size has one"),
        ([0, 0.3], "sizes: 0 removes nothing; leave it out"),
        (["0.3", 0.3], r"sizes=\['0\.3', 0\.3\] has 0\.3 twice"),
        (["2 MB", "2-MB"], r"target=2-MB: '-MB' is no unit"),
        ([0.3, 1.5], r"target=1\.5 is not a share to remove"),
        ([None], "target=None is a NoneType"),
    ],
)
def test_wrong_sizes_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneConfig(sizes=sizes)


def test_files_are_called_after_their_sizes() -> None:
    names = {"0.3": "best-0.3.pt", "2 MB": "best-2-MB.pt", "50% params": "best-50pct-params.pt", "1.5x": "best-1.5x.pt"}
    assert {size: checkpoint_name(size) for size in names} == names


def test_sizes_stand_instead_of_one_target() -> None:
    config = PruneConfig.from_cli({"prune_sizes": "0.3,0.5,0.7"})
    assert config == PruneConfig(sizes=[0.3, 0.5, 0.7]) == PruneConfig.from_dict(config.to_dict())
    assert config.target == 0.7 and [target.removed for target in config.targets] == [0.3, 0.5, 0.7]
    assert PruneConfig.from_cli(config.to_cli()) == config
    assert config.learning_rate == "cycle" and PruneConfig(sizes=[0.3]).learning_rate == "keep"
    with pytest.raises(ConfigError, match=r"prune=0\.8 with prune_sizes=0\.3,0\.5: sizes stand instead of one target"):
        PruneConfig.from_cli({"prune": "0.8", "prune_sizes": "0.3,0.5"})
    with pytest.raises(ConfigError, match=r"target=0\.8 with sizes=0\.3,0\.5: sizes stand instead of one target"):
        PruneConfig(target=0.8, sizes=[0.3, 0.5])


SCHEDULE = {
    "start": st.floats(0, 0.4),
    "end": st.floats(0.4, 0.9),
    "steps": st.integers(1, 6),
    "schedule": st.sampled_from(["one-shot", "linear", "cubic", "exponential"]),
}


@given(st.integers(1, 300), SHARES, st.fixed_dictionaries(SCHEDULE))
def test_each_size_is_landed_on_and_has_epochs_to_recover(epochs: int, removed: list[float], options: Any) -> None:
    with suppress(ConfigError):
        scheduled = family(epochs=epochs, removed=removed, **options)
        at, fractions = [cut.epoch for cut in scheduled], [cut.fraction for cut in scheduled]
        assert at == sorted(set(at)) and at[-1] < epochs
        assert fractions == sorted(set(fractions)) and fractions[-1] == 1.0
        assert {share / removed[-1] for share in removed} <= set(fractions)
        assert len(scheduled) <= options["steps"] * len(removed)


@given(st.integers(1, 300), st.floats(0, 0.94), st.fixed_dictionaries(SCHEDULE))
def test_one_size_has_the_cuts_of_one_target(epochs: int, removed: float, options: Any) -> None:
    made = []
    for schedule in (
        lambda: family(removed=[removed], epochs=epochs, **options),
        lambda: cuts(removed=removed, epochs=epochs, **options),
    ):
        try:
            made.append(schedule())
        except ConfigError as e:
            made.append(str(e))
    assert made[0] == made[1]


def test_the_parts_of_a_run_are_equal() -> None:
    scheduled = family(epochs=100, removed=[0.3, 0.5, 0.7], start=0.1, end=0.4, steps=3, schedule="cubic")
    assert [cut.epoch for cut in scheduled] == [10, 15, 20, 40, 45, 50, 70, 75, 80]
    with pytest.raises(ConfigError, match="3 sizes do not fit epochs=3: each needs epochs for its cuts and one more"):
        family(epochs=3, removed=[0.3, 0.5, 0.7], start=0.1, end=0.4, steps=3, schedule="cubic")


def a_family() -> Progress:
    """Where a run is before its first cut: to 30 % of the MACs gone, then to a fifth of the parameters."""
    report, goals = Report([64, 64], Stage(), {}), (Goal({MACS: (100.0, 70.0)}), Goal({PARAMS: (50.0, 10.0)}))
    schedule = family(epochs=40, removed=[0.3, 0.8], start=0.1, end=0.4, steps=2, schedule="linear")
    sizes = [Size("0.3", 0.3 / 0.8, goals[0]), Size("80% params", 1.0, goals[1])]
    return Progress(PruneConfig(), report, 40, goals[1], schedule=schedule, sizes=sizes)


def test_budgets_are_those_of_the_size_that_comes_next() -> None:
    progress = a_family()
    budgets = [progress.budget(cut.fraction) for cut in progress.schedule]
    assert budgets[1] == {MACS: 70.0} and budgets[3] == {PARAMS: 10.0}
    assert budgets[0][MACS] == pytest.approx(85.0) and budgets[2][PARAMS] == pytest.approx(50 - 40 * 0.55 / 0.8)


def test_each_part_has_a_learning_rate_curve_of_its_own() -> None:
    progress = a_family()
    second = progress.schedule[2].epoch
    parts = []
    for _ in range(5):
        parts.append(progress.part)
        progress.report.cuts.append(None)  # type: ignore[arg-type]  # their number counts
    assert parts == [(0, second)] * 3 + [(second, 40)] * 2
    assert part_epoch(second, 40, second, 40) == 0 and part_epoch(39, 40, second, 40) < 40
    assert part_epoch(30, 40, 30, 40, since=0.5) == 20


def test_a_run_says_which_size_it_has_landed_on() -> None:
    progress, names = a_family(), []
    for _ in range(4):
        progress.report.cuts.append(None)  # type: ignore[arg-type]
        names.append(progress.landed and progress.landed.name)
    assert names == [None, "0.3", None, "80% params"]
    again = Progress.from_dict(json.loads(json.dumps(a_family().to_dict())))
    assert again.sizes == a_family().sizes and again.schedule == a_family().schedule


def test_a_run_that_passes_several_cuts_in_an_epoch_passes_no_size() -> None:
    """With ``time=`` it goes by the share of the time that is over, which may be all of it at once."""
    progress = a_family()
    first, second, third, fourth = progress.schedule
    assert progress.due(first.epoch - 1) == [] and progress.due(first.epoch) == [first]
    assert progress.due(40) == [first, second]
    progress.report.cuts.append(None)  # type: ignore[arg-type]
    progress.schedule[:2] = [second]
    assert progress.due(40) == [third, fourth]


@pytest.mark.slow
def test_sizes_that_are_as_far_in_different_quantities_are_made_one_after_the_other(run: Run) -> None:
    report = report_of(run(prune=soon(sizes=["50% params", 0.5], start=0.1, end=0.4, schedule="exponential"), epochs=8))
    params, macs = report["sizes"]
    assert params["size"] == "50% params" and params["params"] <= 0.5 * report["dense"]["params"]
    assert macs["size"] == "0.5" and macs["macs"] <= 0.5 * report["dense"]["macs"]


JUDGE = """
import json, sys
from ultralytics import YOLO
assert not any(name.startswith("yolo_prune") for name in sys.modules)
print(json.dumps([sum(p.numel() for p in YOLO(file).model.parameters()) for file in sys.argv[1:]]))
"""


def test_each_size_has_a_model_that_meets_it(run: Run, own_folder: Path, python: Python) -> None:
    trainer = run(prune=soon(sizes=["50% params", 0.3, 0.7], start=0.1, end=0.4, export=("torchscript",)), epochs=8)
    report = report_of(trainer)
    names = ["best-0.3.pt", "best-50pct-params.pt", "best-0.7.pt"]
    assert [Path(size["checkpoint"]).name for size in report["sizes"]] == names
    dense, stages = report["dense"], dict(zip(names, report["sizes"], strict=True))
    assert stages["best-0.3.pt"]["macs"] <= 0.7 * dense["macs"]
    assert stages["best-50pct-params.pt"]["params"] <= 0.5 * dense["params"]
    assert stages["best-0.7.pt"]["macs"] <= 0.3 * dense["macs"]
    assert all(size["fitness"] is not None and size["bytes"] > 0 for size in report["sizes"])
    assert [len(size["exports"]) for size in report["sizes"]] == [1, 1, 0]
    files = [trainer.wdir / name for name in names]
    judged = python("-c", JUDGE, *files, YOLO_PRUNE="0")
    assert json.loads(judged.stdout.splitlines()[-1]) == [size["params"] for size in report["sizes"]], judged.stderr
    assert files[-1].read_bytes() == trainer.best.read_bytes()
    network = load_checkpoint(files[0])[0]
    assert network.yaml["yolo_prune"]["widths"]


@pytest.mark.slow
def test_one_size_is_one_target(run: Run) -> None:
    alone, family_of_one = (run(prune=soon(**target)) for target in ({"target": 0.4}, {"sizes": [0.4]}))
    hashes = [[cut["plan_sha256"] for cut in report_of(trainer)["cuts"]] for trainer in (alone, family_of_one)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 2
    assert_same_tensors(*(load_checkpoint(trainer.best)[0].state_dict() for trainer in (alone, family_of_one)))
    assert (family_of_one.wdir / "best-0.4.pt").exists()


@pytest.mark.slow
def test_the_learning_rate_falls_from_first_to_last_for_each_size(run: Run, own_folder: Path) -> None:
    yolo, rates, own = YOLO(tiny_yaml(own_folder)), [], []

    def note(trainer: Any) -> None:
        rates.append(trainer.optimizer.param_groups[-1]["lr"])
        own.append(0.01 * trainer.lf.stock(trainer.epoch))

    yolo.add_callback("on_train_epoch_end", note)
    prune = soon(sizes=[0.3, 0.6], start=0.1, end=0.4, steps=1)
    report = report_of(run(yolo, prune, epochs=8, warmup_epochs=0, optimizer="SGD", lr0=0.01, nbs=4))
    second = report["cuts"][1]["epoch"]
    assert rates[0] == pytest.approx(0.01) and rates[second - 1] < own[second - 1] / 2
    assert rates[second] == pytest.approx(0.01) and rates[second:] == sorted(rates[second:], reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(("event", "epoch"), [("on_fit_epoch_end", 2), ("on_train_epoch_end", 4)])
def test_a_family_that_was_interrupted_ends_as_if_nothing_had_happened(
    run: Run, own_folder: Path, event: str, epoch: int
) -> None:
    yolo, left = YOLO(tiny_yaml(own_folder)), own_folder / "left"

    def keep(trainer: Any) -> None:
        if trainer.epoch == epoch:
            shutil.copytree(trainer.save_dir, left)

    yolo.add_callback(event, keep)
    at = run(yolo, soon(sizes=[0.3, 0.6], start=0.1, end=0.4), name="run", epochs=6).save_dir
    whole = at.rename(own_folder / "whole")
    left.rename(at)
    resumed = run(YOLO(at / "weights" / "last.pt"), PruneCallback(None), resume=True).save_dir
    reports = [json.loads((folder / "pruning" / "report.json").read_text()) for folder in (whole, resumed)]
    assert len({json.dumps([cut["plan_sha256"] for cut in report["cuts"]]) for report in reports}) == 1
    assert [size["fitness"] for size in reports[0]["sizes"]] == [size["fitness"] for size in reports[1]["sizes"]]
    for name in ("best-0.3.pt", "best-0.6.pt", "best.pt"):
        assert_same_tensors(*(load_checkpoint(f / "weights" / name)[0].state_dict() for f in (whole, resumed)))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{"val": False}, {"save": False}, {"patience": 1}])
def test_all_sizes_are_made_whatever_the_run_saves_or_stops_for(run: Run, arguments: dict[str, Any]) -> None:
    report = report_of(run(prune=soon(sizes=[0.3, 0.6], start=0.1, end=0.4), epochs=8, **arguments))
    assert [size["size"] for size in report["sizes"]] == ["0.3", "0.6"]
    for size, share in zip(report["sizes"], (0.7, 0.4), strict=True):
        assert Path(size["checkpoint"]).exists() and size["macs"] <= share * report["dense"]["macs"]


@pytest.mark.slow
def test_a_size_that_holds_already_or_twice_is_refused(run: Run) -> None:
    with pytest.raises(TargetError, match="sizes: 900 MB holds already, before anything is cut; leave it out"):
        run(prune=soon(sizes=["900 MB", 0.3]), epochs=8)
    with pytest.raises(ConfigError, match=r"sizes=0\.3,0\.6 with quantize=8: the run turns to INT8 once"):
        run(prune=soon(sizes=[0.3, 0.6], start=0.1, end=0.4), epochs=8, quantize=8)
