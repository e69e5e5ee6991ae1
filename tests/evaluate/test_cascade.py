"""Adaptive classification against hand-worked cases, scikit-learn, brute force, and simulated certificates."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import multinomial
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mrl_jax.evaluate import cascade

DIMS = (2, 4, 8)


def nested(n: int, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [n, 8] of `classes` classes, told apart better by longer prefixes, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, 8))
    labels = rng.integers(0, classes, n)
    return centres[labels] + rng.normal(size=(n, 8)), labels


@pytest.fixture(scope="module")
def heads() -> list[cascade.Classifier]:
    z, labels = nested(2000, 0)
    fitted = [LogisticRegression().fit(z[:, :m], labels) for m in DIMS]
    return [(one.coef_.T, one.intercept_) for one in fitted]


# ---- calibration and confidence --------------------------------------------------------------------------------------


def test_temperature_has_the_least_log_loss_of_a_grid(heads: list[cascade.Classifier]) -> None:
    z, labels = nested(500, 1)
    logits = 5 * (z @ heads[-1][0] + heads[-1][1])  # far too sure
    found = cascade.temperature(logits, labels)
    grid = np.geomspace(0.1, 15, 400)
    losses = [log_loss(labels, softmax(logits / t, axis=1)) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.02)


def test_confidence_by_hand() -> None:
    logits = np.log([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]])
    np.testing.assert_allclose(cascade.confidence(logits), [0.5, 0.98])
    np.testing.assert_allclose(cascade.confidence(logits, kind="margin"), [0.2, 0.97])
    entropy = 0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)
    assert cascade.confidence(logits, kind="entropy")[0] == pytest.approx(1 + entropy / np.log(3))
    squared = np.array([0.25, 0.09, 0.04]) / 0.38  # a temperature of ½ squares probabilities
    assert cascade.confidence(logits, 0.5)[0] == pytest.approx(squared[0])
    with pytest.raises(ValueError, match="kind='max' is unknown; allowed: max_softmax, margin, entropy"):
        cascade.confidence(logits, kind="max")  # type: ignore[arg-type]


# ---- leaving ---------------------------------------------------------------------------------------------------------

CONFIDENCES = np.array([[0.9, 0.2, 0.2, 0.8], [0.1, 0.7, 0.3, 0.9], [0.5, 0.5, 0.5, 0.5]])
RIGHT = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 1, 1]], bool)


def test_inputs_leave_where_they_are_sure_and_figures_follow() -> None:
    granularity = cascade.leaving(CONFIDENCES, np.array([0.8, 0.6]))
    assert granularity.tolist() == [0, 1, 2, 0]
    separate = cascade.outcome_of_exits(granularity, RIGHT, DIMS, classes=5, tied=False)
    assert separate.accuracy == 0.75
    assert separate.full == 0.75
    assert separate.dims == (2 + 4 + 8 + 2) / 4
    assert separate.cumulative_dims == (2 + 6 + 14 + 2) / 4
    assert separate.flops == 2 * 5 * 6
    assert separate.shares.tolist() == [0.5, 0.25, 0.25]
    assert separate.captured == (8 - 4) / (8 - (2 + 4 + 8 + 4) / 4)  # the oracle reads 2, 4, 8 and 4
    assert cascade.outcome_of_exits(granularity, RIGHT, DIMS, classes=5, tied=True).cumulative_dims == separate.dims


scores = st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=20)


@given(scores, st.tuples(*[st.floats(0, 1)] * 2), st.floats(0, 1))
def test_higher_thresholds_keep_inputs_longer(rows: list[tuple], thresholds: tuple, more: float) -> None:
    confidences = np.array(rows).T
    now = cascade.leaving(confidences, np.array(thresholds))
    later = cascade.leaving(confidences, np.array(thresholds) + more)
    assert (now <= later).all()
    assert (cascade.leaving(confidences, np.full(2, -np.inf)) == 0).all()
    assert (cascade.leaving(confidences, np.full(2, np.inf)) == 2).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["max_softmax", "margin", "entropy"])
def test_serving_equals_evaluating_everything(heads: list[cascade.Classifier], kind: cascade.Kind, tied: bool) -> None:
    z, _ = nested(300, 2)
    kernel, bias = heads[-1]
    classifiers = [(kernel[:m], bias) for m in DIMS] if tied else heads
    temperatures, thresholds = (0.7, 1.0, 1.3), np.array([0.8, 0.6])
    logits = [z[:, : len(k)] @ k + b for k, b in classifiers]
    confidences = np.stack([cascade.confidence(x, t, kind) for x, t in zip(logits, temperatures, strict=True)])
    granularity = cascade.leaving(confidences, thresholds)
    predicted, left = cascade.serve(z, classifiers, temperatures, thresholds, kind, tied)
    np.testing.assert_array_equal(left, granularity)
    assert len(set(left)) == 3
    np.testing.assert_array_equal(predicted, np.stack(logits)[granularity, np.arange(300)].argmax(axis=1))


# ---- thresholds ------------------------------------------------------------------------------------------------------


def test_greedy_finds_where_reading_on_stops_paying() -> None:
    """Right at the first granularity above 0.6, at the second above 0.3: exactly these leave there."""
    rng = np.random.default_rng(0)
    confidences = np.stack([rng.permutation(1000) / 1000 for _ in range(3)])
    right = np.stack([confidences[0] >= 0.6, confidences[1] >= 0.3, np.full(1000, True)])
    right[1] |= right[0]
    found = cascade.greedy(confidences, right, levels=1000)
    np.testing.assert_allclose(found, [0.6, 0.3], atol=0.003)
    assert cascade.greedy(confidences, right[::-1])[0] == 0  # the first is always right: everything leaves there


def brute_force_tail(worse: int, better: int, n: int, up: float, down: float) -> float:
    """P(worse' − better' ≤ worse − better), every outcome added up."""
    outcomes = [(i, j) for i, j in itertools.product(range(n + 1), repeat=2) if i + j <= n and i - j <= worse - better]
    return sum(multinomial.pmf((i, j, n - i - j), n, (up, down, 1 - up - down)) for i, j in outcomes)


@pytest.mark.parametrize(("worse", "better", "n"), [(0, 0, 30), (1, 3, 30), (2, 0, 40), (5, 5, 40)])
def test_p_value_is_the_largest_tail_of_every_population_that_loses_epsilon(worse: int, better: int, n: int) -> None:
    """No population at the boundary within the confidence set of its disagreements has a larger tail."""
    epsilon, p = 0.1, cascade.p_value(worse, better, n, 0.1)
    share = (worse + better) / n
    for s in np.linspace(max(epsilon, share - 0.1), max(epsilon, share + 0.1), 7):
        tail = brute_force_tail(worse, better, n, (s + epsilon) / 2, (s - epsilon) / 2)
        assert tail <= p + 1e-9
    assert p <= 1


@pytest.mark.parametrize("down", [0.0, 0.02, 0.2])
def test_a_population_that_loses_epsilon_is_rarely_certified(down: float) -> None:
    """At the boundary of the null hypothesis p ≤ 0.1 comes at most one time in ten."""
    rng = np.random.default_rng(3)
    counts = rng.multinomial(300, (0.03 + down, down, 0.97 - 2 * down), size=1500)
    unique, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    rejected = sum(
        t for (w, b), t in zip(unique, times, strict=True) if cascade.p_value(int(w), int(b), 300, 0.03) <= 0.1
    )
    assert rejected / 1500 <= 0.1 + 3 * np.sqrt(0.09 / 1500)
    assert rejected / 1500 > 0.02  # and not because nothing ever is


@pytest.mark.slow
def test_the_certificate_holds_for_nine_calibration_sets_in_ten(heads: list[cascade.Classifier]) -> None:
    epsilon, delta, n = 0.02, 0.1, 600
    z, labels = nested(40_000, 5)
    logits = np.stack([z[:, : len(k)] @ k + b for k, b in heads])
    confidences = np.stack([cascade.confidence(x) for x in logits])
    right = logits.argmax(axis=2) == labels
    rng = np.random.default_rng(0)
    line = cascade.path(np.array([0.8, 0.7]), steps=30)
    broken, cheap = 0, []
    for _ in range(200):
        drawn = rng.choice(len(z), n, replace=False)
        found = cascade.certify(confidences[:, drawn], right[:, drawn], line, epsilon, delta)
        if found is not None:
            figures = cascade.outcome_of_exits(
                cascade.leaving(confidences, found.thresholds), right, DIMS, 4, tied=True
            )
            broken += figures.full - figures.accuracy > epsilon
            cheap.append(figures.dims)
    assert broken <= 0.1 * 200 + 3 * np.sqrt(200 * 0.09)
    assert len(cheap) > 150
    assert np.mean(cheap) < 7  # of 8: it does certify something


def test_a_path_goes_from_nobody_to_somebody_through_the_thresholds() -> None:
    line = cascade.path(np.array([0.9, 0.5, np.inf, -np.inf]), steps=401)
    assert (line[0] == 1).all()
    assert (np.diff(line, axis=0) <= 0).all()
    assert (line[:, 2] == 1).all()  # where greedy never lets leave
    assert line[-1].tolist() == [0, 0, 1, 0]
    assert np.abs(line[:, :2] - [0.9, 0.5]).max(axis=1).min() < 0.02
    assert cascade.path(np.full(2, np.inf)).tolist() == [[1, 1]]


def test_mistakes_are_said() -> None:
    confidences, right = np.zeros((3, 50)), np.ones((3, 50), bool)
    line = cascade.path(np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"epsilon=0 is not allowed; between 0 and 1"):
        cascade.certify(confidences, right, line, 0, 0.1)
    with pytest.raises(ValueError, match=r"delta=1.5 is not allowed; between 0 and 1"):
        cascade.certify(confidences, right, line, 0.01, 1.5)
    with pytest.raises(ValueError, match=r"50 calibration examples cannot certify epsilon=0.01 at delta=0.1") as said:
        cascade.certify(confidences, right, line, 0.01, 0.1)
    needed = int(str(said.value).split()[-3])
    assert cascade.p_value(0, 0, needed, 0.01) <= 0.1 < cascade.p_value(0, 0, needed - 1, 0.01)
    never_right = np.stack([np.zeros(800, bool), np.zeros(800, bool), np.ones(800, bool)])
    assert cascade.certify(np.full((3, 800), 0.999999), never_right, line, 0.01, 0.1) is None
