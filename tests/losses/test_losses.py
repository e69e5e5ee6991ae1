"""The nested loss against its formula in float64, SciPy, and finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from mrl_jax.losses import (
    cross_entropy,
    heads,
    nested_cross_entropy,
    nested_logit_distillation,
    sample_granularities,
    uncertainty_weighted,
)
from mrl_jax.nesting import nested_logits

BATCH, WIDTH, CLASSES = 4, 12, 5
DIMS = (1, 3, 8, 12)
LABELS = np.array([0, 4, 2, 2], np.int32)

smoothings = st.sampled_from([0.0, 0.1, 0.5])
logit_arrays = arrays(np.float32, (BATCH, CLASSES), elements=st.floats(-1e4, 1e4, width=32))
weight_rows = arrays(np.float32, len(DIMS), elements=st.floats(0, 10, width=32))


def by_formula(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> np.ndarray:
    """−Σ_c target_c log p_c with target = (1 − s) one_hot + s/C, in float64."""
    logits = logits.astype(np.float64)
    target = (1 - smoothing) * np.eye(logits.shape[1])[labels] + smoothing / logits.shape[1]
    return -(target * log_softmax(logits, axis=1)).sum(1)


def embedding(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.float32(rng.normal(size=s)) for s in ((BATCH, WIDTH), (WIDTH, CLASSES), (CLASSES,)))


def loss(z: jax.Array, kernel: jax.Array, bias: jax.Array, weights: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """The nested loss of one tied head."""
    return nested_cross_entropy(nested_logits(z, kernel, DIMS, bias), LABELS, weights, smoothing)[0]


compiled_loss = jax.jit(loss)
compiled_gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


# --- one granularity ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(logit_arrays, arrays(np.int32, BATCH, elements=st.integers(0, CLASSES - 1)), smoothings)
def test_cross_entropy_is_the_formula_whatever_the_logits(logits, labels, smoothing):
    got = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(got, by_formula(logits, labels, smoothing), rtol=2e-5, atol=2e-3)


def test_cross_entropy_agrees_with_scipy_to_the_last_digits():
    logits = np.random.default_rng(0).normal(size=(BATCH, CLASSES)).astype(np.float32)
    wanted = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(BATCH), LABELS]
    np.testing.assert_allclose(cross_entropy(logits, LABELS), wanted, rtol=1e-6)


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes():
    for smoothing in (0.0, 0.3):
        np.testing.assert_allclose(cross_entropy(jnp.zeros((BATCH, CLASSES)), LABELS, smoothing), np.log(CLASSES))


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_have_a_finite_loss_and_gradient(scale):
    logits = jnp.zeros((BATCH, CLASSES)).at[:, 2].set(scale)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(cross_entropy(x, LABELS)))(logits)
    # Two rows have label 2. A wrong +1e4 costs 1e4; a right −1e4 costs 1e4 + log 4, and the other rows log 4.
    np.testing.assert_allclose(value, 2e4 if scale > 0 else 2e4 + 4 * np.log(4), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_narrow_logits_are_read_as_float32():
    logits = jnp.bfloat16(np.random.default_rng(0).normal(size=(BATCH, CLASSES)))
    got = cross_entropy(logits, LABELS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, by_formula(np.asarray(logits, np.float64), LABELS, 0.0), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_the_probability_minus_the_target(smoothing):
    logits = np.random.default_rng(1).normal(size=(BATCH, CLASSES)) * 3
    got = jax.grad(lambda x: jnp.sum(cross_entropy(x, LABELS, smoothing)))(jnp.float32(logits))
    target = (1 - smoothing) * np.eye(CLASSES)[LABELS] + smoothing / CLASSES
    np.testing.assert_allclose(got, np.exp(log_softmax(logits, axis=1)) - target, atol=1e-6)


# --- all granularities --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), weight_rows)
def test_the_nested_loss_is_the_weighted_sum_of_the_prefix_losses(seed, weights):
    z, kernel, bias = embedding(seed)
    total, each = nested_cross_entropy(nested_logits(z, kernel, DIMS, bias), LABELS, weights)
    z, kernel, bias = (np.asarray(x, np.float64) for x in (z, kernel, bias))
    wanted = [by_formula(z[:, :m] @ kernel[:m] + bias, LABELS, 0.0).mean() for m in DIMS]
    np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total, np.dot(weights.astype(np.float64), wanted), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(weight_rows, weight_rows, st.floats(0, 4, width=32))
def test_the_nested_loss_is_linear_in_its_weights(first, second, factor):
    z, kernel, bias = embedding(7)
    apart = compiled_loss(z, kernel, bias, first) + factor * compiled_loss(z, kernel, bias, second)
    np.testing.assert_allclose(compiled_loss(z, kernel, bias, first + factor * second), apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", range(len(DIMS)))
def test_one_hot_weights_train_a_fixed_size_model(k):
    """The loss is that of the width alone, and nothing beyond the prefix gets any gradient at all."""
    z, kernel, bias = embedding(k)
    m, one_hot = DIMS[k], jnp.eye(len(DIMS))[k]

    def fixed(z, kernel, bias):
        return jnp.mean(cross_entropy(z @ kernel + bias, LABELS))

    np.testing.assert_allclose(compiled_loss(z, kernel, bias, one_hot), fixed(z[:, :m], kernel[:m], bias), rtol=1e-5)
    wanted = jax.grad(fixed, argnums=(0, 1, 2))(z[:, :m], kernel[:m], bias)
    got_z, got_kernel, got_bias = compiled_gradient(z, kernel, bias, one_hot)
    np.testing.assert_allclose(got_z[:, :m], wanted[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got_kernel[:m], wanted[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got_bias, wanted[2], rtol=1e-4, atol=1e-6)
    assert not np.asarray(got_z[:, m:]).any()
    assert not np.asarray(got_kernel[m:]).any()


@pytest.mark.parametrize("kind", heads.KINDS)
def test_zero_weights_give_a_head_no_gradient(kind):
    z = embedding(0)[0]
    head = heads.init(jax.random.key(0), kind, DIMS, CLASSES)
    gradient = jax.grad(lambda h: nested_cross_entropy(heads.logits(h, kind, z, DIMS), LABELS, jnp.zeros(4))[0])(head)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_agree_with_finite_differences_in_float64(which, smoothing):
    """Central differences of the formula in NumPy, along every coordinate of z, the kernel and the bias."""
    values = [np.asarray(x, np.float64) for x in embedding(3)]
    weights = np.array([0.5, 2.0, 1.0, 0.0])

    def exact(*values: np.ndarray) -> float:
        z, kernel, bias = values
        each = [by_formula(z[:, :m] @ kernel[:m] + bias, LABELS, smoothing).mean() for m in DIMS]
        return float(np.dot(weights, each))

    got = jax.grad(loss, argnums=which)(*map(jnp.float32, values), jnp.float32(weights), smoothing)
    np.testing.assert_allclose(got, differences(exact, values, which), rtol=1e-4, atol=1e-5)


def differences(function: Callable[..., float], values: list[np.ndarray], which: int) -> np.ndarray:
    step, gradient = 1e-5, np.zeros_like(values[which])
    for index in np.ndindex(*gradient.shape):
        moved = [v.copy() for v in values]
        moved[which][index] += step
        above = function(*moved)
        moved[which][index] -= 2 * step
        gradient[index] = (above - function(*moved)) / (2 * step)
    return gradient


def test_the_block_cumulative_form_has_the_gradients_of_one_product_a_prefix():
    z, kernel, bias = embedding(5)
    weights = jnp.array([1.0, 0.5, 2.0, 1.5])

    def naive(z, kernel, bias):
        return sum(
            w * jnp.mean(cross_entropy(z[:, :m] @ kernel[:m] + bias, LABELS))
            for m, w in zip(DIMS, weights, strict=True)
        )

    wanted = jax.jit(jax.grad(naive, argnums=(0, 1, 2)))(z, kernel, bias)
    for got, exact in zip(compiled_gradient(z, kernel, bias, weights), wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-6)


def test_the_number_of_weights_must_be_the_number_of_granularities():
    logits = [jnp.zeros((BATCH, CLASSES))] * 3
    for weights in ([1.0, 1.0], [1.0] * 4, 1.0):
        with pytest.raises(ValueError, match="3 granularities of logits need as many weights"):
            nested_cross_entropy(logits, LABELS, weights)


def test_stacked_logits_are_taken_as_well_as_a_tuple():
    logits = jnp.float32(np.random.default_rng(0).normal(size=(3, BATCH, CLASSES)))
    stacked = nested_cross_entropy(logits, LABELS, [1.0, 2.0, 3.0])
    apart = nested_cross_entropy(tuple(logits), LABELS, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(stacked[0], apart[0])
    np.testing.assert_array_equal(stacked[1], apart[1])


def test_a_population_of_weight_rows_is_one_vmap_of_the_gradient():
    z, kernel, bias = embedding(6)
    rows = jnp.concatenate([jnp.eye(len(DIMS)), jnp.ones((1, len(DIMS)))])
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=1), in_axes=(None, None, None, 0)))(z, kernel, bias, rows)
    for row, got in zip(rows, together, strict=True):
        np.testing.assert_allclose(got, compiled_gradient(z, kernel, bias, row)[1], rtol=1e-5, atol=1e-6)
    # Gradients add like losses: the fixed-size arms sum to the nested one.
    np.testing.assert_allclose(together[:-1].sum(0), together[-1], rtol=1e-4, atol=1e-6)


@given(st.integers(1, 9), st.data())
def test_sampled_granularities_are_as_many_as_asked_and_keep_the_expected_weights(granularities, data):
    kept = data.draw(st.integers(1, granularities))
    keys = jax.random.split(jax.random.key(data.draw(st.integers(0, 9))), 2000)
    factors = np.asarray(jax.vmap(lambda key: sample_granularities(key, granularities, kept))(keys))
    np.testing.assert_array_equal((factors > 0).sum(1), kept)
    np.testing.assert_allclose(factors[factors > 0], granularities / kept, rtol=1e-6)
    # Six standard errors of the mean of 2,000 draws.
    assert np.abs(factors.mean(0) - 1).max() <= 6 * np.sqrt((granularities / kept - 1) / 2000) + 1e-6


def test_uncertainty_weighted_loss_is_the_formula():
    losses, s, c = np.array([0.5, 2.0, 1.0]), np.array([-1.0, 0.0, 0.7]), np.array([1.0, 0.0, 2.0])
    wanted = sum(w * (np.exp(-v) * loss + v / 2) for loss, v, w in zip(losses, s, c, strict=True))
    got = uncertainty_weighted(jnp.float32(losses), jnp.float32(s), jnp.float32(c))
    assert float(got) == pytest.approx(wanted, rel=1e-6)


def test_distilled_logits_are_the_divergence_from_the_full_width() -> None:
    """Against a loop in float64; the full width teaches and is not taught."""
    rng = np.random.default_rng(5)
    logits = [rng.normal(size=(4, 6)).astype(np.float32) * 3 for _ in range(3)]
    weights = np.array([0.5, 2.0, 1.0], np.float32)
    expected = []
    for student in logits[:-1]:
        each = []
        for s, t in zip(student.astype(np.float64), logits[-1].astype(np.float64), strict=True):
            p, q = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
            each.append(np.sum(p * np.log(p / q)))
        expected.append(np.mean(each))
    loss, losses = nested_logit_distillation(logits, weights)
    np.testing.assert_allclose(losses, [*expected, 0], rtol=1e-5)
    np.testing.assert_allclose(loss, weights @ [*expected, 0], rtol=1e-5)
    gradient = jax.grad(lambda *x: nested_logit_distillation(x, weights)[0], argnums=(0, 1, 2))(
        *map(jnp.asarray, logits)
    )
    assert not np.any(gradient[2])
    assert all(np.any(g) for g in gradient[:2])
