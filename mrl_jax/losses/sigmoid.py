"""Nested sigmoid loss: every cell of a batch's Gram matrix is a yes-or-no question, at every prefix of an embedding.

    −(1/B) Σ_i Σ_j log σ(y_ij · (cos_k(q_i, d_j) / τ + b_k)),  y_ij = 1 at j = i, else −1

(Zhai, Mustafa, Kolesnikov & Beyer, 2023, arXiv:2303.15343) and Σ_k c_k · L_k over the granularities (Kusupati et al.,
2022, arXiv:2205.13147), with cos_k the cosine of two renormalised prefixes of m_k coordinates (see `cosines`). Each
granularity has a bias of its own: cosines of short prefixes vary more, so that another bias separates them. Where the
texts are known by number, or a guide is given, what is relevant to query i beside document i counts neither way.

No cell depends on another one, so the loss is a sum over tiles of rows, each computed again for its gradient: memory
does not grow with `B·N`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.losses import row_tiles
from mrl_jax.losses.cosines import check_pairs, check_temperature, split_blocks
from mrl_jax.losses.relevance import Guide, TextIds, check_candidates, left_out, nearer
from mrl_jax.nesting import inverse_prefix_norms, nested_logits

FEW_DIMS = 3  # granularities up to which a tile is of full height


def nested_sigmoid(
    queries_BxD: jax.Array,
    documents_NxD: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.1,
    bias: jax.Array | float = -10.0,
    valid: jax.Array | None = None,
    ids: TextIds | None = None,
    guide: Guide | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · sigmoid loss of the prefixes of m_k coordinates, with in-batch and hard negatives.

    Document i is the positive of query i; documents from B on are negatives of every query.

    Args:
        queries_BxD: [B, D], not necessarily of unit length; types narrower than float32 are accumulated in float32.
        documents_NxD: [N, D], N ≥ B.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array; gradients flow to an array.
        bias: b, a number, or an array: one for all granularities or [K]; gradients flow to an array.
        valid: bool [B]; where False, query i and document i are padding: they do not count and get no gradient.
        ids: numbers of the texts, by which equal texts and known positives of a query are told from its negatives;
            None: every other document is a negative.
        guide: another model's vectors of the texts: documents that it finds nearer to a query than the query's positive
            are no negatives of it.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not match, invalid dims, or a temperature that is not positive.
    """
    queries_BxD, documents_NxD, dims, weights = check_pairs(queries_BxD, documents_NxD, dims, weights, paired=False)
    check_temperature(temperature)
    batch, candidates = len(queries_BxD), len(documents_NxD)
    check_candidates(batch, candidates, valid, ids, guide)
    biases_K = jnp.asarray(bias, jnp.float32)
    if biases_K.shape not in ((), (len(dims),)):
        raise ValueError(f"bias must be one number or [{len(dims)}], one per dim; got shape {biases_K.shape}")
    biases_K = jnp.broadcast_to(biases_K, (len(dims),))
    valid_B = jnp.ones(batch, bool) if valid is None else jnp.asarray(valid, bool)
    valid_N = jnp.pad(valid_B, (0, candidates - batch), constant_values=True)
    q_scales_BxK = inverse_prefix_norms(queries_BxD, dims).T / jnp.asarray(temperature, jnp.float32)
    d_norms_KxN = inverse_prefix_norms(documents_NxD, dims)
    blocks = split_blocks(documents_NxD.T, dims)
    columns = ids and ids.columns()

    def add(sums_K: jax.Array, tile: Any) -> tuple[jax.Array, None]:
        q_TxD, scales_TxK, valid_T, places_T, texts, guided = tile
        counts_TxN = valid_T[:, None] & valid_N
        if columns is not None:
            counts_TxN &= ~left_out(texts, columns)
        if guide is not None:
            counts_TxN &= ~nearer(guided, guide.documents)
        signs_TxN = jnp.where(places_T[:, None] == jnp.arange(candidates), -1.0, 1.0)
        losses = []
        for k, dots_TxN in enumerate(nested_logits(q_TxD, blocks, dims)):
            logits_TxN = dots_TxN * scales_TxK[:, k, None] * d_norms_KxN[k] + biases_K[k]
            losses.append(jnp.sum(_softplus(signs_TxN * logits_TxN), where=counts_TxN))
        return sums_K + jnp.stack(losses), None

    # Some three tiles per granularity are held at once, so several granularities take shorter ones.
    size = min(row_tiles.TILE_ROWS if len(dims) <= FEW_DIMS else row_tiles.TILE_ROWS // 2, batch)
    rows = (queries_BxD, q_scales_BxK, valid_B, jnp.arange(batch), ids and ids.rows(), guide and guide.rows())
    start = jnp.zeros(len(dims), jnp.float32)
    sums_K, _ = jax.lax.scan(jax.checkpoint(add), start, row_tiles.split(row_tiles.pad(rows, size), size))
    losses_K = sums_K / jnp.maximum(jnp.sum(valid_B), 1)
    return jnp.dot(weights, losses_K), losses_K


@jax.custom_jvp
def _softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp x), with σ(x) as its derivative: that of JAX, exp(x − softplus x), takes the logarithm once more."""
    return jax.nn.softplus(x)


@_softplus.defjvp
def _softplus_jvp(x: tuple[jax.Array], tangent: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _softplus(*x), jax.nn.sigmoid(*x) * tangent[0]
