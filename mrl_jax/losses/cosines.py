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

MASKED = -1e30  # logit of a masked pair; finite, so that a row of nothing but masked logits has a finite sum


def nested_cosines(a_BxD: jax.Array, b_BxD: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Cosine of each pair at each prefix, in O(B·D).

    Args:
        a_BxD, b_BxD: [B, D], the two embeddings of each pair.
        dims: the K nesting dims, ascending, the last D.

    Returns:
        float32 [K, B]; 0, without gradient, for a zero prefix.

    Raises:
        ValueError: on shapes that do not match or invalid dims.
    """
    a_BxD, b_BxD, dims, _ = check_pairs(a_BxD, b_BxD, dims, [0.0] * len(dims))
    return prefix_cosines(a_BxD, b_BxD, dims)


def prefix_cosines(a_BxD: jax.Array, b_BxD: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """As `nested_cosines`, [K, B], for embeddings that went through `check_pairs`."""
    a_blocks, b_blocks = split_blocks(a_BxD, dims, axis=1), split_blocks(b_BxD, dims, axis=1)
    block_dots = jnp.stack([jnp.sum(a * b, axis=1) for a, b in zip(a_blocks, b_blocks, strict=True)])
    return jnp.cumsum(block_dots, axis=0) * inverse_prefix_norms(a_BxD, dims) * inverse_prefix_norms(b_BxD, dims)


def cosine_matrices(queries: jax.Array, documents: jax.Array, dims: tuple[int, ...]) -> list[jax.Array]:
    """Cosines of all queries [B, D] and documents [N, D] at each prefix: K arrays float32 [B, N]."""
    dots = nested_logits(queries, documents.T, dims)
    q_norms, d_norms = inverse_prefix_norms(queries, dims), inverse_prefix_norms(documents, dims)
    return [dot * q[:, None] * d for dot, q, d in zip(dots, q_norms, d_norms, strict=True)]


def split_blocks(array: jax.Array, dims: tuple[int, ...], axis: int = 0) -> list[jax.Array]:
    """Split `axis`, the coordinates, into the K blocks that successive prefixes add."""
    return list(jnp.split(array, dims, axis=axis)[: len(dims)])


def check_pairs(
    first: jax.Array, second: jax.Array, dims: Sequence[int], weights: jax.Array | Sequence[float], paired: bool = True
) -> tuple[jax.Array, jax.Array, tuple[int, ...], jax.Array]:
    """Check the arguments of a pair loss and convert them to the types that it computes with.

    Narrower embeddings are widened here, once, so that their gradients are summed in float32 and rounded once. They are
    scaled because cosines do not depend on an embedding's length while the squares they are computed from may overflow.

    Args:
        first, second: embeddings [B, D] and [N, D].
        dims: nesting dims, ascending, the last D.
        weights: [K].
        paired: whether N must equal B.

    Returns:
        Both embeddings in float32, the dims as a tuple of ints, and the weights, float32 [K].

    Raises:
        ValueError: on shapes that do not match or invalid dims.
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
    """Raise `ValueError` unless a number is positive; a `jax.Array`, which may be traced, is not checked."""
    if not isinstance(temperature, jax.Array) and not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
