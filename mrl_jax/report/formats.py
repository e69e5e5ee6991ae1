"""The sections of a report as Markdown (report.md), LaTeX (tables.tex) and text; its differences as csv."""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence

from mrl_jax.report.compare import Comparisons
from mrl_jax.report.statistics import Difference
from mrl_jax.report.study import Study
from mrl_jax.report.tables import Section, Table


def markdown(study: Study, parts: Sequence[Section]) -> str:
    """report.md, which shows the figures that lie in plots/."""
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
    return "\n".join([*lines, *markdown_parts(parts)]) + "\n"


def markdown_parts(parts: Sequence[Section]) -> Iterator[str]:
    """The lines of the sections of a report."""
    for part in parts:
        yield from ("", f"## {_markdown(part.heading)}")
        if len(part.sentences) == 1:
            yield from ("", _markdown(part.sentences[0]))
        elif part.sentences:
            yield from ("", *(f"- {_markdown(sentence)}" for sentence in part.sentences))
        for table in part.tables:
            yield from ("", _markdown(table.caption), "", *_markdown_grid(table))
        for figure in part.figures:
            yield from ("", f"![{figure.name}](plots/{figure.name}.png)")


def _markdown_grid(table: Table) -> Iterator[str]:
    for i, row in enumerate([table.header, *table.rows]):
        yield "| " + " | ".join(_markdown(cell) for cell in row) + " |"
        if i == 0:
            yield "|" + "|".join("---" if is_text(table, k) else "---:" for k in range(len(row))) + "|"


def latex(study: Study, parts: Sequence[Section]) -> str:
    """tables.tex: every table in a float of its own, for a document that uses booktabs."""
    lines = [f"% {one_line(study.title)}", "% needs \\usepackage{booktabs}"]
    for table in (table for part in parts for table in part.tables):
        columns = "".join("l" if is_text(table, k) else "r" for k in range(len(table.header)))
        lines += [
            "", "\\begin{table}", "  \\centering", f"  \\caption{{{_latex(table.caption)}}}",
            f"  \\label{{tab:{re.sub(r'[^A-Za-z0-9.-]', '-', table.name)}}}", f"  \\begin{{tabular}}{{{columns}}}",
            "    \\toprule", "    " + " & ".join(map(_latex, table.header)) + " \\\\", "    \\midrule",
            *("    " + " & ".join(map(_latex, row)) + " \\\\" for row in table.rows),
            "    \\bottomrule", "  \\end{tabular}", "\\end{table}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def tidy(comparisons: Comparisons) -> str:
    """differences.csv: one line per metric, pair and dim, as shares (not points); empty fields are not known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("metric", "a", "b", *Difference._fields))
    for metric, of_metric in comparisons.items():
        for c in of_metric.values():
            for d in c.differences:
                numbers = ("" if math.isnan(x) else f"{x:.6g}" for x in d[1:])
                writer.writerow((metric, one_line(c.a.label), one_line(c.b.label), d.dim, *numbers))
    return buffer.getvalue()


def text(table: Table) -> str:
    """A table for the terminal."""
    grid = [[one_line(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[k]) for row in grid) for k in range(len(table.header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in grid]
    return "\n".join([one_line(table.caption), *lines])


def is_text(table: Table, column: int) -> bool:
    """Whether a column is set flush left: one with a cell that has no digit first."""
    return any(re.match(r"[^\d+−–<]", row[column]) for row in table.rows)


def one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _markdown(text: str) -> str:
    """Literal in Markdown, also in a cell of a table and where HTML is allowed. An interval keeps its brackets."""
    text = re.sub(r"([\\`*_|~$#]|\[(?![+−\d])|\](?=[(:\[]))", r"\\\1", one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "±": r"$\pm$", "→": r"$\rightarrow$", "·": r"$\cdot$",
    "–": "--", "\0": "{}", "[": "{[}", "]": "{]}", "×": r"$\times$", "…": r"\dots{}",
}  # fmt: skip


def _latex(text: str) -> str:
    """Literal in LaTeX; brackets in braces, since one after `\\\\` would be read as its argument."""
    apart = re.sub(r"(?<=[-`',])(?=[-`',])", "\0", one_line(text))  # or two of them become another character
    return "".join(LATEX.get(c, c) for c in apart)
