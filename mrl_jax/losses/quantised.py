"""What an embedding becomes when it is stored in few bits, with a gradient, to train it for that."""

import jax
import jax.numpy as jnp


def straight_through_signs(z_BxD: jax.Array) -> jax.Array:
    """The signs of the coordinates, one bit each, times the mean magnitude of their row (Rastegari et al., 2016,
    arXiv:1603.05279); the gradient is that of the identity, the straight-through estimator (Bengio et al., 2013,
    arXiv:1308.3432).

    A prefix of the signs is the signs of the prefix, so a nested loss of them trains every prefix for 1-bit storage.
    Coordinates that are 0 count as negative, as in `evaluate.quantised`; a row of zeros stays zero.

    Args:
        z_BxD: float32 [B, D].

    Returns:
        float32 [B, D].
    """
    signs_BxD = jnp.where(z_BxD > 0, 1.0, -1.0) * jnp.mean(jnp.abs(z_BxD), axis=-1, keepdims=True)
    return z_BxD + jax.lax.stop_gradient(signs_BxD - z_BxD)
