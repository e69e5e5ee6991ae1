"""Nested InfoNCE: in-batch negatives at every prefix of an embedding, direct or streamed over tiles of rows.

    −log softmax_j(cos_k(q_i, d_j) / τ) at j = i        van den Oord et al., 2018, arXiv:1807.03748

and Σ_k c_k · L_k over the granularities (Kusupati et al., 2022, arXiv:2205.13147), with cos_k the cosine of two
renormalised prefixes of m_k coordinates (see `cosines`) and τ the temperature, 0.01 to 1. Where the texts are known by
number, or a guide is given, j runs over i and the true negatives only: what is relevant to query i leaves the softmax
(see `relevance`).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrl_jax.losses import row_tiles
from mrl_jax.losses.cosines import MASKED, check_pairs, check_temperature, cosine_matrices, prefix_cosines, split_blocks
from mrl_jax.losses.relevance import Guide, TextIds, check_candidates, left_out, nearer
from mrl_jax.nesting import blocks as nesting_blocks
from mrl_jax.nesting import inverse_prefix_norms, nested_logits

DIRECT_ELEMENTS = 1 << 20  # of the K Gram matrices; up to here, storing them is faster than computing them twice
MAX_INVERSE_TEMPERATURE = 40  # largest 1/τ for which exp(−2/τ) is far above the smallest float32


def nested_info_nce(
    queries_BxD: jax.Array,
    documents_NxD: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
    symmetric: bool = True,
    streamed: bool | None = None,
    valid: jax.Array | None = None,
    ids: TextIds | None = None,
    guide: Guide | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · InfoNCE of the prefixes of m_k coordinates, with in-batch and hard negatives.

    Document i is the positive of query i; documents from B on are negatives of every query. The one-directional loss is
    the mean over queries of −log softmax over all N documents of cos / τ; the symmetric one is the mean of that and of
    the same for each of the first B documents over the B queries. These are MultipleNegativesRankingLoss and
    MultipleNegativesSymmetricRankingLoss of sentence-transformers at scale 1/τ.

    The direct form stores the K Gram matrices for the backward pass: `K·B·N` floats and more. The streamed form
    computes tiles of rows, and again in the backward pass: four `B × N × D` matmuls instead of three, no memory that
    grows with `B·N`, and faster once the K matrices exceed the cache.

    Args:
        queries_BxD: [B, D], not necessarily of unit length; types narrower than float32 are accumulated in float32.
        documents_NxD: [N, D], N ≥ B.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array; gradients flow to an array.
        symmetric: whether to average both directions.
        streamed: True or False to choose the form, None to choose the faster one by size.
        valid: bool [B]; where False, query i and document i are padding: they do not count and get no gradient.
        ids: numbers of the texts, by which equal texts and known positives of a query are told from its negatives, in
            both directions; None: every other document is a negative.
        guide: another model's vectors of the texts: documents that it finds nearer to a query than the query's positive
            are no negatives of it, in both directions.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not match, invalid dims, or a temperature that is not positive.
    """
    queries_BxD, documents_NxD, dims, weights = check_pairs(queries_BxD, documents_NxD, dims, weights, paired=False)
    check_temperature(temperature)
    (batch, _), (candidates, _) = queries_BxD.shape, documents_NxD.shape
    check_candidates(batch, candidates, valid, ids, guide)
    if streamed is None:
        streamed = len(dims) > 1 and len(dims) * batch * candidates > DIRECT_ELEMENTS
    valid_B = jnp.ones(batch, bool) if valid is None else jnp.asarray(valid, bool)
    mean_B = valid_B / jnp.maximum(jnp.sum(valid_B), 1)
    share, negatives = 0.5 if symmetric else 1.0, (0, candidates - batch)
    rows = _Side(share * mean_B, valid_B, ids and ids.rows(), guide and guide.rows())
    columns = _Side(
        jnp.pad((1.0 - share) * mean_B, negatives),
        jnp.pad(valid_B, negatives, constant_values=True),
        ids and ids.columns(),
        guide and guide.documents,
    )
    bounded = not isinstance(temperature, jax.Array) and temperature >= 1 / MAX_INVERSE_TEMPERATURE
    plan = _Plan(dims, min(row_tiles.TILE_ROWS, batch), symmetric, bounded)
    inverse = 1.0 / jnp.asarray(temperature, jnp.float32)
    normalizers = _streamed_normalizers if streamed else _direct_normalizers
    normalizers_K = normalizers(plan, queries_BxD, documents_NxD, inverse, rows, columns)
    losses_K = normalizers_K - prefix_cosines(queries_BxD, documents_NxD[:batch], dims) @ mean_B * inverse
    return jnp.dot(weights, losses_K), losses_K


class _Plan(NamedTuple):
    """The static arguments of the log-normalisers."""

    dims: tuple[int, ...]
    tile: int  # rows per tile
    symmetric: bool
    bounded: bool  # 1/τ ≤ MAX_INVERSE_TEMPERATURE


class _Side(NamedTuple):
    """The rows or the columns of the Gram matrices."""

    weight: jax.Array  # float32, weight of each log-normaliser in the loss
    valid: jax.Array  # bool
    texts: Any = None  # `Rows` or `Columns` of `relevance`; None where texts have no numbers
    guide: Any = None  # `GuideRows` of `relevance`, or the documents [N, G]; None without a guide


def _direct_normalizers(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> jax.Array:
    """Σ_i rows.weight · log Σ_j exp(cos / τ) + Σ_j columns.weight · log Σ_i exp(cos / τ), float32 [K]."""
    normalizers, counts_BxN = [], _counted(rows, columns)
    for cosines_BxN in cosine_matrices(queries, documents, plan.dims):
        logits_BxN = jnp.where(counts_BxN, cosines_BxN * inverse, MASKED)
        normalizer = jnp.dot(rows.weight, jax.nn.logsumexp(logits_BxN, axis=1))
        if plan.symmetric:
            normalizer += jnp.dot(columns.weight, jax.nn.logsumexp(logits_BxN, axis=0))
        normalizers.append(normalizer)
    return jnp.stack(normalizers)


def _counted(rows: _Side, columns: _Side) -> jax.Array:
    """Whether each cell of a Gram matrix, or of a tile of its rows, belongs in the softmax."""
    counts = rows.valid[:, None] & columns.valid
    if rows.texts is not None:
        counts &= ~left_out(rows.texts, columns.texts)
    if rows.guide is not None:
        counts &= ~nearer(rows.guide, columns.guide)
    return counts


def _counted_in_tile(plan: _Plan, rows: _Side, columns: _Side) -> jax.Array | None:
    """As `_counted`, or None where every cell of a tile does but padding, which is no trouble to a bounded plan: its
    scale is 0, and `valid` leaves it out of the sums."""
    masked = rows.texts is not None or rows.guide is not None
    return _counted(rows, columns) if masked or not plan.bounded else None


def _streamed_normalizers(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> jax.Array:
    """As `_direct_normalizers`, over tiles of rows; the queries are padded to whole tiles."""
    queries, rows = row_tiles.pad((queries, rows), plan.tile)
    return _stream_tiles(plan, queries, documents, inverse, rows, columns)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream_tiles(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> jax.Array:
    return _stream_tiles_forward(plan, queries, documents, inverse, rows, columns)[0]


def _stream_tiles_forward(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> tuple[jax.Array, Any]:
    # With an inverse norm of 0, padding has cosine 0 and no gradient.
    q_norms_BxK = inverse_prefix_norms(queries, plan.dims).T * rows.valid[:, None]
    d_norms_KxN = inverse_prefix_norms(documents, plan.dims) * columns.valid
    blocks = split_blocks(documents.T, plan.dims)

    def log_sums(logits: jax.Array, valid_T: jax.Array, counts: jax.Array | None) -> tuple[jax.Array, Any]:
        """log Σ exp of a tile over its columns and, if symmetric, over its rows."""
        if plan.bounded:
            # cos ≤ 1: exp(cos / τ − 1 / τ) needs no maximum, and one exp serves both.
            powers = jnp.exp(logits - inverse)
            powers = powers if counts is None else jnp.where(counts, powers, 0.0)
            over_columns = inverse + jnp.log(powers @ columns.valid.astype(jnp.float32))
            over_rows = inverse + jnp.log(valid_T.astype(jnp.float32) @ powers) if plan.symmetric else None
            return over_columns, over_rows
        assert counts is not None
        logits = jnp.where(counts, logits, MASKED)
        return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0) if plan.symmetric else None

    def step(of_columns_KxN: jax.Array | None, inputs: Any) -> tuple[jax.Array | None, jax.Array]:
        q_TxD, scales_TxK, rows_T = inputs
        counts = _counted_in_tile(plan, rows_T, columns)
        sums = [
            log_sums(dots_TxN * scales_TxK[:, k, None] * d_norms_KxN[k], rows_T.valid, counts)
            for k, dots_TxN in enumerate(nested_logits(q_TxD, blocks, plan.dims))
        ]
        of_rows, of_columns = zip(*sums, strict=True)
        if of_columns_KxN is not None:
            of_columns_KxN = jnp.logaddexp(of_columns_KxN, jnp.stack(of_columns))
        return of_columns_KxN, jnp.stack(of_rows, axis=1)

    start = jnp.full_like(d_norms_KxN, -jnp.inf) if plan.symmetric else None
    tiles = row_tiles.split((queries, q_norms_BxK * inverse, rows), plan.tile)
    of_columns_KxN, of_rows = jax.lax.scan(step, start, tiles)
    # Rows of weight 0 may have infinite log-sums, or ones whose exponentials overflow: −MASKED makes those exactly 0.
    of_rows_BxK = jnp.where(rows.weight[:, None] > 0, row_tiles.join(of_rows), -MASKED)
    normalizers_K = rows.weight @ of_rows_BxK
    if of_columns_KxN is not None:
        of_columns_KxN = jnp.where(columns.weight > 0, of_columns_KxN, -MASKED)
        normalizers_K += of_columns_KxN @ columns.weight
    norms, normalizers = (q_norms_BxK, d_norms_KxN), (of_rows_BxK, of_columns_KxN)
    return normalizers_K, (queries, documents, inverse, rows, columns, norms, normalizers)


def _stream_tiles_backward(plan: _Plan, residuals: Any, cotangents_K: jax.Array) -> Any:
    """Gradients with respect to queries, documents and 1/τ.

    With G = ∂L/∂(cos / τ) of one granularity, the gradient of its dot products is dS = G / (τ ‖q‖ ‖d‖). Each block of
    coordinates needs the sum of dS over the granularities that contain it; the norms and τ need S ∘ dS summed over rows
    and over columns.
    """
    queries, documents, inverse, rows, columns, norms, normalizers = residuals
    (q_norms_BxK, d_norms_KxN), (of_rows_BxK, of_columns_KxN) = norms, normalizers
    blocks, documents_blocks = split_blocks(documents.T, plan.dims), split_blocks(documents, plan.dims, axis=1)
    row_weights_BxK = rows.weight[:, None] * cotangents_K
    column_weights_KxN = columns.weight * cotangents_K[:, None]
    if plan.bounded:
        row_weights_BxK *= jnp.exp(inverse - of_rows_BxK)
        if plan.symmetric:
            column_weights_KxN *= jnp.exp(inverse - of_columns_KxN)

    def log_sum_gradient(
        logits: jax.Array, k: int, counts: jax.Array | None, weights: jax.Array, of_rows: jax.Array
    ) -> jax.Array:
        if plan.bounded:
            powers = jnp.exp(logits - inverse)
            powers = powers if counts is None else jnp.where(counts, powers, 0.0)
            return powers * (weights + column_weights_KxN[k] if plan.symmetric else weights)
        assert counts is not None
        logits = jnp.where(counts, logits, MASKED)
        gradient = weights * jnp.exp(logits - of_rows)
        if plan.symmetric:
            gradient += column_weights_KxN[k] * jnp.exp(logits - of_columns_KxN[k])
        return gradient

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        (q_TxD, scales_TxK, rows_T, weights_TxK, of_rows_TxK), q_DxT = inputs
        counts = _counted_in_tile(plan, rows_T, columns)
        d_blocks, of_columns_KxN = carry
        gradients, of_rows, of_columns = [], [], []
        for k, dots_TxN in enumerate(nested_logits(q_TxD, blocks, plan.dims)):
            column = slice(k, k + 1)
            scale = scales_TxK[:, column] * d_norms_KxN[k]
            gradient = scale * log_sum_gradient(
                dots_TxN * scale, k, counts, weights_TxK[:, column], of_rows_TxK[:, column]
            )
            weighted = gradient * dots_TxN
            of_rows.append(jnp.sum(weighted, axis=1))
            of_columns.append(jnp.sum(weighted, axis=0))
            gradients.append(gradient)
        for k in reversed(range(len(gradients) - 1)):
            gradients[k] += gradients[k + 1]
        d_queries = [g @ d for g, d in zip(gradients, documents_blocks, strict=True)]
        # Computed transposed, so that no matmul has to transpose a tile, which would be 15 % of the total time.
        q_blocks = split_blocks(q_DxT, plan.dims)
        d_blocks = [d + q @ g for d, q, g in zip(d_blocks, q_blocks, gradients, strict=True)]
        return (d_blocks, of_columns_KxN + jnp.stack(of_columns)), (d_queries, jnp.stack(of_rows, axis=1))

    tiles = row_tiles.split((queries, q_norms_BxK * inverse, rows, row_weights_BxK, of_rows_BxK), plan.tile)
    transposed = jnp.swapaxes(tiles[0], 1, 2)
    start = ([jnp.zeros_like(block) for block in blocks], jnp.zeros_like(d_norms_KxN))
    (d_blocks, of_columns_KxN), (q_gradients, of_rows) = jax.lax.scan(step, start, (tiles, transposed))
    of_rows_BxK = row_tiles.join(of_rows)
    d_queries = jnp.concatenate([row_tiles.join(gradient) for gradient in q_gradients], axis=1)
    d_queries -= _norm_gradient(queries, of_rows_BxK * q_norms_BxK**2, plan.dims)
    d_documents = jnp.concatenate(d_blocks).T
    d_documents -= _norm_gradient(documents, (of_columns_KxN * d_norms_KxN**2).T, plan.dims)
    d_inverse = jnp.sum(of_rows_BxK) / inverse
    return d_queries, d_documents, d_inverse, None, None


_stream_tiles.defvjp(_stream_tiles_forward, _stream_tiles_backward)


def _norm_gradient(z_BxD: jax.Array, factors_BxK: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """Σ_k factors[:, k] · z[:, :m_k], each padded to D: the gradient that passes through the prefix norms, [B, D]."""
    per_block = jnp.cumsum(factors_BxK[:, ::-1], axis=1)[:, ::-1]
    widths = [stop - start for start, stop in nesting_blocks(dims)]
    return z_BxD * jnp.repeat(per_block, jnp.array(widths), axis=1, total_repeat_length=dims[-1])
