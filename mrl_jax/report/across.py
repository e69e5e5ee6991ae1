"""What studies on several data sets say together: a contrast of two arms against how far the embedding is cut.

The difference d_i(r) of two arms on data set i, at 1 / r of the full width, is μ(r) + u_i + error. Data sets are drawn
at random from those that matter (u has the variance τ²), and errors have the variances of the studies' own intervals,
half their length ÷ 1.96.

- The mean is weighted by 1 / (τ² + error²), with the τ² of Paule and Mandel (1982, Journal of Research of the NBS 87).
  Its interval is that of Hartung and Knapp (2001, Statistics in Medicine 20), whose spread comes from the data sets
  themselves, floored at what the errors alone give (Röver, Knapp and Friede 2015, BMC Medical Research Methodology 15).
- One more data set has an interval that takes every τ² as likely as Σ (d_i − μ)² / (τ² + error²), which has a χ²
  distribution, makes it (Viechtbauer 2007, Statistics in Medicine 26; for intervals of this kind Nagashima, Noma and
  Furukawa 2019, Statistical Methods in Medical Research 28). With one estimate of τ², which of eight data sets is often
  0 where it should not be, nominal 95 % intervals cover 84 to 99 % in the simulation of the tests.

Between the dims of a study its curve is interpolated in log2 of the ratio, and so are its errors, which takes those of
neighbouring dims as fully correlated and so errs on the wide side.
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

from mrl_jax import config as configuration
from mrl_jax.report import cells, formats, plots
from mrl_jax.report.figures import Axis, Figure, Lines, Look, Points, title_of
from mrl_jax.report.statistics import LEVEL
from mrl_jax.report.tables import Section, Table
from mrl_jax.system import files
from mrl_jax.system.errors import UserError

RATIOS = (1, 2, 4, 8, 16, 32, 64)  # full width ÷ dims
LEAST = 3  # data sets, for a mean with an interval that says anything
QUANTILE = float(norm.ppf(1 - LEVEL / 2))
TINY = 1e-16  # the least variance
LIKELY, BISECTIONS = 200, 60  # values of τ² in the interval of one more data set, and halvings that find each


class Effect(NamedTuple):
    """A difference of two arms on one data set, and its standard error; shares."""

    mean: float
    error: float


class Pooled(NamedTuple):
    """The mean over data sets with its 95 % interval, that of one more data set, and the spread of data sets."""

    sets: int
    mean: float
    low: float
    high: float
    new_low: float
    new_high: float
    tau: float


class Crossing(NamedTuple):
    """The ratio at which the mean is 0, and those at which its interval holds 0: inf or 0 where that has no end."""

    ratio: float
    low: float
    high: float


Curve = Mapping[float, Effect]  # by ratio
Contrast = tuple[str, str, str]  # metric, arm a, arm b


def pooled(effects: Sequence[Effect]) -> Pooled:
    """The random-effects summary of at least two effects."""
    means, errors = (np.array(x, float) for x in zip(*effects, strict=True))
    variances = np.maximum(errors**2, TINY)  # errors are 0 where two arms are one model, as at full width
    freedom = len(means) - 1
    tau2 = float(between(means, variances, np.array([freedom]))[0])
    weights = 1 / (tau2 + variances)
    mean = float(np.average(means, weights=weights))
    spread = float(np.sum(weights * (means - mean) ** 2) / freedom)
    reach = float(t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(max(spread, 1.0) / weights.sum())
    low, high = mean - reach, mean + reach
    ends = _interval_of_one_more(means, variances)
    return Pooled(len(means), mean, low, high, min(ends[0], low), max(ends[1], high), math.sqrt(tau2))


def between(means: np.ndarray, variances: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """τ² [n] at which Σ (d_i − μ)² / (τ² + v_i) is each of `targets` [n]; 0 where it is smaller for every τ²."""

    def excess(tau2: np.ndarray) -> np.ndarray:
        weights = 1 / (tau2[:, None] + variances)
        centre = (weights * means).sum(1) / weights.sum(1)
        return np.asarray((weights * (means - centre[:, None]) ** 2).sum(1) - targets)

    low = np.zeros(len(targets))
    high = np.full(len(targets), TINY) + np.sum((means - means.mean()) ** 2) / targets
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_above = excess(middle) > 0
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return np.where(excess(np.zeros(len(targets))) <= 0, 0.0, (low + high) / 2)


def _interval_of_one_more(means: np.ndarray, variances: np.ndarray) -> tuple[float, float]:
    """The interval of one more data set: quantiles of normal distributions mixed over the τ² that are likely."""
    shares = (np.arange(LIKELY) + 0.5) / LIKELY
    tau2 = between(means, variances, chi2.ppf(shares, len(means) - 1))
    weights = 1 / (tau2[:, None] + variances)
    centre, spread = (weights * means).sum(1) / weights.sum(1), np.sqrt(tau2 + 1 / weights.sum(1))
    ends = norm.ppf([LEVEL / 4 / LIKELY, 1 - LEVEL / 4 / LIKELY])  # beyond every quantile that is looked for
    low, high = float((centre + ends[0] * spread).min()), float((centre + ends[1] * spread).max())

    def quantile(share: float) -> float:
        return float(brentq(lambda x: norm.cdf((x - centre) / spread).mean() - share, low, high))

    return quantile(LEVEL / 2), quantile(1 - LEVEL / 2)


def at_ratios(curve: Curve, ratios: Sequence[float] = RATIOS) -> dict[float, Effect]:
    """The curve of one data set at those of `ratios` that it reaches, interpolated in log2."""
    x = np.log2(sorted(curve))
    of = [curve[ratio] for ratio in sorted(curve)]
    inside = [ratio for ratio in ratios if x[0] - 1e-9 <= math.log2(ratio) <= x[-1] + 1e-9]
    means, errors = (np.interp(np.log2(inside), x, [getattr(e, name) for e in of]) for name in Effect._fields)
    return {ratio: Effect(float(m), float(e)) for ratio, m, e in zip(inside, means, errors, strict=True)}


def summarise(curves: Mapping[str, Curve]) -> dict[float, Pooled]:
    """By ratio, what the data sets that reach it say together; ratios of fewer than `LEAST` are left out."""
    by_ratio: dict[float, list[Effect]] = defaultdict(list)
    for curve in curves.values():
        for ratio, effect in at_ratios(curve).items():
            by_ratio[ratio].append(effect)
    return {ratio: pooled(of) for ratio, of in sorted(by_ratio.items()) if len(of) >= LEAST}


def crossing(summary: Mapping[float, Pooled]) -> Crossing | None:
    """Where the mean crosses 0, if it does once; its interval is made of the ratios at which the band holds 0.

    Where the true mean is 0 the band holds 0 in 95 % of all cases: the inverted test, as Fieller's interval is."""
    x = np.log2(sorted(summary))
    of = [summary[ratio] for ratio in sorted(summary)]
    fine = np.linspace(x[0], x[-1], 1001)
    mean, low, high = (np.interp(fine, x, [getattr(p, name) for p in of]) for name in ("mean", "low", "high"))
    moved = np.flatnonzero(mean)
    turns = np.flatnonzero(np.diff(np.sign(mean[moved])))
    if len(turns) != 1:
        return None
    sides = fine[moved[turns[0] : turns[0] + 2]]
    ratio = float(2 ** sides.mean())
    undecided = np.flatnonzero((low <= 0) & (high >= 0))
    if not len(undecided):  # a band that is narrower than the grid
        return Crossing(ratio, float(2 ** sides[0]), float(2 ** sides[1]))
    first, last = undecided[0], undecided[-1]
    return Crossing(
        ratio,
        0.0 if first == 0 else float(2 ** fine[first]),
        math.inf if last == len(fine) - 1 else float(2 ** fine[last]),
    )


def left_out(curves: Mapping[str, Curve]) -> tuple[int, int]:
    """Of the (data set, ratio) pairs that the other data sets predict, how many lie in the interval for a new data set,
    widened by their own error; and how many there are."""
    inside = total = 0
    for name, curve in curves.items():
        rest = summarise({other: of for other, of in curves.items() if other != name})
        for ratio, effect in at_ratios(curve).items():
            if ratio not in rest:
                continue
            one = rest[ratio]
            end = one.new_high if effect.mean > one.mean else one.new_low
            inside += abs(effect.mean - one.mean) <= math.hypot(end - one.mean, QUANTILE * effect.error)
            total += 1
    return inside, total


def read(folders: Sequence[Path]) -> dict[Contrast, dict[str, Curve]]:
    """The curves of the reports in these folders, by contrast and data set.

    Raises:
        UserError: a folder without a report, a damaged one, or two of the same name.
    """
    found: dict[Contrast, dict[str, dict[float, Effect]]] = defaultdict(dict)
    seen: dict[tuple[str, str], Path] = {}
    for folder in folders:
        path = folder / "differences.csv"
        if not path.exists():
            raise UserError(f"{path}: there is no such file; --across reads the folders that reports were written into")
        width, name, data = _described(folder)
        for key, what in ((name, "name"), (data, "data")):
            if (what, key) in seen:
                raise UserError(
                    f"{folder} and {seen[what, key]} have the same {what}; give one report for each data set"
                )
            seen[what, key] = folder
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row["low"] and row["high"]:
                        half = (float(row["high"]) - float(row["low"])) / 2
                        effect = Effect(float(row["mean"]), half / QUANTILE)
                        contrast = row["metric"], row["a"], row["b"]
                        found[contrast].setdefault(name, {})[width / int(row["dim"])] = effect
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, csv.Error):
            raise UserError(f"{path} cannot be read as the differences of a report; write it again") from None
    return {contrast: dict(of) for contrast, of in found.items()}


def _described(folder: Path) -> tuple[int, str, str]:
    """The full width of a report's study, the name of its experiment, and what tells its data from others: from the
    config.yaml, and the dataset.json if there is one, beside the report or above it."""
    for place in (folder, folder.parent):
        if (place / "config.yaml").exists():
            config = configuration.from_yaml(place / "config.yaml")
            try:
                data = json.dumps(json.loads((place / "dataset.json").read_text(encoding="utf-8"))["fingerprint"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                of = config.data
                data = f"{of.source} {of.train} {of.test} {of.path} {config.loss.name}"
            return config.width, config.name, data
    raise UserError(f"{folder} has no config.yaml, and neither has the folder above: of which run is the report?")


# ---- the report ------------------------------------------------------------------------------------------------------


def report(folders: Sequence[Path], out: Path) -> tuple[list[Path], str]:
    """Write across.md, across.csv and plots/ into `out`; returns the files and the sentences.

    Raises:
        UserError: as `read`; or no contrast that `LEAST` data sets have.
    """
    found = read(folders)
    shared = {contrast: curves for contrast, curves in found.items() if len(curves) >= LEAST}
    summaries = {contrast: summary for contrast, curves in shared.items() if (summary := summarise(curves))}
    if not summaries:
        most = max(map(len, found.values()), default=0)
        raise UserError(f"no contrast is measured with intervals on {LEAST} data sets; the most are {most}")
    parts = [_section(metric, found, summaries) for metric in dict.fromkeys(contrast[0] for contrast in summaries)]
    names = sorted({name for curves in found.values() for name in curves})
    lines = [
        f"# Contrasts over {len(names)} data sets",
        "",
        f"From the reports of {', '.join(names)}. A data set is drawn at random: intervals are for the mean over all "
        "such data sets, and for one more of them. The ratio is full width ÷ dims.",
        *formats.markdown_parts(parts),
    ]
    images = plots.save([figure for part in parts for figure in part.figures], out / "plots")
    contents = {"across.md": "\n".join(lines) + "\n", "across.csv": _tidy(summaries)}
    for name, content in contents.items():
        files.write(out / name, content)
    said = [sentence for part in parts for sentence in part.sentences]
    return [*(out / name for name in contents), *images], "\n".join(said)


def _section(
    metric: str, found: Mapping[Contrast, Mapping[str, Curve]], summaries: Mapping[Contrast, Mapping[float, Pooled]]
) -> Section:
    """What is said of the contrasts of one metric."""
    of_metric = {contrast: summary for contrast, summary in summaries.items() if contrast[0] == metric}
    sentences, tables, panels = [], [], []
    for contrast, summary in of_metric.items():
        curves, name = found[contrast], f"{contrast[1]} − {contrast[2]}"
        sentences.append(f"{name}, {title_of(metric)}: {_verdict(summary)} {_coverage(curves)}")
        rows = [
            [
                f"1/{ratio:g}" if ratio > 1 else "full",
                str(p.sets),
                f"{cells.signed(p.mean)} [{cells.signed(p.low)}, {cells.signed(p.high)}]",
                f"[{cells.signed(p.new_low)}, {cells.signed(p.new_high)}]",
                cells.percent(p.tau),
            ]
            for ratio, p in summary.items()
        ]
        caption = f"{name}, {title_of(metric)}: percentage points."
        header = ["width", "data sets", "mean [95 %]", "one more data set [95 %]", "spread of data sets"]
        tables.append(Table(f"across-{metric}-{contrast[1]}-{contrast[2]}", caption, header, rows))
        panels.append(_panel(name, curves, summary))
    note = "Above zero the first arm is better. The mean has its 95 % interval over data sets."
    figure = Figure(f"across-{metric}", "", panels, note, shared_y=False, small=True)
    return Section(f"{title_of(metric)}".capitalize(), sentences, tables, [figure])


def _verdict(summary: Mapping[float, Pooled]) -> str:
    settled = {sign: [r for r, p in summary.items() if min(sign * p.low, sign * p.high) > 0] for sign in (1, -1)}
    words = [
        f"{word} at {', '.join('full width' if r == 1 else f'1/{r:g}' for r in ratios)}"
        for word, ratios in (("ahead", settled[1]), ("behind", settled[-1]))
        if ratios
    ]
    text = f"{' and '.join(words) or 'settled at no ratio'}, by the mean over data sets"
    found = crossing(summary)
    if found is None:
        return f"{text}; the mean does not change its sign once."
    low = "no ratio" if found.low == 0 else f"{found.low:.3g}"
    high = "any ratio" if math.isinf(found.high) else f"{found.high:.3g}"
    return f"{text}; the sign changes at a ratio of {found.ratio:.3g} [{low}, {high}]."


def _coverage(curves: Mapping[str, Curve]) -> str:
    inside, total = left_out(curves)
    if not total:
        return "Too few data sets to predict one from the others."
    return f"Predicted from the others, {inside} of {total} differences lie in their 95 % interval."


def _panel(name: str, curves: Mapping[str, Curve], summary: Mapping[float, Pooled]) -> Lines:
    lines = [
        Points(
            "each data set",
            (data,),
            Look("#999999", None, width=0.8),
            sorted(curve),
            [100 * curve[ratio].mean for ratio in sorted(curve)],
            [f"{data}: {cells.signed(curve[ratio].mean)}" for ratio in sorted(curve)],
        )
        for data, curve in curves.items()
    ]
    band = {ratio: (100 * p.low, 100 * p.high) for ratio, p in summary.items()}
    means = [100 * p.mean for p in summary.values()]
    hover = [f"mean: {cells.signed(p.mean)}" for p in summary.values()]
    lines.append(Points("mean", ("mean",), Look("#0072b2", "circle"), [*summary], means, hover, band=band))  # type: ignore[arg-type]
    ticks = sorted({*summary, *(ratio for curve in curves.values() for ratio in curve)})
    ticks = [ratio for ratio in RATIOS if ticks[0] <= ratio <= ticks[-1]]
    return Lines(name, Axis("full width ÷ dims", ticks), "difference (points)", lines, zero=True, unified=True)


def _tidy(summaries: Mapping[Contrast, Mapping[float, Pooled]]) -> str:
    """across.csv: one line per metric, pair and ratio, as shares."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("metric", "a", "b", "ratio", *Pooled._fields))
    for contrast, summary in summaries.items():
        for ratio, p in summary.items():
            writer.writerow((*contrast, f"{ratio:g}", p.sets, *(f"{x:.6g}" for x in p[1:])))
    return buffer.getvalue()
