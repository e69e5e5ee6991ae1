"""The arithmetic of nested embeddings: which prefixes there are, and how to score all of them in one pass.

An embedding `z` of width `D` is read at the *nesting dims* `m_1 < … < m_K = D`. Everything that is linear in `z`
can be computed for all prefixes at the price of one, because a longer prefix only adds a block of coordinates:

    logits_k = z[:m_k] @ W[:m_k] = logits_{k-1} + z[m_{k-1}:m_k] @ W[m_{k-1}:m_k].

Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, arXiv:2205.13147.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIN_MAGNITUDE = 2.0**-100  # rows whose largest magnitude is smaller are treated as zero
NEGLIGIBLE_NORM_RATIO = 1e-12  # ‖prefix‖ / ‖embedding‖ below which a prefix is treated as zero: far below rounding


def check_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """Return `dims` as a tuple of ints.

    Args:
        dims: nesting dims.
        width: D, the embedding width.

    Raises:
        ValueError: `dims` are empty, below 1, repeated, not ascending, or do not end at `width`.
    """
    dims = tuple(int(m) for m in dims)
    if not dims:
        raise ValueError("nesting dims are empty; give at least one, the last equal to the embedding width")
    if dims[0] < 1:
        raise ValueError(f"nesting dims {list(dims)} hold {dims[0]}; every dim is at least 1")
    for smaller, larger in pairwise(dims):
        if smaller == larger:
            raise ValueError(f"nesting dims {list(dims)} repeat {larger}; every dim may appear only once")
        if smaller > larger:
            raise ValueError(f"nesting dims {list(dims)} are not ascending: {larger} follows {smaller}")
    if dims[-1] > width:
        raise ValueError(f"nesting dims {list(dims)} go beyond the embedding width {width}")
    if dims[-1] < width:
        raise ValueError(f"nesting dims {list(dims)} must end at the embedding width {width}")
    return dims


def log_spaced(width: int, smallest: int = 8) -> tuple[int, ...]:
    """Halve `width` down to `smallest`: (8, 16, …, width), the schedule of the MRL paper."""
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
    z_BxD: jax.Array,
    kernel: jax.Array | Sequence[jax.Array],
    dims: Sequence[int],
    bias: jax.Array | None = None,
    share: Any = 1.0,
) -> tuple[jax.Array, ...]:
    """Logits of every prefix under one tied head (MRL-E), block by block.

    All granularities together cost one `B × D × C` matmul; each granularity adds one sum over `B × C`. Operands
    narrower than float32 are accumulated in float32.

    Args:
        z_BxD: embeddings [B, D].
        kernel: [D, C], or its rows as K blocks [m_k − m_{k−1}, C], which avoids copying the kernel and its gradient (a
            fifth of the overhead at D = 2048, C = 1000).
        dims: the K nesting dims, ascending, the last D.
        bias: [C], shared by all prefixes, as in the paper; None for no bias.
        share: of the gradient of a longer prefix that reaches the next shorter one, its rows of the kernel and the
            bias: γ of `detached_prefixes`, a number or a scalar array.

    Returns:
        K arrays [B, C], float32.
    """
    # `split`, not one slice per block: its gradient is one concatenation, not a sum of K arrays padded to [B, D].
    zs = jnp.split(z_BxD, dims, axis=1)[: len(dims)]
    kernels = kernel if isinstance(kernel, list | tuple) else jnp.split(jnp.asarray(kernel), dims)[: len(dims)]
    logits: list[jax.Array] = []
    for z, rows in zip(zs, kernels, strict=True):
        block_logits = jnp.matmul(z, rows, preferred_element_type=jnp.float32)
        previous = scale_gradient(logits[-1], share) if logits else bias
        logits.append(block_logits if previous is None else previous + block_logits)
    return tuple(logits)


def detached_prefixes(z_BxD: jax.Array, dims: Sequence[int], share: Any) -> tuple[jax.Array, ...]:
    """All prefixes of an embedding, of whose losses L_k shorter prefixes are told only a share.

        ∂L / ∂z_i  =  Σ_{k ≥ i} γ^(k − i) · ∂L_k / ∂z_i        for the i-th block of coordinates, m_{i−1} … m_i

    With γ = 1 the first coordinates follow the losses of all granularities at once. With γ = 0 every block follows the
    loss of the first prefix that holds it: the first m_1 coordinates are those of a model of that width, and each
    further block learns what is left to learn beside the ones before, which do not move for it. Nested dropout has
    such an order, as units that have converged are kept (Rippel, Gelbart and Adams, 2014, arXiv:1402.0915).

    Args:
        z_BxD: embeddings [B, D].
        dims: the K nesting dims, ascending, the last D.
        share: γ in [0, 1], a number or a scalar array.

    Returns:
        K arrays [B, m_k], the prefixes as they are.
    """
    if _is_one(share):
        return tuple(z_BxD[:, :m] for m in dims)
    first, *others = jnp.split(z_BxD, dims, axis=1)[: len(dims)]
    prefixes = [first]
    for block in others:
        prefixes.append(jnp.concatenate([scale_gradient(prefixes[-1], share), block], axis=1))
    return tuple(prefixes)


def scale_gradient(x: jax.Array, factor: Any) -> jax.Array:
    """`x` as it is, and its gradient times `factor`, a number or a scalar array."""
    return x if _is_one(factor) else _scale_gradient(x, jnp.asarray(factor, x.dtype))


def _is_one(factor: Any) -> bool:
    """Whether it is the constant 1, so that it can be left out."""
    return isinstance(factor, int | float) and factor == 1


@jax.custom_vjp
def _scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    return x


_scale_gradient.defvjp(lambda x, factor: (x, factor), lambda factor, g: (factor * g, jnp.zeros_like(factor)))


def truncate(z: jax.Array, dim: int) -> jax.Array:
    """The first `dim` coordinates, rescaled to unit length: truncate first, then renormalise.

    Args:
        z: embeddings [..., D].
        dim: prefix length, 1…D.

    Returns:
        float32 [..., dim] with rows of unit length; a zero prefix stays zero.

    Raises:
        ValueError: `dim` is not in 1…D.
    """
    if not 1 <= dim <= z.shape[-1]:
        raise ValueError(f"dim={dim} is outside 1…{z.shape[-1]}, the width of these embeddings")
    return normalize(z[..., :dim])


def normalize(z: jax.Array) -> jax.Array:
    """Rescale rows to unit Euclidean length, without overflow or underflow on the way (see `scale_by_power_of_two`).

    Args:
        z: [..., D].

    Returns:
        float32 [..., D]; a zero row stays zero.
    """
    scaled = scale_by_power_of_two(z)
    squares = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    # The inner `where` keeps the gradient at a zero row finite.
    return jnp.where(squares > 0, scaled * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def scale_by_power_of_two(z: jax.Array | np.ndarray) -> jax.Array:
    """Multiply each row by the power of two that brings its largest magnitude into [1, 2), which is exact.

    Use it for functions that do not depend on the length of a row, such as cosines: squares then neither overflow nor
    underflow, and the gradient is correct although the factor is treated as a constant. Rows whose largest magnitude is
    below `MIN_MAGNITUDE` become zero: the gradient grows as the inverse of a row's length and would overflow.

    Args:
        z: [..., D].

    Returns:
        float32 [..., D].
    """
    z = jnp.asarray(z, jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    exponent = jax.lax.bitcast_convert_type(largest, jnp.int32) & 0x7F800000
    power = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    return z * jnp.where(largest >= MIN_MAGNITUDE, 1.0 / jnp.minimum(power, 2.0**126), 0.0)


def inverse_prefix_norms(z_BxD: jax.Array, dims: Sequence[int]) -> jax.Array:
    """1 / ‖z[:m_k]‖ of every prefix, in O(B·D).

    Args:
        z_BxD: embeddings [B, D], neither huge nor tiny (see `scale_by_power_of_two`).
        dims: the K nesting dims, ascending, the last D.

    Returns:
        float32 [K, B]; 0, with gradient 0, for a prefix whose length is at most `NEGLIGIBLE_NORM_RATIO` of its row's.
    """
    parts = jnp.split(z_BxD.astype(jnp.float32), dims, axis=1)[: len(dims)]
    squares = jnp.cumsum(jnp.stack([jnp.sum(part * part, axis=1) for part in parts]), axis=0)
    nonzero = squares > NEGLIGIBLE_NORM_RATIO**2 * squares[-1]
    # The inner `where` keeps the gradient at a zero prefix finite.
    return jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, squares, 1.0)), 0.0)
