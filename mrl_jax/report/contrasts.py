"""The parts of a report that set arms against each other: differences, what nesting costs, what they could settle."""

import math
from collections.abc import Mapping

from mrl_jax.report import cells, compare, figures, power, statistics
from mrl_jax.report.compare import Comparison, Comparisons
from mrl_jax.report.study import Study
from mrl_jax.report.tables import Section, Table, some, title


def differences(study: Study, metric: str, comparisons: Mapping[str, Comparison]) -> Section:
    """A table for each nested arm; a sentence for every comparison that is not between runs."""
    tables = []
    sentences = [f"{label}: {compare.verdict(c)}" for label, c in comparisons.items() if not c.between_runs]
    for series in study.of_origin("nested"):
        against = [c for c in comparisons.values() if c.a == series and c.b.baseline]
        caption = f"{series.label}, {title(metric)}, minus the arm of the column: percentage points"
        caption += " [95 % interval] and p (Holm over the dims)." if study.seeds > 1 else "."
        refitted = [c.b.name for c in against if c.b.origin == "compressed"]
        if any(compare.fair(study, c.a, c.b, metric) != metric for c in against):
            caption += f" Both sides refitted against {' and '.join(refitted)}."
        caption += over_the_table({c.b.name: c for c in against})
        if against:
            name = f"differences-{metric}-{series.key}"
            tables.append(_grid(name, caption, {c.b.name: c for c in against}))
    return Section(
        f"Differences: {title(metric)}", sentences, tables, [figures.differences(study, metric, comparisons)]
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


def between_runs(comparisons: Comparisons) -> Section:
    """The same arm in two runs of one data set."""
    tables, sentences = [], []
    for metric, of_metric in comparisons.items():
        shown = {label: c for label, c in of_metric.items() if c.between_runs}
        if shown:
            caption = f"The same arm in two variants, {title(metric)}: percentage points [95 % interval] and p (Holm)."
            tables.append(_grid(f"between-{metric}", caption, shown))
            sentences += [f"{title(metric)}, {label}: {compare.verdict(c)}" for label, c in shown.items()]
    return Section("Between runs", sentences, tables)


def _grid(name: str, caption: str, columns: Mapping[str, Comparison]) -> Table:
    """A row per dim; for each comparison its difference with interval, and p where it is known."""
    by_dim = [{d.dim: d for d in c.differences} for c in columns.values()]
    tested = [any(math.isfinite(d.p_holm) for d in of_comparison.values()) for of_comparison in by_dim]
    header = ["dim"]
    for label, p in zip(columns, tested, strict=True):
        header += [f"− {label}" if "−" not in label else label, *(["p"] if p else [])]
    rows = []
    for dim in sorted(set().union(*by_dim)):
        row = [str(dim)]
        for of_comparison, p in zip(by_dim, tested, strict=True):
            difference = of_comparison.get(dim)
            row += [cells.points(difference), *([cells.p_value(difference)] if p else [])]
        rows.append(row)
    return Table(name, caption, header, rows)


def nesting_tax(comparisons: Comparisons) -> Section:
    """What a nested arm loses at full width to the model of that size alone."""
    rows = [
        [title(metric), c.a.label, str(c.tax.dim), cells.points(c.tax)]
        for metric, of_metric in comparisons.items()
        for c in of_metric.values()
        if c.tax is not None
    ]
    sentence = "What nesting costs at full width: FF(D) − nested arm, positive where the fixed-size model is better."
    caption = "FF(D) minus the arm at full width D, percentage points [95 % interval]."
    tables = some("tax", caption, ["", "arm", "D", "tax"], rows)
    return Section("The Matryoshka tax", [sentence] if rows else [], tables)


def seeds_needed(study: Study, comparisons: Comparisons) -> Section:
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
                rows.append([title(metric), label, str(dim), *parts, *seeds])
    sentence = (
        "How many seeds settle a true difference of so many points in 80 of 100 studies like this one, on these test "
        "examples and on four times as many. Where more seeds do not help, the test examples are what is missing."
    )
    sizes = [f"{100 * x:g}" for x in power.POINTS]
    header = ["", "", "dim", "seeds (SD, points)", "examples (SD)", "rest (SD)", *sizes, *(f"{x}, 4 n" for x in sizes)]
    caption = "Standard deviations of a difference between seeds, examples and both together; seeds that are needed."
    return Section("What this study can settle", [sentence] if rows else [], some("power", caption, header, rows))


def equal_compute(study: Study) -> Section:
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
        caption += f"{title(study.compared[0])} (× 100)."
    tables = some("compute", caption, ["", "trainings", "cost", *map(str, study.dims)], rows)
    return Section("At equal compute", [sentence] if rows else [], tables)
