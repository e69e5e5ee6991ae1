"""Figures of a study, drawn by matplotlib: same study, same bytes."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mrl_jax import files
from mrl_jax.report import compare
from mrl_jax.report.compare import KINDS
from mrl_jax.report.study import COLORS, MEASURES, NESTED, Comparison, Series, Study, labelled

# Marker of each arm; the line style says the variant.
MARKERS = {
    "mrl": "o",
    "mrl_e": "s",
    "mrl_sampled": "p",
    "ff": "^",
    "truncated": "v",
    "random_subset": "P",
    "random_projection": "X",
    "pca": "D",
    "pca_whitened": "*",
    "untuned": "h",
    "untuned_pca": "d",
}
STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
CLASSES = 25  # rows of the heat map of classes


def save(figures: Mapping[str, Figure], directory: Path) -> list[Path]:
    """Write each figure as `directory/<name>.png` and `.svg`; returns the files."""
    drawn = []
    # Salt and dates are fixed so that the files depend on the numbers alone.
    with matplotlib.rc_context({"svg.hashsalt": "mrl_jax", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                content = io.BytesIO()
                figure.savefig(content, format=suffix, dpi=150, metadata=metadata)
                drawn.append(directory / f"{name}.{suffix}")
                files.write(drawn[-1], content.getvalue())
    return drawn


def of_study(study: Study, comparisons: Mapping[str, Mapping[str, Comparison]]) -> dict[str, Figure]:
    """Every figure that the study has numbers for, by file name."""
    figures = {"accuracy": accuracy(study)}
    for metric, made in comparisons.items():
        figures[f"differences-{metric}"] = differences(study, metric, made)
    if any(len(study.values(s, metric)) for s in study.series for metric, _ in list(KINDS.values())[1:]):
        figures["bytes"] = pareto(study)
    if any(line["split"] == "validation" for line in study.log):
        figures["training"] = training(study)
    for series in (s for s in study.series if s.arm in NESTED):
        if needs := compare.class_needs(study, series):
            figures[f"classes-{series.key}"] = classes(needs, series.label)
    oracles = {s: o for s in study.series if s.arm in NESTED and (o := compare.oracle(study, s))}
    if oracles:
        figures["oracle"] = oracle(oracles)
    if any(compare.adaptive(study, series) for series in study.series):
        figures["cascade"] = cascade(study)
    return figures


def accuracy(study: Study) -> Figure:
    """A panel a metric, a line a series. Filled markers are nesting dims, hollow ones dims between them.

    The line is the mean over seeds; the band, at the nesting dims, its 95 % interval over seeds and test examples (of
    two seeds: from one to the other).
    """
    panels = {m: MEASURES[m] for m in study.measures}
    figure = Figure(figsize=(5.6 * max(1, len(panels)), 4.9), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)[0]
    for ax, (metric, title) in zip(axes, panels.items(), strict=False):
        for series in study.series:
            values = {dim: 100 * v.mean() for dim, v in study.values(series, metric).items()}
            if not values:
                continue
            color, marker, style = _look(study, series)
            ax.plot(list(values), list(values.values()), color=color, linestyle=style, linewidth=1.6)
            band = study.band(series, metric)
            low, high = ([100 * bounds[i] for bounds in band.values()] for i in (0, 1))
            ax.fill_between(list(band), low, high, color=color, alpha=0.12, linewidth=0)
            for nested in (True, False):
                at = [dim for dim in values if (dim in study.dims) == nested]
                face = color if nested else "white"
                ax.plot(at, [values[dim] for dim in at], marker, color=color, markersize=5, markerfacecolor=face)
        ax.set_title(title, fontsize=11)
        _log_axis(ax, study.dims, "embedding dimensions used")
    means = [[100 * v.mean() for v in study.values(s, m).values()] for s in _framing(study) for m in panels]
    shown = np.concatenate(means or [[0, 100]])
    shown = shown[np.isfinite(shown)] if np.isfinite(shown).any() else np.array([0, 100])
    margin = 2 + 0.08 * np.ptp(shown)
    axes[0].set_ylim(shown.min() - margin, shown.max() + margin)  # bands may be wide
    axes[0].set_ylabel("test accuracy (%)" if study.classes else "test score (× 100)")
    said = f"mean of {study.seeds} seeds; bands: {study.bands}"
    _legend(figure, study, study.series, said if study.seeds > 1 else None)
    return figure


def _framing(study: Study) -> list[Series]:
    """The series that set the range of values. Whitened neighbours fall so low that the others could not be told apart;
    the line leaves the frame instead."""
    return [s for s in study.series if s.arm != "pca_whitened"] or list(study.series)


def differences(study: Study, metric: str, made: Mapping[str, Comparison]) -> Figure:
    """A panel for each thing compared with; above zero the arm of the line is better. Bars are 95 % intervals.

    At the foot, for each line whose sign changes once, where it does, with its interval.
    """
    names = list(dict.fromkeys(c.against for c in made.values()))
    figure, axes = _panels(len(names), sharey=False)
    for ax, name in zip(axes, names, strict=True):
        _difference_panel(ax, study, [c for c in made.values() if c.against == name])
        ax.set_title(_plain(name), fontsize=11)
    _label_rows(axes, "difference (points)")
    arms = {c.a for c in made.values()}
    bars = "bars: 95 % intervals; at the foot: where the sign changes" if study.seeds > 1 else ""
    _legend(figure, study, [s for s in study.series if s in arms], f"{MEASURES[metric]}; {bars}".rstrip("; "))
    return figure


def _difference_panel(ax: Axes, study: Study, shown: Sequence[Comparison]) -> None:
    ax.axhline(0, color="#444444", linewidth=1)
    for i, comparison in enumerate(shown):
        color, marker, style = _look(study, comparison.a)
        # Beside each other, so that intervals can be told apart.
        aside = 2 ** (0.12 * (i - (len(shown) - 1) / 2))
        at = [d.dim * aside for d in comparison.differences]
        mean = np.array([100 * d.mean for d in comparison.differences])
        bounds = 100 * np.array([[d.low, d.high] for d in comparison.differences]).T
        ax.plot(at, mean, marker, linestyle=style, color=color, markersize=5, linewidth=1.4)
        if np.isfinite(bounds).all():
            ax.vlines(at, bounds[0], bounds[1], color=color, linewidth=1.4)
        crossover = comparison.crossover
        if crossover.dim is not None:
            foot, across = 0.03 + 0.04 * i, ax.get_xaxis_transform()
            ax.plot(
                [crossover.dim],
                [foot],
                marker="|",
                color=color,
                markersize=9,
                markeredgewidth=2,
                transform=across,
                clip_on=False,
            )
            if crossover.low is not None and crossover.high is not None:
                ends = [crossover.low, crossover.high]
                ax.plot(ends, [foot] * 2, color=color, linestyle=style, linewidth=2, transform=across)
    ax.margins(y=0.16)
    _log_axis(ax, study.dims, "embedding dimensions used")


def pareto(study: Study) -> Figure:
    """A panel a series, a line a precision: nearest-neighbour accuracy against the bytes that an embedding takes."""
    shown = [s for s in study.series if s.arm in (*NESTED, "ff", "pca") and study.values(s, "int8_knn_top1")]
    figure, axes = _panels(len(shown))
    looks = {"float32": ("#0072b2", "o"), "int8": ("#d55e00", "s"), "1 bit": ("#009e73", "D")}
    for ax, series in zip(axes, shown, strict=False):
        for kind, (metric, size) in KINDS.items():
            values = {dim: 100 * v.mean() for dim, v in study.values(series, metric).items() if dim in study.dims}
            color, marker = looks[kind]
            at = [dim * size for dim in values]
            ax.plot(at, list(values.values()), color=color, marker=marker, markersize=5, linewidth=1.6, label=kind)
        ax.set_title(_plain(series.label), fontsize=11)
    sizes = sorted({size * dim for _, size in KINDS.values() for dim in study.dims})
    powers = [2.0**i for i in range(int(np.floor(np.log2(sizes[0]))), int(np.ceil(np.log2(sizes[-1]))) + 1)]
    step = -(-len(powers) // 9)
    for ax in axes:
        _log_axis(ax, powers[::step], "bytes an embedding")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    _label_rows(axes, "nearest neighbour, top-1 (%)")
    return figure


def training(study: Study) -> Figure:
    """Validation score over training, a panel a series, a line a granularity (mean over seeds)."""
    log = [line for line in study.log if line["split"] == "validation"]
    shown = [s for s in study.series if any((line["arm"], line["variant"]) == (s.arm, s.variant) for line in log)]
    figure, axes = _panels(len(shown))
    dims = sorted({int(dim) for line in log for dim in line["accuracy"]})
    shades = dict(zip(dims, matplotlib.colormaps["viridis"](np.linspace(0.9, 0.0, len(dims))), strict=True))
    for ax, series in zip(axes, shown, strict=False):
        points: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in log:
            if (line["arm"], line["variant"]) == (series.arm, series.variant):
                for dim, value in line["accuracy"].items():
                    points[int(dim)][line["step"]].append(100 * value)
        for dim in sorted(points):
            at = sorted(points[dim])
            mean = [np.mean(points[dim][step]) for step in at]
            ax.plot(at, mean, color=shades[dim], linewidth=1.6, marker="o" if len(at) == 1 else None, label=str(dim))
        ax.set_title(_plain(series.label), fontsize=11)
        ax.set_xlabel("step")
        _frame(ax)
    handles = [Line2D([], [], color=shades[dim], linewidth=1.6, label=str(dim)) for dim in dims]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9, title="dim", title_fontsize=9
    )
    if study.classes:
        what = "validation accuracy (%)"
    elif "spearman" in study.measures:
        what = "validation, pairs in order (%)"
    else:
        what = "validation, first of its batch (%)"
    _label_rows(axes, what)
    return figure


def classes(needs: Sequence[compare.ClassNeeds], title: str) -> Figure:
    """Accuracy of each class minus that at full width, those that need most dims first; dots where it is within a
    point of it for good. Right: what the class gains from the smallest to the largest dim."""
    shown = needs[:CLASSES]
    dims = list(shown[0].accuracy)
    values = 100 * np.array([[c.accuracy[dim] - c.accuracy[dims[-1]] for dim in dims] for c in shown])
    figure = Figure(figsize=(3.4 + 0.55 * len(dims) + 2.2, 1.5 + 0.27 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(max(3, len(dims)) * 0.55, 1.8))
    limit = max(1.0, float(np.abs(values).max()))
    left.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            color = "white" if abs(value) > 0.6 * limit else "black"
            left.text(
                x,
                y,
                f"{value:+.0f}".replace("-", "−") if round(value) else "0",
                ha="center",
                va="center",
                fontsize=7.5,
                color=color,
            )
        left.plot(dims.index(shown[y].enough) + 0.36, y - 0.3, ".", color="black", markersize=4)
    left.set_xticks(range(len(dims)), [str(dim) for dim in dims])
    left.set_yticks(range(len(shown)), [_plain(_short(c.name)) for c in shown], fontsize=8)
    left.set_xlabel("embedding dimensions used")
    left.set_title("accuracy minus that at full width (points)", fontsize=9.5)
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    right.barh(range(len(shown)), [100 * c.gain for c in shown], color=COLORS["mrl"], height=0.7)
    right.axvline(0, color="#444444", linewidth=0.8)
    right.set_title(f"gain from {dims[0]} to {dims[-1]}", fontsize=10)
    right.set_xlabel("points")
    right.tick_params(axis="y", length=0)
    _frame(right)
    count = f"{len(shown)} of {len(needs)} classes" if len(shown) < len(needs) else f"{len(shown)} classes"
    figure.suptitle(
        f"{_plain(title)}: {count}, most dimensions needed first\ndot: within a point from here on", fontsize=10.5
    )
    return figure


def oracle(oracles: Mapping[Series, compare.Oracle]) -> Figure:
    """A bar a nested series: the share of test examples by the smallest dim that is right about them."""
    dims = sorted({dim for one in oracles.values() for dim in one.shares})
    shades = dict(zip(dims, matplotlib.colormaps["viridis"](np.linspace(0.92, 0.1, len(dims))), strict=True))
    figure = Figure(figsize=(8.6, 1.7 + 0.55 * len(oracles)), layout="constrained")
    ax = figure.subplots()
    for y, one in enumerate(oracles.values()):
        left = 0.0
        for dim, share in [*one.shares.items(), (None, one.never)]:
            color: Any = "#dddddd" if dim is None else shades[dim]
            ax.barh(y, 100 * share, left=100 * left, color=color, height=0.7, edgecolor="white", linewidth=0.5)
            if share >= 0.03:
                dark = dim is not None and np.mean(color[:3]) < 0.45
                ax.text(100 * (left + share / 2), y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8.5,
                        color="white" if dark else "black")  # fmt: skip
            left += share
        ax.plot([100 * one.full], [y - 0.45], marker="v", color="black", markersize=6)
    ax.set_yticks(range(len(oracles)), [_plain(series.label) for series in oracles])
    ax.set_ylim(len(oracles) - 0.5, -0.7)
    ax.set_xlim(0, 100)
    ax.set_xlabel("share of test examples (%) by the smallest dimension that is right about them")
    handles = [Line2D([], [], marker="s", linestyle="", markersize=8, color=shades[d], label=str(d)) for d in dims]
    handles += [
        Line2D([], [], marker="s", linestyle="", markersize=8, color="#dddddd", label="none is right"),
        Line2D([], [], marker="v", linestyle="", markersize=6, color="black", label="accuracy at full width"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def cascade(study: Study) -> Figure:
    """A panel a nested series: accuracy at each fixed dim, and where its cascades are, by the dims read on average."""
    shown = {s: found for s in study.series if (found := compare.adaptive(study, s))}
    figure, axes = _panels(len(shown))
    rules = {"greedy": ("#e69f00", "v"), "certified": ("#000000", "*")}
    for ax, (series, found) in zip(axes, shown.items(), strict=True):
        values = {dim: 100 * v.mean() for dim, v in study.values(series, "linear_top1").items() if dim in study.dims}
        color, marker, style = _look(study, series)
        ax.plot(list(values), list(values.values()), color=color, marker=marker, linestyle=style, label="fixed dims")
        for one in found:
            color, marker = rules[one.rule]
            x, y = one.dims.mean, 100 * one.accuracy
            reach = None if np.isnan(one.dims.low) else [[x - one.dims.low], [one.dims.high - x]]
            ax.errorbar([x], [y], xerr=reach, color=color, marker=marker, markersize=9, capsize=3, linestyle="",
                        label=f"{one.rule} cascade")  # fmt: skip
        ax.set_title(_plain(series.label), fontsize=11)
        _log_axis(ax, study.dims, "mean dimensions of the answer")
        ax.set_xlim(study.dims[0] / 1.2, study.dims[-1] * 1.2)  # the bars of two seeds may be longer
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    _label_rows(axes, "top-1 accuracy (%)")
    return figure


def _look(study: Study, series: Series) -> tuple[str, str, Any]:
    return (COLORS[series.arm], MARKERS[series.arm], STYLES[study.variants.index(series.variant) % len(STYLES)])


def _legend(figure: Figure, study: Study, series: Sequence[Series], title: str | None) -> None:
    """One legend below all panels, under a line that says how to read them."""
    handles = []
    for s in series:
        color, marker, style = _look(study, s)
        handles.append(Line2D([], [], color=color, marker=marker, linestyle=style, markersize=5, label=_plain(s.label)))
    columns = 5 if study.variants == (None,) and figure.get_figwidth() > 8 else 3
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, handlelength=3.2,
        title=title, title_fontsize=9,
    )  # fmt: skip


def _panels(count: int, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """`count` panels, at most three in a row; those that are left over are hidden."""
    columns = 2 if count == 4 else max(1, min(3, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.7 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for ax in axes[max(1, count) :]:
        ax.remove()
    return figure, axes[: max(1, count)]


def _label_rows(axes: Sequence[Axes], label: str) -> None:
    for ax in axes:
        place = ax.get_subplotspec()
        if place is not None and place.is_first_col():
            ax.set_ylabel(label)


def _log_axis(ax: Axes, ticks: Sequence[float], label: str) -> None:
    ax.set_xscale("log", base=2)
    shown = labelled(ticks)
    ax.set_xticks(list(ticks), [f"{tick:g}" if tick in shown else "" for tick in ticks], fontsize=9)
    ax.minorticks_off()
    ax.set_xlabel(label)
    _frame(ax)


def _frame(ax: Axes) -> None:
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def _plain(text: str) -> str:
    """`text` as matplotlib shows it literally: no mathematics, no signs that cannot be drawn on one line."""
    return "".join(sign if sign.isprintable() else " " for sign in text).replace("$", r"\$")
