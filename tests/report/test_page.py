"""report.html against hand-worked numbers and in a real browser, with names that try to break out of it."""

import html as markup
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium_page, until
from made_runs import make_run

from mrl_jax.config import OptimizerConfig
from mrl_jax.report import figures, page
from mrl_jax.report.compare import Comparison
from mrl_jax.report.gather import gather
from mrl_jax.report.sections import sections
from mrl_jax.report.statistics import Crossover, Difference, mean_interval
from mrl_jax.report.study import Series, Study

DIMS = (2, 4, 8)
CLASSES = (
    "<script>document.documentElement.dataset.ran = 1</script>",
    '</script><img src=x onerror="document.documentElement.dataset.ran = 2">',
    """<a href="javascript:document.documentElement.dataset.ran = 3">it's</a> & &lt; %{x} $x^2$""",
    "plain",
    "hard",
)
NAME = CLASSES[0] + CLASSES[2]
NAN = math.nan


def right(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Class 0 is right from 2 dims on, class 1 from 4, class 2 from 8, class 3 at 4 only, class 4 never."""
    classes = {2: [0], 4: [0, 1, 3], 8: [0, 1, 2]}
    return {dim: np.isin(labels, right_ones).astype(np.float32) for dim, right_ones in classes.items()}


def made(seeds: int = 3) -> Study:
    """A study of three arms with outcomes that can be worked out by hand."""
    series = tuple(Series(arm) for arm in ("mrl", "mrl_e", "ff"))
    labels = np.arange(50, dtype=np.int32) % 5
    outcomes = {dim: np.tile(row, (seeds, 1)) for dim, row in right(labels).items()}
    metrics = [prefix + name for prefix in ("", "int8_", "bit_") for name in ("knn_top1", "map@10")]
    values: dict[tuple[Series, str, str, int], np.ndarray] = {}
    for s, metric in product(series, ("linear_top1", *metrics)):
        values |= {(s, metric, "test", dim): of.mean(axis=1) for dim, of in outcomes.items()}
        if s.arm != "ff" and metric in ("linear_top1", "knn_top1"):
            values[s, metric, "test", 3] = np.full(seeds, 0.3)
    log = [
        {"split": "validation", "arm": s.arm, "variant": None, "step": step, "seed": 0, "accuracy": {"2": 0.5}}
        for s, step in product(series, (10, 20))
    ] + [{"split": "train", "arm": "mrl", "variant": None, "step": 10, "seed": 0, "loss": {"2": 1.0}}]
    title, notes = "Title " + CLASSES[1], ("Note " + CLASSES[0],)
    study = Study(NAME, title, series, DIMS, 8, CLASSES, labels, seeds, notes, log, [], values, {s: {} for s in series})
    study._cache |= {(s, f"test/{metric}/"): outcomes for s in series for metric in ("linear_top1", "knn_top1")}
    return study


def compared(study: Study) -> dict[str, dict[str, Comparison]]:
    mrl, mrl_e, ff = study.series
    known = study.seeds > 1

    def difference(dim: int, mean: float, p: float) -> Difference:
        return Difference(dim, mean, *((mean - 0.01, mean + 0.02, p, p) if known else (NAN, NAN, NAN, NAN)))

    differences = [difference(2, 0.0512, 0.0004), difference(4, 0.01, 0.04), difference(8, -0.02, 0.2)]
    won = Comparison(mrl, ff, differences, Crossover("wins_below", 5.6, 4.1, 7.0), difference(8, 0.02, 0.2))
    open_ = Comparison(mrl_e, ff, differences[:2], Crossover("cannot_settle", None, None, None), None)
    return {"linear_top1": {"MRL − FF": won, NAME: open_}}


def page_of(study: Study, comparisons: dict[str, dict[str, Comparison]]) -> str:
    return page.html(study, sections(study, comparisons))


def plots(text: str) -> dict[str, Any]:
    """What the page draws: place → data and layout."""
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert data
    return json.loads(data[1])


class Tags(HTMLParser):
    """The start tags of a page, its event handlers, and the words it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] != "script":
            self.words.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    study = made()
    return page_of(study, compared(study))


def test_same_study_same_bytes(text: str) -> None:
    assert page_of(made(), compared(made())) == text


def test_plotly_is_embedded_once_and_the_rest_is_small(text: str) -> None:
    assert text.count(page.get_plotlyjs()) == 1
    rest = text.replace(page.get_plotlyjs(), "")
    assert len(rest) < 60_000
    assert "://" not in rest
    assert "@import" not in rest


def test_names_are_text_and_not_markup(text: str) -> None:
    tags = Tags(text.replace(page.get_plotlyjs(), ""))
    assert tags.tags.count("script") == 3
    assert not {"a", "img", "iframe", "object", "link"} & set(tags.tags)
    assert not [name for name in tags.attributes if name.startswith("on") or name in ("src", "href")]
    words = "".join(tags.words)
    for name in ("Title " + CLASSES[1], "Note " + CLASSES[0], NAME):
        assert name in words


def test_names_in_plots_are_text_too(text: str) -> None:
    drawn = plots(text)
    hover = drawn["classes-0"]["data"][0]["customdata"]
    assert [markup.unescape(row[0]).split("<br>")[0] for row in hover] == [CLASSES[c] for c in (2, 1, 0, 4, 3)]
    ticks = drawn["classes-0"]["layout"]["yaxis"]["ticktext"]
    for shown in (*ticks, *(row[0].replace("<br>", "") for row in hover)):
        assert not re.search(r"[<>]|%\{", shown)


def test_share_of_examples_by_their_smallest_dim(text: str) -> None:
    bars = plots(text)["oracle-0"]
    assert [bar["name"] for bar in bars["data"]] == ["MRL", "MRL-E"]
    assert bars["layout"]["xaxis"]["ticktext"] == ["2", "4", "8", "none"]
    assert bars["data"][0]["y"] == [20, 40, 20, 20]
    # At the full width three classes of five are right, at some dim four.
    assert "<td>60.00</td><td>80.00</td><td>+20.00</td>" in text


def test_heat_map_puts_the_largest_drops_first(text: str) -> None:
    plot = plots(text)["classes-0"]
    heat, dots = plot["data"]
    assert plot["layout"]["xaxis"]["ticktext"] == ["2", "4", "8"]
    assert heat["z"] == [[-100, -100, 0], [-100, 0, 0], [0, 0, 0], [0, 0, 0], [0, 100, 0]]  # classes 2, 1, 0, 4, 3
    assert [markup.unescape(row[0]).split("<br>", 1) for row in heat["customdata"]] == [
        [CLASSES[c], f"10 examples<br>at 2: {accuracy:.1f} % right, {more:+.1f} points"]
        for c, accuracy, more in ((2, 0, -100), (1, 0, -100), (0, 100, 0), (4, 0, 0), (3, 0, 0))
    ]
    assert [math.floor(x) for x in dots["x"]] == [2, 1, 0, 0, 0]


def test_differences_are_in_a_table_and_in_words(text: str) -> None:
    assert "<td>+5.12 [+4.12, +7.12]</td><td>&lt;0.001</td>" in text
    assert "<td>+1.00 [+0.00, +3.00]</td><td>0.040</td>" in text
    assert "<td>−2.00 [−3.00, +0.00]</td><td>0.200</td>" in text
    assert "<td>MRL</td><td>8</td><td>+2.00 [+1.00, +4.00]</td>" in text
    assert "MRL − FF: MRL wins below 6 dims [4, 7], not above." in text
    assert "this data cannot settle where either of them starts to win" in text


def test_pointing_at_a_difference_says_its_dim_interval_and_verdict(text: str) -> None:
    line, cross, other = plots(text)["differences-0"]["data"]
    assert (line["name"], other["name"]) == ("MRL", "MRL-E")
    assert line["customdata"][0] == "at 2: +5.12 [+4.12, +7.12]"
    assert line["error_y"]["array"] == [2, 2, 2]
    assert line["error_y"]["arrayminus"] == [1, 1, 1]
    assert cross["customdata"] == ["MRL wins below 6 dims [4, 7], not above."]
    assert (cross["x"], cross["error_x"]["array"], cross["error_x"]["arrayminus"]) == ([5.6], [1.4], [1.5])
    assert cross["y"][0] < -3  # below all bars
    assert line["meta"] == cross["meta"] == ["mrl", "ff"]


def test_one_seed_has_no_intervals() -> None:
    study = made(seeds=1)
    text = page_of(study, compared(study))
    drawn = plots(text)
    assert not [t for plot in drawn.values() for t in plot["data"] if t.get("fill") or t.get("error_y")]
    assert "NaN" not in json.dumps(drawn)
    assert "nan" not in "".join(Tags(text.replace(page.get_plotlyjs(), "")).words).lower()
    assert "<td>+5.12</td>" in text


def test_scores_that_are_no_number_leave_a_gap() -> None:
    study = made()
    study.log[0]["accuracy"]["2"] = NAN
    assert plots(page_of(study, {}))["training-0"]["data"][0]["y"] == [None, 50]


def test_bands_are_the_intervals_of_the_outcomes(text: str) -> None:
    study = made()
    band, line = plots(text)["accuracy-0"]["data"][:2]
    expected = [mean_interval(study.outcomes(study.series[0], "linear_top1")[d]) for d in DIMS]
    low, high = [i.low for i in expected], [i.high for i in expected]
    assert band["x"] == [2, 4, 8, 8, 4, 2]
    assert band["y"] == pytest.approx([100 * v for v in low + high[::-1]], abs=0.005)
    assert line["x"] == [2, 3, 4, 8]
    assert line["y"] == [20, 30, 60, 60]
    assert [symbol.endswith("-open") for symbol in line["marker"]["symbol"]] == [False, True, False, False]


def test_the_band_of_two_seeds_goes_from_one_to_the_other() -> None:
    study = made(seeds=2)
    shown = plots(page_of(study, {}))["accuracy-0"]["data"][0]
    low_high = [study.values(study.series[0], "linear_top1")[dim] for dim in shown["x"][: len(shown["x"]) // 2]]
    assert shown["y"] == pytest.approx([100 * v.min() for v in low_high] + [100 * v.max() for v in low_high[::-1]])


def test_nothing_to_draw_leaves_a_section_out() -> None:
    study = made()
    empty = Study(**{**vars(study), "log": [], "_values": {}, "_cache": {}, "labels": study.labels[:0]})
    text = page_of(empty, {})
    assert plots(text) == {}
    assert "<h2>" not in text


def test_gathered_runs_of_two_configurations(tmp_path: Path) -> None:
    make_run(tmp_path, arms=("all",), run="wide <b>")
    make_run(tmp_path, arms=("mrl", "ff"), run="kept", optimizer=OptimizerConfig(learning_rate=0.5))
    study = gather([tmp_path])
    drawn = plots(page_of(study, {}))
    lines = [trace for trace in drawn["accuracy-0"]["data"] if trace.get("name")]
    assert [markup.unescape(line["name"]) for line in lines] == [series.label for series in study.series]
    assert len(lines) == 12
    for line, series in zip(lines, study.series, strict=True):
        values = study.values(series, "linear_top1")
        assert line["y"] == pytest.approx([100 * values[dim].mean() for dim in study.dims], abs=0.005)
    assert sum(plot.startswith("classes-") for plot in drawn) == len(study.of_origin("nested")) == 4


def test_both_renderers_draw_the_same_panels(text: str) -> None:
    study = made()
    parts = sections(study, compared(study))
    panels = [panel for part in parts for figure in part.figures for panel in figure.panels]
    drawn = plots(text)
    assert len(drawn) == len(panels)
    for plot, panel in zip(drawn.values(), panels, strict=True):
        if isinstance(panel, figures.Lines):
            lines = [trace for trace in plot["data"] if "name" in trace]
            assert [line["y"] for line in lines] == [pytest.approx(points.y, abs=0.006) for points in panel.points]


def test_bytes_of_every_precision(text: str) -> None:
    traces = [t for t in plots(text)["bytes-0"]["data"] if t["meta"] == ["mrl"]]
    assert [t["x"] for t in traces] == [[8, 16, 32], [2, 4, 8], [0.25, 0.5, 1]]
    assert [t["showlegend"] for t in traces] == [True, False, False]


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(text: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in headless Chromium, drawn, with what it said and asked for since."""
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    with chromium_page() as page:
        page.uri = path.as_uri()
        page.view.goto(page.uri)
        until(page.view, "[...document.querySelectorAll('.plot')].every(plot => plot._fullLayout)")
        yield page


def hovered(view: Any, plot: str, x: float, y: float) -> str:
    """What the plot says at a point given as shares of its area."""
    view.locator(f"#{plot}").scroll_into_view_if_needed()
    area = view.locator(f"#{plot} .bglayer .bg, #{plot} .nsewdrag").first.bounding_box()
    view.mouse.move(0, 0)
    until(view, f"!document.querySelector('#{plot} .hoverlayer text')")
    view.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"])
    until(view, f"document.querySelector('#{plot} .hoverlayer text')")
    return "\n".join(view.locator(f"#{plot} .hoverlayer text").all_text_contents())


SHOWN = """() => [...document.querySelectorAll('.plot')].flatMap(plot => plot.data.map(trace =>
    [trace.meta, trace.visible !== 'legendonly' && plot.offsetParent !== null]))"""


def test_page_draws_without_a_word_or_a_request(opened: Any, text: str) -> None:
    assert opened.view.locator(".plot .main-svg").first.is_visible()
    drawn = opened.view.evaluate("document.querySelectorAll('.plot.js-plotly-plot').length")
    # Accuracy 2, differences 1, bytes 2, training 3, classes 2, oracle 1.
    assert drawn == len(plots(text)) == 11
    assert opened.asked == [opened.uri]
    assert opened.said == []


def test_pointing_at_a_plot_shows_values(opened: Any) -> None:
    said = hovered(opened.view, "accuracy-0", 0.8, 0.5)
    assert re.search(r"MRL : 60\.00 % \[.*\] at 8", said)
    assert re.search(r"FF : 60\.00 % \[.*\] at 8", said)


def test_hostile_names_are_shown_and_do_not_run(opened: Any) -> None:
    order = (2, 1, 0, 4, 3)
    said = [hovered(opened.view, "classes-0", 0.2, (row + 0.5) / 5) for row in range(5)]
    assert [CLASSES[c] in words for c, words in zip(order, said, strict=True)] == [True] * 5
    view = opened.view
    assert view.evaluate("document.documentElement.dataset.ran") is None
    assert view.locator("main a, main img, main svg a, body > img").count() == 0
    assert NAME in view.locator("main li").all_text_contents()[1]
    # Even markup that got in would not run: the page allows its own two scripts and no others.
    view.evaluate("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"document.title = 1\">x</b>')")
    view.evaluate("document.body.lastElementChild.click()")
    assert view.title().startswith("Title")
    view.evaluate("document.body.lastElementChild.remove()")
    assert "Content Security Policy" in opened.said.pop()


def test_an_arm_switched_off_leaves_every_plot_and_comes_back(opened: Any) -> None:
    view, key = opened.view, made().series[0].key
    assert all(shown for _, shown in view.evaluate(SHOWN))
    for switch in (
        lambda: view.locator(f'.controls input[value="{key}"]').click(),
        lambda: view.locator("#accuracy-0 .legendtoggle").first.click(),
    ):
        switch()
        until(view, "document.querySelector('#oracle-0').data[0].visible === 'legendonly'")
        assert not view.locator(f'.controls input[value="{key}"]').is_checked()
        assert all(shown == (key not in meta) for meta, shown in view.evaluate(SHOWN))
        assert (
            view.evaluate("[...document.querySelectorAll('figure[hidden] h4')].map(h => h.textContent)") == ["MRL"] * 2
        )
        switch()
        until(view, "document.querySelector('#oracle-0').data[0].visible === true")
        assert all(shown for _, shown in view.evaluate(SHOWN))


FITS = """document.documentElement.scrollWidth <= 390 && [...document.querySelectorAll('.plot')]
    .every(plot => plot.offsetParent === null || plot._fullLayout.width <= 390)"""


def test_nothing_is_wider_than_a_phone(opened: Any) -> None:
    view, box = opened.view, opened.view.locator(".controls input").first
    box.click()
    view.set_viewport_size({"width": 390, "height": 844})
    until(view, FITS)  # each plot is drawn again in its own time
    box.click()  # what was hidden while the window shrank fits too
    until(view, f"document.querySelector('#training-0').offsetParent !== null && {FITS}")
    view.set_viewport_size({"width": 1200, "height": 900})


def test_print_leaves_the_controls_out(opened: Any) -> None:
    assert opened.view.locator(".controls").is_visible()
    opened.view.emulate_media(media="print")
    assert not opened.view.locator(".controls").is_visible()
    assert opened.view.locator("#accuracy-0").is_visible()
    opened.view.emulate_media(media="screen")
