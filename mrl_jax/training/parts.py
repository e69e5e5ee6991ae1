"""What a training step does where the encoder itself is nested: losses after several layers, a draw of hidden units."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.training.objective import Objective

OF_HIDDEN = 1 << 30  # folded into the key of a step, it is that of the number of hidden units


def loss(objective: Objective, params: Any, z: jax.Array, label: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
    """The loss of embeddings [B, D] under weights [kinds, K], or the sum over the layers of [L, B, D] under weights [L,
    kinds, K]; and the loss of each granularity, shaped as the weights.

    Args:
        objective: gives the loss of one layer.
        params, label: as for `Objective.loss`.
        weights: those of the step, and those of the arm.
    """
    if z.ndim == 2:
        return objective.loss(params, z, label, *weights)
    each = [objective.loss(params, z_BxD, label, *of_layer) for z_BxD, *of_layer in zip(z, *weights, strict=True)]
    totals, losses = zip(*each, strict=True)
    return sum(totals[1:], totals[0]), jnp.stack(losses)


def score(
    objective: Objective, params: Any, z: jax.Array, label: Any, valid_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`Objective.score` of embeddings [B, D], or of each layer of [L, B, D], side by side."""
    if z.ndim == 2:
        return objective.score(params, z, label, valid_B)
    return stacked([objective.score(params, z_BxD, label, valid_B) for z_BxD in z])


def stacked(scores: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Pairs of arrays as a pair of arrays with one more axis."""
    right, lost = (jnp.stack(part) for part in zip(*scores, strict=True))
    return right, lost


def draw(sizes: Sequence[int], shares_H: jax.Array, key: jax.Array) -> jax.Array:
    """The number of hidden units of a step, int32 [], drawn by the shares of an arm from the key of the step.

    Unlike a layer, a number of hidden units needs a forward pass of its own. So one is drawn per step, as in MatFormer:
    the expected loss is the mean over the sizes, for the time of one pass.
    """
    at = jnp.searchsorted(jnp.cumsum(shares_H), jax.random.uniform(jax.random.fold_in(key, OF_HIDDEN)), "right")
    return jnp.asarray(sizes)[jnp.minimum(at, len(sizes) - 1)]
