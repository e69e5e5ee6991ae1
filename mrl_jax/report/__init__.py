"""The report of any number of runs: statistics, tables, plots and a page, from their files and from nothing else.

    python -m mrl_jax.report results/newsgroups/latest
    python -m mrl_jax.report results/newsgroups results/newsgroups_weighted --out reports/weights

Writes report.md, report.html, tables.tex, differences.csv and plots/ into `<first path>/report`, or into --out.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mrl_jax import console, files, runs
from mrl_jax.errors import UserError
from mrl_jax.report import compare, page, plots, study, tables
from mrl_jax.runs import MetricRow

OF_CLASSES = ("linear_top1", "linear_top5", "ece", "knn_top1", "map@10", "precision@10")
OF_PAIRS = ("ndcg@10", "mrr@10", "recall@1", "recall@10", "recall@100", "spearman")
METRICS = (*OF_CLASSES, *OF_PAIRS)


def report(paths: list[Path], out: Path) -> tuple[list[Path], str]:
    """Write the report of the runs at `paths` into the folder `out`; returns the files and the main table as text.

    Raises:
        UserError: no runs, runs that cannot be compared, damaged files, or a folder that cannot be written.
    """
    gathered = study.gather(paths)
    total = sum(len(compare.pairs(gathered)) for _ in gathered.measures)
    with console.progress(total + 3, "read", "step") as bar:

        def tick(label: str) -> None:
            bar.set_description(label[:30].ljust(30))
            bar.update()

        comparisons = compare.compare(gathered, tick)
        parts = tables.sections(gathered, comparisons)
        tick("plots")
        figures = plots.of_study(gathered, comparisons)
        drawn = plots.save(figures, out / "plots")
        tick("page")
        contents = {
            "report.md": tables.markdown(gathered, parts, figures),
            "tables.tex": tables.latex(gathered, parts),
            "differences.csv": tables.tidy(comparisons),
            "report.html": page.html(gathered, comparisons),
        }
        tick("done")
    for name, content in contents.items():
        files.write(out / name, content)
    written = [out / name for name in contents] + drawn
    main = next((part for part in parts if part.heading.startswith("Differences")), parts[0])
    grids = [tables.text(table) for table in main.tables]
    return written, "\n\n".join("\n".join(lines) for lines in (gathered.notes, grids, main.sentences) if lines)


def table(directory: Path, split: str = "test") -> str:
    """Every metric of a run at every dim, arm by arm, as fixed-width text; with several seeds mean ± standard
    deviation."""
    rows = [row for row in runs.read_rows(directory / "evaluation.csv") if row.split == split]
    values = _by_seed(rows)
    seeds = max((len(v) for v in values.values()), default=0)
    width = 16 if seeds > 1 else 14
    lines = []
    for arm in (arm for arm in study.LABELS if any(key[0] == arm for key in values)):
        note = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
        metrics = [m for m in METRICS if any(key[0] == arm and key[2] == m for key in values)]
        lines += ["", f"{study.LABELS[arm]}, {split} split{note}", "   dim" + "".join(f"{m:>{width}}" for m in metrics)]
        for dim in sorted({key[1] for key in values if key[0] == arm}):
            cells = (_cell(values.get((arm, dim, metric))) for metric in metrics)
            lines.append(f"{dim:>6}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines[1:])


def draw(directory: Path) -> list[Path]:
    """Draw `plots/accuracy` and `plots/training` of a run, as PNG and SVG; returns the files."""
    gathered = study.gather([directory])
    return plots.save({"accuracy": plots.accuracy(gathered), "training": plots.training(gathered)}, directory / "plots")


def _by_seed(rows: Iterable[MetricRow]) -> dict[tuple[str, int, str], list[float]]:
    """(arm, dim, metric) → one value a seed."""
    values = defaultdict(list)
    for row in rows:
        values[row.arm, row.dim, row.metric].append(row.value)
    return dict(values)


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "–"
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"[:14]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 a mistake in the command or the files."""
    console.replace_unencodable()
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.report", description="Compare runs: statistics, tables, plots and a page."
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run, or a folder with runs below it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; by default <first PATH>/report")
    try:
        given = parser.parse_args(arguments)
    except SystemExit as stopped:  # argparse has said why
        return int(stopped.code or 0)
    try:
        written, said = report(given.paths, given.out or given.paths[0] / "report")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or given.paths[0]}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(said)
    print(f"{written[0].parent}: {', '.join(str(path.relative_to(written[0].parent)) for path in written)}",
          file=sys.stderr)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
