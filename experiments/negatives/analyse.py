"""What mined negatives change: nDCG@10 of each condition, and the differences with intervals over seeds and queries.

    python experiments/negatives/analyse.py results/negatives [--csv FILE]

Differences are paired by seed and query, in points, with 95 % intervals of `mrl_jax.report.statistics`; p is corrected
over the dims (Holm). The last column is the gain at a dim less that at all dims.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrl_jax import report
from mrl_jax.report import statistics

METRIC = "ndcg@10"
CONTRASTS = (("mined", "none"), ("nearest", "none"), ("guided", "none"), ("guided", "nearest"))
HEADER = (
    *("contrast", "dim", "first", "second", "difference", "low", "high", "p_holm"),
    *("more_than_at_all", "more_low", "more_high"),
)

Outcomes = dict[int, np.ndarray]  # by dim nDCG@10 in percent, float64 [seeds, queries]


def read(run: Path) -> Outcomes:
    """Of the test queries; empty where the condition was not trained."""
    of = report.outcomes(run, METRIC) if run.exists() else {}
    return {dim: 100 * values for dim, values in of.get("mrl", {}).items()}


def rows(folder: Path) -> Iterator[tuple[object, ...]]:
    of = {name: found for name in dict.fromkeys(sum(CONTRASTS, ())) if (found := read(folder / name))}
    for first, second in CONTRASTS:
        if not {first, second} <= of.keys():
            continue
        a, b = of[first], of[second]
        width = max(a)
        for one in statistics.differences(a, b):
            gain, at_all = a[one.dim] - b[one.dim], a[width] - b[width]
            (more,) = statistics.differences({0: gain}, {0: at_all}) if one.dim < width else (None,)
            extra = ("", "", "") if more is None else tuple(round(x, 3) for x in (more.mean, more.low, more.high))
            numbers = (a[one.dim].mean(), b[one.dim].mean(), one.mean, one.low, one.high)
            yield (f"{first} − {second}", one.dim, *(round(float(x), 3) for x in numbers), round(one.p_holm, 4), *extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs, results/negatives")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    table = list(rows(options.folder))
    print("| contrast | dims | first | second | difference | p (Holm) | more than at all dims |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for contrast, dim, first, second, mean, low, high, p, *more in table:
        cells = [str(contrast), str(dim), f"{first:.2f}", f"{second:.2f}", f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"]
        cells += [f"{p:.3f}", "" if more[0] == "" else f"{more[0]:+.2f} [{more[1]:+.2f}, {more[2]:+.2f}]"]
        print(f"| {' | '.join(cells)} |".replace("-", "−"))
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADER, *table])


if __name__ == "__main__":
    main()
