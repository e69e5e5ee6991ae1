"""The planner's arithmetic against scipy and hand-worked cases, its guarantee by simulation."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import ndcg_score

from mrl_jax import funnel
from mrl_jax.search import plan

DIMS = (4, 8, 16, 32)


def nested(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(40, 32))
    z = (centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, 32))) / np.arange(1, 33) ** 0.5
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


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


@given(st.integers(1, 400), st.integers(0, 20), st.floats(0.001, 0.3))
def test_p_value_is_the_smaller_of_two_published_bounds(n: int, lost: int, alpha: float) -> None:
    losses = np.zeros(n)
    losses[: min(n, lost)] = 1.0
    p, mean = plan.p_value(losses, alpha), losses.mean()
    if mean >= alpha:
        assert p == 1
        return
    hoeffding = math.exp(-n * entropy([mean, 1 - mean], [alpha, 1 - alpha]))
    tail = sum(math.comb(n, i) * alpha**i * (1 - alpha) ** (n - i) for i in range(int(losses.sum()) + 1))
    assert p == pytest.approx(min(1.0, hoeffding, math.e * tail), rel=1e-6)


@pytest.mark.parametrize(("target", "delta"), [(0.99, 0.05), (0.9, 0.01), (0.999, 0.1)])
def test_queries_needed_is_where_no_miss_begins_to_suffice(target: float, delta: float) -> None:
    n = plan.queries_needed(target, delta)
    assert plan.p_value(np.zeros(n), 1 - target) <= delta < plan.p_value(np.zeros(n - 1), 1 - target)


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
                if plan.p_value(losses[drawn], 0.05) > 0.2 / 3:
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
    with pytest.raises(ValueError, match=r"50 held-out queries cannot certify recall 0.99 .* at least 408 are needed"):
        plan.plan(documents, queries)
    with pytest.raises(ValueError, match=r"target=1\.0 is not allowed"):
        plan.plan(documents, queries, target=1.0)
    with pytest.raises(ValueError, match="there is no prefix to plan with: only 32 dims are laid out"):
        plan.plan(funnel.lay_out(nested(100, 0), (32,)), queries)
