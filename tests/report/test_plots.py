"""Figures show the study's numbers, name its arms, and are the same bytes each time."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import DIMS, make_run
from matplotlib.image import imread

from mrl_jax.arms import ARMS, ArmType, names_of, suited_to
from mrl_jax.report import compare, figures, page_plots, plots
from mrl_jax.report.compare import Comparison
from mrl_jax.report.figures import Axis, Figure
from mrl_jax.report.gather import gather
from mrl_jax.report.sections import sections
from mrl_jax.report.statistics import Crossover, Difference, mean_interval
from mrl_jax.report.study import Series, Study


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("made")
    make_run(folder, arms=("all",), seeds=3)
    return gather([folder])


def words(figure: Figure, folder: Path) -> set[str]:
    """Every text in a figure's SVG."""
    _, svg = plots.save([figure], folder)
    return {part.strip() for part in ElementTree.parse(svg).getroot().itertext()}


def test_lines_are_means_over_seeds_and_bands_their_intervals(made):
    canvas = plots.draw(figures.accuracy(made))
    for ax, metric in zip(canvas.axes, ("linear_top1", "knn_top1"), strict=True):
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
    figure = figures.accuracy(two)
    band = plots.draw(figure).axes[0].collections[0].get_paths()[0].vertices
    for dim, values in two.values(two.series[0], "linear_top1").items():
        heights = band[band[:, 0] == dim, 1]
        assert (heights.min(), heights.max()) == pytest.approx((100 * values.min(), 100 * values.max()))
    assert "Mean of 2 seeds; bands: from the lower to the higher seed." in words(figure, tmp_path)


def test_one_seed_has_no_bands(tmp_path):
    make_run(tmp_path, seeds=1)
    figure = figures.accuracy(gather([tmp_path]))
    assert not any(ax.collections for ax in plots.draw(figure).axes)
    assert not any("intervals" in word for word in words(figure, tmp_path))


def test_dims_between_the_nesting_dims_are_hollow(tmp_path):
    directory = make_run(tmp_path, arms=("mrl",), seeds=1)
    text = (directory / "evaluation.csv").read_text()
    (directory / "evaluation.csv").write_text(text + "made,mrl,0,6,test,linear_top1,0.625\n")
    ax = plots.draw(figures.accuracy(gather([tmp_path]))).axes[0]
    line, filled, hollow = ax.lines[:3]
    assert list(line.get_xdata()) == [4, 6, 8, 16]
    assert list(filled.get_xdata()) == [4, 8, 16]
    assert list(hollow.get_xdata()) == [6]
    assert hollow.get_markerfacecolor() == "white"


def test_the_frame_is_set_by_the_compared_arms(tmp_path):
    make_run(tmp_path, arms=("all",), score=lambda arm, dim: 0.05 if arm == "pca_whitened" else 0.9)
    study = gather([tmp_path])
    low, high = plots.draw(figures.accuracy(study)).axes[0].get_ylim()
    whitened = study.values(Series("pca_whitened"), "linear_top1")
    assert max(100 * v.mean() for v in whitened.values()) < low
    shown = [100 * v.mean() for s in study.series if s.main for v in study.values(s, "linear_top1").values()]
    assert low < min(shown) < max(shown) < high


def test_labels_of_a_log_axis_have_room():
    def labelled(*ticks: float) -> list[str]:
        return [label for label in Axis("", ticks).tick_labels if label]

    assert labelled(8, 16, 24, 32, 40, 48, 64) == ["8", "16", "24", "32", "48", "64"]
    assert labelled(12, 24, 48, 96, 192, 384) == ["12", "24", "48", "96", "192", "384"]
    assert labelled(100, 110, 128) == ["128"]


def test_every_arm_has_a_colour_and_a_marker_of_its_own():
    assert len({arm.marker for arm in ARMS.values()}) == len({arm.color for arm in ARMS.values()}) == len(ARMS)


def test_every_marker_and_dash_can_be_drawn_by_both():
    markers = set(get_args(get_type_hints(ArmType)["marker"]))
    assert page_plots.MARKERS.keys() == plots.MARKERS.keys() - {None} == markers
    assert plots.HATCHES.keys() == page_plots.PATTERNS.keys() == plots.STYLES.keys() - {None} == set(figures.DASHES)
    for table in (page_plots.MARKERS, plots.MARKERS, page_plots.PATTERNS):
        assert len(set(table.values())) == len(table)


def test_looks_tell_arms_and_variants_apart(made):
    series = tuple(Series(arm, variant) for arm in ARMS for variant in (None, "a", "b"))
    study = dataclasses.replace(made, series=series)
    looks = {figures.look_of(study, s) for s in series}
    assert len(looks) == len(series)


def test_differences_show_the_means_the_bars_and_where_the_sign_changes(made):
    points = [Difference(4, 0.05, 0.01, 0.09, 0.01, 0.02), Difference(16, -0.02, -0.04, 0.0, 0.04, 0.05)]
    one = Comparison(Series("mrl"), Series("ff"), points, Crossover("wins_below", 11.0, 9.0, 13.0), None)
    (ax,) = plots.draw(figures.differences(made, "linear_top1", {"MRL − FF": one})).axes
    zero, line, at = ax.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert list(line.get_ydata()) == pytest.approx([5, -2])
    bars, span = (collection.get_segments() for collection in ax.collections)
    assert [list(segment[:, 1]) for segment in bars] == [[1, 9], [-4, 0]]
    assert list(at.get_xdata()) == [11]
    assert at.get_ydata()[0] < -4  # below all bars
    assert list(span[0][:, 0]) == [9, 13]
    assert ax.get_title() == "minus FF"


def test_bytes_are_four_one_or_an_eighth_per_dim(made):
    ax = plots.draw(figures.by_bytes(made)).axes[0]
    stairs, *lines = ax.lines
    assert [list(line.get_xdata()) for line in lines[:3]] == [[16, 32, 64], [4, 8, 16], [0.5, 1, 2]]
    values = made.values(made.series[0], "bit_knn_top1")
    assert list(lines[2].get_ydata()) == pytest.approx([100 * v.mean() for v in values.values()])
    best = max(y for line in lines for y in line.get_ydata())
    assert max(stairs.get_ydata()) == best


stored = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20).map(float)), max_size=30)


@given(stored)
def test_the_front_is_what_no_other_point_beats(points):
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    assert figures.front(points) == sorted(set(points) - beaten)


def test_training_curves_are_means_over_seeds(made):
    canvas = plots.draw(figures.training(made))
    assert [ax.get_title() for ax in canvas.axes] == ["MRL", "MRL-E", "MRL sampled", "FF"]
    lines = [
        line for line in made.log if line["split"] == "validation" and line["arm"] == "ff" and "8" in line["accuracy"]
    ]
    wanted = [100 * np.mean([x["accuracy"]["8"] for x in lines if x["step"] == step]) for step in (5, 10, 20)]
    assert list(canvas.axes[3].lines[1].get_ydata()) == pytest.approx(wanted)


def test_the_heat_map_has_a_row_per_class_and_no_more_than_25(tmp_path):
    make_run(tmp_path, arms=("mrl",), seeds=1, classes=[f"class {i}" for i in range(30)], examples=300)
    needs = compare.class_needs(gather([tmp_path]), Series("mrl"))
    (ax,) = plots.draw(figures.classes(needs, Series("mrl"))).axes
    shown = needs[: figures.MAX_CLASSES]
    (image,) = ax.images
    wanted = [[100 * (c.accuracy[dim] - c.accuracy[16]) for dim in DIMS] for c in shown]
    np.testing.assert_allclose(image.get_array(), wanted)
    assert [label.get_text() for label in ax.get_yticklabels()] == [c.name for c in shown]
    dots = [round(float(line.get_xdata()[0])) for line in ax.lines]
    assert dots == [DIMS.index(c.enough) for c in shown]


def test_the_bars_of_the_oracle_fill_the_whole(made):
    one = compare.oracle(made, made.series[0])
    assert one is not None
    (ax,) = plots.draw(figures.oracle(made, {made.series[0]: one})).axes
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == pytest.approx([100 * share for share in (*one.shares.values(), one.never)])
    assert sum(heights) == pytest.approx(100)


def names(study: Study) -> list[str]:
    return [figure.name for part in sections(study, {}) for figure in part.figures]


def test_a_study_draws_what_it_has_numbers_for(made, tmp_path):
    every = {"accuracy", "bytes", "training", *(f"classes-{arm}" for arm in names_of("nested") if ARMS[arm].in_all)}
    every |= {"oracle"}
    assert set(names(made)) == every
    assert len(names(made)) == len(every)
    make_run(tmp_path, arms=("ff",), predictions=False)
    assert names(gather([tmp_path])) == ["accuracy", "training", "bytes"]


def test_a_study_of_nothing_that_is_compared_still_has_its_files(made, tmp_path):
    nothing = dataclasses.replace(made, series=(), log=[])
    assert all(path.stat().st_size > 1000 for path in plots.save([figures.training(nothing)], tmp_path))
    assert all(path.stat().st_size > 1000 for path in plots.save([figures.accuracy(nothing)], tmp_path))


def test_files_are_images_that_name_the_arms_and_the_same_each_time(made, tmp_path):
    first, again = (
        {path.name: path.read_bytes() for path in plots.save([figures.accuracy(made)], tmp_path / folder)}
        for folder in ("a", "b")
    )
    assert first == again
    assert imread(tmp_path / "a" / "accuracy.png").std() > 0
    assert words(figures.accuracy(made), tmp_path) >= {
        *(ARMS[arm].label for arm in suited_to("classes")),
        *map(str, DIMS),
    }


def test_names_are_drawn_as_they_are(tmp_path):
    classes = (r"$\frac{1}{0}$ & <b>", "a\nb", "_c_" + "x" * 40, r"\$ 100 %")
    make_run(tmp_path, arms=("mrl",), seeds=1, classes=classes)
    needs = compare.class_needs(gather([tmp_path]), Series("mrl"))
    drawn = words(figures.classes(needs, Series("mrl", "run $x_1$")), tmp_path)
    assert {r"$\frac{1}{0}$ & <b>", "a b", "_c_xxxxxx…" + "x" * 10, "MRL · run $x_1$"} <= drawn


def test_long_titles_stay_over_their_own_panels():
    title = "Classifier, middle third of the classes by frequency, top-1 accuracy"
    panels = [figures.Lines(title, Axis("dims", (8, 16)), "%", [], y_range=(0, 100)) for _ in range(6)]
    canvas = plots.draw(Figure("x", "", panels, ""))
    canvas.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in canvas.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= canvas.bbox.x1 for box in boxes)
    assert {" ".join(ax.get_title().split()) for ax in canvas.axes} == {title}


def test_panels_for_common_and_for_rare_classes_have_frames_of_their_own(tmp_path):
    directory = make_run(tmp_path, arms=("mrl",), seeds=1)
    rows = [f"made,mrl,0,{dim},test,{name}_top1,{at}\n" for dim in DIMS for name, at in (("head", 0.95), ("tail", 0.1))]
    text = (directory / "evaluation.csv").read_text()
    (directory / "evaluation.csv").write_text(text + "".join(rows))
    study = gather([tmp_path])
    head, tail = figures.generalisation(study).panels
    assert head.y_range == pytest.approx((93, 97))
    assert tail.y_range == pytest.approx((8, 12))
    assert not figures.generalisation(study).shared_y
