"""The perceptron against a float64 re-implementation, and the encoder contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mrl_jax.encoders.mlp import MLP, MLPConfig
from mrl_jax.system.errors import UserError


def build(config=None, inputs=None, width=6, seed=0):
    inputs = inputs or {"features": (10,)}
    return MLP(config or MLPConfig(hidden=(16, 12)), inputs=inputs, vocabulary=0, width=width, rngs=nnx.Rngs(seed))


def features(rows=5, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 10)).astype(np.float32)


def oracle(module, x):
    """The same network in NumPy float64."""
    x = np.asarray(x, np.float64)
    for layer in module.hidden:
        x = np.maximum(x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64), 0)
    return x @ np.asarray(module.last.kernel[...], np.float64) + np.asarray(module.last.bias[...], np.float64)


@pytest.mark.parametrize("hidden", [(), (16,), (16, 12)])
def test_equals_a_float64_oracle(hidden):
    module = build(MLPConfig(hidden=hidden, dropout=0.5))
    z = module({"features": jnp.array(features())})
    assert z.shape == (5, 6)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, oracle(module, features()), rtol=1e-5, atol=1e-5)


def test_images_are_flattened_and_scaled_to_the_unit_interval():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2)).astype(np.uint8)
    module = build(inputs={"image": (4, 5, 2)})
    expected = oracle(module, images.reshape(3, 40) / 255)
    np.testing.assert_allclose(module({"image": jnp.array(images)}), expected, rtol=1e-5, atol=1e-5)


def test_an_empty_hidden_is_one_linear_map():
    module = build(MLPConfig(hidden=()))
    graph, params = nnx.split(module)
    params = nnx.to_pure_dict(params)
    assert jax.tree.map(jnp.shape, params) == {"last": {"kernel": (10, 6), "bias": (6,)}}
    module = nnx.merge(graph, params)
    x, y = jnp.array(features()), jnp.array(features(seed=1))
    zero = module({"features": jnp.zeros((5, 10))})
    both = module({"features": x + y}) + zero
    np.testing.assert_allclose(both, module({"features": x}) + module({"features": y}), atol=1e-5)


def test_bfloat16_rounds_the_operands_and_nothing_else():
    exact, rounded = build(MLPConfig(hidden=())), build(MLPConfig(hidden=(), dtype="bfloat16"))
    x = jnp.array(features())
    assert rounded.last.kernel[...].dtype == jnp.float32
    z = rounded({"features": x})
    by_hand = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, exact.last.kernel[...])]
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, by_hand[0] @ by_hand[1], rtol=1e-5, atol=1e-5)  # the bias starts at zero
    assert not np.allclose(z, exact({"features": x}), rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_follow_the_float32_ones():
    def gradient(dtype):
        graph, params = nnx.split(build(MLPConfig(hidden=(16,), dtype=dtype)))
        params = nnx.to_pure_dict(params)
        loss = lambda p: (nnx.merge(graph, p)({"features": jnp.array(features())}) ** 2).sum()  # noqa: E731
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(params))])

    a, b = gradient("float32"), gradient("bfloat16")
    assert a.dtype == b.dtype == np.float32
    assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(a)


def test_dropout_drops_its_share_in_training_only():
    module = build(MLPConfig(hidden=(4000,), dropout=0.25), width=1)
    layer = module.hidden[0]
    layer.kernel[...], layer.bias[...] = jnp.zeros_like(layer.kernel[...]), jnp.ones_like(layer.bias[...])
    module.last.kernel[...] = jnp.full_like(module.last.kernel[...], 1 / 4000)
    x = {"features": jnp.array(features())}
    np.testing.assert_allclose(module(x), 1, rtol=1e-5)
    trained = np.asarray(module(x, rngs=nnx.Rngs(dropout=0)))  # the mean of inverted dropout of ones
    assert len(np.unique(trained)) > 1
    assert abs(trained.mean() - 1) < 0.02
    np.testing.assert_array_equal(trained, module(x, rngs=nnx.Rngs(dropout=0)))
    kept = trained[:, 0] * 0.75
    assert np.all(np.abs(kept - 0.75) < 0.04)


def test_a_row_does_not_depend_on_its_batch():
    module, x = build(), features(9)
    whole = module({"features": jnp.array(x)})
    for row in range(9):
        np.testing.assert_allclose(
            module({"features": jnp.array(x[row : row + 1])})[0], whole[row], rtol=1e-5, atol=1e-6
        )


def test_vmap_over_stacked_parameters_equals_the_loop():
    graph = nnx.split(build())[0]
    states = [nnx.to_pure_dict(nnx.split(build(seed=s))[1]) for s in range(3)]
    x = {"features": jnp.array(features())}
    embed = lambda params: nnx.merge(graph, params)(x)  # noqa: E731
    together = jax.vmap(embed)(jax.tree.map(lambda *p: jnp.stack(p), *states))
    np.testing.assert_allclose(together, jnp.stack([embed(s) for s in states]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "inputs", "says"),
    [
        (MLPConfig(hidden=(8, 0)), {"features": (3,)}, "encoder.hidden"),
        (MLPConfig(dropout=1.0), {"features": (3,)}, "encoder.dropout"),
        (MLPConfig(dtype="bfloat"), {"features": (3,)}, "did you mean bfloat16"),
        (MLPConfig(), {"ids": (3,)}, "needs features or images"),
    ],
)
def test_wrong_values_die_in_one_sentence(config, inputs, says):
    with pytest.raises(UserError, match=says):
        build(config, inputs)
