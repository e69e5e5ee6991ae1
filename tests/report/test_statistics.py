"""Paired statistics: coverage by simulation, SciPy's t and normal intervals at the limits, hand-worked crossovers."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mrl_jax.report import statistics
from mrl_jax.report.statistics import Crossover

UNSETTLED = Crossover("cannot_settle", None, None, None)
UNDONE = (None, None, None)


def effects(rng, shape, seed, example, residual):
    """Outcomes [..., S, n] of mean 0 with the given variance components."""
    *sets, _, n = shape
    return (
        rng.normal(size=shape[:-1])[..., None] * seed**0.5
        + rng.normal(size=(*sets, 1, n)) * example**0.5
        + rng.normal(size=shape) * residual**0.5
    )


def against_zero(values):
    """Mappings of `values` [K, S, n] and of zeros, with dims 1, 2, 4, …"""
    dims = [2**k for k in range(len(values))]
    return dict(zip(dims, values, strict=True)), {dim: np.zeros(values.shape[1:]) for dim in dims}


def constant(*curve, seeds=3):
    """Mappings whose differences have no variance: the curve of means is all there is."""
    return against_zero(np.ones((1, seeds, 4)) * np.array(curve)[:, None, None])


def simulated(make, sets, chunk=500):
    """All `Difference`s of independent data sets, passed off as dims of one another so that one call does many."""
    found = []
    for start in range(0, sets, chunk):
        values = make(chunk)
        zeros = np.zeros(values.shape[1:])
        pairs = dict(enumerate(values)), dict.fromkeys(range(chunk), zeros)
        found += statistics.differences(*pairs, replicates=3999, seed=start)
    return found


# --- coverage -----------------------------------------------------------------------------------------------------

N = 300
REGIMES = {  # variances of seed, example, residual; a seed variance of 1/n weighs as much as a residual variance of 1
    "seed": (1, 0.1, 0.1),
    "example": (0, 1, 0.01),
    "residual": (0, 0, 1),
    "seed and example": (5 / N, 1, 0),
    "seed and residual": (1 / N, 0, 1),
    "example and residual": (0, 1 / 5, 1),
    "all three": (1 / N, 1 / 5, 1),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_intervals_of_five_seeds_cover_in_every_regime(regime):
    rng = np.random.default_rng(0)
    found = simulated(lambda sets: effects(rng, (sets, 5, N), *REGIMES[regime]), sets=4000)
    assert 0.935 <= np.mean([d.low <= 0 <= d.high for d in found]) <= 0.97


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.99), (3, 0.98), (10, 0.965)])
@pytest.mark.parametrize("regime", [(1, 0, 1), (0, 0, 1), (5 / N, 1, 0)])
def test_intervals_of_other_numbers_of_seeds_cover_at_least_as_much(seeds, most, regime):
    rng = np.random.default_rng(1)
    found = simulated(lambda sets: effects(rng, (sets, seeds, N), *regime), sets=1500)
    assert 0.935 <= np.mean([d.low <= 0 <= d.high for d in found]) <= most


def test_intervals_cover_for_right_and_wrong_answers():
    """Two arms of equal ability: each example has its own difficulty and each trained model its own luck."""
    rng = np.random.default_rng(2)

    def make(sets):
        chance = rng.beta(4, 1, size=(sets, 1, N))
        a, b = (
            rng.random((sets, 5, N)) < np.clip(chance + rng.normal(size=(sets, 5, 1)) * 0.02, 0, 1) for _ in range(2)
        )
        return a.astype(float) - b

    assert 0.935 <= np.mean([d.low <= 0 <= d.high for d in simulated(make, sets=4000)]) <= 0.97


@pytest.mark.parametrize("regime", ["seed", "example"])
def test_p_is_uniform_under_the_null(regime):
    rng = np.random.default_rng(3)
    found = simulated(lambda sets: effects(rng, (sets, 5, N), *REGIMES[regime]), sets=2000)
    assert scipy.stats.kstest([d.p for d in found], "uniform").pvalue > 0.001


# --- the interval against other arithmetic ------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_seeds_alone_give_the_t_interval_of_the_seed_means(seeds):
    means = np.random.default_rng(4).normal(size=seeds)
    got = statistics.mean_interval(np.repeat(means[:, None], 7, axis=1), replicates=99_999)
    wanted = scipy.stats.t.interval(0.95, seeds - 1, means.mean(), scipy.stats.sem(means))
    assert got.mean == pytest.approx(means.mean())
    assert got.high - got.mean == pytest.approx(wanted[1] - means.mean(), rel=0.04)
    assert got.mean - got.low == pytest.approx(got.high - got.mean)


def test_examples_alone_give_the_normal_interval():
    row = np.random.default_rng(5).normal(size=901)
    got = statistics.mean_interval(np.stack([row] * 4), replicates=20_000)
    assert got.high - got.mean == pytest.approx(1.96 * scipy.stats.sem(row), rel=0.03)


def test_examples_on_which_seeds_disagree_have_no_negative_variance_but_none():
    """Two seeds whose examples cancel: the estimate of the example variance is below 0, and only the seeds count."""
    row = np.random.default_rng(10).normal(size=50)
    row -= row.mean()
    got = statistics.mean_interval(np.stack([row, 0.01 - row]), replicates=99_999)
    assert got.high - got.mean == pytest.approx(scipy.stats.t.ppf(0.975, 1) * 0.005, rel=0.05)


def test_seeds_that_agree_in_a_count_but_not_in_its_examples_are_not_certain():
    """Two seeds are each right about one example more, and about another one each: as if they had differed by luck."""
    found = np.zeros((2, 400))
    found[0, :4], found[1, 4:8] = (1, 1, 1, -1), (1, -1, 1, 1)
    ((_, mean, low, high, p, _),) = statistics.differences(*against_zero(found[None]), replicates=99_999)
    residual = ((found - found.mean(axis=0)) ** 2).sum() / 399  # both seed means are level: (S − 1)(n − 1) is 399
    assert mean == pytest.approx(2 / 400)
    assert high - mean == pytest.approx(scipy.stats.t.ppf(0.975, 1) * (residual / 800) ** 0.5, rel=0.05)
    assert low < 0 < high
    assert p > 0.05


def test_the_width_is_the_behrens_fisher_quantile_of_the_anova_components():
    rng, (seeds, n) = np.random.default_rng(6), (4, 200)
    d = effects(rng, (seeds, n), 0.01, 1.0, 1.0)
    mean, rows, columns = d.mean(), d.mean(axis=1), d.mean(axis=0)
    of_seeds = of_examples = of_rest = 0.0
    for s in range(seeds):
        for i in range(n):
            of_seeds += (rows[s] - mean) ** 2 / (seeds - 1)
            of_examples += (columns[i] - mean) ** 2 / (n - 1)
            of_rest += (d[s, i] - rows[s] - columns[i] + mean) ** 2 / ((seeds - 1) * (n - 1))
    parts = np.sqrt(of_seeds / (seeds * n)), np.sqrt((of_examples - of_rest) / (seeds * n))
    draws = parts[0] * rng.standard_t(seeds - 1, size=400_000) + parts[1] * rng.normal(size=400_000)
    got = statistics.mean_interval(d, replicates=40_000)
    assert got.high - got.mean == pytest.approx(np.quantile(np.abs(draws), 0.95), rel=0.03)


def test_without_variance_the_interval_is_the_mean_and_p_is_one_or_the_smallest():
    same, other = statistics.differences(*constant(0.0, 0.25), replicates=999)
    assert same == (1, 0, 0, 0, 1, 1)
    assert other == pytest.approx((2, 0.25, 0.25, 0.25, 0.001, 0.002))


def test_one_seed_has_a_mean_and_no_interval():
    a, b = against_zero(np.random.default_rng(7).random((2, 1, 9)))
    for difference in statistics.differences(a, b):
        assert difference.mean == pytest.approx(a[difference.dim].mean())
        assert np.isnan(difference[2:]).all()
    assert np.isnan(statistics.mean_interval(a[1])[1:]).all()
    assert statistics.crossover(a, b) == UNSETTLED


outcomes = st.builds(
    lambda seed, sets, seeds, n, parts: effects(np.random.default_rng(seed), (sets, seeds, n), *parts) + 0.05,
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(2, 6),
    st.integers(2, 60),
    st.tuples(*[st.sampled_from([0.01, 0.1, 1.0])] * 3),
)
few = settings(max_examples=30, deadline=None)


@few
@given(outcomes, st.integers(25, 2000))
def test_p_is_below_five_percent_exactly_when_zero_is_outside(values, replicates):
    for d in statistics.differences(*against_zero(values), replicates=replicates):
        assert (d.p < 0.05) == (not d.low <= 0 <= d.high)
        assert d.low <= d.mean <= d.high
        assert 0 < d.p <= d.p_holm <= 1


@few
@given(outcomes)
def test_swapping_the_arms_flips_everything_and_nothing_else(values):
    a, b = against_zero(values)
    for there, back in zip(statistics.differences(a, b), statistics.differences(b, a), strict=True):
        assert back == (there.dim, -there.mean, -there.high, -there.low, there.p, there.p_holm)
    verdict, *dims = statistics.crossover(a, b)
    other = {"below": "above", "above": "below", "everywhere": "nowhere", "nowhere": "everywhere"}
    name = verdict.removeprefix("wins_")
    assert statistics.crossover(b, a) == (f"wins_{other[name]}" if name in other else verdict, *dims)


@few
@given(outcomes, st.floats(-2, 2))
def test_a_shift_moves_mean_and_interval(values, shift):
    plain = [statistics.mean_interval(v, replicates=500) for v in values]
    moved = [statistics.mean_interval(v + shift, replicates=500) for v in values]
    np.testing.assert_allclose(np.array(moved), np.array(plain) + shift, atol=1e-5)


@few
@given(outcomes, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_of_examples_matters_no_more_than_the_draws_do(values, random):
    _, seeds, n = values.shape
    assume(seeds > 2)  # the 95 % quantile of a t with one degree of freedom needs far more replicates
    shuffled = values[:, random.sample(range(seeds), seeds)][..., random.sample(range(n), n)]
    both = (statistics.differences(*against_zero(v), replicates=40_000) for v in (values, shuffled))
    for there, back in zip(*both, strict=True):
        assert back.mean == pytest.approx(there.mean)
        assert back.high - back.mean == pytest.approx(there.high - there.mean, rel=0.1)


@few
@given(outcomes)
def test_every_dim_is_weighted_alike_and_as_if_alone(values):
    together = statistics.differences(*against_zero(values))
    for value, d in zip(values, together, strict=True):
        alone = statistics.mean_interval(value, replicates=9999)
        np.testing.assert_allclose(np.array(alone), np.array(d[1:4]), rtol=1e-4, atol=1e-7)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    pairs = against_zero(effects(np.random.default_rng(8), (3, 4, 50), 1, 1, 1))
    assert statistics.differences(*pairs) == statistics.differences(*pairs)
    assert statistics.differences(*pairs) != statistics.differences(*pairs, seed=1)


# --- Holm ---------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04, and the last may not fall below .06.
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.5, 0.6]), [1.0, 1.0])


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p, level):
    rejected = set()
    for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[index] * (len(p) - step) > level:
            break
        rejected.add(index)
    assert set(np.flatnonzero(statistics.holm(p) <= level)) == rejected


# --- the crossover ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "verdict", "log_dim", "log_low", "log_high"),
    [
        ((2, 1, -1, -2), "wins_below", 1.5, 1.5, 1.5),
        ((2, 1, -3), "wins_below", 1.25, 1.25, 1.25),
        ((-2, -1, 3), "wins_above", 1.25, 1.25, 1.25),
        ((3, 0, -1), "wins_below", 1, 1, 1),
        ((-3, 0, 0, 1), "wins_above", 1.5, 1, 2),  # zero at two dims: midway
        ((0, 2, -2, 0), "wins_below", 1.5, 1.5, 1.5),  # the arms are the same at the ends
    ],
)
def test_without_variance_the_crossover_is_where_the_curve_is_zero(curve, verdict, log_dim, log_low, log_high):
    got = statistics.crossover(*constant(*curve))
    assert got.verdict == verdict
    np.testing.assert_allclose(got[1:], (2**log_dim, 2**log_low, 2**log_high))


@pytest.mark.parametrize(
    ("curve", "wanted"),
    [
        ((1, 2, 0.5), ("wins_everywhere", *UNDONE)),
        ((1, 2, 0), ("wins_everywhere", *UNDONE)),
        ((-1, -2, -0.5), ("wins_nowhere", *UNDONE)),
        ((1,), ("wins_everywhere", *UNDONE)),
        ((1, 0, 1), UNSETTLED),
        ((1, -1, 1), UNSETTLED),
        ((1, -1, 1, -1), UNSETTLED),  # three crossings, each of them certain
        ((-1, 1, -1, 1), UNSETTLED),
        ((0, 0, 0), UNSETTLED),
    ],
)
def test_without_variance_curves_that_have_no_single_crossing(curve, wanted):
    assert statistics.crossover(*constant(*curve)) == wanted


def noisy(*curve, seed=0):
    """Outcomes [K, 5, 400] whose means are exactly `curve`; the mean of a dim has a standard error near 0.1."""
    values = effects(np.random.default_rng(seed), (len(curve), 5, 400), 0.04, 0.5, 0.5)
    return values - values.mean(axis=(1, 2), keepdims=True) + np.array(curve)[:, None, None]


def test_a_curve_that_hovers_around_zero_between_sure_ends_crosses_in_that_zone():
    got = statistics.crossover(*against_zero(noisy(1.5, 1.5, -0.02, 0.03, -0.01, -1.5, -1.5)))
    assert got.verdict == "wins_below"
    assert 2**1 < got.low < 2**2 < 2**4 < got.high < 2**5  # sure up to the second dim and from the sixth on
    assert got.low < got.dim < got.high


@pytest.mark.parametrize("curve", [(1.5, 1.5, 0.02), (0.02, 1.5, -1.5), (1.5, 0.02, 1.5), (1.5, -1.5, 1.5, -1.5)])
def test_a_tie_where_the_answer_needs_a_sign_or_a_sure_return_settles_nothing(curve):
    assert statistics.crossover(*against_zero(noisy(*curve))) == UNSETTLED


@few
@given(outcomes)
def test_at_one_dim_the_verdict_is_the_test_of_that_dim(values):
    (d,) = statistics.differences(*against_zero(values[:1]))
    assume(not 0.035 < d.p < 0.07)  # there the one-sided and the two-sided count may differ by chance
    sure = "wins_everywhere" if d.mean > 0 else "wins_nowhere"
    assert statistics.crossover(*against_zero(values[:1])).verdict == (sure if d.p < 0.05 else "cannot_settle")


@few
@given(outcomes)
def test_repeating_a_dim_changes_no_verdict_because_replicates_keep_the_correlation(values):
    once, often = against_zero(values[:1]), against_zero(np.repeat(values[:1], 6, axis=0))
    assert statistics.crossover(*once) == statistics.crossover(*often)


def test_the_interval_of_the_crossover_covers_and_a_tie_is_rarely_decided():
    rng, log_dims, crossing = np.random.default_rng(9), np.arange(6), 2.6
    mix = np.linalg.cholesky(0.7 ** np.abs(np.subtract.outer(log_dims, log_dims)))  # neighbouring dims are alike
    covered, decided = [], 0
    for index in range(250):
        noise = np.tensordot(mix, effects(rng, (6, 5, 200), 1e-4, 0.04, 0.04), axes=1)
        sloped = noise + (0.04 * (crossing - log_dims))[:, None, None]
        got = statistics.crossover(*against_zero(sloped), replicates=999, seed=index)
        if got.verdict == "wins_below":
            covered.append(got.low <= 2**crossing <= got.high)
        tied = noise + np.where(log_dims < 3, 0.5, 0.0)[:, None, None]
        decided += statistics.crossover(*against_zero(tied), replicates=999, seed=index) != UNSETTLED
    assert len(covered) > 200
    assert 0.93 <= np.mean(covered) <= 0.995
    assert decided <= 0.08 * 250  # 5 % are allowed: at the largest dim the arms are equal in truth


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [statistics.differences, statistics.crossover])
@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ({8: np.ones((2, 3))}, {4: np.ones((2, 3))}, r"no dim in common: \[8\] and \[4\]"),
        ({}, {}, "no dim in common"),
        ({8: np.ones((2, 3))}, {8: np.ones((2, 4))}, r"not paired: .* \(2, 3\) and \(2, 4\)"),
        ({8: np.ones((2, 3))}, {8: np.ones((3, 3))}, "not paired"),
        ({4: np.ones((2, 3)), 8: np.ones((2, 4))}, {4: np.ones((2, 3)), 8: np.ones((2, 4))}, r"dim 8 have shape"),
        ({8: np.ones((0, 3))}, {8: np.ones((0, 3))}, r"dim 8 are not .* \(0, 3\)"),
        ({8: np.ones((3, 1))}, {8: np.ones((3, 1))}, "at least two examples"),
        ({8: np.ones(3)}, {8: np.ones(3)}, r"dim 8 are not .* \(3,\)"),
        ({8: np.full((2, 3), np.nan)}, {8: np.ones((2, 3))}, "dim 8 hold nan or inf"),
    ],
)
def test_outcomes_that_cannot_be_compared_are_refused_with_the_reason(function, a, b, says):
    with pytest.raises(ValueError, match=says):
        function(a, b)


def test_means_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"not \[seeds, at least two examples\]"):
        statistics.mean_interval(np.ones((2, 0)))
