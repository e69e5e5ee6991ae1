"""How many seeds and test examples settle a difference of a given size.

The difference of two arms on seed s and example i is μ + seed[s] + example[i] + residual[s, i] (see `statistics`); its
mean over S seeds and n examples has the variance σ²_seed/S + σ²_example/n + σ²_residual/(S·n). The parts are estimated
by two-way analysis of variance. The power is that of the reports' test at 5 %, whose bound is a quantile of the sum of
a normal part and, for the seeds, a t part: its spread is estimated with S − 1 degrees of freedom.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

from mrl_jax.report.statistics import LEVEL

POWER = 0.8
POINTS = (0.002, 0.005, 0.01)  # differences, shares
MOST_SEEDS = 50
SHARES = (np.arange(400) + 0.5) / 400  # of a distribution: its quantiles there stand for it
SHARES_OF_SEEDS = np.sin(np.linspace(0, np.pi / 2, 33)) ** 2  # in a variance, closer together at the ends


class Components(NamedTuple):
    """The variances of a difference."""

    seed: float
    example: float
    residual: float

    def variance(self, seeds: int, examples: int) -> float:
        """Of the mean over so many."""
        return self.seed / seeds + self.example / examples + self.residual / (seeds * examples)


def components(difference_Sxn: np.ndarray) -> Components:
    """The variance components of differences [S, n] of outcomes, none below 0; at least two seeds and two examples."""
    S, n = difference_Sxn.shape
    d = np.asarray(difference_Sxn, float)
    seeds, examples, mean = d.mean(axis=1), d.mean(axis=0), d.mean()
    rest = float(np.sum((d - seeds[:, None] - examples + mean) ** 2) / ((S - 1) * (n - 1)))
    of_seeds, of_examples = float(np.var(seeds, ddof=1)), float(np.var(examples, ddof=1))
    return Components(max(of_seeds - rest / n, 0.0), max(of_examples - rest / S, 0.0), rest)


def power(of: Components, seeds: int, examples: int, difference: float) -> float:
    """The probability that a true `difference` is settled at 5 % with so many seeds and examples."""
    of_examples = of.example / examples
    of_seeds = of.seed / seeds + of.residual / (seeds * examples)
    if of_seeds + of_examples == 0:
        return float(difference != 0)
    estimates = of_seeds * chi2.ppf(SHARES, seeds - 1) / (seeds - 1)  # of what seeds contribute, each as likely
    totals = estimates + of_examples
    bounds = np.sqrt(totals) * np.interp(estimates / totals, SHARES_OF_SEEDS, _bounds(seeds - 1))
    spread = np.sqrt(of_seeds + of_examples)
    return float(np.mean(norm.cdf((difference - bounds) / spread) + norm.cdf((-difference - bounds) / spread)))


@functools.cache
def _bounds(freedom: int) -> np.ndarray:
    """The 97.5 % quantile of √w · t(freedom) + √(1 − w) · z at each w of `SHARES_OF_SEEDS`."""
    parts, most = t.ppf(SHARES, freedom), float(t.ppf(1 - LEVEL / 2, freedom))

    def bound(share: float) -> float:
        def excess(x: float) -> float:
            return float(norm.cdf((x - np.sqrt(share) * parts) / np.sqrt(1 - share)).mean() - 1 + LEVEL / 2)

        return most if share == 1 else float(brentq(excess, 0, most + 2))

    return np.array([bound(share) for share in SHARES_OF_SEEDS])


def seeds_needed(of: Components, examples: int, difference: float) -> int | None:
    """The fewest seeds with which a true `difference` is settled with a probability of `POWER`; None: more than
    `MOST_SEEDS`, or no number of them with so few examples."""
    return next((S for S in range(2, MOST_SEEDS + 1) if power(of, S, examples, difference) >= POWER), None)


def by_dim(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray]) -> dict[int, Components]:
    """The components of a − b at each dim of both, whose outcomes are [S, n]; empty of one seed."""
    shared: Sequence[int] = sorted(set(a) & set(b))
    return {dim: components(a[dim] - b[dim]) for dim in shared if a[dim].shape[0] > 1 and a[dim].shape[1] > 1}
