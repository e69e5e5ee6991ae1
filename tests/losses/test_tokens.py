"""The loss of hidden tokens against its formula, in tiles and at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrl_jax.losses import heads, nested_token_prediction

DIMS, WEIGHTS = (3, 5, 8), np.array([0.5, 1.0, 2.0], np.float32)
VOCABULARY, SIZE = 150, 6  # more than a tile of 128 tokens


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    states, table, bias = (rng.normal(size=shape) for shape in ((SIZE, 8), (VOCABULARY, 8), (VOCABULARY,)))
    return states, table, bias, np.array([4, 149, 0, -1, 77, -1])


def formula(states: np.ndarray, table: np.ndarray, bias: np.ndarray, tokens: np.ndarray) -> list[float]:
    """−log softmax(h[:m] · E[:, :m]ᵀ + b)[token], the mean over hidden tokens, one by one in float64."""
    losses = []
    for m in DIMS:
        each = []
        for state, token in zip(states, tokens, strict=True):
            if token >= 0:
                logits = np.array([state[:m] @ vector[:m] for vector in table]) + bias
                each.append(np.log(np.exp(logits).sum()) - logits[token])
        losses.append(float(np.mean(each)))
    return losses


def loss(states: jax.Array, table: jax.Array, bias: jax.Array, tokens: jax.Array, streamed: bool) -> jax.Array:
    return nested_token_prediction(states, table, bias, tokens, DIMS, WEIGHTS, streamed)[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_loss_is_the_formula_and_padding_does_not_count(streamed: bool) -> None:
    given = arrays()
    total, losses_K = nested_token_prediction(*map(jnp.asarray, given), DIMS, WEIGHTS, streamed)
    np.testing.assert_allclose(losses_K, formula(*given), rtol=2e-5)
    assert float(total) == pytest.approx(float(WEIGHTS @ formula(*given)), rel=2e-5)


@pytest.mark.parametrize("streamed", [False, True])
def test_its_gradient_is_that_of_finite_differences(streamed: bool) -> None:
    states, table, bias, tokens = arrays(1)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, (states, table, bias, tokens)), streamed)
    rng, step = np.random.default_rng(2), 1e-5
    for which, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        moved = []
        for sign in (1, -1):
            parts = [states, table, bias]
            parts[which] = parts[which] + sign * step * direction
            moved.append(float(WEIGHTS @ formula(*parts, tokens)))
        assert float((np.asarray(gradient, np.float64) * direction).sum()) == pytest.approx(
            (moved[0] - moved[1]) / (2 * step), rel=2e-4, abs=1e-5
        )


def test_of_no_hidden_token_loss_and_gradient_are_zero() -> None:
    states, table, bias, _ = map(jnp.asarray, arrays())
    value, gradient = jax.value_and_grad(loss)(states, table, bias, jnp.full(SIZE, -1), False)
    assert float(value) == 0
    assert not np.asarray(gradient).any()


def test_a_fixed_size_model_of_m_dims_learns_the_first_m_coordinates_alone() -> None:
    """With one-hot weights the loss is that of width m, and no other coordinate has a gradient."""
    states, table, bias, tokens = map(jnp.asarray, arrays())

    def at(states: jax.Array, table: jax.Array) -> jax.Array:
        return nested_token_prediction(states, table, bias, tokens, DIMS, [0.0, 1.0, 0.0])[0]

    def alone(states: jax.Array, table: jax.Array) -> jax.Array:
        return nested_token_prediction(states, table, bias, tokens, (5,), [1.0])[0]

    value, of = jax.value_and_grad(at, argnums=(0, 1))(states, table)
    expected, own = jax.value_and_grad(alone, argnums=(0, 1))(states[:, :5], table[:, :5])
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for gradient, narrow in zip(of, own, strict=True):
        np.testing.assert_allclose(gradient[:, :5], narrow, rtol=1e-5, atol=1e-7)
        assert not np.asarray(gradient[:, 5:]).any()


def test_in_tiles_no_array_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward at 30,000 tokens need no array of hidden tokens × vocabulary, let alone × dims."""
    monkeypatch.setattr(heads, "DIRECT_ELEMENTS", 1 << 10)
    hidden, width, vocabulary = 64, 8, 30_000
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((hidden, width), (vocabulary, width), (vocabulary,))]
    step = jax.grad(lambda h, e, b, t: nested_token_prediction(h, e, b, t, DIMS, WEIGHTS)[0], argnums=(0, 1, 2))
    compiled = jax.jit(step).lower(*shapes, jax.ShapeDtypeStruct((hidden,), jnp.int32)).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        pytest.skip("this backend does not say what memory a program needs")
    table_bytes = 4 * vocabulary * width
    assert analysis.temp_size_in_bytes < 4 * hidden * vocabulary + 4 * table_bytes
