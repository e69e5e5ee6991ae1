"""Packing: every token once, texts whole, and embeddings that do not depend on who shares a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.encoders.transformer import Transformer
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.text import packing

LENGTHS = st.lists(st.integers(0, 16), min_size=1, max_size=40).map(np.array)


@given(LENGTHS, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_a_row_once_and_texts_stay_whole(lengths, seed):
    ids = np.random.default_rng(seed).integers(1, 1000, (len(lengths), 16)).astype(np.int32)
    packed = packing.pack(ids, lengths, 16)
    rows, width = packed["ids"].shape
    assert width == 16
    assert np.count_nonzero(packed["segment"]) == lengths.sum()
    for text, slot in enumerate(packed["slot"]):
        row, segment = slot // 17, slot % 17 + 1
        here = packed["segment"][row] == segment
        np.testing.assert_array_equal(packed["ids"][row][here], ids[text, : lengths[text]])
        np.testing.assert_array_equal(packed["position"][row][here], np.arange(lengths[text]))
        places = np.flatnonzero(here)
        assert len(places) == 0 or places[-1] - places[0] + 1 == lengths[text]
    needed = -(-lengths.sum() // 16)
    assert rows <= packing.round_rows(int(np.ceil(max(needed, 1) * 11 / 9 + 1)))  # what best fit promises, rounded


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="17 tokens does not fit into a row of 16"):
        packing.pack(np.zeros((1, 17), np.int32), np.array([17]), 16)


@given(st.integers(1, 5000), st.integers(1, 8))
def test_there_are_few_numbers_of_rows_and_little_waste(rows, multiple):
    found = packing.round_rows(rows, multiple)
    assert rows <= found < 1.25 * rows + multiple
    assert found % multiple == 0
    if multiple == 1:
        assert found >> max(0, found.bit_length() - 4) << max(0, found.bit_length() - 4) == found


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_texts_have_the_embeddings_and_gradients_of_padded_ones(pooling, dtype):
    config = TransformerConfig(
        layers=2, hidden=32, heads=4, intermediate=64, max_length=16, pooling=pooling, dtype=dtype, vocabulary=50
    )
    inputs = {"ids": (16,), "mask": (16,)}
    model = Transformer(config, inputs=inputs, vocabulary=50, width=32, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    lengths = np.array([16, 0, 5, 1, 9, 3, 7, 12, 2])
    ids = rng.integers(1, 50, (len(lengths), 16)).astype(np.int32)
    padded = {"ids": ids, "mask": (np.arange(16) < lengths[:, None]).astype(np.int8)}
    packed = packing.pack(ids, lengths, 32)
    graph, params = nnx.split(model)
    target = jnp.asarray(rng.normal(size=(len(lengths), 32)), jnp.float32)

    def value(params, inputs):
        z = nnx.merge(graph, params)(inputs)
        return jnp.sum(z * target), z

    slopes = jax.jit(jax.grad(value, has_aux=True))
    grads, found = slopes(params, packed)
    wanted, expected = slopes(params, padded)
    # Sums in another order, and in bfloat16 rounded at other places.
    tolerance = 2e-5 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_array_equal(found[1], 0)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance * scale)
