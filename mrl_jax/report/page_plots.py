"""The plots of report.html, drawn by plotly. Same study, same bytes.

Names of classes, arms and runs are data and may contain anything: they are escaped for plotly's labels, which
understand some HTML.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from mrl_jax.report import compare
from mrl_jax.report.statistics import Difference, Interval
from mrl_jax.report.study import COLORS, MEASURES, NESTED, Comparison, Series, Study, labelled

PANELS = {metric: title[0].upper() + title[1:] for metric, title in MEASURES.items()}
STORED = {"knn_top1": "Nearest neighbour, top-1 accuracy", "map@10": "Retrieval, MAP@10"}
# Prefix of the metric → bytes a coordinate takes, name, marker.
PRECISIONS = {"": (4.0, "float32", "circle"), "int8_": (1.0, "int8", "square"), "bit_": (1 / 8, "1 bit", "diamond")}
HEATMAP_CLASSES = 30

# Marker of each arm.
SYMBOLS = {
    "mrl": "circle",
    "mrl_e": "square",
    "mrl_sampled": "pentagon",
    "ff": "triangle-up",
    "truncated": "triangle-down",
    "random_subset": "cross",
    "random_projection": "x",
    "pca": "diamond",
    "pca_whitened": "star",
    "untuned": "hexagon",
    "untuned_pca": "diamond-tall",
}
PATTERNS = {"solid": "", "dash": "/", "dot": ".", "dashdot": "x", "longdash": "\\"}  # dash of a line → of a bar


class Look(NamedTuple):
    color: str
    symbol: str
    dash: str


class Plot(NamedTuple):
    """A figure of the page. `only` is the key of the one series that it shows, if it shows one: they go together."""

    id: str
    title: str
    figure: go.Figure
    note: str = ""  # how to read it
    only: str | None = None
    narrow: bool = False  # two of them beside each other, where there is room


def accuracy(study: Study, looks: Mapping[Series, Look]) -> list[Plot]:
    plots: list[Plot] = []
    for metric, title in PANELS.items():
        figure = _figure(_dim_axis(study.dims), "test accuracy (%)" if study.classes else "test score (× 100)")
        for series in study.series:
            values = study.values(series, metric)
            if not values:
                continue
            color, symbol, dash = looks[series]
            dims = sorted(values)
            intervals, band = study.intervals(series, metric), study.band(series, metric)
            if band:
                at = sorted(band)
                figure.add_scatter(
                    x=at + at[::-1],
                    y=_percent([band[d][0] for d in at] + [band[d][1] for d in at[::-1]]),
                    fill="toself", fillcolor=_faint(color), mode="none", hoverinfo="skip", showlegend=False,
                    meta=[series.key],
                )  # fmt: skip
            figure.add_scatter(
                x=dims,
                y=_percent(np.mean(values[d]) for d in dims),
                # The box lists every arm's nearest point, which need not be of the same dim: so each says its own.
                customdata=[f"{bounds(intervals[d])} at {d}" if d in intervals else f"at {d}" for d in dims],
                hovertemplate="%{y:.2f} % %{customdata}",
                name=_label(series.label), legendgroup=series.key,
                line={"color": color, "dash": dash, "width": 1.8},
                marker={"symbol": [symbol + "-open" * (d not in study.dims) for d in dims], "size": 7},
                mode="lines+markers", meta=[series.key],
            )  # fmt: skip
        if figure.data:
            banded = any(trace.fill for trace in figure.data)
            bands = f" Bands: {study.bands}." if banded else ""
            note = f"Higher is better. Filled markers are the nesting dimensions, hollow ones lie between them.{bands}"
            plots.append(Plot(f"accuracy-{len(plots)}", title, figure, note))
    return plots


def differences(comparisons: Mapping[str, Mapping[str, Comparison]], looks: Mapping[Series, Look]) -> list[Plot]:
    """For every metric a plot for each thing compared with, a line a comparison."""
    plots: list[Plot] = []
    for metric, made in comparisons.items():
        for against in dict.fromkeys(c.against for c in made.values()):
            shown = {label: c for label, c in made.items() if c.against == against}
            figure = _difference(shown, looks, f"{len(plots)}")
            title = f"{PANELS.get(metric, metric).partition(',')[0]}: {against}"
            plots.append(Plot(f"difference-{len(plots)}", title, figure, narrow=True))
    return plots


def _difference(made: Mapping[str, Comparison], looks: Mapping[Series, Look], group: str) -> go.Figure:
    dims = sorted({d.dim for comparison in made.values() for d in comparison.differences})
    figure = _figure(_dim_axis(dims), "difference (points)", height=360)
    figure.update_yaxes(zeroline=True, zerolinecolor="#555", zerolinewidth=1.2)
    figure.update_layout(hovermode="closest")
    for i, (label, comparison) in enumerate(made.items()):
        # The comparisons stand beside each other, so that their intervals can be told apart.
        aside = 2 ** (0.3 * ((i + 0.5) / len(made) - 0.5))
        color, symbol, dash = looks[comparison.a]
        shared = {"meta": [comparison.a.key, comparison.b.key], "legendgroup": f"{group}-{i}", "name": _label(label)}
        points, cross = comparison.differences, comparison.crossover
        figure.add_scatter(
            x=[round(d.dim * aside, 3) for d in points],
            y=_percent(d.mean for d in points),
            error_y=_bars(points),
            customdata=[[d.dim, bounds(d)] for d in points],
            hovertemplate="at %{customdata[0]}: %{y:+.2f} %{customdata[1]}<extra>%{fullData.name}</extra>",
            mode="lines+markers", line={"color": color, "dash": dash, "width": 1.4},
            marker={"symbol": symbol, "size": 8, "color": color},
            **shared,
        )  # fmt: skip
        if cross.dim is not None:
            figure.add_scatter(
                x=[round(cross.dim, 2)], y=[0], mode="markers", showlegend=False,
                marker={"symbol": "x-thin", "size": 12, "line": {"color": color, "width": 3}},
                error_x=None if cross.low is None or cross.high is None else {
                    "type": "data", "symmetric": False, "array": [round(cross.high - cross.dim, 2)],
                    "arrayminus": [round(cross.dim - cross.low, 2)], "color": color, "thickness": 2,
                },
                text=[_label(compare.verdict(comparison))], hovertemplate="%{text}<extra></extra>", **shared,
            )  # fmt: skip
    return figure


def by_bytes(study: Study, looks: Mapping[Series, Look]) -> list[Plot]:
    plots: list[Plot] = []
    for metric, title in STORED.items():
        x = {"title": "bytes a stored embedding takes", "type": "log", "dtick": math.log10(4)}
        figure = _figure(x, "quality (%)")
        best = []
        for series in study.series:
            color, _, dash = looks[series]
            for prefix, (size, name, symbol) in PRECISIONS.items():
                values = {d: v for d, v in study.values(series, prefix + metric).items() if d in study.dims}
                if not values:
                    continue
                dims = sorted(values)
                stored = [math.ceil(d * size) for d in dims]
                quality = _percent(np.mean(values[d]) for d in dims)
                best += list(zip(stored, quality, strict=True))
                figure.add_scatter(
                    x=stored, y=quality, customdata=[f"{d} × {name}" for d in dims],
                    hovertemplate="%{y:.2f} %, %{x} bytes, %{customdata}<extra>%{fullData.name}</extra>",
                    name=_label(series.label), legendgroup=series.key, showlegend=prefix == "", meta=[series.key],
                    mode="lines+markers", line={"color": color, "dash": dash, "width": 1},
                    marker={"symbol": symbol, "size": 7},
                )  # fmt: skip
        if best:
            stairs = _front(best)
            figure.add_scatter(
                x=[stored for stored, _ in stairs], y=[quality for _, quality in stairs], mode="lines",
                line={"color": "#d0d0d0", "width": 6, "shape": "hv"}, zorder=-1, name="best for the bytes",
                hoverinfo="skip", meta=[],
            )  # fmt: skip
            figure.update_layout(hovermode="closest")
            note = (
                "Up and to the left is better. Circles are float32, squares int8 and diamonds one bit a coordinate; "
                "the grey stairs join what no other arm, dimension or precision beats."
            )
            plots.append(Plot(f"bytes-{len(plots)}", title, figure, note))
    return plots


def _front(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points (bytes, quality) that no other beats in both: smallest first, each better than all smaller ones."""
    front: list[tuple[int, float]] = []
    for stored, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1]:
            front.append((stored, quality))
    return front


def training(study: Study) -> list[Plot]:
    """A plot a series, a line a granularity (mean over seeds)."""
    plots: list[Plot] = []
    for series in study.series:
        points: defaultdict[int, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in study.log:
            if (line["split"], line["arm"], line["variant"]) == ("validation", series.arm, series.variant):
                for dim, value in line["accuracy"].items():
                    points[int(dim)][line["step"]].append(value)
        if not points:
            continue
        figure = _figure({"title": "step"}, "validation accuracy (%)", height=360)
        shades = sample_colorscale("Viridis", np.linspace(0.9, 0, len(points)))
        for dim, color in zip(sorted(points), shades, strict=True):
            steps = sorted(points[dim])
            figure.add_scatter(
                x=steps, y=_percent(float(np.mean(points[dim][step])) for step in steps), name=str(dim),
                hovertemplate="%{y:.2f} %", mode="lines", line={"color": color, "width": 1.8}, meta=[series.key],
            )  # fmt: skip
        plots.append(Plot(f"training-{len(plots)}", series.label, figure, only=series.key, narrow=True))
    return plots


def classes(study: Study) -> list[Plot]:
    """A heat map a nested series; its rows are the classes that need most dims."""
    plots: list[Plot] = []
    for series in (s for s in study.series if s.arm in NESTED):
        needs = compare.class_needs(study, series)[:HEATMAP_CLASSES]
        if not needs:
            continue
        dims = list(needs[0].accuracy)
        figure = _figure({"title": "dimensions", "type": "category"}, None, height=60 + 20 * len(needs))
        figure.add_heatmap(
            z=[_percent(c.accuracy[dim] - c.accuracy[dims[-1]] for dim in dims[:-1]) for c in needs],
            x=[str(dim) for dim in dims[:-1]],
            y=list(range(len(needs))),
            customdata=[
                [f"{_label(c.name)}<br>{c.examples} examples, {100 * c.accuracy[dim]:.1f} % right" for dim in dims[:-1]]
                for c in needs
            ],
            hovertemplate="%{customdata}<br>at %{x} dimensions,<br>%{z:+.1f} points<extra></extra>",
            texttemplate="%{z:+.0f}", colorscale="RdBu", zmid=0, showscale=False, xgap=1, ygap=1, meta=[series.key],
        )  # fmt: skip
        figure.update_yaxes(
            autorange="reversed", tickvals=list(range(len(needs))), ticktext=[_label(_short(c.name)) for c in needs],
            showgrid=False,
        )  # fmt: skip
        figure.update_layout(hovermode="closest")
        plots.append(Plot(f"classes-{len(plots)}", series.label, figure, only=series.key, narrow=True))
    return plots


def oracle(study: Study, looks: Mapping[Series, Look]) -> list[Plot]:
    """For every nested series, which share of examples is first classified right at which dim, and at none of them."""
    figure = _figure({"title": "smallest dimension that is right", "type": "category"}, "share of test examples (%)")
    for series in (s for s in study.series if s.arm in NESTED):
        found = compare.oracle(study, series)
        if found is None:
            continue
        look = looks[series]
        figure.add_bar(
            x=[*map(str, found.shares), "none"], y=_percent([*found.shares.values(), found.never]),
            name=_label(series.label), meta=[series.key], hovertemplate="%{y:.2f} %",
            marker={"color": look.color, "pattern": {"shape": PATTERNS[look.dash]}},
        )  # fmt: skip
    if not figure.data:
        return []
    figure.update_layout(barmode="group")
    note = (
        "Each test example is counted at the first dimension whose prediction is right. An oracle that always knew it "
        "would be right as often as the bars but “none” add up to; no cascade over these dimensions can do better."
    )
    return [Plot("oracle", "Smallest dimension at which the nested arm is right", figure, note)]


# ---- their looks ----------------------------------------------------------------------------------------------------


def _figure(x: Mapping[str, Any], y: str | None, height: int = 400) -> go.Figure:
    axis = {"gridcolor": "#e6e6e6", "linecolor": "#999", "zeroline": False, "automargin": True, "tickangle": 0}
    below = {"orientation": "h", "xref": "container", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "xaxis": {**axis, **x},
            "yaxis": {**axis, "title": y},
            "hovermode": "x unified",
            "hoverdistance": -1,
            "dragmode": False,  # a finger that scrolls the page past a plot shall not zoom it
            "legend": {**below, "itemdoubleclick": False},
        }
    )


def _dim_axis(dims: Sequence[int]) -> dict[str, Any]:
    shown = labelled(dims)
    text = [str(dim) if dim in shown else "" for dim in dims]
    return {"title": "embedding dimensions used", "type": "log", "tickvals": list(dims), "ticktext": text}


def looks_of(series: Sequence[Series]) -> dict[Series, Look]:
    """Colour and marker tell the arms apart, dashes their configurations."""
    variants = list(dict.fromkeys(s.variant for s in series))
    dashes = list(PATTERNS)
    return {s: Look(COLORS[s.arm], SYMBOLS[s.arm], dashes[variants.index(s.variant) % len(dashes)]) for s in series}


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _bars(points: Sequence[Difference]) -> dict[str, Any] | None:
    if any(math.isnan(d.low) for d in points):
        return None
    high, low = _percent(d.high - d.mean for d in points), _percent(d.mean - d.low for d in points)
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1.5, "width": 3}


def _percent(values: Iterable[float]) -> list[float]:
    return [round(100 * float(value), 2) for value in values]


def bounds(interval: Interval | Difference) -> str:
    """[low, high] in percent; nothing where one seed gives no interval."""
    if math.isnan(interval.low):
        return ""
    return f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]".replace("-", "−")


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"


def _label(text: str) -> str:
    """Text for plotly's labels, which understand tags, templates (`%{x}`) and numeric entities, but no `&quot;`."""
    return escape(text, quote=False).replace("%{", "&#37;{")
