"""Cosines of two embeddings at every prefix, in one pass over the coordinates.

Gram matrices are sums over blocks of coordinates, S_k = S_{k−1} + Q[:, block k] @ D[:, block k]ᵀ, and
cos_k = S_k / (‖q‖_k ‖d‖_k): one `B × N × D` matmul in total, whatever the number of granularities.

A prefix that is zero, or negligibly short compared with its embedding (`nesting.NEGLIGIBLE_NORM_RATIO`), has cosine 0
with everything and no gradient. Otherwise embeddings may have any length that float32 can represent.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrl_jax.nesting import check_dims, inverse_prefix_norms, nested_logits, scale_by_power_of_two

MASKED = -1e30  # a logit that counts for nothing; finite, so that a row of nothing else stays so


def nested_cosines(a_BxD: jax.Array, b_BxD: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Cosine of each pair at each prefix, float32 [K, B] in O(B·D); 0, without gradient, for a zero prefix.

    Raises `ValueError` unless both are [B, D] and `dims` suit D.
    """
    a_BxD, b_BxD, dims, _ = check_pairs(a_BxD, b_BxD, dims, [0.0] * len(dims))
    return prefix_cosines(a_BxD, b_BxD, dims)


def prefix_cosines(a_BxD: jax.Array, b_BxD: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    firsts, seconds = split_blocks(a_BxD, dims, axis=1), split_blocks(b_BxD, dims, axis=1)
    parts = jnp.stack([jnp.sum(a * b, axis=1) for a, b in zip(firsts, seconds, strict=True)])
    return jnp.cumsum(parts, axis=0) * inverse_prefix_norms(a_BxD, dims) * inverse_prefix_norms(b_BxD, dims)


def cosine_matrices(queries: jax.Array, documents: jax.Array, dims: tuple[int, ...]) -> list[jax.Array]:
    """Cosines of all queries and documents at each prefix, K times float32 [B, N]."""
    products = nested_logits(queries, documents.T, dims)
    of_queries, of_documents = inverse_prefix_norms(queries, dims), inverse_prefix_norms(documents, dims)
    return [s * q[:, None] * d for s, q, d in zip(products, of_queries, of_documents, strict=True)]


def split_blocks(array: jax.Array, dims: tuple[int, ...], axis: int = 0) -> list[jax.Array]:
    """The K blocks of coordinates along `axis` that the prefixes add one after another."""
    return list(jnp.split(array, dims, axis=axis)[: len(dims)])


def check_pairs(
    first: jax.Array, second: jax.Array, dims: Sequence[int], weights: jax.Array | Sequence[float], paired: bool = True
) -> tuple[jax.Array, jax.Array, tuple[int, ...], jax.Array]:
    """All in the form that the losses use, float32 and a tuple of ints, or a `ValueError`.

    Narrower embeddings are widened here, once, so that what flows back is summed in float32 and rounded once. They are
    scaled, as cosines do not depend on their lengths but the squares on the way to them may overflow.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"embeddings must be two matrices of one width; got shapes {first.shape} and {second.shape}")
    if paired and first.shape != second.shape:
        raise ValueError(f"pairs need as many first as second embeddings; got {len(first)} and {len(second)}")
    dims = check_dims(dims, first.shape[1])
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(dims),):
        raise ValueError(f"{len(dims)} nesting dims need as many weights; got shape {weights.shape}")
    return scale_by_power_of_two(first), scale_by_power_of_two(second), dims, weights


def check_temperature(temperature: jax.Array | float) -> None:
    if not isinstance(temperature, jax.Array) and not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
