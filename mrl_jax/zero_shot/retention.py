"""How many dims keep a share of the full width's score: the smallest, with an interval over queries; and what is to be
expected of a collection that was not measured.

With s(m) the mean score of a prefix over the queries, the smallest dim that keeps the share r is

    min { m : s(m') ≥ r · s(D) for every m' ≥ m }

among the dims that were measured. Its interval comes from a bootstrap that resamples queries, the same ones at every
dim: the ratio of two paired means, and the step from it to a dim, have no formula.

A collection not seen yet: with r_c = s_c(m) / s_c(D) of C collections, drawn at random from those that matter,

    mean r ± t(C − 1) · sd(r) · √(1/C)          the mean over all such collections
    mean r ± t(C − 1) · sd(r) · √(1/C + 1)      one more of them

The spread of r_c holds both what differs between collections and the noise of their queries, so each is counted once.
A bootstrap of collections, then queries, has normal tails and draws its C collections with a variance of (C − 1) / C of
what it should be: of three collections its nominal 95 % intervals of the mean cover 87 %, of six 91 %, in the
simulation of the tests.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

SHARES = (0.95, 0.98, 0.99)
LEVEL = 0.05  # intervals have 1 − LEVEL
REPLICATES = 2000
REPLICATES_AT_ONCE = 100


class Smallest(NamedTuple):
    """The smallest dim that keeps a share, with its 95 % interval."""

    share: float
    dim: int
    low: int
    high: int


class Expected(NamedTuple):
    """The share that a dim keeps: its mean over collections with the intervals of that and of one more collection."""

    dim: int
    share: float
    low: float
    high: float
    new_low: float
    new_high: float


class Mean(NamedTuple):
    """A mean over queries, with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_of(outcomes: np.ndarray) -> Mean:
    """The mean of per-query outcomes float [Q], with the t interval."""
    values = np.asarray(outcomes, np.float64)
    mean, count = float(values.mean()), len(values)
    reach = float(t.ppf(1 - LEVEL / 2, count - 1) * values.std(ddof=1) / count**0.5) if count > 1 else float("nan")
    return Mean(mean, mean - reach, mean + reach)


def smallest_dims(
    outcomes: Mapping[int, np.ndarray], shares: Sequence[float] = SHARES, seed: int = 0
) -> list[Smallest]:
    """The smallest dim that keeps each of `shares`.

    Args:
        outcomes: dim → per-query scores float [Q], the same queries at each; the largest dim is the full width.
        shares: of the full width's mean.
        seed: of the resampling.

    Returns:
        One per share; none where the full width scores no more than 0.
    """
    dims = np.array(sorted(outcomes))
    values = np.stack([np.asarray(outcomes[dim], np.float64) for dim in dims])
    if values[-1].mean() <= 0:
        return []
    means = _resampled_means(values, seed)
    smallest = []
    for share in shares:
        (dim,) = dims[_first_from_which_all_keep(values.mean(axis=1)[None], share)]
        of_each = dims[_first_from_which_all_keep(means, share)]
        low, high = np.quantile(of_each, [LEVEL / 2, 1 - LEVEL / 2], method="inverted_cdf")
        smallest.append(Smallest(share, int(dim), int(low), int(high)))
    return smallest


def _resampled_means(values_KxQ: np.ndarray, seed: int) -> np.ndarray:
    """Means over resampled queries, float64 [REPLICATES, K]."""
    rng, count = np.random.default_rng(seed), values_KxQ.shape[1]
    weights = (rng.multinomial(count, np.full(count, 1 / count), REPLICATES_AT_ONCE)
               for _ in range(REPLICATES // REPLICATES_AT_ONCE))  # fmt: skip
    return np.concatenate([w @ values_KxQ.T / count for w in weights])


def _first_from_which_all_keep(means_BxK: np.ndarray, share: float) -> np.ndarray:
    """Per row the first column from which on every mean is at least the share of the last one, int [B]."""
    enough = means_BxK >= share * means_BxK[:, -1:]
    enough[:, -1] = True  # by itself, whatever its sign
    onwards = np.logical_and.accumulate(enough[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(onwards.argmax(axis=1))


def expected_shares(means: Sequence[Mapping[int, float]]) -> list[Expected]:
    """What each dim that all collections share keeps, in those and in one more.

    Args:
        means: per collection dim → mean score; the largest dim is the full width.

    Returns:
        One per dim but the full width; none of fewer than two collections.
    """
    if len(means) < 2 or any(of[max(of)] <= 0 for of in means):
        return []
    width = min(max(of) for of in means)
    dims = sorted(dim for dim in set.intersection(*(set(of) for of in means)) if dim < width)
    expected = []
    for dim in dims:
        ratios = np.array([of[dim] / of[max(of)] for of in means])
        centre, count = float(ratios.mean()), len(ratios)
        reach = float(t.ppf(1 - LEVEL / 2, count - 1) * ratios.std(ddof=1))
        mean, new = reach * (1 / count) ** 0.5, reach * (1 / count + 1) ** 0.5
        expected.append(Expected(dim, centre, centre - mean, centre + mean, centre - new, centre + new))
    return expected
