"""The bag of words against its formula, and what padding and dropout may and may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mrl_jax.encoders.bag import Bag, BagConfig, keep
from mrl_jax.system.errors import UserError

SHAPES = {"ids": (6,), "weights": (6,)}
VARIANTS = [
    BagConfig(),
    BagConfig(hidden=3),
    BagConfig(pooling="mean_max"),
    BagConfig(hidden=3, pooling="mean_max", mlp=7),
    BagConfig(mlp=4),
]


def make(config: BagConfig, width: int = 5) -> Bag:
    return Bag(config, inputs=SHAPES, vocabulary=11, width=width, rngs=nnx.Rngs(0))


def batch(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    lengths = np.array([6, 3, 1, 0])[:, None]
    present = np.arange(6) < lengths
    ids = np.where(present, rng.integers(1, 11, (4, 6)), 0).astype(np.int32)
    return {
        "ids": jnp.asarray(ids),
        "weights": jnp.asarray(np.where(present, rng.uniform(0.1, 1, (4, 6)), 0.0), jnp.float32),
    }


@pytest.mark.parametrize("config", VARIANTS)
def test_it_computes_its_formula(config: BagConfig) -> None:
    bag, inputs = make(config), batch()
    table = np.asarray(bag.embedding[...], np.float64)
    for row, z in enumerate(np.asarray(bag(inputs))):
        words = [
            (i, w) for i, w in zip(inputs["ids"][row].tolist(), inputs["weights"][row].tolist(), strict=True) if w > 0
        ]
        length = np.sqrt(sum(w * w for _, w in words)) or 1.0
        scaled = [w / length * table[i] for i, w in words] or [np.zeros(table.shape[1])]
        h = np.sum(scaled, axis=0)
        if config.pooling == "mean_max":
            h = np.concatenate([h, np.max(scaled, axis=0)])
        expected = h if bag.projection is None else h @ np.asarray(bag.projection.kernel[...])
        if bag.up is not None and bag.down is not None:
            x = h @ np.asarray(bag.up.kernel[...], np.float64) + np.asarray(bag.up.bias[...])
            gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            expected = expected + gelu @ np.asarray(bag.down.kernel[...])
        np.testing.assert_allclose(z, expected, atol=1e-6)


@pytest.mark.parametrize("config", VARIANTS)
def test_padding_and_company_never_change_an_embedding(config: BagConfig) -> None:
    bag, inputs = make(config), batch()
    wider = {name: jnp.pad(array, ((0, 0), (0, 9))) for name, array in inputs.items()}
    np.testing.assert_allclose(bag(inputs), bag(wider), atol=1e-6)
    alone = np.concatenate([bag({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(4)])
    np.testing.assert_allclose(bag(inputs), alone, atol=1e-6)


def test_gradients_are_finite_for_a_text_without_words() -> None:
    for config in VARIANTS:
        graph, params = nnx.split(make(config))
        grads = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(batch()) ** 2))(params)  # noqa: B023
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_word_dropout_is_for_training_and_independent_of_padding() -> None:
    bag, inputs = make(BagConfig(word_dropout=0.5)), batch()
    wider = {name: jnp.pad(array, ((0, 0), (0, 9))) for name, array in inputs.items()}
    trained = bag(inputs, rngs=nnx.Rngs(dropout=1))
    assert np.abs(trained - bag(inputs)).max() > 1e-3
    np.testing.assert_allclose(trained, bag(wider, rngs=nnx.Rngs(dropout=1)), atol=1e-6)
    np.testing.assert_array_equal(bag(inputs), bag(inputs))


def test_dropout_keeps_the_rate_and_the_expectation_and_prefixes_agree() -> None:
    mask = np.asarray(keep((4000, 8), 0.3, nnx.Rngs(dropout=0)))
    np.testing.assert_allclose(mask.mean(axis=0), 0.7, atol=0.04)
    np.testing.assert_array_equal(mask[:, :3], keep((4000, 3), 0.3, nnx.Rngs(dropout=0)))
    bag, inputs = make(BagConfig(word_dropout=0.0, dropout=0.5)), batch()
    draws = np.mean([bag(inputs, rngs=nnx.Rngs(dropout=seed)) for seed in range(400)], axis=0)
    np.testing.assert_allclose(draws, bag(inputs), atol=0.06)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"word_dropout": 1.0}, "word_dropout=1.0"), ({"dropout": -0.1}, "dropout=-0.1"), ({"mlp": 0}, "mlp=0")],
)
def test_impossible_values_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(BagConfig(**change))
