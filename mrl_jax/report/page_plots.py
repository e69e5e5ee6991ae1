"""Panels of figures as plotly's data and layout. Same study, same bytes.

Labels and hover texts may contain anything: they are escaped for plotly, which understands some HTML.
"""

import math
from collections.abc import Iterable
from html import escape
from typing import Any, assert_never

import matplotlib
from matplotlib.colors import to_hex

from mrl_jax.report.figures import Axis, HeatMap, Lines, Look, Points

MARKERS = {
    "circle": "circle", "square": "square", "pentagon": "pentagon", "triangle-up": "triangle-up",
    "triangle-down": "triangle-down", "plus": "cross", "x": "x", "diamond": "diamond", "star": "star",
    "hexagon": "hexagon", "thin-diamond": "diamond-tall", "triangle-left": "triangle-left",
    "triangle-right": "triangle-right", "octagon": "octagon", "hexagon2": "hexagon2",
    "star-diamond": "star-diamond", "triangle-ne": "triangle-ne", "triangle-sw": "triangle-sw",
    "triangle-nw": "triangle-nw", "triangle-se": "triangle-se", "star-square": "star-square",
    "star-triangle-up": "star-triangle-up",
}  # fmt: skip
PATTERNS = {"solid": "", "dash": "/", "dot": ".", "dashdot": "x", "longdash": "\\"}
AXIS = {"gridcolor": "#e6e6e6", "linecolor": "#999", "zeroline": False, "automargin": True, "tickangle": 0}


def height(panel: Lines | HeatMap, small: bool) -> int:
    """In pixels."""
    if isinstance(panel, HeatMap):
        return 60 + 20 * len(panel.rows)
    return 360 if small else 400


def plot(panel: Lines | HeatMap) -> dict[str, Any]:
    """`data` and `layout` for `Plotly.newPlot`. A trace lists the keys of the series that it is about in `meta`."""
    match panel:
        case Lines():
            unified = "x unified" if panel.unified else "closest"
            zero = {"zeroline": True, "zerolinecolor": "#555", "zerolinewidth": 1.2} if panel.zero else {}
            layout = _layout(_axis(panel.x), {"title": {"text": panel.y}, **zero}, unified)
            return {"data": list(_lines(panel)), "layout": layout}
        case HeatMap():
            rows, columns = len(panel.rows), len(panel.columns)
            x = {"title": {"text": panel.x}, "tickvals": list(range(columns)), "ticktext": list(panel.columns)}
            x |= {"tickfont": {"size": 10}}
            y = {"tickvals": list(range(rows)), "ticktext": [_label(name) for name in panel.rows], "showgrid": False}
            layout = _layout(
                {**x, "range": [-0.5, columns - 0.5], "showgrid": False}, {**y, "range": [rows - 0.5, -0.5]}, "closest"
            )
            return {"data": _heat_map(panel), "layout": layout | {"showlegend": False}}
        case _:
            assert_never(panel)


def _lines(panel: Lines) -> Iterable[dict[str, Any]]:
    labelled = set()
    for points in panel.points:
        shared = {"type": "scatter", "legendgroup": _label(points.label), "meta": list(points.about)}
        if points.band:
            at, edges = list(points.band), list(points.band.values())
            yield {
                **shared, "x": at + at[::-1], "y": _numbers([*(e[0] for e in edges), *(e[1] for e in edges[::-1])]),
                "fill": "toself", "fillcolor": _faint(points.look.color), "mode": "none", "hoverinfo": "skip",
                "showlegend": False,
            }  # fmt: skip
        yield {
            **shared, **(_bar(points.look) if panel.x.categories else _line(points)), "name": _label(points.label),
            "showlegend": points.label not in labelled, "x": _numbers(points.x), "y": _numbers(points.y),
            **_hover(points.hover, panel.unified),
        }  # fmt: skip
        labelled.add(points.label)


def _bar(look: Look) -> dict[str, Any]:
    return {"type": "bar", "marker": {"color": look.color, "pattern": {"shape": PATTERNS[look.dash or "solid"]}}}


def _line(points: Points) -> dict[str, Any]:
    look, color = points.look, points.look.color
    modes = ["lines"] * (look.dash is not None) + ["markers"] * (look.marker is not None)
    line: dict[str, Any] = {"mode": "+".join(modes)}
    if look.dash is not None:
        line["line"] = {"color": color, "dash": look.dash, "width": look.width}
    if look.marker is not None:
        symbols: Any = [MARKERS[look.marker] + "-open" * (x in points.hollow) for x in points.x]
        line["marker"] = {"symbol": symbols if points.hollow else symbols[0], "size": 8, "color": color}
    for axis, bars, middles in (("error_x", points.x_bars, points.x), ("error_y", points.y_bars, points.y)):
        if bars:
            line[axis] = {
                "type": "data", "symmetric": False, "thickness": 1.5, "width": 3, "color": color,
                "array": _numbers(high - m for (_, high), m in zip(bars, middles, strict=True)),
                "arrayminus": _numbers(m - low for (low, _), m in zip(bars, middles, strict=True)),
            }  # fmt: skip
    return line


def _heat_map(panel: HeatMap) -> list[dict[str, Any]]:
    meta = [panel.only] if panel.only else []
    colors = [[k / 10, to_hex(matplotlib.colormaps["RdBu"](k / 10))] for k in range(11)]
    return [
        {
            "type": "heatmap", "meta": meta, "z": [_numbers(row) for row in panel.values], "xgap": 1, "ygap": 1,
            "customdata": [list(map(_label, row)) for row in panel.hover], "colorscale": colors, "zmid": 0,
            "hovertemplate": "%{customdata}<extra></extra>", "texttemplate": "%{z:+.0f}", "showscale": False,
        },
        {
            "type": "scatter", "meta": meta, "x": [column + 0.36 for column in panel.dots], "mode": "markers",
            "y": [row - 0.3 for row in range(len(panel.rows))], "marker": {"color": "#000", "size": 4},
            "hoverinfo": "skip",
        },
    ]  # fmt: skip


def _hover(texts: Iterable[str], unified: bool) -> dict[str, Any]:
    shown = [_label(text) for text in texts]
    if not shown:
        return {"hoverinfo": "skip"}
    return {
        "customdata": shown,
        "hovertemplate": "%{customdata}" + ("" if unified else "<extra>%{fullData.name}</extra>"),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    ticks: dict[str, Any] = {}
    if axis.log_ticks:
        ticks = {"type": "log", "tickvals": list(axis.log_ticks), "ticktext": axis.tick_labels}
    elif axis.categories:
        ticks = {"tickvals": list(range(len(axis.categories))), "ticktext": list(axis.categories)}
    return {"title": {"text": axis.label}, **ticks}


def _layout(x: dict[str, Any], y: dict[str, Any], hover: str) -> dict[str, Any]:
    below = {"orientation": "h", "xref": "container", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "xaxis": {**AXIS, **x},
        "yaxis": {**AXIS, **y},
        "hovermode": hover,
        "hoverdistance": -1,
        "dragmode": False,  # a finger that scrolls the page past a plot shall not zoom it
        "legend": {**below, "itemdoubleclick": False},
    }


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Rounded for JSON, which has no nan: plotly leaves a gap for null."""
    return [round(float(value), 2) if math.isfinite(value) else None for value in values]


def _label(text: str) -> str:
    """Text for plotly's labels, which understand tags, templates (`%{x}`) and numeric entities, but no `&quot;`."""
    return escape(text, quote=False).replace("%{", "&#37;{").replace("\n", "<br>")
