"""Nested InfoNCE: in-batch negatives at every prefix of an embedding, direct or streamed over tiles of rows.

    −log softmax_j(cos_k(q_i, d_j) / τ) at j = i        van den Oord et al., 2018, arXiv:1807.03748

and Σ_k c_k · L_k over the granularities (Kusupati et al., 2022, arXiv:2205.13147), with cos_k the cosine of two
renormalised prefixes of m_k coordinates (see `cosines`) and τ the temperature, 0.01 to 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrl_jax.losses.cosines import MASKED, check_pairs, check_temperature, cosine_matrices, prefix_cosines, split_blocks
from mrl_jax.nesting import blocks as nesting_blocks
from mrl_jax.nesting import inverse_prefix_norms, nested_logits

TILE_ROWS = 128  # of a streamed tile: K tiles of `TILE_ROWS × N` float32 should stay in the cache
DIRECT_ELEMENTS = 1 << 20  # of the K Gram matrices: below, storing them is faster than computing them twice
LARGEST_SHIFT = 40  # 1/τ up to which exp(−2/τ) is far from the smallest float32


def nested_info_nce(
    queries_BxD: jax.Array,
    documents_NxD: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
    symmetric: bool = True,
    streamed: bool | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · InfoNCE of the prefixes of m_k coordinates, with in-batch and hard negatives.

    Document i is the positive of query i; documents from B on are negatives of every query. Forward, the mean over
    queries of −log softmax over all N documents of cos / τ; symmetric, the mean of that and of the same for each of
    the first B documents over the B queries. These are MultipleNegativesRankingLoss and
    MultipleNegativesSymmetricRankingLoss of sentence-transformers at scale 1/τ.

    Direct, the K Gram matrices are stored for the backward pass: `K·B·N` floats and more. Streamed, tiles of rows are
    computed, used and computed again in the backward pass: four `B × N × D` products instead of three, no memory that
    grows with `B·N`, and faster once K tiles no longer compete with K matrices for the cache.

    Args:
        queries_BxD: [B, D], not necessarily of unit length; narrower than float32 is accumulated in float32.
        documents_NxD: [N, D], N ≥ B.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array; gradients flow to an array.
        symmetric: both directions.
        streamed: True or False to choose the form, None for the faster one.
        valid: bool [B]; where False, query and document i are padding: neither queries nor candidates, no gradient.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not fit, unsuitable dims, or a temperature that is not positive.
    """
    queries_BxD, documents_NxD, dims, weights = check_pairs(queries_BxD, documents_NxD, dims, weights, paired=False)
    check_temperature(temperature)
    (batch, _), (candidates, _) = queries_BxD.shape, documents_NxD.shape
    if candidates < batch:
        raise ValueError(f"{batch} queries need as many documents, the positives first; got {candidates}")
    if valid is not None and valid.shape != (batch,):
        raise ValueError(f"valid must be [{batch}], one a query; got shape {valid.shape}")
    if streamed is None:
        streamed = len(dims) > 1 and len(dims) * batch * candidates > DIRECT_ELEMENTS
    valid_B = jnp.ones(batch, bool) if valid is None else jnp.asarray(valid, bool)
    mean_B = valid_B / jnp.maximum(jnp.sum(valid_B), 1)
    share, negatives = 0.5 if symmetric else 1.0, (0, candidates - batch)
    rows = _Side(share * mean_B, valid_B)
    columns = _Side(jnp.pad((1.0 - share) * mean_B, negatives), jnp.pad(valid_B, negatives, constant_values=True))
    bounded = not isinstance(temperature, jax.Array) and temperature >= 1 / LARGEST_SHIFT
    plan = _Plan(dims, _tile_rows(batch, candidates), symmetric, bounded)
    inverse = 1.0 / jnp.asarray(temperature, jnp.float32)
    normalizers = _streamed_normalizers if streamed else _direct_normalizers
    normalizers_K = normalizers(plan, queries_BxD, documents_NxD, inverse, rows, columns)
    losses_K = normalizers_K - prefix_cosines(queries_BxD, documents_NxD[:batch], dims) @ mean_B * inverse
    return jnp.dot(weights, losses_K), losses_K


class _Plan(NamedTuple):
    """What is known before there are arrays."""

    dims: tuple[int, ...]
    tile: int  # rows
    symmetric: bool
    bounded: bool  # 1/τ ≤ LARGEST_SHIFT


class _Side(NamedTuple):
    """The rows or the columns of the Gram matrices."""

    weight: jax.Array  # float32, of each log-normaliser in the loss
    valid: jax.Array  # bool


def _direct_normalizers(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> jax.Array:
    """Σ_i rows.weight · log Σ_j exp(cos / τ) + Σ_j columns.weight · log Σ_i exp(cos / τ), float32 [K]."""
    normalizers = []
    for cosines_BxN in cosine_matrices(queries, documents, plan.dims):
        logits_BxN = _masked(cosines_BxN * inverse, rows.valid, columns.valid)
        normalizer = jnp.dot(rows.weight, jax.nn.logsumexp(logits_BxN, axis=1))
        if plan.symmetric:
            normalizer += jnp.dot(columns.weight, jax.nn.logsumexp(logits_BxN, axis=0))
        normalizers.append(normalizer)
    return jnp.stack(normalizers)


def _masked(logits: jax.Array, valid_rows: jax.Array, valid_columns: jax.Array) -> jax.Array:
    return jnp.where(valid_rows[:, None] & valid_columns, logits, MASKED)


def _streamed_normalizers(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> jax.Array:
    """As `_direct_normalizers`, over tiles of rows."""
    spare = (0, -len(queries) % plan.tile)
    rows = _Side(jnp.pad(rows.weight, spare), jnp.pad(rows.valid, spare))
    return _streamed(plan, jnp.pad(queries, (spare, (0, 0))), documents, inverse, rows, columns)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _streamed(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> jax.Array:
    return _streamed_forward(plan, queries, documents, inverse, rows, columns)[0]


def _streamed_forward(
    plan: _Plan, queries: jax.Array, documents: jax.Array, inverse: jax.Array, rows: _Side, columns: _Side
) -> tuple[jax.Array, Any]:
    # Without a norm, padding has cosine 0 and no gradient.
    q_norms_BxK = inverse_prefix_norms(queries, plan.dims).T * rows.valid[:, None]
    d_norms_KxN = inverse_prefix_norms(documents, plan.dims) * columns.valid
    blocks = split_blocks(documents.T, plan.dims)

    def log_sums(logits: jax.Array, valid_T: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """log Σ exp of a tile over its columns and over its rows."""
        if plan.bounded:
            # cos ≤ 1: exp(cos / τ − 1 / τ) needs no maximum, and one exp serves both.
            powers = jnp.exp(logits - inverse)
            over_columns = inverse + jnp.log(powers @ columns.valid.astype(jnp.float32))
            over_rows = inverse + jnp.log(valid_T.astype(jnp.float32) @ powers) if plan.symmetric else None
            return over_columns, over_rows
        logits = _masked(logits, valid_T, columns.valid)
        return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0) if plan.symmetric else None

    def step(of_columns_KxN: jax.Array | None, inputs: Any) -> tuple[jax.Array | None, jax.Array]:
        q_TxD, scales_TxK, valid_T = inputs
        sums = [
            log_sums(products_TxN * scales_TxK[:, k, None] * d_norms_KxN[k], valid_T)
            for k, products_TxN in enumerate(nested_logits(q_TxD, blocks, plan.dims))
        ]
        of_rows, of_columns = zip(*sums, strict=True)
        if of_columns_KxN is not None:
            of_columns_KxN = jnp.logaddexp(of_columns_KxN, jnp.stack(of_columns))
        return of_columns_KxN, jnp.stack(of_rows, axis=1)

    start = jnp.full_like(d_norms_KxN, -jnp.inf) if plan.symmetric else None
    tiles = _tiles((queries, q_norms_BxK * inverse, rows.valid), plan.tile)
    of_columns_KxN, of_rows = jax.lax.scan(step, start, tiles)
    # What counts for nothing may be infinite, or small enough for its exponentials to be: with −MASKED they are 0.
    of_rows_BxK = jnp.where(rows.weight[:, None] > 0, _untile(of_rows), -MASKED)
    normalizers_K = rows.weight @ of_rows_BxK
    if of_columns_KxN is not None:
        of_columns_KxN = jnp.where(columns.weight > 0, of_columns_KxN, -MASKED)
        normalizers_K += of_columns_KxN @ columns.weight
    norms, normalizers = (q_norms_BxK, d_norms_KxN), (of_rows_BxK, of_columns_KxN)
    return normalizers_K, (queries, documents, inverse, rows, columns, norms, normalizers)


def _streamed_backward(plan: _Plan, residuals: Any, cotangents_K: jax.Array) -> Any:
    """With G = ∂L/∂(cos / τ) of one granularity, what remains is dS = G / (τ ‖q‖ ‖d‖), summed over the granularities
    that a block takes part in, and S ∘ dS summed over rows and over columns: through it the norms and τ enter."""
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
        logits: jax.Array, k: int, valid: jax.Array, weights: jax.Array, of_rows: jax.Array
    ) -> jax.Array:
        if plan.bounded:
            # Of padding, nothing reaches a gradient: its scale is 0.
            return jnp.exp(logits - inverse) * (weights + column_weights_KxN[k] if plan.symmetric else weights)
        logits = _masked(logits, valid, columns.valid)
        gradient = weights * jnp.exp(logits - of_rows)
        if plan.symmetric:
            gradient += column_weights_KxN[k] * jnp.exp(logits - of_columns_KxN[k])
        return gradient

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        (q_TxD, scales_TxK, valid_T, weights_TxK, of_rows_TxK), q_DxT = inputs
        d_blocks, of_columns_KxN = carry
        gradients, of_rows, of_columns = [], [], []
        for k, products_TxN in enumerate(nested_logits(q_TxD, blocks, plan.dims)):
            column = slice(k, k + 1)
            scale = scales_TxK[:, column] * d_norms_KxN[k]
            gradient = scale * log_sum_gradient(
                products_TxN * scale, k, valid_T, weights_TxK[:, column], of_rows_TxK[:, column]
            )
            weighted = gradient * products_TxN
            of_rows.append(jnp.sum(weighted, axis=1))
            of_columns.append(jnp.sum(weighted, axis=0))
            gradients.append(gradient)
        for k in reversed(range(len(gradients) - 1)):
            gradients[k] += gradients[k + 1]
        d_queries = [g @ d for g, d in zip(gradients, documents_blocks, strict=True)]
        # Transposed, so that no product transposes a tile: 15 % of the whole.
        q_blocks = split_blocks(q_DxT, plan.dims)
        d_blocks = [d + q @ g for d, q, g in zip(d_blocks, q_blocks, gradients, strict=True)]
        return (d_blocks, of_columns_KxN + jnp.stack(of_columns)), (d_queries, jnp.stack(of_rows, axis=1))

    tiles = _tiles((queries, q_norms_BxK * inverse, rows.valid, row_weights_BxK, of_rows_BxK), plan.tile)
    transposed = jnp.swapaxes(tiles[0], 1, 2)
    start = ([jnp.zeros_like(block) for block in blocks], jnp.zeros_like(d_norms_KxN))
    (d_blocks, of_columns_KxN), (q_gradients, of_rows) = jax.lax.scan(step, start, (tiles, transposed))
    of_rows_BxK = _untile(of_rows)
    d_queries = jnp.concatenate([_untile(gradient) for gradient in q_gradients], axis=1)
    d_queries -= _through_norms(queries, of_rows_BxK * q_norms_BxK**2, plan.dims)
    d_documents = jnp.concatenate(d_blocks).T
    d_documents -= _through_norms(documents, (of_columns_KxN * d_norms_KxN**2).T, plan.dims)
    d_inverse = jnp.sum(of_rows_BxK) / inverse
    return d_queries, d_documents, d_inverse, None, None


_streamed.defvjp(_streamed_forward, _streamed_backward)


def _tile_rows(batch: int, candidates: int) -> int:
    return min(TILE_ROWS, batch)


def _tiles(arrays: Any, tile: int) -> Any:
    """[B, …] → [B / tile, tile, …]. Tile t holds the rows t, t + B / tile, …: a batch that is sharded over devices
    stays so within each tile."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(tile, -1, *x.shape[1:]), 0, 1), arrays)


def _untile(tiles: jax.Array) -> jax.Array:
    """The inverse of `_tiles`."""
    return jnp.swapaxes(tiles, 0, 1).reshape(-1, *tiles.shape[2:])


def _through_norms(z_BxD: jax.Array, factors_BxK: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """Σ_k factors[k] · z[:m_k], each padded to D."""
    per_block = jnp.cumsum(factors_BxK[:, ::-1], axis=1)[:, ::-1]
    widths = [stop - start for start, stop in nesting_blocks(dims)]
    return z_BxD * jnp.repeat(per_block, jnp.array(widths), axis=1, total_repeat_length=dims[-1])
