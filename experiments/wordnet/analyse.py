"""Differences between arms with 95 % intervals over the test queries alone, and what 64 of 384 dims keep.

    python experiments/wordnet/analyse.py results/wordnet_minilm/study

`mrl_jax.report` gives intervals over seeds and queries, which two seeds make very wide. These are of the mean over the
seeds there are, and not corrected for the number of dims: they say how much other queries could have changed it, not
how much other seeds would.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from mrl_jax import report

METRIC = "ndcg@10"
DIMS = (16, 32, 64, 128, 384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    of = report.outcomes(options.run, METRIC)
    assert "mrl" in of, f"{options.run} has no trained arm mrl"
    others = ("ff", "truncated", "pca", "untuned", "untuned_pca")
    print(f"{'dim':>5}{'seeds':>7}{'mrl':>7}" + "".join(f"{other:>32}" for other in others))
    kept = {}
    for dim in DIMS:
        mrl = of["mrl"][dim]
        kept[dim] = mrl.mean()
        cells = []
        for other in others:
            if other not in of:
                cells.append(f"{'–':>32}")
                continue
            value = of[other][dim]
            difference = 100 * (mrl - value).mean(axis=0)
            found = bootstrap((difference,), np.mean, n_resamples=4999, method="percentile", rng=0, batch=500)
            low, high = found.confidence_interval
            cells.append(f"{100 * value.mean():>9.1f}{difference.mean():>+8.2f} [{low:+.2f}, {high:+.2f}]".rjust(32))
        print(f"{dim:>5}{len(mrl):>7}{100 * mrl.mean():>7.1f}" + "".join(cells))
    print(f"64 of 384 dims keep {100 * kept[64] / kept[384]:.1f} % of {METRIC}")


if __name__ == "__main__":
    main()
