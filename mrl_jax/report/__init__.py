"""The report of any number of runs: statistics, tables, plots and a page, from their files and from nothing else.

    python -m mrl_jax.report results/newsgroups/latest
    python -m mrl_jax.report results/newsgroups results/newsgroups_weighted --out reports/weights

    python -m mrl_jax.report --across results/newsgroups/a/report results/reuters_r52/b/report results/mine/c/report

Writes report.md, report.html, tables.tex, differences.csv and plots/ into `<first path>/report`, or into --out. With
--across it reads the reports of several data sets, and writes across.md, across.csv and plots/: see `report.across`.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mrl_jax.arms import ARMS, CLASSICAL, TRAINED
from mrl_jax.evaluate.metrics import COMPARED, find, ordered
from mrl_jax.report import across, compare, figures, formats, page, plots, validate
from mrl_jax.report.gather import gather
from mrl_jax.report.sections import sections
from mrl_jax.system import console, files
from mrl_jax.system.errors import UserError


def report(paths: list[Path], out: Path) -> tuple[list[Path], str]:
    """Write the report of the runs at `paths` into the folder `out`; returns the files and the main table as text.

    Raises:
        UserError: no runs, runs that cannot be compared, damaged files, or a folder that cannot be written.
    """
    gathered = gather(paths)
    total = len(compare.pairs(gathered)) * len(gathered.compared)
    with console.progress(total + 3, "read", "step") as bar:

        def tick(label: str) -> None:
            bar.set_description(label[:30].ljust(30))
            bar.update()

        comparisons = compare.compare(gathered, tick)
        tick("plots")
        parts = sections(gathered, comparisons)
        images = plots.save([figure for part in parts for figure in part.figures], out / "plots")
        tick("page")
        contents = {
            "report.md": formats.markdown(gathered, parts),
            "tables.tex": formats.latex(gathered, parts),
            "differences.csv": formats.tidy(comparisons),
            "report.html": page.html(gathered, parts),
        }
        tick("done")
    for name, content in contents.items():
        files.write(out / name, content)
    written = [out / name for name in contents] + images
    main = next((part for part in parts if part.heading.startswith("Differences")), parts[0])
    grids = [formats.text(table) for table in main.tables]
    return written, "\n\n".join("\n".join(lines) for lines in (gathered.notes, grids, main.sentences) if lines)


def table(directory: Path, metrics: Sequence[str] | None = None, split: str = "test") -> str:
    """A run's metrics at every dim, arm by arm, as fixed-width text; with several seeds mean ± standard deviation.

    Args:
        directory: the run.
        metrics: names, `all` for every metric that was measured; None for those that are `printed` in `METRICS`.
        split: test or validation.

    Raises:
        UserError: evaluation.csv is damaged.
    """
    values: dict[tuple[str, int, str], list[float]] = defaultdict(list)  # arm, dim, metric → one value per seed
    for row in validate.metric_rows(directory):
        if row.split == split:
            values[row.arm, row.dim, row.metric].append(row.value)
    measured = {metric for _, _, metric in values}
    known = ordered(measured)
    main = [name for name in known if (metric := find(name)) and metric.printed]
    wanted = main if metrics is None else metrics
    columns = [name for name in known if "all" in wanted or name in wanted]
    if measured and not columns:
        return f"{split} split: {', '.join(wanted) or 'main metrics'} not measured; measured: {', '.join(known)}"
    seeds = max(map(len, values.values()), default=0)
    note = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    blocks = []
    for arm, kind in ARMS.items():
        shown = [name for name in columns if any((arm, name) == (a, m) for a, _, m in values)]
        widths = [max(16 if seeds > 1 else 14, len(name) + 2) for name in shown]
        lines = [f"{kind.label}, {split} split{note}", "   dim" + "".join(map(str.rjust, shown, widths))]
        for dim in sorted({dim for a, dim, metric in values if a == arm and metric in shown}):
            cells = (_cell(values.get((arm, dim, name))) for name in shown)
            lines.append(f"{'–' if kind.origin == 'classical' else dim:>6}" + "".join(map(str.rjust, cells, widths)))
        blocks += ["\n".join(lines)] if shown else []
    return "\n\n".join(blocks)


def outcomes(directory: Path, metric: str) -> dict[str, dict[int, np.ndarray]]:
    """What each arm of a run gave for each test example, ready for `statistics.differences`, which pairs them.

    Args:
        directory: the run.
        metric: one that every example has a value of by itself, such as linear_top1 (right or wrong) or ndcg@10.

    Returns:
        arm → dim → float64 [S seeds, n test examples], a share in [0, 1] of most metrics; ascending seeds, those that
        all arms have. Arms without the metric are left out.

    Raises:
        UserError: no run there, several configurations, or a damaged file.
    """
    gathered = gather([directory])
    if len(gathered.variants) > 1:
        raise UserError(f"{directory} has runs of {len(gathered.variants)} configurations; expected a single run")
    of = {series.arm: gathered.outcomes(series, metric) for series in gathered.series}
    return {arm: {dim: v.astype(np.float64) for dim, v in by_dim.items()} for arm, by_dim in of.items() if by_dim}


def behind(directory: Path) -> str:
    """A sentence where a baseline without an embedding beats every trained arm of a run on its test split, at the full
    width and by the mean over seeds; empty where none does.

    Raises:
        UserError: evaluation.csv is damaged.
    """
    rows = [row for row in validate.metric_rows(directory) if row.split == "test" and row.metric in COMPARED]
    width = max((row.dim for row in rows), default=0)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # metric → arm → seeds
    for row in rows:
        if row.dim == width:
            values[row.metric][row.arm].append(row.value)
    found = []
    for metric, of in values.items():
        means = {arm: 100 * float(np.mean(each)) for arm, each in of.items()}
        ours = max((arm for arm in means if arm in TRAINED), key=lambda arm: means[arm], default=None)
        best = max((arm for arm in means if arm in CLASSICAL), key=lambda arm: means[arm], default=None)
        if ours and best and means[ours] < means[best]:
            found.append(
                f"{ARMS[best].label} has {means[best]:.2f} %, {ARMS[ours].label} with {width} dims {means[ours]:.2f} % "
                f"({COMPARED[metric]})"
            )
    return f"behind a baseline on the test split: {'; '.join(found)}" if found else ""


def draw(directory: Path) -> list[Path]:
    """Draw `plots/accuracy`, `plots/training` and, where it was measured, `plots/generalisation` of a run, as PNG and
    SVG; returns the files."""
    gathered = gather([directory])
    curves = [figure for figure in (figures.generalisation(gathered),) if figure.panels]
    return plots.save([figures.accuracy(gathered), *curves, figures.training(gathered)], directory / "plots")


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "–"
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mrl_jax.report", description="Compare runs: statistics, tables, plots and a page."
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run, or a folder with runs below it")
    parser.add_argument(
        "--across", action="store_true", help="PATHs are reports of several data sets: what they say together"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; by default <first PATH>/report")
    return console.run(parser, _run, arguments, place="out")


def _run(options: argparse.Namespace) -> None:
    write, usual = (across.report, "across") if options.across else (report, "report")
    written, summary = write(options.paths, options.out or options.paths[0] / usual)
    print(summary)
    folder = written[0].parent
    print(f"{folder}: {', '.join(str(path.relative_to(folder)) for path in written)}", file=sys.stderr)
