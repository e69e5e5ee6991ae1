"""Nested training with and without `loss.shortlist`, from the JSON files of `benchmarks/shortlist.py --run`.

    python experiments/shortlist/trained.py bag-nested-*.json --with bag-shortlist-*.json >> trained.csv

A file is one seed. Rows: the mean over seeds and queries of recall@10 of shortlist 64:100 and, where there are
judgments, of nDCG@10 ÷ that of the nested model at full width, for prefix, PCA and rotation of both trainings; the
difference of each to the nested prefix; and of nDCG@10 at full width itself, with 95 % intervals from 2,000 bootstrap
samples of the queries of the mean over seeds.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
from summarise import interval

LABELS = {"recall": "recall@10 of :100", "ndcg": "ndcg@10 ÷ full"}


def mean(files: list[Path], arm: str, metric: str) -> tuple[str, np.ndarray]:
    """The dim, and per query the mean over the files of seeds."""
    of_files = [json.loads(path.read_text(encoding="utf-8"))[arm] for path in files]
    (dim,) = of_files[0]
    return dim, np.mean([of[dim][metric] for of in of_files], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nested", nargs="+", type=Path, help="a file per seed")
    parser.add_argument("--with", nargs="+", type=Path, required=True, dest="shortlist", help="a file per seed")
    parser.add_argument("--data", required=True, help="name in the first column")
    options = parser.parse_args()
    out = csv.writer(sys.stdout, lineterminator="\n")
    content = json.loads(options.nested[0].read_text(encoding="utf-8"))
    trainings = {"nested": options.nested, "shortlist": options.shortlist}
    full = mean(options.nested, "full", "ndcg") if "full" in content else None
    for metric in LABELS if full else ("recall",):
        scale = full[1].mean() if full and metric == "ndcg" else 1.0
        _, base = mean(options.nested, "prefix", metric)
        for training, files in trainings.items():
            for arm in ("prefix", "pca", "rotated"):
                dim, values = mean(files, arm, metric)
                cells = (values.mean() / scale, *interval((values - base) / scale))
                out.writerow([options.data, training, arm, dim, LABELS[metric], *(f"{x:.4f}" for x in cells)])
    if full:
        width, values = mean(options.shortlist, "full", "ndcg")
        for training, of in (("nested", full[1]), ("shortlist", values)):
            cells = (of.mean(), *interval(of - full[1]))
            out.writerow([options.data, training, "full", width, "ndcg@10", *(f"{x:.4f}" for x in cells)])


if __name__ == "__main__":
    main()
