"""Tables of this experiment from the JSON files of `benchmarks/shortlist.py`: means, and differences with intervals.

    python experiments/shortlist/summarise.py cranfield.json cisi.json cacm.json > results.csv

Per file, arm and dim: the mean recall of the shortlist, nDCG@10 ÷ that of the full width, and the difference of both
to the prefix, PCA and the rotation with a 95 % interval, from 2,000 bootstrap samples of the queries; adaptors are
averaged over their seeds first.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

SAMPLES, SEED = 2000, 0


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval over queries."""
    rows = np.random.default_rng(SEED).integers(0, len(differences), (SAMPLES, len(differences)))
    low, high = np.quantile(differences[rows].mean(axis=1), [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def main() -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    differences = [f"minus_{other}{end}" for other in ("prefix", "pca", "rotated") for end in ("", "_low", "_high")]
    out.writerow(["data", "arm", "dim", "metric", "value", *differences])
    for name in sys.argv[1:]:
        path = Path(name)
        content = json.loads(path.read_text())
        full = content.pop("full", None)
        scale = 1.0 if full is None else float(np.mean(next(iter(full.values()))["ndcg"]))
        outcomes: dict[tuple[str, str, str], list[np.ndarray]] = {}
        for arm, of_arm in content.items():
            for dim, of_dim in of_arm.items():
                for metric, values in of_dim.items() if dim != "kept" else ():
                    per_query = np.array(values) / (scale if metric == "ndcg" else 1.0)
                    outcomes.setdefault((arm.split()[0], dim, metric), []).append(per_query)
        means = {key: np.mean(values, axis=0) for key, values in outcomes.items()}
        for (arm, dim, metric), values in means.items():
            cells = [x for other in ("prefix", "pca", "rotated") for x in interval(values - means[other, dim, metric])]
            label = "ndcg@10 ÷ full" if metric == "ndcg" else "recall@10 of :100"
            out.writerow([path.stem, arm, dim, label, *(f"{x:.4f}" for x in (values.mean(), *cells))])


if __name__ == "__main__":
    main()
