"""Names of classes, experiments and runs that try to be markup, in everything that a report writes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import chromium_page, until
from made_runs import make_run

from mrl_jax import report
from mrl_jax.config import OptimizerConfig
from mrl_jax.report import figures, formats, page, plots
from mrl_jax.report.gather import gather
from mrl_jax.report.sections import sections

pytestmark = pytest.mark.slow

PWNED = "window.pwned=(window.pwned||0)+1"
CLASSES = (
    f"</script><script>{PWNED}</script>",
    f"<img src=x onerror={PWNED}>",
    r"$\input{/etc/passwd}$ \write18{id} %",
    f"| a | b |\n| --- | --- |\n[x](javascript:{PWNED}) ![x](x) <!--",
    f"javascript:{PWNED}//&quot;&lt; ]]> \\",
    f"--></style></title><svg onload={PWNED}> %{{x}} ${{x}} `x` $x^2$ $\\undefined{{$",
    "\ud7ff\u202e\x1b[31m\0\r",
)
NAME = f"<img src=x onerror={PWNED}> $x^{{$ | % & _ #"
RUNS = (f"<svg onload={PWNED}>", r"$\input{x}$ % & _ | ~ ^ # $")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs of hostile names, by the command itself."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, rate in zip(RUNS, (0.1, 0.2), strict=True):
        options: dict[str, Any] = {"optimizer": OptimizerConfig(learning_rate=rate), "classes": CLASSES, "seeds": 1}
        made = make_run(folder / "runs", name=NAME, arms=("mrl", "ff"), nesting_dims=(4, 16), **options)
        made.rename(made.with_name(name))
    assert report.main([str(folder / "runs"), "--out", str(folder / "report")]) == 0
    return folder / "report"


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_has_only_its_own_tags(written: Path) -> None:
    found = Tags((written / "report.html").read_text())
    assert found.tags.count("script") == 3
    assert not {"img", "svg", "a", "iframe", "object", "link", "base"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on")]


def test_nothing_runs_in_a_browser_and_names_are_shown(written: Path) -> None:
    with chromium_page() as page:
        view = page.view
        view.goto((written / "report.html").as_uri(), timeout=120_000)
        until(view, "[...document.querySelectorAll('.plot')].every(plot => plot._fullLayout)")
        for box in view.locator(".plot").all():
            box.hover(force=True)
        assert view.evaluate("window.pwned") is None
        assert page.said == []
        assert page.asked == [(written / "report.html").as_uri()]
        assert view.locator("h1").text_content().startswith(NAME)
        labels = [label.text_content() for label in view.locator(".controls label").all()]
        assert [any(name[:12] in label for label in labels) for name in RUNS] == [True, True]  # long ones are abridged
        foreign = "main img, main a, main iframe, main svg [onload], body > svg:not(#js-plotly-tester)"
        assert view.locator(foreign).count() == 0


def test_markdown_shows_names_as_they_are(written: Path) -> None:
    text = (written / "report.md").read_text()
    assert "<" not in text
    assert not re.search(r"(?<!\\)\]\((?!plots/)", text)  # no link but to the plots
    for line in re.findall(r"^\|.*$", text, re.MULTILINE):
        assert not re.search(r"(?<!\\)\$|(?<!\\)`", line)
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert all(len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1 for table in tables)
    assert "javascript" in text  # and still there


def test_latex_has_no_command_of_a_name(written: Path) -> None:
    text = (written / "tables.tex").read_text()
    own = {"begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule", "usepackage"}
    signs = {"pm", "rightarrow", "cdot", "times", "dots"}
    literal = {
        "textbackslash",
        "textasciicircum",
        "textasciitilde",
        "textless",
        "textgreater",
        "textbar",
        "textquotedbl",
    }
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= own | signs | literal
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    body = re.sub(r"\\[\\{}$&#%_]|^% .*$", "", text, flags=re.MULTILINE)
    assert not re.search(r"[%#_^~]", re.sub(r"\\label\{[^}]*\}", "", body))
    assert body.count("$") % 2 == 0
    assert body.count("{") == body.count("}")


def test_a_spreadsheet_reads_the_names_in_one_line(written: Path) -> None:
    lines = (written / "differences.csv").read_text().splitlines()
    assert all(line.isprintable() for line in lines)


def test_figures_show_names_and_do_not_set_them(written: Path, tmp_path: Path) -> None:
    """Each would be an error of mathtext, or an image of mathematics."""
    drawn = sorted(path.name for path in (written / "plots").glob("*.svg"))
    assert "accuracy.svg" in drawn
    assert any(name.startswith("classes-mrl") for name in drawn)
    assert any(name.startswith("training") for name in drawn)
    texts = "".join((written / "plots" / name).read_text() for name in drawn)
    assert "$\\input{x}$" in texts
    assert not {"script", "img"} & set(Tags(texts).tags)
    folder = written.parent / "runs"
    gathered = gather([folder])
    assert all(path.stat().st_size for path in plots.save([figures.training(gathered)], tmp_path))


def test_long_and_broken_names_of_folders_can_be_reported(tmp_path: Path) -> None:
    """Names that no file may be called after, and one whose bytes are not UTF-8."""
    run = make_run(tmp_path, examples=8, arms=("mrl",), seeds=1, run="first")
    other = make_run(
        tmp_path, examples=8, arms=("mrl",), seeds=1, run="second", optimizer=OptimizerConfig(learning_rate=9)
    )
    run.rename(run.with_name("é" * 100 + "a"))
    other.rename(other.with_name("é" * 100 + "\udcff"))
    gathered = gather([tmp_path])
    keys = [series.key for series in gathered.series]
    assert len(set(keys)) == 2
    assert max(map(len, keys)) < 200
    parts = sections(gathered, {})
    for text in (page.html(gathered, parts), formats.markdown(gathered, parts), formats.latex(gathered, parts)):
        assert text.encode()


def test_a_dataset_with_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, examples=8, arms=("mrl",), seeds=1)
    told = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(told | {"classes": ["a", "\ud800", "b", "c"]}))
    assert report.main([str(run)]) == 2
