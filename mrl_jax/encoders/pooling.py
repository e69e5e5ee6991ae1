"""From the vectors of tokens to the vector of their text, by the name of sentence-transformers.

    mean           the mean of the tokens
    cls            the first token
    lasttoken      the last token
    max            the largest value of each coordinate
    weightedmean   the mean with the weights 1, 2, …, n: later tokens count more (Muennighoff, 2022)

A text without any token is zero. `POOLINGS` maps each to the key by which older folders name it.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Pooling = Literal["mean", "cls", "max", "lasttoken", "weightedmean"]
POOLINGS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}


def pool(x: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    """The vector [B, hidden] of each text from x [B, L, hidden] at the tokens where `mask` is True.

    Padding may stand on either side, but for `cls`, which reads the first column."""
    if pooling == "cls":
        # The first token of a text without any is padding, and its output means nothing.
        return jnp.where(mask[:, :1], x[:, 0], 0.0)
    if pooling == "mean":
        return masked_mean(x, mask)
    if pooling == "max":
        return finite(jnp.where(mask[..., None], x, -jnp.inf).max(axis=1))
    count = jnp.cumsum(mask, axis=1)
    weights = mask * (count if pooling == "weightedmean" else count == count[:, -1:])
    weights = weights.astype(x.dtype)
    total = jnp.einsum("bt,bth->bh", weights, jnp.where(mask[..., None], x, 0))
    return total / jnp.maximum(weights.sum(axis=1), 1.0)[:, None]


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x [B, L, hidden] over the tokens where `mask` is True; zero where there is none."""
    tokens = jnp.maximum(mask.sum(axis=1), 1).astype(x.dtype)
    return jnp.where(mask[..., None], x, 0).sum(axis=1) / tokens[:, None]


def finite(x: jax.Array) -> jax.Array:
    """The largest values, zero where there was no value."""
    return jnp.where(jnp.isneginf(x), 0.0, x)


def pool_packed(
    x_RxLxH: jax.Array, segment_RxL: jax.Array, position_RxL: jax.Array, slot_S: jax.Array, pooling: Pooling
) -> jax.Array:
    """The vector of each packed text [S, hidden]; zero for a text without any token.

    One matmul per row with an indicator of which token is of which text, R·L·(L + 1)·hidden operations: under 1 % of
    the encoder's work, and unlike a scatter it sums in a fixed order on every device. A maximum has no order.
    """
    rows, length, hidden = x_RxLxH.shape
    if pooling == "max":
        place = jnp.arange(rows)[:, None] * (length + 1) + jnp.maximum(segment_RxL - 1, 0)
        seen = jnp.where(segment_RxL[..., None] > 0, x_RxLxH, -jnp.inf).reshape(-1, hidden)
        largest = jax.ops.segment_max(seen, place.reshape(-1), rows * (length + 1))
        return finite(largest)[slot_S]
    texts = jnp.arange(1, length + 2)[None, :, None]  # the last one stands for empty texts
    of_text = segment_RxL[:, None] == texts
    if pooling == "cls":
        of_text &= position_RxL[:, None] == 0
    if pooling == "lasttoken":
        following = jnp.pad(segment_RxL[:, 1:], ((0, 0), (0, 1)))
        of_text &= (segment_RxL != following)[:, None]
    indicator = of_text.astype(x_RxLxH.dtype)
    if pooling == "weightedmean":
        indicator *= (position_RxL + 1)[:, None]
    means = jnp.einsum("rst,rth->rsh", indicator, x_RxLxH) / jnp.maximum(indicator.sum(axis=2), 1.0)[..., None]
    return means.reshape(rows * (length + 1), hidden)[slot_S]
