"""Differences between arms of one seed, with 95 % intervals over the test queries, and what 64 of 384 dims keep.

    python experiments/wordnet/analyse.py results/wordnet_minilm/study [--seed 0]

`mrl_jax.report` gives intervals over seeds and queries, and none for one seed. These are over queries alone, not
corrected for the number of dims: they say how much the queries could have changed it, not how much another seed would.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

METRIC = "ndcg@10"
DIMS = (16, 32, 64, 128, 384)


def outcomes(run: Path, arm: str, dim: int, seed: int) -> np.ndarray | None:
    """nDCG@10 of each test query, float [Q]; None where the run does not have it (yet)."""
    path = run / "predictions" / f"{arm if arm != 'ff' else f'ff{dim}'}-seed{seed}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        values: np.ndarray = found[f"test/{METRIC}/{dim}"].astype(float)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    others = ("ff", "truncated", "pca", "untuned", "untuned_pca")
    print(f"{'dim':>5}{'mrl':>7}" + "".join(f"{other:>32}" for other in others))
    for dim in DIMS:
        mrl = outcomes(options.run, "mrl", dim, options.seed)
        assert mrl is not None, f"{options.run} has no trained arm mrl of seed {options.seed}"
        cells = []
        for other in others:
            value = outcomes(options.run, other, dim, options.seed)
            if value is None:
                cells.append(f"{'–':>32}")
                continue
            difference = 100 * (mrl - value)
            found = bootstrap((difference,), np.mean, n_resamples=4999, method="percentile", rng=0, batch=500)
            low, high = found.confidence_interval
            cells.append(f"{100 * value.mean():>9.1f}{difference.mean():>+8.2f} [{low:+.2f}, {high:+.2f}]".rjust(32))
        print(f"{dim:>5}{100 * mrl.mean():>7.1f}" + "".join(cells))
    kept = [outcomes(options.run, "mrl", dim, options.seed) for dim in (64, 384)]
    assert kept[0] is not None
    assert kept[1] is not None
    print(f"64 of 384 dims keep {100 * kept[0].mean() / kept[1].mean():.1f} % of {METRIC}")


if __name__ == "__main__":
    main()
