"""Cross-entropy of heads over very many classes: the logits are computed in tiles of classes, and once more for the
gradient, so that no array of batch × classes ever exists.

    log Σ_c exp(l_c)  over tiles by a running maximum and sum     (as in Milakov and Gimelshein, 2018, arXiv:1805.02867)
    ∂loss / ∂l_c  =  softmax(l)_c − (1 − s) · [c = y] − s / C     with the log-normalisers stored by the forward pass

This takes four matmuls instead of three, and extra memory for K tiles [B, `tile`] instead of several times K matrices
[B, C].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.rows import is_zero

Tree = Any
Logits = Callable[[Tree, jax.Array], Sequence[jax.Array]]  # (head, z [B, D]) → K arrays [B, classes of that head]


def cross_entropies(
    logits: Logits, tile: int, label_smoothing: Any, head: Tree, z_BxD: jax.Array, labels_B: jax.Array
) -> jax.Array:
    """Cross-entropy of each granularity and example, float32 [K, B].

    Args:
        logits: returns the K logits [B, T] of a head, or of a slice of T of its classes.
        tile: classes per tile, at least 1.
        label_smoothing: s in [0, 1), as in `losses.cross_entropy`, a number or a scalar array without a gradient.
        head: a pytree of arrays whose last axis is the classes.
        z_BxD: embeddings [B, D]; widened to float32, as their gradient is a sum over tiles.
        labels_B: int [B], in 0 … C − 1.
    """
    smoothing = () if is_zero(label_smoothing) else (jnp.float32(label_smoothing),)
    return _cross_entropies(logits, tile, smoothing, head, z_BxD, labels_B)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropies(
    logits: Logits, tile: int, smoothing: tuple[Any, ...], head: Tree, z_BxD: jax.Array, labels_B: jax.Array
) -> jax.Array:
    return _forward(logits, tile, smoothing, head, z_BxD, labels_B)[0]


def _forward(
    logits: Logits, tile: int, smoothing: tuple[Any, ...], head: Tree, z_BxD: jax.Array, labels_B: jax.Array
) -> tuple[jax.Array, Any]:
    (label_smoothing,) = smoothing or (0.0,)
    z_BxD, wide = z_BxD.astype(jnp.float32), z_BxD
    classes = _count_classes(head)

    def step(carry: Any, start: Any, size: int) -> Any:
        largest_KxB, sum_KxB, true_KxB, total_KxB = carry
        per_granularity = []
        for k, logits_BxT in enumerate(logits(_slice_classes(head, start, size), z_BxD)):
            largest_B = jnp.maximum(largest_KxB[k], jnp.max(logits_BxT, axis=1))
            sum_B = sum_KxB[k] * jnp.exp(largest_KxB[k] - largest_B)
            sum_B += jnp.sum(jnp.exp(logits_BxT - largest_B[:, None]), axis=1)
            total_B = total_KxB[k] + jnp.sum(logits_BxT, axis=1) if smoothing else total_KxB[k]
            per_granularity.append(
                (largest_B, sum_B, jnp.where(*_true_logits(logits_BxT, labels_B, start), true_KxB[k]), total_B)
            )
        return tuple(map(jnp.stack, zip(*per_granularity, strict=True)))

    shape = (len(jax.eval_shape(logits, head, z_BxD)), len(z_BxD))
    zeros = jnp.zeros(shape)
    largest, sums, true, total = _fold_tiles(step, (jnp.full(shape, -jnp.inf), zeros, zeros, zeros), classes, tile)
    normalizers_KxB = largest + jnp.log(sums)
    losses_KxB = normalizers_KxB - (1.0 - label_smoothing) * true - label_smoothing / classes * total
    return losses_KxB, (smoothing, head, wide, labels_B, normalizers_KxB)


def _backward(logits: Logits, tile: int, residuals: Any, cotangents_KxB: jax.Array) -> Any:
    smoothing, head, narrow, labels_B, normalizers_KxB = residuals
    (label_smoothing,) = smoothing or (0.0,)
    z_BxD, classes = narrow.astype(jnp.float32), _count_classes(head)

    def step(carry: Any, start: Any, size: int) -> Any:
        d_head, d_z = carry
        logits_KxBxT, pull_back = jax.vjp(lambda *x: tuple(logits(*x)), _slice_classes(head, start, size), z_BxD)
        own_BxT = labels_B[:, None] - start == jnp.arange(size)
        logit_gradients = tuple(
            weight_B[:, None]
            * (
                jnp.exp(logits_BxT - normalizer_B[:, None])
                - jnp.where(own_BxT, 1.0 - label_smoothing, 0.0)
                - label_smoothing / classes
            )
            for logits_BxT, normalizer_B, weight_B in zip(logits_KxBxT, normalizers_KxB, cotangents_KxB, strict=True)
        )
        d_part, d_z_part = pull_back(logit_gradients)
        d_head = jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, -1), d_head, d_part
        )
        return d_head, d_z + d_z_part

    d_head, d_z = _fold_tiles(step, (jax.tree.map(jnp.zeros_like, head), jnp.zeros_like(z_BxD)), classes, tile)
    return jax.tree.map(jnp.zeros_like, smoothing), d_head, d_z.astype(narrow.dtype), None


_cross_entropies.defvjp(_forward, _backward)


def answers(logits: Logits, tile: int, head: Tree, z_BxD: jax.Array) -> jax.Array:
    """The class of the largest logit at each granularity, the lower one for ties. Arguments as for `cross_entropies`.

    Returns:
        int32 [K, B].
    """

    def step(carry: Any, start: Any, size: int) -> Any:
        largest_KxB, best_KxB = carry
        per_granularity = []
        for k, logits_BxT in enumerate(logits(_slice_classes(head, start, size), z_BxD)):
            at_B, highest_B = jnp.argmax(logits_BxT, axis=1), jnp.max(logits_BxT, axis=1)
            better_B = highest_B > largest_KxB[k]
            per_granularity.append(
                (jnp.maximum(largest_KxB[k], highest_B), jnp.where(better_B, start + at_B, best_KxB[k]))
            )
        return tuple(map(jnp.stack, zip(*per_granularity, strict=True)))

    shape = (len(jax.eval_shape(logits, head, z_BxD)), len(z_BxD))
    best_KxB: jax.Array
    _, best_KxB = _fold_tiles(
        step, (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)), _count_classes(head), tile
    )
    return best_KxB


def _fold_tiles(step: Callable[[Any, Any, int], Any], carry: Any, classes: int, tile: int) -> Any:
    """Fold `step(carry, start, size)` over tiles of `tile` classes and a last, smaller one for the remainder."""
    tile = min(tile, classes)
    full = classes // tile
    carry = jax.lax.fori_loop(0, full, lambda i, carry: step(carry, i * tile, tile), carry)
    return step(carry, full * tile, classes - full * tile) if classes % tile else carry


def _slice_classes(head: Tree, start: Any, size: int) -> Tree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, -1), head)


def _count_classes(head: Tree) -> int:
    return int(jax.tree.leaves(head)[0].shape[-1])


def _true_logits(logits_BxT: jax.Array, labels_B: jax.Array, start: Any) -> tuple[jax.Array, jax.Array]:
    """Whether each example's class is in this tile, bool [B], and its logit if so, [B]."""
    at_B, size = labels_B - start, logits_BxT.shape[1]
    picked_B = jnp.take_along_axis(logits_BxT, jnp.clip(at_B, 0, size - 1)[:, None], axis=1)[:, 0]
    return (at_B >= 0) & (at_B < size), picked_B
