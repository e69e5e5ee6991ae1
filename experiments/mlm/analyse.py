"""The table of experiments/mlm: test accuracy of the fine-tuned models by dim, and what pretraining adds.

    python experiments/mlm/analyse.py results/mlm_tuned [--csv FILE]

The folder has a run START-SEED for each start (nested, full_width, none) and seed. A difference is the mean over seeds,
with that of the lowest and the highest seed in brackets; with three seeds there is no interval worth the name.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrl_jax import runs

STARTS = ("nested", "full_width", "none")
COMPARED = (("nested", "none"), ("full_width", "none"), ("nested", "full_width"))
Accuracy = dict[str, dict[int, list[float]]]  # start → dim → test accuracy in percent of each seed


def read(folder: Path) -> Accuracy:
    """Test accuracy of every start at every dim, seed by seed. Raises `SystemExit` where a start has not all seeds."""
    found: Accuracy = {start: {} for start in STARTS}
    for start in STARTS:
        for run in sorted(folder.glob(f"{start}-[0-9]*")):
            for row in runs.read_rows(run / "evaluation.csv"):
                if (row.metric, row.split) == ("linear_top1", "test"):
                    found[start].setdefault(row.dim, []).append(100 * row.value)
    counts = {start: len(next(iter(by_dim.values()), [])) for start, by_dim in found.items()}
    if len({*counts.values()}) != 1 or not counts["none"]:
        raise SystemExit(f"{folder}: every start needs runs of the same seeds; there are {counts}")
    return found


def rows(accuracy: Accuracy) -> Iterator[list[str]]:
    """The rows of the table: per dim the mean of each start, and the differences."""
    for dim in sorted(accuracy["none"]):
        at = {start: np.array(accuracy[start][dim]) for start in STARTS}
        cells = [f"{at[start].mean():.2f}" for start in STARTS]
        for a, b in COMPARED:
            each = at[a] - at[b]
            cells.append(f"{each.mean():+.2f} [{each.min():+.2f}, {each.max():+.2f}]".replace("-", "−"))
        yield [str(dim), *cells]


HEADER = ["dims", *STARTS, *(f"{a} − {b}" for a, b in COMPARED)]


def main() -> None:
    parser = argparse.ArgumentParser(description="what nested pretraining adds to nested fine-tuning")
    parser.add_argument("folder", type=Path, help="of the fine-tuned runs, results/mlm_tuned")
    parser.add_argument("--csv", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    table = [HEADER, *rows(read(arguments.folder))]
    for number, row in enumerate(table):
        print(f"| {' | '.join(row)} |")
        if not number:
            print("|" + "---:|" * len(row))
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
