from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from html.parser import HTMLParser
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from reports import full_report

from yolo_prune.device.stopwatch import Speedup
from yolo_prune.errors import ConfigError
from yolo_prune.report import compare_page, curve_page, drawing, page
from yolo_prune.report.predictions import Sample
from yolo_prune.report.records import Stage
from yolo_prune.report.runs import Comparison, FinishedRun
from yolo_prune.report.size_curve import Curve, CurvePoint

ARGUMENTS = {"task": "detect", "model": "yolo11n.pt", "data": "cells.yaml", "epochs": 8}
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
SAMPLES = [Sample("cells 1.jpg", (PIXEL, PIXEL), ("12 cells", "11 cells"))]
UNITS = {"x": 1.0, "G": 1e9, "M": 1e6, "k": 1e3, "MB": 1e6, "ms": 1e-3, "s": 1.0}


class Tags(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, tuple[Any, str]] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "data" and (place := attributes["data-place"]) not in self.figures:
            self.figures[str(place)] = (json.loads(str(attributes["value"])), data)


def at(report: Any, place: str) -> Any:
    """Return what is at a place of a report, given as the JSON list of names and numbers on the way to it."""
    return reduce(getitem, json.loads(place), report)


def read(text: str, value: float) -> float:
    """Return what a figure says; shares are written in percent."""
    number, unit = re.fullmatch(r"([-\d.e+]+) ?([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS.get(unit, 1 if value >= 1 or value == 0 or "e" in text else 0.01)


def test_every_figure_is_the_one_in_the_report() -> None:
    report = full_report()
    figures = Tags(page.render(report, ARGUMENTS, "a", SAMPLES)).figures
    for place, (value, text) in figures.items():
        assert value == at(report, place), place
        is_share = "max_drop" in place
        assert is_share or read(text, value) == pytest.approx(value, rel=0.006, abs=6e-4 if value < 1 else 0), place
    told = {"/".join(map(str, json.loads(place))): text for place, (_, text) in figures.items()}
    for stage in ("dense", "final", "cuts/0", "cuts/1", "scales/yolo11n"):
        assert {f"{stage}/macs", f"{stage}/params"} <= told.keys()
    assert told["dense/macs"] == "2G" and told["final/fitness"] == "58.1" and told["final/latency"] == "12.00 ms"
    assert told["cuts/1/fitness_cut"] == "51.0" and told["layers/model.1.conv/after"] == "24"
    assert [told[f"maps/{i}"] for i in range(3)] == ["48", "104", "200"]
    assert told["exports/0/fitness"] == "58.0" and told["guard/failures/0/macs"] == "800M"


def test_a_cut_that_was_taken_back_is_shaded_and_has_its_size_for_as_long() -> None:
    report = full_report()
    report["epochs"][3]["macs"] = report["guard"]["failures"][0]["macs"]
    shown = page.render(report, ARGUMENTS, "a")
    assert re.findall('class="back" d="([^"]*)"', shown) == ["M156.5 16H196.0V226H156.5Z"]  # of 8 epochs, 38 to 354
    (area,) = re.findall('class="macs" d="([^"]*)"', shown)
    assert "H156.5V210.0H196.0" in area and "Shaded:" in shown
    report["guard"]["failures"] = []
    assert "Shaded:" not in page.render(report, ARGUMENTS, "a")


def test_the_headline_says_what_was_measured_and_leaves_out_the_rest() -> None:
    def said(**changes: Any) -> str:
        return page.headline({**full_report(), **changes}, ARGUMENTS)

    report = full_report()
    assert said() == "2.1x fewer MACs, 45% zeros, 1.8x faster in ONNX Runtime, mAP50-95 58.6 → 58.1"
    assert said(timed=None) == "2.1x fewer MACs, 45% zeros, mAP50-95 58.6 → 58.1"

    def timed(low: float, value: float | None, high: float, share: float = 0.99) -> str:
        speedup = asdict(Speedup(low, value, high, share, settled=value is not None))
        return said(final={**report["final"], "speedup": speedup}).split(", ")[2]

    assert timed(1.24, 1.27, 1.34) == "1.24\N{EN DASH}1.34x faster in ONNX Runtime"
    assert timed(0.7, 0.71, 0.72) == "1.4x slower in ONNX Runtime"
    assert timed(0.98, 1.0, 1.02) == "as fast in ONNX Runtime"
    assert timed(2.5, None, 2.6, 0.5) == timed(1.2, None, 1.4) == "mAP50-95 58.6 → 58.1"
    assert said(final={**report["final"], "speedup": None}) == "2.1x fewer MACs, 45% zeros, mAP50-95 58.6 → 58.1"
    assert said(dense={**report["dense"], "fitness": None}) == "2.1x fewer MACs, 45% zeros, 1.8x faster in ONNX Runtime"
    assert said(cuts=[]) == "Nothing was cut"
    assert said(final=None) == "Not finished yet, 2 cuts made"
    assert page.headline(report, {}).endswith("fitness 58.6 → 58.1")


def test_no_fitness_is_compared_with_a_dense_model_in_the_middle_of_its_training() -> None:
    report = full_report()
    report["dense"]["finished"] = False
    why = "(the dense model was not finished: 2 of 8 epochs)"
    assert page.headline(report, ARGUMENTS).endswith(f"in ONNX Runtime, mAP50-95 58.1 {why}")
    assert page.headline(report, {}).endswith("fitness 58.1 (the dense model was not finished: after 2 epochs)")
    told = " ".join(Tags(page.render(report, ARGUMENTS, "a", SAMPLES)).text.split())
    assert "\N{MINUS SIGN}0.5" not in told and "→ 58.1" not in told
    assert told.count("dense after 2 epochs, not finished") == 4  # the table, both curves, and a picture
    assert "The dense model was not finished (2 epochs of this run), so no mAP50-95 is compared with its" in told
    assert "That is a low bar: the dense model was not finished" in told
    finished = " ".join(Tags(page.render(full_report(), ARGUMENTS, "a", SAMPLES)).text.split())
    assert "not finished" not in finished and "low bar" not in finished and "\N{MINUS SIGN}0.5" in finished


def test_the_page_says_what_the_dense_model_was() -> None:
    def said(**changes: Any) -> str:
        report = full_report()
        return page.dense_before({**report, "dense": {**report["dense"], **changes}})

    assert said() == "The dense model was trained before this run, which gave it 2 epochs more."
    assert said(epochs=0) == said(epochs=None) == "The dense model is the one that this began with."
    assert said(finished=False) == "The dense model was not finished (2 epochs of this run)."
    assert said(finished=None) == "The dense model may not have been finished (this report does not say)."
    assert said(fitness=None) == page.dense_before({**full_report(), "cuts": []}) == ""
    assert said() in Tags(page.render(full_report(), ARGUMENTS, "a")).text


def test_fitness_is_compared_with_what_the_run_began_with_where_that_was_better() -> None:
    report = full_report()
    report["dense"]["fitness_at_start"] = 0.6
    assert page.headline(report, ARGUMENTS).endswith("mAP50-95 60.0 → 58.1")
    tags = Tags(page.render(report, ARGUMENTS, "a"))
    told = " ".join(tags.text.split())
    assert tags.figures['["dense", "fitness_at_start"]'] == (0.6, "60.0") and "\N{MINUS SIGN}1.9" in told
    assert "The weights that the run began with came to 60.0, more than dense just before the first cut" in told
    report["dense"]["fitness_at_start"] = 0.5
    assert page.headline(report, ARGUMENTS).endswith("mAP50-95 58.6 → 58.1")
    assert "came to" not in Tags(page.render({**report, "guard": None}, ARGUMENTS, "a")).text


def test_the_page_makes_nothing_of_times_that_did_not_settle() -> None:
    def note(speedup: Speedup | None) -> str:
        report = full_report()
        report["final"]["speedup"] = speedup and asdict(speedup)
        return " ".join(Tags(page.render(report, ARGUMENTS, "a")).text.split())

    settled = note(Speedup(1.77, 1.79, 1.82, 0.99, settled=True))
    assert "\N{MINUS SIGN}44.2%" in settled and "Speed-up: 1.79x, spread 1.77x to 1.82x." in settled
    busy = note(Speedup(1.1, None, 2.6, 0.54, settled=False))
    assert (
        "\N{MINUS SIGN}44.2%" not in busy and "No speed-up can be told: something else kept this machine busy" in busy
    )
    assert "\N{MINUS SIGN}44.2%" not in note(None) and "does not say how far that spreads" in note(None)


def test_nothing_that_a_user_named_is_markup() -> None:
    hostile = "<script>alert(1)</script>\"'><img src=http://evil onerror=alert(1)>&amp;"
    report = full_report()
    report["layers"][hostile] = {"before": 8, "after": 8}
    for cut in report["cuts"]:
        cut["locked"] = [{"layer": hostile, "why": hostile}]
    report["config"]["ignored_layers"] = [hostile]
    report["exports"][1]["reason"] = report["timed"]["device"] = report["final"]["checkpoint"] = hostile
    samples = [Sample(hostile, (PIXEL, PIXEL), (hostile, hostile))]
    told = Tags(page.render(report, {**ARGUMENTS, "data": hostile, "model": hostile}, hostile, samples))
    plain = Tags(
        page.render(
            {**report, "layers": {**full_report()["layers"], "x": {"before": 8, "after": 8}}}, ARGUMENTS, "a", SAMPLES
        )
    )
    count = Counter(tag for tag, _ in told.tags)
    assert count["script"] == 0 and count["img"] == 2
    assert {name for _, attributes in told.tags for name in attributes} == {
        name for _, attributes in plain.tags for name in attributes
    }
    assert told.text.count(hostile) >= 10


def test_the_page_asks_for_nothing() -> None:
    for tag, attributes in Tags(page.render(full_report(), ARGUMENTS, "a", SAMPLES)).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "poster", "action"):
            assert str(attributes.get(name, "data:")).startswith("data:")
        assert "url(" not in str(attributes.get("style"))
        if "http-equiv" in attributes:
            assert "default-src 'none'" in str(attributes["content"])


def test_reasons_stand_at_every_layer_that_they_lock() -> None:
    text = page.render(full_report(), ARGUMENTS, "a")
    (row,) = re.findall(r'<li class="locked".*?</li>', text)
    assert "model.2.conv" in row and "predicts the class scores" in row


def test_a_report_of_an_earlier_version_makes_a_page() -> None:
    report = full_report()
    for name in ("scales", "timed", "quantization", "epochs", "layers", "samples", "guard"):
        del report[name]
    for stage in (report["dense"], report["final"], *report["cuts"]):
        del stage["latency"]
    for stage in (report["dense"], report["final"]):
        del stage["speedup"], stage["epochs"], stage["finished"], stage["fitness_at_start"]
    for export in report["exports"]:
        del export["precision"]
    text = page.render(report, {}, "a", unseen="gone")
    assert "2.1x fewer MACs, 45% zeros, fitness 58.1 (the dense model may not have been finished)" in text
    assert "No pictures: gone" in text and "→ 58.1" not in text
    assert "may not have been finished" in text and "\N{MINUS SIGN}0.5" not in text


@pytest.mark.parametrize("final", [True, False])
def test_a_report_without_cuts_makes_a_page(final: bool) -> None:
    report = full_report()
    report.update(cuts=[], layers={}, scales={}, timed=None, guard=None, quantization=None)
    report["final"] = report["dense"] if final else None
    assert ("Nothing was cut" if final else "Not finished yet, 0 cuts made") in page.render(report, ARGUMENTS, "a")


def test_commands_survive_any_path() -> None:
    report = full_report()
    report["final"]["checkpoint"] = "/my runs/it's/best.pt"
    text = page.render(report, {**ARGUMENTS, "data": "my data.yaml"}, "a")
    commands = re.findall(r"<code>(yolo .*?)</code>", re.sub("&#39;", "'", text).replace("&#34;", '"'))
    words = [shlex.split(command) for command in commands if command.startswith(("yolo predict", "yolo train"))]
    assert len(words) == 2 and all("model=/my runs/it's/best.pt" in w for w in words)
    assert "data=my data.yaml" in words[1]


@pytest.mark.parametrize(
    ("values", "pad"), [((0.5, 0.6), 0.06), ((0.123, 0.1231), 0.0), ((0, 5e9), 0.0), ((3.0,), 0.06), ((0, 0), 0.06)]
)
def test_ticks_are_few_and_lie_on_the_axis(values: tuple[float, ...], pad: float) -> None:
    axis = drawing.Axis(values, 38, 354, pad)
    places = [axis(tick) for tick in axis.ticks]
    assert 3 <= len(places) <= 8 and places == sorted(set(places))
    assert all(38 <= place <= 354 for place in places)
    assert 38 <= axis(min(values)) <= axis(max(values)) <= 354


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"imgsz": [64, 64], "cuts": 3}'])
def test_what_is_no_report_is_refused(own_folder: Path, content: str | None) -> None:
    (own_folder / "pruning").mkdir()
    if content is not None:
        (own_folder / "pruning" / "report.json").write_text(content)
    with pytest.raises(ConfigError, match=r"report\.json cannot be read as a report .* give the folder of a run"):
        page.write(own_folder)
    assert not (own_folder / "pruning" / "report.html").exists()


def test_a_page_without_checkpoints_says_why_there_are_no_predictions(own_folder: Path) -> None:
    (own_folder / "pruning").mkdir()
    (own_folder / "pruning" / "report.json").write_text(json.dumps(full_report()))
    text = page.write(own_folder, plots=False).read_text()
    assert "No pictures: FileNotFoundError: there is no" in text
    assert {path.name for path in (own_folder / "pruning").iterdir()} == {"report.json", "report.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="looking at the page needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("looking at the page needs a Chromium (apt-get install chromium)")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=quiet)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_requests_errors_or_scrolling(
    own_folder: Path, browser: Any, width: int, scheme: str
) -> None:
    report, file = full_report(), own_folder / "report.html"
    report["layers"].update({f"model.{n}.a.rather.long.path.to.a.conv": {"before": 640, "after": 8} for n in range(9)})
    file.write_text(page.render(report, ARGUMENTS, "a" * 80, SAMPLES), encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(file.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert not complaints
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    shown = tab.eval_on_selector_all("data", "all => all.map(d => [d.dataset.place, d.value])")
    assert len(shown) > 40 and all(json.loads(value) == at(report, place) for place, value in shown)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 128) == (scheme == "dark")
    locked, reason = tab.locator("li.locked").first, tab.locator("li.locked .why").first
    assert reason.evaluate("e => getComputedStyle(e).opacity") == "0"
    locked.focus()
    assert reason.evaluate("e => getComputedStyle(e).opacity") == "1"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["curve", "compare"])
def test_a_browser_shows_curves_and_comparisons_without_scrolling(
    own_folder: Path, browser: Any, kind: str, width: int, scheme: str
) -> None:
    if kind == "curve":
        dense, *points = (
            CurvePoint("0.5" * (i > 0), (9 - i) * 10**8, 10**6, 2 * 10**6, 0.6 - i / 20, 0.02) for i in range(4)
        )
        curve = Curve("a" * 80, "b" * 80, "detect", [640, 640], "macs", dense, points, "0.99: " + "c" * 80)
        text = curve_page.render(curve, "a" * 80)
    else:
        stages = [Stage(i * 10**8, 10**6, 2 * 10**6, i / 10, latency=0.02, finished=i > 2) for i in range(1, 5)]
        runs = [FinishedRun(f"{'a' * 60}{i}", "0.5", 9, "b" * 80, 0, stages[i], stages[i - 1]) for i in range(1, 4)]
        found = Comparison("c" * 80, "detect", [640, 640], runs, {"yolo11n": Stage(10**8, 10**6)}, {"d" * 80: "e" * 80})
        text = compare_page.render(found, "a" * 80)
    file = own_folder / "page.html"
    file.write_text(text, encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto(file.as_uri())
    assert not complaints and tab.evaluate("document.documentElement.scrollWidth") == width
    edges = "all => all.map(e => e.getBoundingClientRect()).map(b => [b.left, b.right])"
    boxes, texts = (tab.eval_on_selector_all(what, edges) for what in ("svg", "svg text"))
    assert len(boxes) >= 3 and all(0 <= left < right <= width for left, right in boxes)
    assert all(0 <= left < right <= width for left, right in texts)  # nothing is clipped
    tab.close()
