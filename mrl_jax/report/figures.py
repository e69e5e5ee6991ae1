"""What each figure of a report shows, described once: `plots.py` draws it by matplotlib, `page_plots.py` by plotly.

Scores are in percent, differences in percentage points. Names of classes, arms and runs are plain text that may contain
anything; who draws them escapes them.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from mrl_jax.arms import ARMS
from mrl_jax.evaluate import metrics as table
from mrl_jax.report import cells, compare
from mrl_jax.report.compare import PRECISIONS, RULES, Comparison
from mrl_jax.report.study import Series, Study

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")  # of the variants, in turn
DIMS = "embedding dimensions used"
MAX_CLASSES = 25  # rows of a heat map
MAX_CLASS_CHARACTERS = 20
MAX_TICKS = 9


@dataclass(frozen=True)
class Look:
    color: str
    marker: str | None = None  # as in `arms.ArmType`
    dash: str | None = "solid"  # of `DASHES`; None: points without a line
    width: float = 1.6


@dataclass(frozen=True)
class Points:
    """A line of a panel, or points. The lines of one label share an entry of the legend."""

    label: str
    about: tuple[str, ...]  # keys of the series: on the page it goes when one of them is switched off
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    hover: Sequence[str] = ()  # what is said of each point; empty: nothing
    hollow: Collection[float] = ()  # the x of hollow markers
    band: Mapping[int, tuple[float, float]] = field(default_factory=dict)  # x → lower and upper edge
    x_bars: Sequence[tuple[float, float]] = ()  # the ends of each point's bar
    y_bars: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Axis:
    label: str
    log_ticks: Sequence[float] = ()  # of a logarithmic axis; a linear one finds its own
    categories: Sequence[str] = ()  # of bars: x counts them from 0

    @property
    def tick_labels(self) -> list[str]:
        """Texts for the ticks that there is room to label: powers of two first, others not too close to them."""
        chosen: list[float] = []
        for tick in sorted(self.log_ticks, key=lambda tick: (not math.log2(tick).is_integer(), tick)):
            if all(abs(math.log2(tick / other)) > 0.4 for other in chosen):
                chosen.append(tick)
        return [f"{tick:g}" if tick in chosen else "" for tick in self.log_ticks]


@dataclass(frozen=True)
class Lines:
    """Lines and points, or bars beside each other where x has categories."""

    title: str
    x: Axis
    y: str
    points: Sequence[Points]
    only: str | None = None  # the key of the one series that it shows: they go together
    zero: bool = False  # with a line at y = 0
    unified: bool = False  # pointing at an x says what all lines are there
    y_range: tuple[float, float] | None = None  # where it cannot be zoomed


@dataclass(frozen=True)
class HeatMap:
    """Values around 0, row by row."""

    title: str
    x: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    hover: Sequence[Sequence[str]]
    dots: Sequence[int]  # the marked column of each row
    only: str | None = None


@dataclass(frozen=True)
class Figure:
    name: str  # of its files, and a part of its place in the page
    title: str  # above its panels on the page
    panels: Sequence[Lines | HeatMap]
    note: str  # how to read it
    inches: tuple[float, float] = (4.6, 3.8)  # of a panel with lines
    shared_y: bool = True
    small: bool = False  # two panels fit beside each other on the page


def look_of(study: Study, series: Series) -> Look:
    """Colour and marker tell the arms apart, dashes their variants."""
    arm = ARMS[series.arm]
    return Look(arm.color, arm.marker, DASHES[study.variants.index(series.variant) % len(DASHES)])


def title_of(metric: str) -> str:
    title = table.title(metric)
    return title[:1].upper() + title[1:]


def accuracy(study: Study) -> Figure:
    """One panel per compared metric, one line per series."""
    return _curves(study, "accuracy")


def generalisation(study: Study) -> Figure:
    """As `accuracy`, of the metrics for few examples, rare classes, unknown and damaged inputs: each panel has a frame
    of its own, as common and rare classes lie far apart."""
    return _curves(study, "generalisation", shared_y=False)


def _curves(study: Study, name: str, shared_y: bool = True) -> Figure:
    """The panels of the compared metrics that belong to the figure `name`."""
    y = "test accuracy (%)" if study.classes else "test score (× 100)"
    shown_here = [metric for metric in study.compared if (known := table.find(metric)) and known.figure == name]
    means = {metric: {s: _means(study, s, metric) for s in study.series} for metric in shown_here}
    # The compared arms set the frame: others may fall so low that these could not be told apart.
    framing = [s for s in study.series if s.main] or list(study.series)
    panels = []
    for metric, by_series in means.items():
        frame = _frame([by_metric[s] for by_metric in (means.values() if shared_y else [by_series]) for s in framing])
        lines = []
        for series, values in by_series.items():
            intervals = study.intervals(series, metric)
            bounds = {dim: f" [{cells.percent(i.low)}, {cells.percent(i.high)}]" for dim, i in intervals.items()}
            if values:
                lines.append(
                    Points(
                        series.label, (series.key,), look_of(study, series), list(values), list(values.values()),
                        # A hover box lists each arm's nearest point, which need not be of the same dim.
                        hover=[f"{value:.2f} %{bounds.get(dim, '')} at {dim}" for dim, value in values.items()],
                        hollow=[dim for dim in values if dim not in study.dims],
                        band={d: (100 * low, 100 * high) for d, (low, high) in study.band(series, metric).items()},
                    )
                )  # fmt: skip
        label = y if shared_y or metric.endswith("top1") else "test score (× 100)"
        panels.append(Lines(title_of(metric), Axis(DIMS, study.dims), label, lines, unified=True, y_range=frame))
    note = f"Mean of {study.seeds} seeds; bands: {study.bands}. " if study.seeds > 1 else ""
    hollow = any(points.hollow for panel in panels for points in panel.points)
    note += "Filled markers are the nesting dims, hollow ones lie between them." if hollow else ""
    return Figure(name, "", panels, note.strip(), shared_y=shared_y)


def _frame(curves: Iterable[Mapping[int, float]]) -> tuple[float, float]:
    """The range of y that shows these curves."""
    shown = [value for curve in curves for value in curve.values() if math.isfinite(value)]
    margin = 2 + 0.08 * (max(shown) - min(shown)) if shown else 0
    return (min(shown) - margin, max(shown) + margin) if shown else (0.0, 100.0)


def differences(study: Study, metric: str, comparisons: Mapping[str, Comparison]) -> Figure:
    """One panel for each thing compared with, one line per comparison."""
    panels = []
    for against in dict.fromkeys(c.against for c in comparisons.values()):
        shown = [c for c in comparisons.values() if c.against == against]
        ends = [100 * x for c in shown for d in c.differences for x in (d.mean, d.low, d.high) if math.isfinite(x)]
        floor, step = min([0.0, *ends]), 0.05 * (max([0.0, *ends]) - min([0.0, *ends]))
        lines = []
        for i, c in enumerate(shown):
            aside = 2 ** (0.3 * ((i + 0.5) / len(shown) - 0.5))  # or intervals would hide each other
            about, look = (c.a.key, c.b.key), look_of(study, c.a)
            known = all(math.isfinite(d.low) and math.isfinite(d.high) for d in c.differences)
            lines.append(
                Points(
                    c.a.label, about, look,
                    [d.dim * aside for d in c.differences], [100 * d.mean for d in c.differences],
                    hover=[f"at {d.dim}: {cells.points(d)}" for d in c.differences],
                    y_bars=[(100 * d.low, 100 * d.high) for d in c.differences] if known else (),
                )
            )  # fmt: skip
            dim, low, high = c.crossover.dim, c.crossover.low, c.crossover.high
            if dim is not None:
                lines.append(
                    Points(
                        c.a.label, about, Look(look.color, "x", None), [dim], [floor - (i + 1) * step],
                        hover=[compare.verdict(c)], x_bars=() if low is None or high is None else [(low, high)],
                    )
                )  # fmt: skip
        panels.append(Lines(against, Axis(DIMS, study.dims), "difference (points)", lines, zero=True))
    note = f"{title_of(metric)}: above zero the arm of the line is better."
    if study.seeds > 1:
        note += " Bars: 95 % intervals of the paired difference. A cross: where the sign changes, with its interval."
    return Figure(f"differences-{metric}", "", panels, note, shared_y=False, small=True)


def by_bytes(study: Study) -> Figure:
    """Quality against the bytes of a stored embedding: one panel per metric, one line per arm and precision."""
    markers = dict(zip(PRECISIONS, ("circle", "square", "diamond"), strict=True))
    sizes = [dim * precision.bytes_per_dim for precision in PRECISIONS.values() for dim in study.dims]
    powers = [2.0**i for i in range(math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes))) + 1)]
    axis = Axis("bytes per embedding", powers[:: -(-len(powers) // MAX_TICKS)])
    panels = []
    for metric in ("knn_top1", "map@10"):
        lines = []
        for series in (s for s in study.series if s.main and study.values(s, f"int8_{metric}")):
            look = look_of(study, series)
            for name, (prefix, size) in PRECISIONS.items():
                means = {d: v for d, v in _means(study, series, prefix + metric).items() if d in study.dims}
                lines.append(
                    Points(
                        series.label, (series.key,), Look(look.color, markers[name], look.dash, width=1),
                        [dim * size for dim in means], list(means.values()),
                        hover=[f"{value:.2f} %, {dim * size:g} bytes, {dim} × {name}" for dim, value in means.items()],
                    )
                )  # fmt: skip
        if lines:
            best = front((x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y))
            stairs = [(x, y) for (x, _), (_, y) in zip(best[1:], best, strict=False)]
            path = sorted([*best, *stairs])
            xs, ys = [x for x, _ in path], [y for _, y in path]
            lines.insert(0, Points("best for the bytes", (), Look("#d0d0d0", width=6), xs, ys))
            panels.append(Lines(title_of(metric), axis, "quality (%)", lines))
    note = (
        "Up and to the left is better. Circles are float32, squares int8 and diamonds one bit per dim; the grey stairs "
        "join what no other arm, dim or precision beats."
    )
    return Figure("bytes", "", panels, note, (6.8, 4.8), shared_y=False)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (bytes, quality) that no other beats in both: smallest first, each better than all smaller ones."""
    best: list[tuple[float, float]] = []
    for size, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((size, quality))
    return best


def training(study: Study) -> Figure:
    """Validation score over training: one panel per series, one line per granularity (mean over seeds)."""
    scores: dict[Series, dict[int, dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for line in study.log:
        if line["split"] == "validation":
            for dim, value in line["accuracy"].items():
                scores[Series(line["arm"], line["variant"])][int(dim)][line["step"]].append(100 * value)
    dims = sorted({dim for by_dim in scores.values() for dim in by_dim})
    shades = dict(zip(dims, matplotlib.colormaps["viridis"](np.linspace(0.9, 0, len(dims))), strict=True))
    if study.classes:
        y = "validation accuracy (%)"
    elif "spearman" in study.compared:
        y = "validation, pairs in order (%)"
    elif "ndcg@10" in study.compared:
        y = "validation, first of its batch (%)"
    else:
        y = "validation score (%)"
    panels = []
    for series in (s for s in study.series if s in scores):
        lines = []
        for dim, by_step in sorted(scores[series].items()):
            look = Look(to_hex(shades[dim]), "circle" if len(by_step) == 1 else None)
            means = {step: float(np.mean(values)) for step, values in sorted(by_step.items())}
            hover = [f"{value:.2f} %" for value in means.values()]
            lines.append(Points(f"{dim} dims", (series.key,), look, list(means), list(means.values()), hover))
        panels.append(Lines(series.label, Axis("step"), y, lines, series.key, unified=True))
    note = "Mean over seeds: where a line still rises, longer training may help."
    return Figure("training", "Validation score over training", panels, note, small=True)


def budget(study: Study) -> Figure:
    """The expected best validation score of so many trials: one panel per series, one line per fixed width."""
    widths = sorted({width for _, width in study.tuned if width is not None})
    shades = dict(zip(widths, matplotlib.colormaps["viridis"](np.linspace(0.9, 0, len(widths))), strict=True))
    panels: dict[Series, list[Points]] = defaultdict(list)
    for (series, width), tuned in study.tuned.items():
        color = look_of(study, series).color if width is None else to_hex(shades[width])
        values = [100 * score for score in tuned.expected_best]
        trials, hover = range(1, len(values) + 1), [f"{value:.2f} %" for value in values]
        label = "nested" if width is None else f"{width} dims"
        panels[series].append(Points(label, (series.key,), Look(color, "circle"), [*trials], values, hover))
    lines = [
        Lines(series.label, Axis("settings tried"), "expected best on validation (%)", points, series.key, unified=True)
        for series, points in panels.items()
        if any(point.x for point in points)
    ]
    note = (
        "Expected best validation score of so many random settings (Dodge et al. 2019): where a line still rises, more "
        "trials may help."
    )
    return Figure("budget", "What trying settings brings", lines, note, shared_y=False, small=True)


def classes(needs: Sequence[compare.ClassNeeds], series: Series) -> Figure:
    """A heat map of the classes that need most dims."""
    shown = needs[:MAX_CLASSES]
    dims = list(shown[0].accuracy)
    heat = HeatMap(
        series.label,
        "dims",
        [_abridged(c.name) for c in shown],
        [str(dim) for dim in dims],
        [[100 * (c.accuracy[dim] - c.accuracy[dims[-1]]) for dim in dims] for c in shown],
        [[_class_hover(c, dim, dims[-1]) for dim in dims] for c in shown],
        [dims.index(c.enough) for c in shown],
        series.key,
    )
    note = (
        f"Accuracy of a class minus its accuracy at full width, in points. A dot: from here on within a point of it. "
        f"Most dims needed first, {len(shown)} of {len(needs)} classes."
    )
    return Figure(f"classes-{series.key}", "", [heat], note, small=True)


def oracle(study: Study, oracles: Mapping[Series, compare.Oracle]) -> Figure:
    """The share of test examples by the smallest dim that is right about them, one bar per nested series."""
    dims = sorted({dim for one in oracles.values() for dim in one.shares})
    bars = []
    for series, one in oracles.items():
        shares = [100 * x for x in (*(one.shares.get(dim, 0.0) for dim in dims), one.never)]
        hover = [f"{share:.2f} %" for share in shares]
        bars.append(Points(series.label, (series.key,), look_of(study, series), range(len(shares)), shares, hover))
    axis = Axis("smallest dim that is right", categories=[*map(str, dims), "none"])
    panel = Lines("", axis, "share of test examples (%)", bars, unified=True)
    note = "The bars but “none” add up to the oracle's accuracy: no cascade over these dims can do better."
    return Figure("oracle", "", [panel], note, (8.6, 3.8))


def cascade(study: Study) -> Figure:
    """One panel per nested series: accuracy at each fixed dim, and of its cascades at the dims that they read."""
    looks = dict(zip(RULES, (Look("#e69f00", "triangle-down", None), Look("#000000", "star", None)), strict=True))
    panels = []
    for series in study.series:
        rules = compare.adaptive(study, series)
        if not rules:
            continue
        fixed = {dim: value for dim, value in _means(study, series, "linear_top1").items() if dim in study.dims}
        hover = [f"{value:.2f} % at {dim}" for dim, value in fixed.items()]
        lines = [Points("fixed dims", (series.key,), look_of(study, series), list(fixed), list(fixed.values()), hover)]
        for rule in rules:
            dims = rule.dims
            ends = np.clip((dims.low, dims.high), study.dims[0] / 1.2, study.dims[-1] * 1.2)  # of two seeds: very wide
            lines.append(
                Points(
                    f"{rule.rule} cascade", (series.key,), looks[rule.rule], [dims.mean], [100 * rule.accuracy],
                    hover=[f"{cells.percent(rule.accuracy)} % at {cells.interval(dims, 1, '.1f')} dims"],
                    x_bars=() if math.isnan(dims.low) else [(float(ends[0]), float(ends[1]))],
                )
            )  # fmt: skip
        axis = Axis("mean dims of the answer", study.dims)
        panels.append(Lines(series.label, axis, "top-1 accuracy (%)", lines, series.key))
    note = "Up and to the left is better." + (" Bars: 95 % intervals of the mean dims." if study.seeds > 1 else "")
    return Figure("cascade", "", panels, note, small=True)


def _means(study: Study, series: Series, metric: str) -> dict[int, float]:
    """dim → mean over seeds, in percent."""
    return {dim: 100 * float(values.mean()) for dim, values in study.values(series, metric).items()}


def _class_hover(needs: compare.ClassNeeds, dim: int, full: int) -> str:
    accuracy, more = needs.accuracy[dim], needs.accuracy[dim] - needs.accuracy[full]
    return f"{needs.name}\n{needs.examples} examples\nat {dim}: {100 * accuracy:.1f} % right, {100 * more:+.1f} points"


def _abridged(name: str) -> str:
    half = MAX_CLASS_CHARACTERS // 2
    return name if len(name) <= MAX_CLASS_CHARACTERS else f"{name[: half - 1]}…{name[-half:]}"
