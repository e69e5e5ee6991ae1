"""Tables against numbers worked out from evaluation.csv by hand, and text that tries to break out of them."""

import csv
import io
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import DIMS, make_run

from mrl_jax import runs
from mrl_jax.arms import ARMS
from mrl_jax.config import LossConfig
from mrl_jax.report import compare, formats, statistics
from mrl_jax.report.compare import Comparison
from mrl_jax.report.contrasts import over_the_table
from mrl_jax.report.gather import gather
from mrl_jax.report.sections import sections
from mrl_jax.report.statistics import Crossover, Difference
from mrl_jax.report.study import Series, Study
from mrl_jax.report.tables import Section, Table

HOSTILE = ("a|b_c*d", "<script>x</script>", "100% $x^2$ & #1 ~\\end{tabular}", "[link](http://x) `code`\nnew")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Study, dict]:
    folder = tmp_path_factory.mktemp("made")
    make_run(folder, arms=("all",), seeds=3)
    study = gather([folder])
    rows: dict = {}
    for row in runs.read_rows(folder / "made" / "first" / "evaluation.csv"):
        if row.split == "test":
            rows.setdefault((row.arm, row.metric, row.dim), []).append(row.value)
    return study, rows


@pytest.fixture(scope="module")
def parts(made) -> tuple[list[Section], dict]:
    comparisons = compare.compare(made[0])
    return sections(made[0], comparisons), comparisons


def table(parts, name: str) -> dict[str, dict[str, str]]:
    """A table of the report as first cell → column → cell."""
    (found,) = [t for part in parts[0] for t in part.tables if t.name == name]
    return {row[0]: dict(zip(found.header, row, strict=True)) for row in found.rows}


def test_accuracies_are_means_and_deviations_over_the_seeds_of_the_csv(made, parts):
    rows = made[1]
    for metric in ("linear_top1", "knn_top1"):
        shown = table(parts, f"accuracy-{metric}")
        assert list(shown) == [str(dim) for dim in DIMS]
        for arm, label in (("mrl", "MRL"), ("ff", "FF"), ("pca_whitened", "PCA whitened")):
            for dim in DIMS:
                v = 100 * np.array(rows[arm, metric, dim])
                assert shown[str(dim)][label] == f"{v.mean():.2f} ± {v.std(ddof=1):.2f}"


def test_differences_are_those_of_the_csv_with_their_interval_and_p(made, parts):
    rows = made[1]
    shown = table(parts, "differences-linear_top1-mrl")
    with io.StringIO(formats.tidy(parts[1])) as file:
        tidy = {(r["metric"], r["a"], r["b"], int(r["dim"])): r for r in csv.DictReader(file)}
    for dim in DIMS:
        mean = np.mean(rows["mrl", "linear_top1", dim]) - np.mean(rows["ff", "linear_top1", dim])
        line = tidy["linear_top1", "MRL", "FF", dim]
        assert float(line["mean"]) == pytest.approx(mean, abs=2e-6)
        assert float(line["low"]) <= float(line["mean"]) <= float(line["high"])
        assert float(line["p"]) <= float(line["p_holm"]) <= 1
        numbers = [100 * float(line[key]) for key in ("mean", "low", "high")]
        found = re.fullmatch(r"(.*) \[(.*), (.*)\]", shown[str(dim)]["− FF"])
        assert found
        assert [float(x.replace("−", "-")) for x in found.groups()] == pytest.approx(numbers, abs=0.006)
    assert {(r["a"], r["b"]) for r in tidy.values()} >= {
        (a, b) for a in ("MRL", "MRL-E", "MRL sampled") for b in ("FF", "truncated", "PCA")
    }


def test_against_compressed_models_both_sides_are_refitted(made, parts):
    study, rows = made
    for label, arm, own in (("MRL − PCA", "pca", "refit_top1"), ("MRL − FF", "ff", "linear_top1")):
        for found in parts[1]["linear_top1"][label].differences:
            wanted = np.mean(rows["mrl", own, found.dim]) - np.mean(rows[arm, "linear_top1", found.dim])
            assert found.mean == pytest.approx(wanted, abs=2e-6)
    assert any("refit_top1" in note for note in study.notes)
    captions = [t.caption for part in parts[0] for t in part.tables if t.name == "differences-linear_top1-mrl"]
    assert "Both sides refitted against truncated and PCA." in captions[0]


def test_what_is_left_over_a_whole_table_by_hand():
    """Two columns of two dims: over all four cells Holm asks p < 0.05 / 4, then / 3, of the smallest ones."""

    def column(*p: float) -> Comparison:
        pairs = zip((4, 8), p, statistics.holm(p), strict=True)
        return Comparison(
            None, None, [Difference(m, 0.1, 0.0, 0.2, p, corrected) for m, p, corrected in pairs], None, None
        )

    assert over_the_table({"FF": column(0.001, 0.02), "PCA": column(0.2, 0.024)}) == (
        " Corrected over all 4 cells of the table instead, 1 of the 3 with p < 0.05 keep it, without "
        "− FF at 8; − PCA at 8."
    )
    assert over_the_table({"FF": column(0.001, 0.002), "PCA": column(0.2, 0.3)}).endswith(
        "2 of the 2 with p < 0.05 keep it."
    )
    assert (
        over_the_table({"FF": column(0.001, 0.002)}) == over_the_table({"FF": column(1, 1), "PCA": column(1, 1)}) == ""
    )
    assert over_the_table({"FF": column(math.nan, math.nan), "PCA": column(0.001, 0.001)}) == ""


def test_the_tax_is_ff_minus_the_nested_arm_at_full_width(made, parts):
    rows = made[1]
    (found,) = [t for part in parts[0] for t in part.tables if t.name == "tax"]
    assert len(found.rows) == 6
    for metric, arm, dim, tax in found.rows:
        name = {"classifier": "linear_top1", "nearest neighbour": "knn_top1"}[metric]
        nested = {"MRL": "mrl", "MRL-E": "mrl_e", "MRL sampled": "mrl_sampled"}[arm]
        wanted = 100 * (np.mean(rows["ff", name, 16]) - np.mean(rows[nested, name, 16]))
        assert dim == "16"
        assert float(tax.split()[0].replace("−", "-")) == pytest.approx(wanted, abs=0.006)


def test_a_family_of_fixed_size_models_costs_a_training_per_dim(made, parts):
    shown = table(parts, "compute")
    speeds = {dim: [1600 - 4 * dim + 0.1 * seed for seed in range(3)] for dim in DIMS}  # as made; a median of 3 lines
    seconds = {dim: 1 / max(speed) for dim, speed in speeds.items()}
    assert shown["FF, one model per dim"]["trainings"] == "3"
    assert shown["FF, one model per dim"]["cost"] == f"{sum(seconds.values()) / seconds[16]:.2f}"
    mrl = 1 / (800 + 0.1 * 2)
    assert (shown["MRL"]["trainings"], shown["MRL"]["cost"]) == ("1", f"{mrl / seconds[16]:.2f}")
    assert (shown["one FF(D), PCA"]["trainings"], shown["one FF(D), PCA"]["cost"]) == ("1", "1.00")
    assert shown["MRL"]["8"] == f"{100 * np.mean(made[1]['mrl', 'refit_top1', 8]):.2f}"


def test_the_cost_of_members_trained_together_is_not_known(made):
    study = made[0]
    together = [line | {"examples_per_second": 500.0} for line in study.log if line["split"] == "train"]
    assert compare.costs(study, None)
    study = Study(**{**vars(study), "log": together})
    assert compare.costs(study, None) == {}


def test_own_heads_are_set_against_refitted_classifiers(made, parts):
    rows, shown = made[1], table(parts, "heads")
    for column, own, refit in (
        ("PCA", ("pca", "own_head_top1"), ("pca", "linear_top1")),
        ("MRL", ("mrl", "linear_top1"), ("mrl", "refit_top1")),
    ):
        a, b = (100 * np.mean(rows[(*which, 8)]) for which in (own, refit))
        found = re.fullmatch(r"(.*) → (.*) \((.*)\)", shown["8"][column])
        assert found
        assert [float(x.replace("−", "-")) for x in found.groups()] == pytest.approx([a, b, b - a], abs=0.006)


def test_every_value_of_evaluation_csv_is_in_the_tables(tmp_path):
    """Also of dims between the nesting dims, and of a metric that no table of ours knows."""
    directory = make_run(tmp_path, arms=("all",), seeds=2)
    with (directory / "evaluation.csv").open("a") as file:
        file.writelines(
            f"made,mrl,{seed},6,test,{m},0.{seed}25\n" for m in ("linear_top1", "own|news") for seed in (0, 1)
        )
    study = gather([directory])
    shown = {t.name: t for part in sections(study, {}) for t in part.tables if part.heading == "Every metric"}
    cells = {
        (name.removeprefix("metrics-"), row[0], int(dim)): cell
        for name, table in shown.items()
        for row in table.rows
        for dim, cell in zip(table.header[1:], row[1:], strict=True)
        if cell != "–"
    }
    values: dict = {}
    for row in runs.read_rows(directory / "evaluation.csv"):
        if row.split == "test":
            values.setdefault((row.arm, row.metric, row.dim), []).append(row.value)
    assert cells == {key: f"{np.mean(of):.4f}" for key, of in values.items()}
    assert cells["mrl", "own|news", 6] == "0.0750"


def test_equal_bytes_hold_four_times_the_int8_and_32_times_the_bits(tmp_path):
    make_run(tmp_path, arms=("mrl",), seeds=1, width=128, nesting_dims=(4, 16, 128))
    study = gather([tmp_path])
    (found,) = [t for part in sections(study, {}) for t in part.tables if t.name == "bytes"]
    values = {name: study.values(Series("mrl"), f"{p.prefix}knn_top1") for name, p in compare.PRECISIONS.items()}
    cells = {
        kind: f"{100 * values[kind][dim].mean():.2f} ({dim})"
        for kind, dim in (("float32", 4), ("int8", 16), ("1 bit", 128))
    }
    assert found.rows == [["MRL", "16", *cells.values()]]


def worked() -> Study:
    """Two seeds, four test examples of two classes, dims 2, 4, 8, outcomes chosen by hand."""
    right = {
        2: [[1, 0, 0, 0], [1, 0, 0, 0]],
        4: [[0, 1, 0, 0], [1, 1, 0, 0]],
        8: [[1, 1, 1, 0], [1, 0, 1, 0]],
    }
    series = Series("mrl")
    study = Study("x", "x", (series,), (2, 4, 8), 8, ("a", "b"), np.array([0, 0, 1, 1]), 2, (), [], [], {}, {})
    study._cache[series, "test/linear_top1/"] = {dim: np.array(v, np.float32) for dim, v in right.items()}
    return study


def test_the_oracle_of_a_hand_worked_case():
    found = compare.oracle(worked(), Series("mrl"))
    assert found is not None
    # Seed 0: right first at 2, 4, 8, never; seed 1: 2, 4, 8, never.
    assert found.shares == {2: 0.25, 4: 0.25, 8: 0.25}
    assert (found.never, found.accuracy, found.full) == (0.25, 0.75, 5 / 8)
    assert found.mean_dims == (2 + 4 + 8 + 2) / 4


def test_the_dims_that_classes_need_in_a_hand_worked_case():
    b, a = compare.class_needs(worked(), Series("mrl"))
    assert (b.name, b.examples, b.accuracy, b.enough, b.gain) == ("b", 2, {2: 0, 4: 0, 8: 0.5}, 8, 0.5)
    # 2 dims fall short of 0.75, and 4 dims reach it.
    assert (a.name, a.accuracy, a.enough, a.gain) == ("a", {2: 0.5, 4: 0.75, 8: 0.75}, 4, 0.25)


@pytest.mark.parametrize(
    ("crossover", "sentence"),
    [
        (Crossover("wins_below", 37.2, 20.4, 59.6), "MRL wins below 37 dims [20, 60], not above."),
        (Crossover("wins_above", 37.2, 20.4, 59.6), "MRL wins above 37 dims [20, 60], not below."),
        (Crossover("wins_everywhere", None, None, None), "MRL wins at every dim."),
        (Crossover("wins_nowhere", None, None, None), "FF wins at every dim."),
        (
            Crossover("cannot_settle", None, None, None),
            "this data cannot settle where either of them starts to win; MRL is ahead at 8, 32, FF is ahead at 2 "
            "(p < 0.05 after Holm).",
        ),
    ],
)
def test_the_crossover_is_a_sentence(crossover, sentence):
    made = [
        Difference(dim, mean, mean - 0.01, mean + 0.01, p / 2, p)
        for dim, mean, p in ((2, -0.02, 0.01), (4, -0.01, 0.06), (8, 0.02, 0.04), (16, 0.001, 0.9), (32, 0.02, 0.001))
    ]
    assert compare.verdict(Comparison(Series("mrl"), Series("ff"), made, crossover, None)) == sentence
    if crossover.verdict == "cannot_settle":
        none = compare.verdict(Comparison(Series("mrl"), Series("ff"), made[1:2], crossover, None))
        assert none == "this data cannot settle where either of them starts to win; neither is ahead at any dim."


def test_one_seed_shows_differences_without_intervals(tmp_path):
    make_run(tmp_path, seeds=1)
    study = gather([tmp_path])
    comparisons = compare.compare(study)
    (found,) = [t for part in sections(study, comparisons) for t in part.tables if t.name == "differences-knn_top1-mrl"]
    assert found.header == ["dim", "− FF"]
    assert all(re.fullmatch(r"[+−]\d+\.\d\d", row[1]) for row in found.rows)
    line = formats.tidy(comparisons).splitlines()[1]
    assert re.fullmatch(r"linear_top1,MRL,FF,4,-?0\.\d+,,,,", line)
    assert "nan" not in formats.markdown(study, sections(study, comparisons))


def test_variants_are_compared_with_each_other(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, run="heavy", loss=LossConfig(weights=(1.0, 1.0, 9.0)), score=lambda arm, dim: 0.9)
    study = gather([tmp_path])
    comparisons = compare.compare(study)
    label = "MRL · heavy − MRL · first"
    between = [d.mean for d in comparisons["linear_top1"][label].differences]
    wanted = [
        study.values(Series("mrl", "heavy"), "linear_top1")[dim].mean()
        - study.values(Series("mrl", "first"), "linear_top1")[dim].mean()
        for dim in DIMS
    ]
    assert between == pytest.approx(wanted, abs=2e-6)
    (part,) = [part for part in sections(study, comparisons) if part.heading == "Between runs"]
    assert label in part.tables[0].header
    assert comparisons["linear_top1"].keys() >= {"MRL · first − FF · first", "MRL · heavy − FF · heavy"}


def cells_of_markdown(line: str) -> int:
    """The cells of a row of a table in GitHub's Markdown: a backslash hides the bar after it."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_stays_in_its_cell(texts):
    made = Table("t", "caption", texts, [texts, texts])
    grid = list(formats._markdown_grid(made))
    assert len(grid) == 4
    for line in grid:
        assert "\n" not in line
        assert cells_of_markdown(line) == len(texts)
        assert not re.search(r"[<>]|(?<!\\)[`*_$~#](?!\S*;)", line.replace("&lt;", "").replace("&gt;", ""))
    for line in formats.text(made).splitlines():
        assert all(c.isprintable() for c in line)


def plain_latex(text: str) -> str:
    """What LaTeX typesets for escaped text: the inverse of the escape, failing on any live command."""
    said = {v: k for k, v in formats.LATEX.items()}
    pattern = "|".join(sorted(map(re.escape, said), key=len, reverse=True))
    rest = re.sub(pattern, "", text)
    assert not re.search(r"[\\{}$&#%_^~]", rest)
    return re.sub(pattern, lambda found: said[found[0]], text)


@given(st.text())
def test_any_text_is_literal_in_latex(text):
    typeset = formats._latex(text)
    assert plain_latex(typeset).replace("\0", "") == formats.one_line(text)
    plain = "".join(c for c in text if c in "-`',")
    assert not re.search(r"[-`',]{2}", formats._latex(plain))


def test_hostile_names_reach_no_format_unescaped(tmp_path):
    make_run(tmp_path, classes=HOSTILE, arms=("mrl", "ff"))
    make_run(tmp_path, classes=HOSTILE, arms=("mrl",), run="x|y_$z$ <b>%", loss=LossConfig(weights=(1.0, 1.0, 9.0)))
    study = gather([tmp_path])
    comparisons = compare.compare(study)
    parts = sections(study, comparisons)
    markdown, latex = formats.markdown(study, parts), formats.latex(study, parts)
    assert "<" not in markdown
    assert "\\[link\\](http://x) \\`code\\` new" in markdown
    assert "a\\|b\\_c\\*d" in markdown
    assert "![oracle](plots/oracle.png)" in markdown
    widths = {cells_of_markdown(line) for line in markdown.splitlines() if "link" in line}
    assert widths == {1 + 1 + len(DIMS) + 1}  # class, examples, dims, enough
    assert r"100\% \$x\textasciicircum{}2\$ \& \#1 \textasciitilde{}\textbackslash{}end\{tabular\}" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == latex.count(r"\label{tab:")
    for body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", latex, re.DOTALL):
        for row in re.findall(r"^    (.*) \\\\$", body[1], re.MULTILINE):
            assert len(re.findall(r"(?<!\\)&", row)) == len(body[0]) - 1
    labels = re.findall(r"\\label\{tab:(.*)\}", latex)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", label) for label in labels)
    rows = list(csv.DictReader(io.StringIO(formats.tidy(comparisons))))
    assert any(row["a"] == "MRL · x|y_$z$ <b>%" for row in rows)


def test_a_difference_that_is_not_known_is_a_dash_or_an_empty_field():
    unknown = Difference(4, 0.01, math.nan, math.nan, math.nan, math.nan)
    comparison = Comparison(Series("mrl"), Series("ff"), [unknown], Crossover("cannot_settle", None, None, None), None)
    assert formats.tidy({"knn_top1": {"MRL − FF": comparison}}).splitlines()[1] == "knn_top1,MRL,FF,4,0.01,,,,"


def test_an_arm_with_a_setting_is_compared_with_what_it_is_without():
    names = ("mrl", "mrl_e", "mrl_e_detached", "mrl_distilled", "ff")
    series = [
        SimpleNamespace(arm=name, variant=None, origin=ARMS[name].origin, baseline=ARMS[name].baseline)
        for name in names
    ]
    chosen = [(a.arm, b.arm) for a, b in compare.pairs(SimpleNamespace(variants=(None,), series=series))]
    assert chosen == [
        *((name, "ff") for name in names[:-1]),
        *((name, "mrl") for name in names[1:-1]),
        ("mrl_e_detached", "mrl_e"),
    ]
