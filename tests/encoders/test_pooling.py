"""Poolings against loops in NumPy: padded on either side, packed, and texts without any token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.encoders.pooling import POOLINGS, pool, pool_packed
from mrl_jax.text.packing import pack

LENGTH, HIDDEN, TEXTS = 6, 3, 5  # of every example, so that each operation is compiled once


def pool_one(x: np.ndarray, pooling: str) -> np.ndarray:
    """The vector of one text from its tokens [n, hidden], in float64."""
    x = x.astype(np.float64)
    if not len(x):
        return np.zeros(HIDDEN)
    weights = np.arange(1, len(x) + 1)[:, None]
    return {
        "mean": x.mean(0), "cls": x[0], "lasttoken": x[-1], "max": x.max(0),
        "weightedmean": (x * weights).sum(0) / weights.sum(),
    }[pooling]  # fmt: skip


@settings(max_examples=6)
@given(
    st.lists(st.integers(0, LENGTH), min_size=TEXTS, max_size=TEXTS), st.integers(0, 99), st.sampled_from([*POOLINGS])
)
def test_a_pooling_is_that_of_the_tokens_of_each_text(lengths: list[int], seed: int, pooling: str) -> None:
    x = np.random.default_rng(seed).normal(size=(TEXTS, LENGTH, HIDDEN)).astype(np.float32) - 3  # also below zero
    n = np.array(lengths)
    expected = [pool_one(x[i, :length], pooling) for i, length in enumerate(lengths)]
    mask = np.arange(LENGTH) < n[:, None]
    np.testing.assert_allclose(pool(x, mask, pooling), expected, atol=1e-6)
    if pooling != "cls":
        np.testing.assert_allclose(pool(x[:, ::-1], mask[:, ::-1], pooling),
                                   [pool_one(x[i, :length][::-1], pooling) for i, length in enumerate(lengths)],
                                   atol=1e-6)  # fmt: skip
    packed = pack(np.arange(TEXTS * LENGTH).reshape(TEXTS, LENGTH), n, 2 * LENGTH)
    tokens = np.where(packed["segment"][..., None] > 0, x.reshape(-1, HIDDEN)[packed["ids"]], 9)
    places = (
        np.resize(tokens, (4, 2 * LENGTH, HIDDEN)),
        *(np.resize(packed[name], (4, 2 * LENGTH)) for name in ("segment", "position")),
    )  # as many rows in every example: the further ones are copies, which no slot names
    np.testing.assert_allclose(pool_packed(*places, packed["slot"], pooling), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_without_tokens_are_zero(pooling: str) -> None:
    x = np.full((2, LENGTH, HIDDEN), -1.0, np.float32)
    assert not np.asarray(pool(x, np.zeros((2, LENGTH), bool), pooling)).any()
