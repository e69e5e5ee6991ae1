"""Layers against NumPy and statistics: bfloat16 matmuls, and dropout by a hash."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from mrl_jax.encoders import layers


def test_bf16_matmul_and_its_gradients_are_close_to_float32() -> None:
    random = np.random.default_rng(0)
    x, w, g = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((4, 9, 32), (32, 48), (4, 9, 48)))
    exact, exact_vjp = jax.vjp(jnp.matmul, x, w)
    rounded, rounded_vjp = jax.vjp(layers.bf16_matmul, x, w)
    for a, b in zip((exact, *exact_vjp(g)), (rounded, *rounded_vjp(g)), strict=True):
        assert b.dtype == jnp.float32
        assert a.shape == b.shape
        error = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))
        assert 1e-5 < error < 2**-7  # two operands of 8 bits: rounded for certain, but no further off


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.85])
def test_dropout_rate_and_scale(rate: float) -> None:
    shape = (64, 5, 40, 40)
    dropped = layers.drop(jnp.ones(shape), rate, nnx.Rngs(dropout=3))
    kept = np.asarray(dropped > 0)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / (1 - rate)], rtol=1e-6)
    sigma = np.sqrt(rate * (1 - rate))
    for axis in range(4):  # the rate holds in every slice along every axis, not only overall
        others = tuple(a for a in range(4) if a != axis)
        slices = kept.mean(others)
        assert np.abs(slices - (1 - rate)).max() < 4.5 * sigma / np.sqrt(kept.size / shape[axis])
    for axis in range(4):  # neighbours are dropped independently of one another
        a, b = (np.take(kept, range(s, s + shape[axis] - 1), axis).ravel() for s in (0, 1))
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(a.size)


def test_dropout_bits_are_uniform_and_differ_between_keys() -> None:
    bits = [np.asarray(layers.hash_bits(jax.random.key(seed), (2**18,))) for seed in range(20)]
    for shift in (0, 8, 16, 24):
        counts = np.bincount((np.concatenate(bits) >> shift) & 255, minlength=256)
        assert chisquare(counts).pvalue > 1e-4
    flips = np.mean([np.unpackbits((a ^ b).view(np.uint8)).mean() for a, b in itertools.pairwise(bits)])
    assert abs(flips - 0.5) < 1e-3
    masks = np.stack([b < 2**32 * 0.1 for b in bits]).astype(float)
    correlations = np.corrcoef(masks)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(2**18)
    assert 0.7 < correlations.std() * np.sqrt(2**18) < 1.3  # of the size that chance alone gives
