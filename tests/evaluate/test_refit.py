"""Refitted classifiers against scikit-learn, and the choice of their penalty against a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge

from mrl_jax.evaluate import refit
from mrl_jax.evaluate.refit import LOGISTIC_PENALTIES, RIDGE_PENALTIES, logistic, ridge

DIMS, CLASSES = (2, 5, 12), 4


def classes_apart(count: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping Gaussian classes of unequal sizes, not centred, coordinates of different variances."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, count, p=[0.4, 0.3, 0.2, 0.1]).astype(np.int32)
    centres = apart * np.random.default_rng(99).normal(size=(CLASSES, DIMS[-1]))
    z = (centres[labels] + rng.normal(size=(count, DIMS[-1]))) * np.linspace(3, 0.3, DIMS[-1]) + 5
    return z.astype(np.float32), labels


TRAIN, VALIDATION = classes_apart(400, 0), classes_apart(150, 1)


def accuracy(classifier: tuple[np.ndarray, np.ndarray], z: np.ndarray, labels: np.ndarray) -> float:
    kernel, bias = classifier
    return float(np.mean((z[:, : len(kernel)] @ kernel + bias).argmax(1) == labels))


# --- ridge --------------------------------------------------------------------------------------------------------


def ridge_of_scikit_learn(z: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    z = z.astype(np.float64)
    # The mean eigenvalue of the Gram matrix is its mean diagonal: n times the mean variance.
    alpha = penalty * len(z) * z.var(axis=0).mean()
    oracle = Ridge(alpha=alpha).fit(z, np.eye(CLASSES)[labels])
    return oracle.coef_.T, oracle.intercept_


@pytest.mark.parametrize("penalty", RIDGE_PENALTIES)
def test_ridge_is_that_of_scikit_learn_at_every_penalty(monkeypatch, penalty):
    monkeypatch.setattr(refit, "RIDGE_PENALTIES", (penalty,))
    monkeypatch.setattr(refit, "CHUNK_ROWS", 150)  # several chunks, the last one short
    fitted = ridge(*TRAIN, *VALIDATION, DIMS, CLASSES)
    assert tuple(fitted) == DIMS
    for m, (kernel, bias) in fitted.items():
        wanted, offset = ridge_of_scikit_learn(TRAIN[0][:, :m], TRAIN[1], penalty)
        assert kernel.dtype == bias.dtype == np.float32
        np.testing.assert_allclose(kernel, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias, offset, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([13, 40, 200]), st.floats(0, 2))
def test_ridge_takes_the_penalty_that_is_best_on_validation_and_the_largest_of_equals(seed, count, apart):
    train, validation = classes_apart(count, seed, apart), classes_apart(31, seed + 1, apart)
    fitted = ridge(*train, *validation, DIMS, CLASSES)
    for m in DIMS:
        tried = [
            ridge_of_scikit_learn(train[0][:, :m], train[1], penalty)
            for penalty in sorted(RIDGE_PENALTIES, reverse=True)
        ]
        right = [accuracy(one, *validation) for one in tried]
        np.testing.assert_allclose(fitted[m][0], tried[int(np.argmax(right))][0], rtol=1e-2, atol=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
def test_penalties_have_no_unit(seed, exponent):
    """Embeddings in another unit get the same classifier in that unit."""
    (z, labels), (new, new_labels) = classes_apart(60, seed), classes_apart(30, seed + 1)
    unit = np.float32(2.0**exponent)
    plain, other = (ridge(z * u, labels, new * u, new_labels, DIMS, CLASSES) for u in (np.float32(1), unit))
    for m in DIMS:
        np.testing.assert_allclose(other[m][0] * unit, plain[m][0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(other[m][1], plain[m][1], rtol=1e-4, atol=1e-5)


def test_ridge_at_a_prefix_does_not_depend_on_the_other_dims():
    alone = ridge(TRAIN[0][:, :5].copy(), TRAIN[1], VALIDATION[0][:, :5].copy(), VALIDATION[1], (5,), CLASSES)
    together = ridge(*TRAIN, *VALIDATION, DIMS, CLASSES)
    np.testing.assert_allclose(together[5][0], alone[5][0], rtol=1e-4, atol=1e-7)


# --- logistic -----------------------------------------------------------------------------------------------------


def objective(x: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, penalty: float) -> float:
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    likelihood = log_softmax(x @ kernel + bias, axis=1)[np.arange(len(x)), labels]
    return float(-likelihood.mean() + penalty / 2 * (kernel**2).sum())


@pytest.mark.parametrize("count", [1, 2, len(LOGISTIC_PENALTIES)])
@pytest.mark.parametrize("tiled", [False, True])
def test_logistic_reaches_the_minimum_that_scikit_learn_finds(monkeypatch, count, tiled):
    """With one penalty from a cold start, with several the last one after the others."""
    if tiled:
        monkeypatch.setattr(refit, "MAX_LOGIT_ELEMENTS", 0)
        monkeypatch.setattr(refit, "TILE_ELEMENTS", 150 * CLASSES)
    penalty = LOGISTIC_PENALTIES[count - 1]
    monkeypatch.setattr(refit, "LOGISTIC_PENALTIES", LOGISTIC_PENALTIES[:count])
    monkeypatch.setattr(refit, "_most_accurate", lambda candidates, *_: list(candidates)[-1])
    fitted = logistic(*TRAIN, *VALIDATION, DIMS, CLASSES)
    assert tuple(fitted) == DIMS
    for m, (kernel, bias) in fitted.items():
        z = TRAIN[0][:, :m].astype(np.float64)
        scale = np.sqrt(z.var(axis=0).mean())
        x = (z - z.mean(axis=0)) / scale
        oracle = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-8, max_iter=10000).fit(x, TRAIN[1])
        least = objective(x, TRAIN[1], oracle.coef_.T, oracle.intercept_, penalty)
        reached = objective(x, TRAIN[1], kernel * scale, bias + z.mean(axis=0) @ kernel, penalty)
        assert least - 1e-6 <= reached <= least * 1.002
        assert np.mean((z @ kernel + bias).argmax(1) == oracle.predict(x)) >= 0.985


@pytest.mark.parametrize(("rows", "tile"), [(50, 7), (64, 16), (3, 100), (1, 1)])
def test_in_tiles_the_objective_and_its_slope_are_those_of_numpy(monkeypatch, rows, tile):
    monkeypatch.setattr(refit, "TILE_ELEMENTS", tile * CLASSES)
    rng = np.random.default_rng(rows)
    x, labels = rng.normal(size=(rows, 5)), rng.integers(0, CLASSES, rows).astype(np.int32)
    weights, penalty = 3 * rng.normal(size=(CLASSES, 6)), 0.01
    value, slope = refit._in_tiles(jnp.asarray(x.T, jnp.float32), jnp.asarray(labels), CLASSES)(weights, penalty)
    kernel = weights[:, :-1]
    logs = log_softmax(x @ kernel.T + weights[:, -1], axis=1)
    assert value == pytest.approx(-logs[np.arange(rows), labels].mean() + penalty / 2 * np.sum(kernel**2), rel=1e-6)
    error = (np.exp(logs) - np.eye(CLASSES)[labels]) / rows
    expected = error.T @ np.hstack([x, np.ones((rows, 1))]) + penalty * np.hstack([kernel, np.zeros((CLASSES, 1))])
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_logistic_takes_the_penalty_that_is_best_on_validation_and_the_largest_of_equals(monkeypatch):
    chosen = logistic(*TRAIN, *VALIDATION, DIMS, CLASSES)
    monkeypatch.setattr(refit, "_most_accurate", lambda candidates, *_: list(candidates))
    monkeypatch.setattr(refit, "_fit_each_dim", lambda fit, dims, _: {m: fit(m) for m in dims})
    tried = logistic(*TRAIN, *VALIDATION, DIMS, CLASSES)
    for m in DIMS:
        assert len(tried[m]) == len(LOGISTIC_PENALTIES)
        right = [accuracy(one, *VALIDATION) for one in tried[m]]
        np.testing.assert_array_equal(chosen[m][0], tried[m][int(np.argmax(right))][0])
        sizes = [np.linalg.norm(kernel) for kernel, _ in tried[m]]
        assert sizes == sorted(sizes)  # from the largest penalty to the smallest


# --- both ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [ridge, logistic])
def test_well_separated_classes_are_told_apart(fit):
    train, validation = classes_apart(200, 2, apart=20), classes_apart(80, 3, apart=20)
    fitted = fit(*train, *validation, DIMS, CLASSES)
    assert accuracy(fitted[DIMS[-1]], *classes_apart(300, 4, apart=20)) == 1


@pytest.mark.parametrize("fit", [ridge, logistic])
def test_constant_coordinates_few_examples_and_missing_classes_are_no_trouble(fit):
    """One example, fewer than coordinates, coordinates without variance, a class (here 3) that train lacks."""
    z, labels = classes_apart(8, 5)
    labels = labels % 3
    flat = z.copy()
    flat[:, :2] = 0.1
    for x, y in ((z, labels), (z[:1], labels[:1]), (flat, labels), (np.full_like(z, 0.1), labels), (z * 0, labels)):
        for m, (kernel, bias) in fit(x, y, *VALIDATION, DIMS, CLASSES).items():
            assert kernel.shape == (m, CLASSES)
            assert np.isfinite(kernel).all()
            assert np.isfinite(bias).all()
            assert 3 not in (x[:, :m] @ kernel + bias).argmax(1)
        if not x.any():
            np.testing.assert_array_equal(kernel, 0)
            assert bias.argmax() == np.bincount(y).argmax()  # nothing but the frequencies of the classes to go by
