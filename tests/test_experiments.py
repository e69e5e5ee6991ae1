"""The numbers in the tables of experiments/*/README.md are those of the files that the pages come from."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats

from mrl_jax import data
from mrl_jax.arms import ARMS
from mrl_jax.data import repeats
from mrl_jax.report import statistics
from tests.helpers import script

ROOT = Path(__file__).parent.parent
PAGES = {path.parent.name: path for path in sorted((ROOT / "experiments").glob("*/README.md"))}
DIFFERENCE = re.compile(r"(\*\*)?([+−]\d+\.\d+) (\[[+−]\d+\.\d+, [+−]\d+\.\d+\])")
LEVEL = re.compile(r"\d+\.\d+")
REFERENCE = re.compile(r"results/reference/(\w+)")
# Page and number of a table whose intervals are over the queries alone, from outcomes that are not committed.
OTHER_INTERVALS = {("wordnet", 1)}
LABELS = {entry.label: name for name, entry in ARMS.items()}


class Cell(NamedTuple):
    """A cell of a table with a row per dim: the mean of an arm, or a difference between two in points."""

    a: str
    b: str  # empty where the column does not name two arms
    dim: int
    mean: str
    interval: str = ""  # empty for a mean
    bold: bool = False


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The header and the rows of each Markdown table."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        yield header, rows


def cells(text: str) -> Iterator[tuple[int, Cell]]:
    """The cells of tables of differences between arms by dim, with the number of their table."""
    chosen = [(header, rows) for header, rows in tables(text) if header[0] == "dim" and DIFFERENCE.search(str(rows))]
    for number, (header, rows) in enumerate(chosen):
        for row in rows:
            for name, content in zip(header[1:], row[1:], strict=True):
                a, _, b = name.partition(" − ")
                if found := DIFFERENCE.search(content):
                    yield number, Cell(a, b, int(row[0]), found[2], found[3], bool(found[1]))
                elif LEVEL.fullmatch(content):
                    yield number, Cell(a, "", int(row[0]), content)


def as_percent(value: str | float, like: str) -> str:
    """A share as a page writes it in percent, with the digits of `like`, and a sign where that has one."""
    sign = "+" if like[0] in "+−" else ""
    return f"{100 * float(value):{sign}.{len(like.partition('.')[2])}f}".replace("-", "−")


def read(name: str, file: str) -> list[dict[str, str]]:
    path = ROOT / "results" / "reference" / name / file
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def occurs(cell: Cell, runs: Iterable[str], whatever_interval: bool) -> bool:
    """Whether some metric of one of the reference runs has what the cell says."""
    if not cell.interval:
        values: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            for row in read(run, "evaluation.csv"):
                if (row["arm"], int(row["dim"]), row["split"]) == (LABELS[cell.a], cell.dim, "test"):
                    values.setdefault((run, row["metric"]), []).append(float(row["value"]))
        return cell.mean in {as_percent(np.mean(seeds), cell.mean) for seeds in values.values()}
    for row in (row for run in runs for row in read(run, "differences.csv")):
        if int(row["dim"]) == cell.dim and (not cell.b or (row["a"], row["b"]) == (cell.a, cell.b)):
            mean, low, high = (as_percent(row[key], cell.mean) for key in ("mean", "low", "high"))
            same = (f"[{low}, {high}]", float(row["p_holm"]) < 0.05) == (cell.interval, cell.bold)
            if mean == cell.mean and (same or whatever_interval):
                return True
    return False


def wrong(page: str, text: str) -> list[Cell]:
    """The cells that no metric of the reference runs which the page names has."""
    runs = dict.fromkeys(REFERENCE.findall(text))
    return [cell for number, cell in cells(text) if not occurs(cell, runs, (page, number) in OTHER_INTERVALS)]


def kept_over_the_table(page: str, number: int = 0) -> str:
    """Which bold cells of a table of differences keep p < 0.05 where p is corrected over all of them, as a sentence."""
    text = PAGES[page].read_text(encoding="utf-8")
    rows = [row for run in dict.fromkeys(REFERENCE.findall(text)) for row in read(run, "differences.csv")]
    shown = [cell for at, cell in cells(text) if at == number and cell.interval]
    p = []
    for cell in shown:
        of_pair = [row for row in rows if (row["a"], row["b"], int(row["dim"])) == (cell.a, cell.b, cell.dim)]
        content = (cell.mean, *re.findall(r"[+−][\d.]+", cell.interval))
        p += [
            next(
                float(row["p"])
                for row in of_pair
                if tuple(as_percent(row[key], cell.mean) for key in ("mean", "low", "high")) == content
            )
        ]
    bold = [(cell, corrected) for cell, corrected in zip(shown, statistics.holm(p), strict=True) if cell.bold]
    lost: dict[str, list[str]] = {}
    for cell, corrected in bold:
        if corrected >= statistics.LEVEL:
            lost.setdefault(f"{cell.a} − {cell.b}", []).append(str(cell.dim))
    kept = len(bold) - sum(map(len, lost.values()))
    without = "; ".join(f"{name} at {', '.join(dims)}" for name, dims in sorted(lost.items()))
    left = f"{kept} of the {len(bold)} bold ones keep it, without {without}."
    return f"Corrected over all {len(shown)} cells instead, {left}"


@pytest.mark.parametrize("name", ["fashion_mnist", "newsgroups", "reuters_r52", "stsb", "tuned", "wordnet"])
def test_what_holds_over_a_whole_table_is_said(name: str) -> None:
    assert kept_over_the_table(name)[1:] in " ".join(PAGES[name].read_text(encoding="utf-8").split())


STUDIES = [name for name, page in PAGES.items() if list(cells(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("name", STUDIES)
def test_differences_are_those_of_the_reference_runs(name: str) -> None:
    assert not wrong(name, PAGES[name].read_text(encoding="utf-8"))


def test_a_digit_that_drifts_is_found() -> None:
    assert {"newsgroups", "reuters_r52", "fashion_mnist", "stsb", "wordnet"} <= {*STUDIES}
    text = PAGES["newsgroups"].read_text(encoding="utf-8")
    assert sum(1 for _ in cells(text)) == 24
    for digits, other, dim in (
        ("**+7.64 [", "**+7.65 [", 8),
        ("+1.29]", "+1.30]", 256),
        ("+0.66 [+0.02, +1.29]", "**+0.66 [+0.02, +1.29]**", 256),
    ):
        assert digits in text
        assert dim in {cell.dim for cell in wrong("newsgroups", text.replace(digits, other))}
    text = PAGES["wordnet"].read_text(encoding="utf-8")
    assert [cell.dim for cell in wrong("wordnet", text.replace("| 16 | 5.5 |", "| 16 | 5.6 |"))] == [16]
    assert [cell.dim for cell in wrong("wordnet", text.replace("+12.73 [", "+12.74 ["))] == [32]


@pytest.mark.parametrize(
    ("file", "against", "dims"),
    [
        ("results", "tfidf", ("256", "64", "8")),
        ("static", "tfidf", ("256", "64", "8")),
        ("minilm", "tfidf", ("256", "64", "8")),
        ("pairs", "bm25", ("256", "64", "16")),
        ("features", "logistic", ("256", "64", "8")),
    ],
)
def test_own_data_are_those_of_the_benchmark(file: str, against: str, dims: tuple[str, ...]) -> None:
    page = PAGES["own_data"].read_text(encoding="utf-8")
    lines = [row for _, rows in tables(page) for row in rows]
    for record in json.loads((PAGES["own_data"].parent / f"{file}.json").read_text(encoding="utf-8")):
        numbers = [f"{record[key]:.1f}" for key in (against, *dims)]
        differences = [
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*record[f"{dim} − {against}"]).replace("-", "−") for dim in dims[:2]
        ]
        time = [f"{record['cpu_seconds']:.0f} s"] if "cpu_seconds" in record else []
        expected = [*numbers, *differences, *time]
        own = [row for row in lines if row[0].startswith(record["data"]) and row[-len(expected) :] == expected]
        assert len(own) == 1, (record["data"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["newsgroups", "reuters_r52"])
def test_repeats_are_those_that_a_run_counts(name: str) -> None:
    dataset = data.load(data.DataConfig(name))
    said = repeats.sentence(repeats.count(dataset), dataset)
    assert said is not None
    assert said in " ".join(PAGES[name].read_text(encoding="utf-8").split())


@pytest.mark.parametrize(("place", "folder", "width"), [(0, "collections", "384"), (1, "collections_mpnet", "768")])
def test_collections_are_those_of_the_reference_runs(place: int, folder: str, width: str) -> None:
    kinds = (
        ("untuned", "ndcg@10"),
        ("untuned", "bit_ndcg@10"),
        ("untuned_pca", "ndcg@10"),
        ("random_projection", "ndcg@10"),
    )
    found = [
        table for header, table in tables(PAGES["collections"].read_text("utf-8")) if "Cranfield: prefix" in header
    ]
    rows = found[place]
    for column, name in enumerate(("cranfield", "cisi", "cacm")):
        value_of = {
            (row["arm"], row["metric"], row["dim"]): row["value"] for row in read(f"{folder}/{name}", "evaluation.csv")
        }
        for dim, *numbers in rows[:-1]:
            for number, kind in zip(numbers[4 * column : 4 * column + 4], kinds, strict=True):
                assert number == as_percent(value_of[(*kind, dim)], number), (name, dim, kind)
        assert rows[-1][1 + 4 * column] == as_percent(value_of["bm25", "ndcg@10", width], "0.0"), name


def test_collections_after_fine_tuning_are_those_of_the_runs() -> None:
    columns = []
    for name in ("cranfield", "cisi", "cacm"):
        for folder in ("collections", "collections_tuned"):
            rows = read(f"{folder}/{name}", "evaluation.csv")
            asked = [row for row in rows if (row["arm"], row["metric"]) == ("untuned", "ndcg@10")]
            columns.append({row["dim"]: f"{100 * float(row['value']):.1f}" for row in asked})
    found = [
        rows for header, rows in tables(PAGES["collections"].read_text(encoding="utf-8")) if "fine-tuned" in header
    ]
    assert found == [
        [[dim, *(of[dim] for of in columns)] for dim in ("384", "256", "192", "128", "64", "32", "16", "8")]
    ]


def test_the_cost_of_damage_is_that_of_its_file() -> None:
    page = PAGES["few_shot"].read_text(encoding="utf-8")
    lines = [row for _, rows in tables(page) for row in rows]
    cells_of_file = 0
    for row in csv.DictReader((PAGES["few_shot"].parent / "damage.csv").open(encoding="utf-8")):
        if row["verdict"]:
            more, low, high = (f"{float(row[key]):+.2f}".replace("-", "−") for key in ("more", "low", "high"))
            expected = [f"{float(row['cost']):.2f}", f"{more} [{low}, {high}]", row["verdict"]]
            assert any(line[0] == row["dim"] and expected in (line[1:4], line[4:7]) for line in lines), row
            cells_of_file += 1
    assert cells_of_file % 10 == 0 < cells_of_file


def test_the_bot_is_the_one_that_was_measured() -> None:
    page, shown = PAGES["faq_bot"].read_text(encoding="utf-8"), 0
    _, lines = next(tables(page))
    for row in read("faq_bot", "measured.csv"):
        keys = ("first_is_right", "answered", "wrong", "got_their_answer", "rightly_refused", "broken")
        if row["score"] != "inf":
            assert [row["dim"], *(as_percent(row[key], "0.0") for key in keys)] in lines
            shown += 1
        else:
            assert float(row["wrong_allowed"]) < 0.3
    assert shown == len(lines)


@pytest.mark.parametrize("encoder", ["bag", "minilm"])
def test_the_atlas_is_made_of_its_runs(encoder: str) -> None:
    analyse = script("atlas")
    page = PAGES["atlas"].read_text(encoding="utf-8")
    made = analyse.tables(ROOT / "results" / "reference" / "atlas" / encoder)
    assert len(made) == 4
    for lines in made.values():
        assert "\n".join(lines) in page


def test_trained_shortlists_are_those_of_the_outcomes() -> None:
    """trained.csv has the means of the outcomes per query, and the page what trained.csv has."""
    rows = list(csv.DictReader((PAGES["shortlist"].parent / "trained.csv").open(encoding="utf-8")))
    pages = [line for header, lines in tables(PAGES["shortlist"].read_text(encoding="utf-8")) for line in lines]
    for row in rows:
        folder = ROOT / "results" / "reference" / "shortlist" / f"{row['data'].lower()}_{row['training']}"
        key = "ndcg" if row["metric"].startswith("ndcg") else "recall"
        seeds = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("seed*.json"))]
        value = np.mean([seed[row["arm"]][row["dim"]][key] for seed in seeds])
        if "÷" in row["metric"]:
            value /= float(next(one["value"] for one in rows if one["arm"] == "full" and one["data"] == row["data"]))
        assert float(row["value"]) == pytest.approx(value, abs=2e-4)
        if row["arm"] != "full":
            cell = f"{100 * float(row['value']):.1f}"
            if (row["training"], row["arm"]) != ("nested", "prefix"):
                less, low, high = (f"{100 * float(row[name]):+.1f}" for name in ("minus_nested", "low", "high"))
                cell += f" {less} [{low}, {high}]".replace("-", "−")
            assert any(line[0] == row["data"] and cell in line for line in pages), (row, cell)


def test_the_detached_arm_of_the_atlas_is_that_of_its_runs() -> None:
    (lines,) = (rows for header, rows in tables(PAGES["atlas"].read_text(encoding="utf-8")) if "against" in header)
    assert {line[0] for line in lines} == {
        path.name for path in (ROOT / "results" / "reference" / "atlas" / "detached").iterdir()
    }
    for name, against, *shown in lines:
        rows = read(f"atlas/detached/{name}", "differences.csv")
        pairs = [row for row in rows if (row["a"], row["b"]) == ("MRL-E detached", against)]
        cells = [
            f"{100 * float(row['mean']):+.2f}".replace("-", "−") for row in pairs if row["metric"] == "linear_top1"
        ]
        settled = [float(row["p_holm"]) < 0.05 for row in pairs if row["metric"] == "linear_top1"]
        assert shown == [f"**{cell}**" if is_so else cell for cell, is_so in zip(cells, settled, strict=True)]


@pytest.mark.parametrize(
    ("page", "alone", "taught", "metric"),
    [
        ("wordnet", "wordnet_bag", "wordnet_bag_taught", "ndcg@10"),
        ("stsb", "stsb_minilm", "stsb_minilm_taught", "spearman"),
    ],
)
def test_what_a_teacher_brings_is_that_of_the_runs(page: str, alone: str, taught: str, metric: str) -> None:
    """Means, standard deviations, and t-intervals of the differences paired by seed."""
    values = {
        run: {
            (int(row["dim"]), int(row["seed"])): 100 * float(row["value"])
            for row in read(run, "evaluation.csv")
            if (row["arm"], row["split"], row["metric"]) == ("mrl", "test", metric)
        }
        for run in (alone, taught)
    }
    (lines,) = (rows for header, rows in tables(PAGES[page].read_text(encoding="utf-8")) if "taught" in header)
    assert len(lines) >= 4
    for dim, *shown in lines:
        seeds = sorted({seed for m, seed in values[taught] if m == int(dim)})
        one, other = (np.array([values[run][int(dim), seed] for seed in seeds]) for run in (alone, taught))
        wanted = [f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" for x in (one, other)]
        assert shown == [*wanted, with_t_interval(other - one)]


def test_the_weights_of_a_teacher_are_compared_on_validation() -> None:
    runs = {"0": "stsb_minilm", "1": "stsb_minilm_taught"}
    runs |= {weight: f"stsb_minilm_teacher_weights/{weight}" for weight in ("0.1", "0.3")}
    page = PAGES["stsb"].read_text(encoding="utf-8")
    ((weights, lines),) = ((header[1:], rows) for header, rows in tables(page) if set(runs) <= set(header))
    assert len(lines) == 5
    for dim, *shown in lines:
        found = [
            100 * float(row["value"])
            for weight in weights
            for row in read(runs[weight], "evaluation.csv")
            if [row[key] for key in ("arm", "seed", "dim", "split", "metric")]
            == ["mrl", "0", dim, "validation", "spearman"]
        ]
        assert shown == [f"{value:.2f}" for value in found]


def differences_of_negatives(
    file: str, runs: str, conditions: tuple[str, ...]
) -> dict[tuple[str, str], dict[str, str]]:
    """By contrast and dim the rows of a table of differences, whose means are those of the runs."""
    with (PAGES["negatives"].parent / file).open(encoding="utf-8") as lines:
        differences = {(row["contrast"], row["dim"]): row for row in csv.DictReader(lines)}
    means: dict[tuple[str, str], list[float]] = {}
    for run in conditions:
        for row in read(f"{runs}/{run}", "evaluation.csv"):
            if (row["split"], row["metric"]) == ("test", "ndcg@10"):
                means.setdefault((run, row["dim"]), []).append(100 * float(row["value"]))
    for (contrast, dim), row in differences.items():
        for run, key in zip(contrast.split(" − "), ("first", "second"), strict=True):
            assert len(means[run, dim]) == 3
            assert np.mean(means[run, dim]) == pytest.approx(float(row[key]), abs=1e-3)
    return differences


def test_what_mined_negatives_change_is_that_of_the_runs() -> None:
    """The page has the tables of differences."""
    page = PAGES["negatives"].read_text(encoding="utf-8")
    of_bag = differences_of_negatives("differences.csv", "negatives", ("none", "mined", "nearest", "guided"))
    dims = ("16", "32", "64", "128", "256")

    def shown(row: dict[str, str], *keys: str) -> str:
        mean, low, high = (f"{float(row[key]):+.2f}".replace("-", "−") for key in keys)
        return f"{mean} [{low}, {high}]"

    contrasts = ("mined − none", "nearest − none", "guided − none", "guided − nearest")
    bag, more_of_bag, minilm = (lines for header, lines in tables(page) if header[0] == "dims")
    assert bag == [
        [
            dim,
            f"{float(of_bag[contrasts[0], dim]['second']):.2f}",
            *(shown(of_bag[contrast, dim], "difference", "low", "high") for contrast in contrasts),
        ]
        for dim in dims
    ]
    more = ("more_than_at_all", "more_low", "more_high")
    assert more_of_bag == [[dim, *(shown(of_bag[one, dim], *more) for one in contrasts[:3])] for dim in dims[:-1]]
    of_minilm = differences_of_negatives("differences_minilm.csv", "negatives_minilm", ("none", "mined"))
    assert minilm == [
        [
            dim,
            f"{float(row['second']):.2f}",
            f"{float(row['first']):.2f}",
            bold(shown(row, "difference", "low", "high"), float(row["p_holm"]) < statistics.LEVEL),
            shown(row, *more) if row["more_low"] else "",
        ]
        for (_, dim), row in of_minilm.items()
    ]


def bold(text: str, settled: bool) -> str:
    return f"**{text}**" if settled else text


def test_documents_of_bits_are_those_of_the_runs() -> None:
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in read("binary", "evaluation.csv"):
        if row["split"] == "test":
            values.setdefault((row["arm"], row["metric"], row["dim"]), []).append(100 * float(row["value"]))
    _, lines = next(tables(PAGES["binary"].read_text(encoding="utf-8")))
    for dim, *shown in lines:
        nested = [np.mean(values["mrl", f"{kind}ndcg@10", dim]) for kind in ("", "int8_", "bit_")]
        assert shown[:4] == [f"{x:.1f}" for x in (*nested, np.mean(values["mrl_binary", "bit_ndcg@10", dim]))]
        for kind, cell in zip(("bit_", ""), shown[4:], strict=True):
            one, other = (np.array(values[arm, f"{kind}ndcg@10", dim]) for arm in ("mrl", "mrl_binary"))
            assert cell == with_t_interval(other - one)


def test_pictures_found_by_words_are_those_of_the_runs() -> None:
    page = " ".join(PAGES["image_text"].read_text(encoding="utf-8").split())
    shown = list(tables(PAGES["image_text"].read_text(encoding="utf-8")))
    for run, (_, lines) in zip(("image_text", "image_text_sigmoid"), shown, strict=True):
        values: dict[tuple[str, str, str], list[float]] = {}
        for row in read(run, "evaluation.csv"):
            if row["split"] == "test":
                values.setdefault((row["arm"], row["metric"], row["dim"]), []).append(100 * float(row["value"]))
        columns = [(arm, "recall@10") for arm in ("mrl", "ff", "truncated", "pca")]
        columns += [(arm, "to_text_recall@10") for arm in ("mrl", "ff")]
        for dim, *found in lines:
            seeds = [values[arm, metric, dim] for arm, metric in columns]
            assert found == [f"{np.mean(x):.1f} ± {np.std(x, ddof=1):.1f}" for x in seeds]
        short, full, fixed = (np.array(values[of]) for of in (
            ("mrl", "recall@10", "32"), ("mrl", "recall@10", "256"), ("ff", "recall@10", "32")))  # fmt: skip
        assert f"{100 * short.mean() / full.mean():.0f} %" in page
        mean, _, interval = with_t_interval(short - fixed).partition(" ")
        assert mean in page
        assert interval in page


def with_t_interval(differences: np.ndarray) -> str:
    """Mean and 95 % interval over seeds, as pages write them."""
    mean, error = differences.mean(), differences.std(ddof=1) / len(differences) ** 0.5
    low, high = scipy.stats.t.interval(0.95, len(differences) - 1, mean, error)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def test_the_table_of_pretraining_pairs_the_seeds_of_each_start(tmp_path: Path) -> None:
    analyse = script("mlm")
    made = {"nested": (0.50, 0.54), "full_width": (0.50, 0.51), "none": (0.40, 0.41)}
    for start, seeds in made.items():
        for seed, value in enumerate(seeds):
            run = tmp_path / f"{start}-{seed}"
            run.mkdir()
            rows = [("x", "mrl", 0, 8, "test", "linear_top1", value), ("x", "mrl", 0, 8, "test", "ece", 0.9)]
            lines = ["experiment,arm,seed,dim,split,metric,value", *(",".join(map(str, row)) for row in rows)]
            (run / "evaluation.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (row,) = analyse.rows(analyse.read(tmp_path))
    assert row == [
        "8", "52.00", "50.50", "40.50", "+11.50 [+10.00, +13.00]", "+10.00 [+10.00, +10.00]", "+1.50 [+0.00, +3.00]",
    ]  # fmt: skip
    (tmp_path / "none-1" / "evaluation.csv").unlink()
    with pytest.raises(SystemExit, match="every start needs runs of the same seeds"):
        analyse.read(tmp_path)


def test_what_pretraining_adds_is_that_of_the_runs() -> None:
    text, analyse = PAGES["mlm"].read_text(encoding="utf-8"), script("mlm")
    for row in analyse.rows(analyse.read(ROOT / "results" / "reference" / "mlm_tuned")):
        assert f"| {' | '.join(row)} |" in text
    of = {start: read(f"mlm/{start}", "evaluation.csv") for start in ("nested", "full_width")}
    for dim in ("8", "16", "32", "64", "128"):
        cells = [dim]
        for metric, factor, digits in (("masked_top1", 100, 1), ("perplexity", 1, 0)):
            for rows in of.values():
                values = [
                    float(row["value"])
                    for row in rows
                    if (row["metric"], row["dim"], row["split"]) == (metric, dim, "test")
                ]
                assert len(values) == 3
                cells.append(f"{factor * np.mean(values):,.{digits}f}")
        assert f"| {' | '.join(cells)} |" in text


def test_parts_of_encoders_are_those_of_the_runs() -> None:
    analyse, page = script("layers"), PAGES["layers"].read_text(encoding="utf-8")
    accuracies = analyse.read()
    *shown, (_, speeds) = tables(page)
    for axis, (_, lines) in zip(analyse.WHOLE, shown, strict=True):
        assert lines == list(analyse.table(accuracies, axis))
    rows = csv.DictReader((PAGES["layers"].parent / "speed.csv").open(encoding="utf-8"))
    expected = [[row["axis"], row["size"], f"{int(row['bytes']) / 1e6:.2f}", row["ms_per_batch"]] for row in rows]
    assert speeds == expected
    assert f"{analyse.worst(accuracies, 'layers'):+.2f}".replace("-", "−") in page
    assert f"{analyse.worst(accuracies, 'hidden'):+.2f}".replace("-", "−") in page
