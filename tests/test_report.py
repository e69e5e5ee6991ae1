"""Tables and plots say what evaluation.csv and metrics.jsonl say, and the same bytes each time."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from mrl_jax import report, runs
from mrl_jax.config import Config
from mrl_jax.data import DataConfig
from mrl_jax.encoders.mlp import MLPConfig
from mrl_jax.errors import UserError
from mrl_jax.runs import Log, Row

DIMS = (4, 8, 16)


def value(arm: str, seed: int, dim: int, metric: str) -> float:
    """A made-up score, different for each row."""
    return 0.5 + 0.02 * DIMS.index(dim) + 0.01 * seed + 0.001 * len(arm) + 0.0001 * report.METRICS.index(metric)


def make_run(results: Path, arms: tuple[str, ...] = ("mrl", "mrl_e", "ff"), seeds: int = 1) -> Path:
    settings = Config(
        data=DataConfig("features"),
        encoder=MLPConfig(),
        name="study",
        width=16,
        nesting_dims=DIMS,
        arms=arms,
        seeds=seeds,
        results_dir=str(results),
        run="first",
    )
    directory = runs.claim(settings)
    grid = [(arm, seed, dim) for arm in arms for seed in range(seeds) for dim in DIMS]
    runs.write_rows(
        directory / "evaluation.csv",
        [
            Row("study", arm, seed, dim, split, metric, value(arm, seed, dim, metric) - 0.3 * (split == "validation"))
            for arm, seed, dim in grid
            for split in ("validation", "test")
            for metric in report.METRICS
            if not (arm == "ff" and metric == "ece")
        ],
    )
    Log(directory / "metrics.jsonl").append(
        {"member": f"{arm}-seed{seed}", "arm": arm, "step": step, "split": split, "accuracy": {str(dim): step / 20}}
        for arm, seed, dim in grid
        for step in (5, 10)
        for split in ("train", "validation")
    )
    return directory


def numbers(table: str, arm: str) -> dict[int, list[str]]:
    """The cells of an arm's part of the table, by dim."""
    part = table.split(f"{report.ARMS[arm]}, ")[1].split("\n\n")[0].splitlines()
    return {int(line.split()[0]): re.split(r"\s{2,}", line.strip())[1:] for line in part[2:]}


def test_the_table_holds_the_numbers_of_the_test_split(tmp_path):
    table = report.table(make_run(tmp_path))
    for arm in ("mrl", "mrl_e"):
        wanted = {dim: [f"{value(arm, 0, dim, metric):.4f}" for metric in report.METRICS] for dim in DIMS}
        assert numbers(table, arm) == wanted
    metrics = [metric for metric in report.METRICS if metric != "ece"]  # which this run did not measure for FF
    assert numbers(table, "ff") == {dim: [f"{value('ff', 0, dim, metric):.4f}" for metric in metrics] for dim in DIMS}


def test_the_table_of_another_split_can_be_asked_for(tmp_path):
    table = report.table(make_run(tmp_path), split="validation")
    assert numbers(table, "mrl")[4][0] == f"{value('mrl', 0, 4, 'linear_top1') - 0.3:.4f}"


def test_several_seeds_are_summed_up_by_mean_and_sample_standard_deviation(tmp_path):
    cells = numbers(report.table(make_run(tmp_path, seeds=3)), "mrl")
    values = [value("mrl", seed, 8, "linear_top1") for seed in range(3)]
    assert cells[8][0] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.3f}"


def test_a_metric_that_lacks_at_one_dim_is_a_dash_there(tmp_path):
    directory = make_run(tmp_path, arms=("mrl",))
    rows = runs.read_rows(directory / "evaluation.csv")
    runs.write_rows(directory / "evaluation.csv", [r for r in rows if (r.dim, r.metric) != (8, "ece")])
    at = report.METRICS.index("ece")
    cells = numbers(report.table(directory), "mrl")
    assert cells[8][at] == "–"
    assert cells[4][at] != "–"


def test_the_same_numbers_draw_the_same_bytes(tmp_path):
    directory = make_run(tmp_path, seeds=2)
    first = {path: path.read_bytes() for path in report.draw(directory)}
    assert sorted(path.name for path in first) == ["accuracy.png", "accuracy.svg", "training.png", "training.svg"]
    for path in first:
        path.unlink()
    assert {path: path.read_bytes() for path in report.draw(directory)} == first


def test_other_numbers_draw_other_pictures(tmp_path):
    directory = make_run(tmp_path)
    first = {path: path.read_bytes() for path in report.draw(directory)}
    rows = runs.read_rows(directory / "evaluation.csv")
    runs.write_rows(directory / "evaluation.csv", [r._replace(value=r.value / 2 * (r.dim > 4)) for r in rows])
    second = {path: path.read_bytes() for path in report.draw(directory)}
    assert {path.name for path in first if first[path] != second[path]} == {"accuracy.png", "accuracy.svg"}


def test_plots_are_images_that_name_the_arms_and_the_dims(tmp_path):
    directory = make_run(tmp_path)
    report.draw(directory)
    text = {
        name: set(ElementTree.parse(directory / "plots" / f"{name}.svg").getroot().itertext())
        for name in ("accuracy", "training")
    }
    for drawn in text.values():
        assert {"MRL", "MRL-E", "FF (fixed size)", "4", "8", "16"} <= {part.strip() for part in drawn}
    assert imread(directory / "plots" / "accuracy.png").std() > 0


def test_the_lines_of_the_accuracy_plot_are_the_means_over_seeds():
    rows = [
        Row("study", "mrl", seed, dim, "test", "linear_top1", value("mrl", seed, dim, "linear_top1"))
        for dim in (8, 4)
        for seed in range(2)
    ]
    figure = report.accuracy_against_dim(rows, DIMS)
    (ax,) = figure.axes
    at, height = ax.lines[0].get_data()
    assert list(at) == [4, 8]
    wanted = [50 * sum(value("mrl", seed, dim, "linear_top1") for seed in range(2)) for dim in (4, 8)]
    assert list(height) == pytest.approx(wanted)


def test_a_run_without_evaluation_has_nothing_to_draw(tmp_path):
    directory = make_run(tmp_path)
    (directory / "evaluation.csv").unlink()
    with pytest.raises(UserError, match=r"has nothing to draw yet: evaluation\.csv is missing or empty"):
        report.draw(directory)


def test_the_command_prints_the_table_and_draws_the_plots(tmp_path, capsys):
    directory = make_run(tmp_path)
    assert report.main([str(tmp_path / "study")]) == 0  # the experiment stands for its latest run
    assert capsys.readouterr().out.strip() == report.table(directory).strip()
    assert (directory / "plots" / "accuracy.png").is_file()


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_the_command_explains_its_usage(arguments, capsys):
    assert report.main(arguments) == 2
    assert "usage: python -m mrl_jax.report RUN" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert re.fullmatch(r"error: .* is not a run: .*\n", capsys.readouterr().err)
