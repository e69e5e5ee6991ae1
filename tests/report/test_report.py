"""The command line of the report, and the table and plots of one run that training ends with."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from made_runs import ARMS, DIMS, make_run

from mrl_jax import report, runs
from mrl_jax.arms import ARMS as EVERY_ARM
from mrl_jax.arms import ArmType
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.evaluate.metrics import METRICS, Metric
from mrl_jax.report import statistics
from mrl_jax.system.errors import UserError

PRINTED = ("linear_top1", "linear_top5", "ece", "knn_top1", "map@10", "precision@10")  # of classes
FILES = ["differences.csv", "report.html", "report.md", "tables.tex"]


def numbers(table: str, arm: str) -> dict[int, list[str]]:
    """The cells of an arm's part of the table, by dim."""
    part = table.split(f"{EVERY_ARM[arm].label}, ")[1].split("\n\n")[0].splitlines()
    return {int(line.split()[0]): re.split(r"\s{2,}", line.strip())[1:] for line in part[2:]}


def values(directory: Path, arm: str, dim: int, metric: str, split: str = "test") -> list[float]:
    rows = runs.read_rows(directory / "evaluation.csv")
    return [r.value for r in rows if (r.arm, r.dim, r.metric, r.split) == (arm, dim, metric, split)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_table_of_a_run_holds_the_numbers_of_the_split(tmp_path, split):
    directory = make_run(tmp_path, arms=("all",), seeds=1)
    table = report.table(directory, split=split)
    for arm in ARMS:
        # Post-hoc arms have no calibration error: their scores are no probabilities.
        metrics = [m for m in PRINTED if m != "ece" or arm in ("mrl", "mrl_e", "mrl_sampled", "ff")]
        wanted = {dim: [f"{values(directory, arm, dim, m, split)[0]:.4f}" for m in metrics] for dim in DIMS}
        assert numbers(table, arm) == wanted


def test_several_seeds_are_summed_up_by_mean_and_sample_standard_deviation(tmp_path):
    directory = make_run(tmp_path, seeds=3)
    three = values(directory, "mrl", 8, "linear_top1")
    assert len(three) == 3
    assert numbers(report.table(directory), "mrl")[8][0] == f"{np.mean(three):.4f} ± {np.std(three, ddof=1):.3f}"


def test_a_metric_that_lacks_at_one_dim_is_a_dash_there(tmp_path):
    directory = make_run(tmp_path, arms=("mrl",))
    rows = runs.read_rows(directory / "evaluation.csv")
    runs.write_rows(directory / "evaluation.csv", [r for r in rows if (r.dim, r.metric) != (8, "ece")])
    at = PRINTED.index("ece")
    cells = numbers(report.table(directory), "mrl")
    assert cells[8][at] == "–"
    assert cells[4][at] != "–"


def test_the_metrics_of_the_table_can_be_chosen(tmp_path):
    directory = make_run(tmp_path, seeds=1)
    wanted = {dim: [f"{values(directory, 'mrl', dim, m)[0]:.4f}" for m in ("refit_top1", "knn_top1")] for dim in DIMS}
    assert numbers(report.table(directory, ("knn_top1", "refit_top1")), "mrl") == wanted  # in the order of METRICS
    with (directory / "evaluation.csv").open("a") as file:
        file.write("made,mrl,0,4,test,a_metric_of_another_version,0.125\n")
    columns = report.table(directory, ("all",)).splitlines()[1].split()[1:]
    assert set(columns) == {r.metric for r in runs.read_rows(directory / "evaluation.csv")}
    assert columns[-1] == "a_metric_of_another_version"
    assert report.table(directory, ("spearman",)).startswith(
        "test split: spearman not measured; measured: linear_top1,"
    )


def test_an_arm_and_a_metric_need_only_their_entries_to_be_printed_compared_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(EVERY_ARM, "mrl_new", ArmType("MRL new", "#123456", "circle", "nested", "separate"))
    monkeypatch.setitem(EVERY_ARM, "squeezed", ArmType("squeezed", "#654321", "plus", "compressed", baseline=True))
    monkeypatch.setitem(METRICS, "hits", Metric("number of hits", printed=True, compared=True))
    directory = make_run(tmp_path, arms=("mrl", "ff", "pca"), seeds=2)
    names = {"mrl": "mrl_new", "pca": "squeezed"}
    rows = runs.read_rows(directory / "evaluation.csv")
    rows += [row._replace(arm=names[row.arm]) for row in rows if row.arm in names]
    rows += [row._replace(metric="hits") for row in rows if row.metric == "knn_top1"]
    runs.write_rows(directory / "evaluation.csv", rows)
    for path in list((directory / "predictions").iterdir()):
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        arrays |= {key.replace("knn_top1", "hits"): v for key, v in arrays.items() if "/knn_top1/" in key}
        np.savez(path, **arrays)
        if (arm := path.name.partition("-")[0]) in names:
            np.savez(path.with_name(path.name.replace(arm, names[arm])), **arrays)
    table = report.table(directory)
    assert numbers(table, "mrl_new") == numbers(table, "mrl")
    assert "hits" in table
    assert report.main([str(directory)]) == 0
    out = directory / "report"
    with (out / "differences.csv").open() as file:
        compared = {(row["metric"], row["a"], row["b"]) for row in csv.DictReader(file)}
    for metric in ("linear_top1", "knn_top1", "hits"):
        assert {(metric, "MRL new", b) for b in ("FF", "PCA", "MRL", "squeezed")} <= compared
    assert {"differences-hits.png", "classes-mrl_new.svg"} <= {path.name for path in (out / "plots").iterdir()}
    text = (out / "report.md").read_text()
    assert "Test number of hits (× 100)" in text
    assert "one FF(D), squeezed" in text
    for name in ("accuracy", "bytes", "oracle", "differences-hits"):
        assert "MRL new" in (out / "plots" / f"{name}.svg").read_text()
    assert "MRL new − squeezed: " in capsys.readouterr().out


def test_outcomes_are_those_of_the_prediction_files_paired_by_seed_and_ready_for_statistics(tmp_path):
    directory = make_run(tmp_path, arms=("mrl", "ff"), seeds=3)
    of = report.outcomes(directory, "linear_top1")
    for arm, files in (("mrl", dict.fromkeys(DIMS, "mrl")), ("ff", {dim: f"ff{dim}" for dim in DIMS})):
        assert list(of[arm]) == list(DIMS)
        for dim, name in files.items():
            each = [np.load(directory / "predictions" / f"{name}-seed{seed}.npz") for seed in range(3)]
            np.testing.assert_array_equal(of[arm][dim], [one[f"test/linear_top1/{dim}"] for one in each])
            assert of[arm][dim].dtype == np.float64
    assert [one.dim for one in statistics.differences(of["mrl"], of["ff"])] == list(DIMS)
    assert report.outcomes(directory, "ndcg@10") == {}
    make_run(tmp_path, run="second", encoder=MLPConfig(dropout=0.5))
    with pytest.raises(UserError, match=r"made has runs of 2 configurations; expected a single run"):
        report.outcomes(directory.parent, "linear_top1")


def test_a_run_is_drawn_into_its_own_folder(tmp_path):
    directory = make_run(tmp_path)
    drawn = report.draw(directory)
    names = [f"{name}.{suffix}" for name in ("accuracy", "training") for suffix in ("png", "svg")]
    assert drawn == [directory / "plots" / name for name in names]
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_the_command_writes_tables_plots_and_a_page(tmp_path, capsys):
    directory = make_run(tmp_path, arms=("all",), seeds=2)
    assert report.main([str(directory)]) == 0
    out = directory / "report"
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == FILES
    plots = {path.name for path in (out / "plots").iterdir()}
    names = (
        "accuracy",
        "training",
        "differences-linear_top1",
        "differences-knn_top1",
        "bytes",
        "oracle",
        "classes-mrl",
    )
    assert {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")} <= plots
    for name in re.findall(r"!\[.*?\]\((.*?)\)", (out / "report.md").read_text()):
        assert (out / name).is_file()
    said = capsys.readouterr()
    assert "MRL − FF: " in said.out
    assert "[" in said.out.split("MRL, classifier, minus")[1]
    assert str(out) in said.err


@pytest.mark.slow
def test_the_same_runs_make_the_same_bytes_and_other_numbers_others(tmp_path):
    directory = make_run(tmp_path, arms=("mrl", "ff"))
    for out in ("one", "two"):
        assert report.main([str(directory), "--out", str(tmp_path / out)]) == 0
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    assert not (directory / "report").exists()
    make_run(tmp_path / "other", arms=("mrl", "ff"), score=lambda arm, dim: 0.4 + 0.02 * dim)
    assert report.main([str(tmp_path / "other"), "--out", str(tmp_path / "three")]) == 0
    third = contents(tmp_path / "three")
    assert {name for name in first if first[name] == third.get(name)} == set()


@pytest.mark.slow
def test_several_paths_are_one_report_in_the_first(tmp_path, capsys):
    make_run(tmp_path / "a", arms=("mrl",))
    make_run(tmp_path / "b", arms=("ff",))
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    with (tmp_path / "a" / "report" / "differences.csv").open() as file:
        pairs = {(row["a"], row["b"]) for row in csv.DictReader(file)}
    assert pairs == {("MRL", "FF")}
    # The report lies below the experiment's folder and is not taken for a run the next time.
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_a_run_of_one_arm_and_one_seed_still_has_a_report(tmp_path, capsys):
    directory = make_run(tmp_path, arms=("mrl_e",), seeds=1)
    assert report.main([str(directory)]) == 0
    said = capsys.readouterr().out
    assert "No ff arm: MRL-E − FF is not shown." in said
    assert "One seed: differences have no interval." in said
    assert "Top-1 test accuracy (%) of the classifier" in said


def test_mistakes_are_one_sentence(tmp_path, capsys):
    make_run(tmp_path)
    make_run(tmp_path, run="second", fingerprint="bb")
    for path in (tmp_path / "nowhere", tmp_path):
        assert report.main([str(path)]) == 2
        assert re.fullmatch(r"error: [^\n]*(has no run|cannot be compared)[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "report").exists()
    (tmp_path / "file").write_text("")
    assert report.main([str(tmp_path / "made" / "first"), "--out", str(tmp_path / "file")]) == 2
    assert re.search(r"^error: .*file", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--wrong", "a"], 2), (["--help"], 0)])
def test_the_command_explains_its_usage(arguments, status, capsys):
    assert report.main(arguments) == status
    said = capsys.readouterr()
    assert "usage: python -m mrl_jax.report [-h] [--across] [--out DIR] PATH [PATH ...]" in said.out + said.err
