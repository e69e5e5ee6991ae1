"""The arithmetic of nested embeddings: which prefixes there are, and how to score all of them in one pass.

An embedding `z` of width `D` is read at the *nesting dims* `m_1 < … < m_K = D`. Everything that is linear in `z`
can be computed for all prefixes at the price of one, because a longer prefix only adds a block of coordinates:

    logits_k = z[:m_k] @ W[:m_k] = logits_{k-1} + z[m_{k-1}:m_k] @ W[m_{k-1}:m_k].

Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, arXiv:2205.13147.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST = 2.0**-100  # of the largest magnitude of a row that is not taken for zero
NEGLIGIBLE = 1e-12  # length of a prefix, as a share of the whole, that is taken for zero: far below float32 rounding


def check_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """Return `dims` as a tuple, or raise `ValueError` unless they ascend, are unique and end at `width`."""
    dims = tuple(int(m) for m in dims)
    if not dims:
        raise ValueError("nesting dims are empty; give at least one, the last equal to the embedding width")
    if dims[0] < 1:
        raise ValueError(f"nesting dims {list(dims)} hold {dims[0]}; every dim is at least 1")
    for smaller, larger in pairwise(dims):
        if smaller == larger:
            raise ValueError(f"nesting dims {list(dims)} repeat {larger}; every dim may stand once")
        if smaller > larger:
            raise ValueError(f"nesting dims {list(dims)} are not ascending: {larger} follows {smaller}")
    if dims[-1] > width:
        raise ValueError(f"nesting dims {list(dims)} go beyond the embedding width {width}")
    if dims[-1] < width:
        raise ValueError(f"nesting dims {list(dims)} must end at the embedding width {width}")
    return dims


def log_spaced(width: int, smallest: int = 8) -> tuple[int, ...]:
    """Halve `width` until `smallest` would be passed: (8, 16, …, width), the schedule of the MRL paper."""
    dims = [width]
    while dims[-1] % 2 == 0 and dims[-1] // 2 >= smallest:
        dims.append(dims[-1] // 2)
    return tuple(reversed(dims))


def uniform(width: int, count: int = 8) -> tuple[int, ...]:
    """`count` equal steps up to `width` (fewer when `width < count`)."""
    return tuple(sorted({max(1, round(width * k / count)) for k in range(1, count + 1)}))


def interpolated(dims: Sequence[int]) -> tuple[int, ...]:
    """The dims halfway between neighbouring nesting dims: never trained at, they show whether the nesting is smooth."""
    return tuple((a + b) // 2 for a, b in pairwise(dims) if b - a > 1)


def blocks(dims: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The half-open coordinate ranges that each granularity adds: (0, m_1), (m_1, m_2), …"""
    return tuple(zip((0, *dims[:-1]), dims, strict=True))


def nested_logits(
    z_BxD: jax.Array, kernel: jax.Array | Sequence[jax.Array], dims: Sequence[int], bias: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    """Logits of every prefix under one tied head (MRL-E), block by block.

    One `B × D × C` product in all, whatever the number of granularities; one more granularity costs one more addition
    over `B × C`. `kernel` is [D, C] or the K arrays [m_k − m_{k−1}, C] of its rows, which spares copying it and its
    gradient (a fifth of the overhead at D = 2048, C = 1000). `bias` [C] is shared by all prefixes, as in the paper.
    Operands narrower than float32 are accumulated in float32.

    Returns a tuple of K float32 arrays [B, C].
    """
    # `split` rather than a slice a block: its gradient is one concatenation, not a sum of K arrays padded to [B, D].
    zs = jnp.split(z_BxD, dims, axis=1)[: len(dims)]
    kernels = kernel if isinstance(kernel, list | tuple) else jnp.split(jnp.asarray(kernel), dims)[: len(dims)]
    logits: list[jax.Array] = []
    for z, rows in zip(zs, kernels, strict=True):
        part = jnp.matmul(z, rows, preferred_element_type=jnp.float32)
        before = logits[-1] if logits else bias
        logits.append(part if before is None else before + part)
    return tuple(logits)


def truncate(z: jax.Array, dim: int) -> jax.Array:
    """The prefix of `dim` coordinates with rows of unit length: truncate first, then renormalise.

    `z` is [..., D]; a zero prefix stays zero. Raises `ValueError` when `dim` is not in 1…D.
    """
    if not 1 <= dim <= z.shape[-1]:
        raise ValueError(f"dim={dim} is outside 1…{z.shape[-1]}, the width of these embeddings")
    return normalize(z[..., :dim])


def normalize(z: jax.Array) -> jax.Array:
    """Rows of unit Euclidean length, in float32, whatever their own; a zero row stays zero (see `scaled`)."""
    length_free = scaled(z)
    squares = jnp.sum(length_free * length_free, axis=-1, keepdims=True)
    # The inner `where` keeps the gradient at a zero row finite.
    return jnp.where(squares > 0, length_free * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def scaled(z: jax.Array | np.ndarray) -> jax.Array:
    """Rows in float32, each times the power of two that brings its largest magnitude to 1…2, which rounds nothing.

    For what does not depend on the length of a row, such as cosines: squares neither overflow nor vanish, and the
    gradient is the right one although the factor is taken as constant. A row without any magnitude of `SMALLEST` or
    more is zero, since gradients, which are as large as rows are short, would not be finite.
    """
    z = jnp.asarray(z, jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    exponent = jax.lax.bitcast_convert_type(largest, jnp.int32) & 0x7F800000
    power = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    return z * jnp.where(largest >= SMALLEST, 1.0 / jnp.minimum(power, 2.0**126), 0.0)


def inverse_prefix_norms(z_BxD: jax.Array, dims: Sequence[int]) -> jax.Array:
    """1 / ‖z[:m_k]‖ of every prefix, float32 [K, B] in O(B·D), of rows that are neither huge nor tiny (see `scaled`).

    0 for a prefix that is zero, or `NEGLIGIBLE` beside its row; its gradient is 0 as well.
    """
    parts = jnp.split(z_BxD.astype(jnp.float32), dims, axis=1)[: len(dims)]
    squares = jnp.cumsum(jnp.stack([jnp.sum(part * part, axis=1) for part in parts]), axis=0)
    there = squares > NEGLIGIBLE**2 * squares[-1]
    # The inner `where` keeps the gradient at a zero prefix finite.
    return jnp.where(there, jax.lax.rsqrt(jnp.where(there, squares, 1.0)), 0.0)
