"""Answering or not, by the score of the first result: the bound holds in simulation, and nothing is given away."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mrl_jax.search.abstain import Threshold, certify


def draw(rng: np.random.Generator, count: int, sharp: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether the answers are right: the more probable, the higher the score."""
    scores = rng.uniform(size=count)
    return scores, rng.uniform(size=count) < scores**sharp


@pytest.mark.parametrize(("wrong", "delta", "sharp"), [(0.1, 0.1, 0.3), (0.05, 0.2, 0.15), (0.2, 0.05, 1.0)])
def test_answers_are_wrong_more_often_than_allowed_at_most_with_probability_delta(
    wrong: float, delta: float, sharp: float
) -> None:
    rng = np.random.default_rng(0)
    draws, broken, answered = 400, 0, []
    for seed in range(draws):
        found = certify(*draw(rng, 600, sharp), wrong, delta, seed)
        answered.append(found.answered)
        if found.score < math.inf:  # E(1 − s^sharp | s ≥ score) of uniform s
            least = max(found.score, 0.0)
            share = 1 - (1 - least ** (sharp + 1)) / ((sharp + 1) * (1 - least))
            broken += share > wrong
    assert binomtest(broken, draws, delta, "greater").pvalue > 1e-3
    assert np.mean(answered) > 0.1  # and the bound is of use


def test_the_p_value_is_that_of_the_binomial_test() -> None:
    scores, right = draw(np.random.default_rng(1), 500, 0.2)
    found = certify(scores, right, 0.1, 0.05, 3)
    half = np.random.default_rng(3).permutation(500)[250:]
    kept = half[scores[half] >= found.score]
    wrong = int(np.count_nonzero(~right[kept]))
    assert found.p == pytest.approx(binomtest(wrong, len(kept), 0.1, "less").pvalue)
    assert (found.answered, found.wrong) == pytest.approx((len(kept) / 250, wrong / len(kept)))


@given(seed=st.integers(0, 10**6), wrong=st.floats(0.01, 0.5), delta=st.floats(0.01, 0.5))
def test_any_order_preserving_change_of_the_scores_answers_the_same_questions(
    seed: int, wrong: float, delta: float
) -> None:
    scores, right = draw(np.random.default_rng(seed), 201, 0.3)  # quantiles of 100 scores are scores, not between them
    one, other = certify(scores, right, wrong, delta), certify(np.float64(8) * scores, right, wrong, delta)
    assert one[1:] == pytest.approx(other[1:], nan_ok=True)
    assert other.score == pytest.approx(8 * one.score)  # of infinities, too
    assert one.p <= delta or one == pytest.approx((math.inf, 0.0, math.nan, 1.0), nan_ok=True)


def test_where_nothing_can_be_shown_nothing_is_answered() -> None:
    needed = 59  # the least n of 0.95^n ≤ 0.05
    scores = np.linspace(0, 1, 2 * needed)
    assert certify(scores, np.ones(2 * needed, bool), 0.05, 0.05).answered == 1.0
    few = slice(0, 2 * needed - 2)
    assert certify(scores[few], np.ones(2 * needed - 2, bool), 0.05, 0.05).score == math.inf
    assert certify(scores, np.zeros(2 * needed, bool)).score == math.inf
    assert isinstance(certify(np.zeros(0), np.zeros(0, bool)), Threshold)


@pytest.mark.parametrize(
    ("scores", "right", "words", "said"),
    [
        (np.ones(3), np.ones(2, bool), {}, "one finite score per question"),
        (np.array([1.0, np.nan]), np.ones(2, bool), {}, "one finite score per question"),
        (np.ones(2), np.ones(2, bool), {"wrong": 0.0}, "wrong=0.0 is not allowed"),
        (np.ones(2), np.ones(2, bool), {"delta": 1.0}, "delta=1.0 is not allowed"),
    ],
)
def test_mistakes_are_named(scores: np.ndarray, right: np.ndarray, words: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        certify(scores, right, **words)
