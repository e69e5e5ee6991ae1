"""Nested masked language modelling: the first m coordinates of a token's state predict the token.

    logits_k = h[:m_k] · E[:, :m_k]ᵀ + b,   L = Σ_k c_k · mean over the hidden tokens of CE(logits_k, token)

with E the table of token vectors that the encoder reads (Kusupati et al. 2022, arXiv:2205.13147, section 4.2 and
appendix on BERT). This is the tied head of MRL-E with Eᵀ as its kernel: all granularities take one matmul, and one bias
serves them all, as in BERT: it holds how frequent the tokens are, which is the same at every width. With a large
vocabulary the logits are computed in tiles of tokens, so no array [K, S, V] or [S, V] ever exists.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrl_jax.losses import heads


def head_of(table_VxD: jax.Array, bias_V: jax.Array, dims: Sequence[int]) -> heads.Head:
    """The tied head of `losses.heads` that predicts tokens."""
    return {"kernel": jnp.split(table_VxD.T, dims[:-1]), "bias": bias_V}


def nested_token_prediction(
    states_SxD: jax.Array,
    table_VxD: jax.Array,
    bias_V: jax.Array,
    tokens_S: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    streamed: bool | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean cross-entropy of the tokens at granularity k.

    Args:
        states_SxD: h, states of hidden tokens [S, D].
        table_VxD: E [V, D].
        bias_V: b [V].
        tokens_S: int [S], the tokens to predict; those below 0 do not count.
        dims: the K nesting dims, ascending, the last D.
        weights: [K], summed as given.
        streamed: True or False to compute logits in tiles or at once; None: by size.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K]; 0 where there is no token.
    """
    counted_S = tokens_S >= 0
    head = head_of(table_VxD, bias_V, dims)
    losses_KxS = heads.each_loss(head, "tied", states_SxD, jnp.maximum(tokens_S, 0), dims, streamed=streamed)
    losses_K = jnp.sum(jnp.where(counted_S, losses_KxS, 0.0), axis=1) / jnp.maximum(jnp.sum(counted_S), 1)
    return jnp.dot(jnp.asarray(weights, jnp.float32), losses_K), losses_K
