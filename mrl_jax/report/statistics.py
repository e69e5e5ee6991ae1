"""Paired statistics of two arms over seeds and test examples: intervals, p-values, Holm, and the crossover dimension.

The data of an arm at one dim are outcomes [S seeds, n test examples], the same examples for every seed (a crossed
design). The difference of two arms, paired in both, is  d[s, i] = μ + seed[s] + example[i] + residual[s, i],  and the
mean of d has the variance  σ²_seed/S + σ²_example/n + σ²_residual/(S·n). Every number below comes from one hierarchical
bootstrap that reweights seeds and examples, with the same weights at every dim, so that the whole curve is replicated.

Why not plain resampling. Percentiles of means over resampled seeds × resampled examples (the pigeonhole bootstrap)
count σ²_residual about three times (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1), make the
seed part (S − 1)/S too small and give it normal tails: with five seeds nominal 95 % intervals cover 85 to 99.7 %. No
resampling scheme is exact for crossed effects (McCullagh 2000, Bernoulli 6), so each level is reweighted on its own
and scaled to its unbiased estimate, as the reflated bootstrap of Carpenter, Goldstein & Rasbash (2003, Applied
Statistics 52) does for nested levels. A replicate's deviation from the mean is the sum of

- seeds: the seed means under normal weights, scaled to s²/S with s² their sample variance (which already holds the
  residual's share, so that this is counted once), times √((S−1)/χ²_{S−1}): s² has only S − 1 degrees of freedom, and
  this makes the part a t distribution. Right and wrong answers are counts, and few seeds can agree in them exactly
  though they err on other examples; s² is then not 0, but the residual's share of it, σ²_residual/n;
- examples: means over seeds, every example dropped or counted twice with equal odds (the double-or-nothing weights of
  Owen & Eckles 2012, "Bootstrapping data arrays of arbitrary order", Annals of Applied Statistics 6), scaled to
  σ²_example/n, where σ²_example is the mean covariance of two seeds over the examples (that is the two-way ANOVA
  estimate), floored at 0.

The sum of a t and a normal part is the Behrens–Fisher distribution: exact where one component dominates, slightly wide
in between. For normal effects and many examples the coverage is 95.0 to 96.4 % with S = 5, whatever dominates; at most
95.7 % with S = 10, 97.6 % with S = 3, 98.8 % with S = 2 (very wide: one degree of freedom). One seed has no interval.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

LEVEL = 0.05  # of tests; intervals have 1 − LEVEL
MIN_REPLICATES = 20  # with fewer, no p can be below LEVEL


class Interval(NamedTuple):
    """A mean over seeds and test examples with its 95 % interval (nan bounds when there is one seed)."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of a − b at one dim, 95 % interval, two-sided p and p after Holm over the dims (nan with one seed)."""

    dim: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float


Verdict = Literal["wins_below", "wins_above", "wins_everywhere", "wins_nowhere", "cannot_settle"]


class Crossover(NamedTuple):
    """Where arm a stops or starts to win: a dim, interpolated in log2 dim, with its 95 % interval, or None thrice."""

    verdict: Verdict
    dim: float | None
    low: float | None
    high: float | None


def mean_interval(outcomes: np.ndarray, *, replicates: int = 4999, seed: int = 0) -> Interval:
    """The mean of `outcomes` [S, n] with its interval, from the same bootstrap as `differences`.

    Raises:
      ValueError: `outcomes` is not [S, n] with S ≥ 1, n ≥ 2, or holds nan or inf; too few replicates.
    """
    values = _stack({0: outcomes})
    mean, half, _ = _summary(values, _deviations(values, replicates, seed))
    return Interval(float(mean[0]), float(mean[0] - half[0]), float(mean[0] + half[0]))


def differences(
    a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray], *, replicates: int = 9999, seed: int = 0
) -> list[Difference]:
    """a − b at each dim of both, ascending; `a` and `b` map a dim to outcomes [S, n] paired in seed and in example.

    0 lies outside the interval exactly when p < 0.05. The smallest p is 1/(replicates + 1).

    Raises:
      ValueError: no common dim, shapes that differ, no seed, fewer than two examples, nan or inf, too few replicates.
    """
    dims, values = _paired(a, b)
    mean, half, p = _summary(values, _deviations(values, replicates, seed))
    columns = zip(dims, mean, mean - half, mean + half, p, holm(p), strict=True)
    return [Difference(dim, *(float(x) for x in rest)) for dim, *rest in columns]


def crossover(
    a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray], *, replicates: int = 9999, seed: int = 0
) -> Crossover:
    """The dim below (or above) which `a` wins; arguments and errors as in `differences`.

    Each replicate is a whole curve of differences over the dims. A verdict needs the agreement of 97.5 % of them, so
    that with a single dim it says what the two-sided test at 5 % says:

    - wins_everywhere, wins_nowhere: positive, negative at every dim at once;
    - wins_below: positive at the smallest dim and negative at the largest; wins_above: the reverse. In between a
      replicate may cross zero more than once, since neighbours of a crossover are near zero and how often noise flips
      them is not the question. So `low` is the 2.5 % quantile of the first crossing and `high` the 97.5 % quantile of
      the last one: at the dims below `low` and above `high` the sign is settled, jointly; `dim` is the crossing of the
      mean curve (midway in log2 between its first and last one). Significance dim by dim is not asked for, but it can
      veto: if the signs with a Holm-corrected p < 0.05 turn back on the way, there is no single crossover.

    Everything else is cannot_settle: one seed, a tie at either end, a tie at some dim of a curve that is positive
    elsewhere. Smallest and largest dims at which both arms agree in every single outcome (one and the same model, such
    as FF and its truncation at full width) compare nothing and are left out.
    """
    unsettled = Crossover("cannot_settle", None, None, None)
    dims, values = _paired(a, b)
    differ = np.flatnonzero(values.any(axis=(1, 2)))
    if not len(differ) or values.shape[1] == 1:
        return unsettled
    compared = slice(differ[0], differ[-1] + 1)
    values, log_dims = values[compared], np.log2(dims)[compared]
    deviations = _deviations(values, replicates, seed)
    mean, _, p = _summary(values, deviations)
    curves = mean + deviations

    needed = 1 - LEVEL / 2
    sides: tuple[tuple[int, Verdict, Verdict], ...]
    sides = (1, "wins_everywhere", "wins_below"), (-1, "wins_nowhere", "wins_above")
    for sign, everywhere, crossing in sides:
        if np.mean((sign * curves > 0).all(axis=1)) >= needed:
            return Crossover(everywhere, None, None, None)
        crosses = (sign * curves[:, 0] > 0) & (sign * curves[:, -1] < 0)
        settled = sign * np.sign(mean)[holm(p) < LEVEL]
        if np.mean(crosses) >= needed and (np.diff(settled) <= 0).all():
            first, last = _crossings(curves[crosses], log_dims)
            low, high = np.quantile(first, LEVEL / 2), np.quantile(last, needed)
            middle = np.mean(_crossings(mean[None], log_dims))
            return Crossover(crossing, *(float(2**x) for x in (middle, low, high)))
    return unsettled


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values [K] corrected for K tests (Holm 1979): the k-th smallest times K − k + 1, made monotone, at most 1."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


# --- the bootstrap ------------------------------------------------------------------------------------------------


def _deviations(values_KxSxn: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Replicates of the mean less the mean, float64 [replicates, K]; nan with one seed."""
    K, S, n = values_KxSxn.shape
    if replicates < MIN_REPLICATES:
        raise ValueError(f"replicates={replicates} is not allowed; at least {MIN_REPLICATES} to tell a p of {LEVEL}")
    if S == 1:
        return np.full((replicates, K), np.nan)
    rng = np.random.default_rng(seed)

    seeds_SxK = values_KxSxn.mean(axis=2).T
    seeds_SxK = (seeds_SxK - seeds_SxK.mean(axis=0)) / np.sqrt(S * (S - 1))
    level = np.isclose(seeds_SxK, 0, atol=1e-12).all(axis=0)
    if level.any():  # counts that came out alike: s² is what the residual makes of it
        residual = values_KxSxn[level] - values_KxSxn[level].mean(axis=1, keepdims=True)
        seeds_SxK[0, level] = np.sqrt((residual**2).sum(axis=(1, 2)) / ((S - 1) * (n - 1) * S * n))
    tails = np.sqrt((S - 1) / rng.chisquare(S - 1, size=(replicates, 1)))
    deviations: np.ndarray = tails * (rng.standard_normal((replicates, S)) @ seeds_SxK)

    examples_nxK = values_KxSxn.mean(axis=1).T
    examples_nxK = examples_nxK - examples_nxK.mean(axis=0)
    # The variance of a sum over seeds holds each seed's variance and, S (S − 1) times, the covariance of two seeds.
    of_sum, of_each = S**2 * np.var(examples_nxK, axis=0, ddof=1), np.var(values_KxSxn, axis=2, ddof=1).sum(axis=1)
    variance = np.maximum(of_sum - of_each, 0.0) / (S * (S - 1))
    plain = np.mean(examples_nxK**2, axis=0)
    scale = np.sqrt(np.divide(variance, plain, out=np.zeros(K), where=plain > 0)) / n
    # Weights 0 and 2 are one random bit an example; the rows of a chunk keep memory at some 20 MB for any n.
    doubled = (2 * scale * examples_nxK).astype(np.float32)
    rows = max(1, 2**22 // n)
    for start in range(0, replicates, rows):
        part = deviations[start : start + rows]
        bits = rng.integers(0, 256, size=(len(part), -(-n // 8)), dtype=np.uint8)
        # A BLAS may load lanes it does not use; what they set off ("invalid value") says nothing of finite factors.
        with np.errstate(invalid="ignore"):
            part += np.unpackbits(bits, axis=1, count=n).astype(np.float32) @ doubled
    if not np.isfinite(deviations).all():  # nan would count as a small deviation, and every p come out significant
        raise FloatingPointError("the bootstrap's products are not finite though all outcomes are")
    return deviations


def _summary(values_KxSxn: np.ndarray, deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, half width of the symmetric interval and two-sided p, each [K].

    p counts the deviations at least as large as the mean; the half width is the order statistic that the mean must
    exceed for that count to give p < LEVEL, so interval and p never contradict each other.
    """
    mean = values_KxSxn.mean(axis=(1, 2))
    if values_KxSxn.shape[1] == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    sizes = np.sort(np.abs(deviations), axis=0)
    total = len(sizes) + 1
    p = (1 + np.sum(sizes >= np.abs(mean), axis=0)) / total
    return mean, sizes[-(int(np.ceil(LEVEL * total)) - 1)], p


def _crossings(curves: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last zero, each [R], of curves [R, K], linear between ascending `x` [K], whose ends differ in sign."""
    signs, rows = np.sign(curves), np.arange(len(curves))
    leaves = np.argmax(signs != signs[:, :1], axis=1)
    arrives = len(x) - 1 - np.argmax((signs != signs[:, -1:])[:, ::-1], axis=1)

    def zero(left: np.ndarray) -> np.ndarray:
        y0, y1 = curves[rows, left], curves[rows, left + 1]
        return np.asarray(x[left] + (x[left + 1] - x[left]) * y0 / (y0 - y1))

    return zero(leaves - 1), zero(arrives)


# --- checks -------------------------------------------------------------------------------------------------------


def _paired(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray]) -> tuple[list[int], np.ndarray]:
    dims = sorted(set(a) & set(b))
    if not dims:
        raise ValueError(f"the arms have no dim in common: {sorted(a)} and {sorted(b)}")
    left, right = _stack({dim: a[dim] for dim in dims}), _stack({dim: b[dim] for dim in dims})
    if left.shape != right.shape:
        raise ValueError(f"outcomes that are not paired: [seeds, examples] is {left.shape[1:]} and {right.shape[1:]}")
    return dims, left - right


def _stack(outcomes: Mapping[int, np.ndarray]) -> np.ndarray:
    """float64 [K, S, n] of outcomes [S, n] a dim."""
    arrays = {dim: np.asarray(values, float) for dim, values in outcomes.items()}
    shape = next(iter(arrays.values())).shape
    for dim, values in arrays.items():
        if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
            raise ValueError(f"outcomes at dim {dim} are not [seeds, at least two examples]: shape {values.shape}")
        if values.shape != shape:
            raise ValueError(f"outcomes at dim {dim} have shape {values.shape}, those of other dims {shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"outcomes at dim {dim} hold nan or inf")
    return np.stack(list(arrays.values()))
