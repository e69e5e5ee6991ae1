"""Search in steps: a loop by hand finds the same, and what is certified holds on other queries."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.search import exact, shortlist, widening
from mrl_jax.search import plan as plans
from mrl_jax.search.layout import Documents, lay_out
from mrl_jax.search.widening import Step

DIMS = (4, 8, 16, 32)


def nested(n: int, seed: int) -> np.ndarray:
    """Unit vectors, of which some are told by few coordinates and others by many."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(40, 32))
    noise = np.where(rng.random((n, 1)) < 0.7, 0.1, 1.0)
    z = (centres[rng.integers(0, 40, n)] + noise * rng.normal(size=(n, 32))) / np.arange(1, 33) ** 0.7
    return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True), np.float32)


X = nested(5000, 0)


@pytest.fixture(scope="module")
def documents() -> Documents:
    return lay_out(X, DIMS, jnp.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_gaps_are_those_by_hand(documents: Documents) -> None:
    """Each is the k-th inner product of the shortlist less the cosine of its last document by the prefix."""
    queries = 3 * nested(30, 1)  # of any length
    found, gaps = shortlist.search_with_gaps(documents, queries, 5, 8, 40)
    for q, query in enumerate(queries.astype(np.float64)):
        cosines = unit(X[:, :8].astype(np.float64)) @ unit(query[:8])
        kept = np.argsort(-cosines)[:40]
        dots = np.sort(X[kept].astype(np.float64) @ query)[::-1]
        assert gaps[q] == pytest.approx(dots[4] / 3 - cosines[kept[-1]], abs=2e-3)  # bins may drop a document
        np.testing.assert_allclose(found.scores[q], dots[:5], atol=1e-4)
    few = lay_out(X[:30], DIMS, jnp.float32)
    assert np.isposinf(shortlist.search_with_gaps(few, queries, 5, 8, 40)[1]).all()
    gone = lay_out(X[:60], DIMS, jnp.float32, alive=np.arange(60) < 3)
    assert np.isposinf(shortlist.search_with_gaps(gone, queries, 5, 8, 40)[1]).all()


@pytest.mark.parametrize("margins", [(-np.inf, 0.0), (np.inf, np.inf), (0.05, 0.02), (0.3, -0.1)])
def test_each_query_has_the_results_of_the_first_step_that_settles_it(documents: Documents, margins) -> None:
    queries = nested(50, 1)
    steps = [Step(4, 50, margins[0]), Step(8, 50, margins[1]), Step(16, 20, -np.inf)]
    results, dims = widening.search(documents, queries, 5, steps)
    for q in range(50):
        for step in steps:
            alone, gaps = shortlist.search_with_gaps(documents, queries[q : q + 1], 5, step.dim, step.size)
            if gaps[0] >= step.margin:
                break
        assert dims[q] == step.dim
        np.testing.assert_array_equal(results.rows[q], alone.rows[0])
        np.testing.assert_allclose(results.scores[q], alone.scores[0], rtol=1e-6)


def held_out(documents: Documents, seed: int, k: int, target: float) -> tuple[np.ndarray, plans.Goal]:
    queries = nested(800, seed)
    return queries, plans.Goal(exact.search(documents, queries, k)[0].rows, k, target, "recall", None)


def test_what_is_certified_holds_on_other_queries_and_costs_what_it_says(documents: Documents) -> None:
    queries, goal = held_out(documents, 1, 5, 0.9)
    fixed, steps = widening.certify(documents, queries, goal, delta=0.1)
    assert fixed is not None
    assert steps is not None
    assert len(fixed.steps) == 1 < len(steps.steps)
    others, other_goal = held_out(documents, 2, 5, 0.9)
    for one in (fixed, steps):
        assert one.p <= 0.05
        results, dims = widening.search(documents, others, 5, one.steps)
        assert plans.recall(results.rows, other_goal.truth).mean() > 0.89
        shares = [(dims == step.dim).mean() for step in one.steps]
        np.testing.assert_allclose(shares, one.settled, atol=0.08)
        reached = 1 - np.cumsum([0, *one.settled[:-1]])
        costs = [plans.shortlist_cost(documents, [(step.dim, step.size)]).megabytes for step in one.steps]
        assert one.megabytes == pytest.approx(float(reached @ costs))


def test_an_impossible_goal_certifies_nothing(documents: Documents) -> None:
    queries, goal = held_out(documents, 1, 5, 0.9999)
    with pytest.raises(ValueError, match=r"400 held-out queries cannot certify recall 0\.9999"):
        widening.certify(documents, queries, goal)
    assert widening.certify(lay_out(X, (4, 32), scanned=4), queries, goal._replace(target=0.98)) == (None, None)
    with pytest.raises(ValueError, match="there is no prefix to plan with"):
        widening.certify(lay_out(X, (32,)), queries, goal)


def test_the_guarantee_holds_over_draws_of_queries() -> None:
    """Of many draws, the expected recall of what is certified is below the target in at most delta of them."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(3, 20_000))
    chances = 1 / (1 + np.exp(3 * gaps + np.array([[1], [3], [12]])))  # of losing a result, by step
    losses = rng.binomial(5, chances) / 5
    parts = {(m, 10): widening._Tried(losses[i], gaps[i], float(m)) for i, m in enumerate((4, 8, 16))}
    chains = [((4, 10), (16, 10)), ((8, 10), (16, 10)), ((4, 10), (8, 10), (16, 10)), ((4, 10), (8, 10))]
    everything, level, missed, made = np.arange(20_000), 0.2, 0, 0
    for _ in range(300):
        some = rng.permutation(20_000)[:800]
        one = widening._best(chains, parts, some[:400], some[400:], 0.95, level)
        if one is None:
            continue
        made += 1
        chain = [parts[step.dim, step.size] for step in one.steps]
        outcome = widening._outcome(chain, [step.margin for step in one.steps], everything)
        missed += 1 - outcome.losses.mean() < 0.95
    assert made > 200
    assert missed / 300 <= level + 3 * (level * (1 - level) / 300) ** 0.5


def test_mistakes_are_named(documents: Documents) -> None:
    for steps, said in (
        ([], "at least one step"),
        ([Step(8, 20, 0.1), Step(4, 20, 0.1)], r"the dims of the steps \[8, 4\] must ascend"),
        ([Step(5, 20, 0.1)], "a stage at dim 5 is not possible"),
        ([Step(4, 3, 0.1)], "a stage keeps 3 documents; at least k=5"),
    ):
        with pytest.raises(ValueError, match=said):
            widening.search(documents, nested(2, 1), 5, steps)
