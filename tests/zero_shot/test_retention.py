"""The smallest dim that keeps a share, and what is to be expected of a collection not seen yet."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mrl_jax.zero_shot import retention


def by_hand(means: dict[int, float], share: float) -> int:
    """The definition, dim by dim."""
    width = max(means)
    return min(m for m in means if all(means[n] >= share * means[width] or n == width for n in means if n >= m))


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 30))
@settings(max_examples=40)
def test_the_smallest_dim_and_its_interval_follow_the_definition(seed: int, count: int, queries: int) -> None:
    rng = np.random.default_rng(seed)
    outcomes = {8 * 2**k: rng.random(queries) * rng.random() + 0.01 for k in range(count)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(retention, "REPLICATES", 100)
        found = retention.smallest_dims(outcomes, (0.5, 0.9, 1.0))
    means = {dim: float(values.mean()) for dim, values in outcomes.items()}
    assert [one.dim for one in found] == [by_hand(means, share) for share in (0.5, 0.9, 1.0)]
    for one in found:
        assert {one.low, one.high} <= outcomes.keys()
        assert one.low <= one.high


def test_the_interval_is_that_of_resampled_queries() -> None:
    rng = np.random.default_rng(0)
    full = rng.random(200)
    outcomes = {8: full * 0.90, 16: full * np.where(rng.random(200) < 0.9, 1.0, 0.5), 32: full}
    (one,) = retention.smallest_dims(outcomes, (0.95,))
    drawn = [  # the same queries at every dim
        by_hand({dim: float(values[rows].mean()) for dim, values in outcomes.items()}, 0.95)
        for rows in rng.integers(0, 200, (2000, 200))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    assert (one.low, one.high) == (low, high) == (16, 32)


def test_a_dim_that_keeps_the_share_by_chance_between_two_that_do_not_is_not_the_smallest() -> None:
    outcomes = {8: np.full(5, 1.0), 16: np.full(5, 0.5), 32: np.full(5, 1.0)}
    assert [one.dim for one in retention.smallest_dims(outcomes, (0.95,))] == [32]


def test_nothing_is_said_of_a_model_that_finds_nothing() -> None:
    assert retention.smallest_dims({8: np.zeros(4), 16: np.zeros(4)}) == []
    assert retention.expected_shares([{8: 0.0, 16: 0.0}, {8: 0.5, 16: 1.0}]) == []
    assert retention.expected_shares([{8: 0.5, 16: 1.0}]) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 6, 15])
def test_intervals_over_collections_cover_in_95_percent_of_studies(count: int) -> None:
    """Shares that vary between collections, each measured on its own queries: the interval of the mean covers the mean
    over all collections, that of one more collection the measured share of another one."""
    rng, studies, truth, queries = np.random.default_rng(count), 3000, 0.85, 50
    hits = new_hits = 0
    for _ in range(studies):
        means = []
        for share in truth + 0.05 * rng.standard_normal(count + 1):
            full = rng.beta(2, 3, queries)
            short = full * (share + 0.2 * rng.standard_normal(queries))
            means.append({64: float(short.mean()), 384: float(full.mean())})
        (found,) = retention.expected_shares(means[:-1])
        hits += found.low <= truth <= found.high
        new_hits += found.new_low <= means[-1][64] / means[-1][384] <= found.new_high
    error = norm.ppf(0.9995) * (0.95 * 0.05 / studies) ** 0.5
    assert abs(hits / studies - 0.95) < error
    assert abs(new_hits / studies - 0.95) < error


@pytest.mark.slow
@pytest.mark.parametrize(("count", "covered"), [(3, 0.87), (6, 0.91)])
def test_a_bootstrap_of_collections_then_queries_covers_too_little(count: int, covered: float) -> None:
    rng, studies, truth, queries, replicates = np.random.default_rng(0), 500, 0.85, 50, 400
    hits = 0
    for _ in range(studies):
        full, share = rng.beta(2, 3, (count, queries)), truth + 0.05 * rng.standard_normal((count, 1))
        short = full * (share + 0.2 * rng.standard_normal((count, queries)))
        at = rng.integers(0, count, (replicates, count, 1)), rng.integers(0, queries, (replicates, count, queries))
        low, high = np.quantile((short[at].mean(-1) / full[at].mean(-1)).mean(1), [0.025, 0.975])
        hits += low <= truth <= high
    assert hits / studies == pytest.approx(covered, abs=0.045)
