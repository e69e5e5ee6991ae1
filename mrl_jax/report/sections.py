"""The parts of a report in their order: what each says in sentences, tables and figures, whatever the format.

A table is a grid of plain text; each format escapes it, since names of classes and runs may contain anything.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mrl_jax.evaluate import metrics
from mrl_jax.report import cells, compare, figures, power, statistics
from mrl_jax.report.compare import PRECISIONS, Comparison, Comparisons
from mrl_jax.report.figures import Figure
from mrl_jax.report.study import Study

MAX_CLASSES = 10  # rows of a table of classes


class Table(NamedTuple):
    """Plain text throughout. `name` is the LaTeX label, `caption` says what the cells are."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    heading: str
    sentences: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()


def sections(study: Study, comparisons: Comparisons) -> list[Section]:
    """The report's parts, without those that the study has no numbers for."""
    parts = [
        _accuracy(study),
        *(_differences(study, metric, of_metric) for metric, of_metric in comparisons.items()),
        _between(comparisons),
        _tax(comparisons),
        _power(study, comparisons),
        _settings(study),
        _equal_compute(study),
        _own_heads(study),
        _oracle(study),
        _adaptive(study),
        _equal_bytes(study),
        _classes(study),
        _every_metric(study),
    ]
    return [part for part in parts if part.sentences or part.tables or part.figures]


def _accuracy(study: Study) -> Section:
    tables = []
    for metric in study.compared:
        for variant in study.variants:
            shown = {s: study.values(s, metric) for s in study.series if s.variant == variant}
            shown = {s: values for s, values in shown.items() if values}
            rows = [
                [str(dim), *(cells.mean(values.get(dim)) for values in shown.values())]
                for dim in study.dims
                if any(dim in values for values in shown.values())
            ]
            spread = f", mean ± standard deviation of {study.seeds} seeds" if study.seeds > 1 else ""
            title = _title(metric)
            if metric == "linear_top1" and any(s.origin == "compressed" for s in shown):
                title += " (refitted where the arm is compressed after training)"
            what = f"Top-1 test accuracy (%) of the {title}" if metric.endswith("top1") else f"Test {title} (× 100)"
            caption = f"{what}{spread}{_of(variant)}."
            tables += _some(f"accuracy-{metric}{_dash(variant)}", caption, ["dim", *(s.name for s in shown)], rows)
    pictures = [figures.accuracy(study)] if tables else []
    if (beyond := figures.generalisation(study)).panels:
        pictures.append(beyond)
    if any(line["split"] == "validation" for line in study.log):
        pictures.append(figures.training(study))
    return Section("Accuracy against dimension", [], tables, pictures)


def _differences(study: Study, metric: str, comparisons: Mapping[str, Comparison]) -> Section:
    """A table for each nested arm; a sentence for every comparison that is not between runs."""
    tables = []
    sentences = [f"{label}: {compare.verdict(c)}" for label, c in comparisons.items() if not c.between_runs]
    for series in study.of_origin("nested"):
        against = [c for c in comparisons.values() if c.a == series and c.b.baseline]
        caption = f"{series.label}, {_title(metric)}, minus the arm of the column: percentage points"
        caption += " [95 % interval] and p (Holm over the dims)." if study.seeds > 1 else "."
        refitted = [c.b.name for c in against if c.b.origin == "compressed"]
        if any(compare.fair(study, c.a, c.b, metric) != metric for c in against):
            caption += f" Both sides refitted against {' and '.join(refitted)}."
        caption += over_the_table({c.b.name: c for c in against})
        if against:
            name = f"differences-{metric}-{series.key}"
            tables.append(_grid(name, caption, {c.b.name: c for c in against}))
    return Section(
        f"Differences: {_title(metric)}", sentences, tables, [figures.differences(study, metric, comparisons)]
    )


def over_the_table(columns: Mapping[str, Comparison]) -> str:
    """Which cells of a table of several comparisons keep p < 0.05 where p is corrected over all of them: whoever looks
    for the best cell of a table makes one statement about it, not one per column. Empty where nothing is tested."""
    tested = [(name, d) for name, c in columns.items() for d in c.differences if math.isfinite(d.p_holm)]
    settled = sum(d.p_holm < statistics.LEVEL for _, d in tested)
    if len({name for name, _ in tested}) < 2 or not settled:
        return ""
    p = statistics.holm([d.p for _, d in tested])
    lost: dict[str, list[str]] = {}
    for (name, d), corrected in zip(tested, p, strict=True):
        if d.p_holm < statistics.LEVEL <= corrected:
            lost.setdefault(name, []).append(str(d.dim))
    kept = settled - sum(map(len, lost.values()))
    without = "; ".join(f"− {name} at {', '.join(dims)}" for name, dims in lost.items())
    return (
        f" Corrected over all {len(tested)} cells of the table instead, {kept} of the {settled} with p < 0.05 keep it"
        f"{f', without {without}' if lost else ''}."
    )


def _between(comparisons: Comparisons) -> Section:
    tables, sentences = [], []
    for metric, of_metric in comparisons.items():
        shown = {label: c for label, c in of_metric.items() if c.between_runs}
        if shown:
            caption = f"The same arm in two variants, {_title(metric)}: percentage points [95 % interval] and p (Holm)."
            tables.append(_grid(f"between-{metric}", caption, shown))
            sentences += [f"{_title(metric)}, {label}: {compare.verdict(c)}" for label, c in shown.items()]
    return Section("Between runs", sentences, tables)


def _grid(name: str, caption: str, columns: Mapping[str, Comparison]) -> Table:
    """A row per dim; for each comparison its difference with interval, and p where it is known."""
    by_dim = [{d.dim: d for d in c.differences} for c in columns.values()]
    tested = [any(math.isfinite(d.p_holm) for d in differences.values()) for differences in by_dim]
    header = ["dim"]
    for title, p in zip(columns, tested, strict=True):
        header += [f"− {title}" if "−" not in title else title, *(["p"] if p else [])]
    rows = []
    for dim in sorted(set().union(*by_dim)):
        row = [str(dim)]
        for differences, p in zip(by_dim, tested, strict=True):
            difference = differences.get(dim)
            row += [cells.points(difference), *([cells.p_value(difference)] if p else [])]
        rows.append(row)
    return Table(name, caption, header, rows)


def _tax(comparisons: Comparisons) -> Section:
    rows = [
        [_title(metric), c.a.label, str(c.tax.dim), cells.points(c.tax)]
        for metric, of_metric in comparisons.items()
        for c in of_metric.values()
        if c.tax is not None
    ]
    sentence = "What nesting costs at full width: FF(D) − nested arm, positive where the fixed-size model is better."
    caption = "FF(D) minus the arm at full width D, percentage points [95 % interval]."
    tables = _some("tax", caption, ["", "arm", "D", "tax"], rows)
    return Section("The Matryoshka tax", [sentence] if rows else [], tables)


def _power(study: Study, comparisons: Comparisons) -> Section:
    """How many seeds would settle differences of a given size, from what this study varied by."""
    rows = []
    for metric, of_metric in comparisons.items():
        for label, c in of_metric.items():
            if c.b.origin != "fixed" or c.between_runs:
                continue
            of = power.by_dim(study.outcomes(c.a, metric), study.outcomes(c.b, metric))
            for dim in (dim for dim in study.dims if dim in of):
                examples = study.outcomes(c.a, metric)[dim].shape[1]
                needed = (power.seeds_needed(of[dim], n, x) for n in (examples, 4 * examples) for x in power.POINTS)
                parts = (cells.percent(share**0.5) for share in of[dim])
                seeds = (f"> {power.MOST_SEEDS}" if n is None else str(n) for n in needed)
                rows.append([_title(metric), label, str(dim), *parts, *seeds])
    sentence = (
        "How many seeds settle a true difference of so many points in 80 of 100 studies like this one, on these test "
        "examples and on four times as many. Where more seeds do not help, the test examples are what is missing."
    )
    sizes = [f"{100 * x:g}" for x in power.POINTS]
    header = ["", "", "dim", "seeds (SD, points)", "examples (SD)", "rest (SD)", *sizes, *(f"{x}, 4 n" for x in sizes)]
    caption = "Standard deviations of a difference between seeds, examples and both together; seeds that are needed."
    return Section("What this study can settle", [sentence] if rows else [], _some("power", caption, header, rows))


def _settings(study: Study) -> Section:
    """Which settings each arm was trained with, of those that all arms tried."""
    keys = list(dict.fromkeys(key for tuned in study.tuned.values() for key in tuned.settings))
    rows = [
        [
            series.label if width is None else f"{series.label}, {width} dims",
            "configured" if tuned.trial == 0 else f"{tuned.trial} of {tuned.trials}",
            *(cells.setting(tuned.settings, key) for key in keys),
            cells.percent(tuned.validation),
            cells.NONE if tuned.configured is None else cells.percent(tuned.configured),
            str(tuned.within_standard_error),
        ]
        for (series, width), tuned in study.tuned.items()
    ]
    sentence = (
        "Every arm tried the same settings, and was trained with the one that is best on validation. The score of a "
        "chosen setting is optimistic, being the largest of many; the test split was not read."
    )
    header = ["", "trial", *keys, "validation (%)", "as configured (%)", "within a standard error"]
    caption = "Chosen settings, their validation score, that of the configured ones, and how many settings are as good."
    tables = _some("settings", caption, header, rows)
    pictures = [figure] if rows and (figure := figures.budget(study)).panels else []
    return Section("Settings of each arm", [sentence] if rows else [], tables, pictures)


def _equal_compute(study: Study) -> Section:
    """What each way to serve all dims takes to train, and gives."""
    rows = []
    for fixed in {s.variant: s for s in study.of_origin("fixed")}.values():
        costs = compare.costs(study, fixed.variant)
        for series in study.of_origin("nested", "fixed", "compressed"):
            if series.variant != fixed.variant or not series.main:
                continue
            values = next((v for name in ("refit_top1", *study.compared[:1]) if (v := study.values(series, name))), {})
            if not values:
                continue
            cost: float | None
            if series.origin == "compressed":
                name, trainings, cost = f"one {fixed.name}(D), {series.label}", 1, costs.get(fixed.arm) and 1.0
            elif series.origin == "fixed":
                name, trainings, cost = f"{series.label}, one model per dim", len(values), costs.get(series.arm)
            else:
                name, trainings, cost = series.label, 1, costs.get(series.arm)
            accuracies = (cells.mean(values.get(dim), spread=False) for dim in study.dims)
            rows.append([name, str(trainings), cells.NONE if cost is None else f"{cost:.2f}", *accuracies])
    sentence = (
        "A family of fixed-size models takes one training for every dim; a nested model, or one full-width model "
        "compressed afterwards, takes one for all. Cost is measured training time in trainings of FF(D); "
        "– where arms were trained together, or not measured."
    )
    caption = "Trainings, their measured cost, and "
    if study.classes:
        caption += (
            "top-1 accuracy (%) of a classifier refitted on the embedding (where not measured: of the arm's own)."
        )
    elif study.compared:
        caption += f"{_title(study.compared[0])} (× 100)."
    tables = _some("compute", caption, ["", "trainings", "cost", *map(str, study.dims)], rows)
    return Section("At equal compute", [sentence] if rows else [], tables)


def _own_heads(study: Study) -> Section:
    """Own head → refitted classifier, for each arm that has both."""
    tables = []
    for variant in study.variants:
        columns = {}
        for series in (s for s in study.series if s.variant == variant and s.main):
            names = ("own_head_top1", "linear_top1") if series.origin == "compressed" else ("linear_top1", "refit_top1")
            own, refitted = (study.values(series, name) for name in names)
            if own and refitted:
                columns[series.name] = own, refitted
        rows = []
        for dim in study.dims if columns else ():
            row = [str(dim)]
            for own, refitted in columns.values():
                a, b = own.get(dim), refitted.get(dim)
                if a is None or b is None:
                    row.append(cells.NONE)
                else:
                    row.append(f"{cells.percent(a)} → {cells.percent(b)} ({cells.signed(b - a)})")
            rows.append(row)
        caption = f"Test accuracy (%): own head → classifier refitted on the embedding (the gap){_of(variant)}."
        tables += _some(f"heads{_dash(variant)}", caption, ["dim", *columns], rows)
    sentence = (
        "Published comparisons often read a truncated or projected embedding with the full model's own head; refitting "
        "a classifier on the compressed embedding is the fair baseline. The gap is what the unfair comparison hides."
    )
    return Section("Own head and refitted classifier", [sentence] if tables else [], tables)


def _oracle(study: Study) -> Section:
    oracles = {s: one for s in study.of_origin("nested") if (one := compare.oracle(study, s))}
    rows = [
        [
            series.label, cells.percent(one.full), cells.percent(one.accuracy),
            f"{100 * (one.accuracy - one.full):+.2f}", f"{one.mean_dims:.1f} of {max(one.shares)}",
        ]
        for series, one in oracles.items()
    ]  # fmt: skip
    sentence = (
        "An oracle reads each example at the smallest dim that is right about it (at the smallest dim if none is): "
        "no way to choose among these dims can be more accurate."
    )
    caption = "Top-1 test accuracy (%) at full width and by the oracle, and the dims that it reads on average."
    tables = _some("oracle", caption, ["arm", "full width", "oracle", "gain", "mean dims"], rows)
    pictures = [figures.oracle(study, oracles)] if oracles else []
    return Section("An oracle that picks the dimension", [sentence] if rows else [], tables, pictures)


def _adaptive(study: Study) -> Section:
    """What cascades over each nested arm's own classifiers give."""
    rows = [
        [
            f"{series.label}, {one.rule}", cells.percent(one.accuracy), cells.interval(one.lost, 100, "+.2f"),
            f"{cells.interval(one.dims, 1, '.1f')} of {one.full}", f"{one.cumulative_dims:.1f}",
            f"{one.kflop:.2f}", cells.percent(one.captured, 0),
            cells.NONE if one.certified is None else f"{one.certified} of {study.seeds}",
        ]
        for series in study.series
        for one in compare.adaptive(study, series)
    ]  # fmt: skip
    sentence = (
        "An input leaves at the first dim whose classifier is sure enough. The greedy rule of the paper promises "
        "nothing; certified thresholds lose more than evaluation.epsilon of the accuracy at full width with "
        "probability at most evaluation.delta, and read everything where that cannot be shown. Dims are those of the "
        "classifier that answered; cumulative dims add those asked before it, which a tied head does not read again."
    )
    caption = (
        "Cascades on the test split: top-1 accuracy (%), points lost against full width [95 % interval], dims "
        "[95 % interval], thousand floating-point operations of the heads per input, dims saved as a share (%) "
        "of those that the oracle saves, and seeds with a certificate."
    )
    header = ["cascade", "top-1", "lost", "mean dims", "cumulative", "kFLOP", "of oracle", "certified"]
    pictures = [figures.cascade(study)] if rows else []
    return Section(
        "Adaptive classification", [sentence] if rows else [], _some("cascade", caption, header, rows), pictures
    )


def _equal_bytes(study: Study) -> Section:
    rows = [
        [
            s.label, f"{size:g}",
            *(f"{cells.percent(at[k][1])} ({at[k][0]})" if k in at else cells.NONE for k in PRECISIONS),
        ]
        for s in study.series
        if s.main
        for size, at in compare.equal_bytes(study, s)
    ]  # fmt: skip
    sentence = (
        "The same bytes hold few precise coordinates or many coarse ones: 64 float32 numbers take as much as 256 int8 "
        "or 2048 single bits."
    )
    caption = "Nearest-neighbour top-1 accuracy (%) by bytes per embedding; in brackets the dims that they hold."
    tables = _some("bytes", caption, ["arm", "bytes", *PRECISIONS], rows)
    figure = figures.by_bytes(study)
    pictures = [figure] if figure.panels else []
    return Section("Few precise or many coarse coordinates", [sentence] if rows else [], tables, pictures)


def _classes(study: Study) -> Section:
    tables, pictures = [], []
    for series in study.of_origin("nested"):
        needs = compare.class_needs(study, series)
        if not needs:
            continue
        rows = [
            [c.name, str(c.examples), *(cells.percent(v, 1) for v in c.accuracy.values()), str(c.enough)]
            for c in needs[:MAX_CLASSES]
        ]
        caption = (
            f"{series.label}: test accuracy (%) of the {len(rows)} classes (of {len(needs)}) that need most dims; "
            "enough: the dim from which on a class stays within a point of its accuracy at full width."
        )
        header = ["class", "examples", *map(str, needs[0].accuracy), "enough"]
        tables.append(Table(f"classes-{series.key}", caption, header, rows))
        pictures.append(figures.classes(needs, series))
    return Section("Classes that need more dimensions", [], tables, pictures)


def _every_metric(study: Study) -> Section:
    """All that evaluation.csv has of the test split, so that nothing in it is seen nowhere."""
    tables = []
    for series in study.series:
        values = {metric: study.values(series, metric) for metric in study.metrics}
        dims = sorted({dim for by_dim in values.values() for dim in by_dim})
        dims = dims[-1:] if series.origin == "classical" else dims  # the same at all of them
        rows = [
            [metric, *(f"{by_dim[dim].mean():.4f}" if dim in by_dim else cells.NONE for dim in dims)]
            for metric, by_dim in values.items()
            if by_dim
        ]
        heads = ["every dim"] if series.origin == "classical" else map(str, dims)
        tables += _some(f"metrics-{series.key}", f"{series.label}.", ["metric", *heads], rows)
    sentence = (
        "Every metric of the test split at every dim, mean over seeds; evaluation.csv has each seed, and the "
        "validation split."
    )
    return Section("Every metric", [sentence] if tables else [], tables)


def _some(name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    return [Table(name, caption, header, rows)] if rows else []


def _title(metric: str) -> str:
    return metrics.title(metric).removesuffix(", top-1 accuracy")


def _of(variant: str | None) -> str:
    return "" if variant is None else f"; {variant}"


def _dash(variant: str | None) -> str:
    return "" if variant is None else f"-{variant}"
