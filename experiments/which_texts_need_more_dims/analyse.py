"""Which texts lose most when their embedding is cut: by frequency of their class, by length, and to which classes.

    python experiments/which_texts_need_more_dims/analyse.py results/newsgroups/study results/reuters_r52/study

For each run, arm and group of test texts: accuracy at full width minus accuracy at each smaller nesting dim, in
percentage points, with a 95 % interval over seeds and texts. Writes `losses.csv`, `confusions.csv` and `losses.png`
beside this file, and prints the tables as Markdown.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mrl_jax import config, data, runs
from mrl_jax.data import Dataset
from mrl_jax.report import statistics
from mrl_jax.report.gather import gather
from mrl_jax.report.study import Series, Study

ARMS = ("mrl", "mrl_e", "ff")
RARE = 300  # training examples
FREQUENCIES = (0, 10, 30, 100, 300, 1000, 10**9)  # training examples of a class: groups (0, 10], (10, 30], …


class Loss(NamedTuple):
    """What a group of test texts loses at `dim` against full width, in percentage points."""

    data: str
    arm: str
    by: str
    group: str
    texts: int
    dim: int
    mean: float
    low: float
    high: float


def groups(dataset: Dataset) -> Iterator[tuple[str, str, np.ndarray]]:
    """(property, group, mask over the test split)."""
    labels = dataset.test.labels
    frequency = np.bincount(dataset.train.labels, minlength=len(dataset.classes))[labels]
    for low, high in itertools.pairwise(FREQUENCIES):
        name = f"{low + 1}–{high}" if high < FREQUENCIES[-1] else f"over {low}"
        yield "training examples of the class", name, (frequency > low) & (frequency <= high)
    words = np.array([len(str(text).split()) for text in dataset.test.inputs])
    yield from lengths("words of the text", words, np.full(len(words), True))
    # Frequent classes may have the shorter texts: so the length is looked at among the others alone, too.
    rare = frequency <= RARE
    if rare.any() and not rare.all():
        yield from lengths(f"words of the text, classes of at most {RARE} training texts", words, rare)


def lengths(by: str, words: np.ndarray, among: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Quarters of the texts `among`, by their number of words."""
    edges = np.quantile(words[among], (0, 0.25, 0.5, 0.75, 1)).astype(int)
    for k in range(4):
        low = edges[k] + (k > 0)
        yield by, f"{low}–{edges[k + 1]}", among & (words >= low) & (words <= edges[k + 1])


def losses(name: str, found: Study, dataset: Dataset) -> Iterator[Loss]:
    """Every group's loss at every dim, for the arms that the run has."""
    for series in of_interest(found):
        outcomes = {dim: v for dim, v in found.outcomes(series, "linear_top1").items() if dim in found.dims}
        full = outcomes.pop(found.width)
        for by, group, mask in groups(dataset):
            if mask.sum() < 10:
                continue
            for dim, values in outcomes.items():
                interval = statistics.mean_interval((full - values)[:, mask])
                yield Loss(name, series.arm, by, group, int(mask.sum()), dim, *(100 * x for x in interval))


class Confusion(NamedTuple):
    """Errors of a kind at `dim`, and how many more they are than at full width, per cent of the test texts."""

    data: str
    arm: str
    kind: str
    dim: int
    share: float
    more: float
    low: float
    high: float


def confusions(name: str, found: Study, dataset: Dataset) -> Iterator[Confusion]:
    """Errors within a family of classes and across families, at every dim.

    A family is what stands before the first dot of a class: comp, rec, sci, … Data without such names has none.
    """
    families = np.array([label.partition(".")[0] for label in dataset.classes])
    if len(set(families)) == len(families):
        return
    for series in of_interest(found):
        predicted = {dim: p for dim, p in found.predictions(series).items() if dim in found.dims}
        wrong = {dim: p != dataset.test.labels for dim, p in predicted.items()}
        akin = {dim: families[p] == families[dataset.test.labels] for dim, p in predicted.items()}
        kinds = {
            "within a family": {dim: (wrong[dim] & akin[dim]).astype(float) for dim in predicted},
            "across families": {dim: (wrong[dim] & ~akin[dim]).astype(float) for dim in predicted},
        }
        for kind, errors in kinds.items():
            for dim, values in errors.items():
                more = statistics.mean_interval(values - errors[found.width])
                yield Confusion(name, series.arm, kind, dim, 100 * float(values.mean()), *(100 * x for x in more))


def of_interest(found: Study) -> list[Series]:
    return [series for series in found.series if series.arm in ARMS]


def draw(rows: list[Loss], path: Path) -> None:
    """A panel a data set and property: the loss of each group against the dims that are kept, for MRL."""
    groups = {(row.data, row.by): {r.group for r in rows if (r.data, r.by) == (row.data, row.by)} for row in rows}
    panels = [panel for panel, names in groups.items() if len(names) > 1]
    figure = Figure(figsize=(5.6 * 2, 3.8 * ((len(panels) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
    for ax, (name, by) in zip(axes, panels, strict=False):
        mine = [row for row in rows if (row.data, row.by, row.arm) == (name, by, "mrl")]
        names = list(dict.fromkeys(row.group for row in mine))
        for i, group in enumerate(names):
            line = [row for row in mine if row.group == group]
            shift = 1 + 0.04 * (i - len(names) / 2)  # bars side by side instead of on top of each other
            mean = np.array([row.mean for row in line])
            reach = [mean - [row.low for row in line], [row.high for row in line] - mean]
            label = f"{group} ({line[0].texts:,} texts)"
            ax.errorbar(
                [row.dim * shift for row in line], mean, reach, label=label, marker="o", ms=4, capsize=2, lw=1.4
            )
        ax.set_xscale("log", base=2)
        dims = sorted({row.dim for row in mine})
        ax.set_xticks(dims, [str(dim) for dim in dims])
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.set_title(f"{name}: {by}", fontsize=10)
        ax.set(xlabel="dims kept", ylabel="points lost against full width")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.savefig(path, dpi=140, metadata={"Software": None})


def table(rows: list[Loss], name: str, by: str, arm: str) -> str:
    """A line a group, a column a dim."""
    mine = [row for row in rows if (row.data, row.by, row.arm) == (name, by, arm)]
    dims = sorted({row.dim for row in mine})
    lines = [f"| {by} | texts | " + " | ".join(map(str, dims)) + " |", "|---" * (len(dims) + 2) + "|"]
    for group in dict.fromkeys(row.group for row in mine):
        cells = {row.dim: f"{row.mean:.1f} [{row.low:.1f}, {row.high:.1f}]" for row in mine if row.group == group}
        texts = next(row.texts for row in mine if row.group == group)
        lines.append(f"| {group} | {texts:,} | " + " | ".join(cells.get(dim, "–") for dim in dims) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories with predictions/")
    options = parser.parse_args()
    rows: list[Loss] = []
    confused: list[Confusion] = []
    for path in options.runs:
        settings = config.from_yaml(runs.find(path) / "config.yaml")
        found, dataset = gather([path]), data.load(settings.data)
        if not np.array_equal(found.labels, dataset.test.labels):
            sys.exit(f"error: the test split of {path} is not the one that data={dataset.name} has now")
        rows += losses(settings.name, found, dataset)
        confused += confusions(settings.name, found, dataset)
    folder = Path(__file__).parent
    for file, header, content in (
        ("losses.csv", Loss._fields, rows),
        ("confusions.csv", Confusion._fields, confused),
    ):
        with (folder / file).open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([f"{x:.4f}" if isinstance(x, float) else x for x in row] for row in content)
    draw(rows, folder / "losses.png")
    for name, by, arm in dict.fromkeys((row.data, row.by, row.arm) for row in rows):
        print(f"\n{name}, {arm}: points lost against full width\n\n{table(rows, name, by, arm)}")
    for line in confused:
        more = f"{line.more:+.2f} [{line.low:+.2f}, {line.high:+.2f}]"
        print(f"{line.data}, {line.arm}, {line.dim} dims: {line.share:.2f} % of texts confused {line.kind}, {more}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
