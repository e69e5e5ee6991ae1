"""Sparse codes against prefixes of the same bytes: accuracies, and differences with intervals over seeds and texts.

    python experiments/csr/analyse.py results/csr_friends/study results/csr_reuters_r52/study … [--csv FILE]

Differences CSR − arm are paired by seed and test text, in points, with 95 % intervals of `mrl_jax.report.statistics`;
bold where p is below 0.05 after Holm over the dims of a contrast.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrl_jax import arms, report
from mrl_jax.report import statistics

METRICS = {"linear_top1": "linear classifier", "knn_top1": "nearest neighbour"}
OTHERS = ("mrl", "ff", "truncated", "pca")
HEADER = ("set", "metric", "dim", "other", "csr", "mean", "difference", "low", "high", "p_holm")


def rows(run: Path) -> Iterator[tuple[Any, ...]]:
    name = run.parent.name.removeprefix("csr_")
    for metric in METRICS:
        of = report.outcomes(run, metric)
        percent = {arm: {dim: 100 * v for dim, v in of.get(arm, {}).items()} for arm in ("csr", *OTHERS)}
        codes = percent["csr"]
        for other in OTHERS:
            prefixes = percent[other]
            for one in statistics.differences(codes, prefixes):
                means = (float(codes[one.dim].mean()), float(prefixes[one.dim].mean()))
                numbers = [round(float(x), 3) for x in (*means, one.mean, one.low, one.high)]
                yield (name, metric, one.dim, other, *numbers, round(one.p_holm, 4))


def tables(found: list[tuple[Any, ...]]) -> dict[str, list[str]]:
    """Of each metric the lines of its table."""
    made = {}
    for metric in METRICS:
        labels = " | ".join(f"CSR − {arms.ARMS[other].label}" for other in OTHERS)
        lines = [f"| set | dims | CSR | {labels} |", f"|---|---:|---:{'|---:' * len(OTHERS)}|"]
        some = [row for row in found if row[1] == metric]
        for name, dim in dict.fromkeys((row[0], int(row[2])) for row in some):
            of = {row[3]: row for row in some if (row[0], int(row[2])) == (name, dim)}
            cells = []
            for other in OTHERS:
                mean, low, high, p = (float(x) for x in of[other][6:])
                bold = "**" * (p < statistics.LEVEL)
                cells.append(f"{bold}{mean:+.1f} [{low:+.1f}, {high:+.1f}]{bold}".replace("-", "−"))
            lines.append(f"| {name} | {dim} | {float(of[OTHERS[0]][4]):.1f} | {' | '.join(cells)} |")
        made[metric] = lines
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path, help="also write the differences to this file")
    options = parser.parse_args()
    found = [row for run in options.runs for row in rows(run)]
    for metric, lines in tables(found).items():
        print(METRICS[metric], *lines, "", sep="\n")
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADER, *found])


if __name__ == "__main__":
    main()
