"""report.html: a study as one page that opens without a network, with plots to hover and arms to switch off.

All drawing is plotly's (plotly.js is embedded once). Names of classes, arms, runs and experiments are data and may
contain anything: they are escaped in HTML and in plotly's labels, which understand some HTML too, and the page's
content security policy lets nothing but its own two scripts run and fetches nothing. Same study, same bytes.
"""

import base64
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.io import to_json
from plotly.offline import get_plotlyjs

from mrl_jax import statistics
from mrl_jax.study import NESTED, Comparison, Series, Study

PANELS = {"linear_top1": "Classifier, top-1 accuracy", "knn_top1": "Nearest neighbour, top-1 accuracy"}
STORED = {"knn_top1": "Nearest neighbour, top-1 accuracy", "map@10": "Retrieval, MAP@10"}
# Prefix of the metric → bytes a coordinate takes, name, marker.
PRECISIONS = {"": (4.0, "float32", "circle"), "int8_": (1.0, "int8", "square"), "bit_": (1 / 8, "1 bit", "diamond")}
HEATMAP_CLASSES = 30


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


def html(study: Study, comparisons: Mapping[str, Mapping[str, Comparison]]) -> str:
    """The page. `comparisons` is metric → label → comparison of two arms, as `mrl_jax.report` makes them."""
    looks = _looks(study.series)
    sections: dict[str, Sequence[Plot | str]] = {
        "Accuracy against dimension": _accuracy(study, looks),
        "Differences": [*_differences(comparisons, looks), *(_table(m, comparisons[m]) for m in comparisons)],
        "Quality against bytes": _bytes(study, looks),
        "Validation accuracy over training": _training(study),
        "Classes that need more dimensions": _classes(study),
        "How many dimensions does an example need?": _oracle(study, looks),
    }
    plots = [part for parts in sections.values() for part in parts if isinstance(part, Plot)]
    figures = ",".join(f'"{plot.id}":{to_json(plot.figure, engine="json")}' for plot in plots)
    plotly = get_plotlyjs()
    body = "\n".join(
        f"<section>\n<h2>{heading}</h2>\n{''.join(map(_element, parts))}</section>"
        for heading, parts in sections.items()
        if parts
    )
    policy = (
        f"default-src 'none'; script-src {_sha(plotly)} {_sha(SCRIPT)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(study.title)}</title>
<style>{STYLE}</style>
<script>{plotly}</script>
</head>
<body>
<header>
<h1>{escape(study.title)}</h1>
{_summary(study)}
</header>
{_controls(looks)}
<main>
{body}
</main>
<script type="application/json" id="figures">{{{figures}}}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _summary(study: Study) -> str:
    seeds = f"{study.seeds} seeds" if study.seeds > 1 else "one seed"
    arms = ", ".join(series.label for series in study.series)
    examples = f"{len(study.labels):,} test examples" if len(study.labels) else "test examples"
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in study.notes)
    return (
        f"<p>Experiment <b>{escape(study.name)}</b>: {escape(arms)} on the same {examples} of {len(study.classes):,} "
        f"classes, {seeds}, at {', '.join(map(str, study.dims))} of {study.width} dimensions. "
        "Point at a plot to read its values; an arm switched off disappears from all plots.</p>"
        + (f'\n<ul class="notes">\n{notes}</ul>' if notes else "")
    )


def _controls(looks: Mapping[Series, Look]) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" value="{escape(series.key)}" checked style="accent-color:{look.color}">'
        f"{escape(series.label)}</label>"
        for series, look in looks.items()
    )
    return f'<form class="controls" autocomplete="off" aria-label="Arms shown">{boxes}</form>'


def _element(part: Plot | str) -> str:
    if isinstance(part, str):
        return part
    only = f' class="narrow" data-only="{escape(part.only)}"' if part.only else ""
    note = f"<figcaption>{escape(part.note)}</figcaption>\n" if part.note else ""
    return (
        f"<figure{only}>\n<h3>{escape(part.title)}</h3>\n"
        f'<div class="plot" id="{part.id}" style="height:{part.figure.layout.height}px"></div>\n{note}</figure>\n'
    )


def _scrolling(caption: str, head: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A table, of HTML, that scrolls sideways by itself where the screen is narrower."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n' for name, cells in rows
    )
    return (
        f'<p class="caption">{caption}</p>\n<div class="scroll" tabindex="0"><table>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table></div>\n"
    )


# ---- the plots ------------------------------------------------------------------------------------------------------


def _accuracy(study: Study, looks: Mapping[Series, Look]) -> list[Plot]:
    plots: list[Plot] = []
    for metric, title in PANELS.items():
        figure = _figure(_dim_axis(study.dims), "test accuracy (%)")
        for series in study.series:
            values = study.values(series, metric)
            if not values:
                continue
            color, symbol, dash = looks[series]
            dims = sorted(values)
            intervals = _intervals(study, series, metric)
            if intervals:
                at = sorted(intervals)
                figure.add_scatter(
                    x=at + at[::-1],
                    y=_percent([intervals[d].low for d in at] + [intervals[d].high for d in at[::-1]]),
                    fill="toself", fillcolor=_faint(color), mode="none", hoverinfo="skip", showlegend=False,
                    meta=[series.key],
                )  # fmt: skip
            figure.add_scatter(
                x=dims,
                y=_percent(np.mean(values[d]) for d in dims),
                # The box lists every arm's nearest point, which need not be of the same dim: so each says its own.
                customdata=[f"{_range(intervals[d])} at {d}" if d in intervals else f"at {d}" for d in dims],
                hovertemplate="%{y:.2f} % %{customdata}",
                name=_label(series.label), legendgroup=series.key,
                line={"color": color, "dash": dash, "width": 1.8},
                marker={"symbol": [symbol + "-open" * (d not in study.dims) for d in dims], "size": 7},
                mode="lines+markers", meta=[series.key],
            )  # fmt: skip
        if figure.data:
            banded = any(trace.fill for trace in figure.data)
            band = " Bands are 95 % intervals over seeds and test examples." if banded else ""
            note = f"Higher is better. Filled markers are the nesting dimensions, hollow ones lie between them.{band}"
            plots.append(Plot(f"accuracy-{len(plots)}", title, figure, note))
    return plots


def _intervals(study: Study, series: Series, metric: str) -> dict[int, statistics.Interval]:
    """The interval at every nesting dim that has one; none when there is one seed."""
    outcomes = study.outcomes(series, metric)
    intervals = {dim: statistics.mean_interval(outcomes[dim]) for dim in outcomes if dim in study.dims}
    return {dim: interval for dim, interval in intervals.items() if not math.isnan(interval.low)}


def _differences(comparisons: Mapping[str, Mapping[str, Comparison]], looks: Mapping[Series, Look]) -> list[Plot]:
    plots: list[Plot] = []
    for metric, made in comparisons.items():
        dims = sorted({d.dim for comparison in made.values() for d in comparison.differences})
        if not dims:
            continue
        figure = _figure(_dim_axis(dims), "difference (percentage points)")
        figure.update_yaxes(zeroline=True, zerolinecolor="#555", zerolinewidth=1.2)
        figure.update_layout(hovermode="closest")
        for i, (label, comparison) in enumerate(made.items()):
            # The comparisons stand beside each other, so that their intervals can be told apart.
            aside = 2 ** (0.5 * ((i + 0.5) / len(made) - 0.5))
            color, symbol, dash = looks[comparison.a]
            shared = {"meta": [comparison.a.key, comparison.b.key], "legendgroup": str(i)}
            inside, points = looks[comparison.b].color, comparison.differences
            figure.add_scatter(
                x=[round(d.dim * aside, 3) for d in points],
                y=_percent(d.mean for d in points),
                error_y=_bars(points),
                customdata=[[d.dim, _range(d)] for d in points],
                hovertemplate="at %{customdata[0]}: %{y:+.2f} %{customdata[1]}<extra>%{fullData.name}</extra>",
                name=_label(label), mode="lines+markers", line={"color": color, "dash": dash, "width": 1},
                # The line has the colour of the first arm, the marker's inside that of the second.
                marker={"symbol": symbol, "size": 9, "color": inside, "line": {"color": color, "width": 2}},
                **shared,
            )  # fmt: skip
            cross = comparison.crossover
            if cross.dim is not None:
                figure.add_scatter(
                    x=[round(cross.dim, 2)], y=[0], mode="markers", showlegend=False, name=_label(label),
                    marker={"symbol": "x-thin", "size": 12, "line": {"color": color, "width": 3}},
                    error_x=None if cross.low is None or cross.high is None else {
                        "type": "data", "symmetric": False, "array": [round(cross.high - cross.dim, 2)],
                        "arrayminus": [round(cross.dim - cross.low, 2)], "color": color, "thickness": 2,
                    },
                    text=[_label(verdict(comparison))], hovertemplate="%{text}<extra></extra>", **shared,
                )  # fmt: skip
        note = (
            "Above zero the first arm is better, below zero the second. Bars are 95 % intervals of the paired "
            "difference; a cross on the zero line marks where the two change places, with its interval."
        )
        plots.append(Plot(f"difference-{len(plots)}", PANELS.get(metric, metric), figure, note))
    return plots


def _table(metric: str, made: Mapping[str, Comparison]) -> str:
    """Differences in percentage points, a row a dim and a column a comparison, with Holm's p."""
    by_dim = {label: {d.dim: d for d in comparison.differences} for label, comparison in made.items()}
    dims = sorted({dim for column in by_dim.values() for dim in column})
    rows = [(str(dim), [_cell(column.get(dim)) for column in by_dim.values()]) for dim in dims]
    if any(comparison.tax for comparison in made.values()):
        rows.append(("tax", [_cell(comparison.tax) for comparison in made.values()]))
    rows.append(("verdict", [f"<small>{escape(verdict(comparison))}</small>" for comparison in made.values()]))
    caption = (
        f"{escape(PANELS.get(metric, metric))}: difference in percentage points [95 % interval] and p after Holm’s "
        "correction over the dimensions; bold where p &lt; 0.05. Tax: what the first arm loses at full width."
    )
    return _scrolling(caption, ["dim", *map(escape, made)], rows)


def _cell(difference: statistics.Difference | None) -> str:
    if difference is None:
        return "–"
    text = f"{100 * difference.mean:+.2f} {_range(difference)}".rstrip()
    p = difference.p_holm
    if math.isnan(p):
        return text
    text = f"<b>{text}</b>" if p < 0.05 else text
    return f"{text}<br><small>p {'&lt; 0.001' if p < 0.001 else f'= {p:.3f}'}</small>"


def verdict(comparison: Comparison) -> str:
    """Where the first arm wins over the second, in words."""
    a, b, cross = comparison.a.label, comparison.b.label, comparison.crossover
    at = "" if cross.dim is None else f" {cross.dim:.0f} dimensions"
    if cross.dim is not None and cross.low is not None and cross.high is not None:
        at += f" [{cross.low:.0f}, {cross.high:.0f}]"
    return {
        "wins_below": f"{a} is better below{at}",
        "wins_above": f"{a} is better above{at}",
        "wins_everywhere": f"{a} is better at every dimension",
        "wins_nowhere": f"{b} is better at every dimension",
        "cannot_settle": "the data do not settle it",
    }[cross.verdict]


def _bytes(study: Study, looks: Mapping[Series, Look]) -> list[Plot]:
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


def _training(study: Study) -> list[Plot | str]:
    plots: list[Plot | str] = []
    for series in study.series:
        points: defaultdict[int, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in study.log:
            if (line["split"], line["arm"], line["variant"]) == ("validation", series.arm, series.variant):
                for dim, accuracy in line["accuracy"].items():
                    points[int(dim)][line["step"]].append(accuracy)
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
        plots.append(Plot(f"training-{len(plots)}", series.label, figure, only=series.key))
    note = "A line a dimension, the mean over seeds: where a line still rises, longer training may help."
    return [*plots, f'<p class="note">{note}</p>\n'] if plots else []


def _classes(study: Study) -> list[Plot | str]:
    """A heat map for every nested series; its rows are the classes that lose most, averaged over the dims."""
    labels = study.labels
    present, examples = np.unique(labels, return_counts=True)
    plots: list[Plot | str] = []
    for series in (s for s in study.series if s.arm in NESTED):
        right = _right(study, series)
        if len(right) < 2:
            continue
        sums = [np.bincount(labels, weights=r.mean(axis=0))[present] for r in right.values()]
        accuracy = np.stack(sums, axis=1) / examples[:, None]  # [classes, dims]
        drop = (accuracy - accuracy[:, -1:])[:, :-1]
        rows = np.argsort(drop.mean(axis=1), kind="stable")[:HEATMAP_CLASSES]
        names = [study.classes[present[row]] for row in rows]
        figure = _figure({"title": "dimensions", "type": "category"}, None, height=60 + 20 * len(rows))
        figure.add_heatmap(
            z=[_percent(drop[row]) for row in rows],
            x=[str(dim) for dim in right][:-1],
            y=list(range(len(rows))),
            customdata=[
                [f"{_label(name)}<br>{examples[row]} examples, {a:.1f} % right" for a in _percent(accuracy[row, :-1])]
                for name, row in zip(names, rows, strict=True)
            ],
            hovertemplate="%{customdata}<br>at %{x} dimensions,<br>%{z:+.1f} points<extra></extra>",
            texttemplate="%{z:+.0f}", colorscale="RdBu", zmid=0, showscale=False, xgap=1, ygap=1, meta=[series.key],
        )  # fmt: skip
        figure.update_yaxes(
            autorange="reversed", tickvals=list(range(len(rows))), ticktext=[_label(_short(name)) for name in names],
            showgrid=False,
        )  # fmt: skip
        figure.update_layout(hovermode="closest")
        plots.append(Plot(f"classes-{len(plots)}", series.label, figure, only=series.key))
    note = (
        "Accuracy of a class at a dimension minus its accuracy at the full width, in percentage points, largest drops "
        f"first ({min(HEATMAP_CLASSES, len(present))} of {len(present)} classes): a red row needs more dimensions."
    )
    return [*plots, f'<p class="note">{note}</p>\n'] if plots else []


def _right(study: Study, series: Series) -> dict[int, np.ndarray]:
    """Nesting dim, smallest first → whether the prediction is right, bool [S, n]."""
    predictions = study.predictions(series)
    return {dim: predictions[dim] == study.labels for dim in sorted(predictions) if dim in study.dims}


def _oracle(study: Study, looks: Mapping[Series, Look]) -> list[Plot | str]:
    """For every nested series, which share of examples is first classified right at which dim, and at none of them."""
    figure = _figure({"title": "smallest dimension that is right", "type": "category"}, "share of test examples (%)")
    rows = []
    for series in (s for s in study.series if s.arm in NESTED):
        right = _right(study, series)
        if not right:
            continue
        look = looks[series]
        stacked = np.stack(list(right.values()))  # [dims, S, n]
        solved = stacked.any(axis=0)
        first = np.where(solved, stacked.argmax(axis=0), len(right))
        shares = [float((first == i).mean()) for i in range(len(right) + 1)]
        figure.add_bar(
            x=[*map(str, right), "none"], y=_percent(shares), name=_label(series.label), meta=[series.key],
            marker={"color": look.color, "pattern": {"shape": PATTERNS[look.dash]}}, hovertemplate="%{y:.2f} %",
        )  # fmt: skip
        full, oracle = 100 * stacked[-1].mean(), 100 * solved.mean()
        rows.append((escape(series.label), [f"{full:.2f}", f"{oracle:.2f}", f"{oracle - full:+.2f}"]))
    if not rows:
        return []
    figure.update_layout(barmode="group")
    note = (
        "Each test example is counted at the first dimension whose prediction is right. An oracle that always knew it "
        "would be right as often as the bars but “none” add up to; no cascade over these dimensions can do better."
    )
    table = _scrolling("Test accuracy (%).", ["arm", "full width", "oracle", "gain"], rows)
    return [Plot("oracle", "Smallest dimension at which the nested arm is right", figure, note), table]


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
    ticks = {"tickvals": list(dims), "ticktext": [str(dim) for dim in dims]}
    return {"title": "embedding dimensions used", "type": "log", **ticks}


def _looks(series: Sequence[Series]) -> dict[Series, Look]:
    """Colour and marker tell the arms apart, dashes their configurations."""
    variants = list(dict.fromkeys(s.variant for s in series))
    dashes = list(PATTERNS)
    return {s: Look(*LOOKS[s.arm], dashes[variants.index(s.variant) % len(dashes)]) for s in series}


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _bars(points: Sequence[statistics.Difference]) -> dict[str, Any] | None:
    if any(math.isnan(d.low) for d in points):
        return None
    high, low = _percent(d.high - d.mean for d in points), _percent(d.mean - d.low for d in points)
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1.5, "width": 3}


def _percent(values: Iterable[float]) -> list[float]:
    return [round(100 * float(value), 2) for value in values]


def _range(interval: statistics.Interval | statistics.Difference) -> str:
    """[low, high] in percent; nothing where one seed gives no interval."""
    return "" if math.isnan(interval.low) else f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"


def _label(text: str) -> str:
    """Text for plotly's labels, which understand tags, templates (`%{x}`) and numeric entities, but no `&quot;`."""
    return escape(text, quote=False).replace("%{", "&#37;{")


def _sha(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# Colours of Okabe and Ito, and one of Tol: told apart by colour-blind readers too.
LOOKS = {
    "mrl": ("#0072b2", "circle"),
    "mrl_e": ("#d55e00", "square"),
    "mrl_sampled": ("#56b4e9", "pentagon"),
    "ff": ("#009e73", "triangle-up"),
    "truncated": ("#e69f00", "triangle-down"),
    "random_subset": ("#999999", "cross"),
    "random_projection": ("#000000", "x"),
    "pca": ("#cc79a7", "diamond"),
    "pca_whitened": ("#882255", "star"),
}
PATTERNS = {"solid": "", "dash": "/", "dot": ".", "dashdot": "x", "longdash": "\\"}  # dash of a line → of a bar

STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:0 1rem 3rem;max-width:46.5rem;font:1rem/1.55 system-ui,sans-serif;color:#222;background:#fff;
  overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:2rem 0 .5rem}
h2{font-size:1.25rem;margin:3rem 0 0;padding-top:.75rem;border-top:1px solid #ddd}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
.notes,.note,figcaption,.caption,td small{color:#555}
.notes{padding-left:1.2rem}
figure{margin:0;min-width:0;break-inside:avoid}
.note,figcaption,.caption{font-size:.875rem;margin:.4rem 0}
.caption{margin-top:1.2rem}
.narrow{display:inline-block;width:min(100%,21rem);margin-right:1rem;vertical-align:top}
.narrow[hidden]{display:none}
.plot{width:100%}
.controls{position:sticky;top:0;z-index:10;display:flex;flex-wrap:wrap;gap:.2rem 1rem;padding:.5rem 0;background:#fff;
  border-bottom:1px solid #ddd;font-size:.9rem}
.controls label{white-space:nowrap;cursor:pointer}
.controls input{margin:0 .35rem 0 0;vertical-align:-.1em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #e6e6e6;white-space:nowrap;
  overflow-wrap:break-word}
td>small:only-child{display:block;white-space:normal;min-width:9rem}
@media (max-width:40rem){.controls{flex-wrap:nowrap;overflow-x:auto}}
@media print{
  @page{margin:1cm}
  .controls{display:none}
  body{padding:0}
  .scroll{overflow:visible}
  th,td{white-space:normal}
  th,td{padding-right:.4rem}
  td>small:only-child{min-width:0}
  table{font-size:.7rem}
  tr{break-inside:avoid}
  .note{break-before:avoid}
  h2,h3,.caption{break-after:avoid}
}
"""

SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const boxes = [...document.querySelectorAll(".controls input")];

// A trace lists in `meta` the arms it is about; it is shown while all of them are switched on.
function show() {
  const off = new Set(boxes.filter(box => !box.checked).map(box => box.value));
  for (const figure of document.querySelectorAll("[data-only]")) figure.hidden = off.has(figure.dataset.only);
  for (const id of Object.keys(figures)) {
    const plot = document.getElementById(id);
    Plotly.restyle(plot, {visible: plot.data.map(trace => trace.meta.some(key => off.has(key)) ? "legendonly" : true)});
  }
}

for (const [id, {data, layout}] of Object.entries(figures)) {
  const plot = document.getElementById(id);
  Plotly.newPlot(plot, data, layout, {responsive: true, displayModeBar: false, typesetMath: false});
  plot.on("plotly_legendclick", ({curveNumber}) => {
    const keys = plot.data[curveNumber].meta;
    const box = boxes.find(box => box.value === keys[0]);
    if (keys.length !== 1 || plot.closest("[data-only]")) return true;  // plotly's own: this line, in this plot
    box.checked = !box.checked;
    show();
    return false;
  });
}
for (const box of boxes) box.addEventListener("change", show);
"""
