"""Nested losses of pairs: contrastive, scored and distilled, at every prefix of an embedding in one pass.

With cos_k the cosine of two prefixes of m_k coordinates, *renormalised*, and τ the temperature:

    InfoNCE       −log softmax_j(cos_k(q_i, d_j) / τ) at j = i        van den Oord et al., 2018, arXiv:1807.03748
    CoSENT        log(1 + Σ_{s_i > s_j} exp((cos_k,j − cos_k,i) / τ))    Su, 2022; Huang et al., 2024, IEEE TASLP
    regression    (cos_k − s)²                                        Reimers and Gurevych, 2019, arXiv:1908.10084
    distillation  what the full width finds similar, taught to its prefixes

and Σ_k c_k · L_k over the granularities (Kusupati et al., 2022, arXiv:2205.13147). Gram matrices are sums over blocks
of coordinates, S_k = S_{k−1} + Q[:, block k] @ D[:, block k]ᵀ, and cos_k = S_k / (‖q‖_k ‖d‖_k): one `B × N × D` product
in all, whatever the number of granularities.

A prefix that is zero, or is beside the whole (`nesting.NEGLIGIBLE`), has cosine 0 to everything and no gradient.
Otherwise embeddings may have any length that float32 holds; losses and gradients stay finite for τ from 0.01 to 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mrl_jax.nesting import blocks as nesting_blocks
from mrl_jax.nesting import check_dims, inverse_prefix_norms, nested_logits, scaled

Tree = TypeVar("Tree")

TILE = 128  # rows of a streamed tile: K tiles of `TILE × N` float32 should stay in the cache
DIRECT_ELEMENTS = 1 << 20  # of the K Gram matrices: below, storing them is faster than computing them twice
LARGEST_SHIFT = 40  # 1/τ up to which exp(−2/τ) is far from the smallest float32
MASKED = -1e30  # a logit that counts for nothing; finite, so that a row of nothing else stays so


# --- in-batch negatives -------------------------------------------------------------------------------------------


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
    queries_BxD, documents_NxD, dims, weights = _check(queries_BxD, documents_NxD, dims, weights, paired=False)
    _check_temperature(temperature)
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
    losses_K = normalizers_K - _cosines(queries_BxD, documents_NxD[:batch], dims) @ mean_B * inverse
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
    for cosines_BxN in _cosine_matrices(queries, documents, plan.dims):
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
    blocks = _split(documents.T, plan.dims)

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
    blocks, documents_blocks = _split(documents.T, plan.dims), _split(documents, plan.dims, axis=1)
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
        q_blocks = _split(q_DxT, plan.dims)
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
    return min(TILE, batch)


def _tiles(arrays: Any, tile: int) -> Any:
    """[B, …] → [B / tile, tile, …]. Tile t holds the rows t, t + B / tile, …: a batch that is sharded over devices
    stays so within each tile."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(tile, -1, *x.shape[1:]), 0, 1), arrays)


def _untile(tiles: jax.Array) -> jax.Array:
    """The inverse of `_tiles`."""
    return jnp.swapaxes(tiles, 0, 1).reshape(-1, *tiles.shape[2:])


def _split(array: jax.Array, dims: tuple[int, ...], axis: int = 0) -> list[jax.Array]:
    return list(jnp.split(array, dims, axis=axis)[: len(dims)])


def _through_norms(z_BxD: jax.Array, factors_BxK: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """Σ_k factors[k] · z[:m_k], each padded to D."""
    per_block = jnp.cumsum(factors_BxK[:, ::-1], axis=1)[:, ::-1]
    widths = [stop - start for start, stop in nesting_blocks(dims)]
    return z_BxD * jnp.repeat(per_block, jnp.array(widths), axis=1, total_repeat_length=dims[-1])


def _cosine_matrices(queries: jax.Array, documents: jax.Array, dims: tuple[int, ...]) -> list[jax.Array]:
    """Cosines of all queries and documents at each prefix, K times float32 [B, N]."""
    products = nested_logits(queries, documents.T, dims)
    of_queries, of_documents = inverse_prefix_norms(queries, dims), inverse_prefix_norms(documents, dims)
    return [s * q[:, None] * d for s, q, d in zip(products, of_queries, of_documents, strict=True)]


def _check(
    first: jax.Array, second: jax.Array, dims: Sequence[int], weights: jax.Array | Sequence[float], paired: bool = True
) -> tuple[jax.Array, jax.Array, tuple[int, ...], jax.Array]:
    """All in the form that the losses use, float32 and a tuple of ints, or a `ValueError`.

    Narrower embeddings are widened here, once, so that what flows back is summed in float32 and rounded once. They are
    scaled, as cosines do not depend on their lengths but the squares on the way to them may overflow.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"embeddings must be two matrices of one width; got shapes {first.shape} and {second.shape}")
    if paired and first.shape != second.shape:
        raise ValueError(f"pairs need as many first as second embeddings; got {len(first)} and {len(second)}")
    dims = check_dims(dims, first.shape[1])
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(dims),):
        raise ValueError(f"{len(dims)} nesting dims need as many weights; got shape {weights.shape}")
    return scaled(first), scaled(second), dims, weights


def _check_temperature(temperature: jax.Array | float) -> None:
    if not isinstance(temperature, jax.Array) and not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")


# --- scored pairs -------------------------------------------------------------------------------------------------


def nested_cosines(a_BxD: jax.Array, b_BxD: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Cosine of each pair at each prefix, float32 [K, B] in O(B·D); 0, without gradient, for a zero prefix.

    Raises `ValueError` unless both are [B, D] and `dims` suit D.
    """
    a_BxD, b_BxD, dims, _ = _check(a_BxD, b_BxD, dims, [0.0] * len(dims))
    return _cosines(a_BxD, b_BxD, dims)


def _cosines(a_BxD: jax.Array, b_BxD: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    firsts, seconds = _split(a_BxD, dims, axis=1), _split(b_BxD, dims, axis=1)
    parts = jnp.stack([jnp.sum(a * b, axis=1) for a, b in zip(firsts, seconds, strict=True)])
    return jnp.cumsum(parts, axis=0) * inverse_prefix_norms(a_BxD, dims) * inverse_prefix_norms(b_BxD, dims)


def nested_cosent(
    a_BxD: jax.Array,
    b_BxD: jax.Array,
    scores_B: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · log(1 + Σ_{i, j: scores_i > scores_j} exp((cos_j − cos_i) / τ)): pairs ordered by score.

    CoSENTLoss of sentence-transformers at scale 1/τ. Sorted by score, the inner sum over i is a cumulative one:
    O(B·D + K·B·log B), no `B × B` array. Pairs of equal scores are not compared.

    Args:
        a_BxD, b_BxD: [B, D], the two embeddings of each pair.
        scores_B: [B], only their order counts.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not fit, unsuitable dims, or a temperature that is not positive.
    """
    a_BxD, b_BxD, dims, weights = _check(a_BxD, b_BxD, dims, weights)
    _check_temperature(temperature)
    scores_B = _check_scores(scores_B, len(a_BxD))
    order = jnp.argsort(scores_B)
    logits_KxB = _cosines(a_BxD, b_BxD, dims)[:, order] / temperature
    scores_B = scores_B[order]
    higher = jnp.searchsorted(
        scores_B, scores_B, side="right"
    )  # the first pair with a higher score, B if there is none
    from_here = jax.lax.cumlogsumexp(-logits_KxB, axis=1, reverse=True)
    exists = higher < len(scores_B)
    of_higher = jnp.where(exists, from_here[:, jnp.minimum(higher, len(scores_B) - 1)], MASKED)
    losses_K = jax.nn.logsumexp(jnp.pad(logits_KxB + of_higher, ((0, 0), (1, 0))), axis=1)
    return jnp.dot(weights, losses_K), losses_K


def nested_cosine_regression(
    a_BxD: jax.Array,
    b_BxD: jax.Array,
    scores_B: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over pairs of (cos_k − score)²: CosineSimilarityLoss of sentence-transformers.

    Embeddings [B, D], scores [B] in −1…1, weights [K]. Returns the scalar loss and the unweighted loss of each
    granularity, float32 [K]; raises `ValueError` on shapes that do not fit or unsuitable dims.
    """
    a_BxD, b_BxD, dims, weights = _check(a_BxD, b_BxD, dims, weights)
    errors_KxB = _cosines(a_BxD, b_BxD, dims) - _check_scores(scores_B, len(a_BxD))
    losses_K = jnp.mean(errors_KxB**2, axis=1)
    return jnp.dot(weights, losses_K), losses_K


def _check_scores(scores_B: jax.Array, pairs: int) -> jax.Array:
    scores_B = jnp.asarray(scores_B, jnp.float32)
    if scores_B.shape != (pairs,):
        raise ValueError(f"{pairs} pairs need as many scores; got shape {scores_B.shape}")
    return scores_B


# --- the full width as the teacher of its prefixes ----------------------------------------------------------------


def nested_distillation(
    queries_BxD: jax.Array,
    documents_NxD: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over queries of KL(softmax(cos_D / τ) ‖ softmax(cos_k / τ)), the softmax over documents.

    The similarities of the full width, taken as they are (no gradient), are what the prefixes should reproduce
    (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531). The loss of the full width itself is 0.

    Args:
        queries_BxD, documents_NxD: [B, D] and [N, D].
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array.

    Returns:
        The scalar loss, and the unweighted loss of each granularity in nats, float32 [K].

    Raises:
        ValueError: on shapes that do not fit, unsuitable dims, or a temperature that is not positive.
    """
    queries_BxD, documents_NxD, dims, weights = _check(queries_BxD, documents_NxD, dims, weights, paired=False)
    _check_temperature(temperature)
    *students, teacher = (
        jax.nn.log_softmax(cosines_BxN / temperature)
        for cosines_BxN in _cosine_matrices(queries_BxD, documents_NxD, dims)
    )
    teacher = jax.lax.stop_gradient(teacher)
    losses = [jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1)) for student in students]
    losses_K = jnp.stack([*losses, jnp.zeros(())])
    return jnp.dot(weights, losses_K), losses_K


def nested_pair_distillation(
    a_BxD: jax.Array, b_BxD: jax.Array, dims: Sequence[int], weights: jax.Array | Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over pairs of (cos_k − cos_D)², the cosine of the full width without gradient.

    As `nested_distillation`, where each embedding has but one partner. Embeddings [B, D], weights [K]. Returns the
    scalar loss and the unweighted loss of each granularity, float32 [K], 0 for the full width; raises `ValueError` on
    shapes that do not fit or unsuitable dims.
    """
    a_BxD, b_BxD, dims, weights = _check(a_BxD, b_BxD, dims, weights)
    cosines_KxB = _cosines(a_BxD, b_BxD, dims)
    errors = jnp.mean((cosines_KxB[:-1] - jax.lax.stop_gradient(cosines_KxB[-1])) ** 2, axis=1)
    losses_K = jnp.pad(errors, (0, 1))
    return jnp.dot(weights, losses_K), losses_K


# --- batches larger than memory -----------------------------------------------------------------------------------


def cached_gradient(
    embed: Callable[[Tree, Any], Any],
    loss: Callable[[Tree, Any], tuple[jax.Array, Any]],
    params: Tree,
    chunks: Any,
) -> tuple[Tree, Any]:
    """The gradient of a loss that couples all examples of a batch, with the activations of one chunk at a time.

    Every chunk is embedded without keeping its activations, the loss is differentiated at the embeddings, and then each
    chunk is embedded once more to carry that gradient on to the parameters (Gao et al., 2021, arXiv:2101.06983). The
    sum is the gradient of the whole batch, not an approximation; it costs one more forward pass.

    Args:
        embed: `(params, chunk) -> embeddings`, a pytree of arrays [n, …]. The same both times for the same chunk: keys
            of random masks belong into the chunk.
        loss: `(params, embeddings) -> (scalar, aux)`, the embeddings stacked [chunks, n, …]. What it takes from
            `params` itself, such as a learned temperature, gets its gradient too.
        params: pytree of float arrays.
        chunks: pytree of arrays [chunks, n, …].

    Returns:
        The gradient with respect to `params`, and aux.
    """
    embeddings = jax.lax.map(lambda chunk: embed(params, chunk), chunks)
    gradients, aux = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, embeddings)
    of_params, of_embeddings = gradients

    def step(total: Tree, inputs: tuple[Any, Any]) -> tuple[Tree, None]:
        chunk, cotangents = inputs
        _, pull_back = jax.vjp(lambda params: embed(params, chunk), params)
        return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

    return jax.lax.scan(step, of_params, (chunks, of_embeddings))[0], aux
