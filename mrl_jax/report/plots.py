"""Figures as PNG and SVG files, drawn by matplotlib: same study, same bytes."""

import io
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, assert_never

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mrl_jax.report.figures import Axis, Figure, HeatMap, Lines, Look, Points
from mrl_jax.system import files

MARKERS: dict[str | None, Any] = {
    "circle": "o", "square": "s", "pentagon": "p", "triangle-up": "^", "triangle-down": "v", "plus": "P", "x": "X",
    "diamond": "D", "star": "*",
    "hexagon": "h", "thin-diamond": "d", "triangle-left": "<", "triangle-right": ">", "octagon": "8", "hexagon2": "H",
    "star-diamond": (4, 1, 0),  # a star of four points
    # turned:
    "triangle-ne": (3, 0, -45), "triangle-sw": (3, 0, 135), "triangle-nw": (3, 0, 45), "triangle-se": (3, 0, -135),
    "star-square": (4, 1, 45), "star-triangle-up": (3, 1, 0),
    None: "",
}  # fmt: skip
STYLES: dict[str | None, Any] = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5)), "longdash": (0, (9, 2)),
    None: "",
}  # fmt: skip
HATCHES = {"solid": "", "dash": "//", "dot": "..", "dashdot": "xx", "longdash": "\\\\"}
DARK = "#444444"
TITLE_CHARACTERS_PER_INCH = 10  # of a panel's width; longer titles would run into the next panel's


def save(figures: Iterable[Figure], directory: Path) -> list[Path]:
    """Write each figure as `directory/<name>.png` and `.svg`; returns the files."""
    written = []
    # Salt and dates are fixed so that the files depend on the numbers alone.
    with matplotlib.rc_context({"svg.hashsalt": "mrl_jax", "svg.fonttype": "none"}):
        for figure in figures:
            canvas = draw(figure)
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                content = io.BytesIO()
                canvas.savefig(content, format=suffix, dpi=150, metadata=metadata)
                written.append(directory / f"{figure.name}.{suffix}")
                files.write(written[-1], content.getvalue())
    return written


def draw(figure: Figure) -> Canvas:
    """The panels, at most three in a row, over one legend and the note; an empty frame where there are none."""
    count = max(1, len(figure.panels))
    columns = 2 if count == 4 else min(3, count)
    rows = -(-count // columns)
    sizes = [_size(panel, figure.inches) for panel in figure.panels] or [figure.inches]
    width, height = columns * max(w for w, _ in sizes), rows * max(h for _, h in sizes)
    legend = _legend(figure)
    across = max(1, min(len(legend), int(width / (0.85 + 0.075 * max(map(len, legend), default=0)))))
    note = textwrap.fill(_plain(figure.note), int(14 * width))
    canvas = Canvas(
        figsize=(width, height + 0.2 * (-(-len(legend) // across) + note.count("\n"))), layout="constrained"
    )
    axes = list(canvas.subplots(rows, columns, squeeze=False, sharey=figure.shared_y).flat)
    for ax, panel in zip(axes, figure.panels, strict=False):
        characters = int(TITLE_CHARACTERS_PER_INCH * _size(panel, figure.inches)[0])
        ax.set_title(textwrap.fill(_plain(panel.title), characters), fontsize=11)
        match panel:
            case Lines():
                _draw_lines(ax, panel)
            case HeatMap():
                _draw_heat_map(ax, panel)
            case _:
                assert_never(panel)
        if figure.shared_y and not ax.get_subplotspec().is_first_col():
            ax.set_ylabel("")
    for ax in axes[count:]:
        ax.remove()
    if legend or note:
        canvas.legend(
            legend.values(), map(_plain, legend), loc="outside lower center", ncols=across, frameon=False, fontsize=9,
            handlelength=3.2, title=note, title_fontsize=9,
        )  # fmt: skip
    return canvas


def _size(panel: Lines | HeatMap, of_lines: tuple[float, float]) -> tuple[float, float]:
    """Width and height in inches."""
    match panel:
        case Lines():
            return of_lines
        case HeatMap():
            return 2.6 + 0.55 * len(panel.columns), 1.2 + 0.27 * len(panel.rows)
        case _:
            assert_never(panel)


def _legend(figure: Figure) -> dict[str, Any]:
    """Label → handle, each label once."""
    handles: dict[str, Any] = {}
    for panel in figure.panels:
        match panel:
            case Lines():
                bars = bool(panel.x.categories)
                for points in panel.points:
                    look = points.look
                    handle = Patch(**_face(look)) if bars else Line2D([], [], **_line(look))
                    handles.setdefault(points.label, handle)
            case HeatMap():
                pass
            case _:
                assert_never(panel)
    return handles


def _line(look: Look) -> dict[str, Any]:
    return {
        "color": look.color, "linestyle": STYLES[look.dash], "linewidth": look.width, "marker": MARKERS[look.marker],
        "markersize": 5 if look.dash else 7,
    }  # fmt: skip


def _face(look: Look) -> dict[str, Any]:
    return {"facecolor": look.color, "hatch": HATCHES[look.dash or "solid"], "edgecolor": "white"}


def _draw_lines(ax: Axes, panel: Lines) -> None:
    if panel.zero:
        ax.axhline(0, color=DARK, linewidth=1)
    for i, points in enumerate(panel.points):
        if panel.x.categories:
            width = 0.8 / len(panel.points)
            ax.bar(np.arange(len(points.y)) - 0.4 + i * width, points.y, width, align="edge", **_face(points.look))
        else:
            _draw_points(ax, points)
    _label_axis(ax, panel.x)
    ax.set_ylabel(panel.y)
    if panel.y_range:
        ax.set_ylim(*panel.y_range)  # bands may be wide
    _frame(ax)


def _draw_points(ax: Axes, points: Points) -> None:
    line, color = _line(points.look), points.look.color
    if points.band:
        low, high = np.array(list(points.band.values())).T
        ax.fill_between(list(points.band), low, high, color=color, alpha=0.12, linewidth=0)
    ax.plot(points.x, points.y, **(line | {"marker": "" if points.hollow else line["marker"]}))
    for hollow in (False, True) if points.hollow else ():
        at = [i for i, x in enumerate(points.x) if (x in points.hollow) == hollow]
        ax.plot(
            [points.x[i] for i in at], [points.y[i] for i in at], linestyle="", color=color, marker=line["marker"],
            markersize=5, markerfacecolor="white" if hollow else color,
        )  # fmt: skip
    if points.y_bars:
        ax.vlines(points.x, *zip(*points.y_bars, strict=True), color=color, linewidth=1.4)
    if points.x_bars:
        ax.hlines(points.y, *zip(*points.x_bars, strict=True), color=color, linewidth=1.8)


def _draw_heat_map(ax: Axes, panel: HeatMap) -> None:
    values = np.array(panel.values)
    limit = max(1.0, float(np.abs(values).max()))
    ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            color = "white" if abs(value) > 0.6 * limit else "black"
            text = f"{value:+.0f}".replace("-", "−") if round(value) else "0"
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=color)
        ax.plot(panel.dots[y] + 0.36, y - 0.3, ".", color="black", markersize=4)
    ax.set_xticks(range(len(panel.columns)), panel.columns)
    ax.set_yticks(range(len(panel.rows)), [_plain(name) for name in panel.rows], fontsize=8)
    ax.set_xlabel(panel.x)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _label_axis(ax: Axes, axis: Axis) -> None:
    if axis.log_ticks:
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(axis.log_ticks), axis.tick_labels, fontsize=9)
        ax.minorticks_off()
    if axis.categories:
        ax.set_xticks(range(len(axis.categories)), axis.categories)
    ax.set_xlabel(axis.label)


def _frame(ax: Axes) -> None:
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    """`text` as matplotlib shows it literally: no mathematics, no characters that cannot be drawn on one line."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
