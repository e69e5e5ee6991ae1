"""The planner's arithmetic against scipy and hand-worked cases, its guarantee by simulation."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, entropy
from sklearn.metrics import ndcg_score

from mrl_jax import funnel
from mrl_jax.search import plan

DIMS = (4, 8, 16, 32)


def nested(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(40, 32))
    z = (centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, 32))) / np.arange(1, 33) ** 0.5
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is compiled for each size of a shortlist."""
    monkeypatch.setattr(plan, "SIZES_PER_K", (50, 20, 10, 5, 2, 1))


@pytest.fixture(scope="module")
def documents() -> funnel.Documents:
    return funnel.lay_out(nested(6000, 0), DIMS, jnp.float32)


def test_recall_by_hand() -> None:
    found = np.array([[1, 2, 3], [4, 5, 6], [7, -1, -1]])
    truth = np.array([[3, 1, 9], [4, 5, 6], [7, 8, -1]])
    np.testing.assert_allclose(plan.recall(found, truth), [2 / 3, 1, 1 / 2])


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth, found = rng.permutation(30)[:6], rng.permutation(30)[:6]
        relevance = np.isin(np.arange(30), truth).astype(float)
        scores = np.full(30, -1.0)
        scores[found] = np.arange(6, 0, -1)
        wanted = ndcg_score(relevance[None], scores[None], k=6)
        assert plan.ndcg(found[None], truth[None])[0] == pytest.approx(wanted)
    np.testing.assert_allclose(plan.ndcg(np.array([[3, 7, -1]]), np.array([[7, -1, -1]])), 1 / np.log2(3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.01, 0.5), st.floats(0.001, 0.2))
def test_p_value_is_that_of_a_player_who_bets_on_one_loss_after_the_other(
    losses: list[float], alpha: float, level: float
) -> None:
    """Algorithm of the paper, written as a game in exact turns."""
    capital = largest = 1.0
    mean, variance, total, squares = 0.5, 0.25, 0.5, 0.25
    for i, loss in enumerate(np.random.default_rng(0).permutation(losses), start=1):
        stake = min(0.9 / (1 - alpha), math.sqrt(2 * math.log(1 / level) / (len(losses) * variance)))
        capital *= 1 + stake * (alpha - loss)
        largest = max(largest, capital)
        total += loss
        mean = total / (i + 1)
        squares += (loss - mean) ** 2
        variance = squares / (i + 1)
    assert plan.p_value(np.array(losses), alpha, level) == pytest.approx(1 / largest, rel=1e-6)


@pytest.mark.parametrize(("alpha", "size"), [(0.01, 1.0), (0.05, 0.1), (0.05, 1.0), (0.3, 0.5)])
def test_p_values_of_a_mean_at_the_limit_are_small_no_more_often_than_they_say(alpha: float, size: float) -> None:
    rng = np.random.default_rng(1)
    p = np.array([plan.p_value(size * (rng.random(600) < alpha / size), alpha, 0.05) for _ in range(1000)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 1000)


def test_many_small_losses_settle_what_the_hoeffding_bentkus_bound_leaves_open() -> None:
    """Bates et al. 2021: the smaller of two bounds that see the mean only."""
    losses = np.random.default_rng(0).permutation(np.repeat([0.0, 0.1], [1140, 60]))  # of 1,200 queries, mean 0.005
    n, mean, alpha = len(losses), losses.mean(), 0.01
    hoeffding = math.exp(-n * entropy([mean, 1 - mean], [alpha, 1 - alpha]))
    bentkus = math.e * binom.cdf(math.ceil(losses.sum()), n, alpha)
    assert min(hoeffding, bentkus) > 0.1
    assert plan.p_value(losses, alpha, 0.05 / 6) < 0.05 / 6


@pytest.mark.parametrize(("target", "delta"), [(0.99, 0.05), (0.9, 0.01), (0.999, 0.1), (0.5, 0.2)])
def test_queries_needed_is_where_no_miss_begins_to_suffice(target: float, delta: float) -> None:
    n = plan.queries_needed(target, delta)
    assert plan.p_value(np.zeros(n), 1 - target, delta) <= delta < plan.p_value(np.zeros(n - 1), 1 - target, delta)
    assert n <= 1.4 * math.log(delta) / math.log(target)  # target^n ≤ delta is the least for any test


def test_a_target_that_no_number_of_queries_at_hand_can_certify_is_refused_at_once() -> None:
    """Without an array of so many losses."""
    few = plan.queries_needed(0.999_99, 0.05)
    bound = plan.queries_needed(1 - 1e-11, 0.05)
    assert few < 1e6 < bound < few * 1e6
    with pytest.raises(ValueError, match="400 held-out queries cannot certify recall"):
        plan.check_settleable(400, 1 - 1e-15, 0.05, 3, "recall")


@pytest.mark.slow
def test_a_plan_keeps_its_promise_on_other_queries(documents: funnel.Documents) -> None:
    planned = plan.plan(documents, nested(600, 1), k=5, target=0.95, delta=0.1)
    assert planned.chosen is not None
    assert planned.chosen.certified
    assert planned.chosen.cost.megabytes < planned.exact.megabytes
    others = nested(2000, 2)
    truth = funnel.exact(documents, others, 5)[0].rows
    found = funnel.funnel(documents, others, 5, planned.chosen.stages).rows
    assert plan.recall(found, truth).mean() > 0.94
    cheaper = [one for one in planned.tried if one.cost.megabytes < planned.chosen.cost.megabytes]
    assert not any(one.certified for one in cheaper)


@pytest.mark.slow
def test_the_guarantee_holds_over_draws_of_queries(documents: funnel.Documents) -> None:
    """Of the plans made from 60 draws, those whose recall is below the target are no more than delta allows."""
    pool = nested(6000, 3)
    truth = funnel.exact(documents, pool, 5)[0].rows
    stages = [((dim, 5 * n),) for dim in (4, 8, 16) for n in plan.SIZES_PER_K]
    population = {s: 1 - plan.recall(funnel.funnel(documents, pool, 5, s).rows, truth) for s in stages}
    rng = np.random.default_rng(0)
    broken = planned = 0
    for _ in range(300):
        drawn = rng.integers(0, 6000, 250)
        certified = []
        for dim in (4, 8, 16):
            for n in plan.SIZES_PER_K:
                losses = population[((dim, 5 * n),)]
                if plan.p_value(losses[drawn], 0.05, 0.2 / 3) > 0.2 / 3:
                    break
                certified.append(losses.mean() > 0.05)
        planned += bool(certified)
        broken += any(certified)  # the worst that could be chosen
    assert planned > 250
    assert broken / 300 <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 300)


def test_a_plan_can_be_made_for_ndcg(documents: funnel.Documents) -> None:
    made = {m: plan.plan(documents, nested(600, 1), 5, 0.95, metric=m).chosen for m in ("recall", "ndcg")}
    truth = funnel.exact(documents, nested(600, 1), 5)[0].rows
    found = funnel.funnel(documents, nested(600, 1), 5, made["ndcg"].stages).rows
    assert made["ndcg"].quality == pytest.approx(plan.ndcg(found, truth).mean())
    # Documents that are missed are mostly those at the end of the list, which count less.
    assert made["ndcg"].cost.megabytes <= made["recall"].cost.megabytes


@pytest.mark.slow
def test_a_budget_and_an_impossible_target_leave_nothing(documents: funnel.Documents) -> None:
    queries = nested(600, 1)
    free = plan.plan(documents, queries, 5, 0.9)
    assert free.chosen is not None
    assert plan.plan(documents, queries, 5, 0.9, budget=free.chosen.cost.megabytes / 2).chosen is None
    random = funnel.lay_out(np.random.default_rng(0).normal(size=(6000, 32)).astype(np.float32), DIMS)
    assert plan.plan(random, np.random.default_rng(1).normal(size=(600, 32)), 5, 0.99, dims=[4]).chosen is None


def test_cost_counts_what_is_read(documents: funnel.Documents) -> None:
    cost = plan.shortlist_cost(documents, ((8, 50), (16, 20)))
    assert cost.mflop == pytest.approx(2 * (6000 * 8 + 50 * 16 + 20 * 32) / 1e6)
    assert cost.megabytes == pytest.approx(4 * (6000 * 8 + 50 * 16 + 20 * 32) / 1e6)
    assert plan.exact_cost(documents).megabytes == pytest.approx(6000 * 32 * 4 / 1e6)


def test_mistakes_are_named(documents: funnel.Documents) -> None:
    queries = nested(50, 1)
    with pytest.raises(ValueError, match=r"50 held-out queries cannot certify recall 0.99 .* at least 458 are needed"):
        plan.plan(documents, queries)
    with pytest.raises(ValueError, match=r"target=1\.0 is not allowed"):
        plan.plan(documents, queries, target=1.0)
    with pytest.raises(ValueError, match="there is no prefix to plan with: only 32 dims are laid out"):
        plan.plan(funnel.lay_out(nested(100, 0), (32,)), queries)
