"""Figures show the study's numbers, name its arms, and are the same bytes each time."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import DIMS, make_run
from matplotlib.figure import Figure
from matplotlib.image import imread

from mrl_jax.arms import suited_to
from mrl_jax.report import compare, plots, study
from mrl_jax.report.statistics import Crossover, Difference, mean_interval
from mrl_jax.report.study import Comparison, Series, Study, gather


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("made")
    make_run(folder, arms=("all",), seeds=3)
    return gather([folder])


def words(figure: Figure, folder: Path) -> set[str]:
    """Every text in a figure's SVG."""
    _, svg = plots.save({"figure": figure}, folder)
    return {part.strip() for part in ElementTree.parse(svg).getroot().itertext()}


def test_lines_are_means_over_seeds_and_bands_their_intervals(made):
    figure = plots.accuracy(made)
    for ax, metric in zip(figure.axes, ("linear_top1", "knn_top1"), strict=True):
        series = made.series[0]
        x, y = ax.lines[0].get_data()
        assert list(x) == list(DIMS)
        assert list(y) == pytest.approx([100 * v.mean() for v in made.values(series, metric).values()])
        band = ax.collections[0].get_paths()[0].vertices
        outcomes = made.outcomes(series, metric)
        for dim in DIMS:
            interval = mean_interval(outcomes[dim])
            heights = band[band[:, 0] == dim, 1]
            assert (heights.min(), heights.max()) == pytest.approx((100 * interval.low, 100 * interval.high))


def test_the_band_of_two_seeds_goes_from_one_to_the_other(tmp_path):
    make_run(tmp_path, seeds=2)
    two = gather([tmp_path])
    figure = plots.accuracy(two)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    for dim, values in two.values(two.series[0], "linear_top1").items():
        heights = band[band[:, 0] == dim, 1]
        assert (heights.min(), heights.max()) == pytest.approx((100 * values.min(), 100 * values.max()))
    assert "mean of 2 seeds; bands: from the lower to the higher seed" in words(figure, tmp_path)


def test_one_seed_has_no_bands(tmp_path):
    make_run(tmp_path, seeds=1)
    figure = plots.accuracy(gather([tmp_path]))
    assert all(
        not len(patch.get_paths()[0].vertices) for ax in figure.axes for patch in ax.collections if patch.get_paths()
    )
    assert not any("intervals" in word for word in words(figure, tmp_path))


def test_dims_between_the_nesting_dims_are_hollow(tmp_path):
    directory = make_run(tmp_path, arms=("mrl",), seeds=1)
    text = (directory / "evaluation.csv").read_text()
    (directory / "evaluation.csv").write_text(text + "made,mrl,0,6,test,linear_top1,0.625\n")
    ax = plots.accuracy(gather([tmp_path])).axes[0]
    line, filled, hollow = ax.lines[:3]
    assert list(line.get_xdata()) == [4, 6, 8, 16]
    assert list(filled.get_xdata()) == [4, 8, 16]
    assert list(hollow.get_xdata()) == [6]
    assert hollow.get_markerfacecolor() == "white"


def test_every_arm_has_a_colour_and_a_marker_of_its_own():
    assert plots.MARKERS.keys() == study.COLORS.keys() == study.LABELS.keys()
    assert len(set(plots.MARKERS.values())) == len(set(study.COLORS.values())) == len(study.LABELS)


def test_differences_show_the_means_the_bars_and_where_the_sign_changes(made):
    found = [Difference(4, 0.05, 0.01, 0.09, 0.01, 0.02), Difference(16, -0.02, -0.04, 0.0, 0.04, 0.05)]
    one = Comparison(Series("mrl"), Series("ff"), found, Crossover("wins_below", 11.0, 9.0, 13.0), None)
    (ax,) = plots.differences(made, "linear_top1", {"MRL − FF": one}).axes
    zero, line, at, span = ax.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert list(line.get_ydata()) == pytest.approx([5, -2])
    assert [list(segment[:, 1]) for segment in ax.collections[0].get_segments()] == [[1, 9], [-4, 0]]
    assert list(at.get_xdata()) == [11]
    assert list(span.get_xdata()) == [9, 13]
    assert ax.get_title() == "minus FF"


def test_bytes_are_four_an_eighth_or_one_a_dim(made):
    ax = plots.pareto(made).axes[0]
    at = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert at == {"float32": [16, 32, 64], "int8": [4, 8, 16], "1 bit": [0.5, 1, 2]}
    values = made.values(made.series[0], "bit_knn_top1")
    assert list(ax.lines[2].get_ydata()) == pytest.approx([100 * v.mean() for v in values.values()])


def test_training_curves_are_means_over_seeds(made):
    figure = plots.training(made)
    assert [ax.get_title() for ax in figure.axes] == ["MRL", "MRL-E", "MRL sampled", "FF"]
    lines = [
        line for line in made.log if line["split"] == "validation" and line["arm"] == "ff" and "8" in line["accuracy"]
    ]
    wanted = [100 * np.mean([x["accuracy"]["8"] for x in lines if x["step"] == step]) for step in (5, 10, 20)]
    assert list(figure.axes[3].lines[1].get_ydata()) == pytest.approx(wanted)


def test_the_heat_map_has_a_row_a_class_and_no_more_than_25(tmp_path):
    make_run(tmp_path, arms=("mrl",), seeds=1, classes=[f"class {i}" for i in range(30)], examples=300)
    needs = compare.class_needs(gather([tmp_path]), Series("mrl"))
    left, right = plots.classes(needs, "MRL").axes
    shown = needs[: plots.CLASSES]
    (image,) = left.images
    wanted = [[100 * (c.accuracy[dim] - c.accuracy[16]) for dim in DIMS] for c in shown]
    np.testing.assert_allclose(image.get_array(), wanted)
    assert [label.get_text() for label in left.get_yticklabels()] == [c.name for c in shown]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([100 * c.gain for c in shown])


def test_the_bars_of_the_oracle_fill_the_whole(made):
    one = compare.oracle(made, made.series[0])
    assert one is not None
    (ax,) = plots.oracle({made.series[0]: one}).axes
    widths = [patch.get_width() for patch in ax.patches]
    assert widths == pytest.approx([100 * share for share in (*one.shares.values(), one.never)])
    assert sum(widths) == pytest.approx(100)


def test_a_study_draws_what_it_has_numbers_for(made, tmp_path):
    every = plots.of_study(made, {})
    assert list(every) == ["accuracy", "bytes", "training", *(f"classes-{a}" for a in study.NESTED), "oracle"]
    make_run(tmp_path, arms=("ff",), predictions=False)
    assert list(plots.of_study(gather([tmp_path]), {})) == ["accuracy", "bytes", "training"]


def test_files_are_images_that_name_the_arms_and_the_same_each_time(made, tmp_path):
    figures = {"accuracy": plots.accuracy(made)}
    first = {path.name: path.read_bytes() for path in plots.save(figures, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in plots.save({"accuracy": plots.accuracy(made)}, tmp_path / "b")}
    assert first == again
    assert imread(tmp_path / "a" / "accuracy.png").std() > 0
    assert words(figures["accuracy"], tmp_path) >= {
        *(study.LABELS[arm] for arm in suited_to("classes")),
        *map(str, DIMS),
    }


def test_names_are_drawn_as_they_are(tmp_path):
    names = (r"$\frac{1}{0}$ & <b>", "a\nb", "_c_" + "x" * 40, r"\$ 100 %")
    make_run(tmp_path, arms=("mrl",), seeds=1, classes=names)
    drawn = words(plots.classes(compare.class_needs(gather([tmp_path]), Series("mrl")), "run $x_1$: MRL"), tmp_path)
    assert {r"$\frac{1}{0}$ & <b>", "a b", "_c_" + "x" * 24 + "…"} <= drawn
    assert any(word.startswith("run $x_1$: MRL") for word in drawn)
