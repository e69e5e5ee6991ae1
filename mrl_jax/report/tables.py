"""A study as Markdown (report.md), LaTeX (tables.tex) and tidy csv (differences.csv).

A table is a grid of plain text; each format escapes it, since names of classes and runs may contain anything.
"""

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.arms import POSTHOC, UNTUNED
from mrl_jax.report import compare
from mrl_jax.report.compare import KINDS
from mrl_jax.report.statistics import Difference, Interval
from mrl_jax.report.study import BASELINES, LABELS, MEASURES, NESTED, Comparison, Series, Study

METRICS = {metric: title.removesuffix(", top-1 accuracy") for metric, title in MEASURES.items()}
Comparisons = Mapping[str, Mapping[str, Comparison]]


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
    figures: Sequence[str] = ()  # names of plots, shown where they were drawn


def sections(study: Study, comparisons: Comparisons) -> list[Section]:
    """The report's parts, without those that the study has no numbers for."""
    parts = [
        _accuracy(study),
        *(_differences(study, metric, made) for metric, made in comparisons.items()),
        _between(comparisons),
        _tax(comparisons),
        _equal_compute(study),
        _own_heads(study),
        _oracle(study),
        _adaptive(study),
        _equal_bytes(study),
        _classes(study),
    ]
    return [part for part in parts if part.sentences or part.tables]


def _accuracy(study: Study) -> Section:
    tables = []
    for metric, title in METRICS.items():
        for variant in study.variants:
            shown = {s: study.values(s, metric) for s in study.series if s.variant == variant}
            shown = {s: values for s, values in shown.items() if values}
            rows = [
                [str(dim), *(_mean(values.get(dim)) for values in shown.values())]
                for dim in study.dims
                if any(dim in values for values in shown.values())
            ]
            spread = f", mean ± standard deviation of {study.seeds} seeds" if study.seeds > 1 else ""
            if metric == "linear_top1" and any(s.arm in POSTHOC for s in shown):
                title += " (refitted where the arm is compressed after training)"
            what = f"Top-1 test accuracy (%) of the {title}" if metric.endswith("top1") else f"Test {title} (× 100)"
            caption = f"{what}{spread}{_of(variant)}."
            name = f"accuracy-{metric}{_dash(variant)}"
            tables += _some(name, caption, ["dim", *(LABELS[s.arm] for s in shown)], rows)
    return Section("Accuracy against dimension", [], tables, ["accuracy", "training"])


def _differences(study: Study, metric: str, made: Mapping[str, Comparison]) -> Section:
    """A table for MRL and for MRL-E; a sentence for every comparison that is not between runs."""
    tables, sentences = [], []
    for label, comparison in made.items():
        if comparison.a.arm != comparison.b.arm:
            sentences.append(f"{label}: {compare.verdict(comparison)}")
    for series in (s for s in study.series if s.arm in NESTED[:2]):
        against = [c for c in made.values() if c.a == series and c.b.arm in (*BASELINES, *UNTUNED)]
        caption = f"{series.label}, {METRICS[metric]}, minus the arm of the column: percentage points"
        caption += " [95 % interval] and p (Holm over the dims)." if study.seeds > 1 else "."
        if any(compare.fair(study, c.a, c.b, metric) != metric for c in against):
            caption += f" Both sides refitted against {_listed(c.b for c in against if c.b.arm in POSTHOC)}."
        if against:
            tables.append(
                _grid(f"differences-{metric}-{series.key}", caption, against, [LABELS[c.b.arm] for c in against])
            )
    return Section(f"Differences: {METRICS[metric]}", sentences, tables, [f"differences-{metric}"])


def _between(comparisons: Comparisons) -> Section:
    tables, sentences = [], []
    for metric, made in comparisons.items():
        shown = {label: c for label, c in made.items() if c.a.arm == c.b.arm}
        if shown:
            caption = (
                f"The same arm in two variants, {METRICS[metric]}: percentage points [95 % interval] and p (Holm)."
            )
            tables.append(_grid(f"between-{metric}", caption, list(shown.values()), list(shown)))
            sentences += [f"{METRICS[metric]}, {label}: {compare.verdict(c)}" for label, c in shown.items()]
    return Section("Between runs", sentences, tables)


def _grid(name: str, caption: str, shown: Sequence[Comparison], header: Sequence[str]) -> Table:
    """A row a dim; for each comparison its difference with interval, and p where it is known."""
    known = [any(math.isfinite(d.p_holm) for d in c.differences) for c in shown]
    head = ["dim"]
    for title, p in zip(header, known, strict=True):
        head += [f"− {title}" if "−" not in title else title, *(["p"] if p else [])]
    rows = []
    for dim in sorted({d.dim for c in shown for d in c.differences}):
        row = [str(dim)]
        for comparison, p in zip(shown, known, strict=True):
            found = next((d for d in comparison.differences if d.dim == dim), None)
            row += [_points(found), *([_p(found)] if p else [])]
        rows.append(row)
    return Table(name, caption, head, rows)


def _tax(comparisons: Comparisons) -> Section:
    rows = [
        [METRICS[metric], c.a.label, str(c.tax.dim), _points(c.tax)]
        for metric, made in comparisons.items()
        for c in made.values()
        if c.tax is not None
    ]
    said = "What nesting costs at full width: FF(D) − nested arm, positive where the fixed-size model is better."
    caption = "FF(D) minus the arm at full width D, percentage points [95 % interval]."
    return Section("The Matryoshka tax", [said] if rows else [], _some("tax", caption, ["", "arm", "D", "tax"], rows))


def _equal_compute(study: Study) -> Section:
    """What each way to serve all dims takes to train, and gives."""
    rows = []
    for variant in (v for v in study.variants if study.find("ff", v)):
        costs = compare.costs(study, variant)
        for arm in (*NESTED, "ff", *BASELINES[1:]):
            series = study.find(arm, variant)
            if series is None:
                continue
            values = study.values(series, "refit_top1") or study.values(series, study.measures[0])
            cost: float | None
            if arm in POSTHOC:
                name, trainings, cost = f"one FF(D), {series.label}", 1, costs.get("ff") and 1.0
            elif arm == "ff":
                name, trainings, cost = f"{series.label}, a model a dim", len(values), costs.get("ff")
            else:
                name, trainings, cost = series.label, 1, costs.get(arm)
            accuracies = (_mean(values.get(dim), spread=False) for dim in study.dims)
            rows.append([name, str(trainings), "–" if cost is None else f"{cost:.2f}", *accuracies])
    sentences = [
        "A family of fixed-size models takes one training for every dim; a nested model, or one full-width model "
        "compressed afterwards, takes one for all. Cost is measured training time in trainings of FF(D); "
        "– where arms were trained together, or not measured."
    ]
    header = ["", "trainings", "cost", *map(str, study.dims)]
    caption = "Trainings, their measured cost, and "
    if study.classes:
        caption += (
            "top-1 accuracy (%) of a classifier refitted on the embedding (where not measured: of the arm's own)."
        )
    else:
        caption += f"{MEASURES[study.measures[0]]} (× 100)."
    return Section("At equal compute", sentences if rows else [], _some("compute", caption, header, rows))


def _own_heads(study: Study) -> Section:
    """Own head → refitted classifier, for each arm that has both."""
    tables = []
    for variant in study.variants:
        columns = {}
        for series in (s for s in study.series if s.variant == variant and s.arm in (*NESTED, *BASELINES)):
            own, refit = ("own_head_top1", "linear_top1") if series.arm in POSTHOC else ("linear_top1", "refit_top1")
            both = study.values(series, own), study.values(series, refit)
            if all(both):
                columns[series] = both
        rows = []
        for dim in study.dims if columns else ():
            row = [str(dim)]
            for own_at, refit_at in columns.values():
                a, b = own_at.get(dim), refit_at.get(dim)
                row.append("–" if a is None or b is None else f"{_percent(a)} → {_percent(b)} ({_signed(b - a)})")
            rows.append(row)
        caption = f"Test accuracy (%): own head → classifier refitted on the embedding (the gap){_of(variant)}."
        header = ["dim", *(LABELS[s.arm] for s in columns)]
        tables += _some(f"heads{_dash(variant)}", caption, header, rows)
    said = (
        "Published comparisons often read a truncated or projected embedding with the full model's own head; refitting "
        "a classifier on the compressed embedding is the fair baseline. The gap is what the unfair comparison hides."
    )
    return Section("Own head and refitted classifier", [said] if tables else [], tables)


def _oracle(study: Study) -> Section:
    rows = []
    for series in (s for s in study.series if s.arm in NESTED):
        found = compare.oracle(study, series)
        if found:
            full = max(found.shares)
            rows.append(
                [
                    series.label, f"{100 * found.full:.2f}", f"{100 * found.accuracy:.2f}",
                    f"{100 * (found.accuracy - found.full):+.2f}", f"{found.mean_dims:.1f} of {full}",
                ]
            )  # fmt: skip
    said = (
        "An oracle reads each example at the smallest dim that is right about it (at the smallest dim if none is): "
        "no way to choose among these dims can be more accurate."
    )
    caption = "Top-1 test accuracy (%) at full width and by the oracle, and the dims that it reads on average."
    header = ["arm", "full width", "oracle", "gain", "mean dims"]
    tables = _some("oracle", caption, header, rows)
    return Section("An oracle that picks the dimension", [said] if rows else [], tables, ["oracle"])


def _adaptive(study: Study) -> Section:
    """What cascades over each nested arm's own classifiers give."""
    rows = [
        [
            f"{series.label}, {found.rule}", f"{100 * found.accuracy:.2f}", _interval(found.lost, 100, "+.2f"),
            f"{_interval(found.dims, 1, '.1f')} of {found.full}", f"{found.cumulative_dims:.1f}",
            f"{found.kflop:.2f}", f"{100 * found.captured:.0f}",
            "–" if found.certified is None else f"{found.certified} of {study.seeds}",
        ]
        for series in study.series
        for found in compare.adaptive(study, series)
    ]  # fmt: skip
    said = (
        "An input leaves at the first dim whose classifier is sure enough. The greedy rule of the paper promises "
        "nothing; certified thresholds lose more than evaluation.epsilon of the accuracy at full width with "
        "probability at most evaluation.delta, and read everything where that cannot be shown. Dims are those of the "
        "classifier that answered; cumulative dims add those asked before it, which a tied head does not read again."
    )
    caption = "Cascades on the test split: top-1 accuracy (%), points lost against full width [95 % interval], dims "
    caption += "[95 % interval], thousand floating-point operations of the heads an input, dims saved as a share (%) "
    caption += "of those that the oracle saves, and seeds with a certificate."
    header = ["cascade", "top-1", "lost", "mean dims", "cumulative", "kFLOP", "of oracle", "certified"]
    tables = _some("cascade", caption, header, rows)
    return Section("Adaptive classification", [said] if rows else [], tables, ["cascade"])


def _interval(found: Interval, scale: float, form: str) -> str:
    mean, low, high = (f"{scale * x:{form}}".replace("-", "−") for x in found)
    return mean if math.isnan(found.low) else f"{mean} [{low}, {high}]"


def _equal_bytes(study: Study) -> Section:
    rows = [
        [s.label, f"{size:g}", *(f"{100 * at[k][1]:.2f} ({at[k][0]})" if k in at else "–" for k in KINDS)]
        for s in study.series
        if s.arm in (*NESTED[:2], "ff", "pca")
        for size, at in compare.equal_bytes(study, s)
    ]
    said = (
        "The same bytes hold few precise coordinates or many coarse ones: 64 float32 numbers take as much as 256 int8 "
        "or 2048 single bits."
    )
    caption = "Nearest-neighbour top-1 accuracy (%) by bytes an embedding; in brackets the dims that they hold."
    return Section(
        "Few precise or many coarse coordinates",
        [said] if rows else [],
        _some("bytes", caption, ["arm", "bytes", *KINDS], rows),
        ["bytes"],
    )


def _classes(study: Study, most: int = 10) -> Section:
    tables = []
    for series in (s for s in study.series if s.arm in NESTED[:2]):
        needs = compare.class_needs(study, series)
        rows = [
            [c.name, str(c.examples), *(f"{100 * v:.1f}" for v in c.accuracy.values()), str(c.enough)]
            for c in needs[:most]
        ]
        if rows:
            caption = (
                f"{series.label}: test accuracy (%) of the {len(rows)} classes (of {len(needs)}) that need most dims; "
                "enough: the dim from which on a class stays within a point of its accuracy at full width."
            )
            header = ["class", "examples", *map(str, needs[0].accuracy), "enough"]
            tables.append(Table(f"classes-{series.key}", caption, header, rows))
    figures = [f"classes-{s.key}" for s in study.series if s.arm in NESTED]
    return Section("Classes that need more dimensions", [], tables, figures)


def markdown(study: Study, parts: Sequence[Section], drawn: Collection[str]) -> str:
    """report.md; `drawn` are the names of the plots that there are."""
    seeds = f"{study.seeds} seeds" if study.seeds > 1 else "one seed"
    of_classes = f" of {len(study.classes):,} classes" if study.classes else ""
    lines = [
        f"# {_markdown(study.title)}",
        "",
        f"{len(study.labels):,} test examples{of_classes}, {seeds}, embeddings of {study.width} "
        f"dimensions, nesting dims {', '.join(map(str, study.dims))}. Differences are paired by seed and test example; "
        "intervals and p-values are over both.",
    ]
    if study.notes:
        lines += ["", *(f"- {_markdown(note)}" for note in study.notes)]
    for part in parts:
        lines += ["", f"## {_markdown(part.heading)}"]
        if len(part.sentences) == 1:
            lines += ["", _markdown(part.sentences[0])]
        elif part.sentences:
            lines += ["", *(f"- {_markdown(sentence)}" for sentence in part.sentences)]
        for table in part.tables:
            lines += ["", _markdown(table.caption), "", *_markdown_grid(table)]
        lines += [line for name in part.figures if name in drawn for line in ("", f"![{name}](plots/{name}.png)")]
    return "\n".join(lines) + "\n"


def _markdown_grid(table: Table) -> Iterator[str]:
    for i, row in enumerate([table.header, *table.rows]):
        yield "| " + " | ".join(_markdown(cell) for cell in row) + " |"
        if i == 0:
            yield "|" + "|".join("---" if _is_text(table, k) else "---:" for k in range(len(row))) + "|"


def latex(study: Study, parts: Sequence[Section]) -> str:
    """tables.tex: every table in a float of its own, for a document that uses booktabs."""
    lines = [f"% {_one_line(study.title)}", "% needs \\usepackage{booktabs}"]
    for table in (table for part in parts for table in part.tables):
        columns = "".join("l" if _is_text(table, k) else "r" for k in range(len(table.header)))
        lines += [
            "", "\\begin{table}", "  \\centering", f"  \\caption{{{_latex(table.caption)}}}",
            f"  \\label{{tab:{re.sub(r'[^A-Za-z0-9.-]', '-', table.name)}}}", f"  \\begin{{tabular}}{{{columns}}}",
            "    \\toprule", "    " + " & ".join(map(_latex, table.header)) + " \\\\", "    \\midrule",
            *("    " + " & ".join(map(_latex, row)) + " \\\\" for row in table.rows),
            "    \\bottomrule", "  \\end{tabular}", "\\end{table}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def tidy(comparisons: Comparisons) -> str:
    """differences.csv: a line a metric, pair and dim, as shares (not points); empty fields are not known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("metric", "a", "b", *Difference._fields))
    for metric, made in comparisons.items():
        for c in made.values():
            for d in c.differences:
                numbers = ("" if math.isnan(x) else f"{x:.6g}" for x in d[1:])
                writer.writerow((metric, _one_line(c.a.label), _one_line(c.b.label), d.dim, *numbers))
    return buffer.getvalue()


def text(table: Table) -> str:
    """A table for the terminal."""
    cells = [[_one_line(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(table.header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([_one_line(table.caption), *lines])


# ---- cells ----------------------------------------------------------------------------------------------------------


def _some(name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    return [Table(name, caption, header, rows)] if rows else []


def _listed(series: Iterable[Series]) -> str:
    return " and ".join(LABELS[s.arm] for s in series)


def _of(variant: str | None) -> str:
    return "" if variant is None else f"; {variant}"


def _dash(variant: str | None) -> str:
    return "" if variant is None else f"-{variant}"


def _percent(values: np.ndarray) -> str:
    return f"{100 * values.mean():.2f}"


def _mean(values: np.ndarray | None, spread: bool = True) -> str:
    if values is None:
        return "–"
    return _percent(values) + (f" ± {100 * values.std(ddof=1):.2f}" if spread and len(values) > 1 else "")


def _signed(values: np.ndarray | float) -> str:
    return f"{100 * float(np.mean(values)):+.2f}".replace("-", "−")


def _points(found: Difference | None) -> str:
    if found is None:
        return "–"
    interval = "" if math.isnan(found.low) else f" [{_signed(found.low)}, {_signed(found.high)}]"
    return _signed(found.mean) + interval


def _p(found: Difference | None) -> str:
    if found is None or math.isnan(found.p_holm):
        return "–"
    return "<0.001" if found.p_holm < 0.001 else f"{found.p_holm:.3f}"


def _is_text(table: Table, column: int) -> bool:
    """Whether a column is set flush left: one with a cell that has no digit first."""
    return any(re.match(r"[^\d+−–<]", row[column]) for row in table.rows)


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _markdown(text: str) -> str:
    """Literal in Markdown, also in a cell of a table and where HTML is allowed. An interval keeps its brackets."""
    text = re.sub(r"([\\`*_|~$#]|\[(?![+−\d])|\](?=[(:\[]))", r"\\\1", _one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "±": r"$\pm$", "→": r"$\rightarrow$", "·": r"$\cdot$",
    "–": "--", "\0": "{}", "[": "{[}", "]": "{]}", "×": r"$\times$", "…": r"\dots{}",
}  # fmt: skip


def _latex(text: str) -> str:
    """Literal in LaTeX; brackets in braces, since one after `\\\\` would be read as its argument."""
    apart = re.sub(r"(?<=[-`',])(?=[-`',])", "\0", _one_line(text))  # or two of them become another sign
    return "".join(LATEX.get(sign, sign) for sign in apart)
