"""Test accuracies of the runs of experiments/layers: all of them as accuracies.csv, and the tables of the page.

python experiments/layers/analyse.py results
"""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
WHOLE = {"layers": 4, "hidden": 256}  # the size of the whole encoder on the axis that an experiment nests over
METRIC = re.compile(r"(?:(?:layer|hidden)(\d+)_)?linear_top1")
TRAINED = {"mrl": "nested", "mrl_dims": "whole"}
SHOWN_DIMS = (8, 64)


class Accuracy(NamedTuple):
    """A line of accuracies.csv."""

    axis: str  # what is nested beside the dims: layers or hidden
    trained: str  # nested; whole: at full size, cut afterwards; alone: an encoder of that size
    size: int
    dim: int
    seed: int
    top1: float


def collect(results: Path) -> list[Accuracy]:
    """The test accuracies of all runs."""
    found = []
    for axis, whole in WHOLE.items():
        for path in sorted((results / axis).glob("*/evaluation.csv")):
            alone = re.fullmatch(r"alone(\d+)", path.parent.name)
            if alone is None and path.parent.name != "nested":
                continue
            for row in csv.DictReader(path.open(encoding="utf-8")):
                metric = METRIC.fullmatch(row["metric"])
                if metric is None or row["split"] != "test":
                    continue
                size = int(alone[1]) if alone else int(metric[1] or whole)
                trained = "alone" if alone else TRAINED[row["arm"]]
                found.append(Accuracy(axis, trained, size, int(row["dim"]), int(row["seed"]), float(row["value"])))
    return sorted(found)


def table(accuracies: Iterable[Accuracy], axis: str) -> Iterator[list[str]]:
    """A row per size: percent, mean ± standard deviation over the seeds, for each dim shown: nested, whole, alone; at
    the size of the whole encoder the one trained whole is the one trained alone."""
    values: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for one in accuracies:
        if one.axis == axis:
            values[one.size, one.dim, one.trained].append(100 * one.top1)
    for size in sorted({size for size, _, _ in values}):
        row = [str(size)]
        for dim in SHOWN_DIMS:
            for trained in ("nested", "whole", "alone"):
                seeds = values.get((size, dim, trained), [])
                row.append(f"{np.mean(seeds):.2f} ± {np.std(seeds, ddof=1):.2f}" if seeds else "–")
        yield row


def worst(accuracies: Iterable[Accuracy], axis: str) -> float:
    """The least of nested − alone in points, the mean over the seeds, over the dims and the sizes trained alone."""
    values: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for one in accuracies:
        if one.axis == axis:
            values[one.size, one.dim, one.trained].append(100 * one.top1)
    return min(
        float(np.mean(values[size, dim, "nested"]) - np.mean(seeds))
        for (size, dim, trained), seeds in values.items()
        if trained == "alone"
    )


def read(path: Path = HERE / "accuracies.csv") -> list[Accuracy]:
    """The lines of accuracies.csv."""
    rows = csv.DictReader(path.open(encoding="utf-8"))
    return [
        Accuracy(row["axis"], row["trained"], *(int(row[key]) for key in ("size", "dim", "seed")), float(row["top1"]))
        for row in rows
    ]


def main() -> None:
    accuracies = collect(Path(sys.argv[1]))
    with (HERE / "accuracies.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Accuracy._fields)
        writer.writerows(accuracies)
    for axis in WHOLE:
        names = (f"{dim} dims: {trained}" for dim in SHOWN_DIMS for trained in ("nested", "whole, cut", "alone"))
        print(f"\n| {axis} | {' | '.join(names)} |\n|{'---:|' * (1 + 3 * len(SHOWN_DIMS))}")
        for row in table(accuracies, axis):
            print(f"| {' | '.join(row)} |")
        print(f"\nnested − alone, at worst: {worst(accuracies, axis):+.2f} points")


if __name__ == "__main__":
    main()
