"""A funnel: shortlist documents by cosine on a prefix, narrow it on longer prefixes, rank by the whole embedding.

Kusupati et al. 2022, section 4.3. Fast; a document that the shortlist misses is missing from the results.

The first stage scans a prefix of all documents, chunk by chunk: O(Q · N · m). Each chunk's scores are reduced at once
to the maxima of bins of 1 to 32 rows, so that there is never an N × Q matrix, and the top-k that follows sorts up to 32
times fewer numbers. Of two good documents in one bin the worse is lost; there are enough bins to make that rare.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.search.layout import MAX_PACKED_ROWS, Documents, bin_maxima, chunk_products, dot
from mrl_jax.search.queries import SearchResults, check_queries, concatenate, map_batches, max_batch

MIN_BINS_PER_PLACE = 50  # bins per place on the shortlist, so that good documents rarely share one

Stages = Sequence[tuple[int, int]]  # (dim, size of the shortlist) of each stage


def search(documents: Documents, queries: np.ndarray, k: int, stages: Stages) -> SearchResults:
    """The k best of a shortlist.

    Args:
        documents: N embeddings, from `lay_out`.
        queries: float32 [Q, D].
        k: number of results per query.
        stages: (dim, size) with ascending dims and descending sizes: `[(64, 100)]` takes the 100 best by cosine on 64
            coordinates and ranks them by the whole embedding; `[(32, 400), (64, 200), (128, 50)]` narrows in between.

    Returns:
        `SearchResults` of scores and rows [Q, k].

    Raises:
        ValueError: stages are out of order, a dim was not laid out, a size is below k, or queries have another width.
    """
    check_queries(documents, queries, k)
    check_stages(stages, documents.dims, k)
    (dim, size), *further = stages
    if further and documents.rotation is not None:
        raise ValueError("a funnel over rotated documents has one stage: only the scanned copy is rotated")

    def search_batch(batch: np.ndarray, valid: int) -> tuple[np.ndarray, np.ndarray]:
        rows, _ = _first_stage(documents, batch, dim, size)
        scores, best = _narrow(documents.gather(rows), batch, rows, tuple(further), k)
        return np.asarray(scores)[:valid], np.asarray(best)[:valid]

    return concatenate(map_batches(search_batch, queries, max_batch(documents)), k)


def search_with_gaps(
    documents: Documents, queries: np.ndarray, k: int, dim: int, size: int
) -> tuple[SearchResults, np.ndarray]:
    """As `search` with the one stage (dim, size), and how far the k-th result is above what was left out.

    Returns:
        `SearchResults` [Q, k], and the gaps float32 [Q]: the inner product with the k-th result by the whole embedding,
        divided by the query's length, less the cosine of the last document on the shortlist, by its first `dim`
        coordinates; +inf where the shortlist has every document.
    """
    check_queries(documents, queries, k)
    check_stages([(dim, size)], documents.dims, k)

    def search_batch(batch: np.ndarray, valid: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rows, least = _first_stage(documents, batch, dim, size)
        scores, best = (np.asarray(part)[:valid] for part in _narrow(documents.gather(rows), batch, rows, (), k))
        lengths = np.linalg.norm(batch[:valid], axis=1)
        of_prefix = np.linalg.norm(documents.project(batch[:valid])[:, :dim], axis=1)
        last = np.asarray(least)[:valid]
        has_all = np.isneginf(last) | (rows.shape[1] < size)
        kth = scores[:, -1] if scores.shape[1] == k else np.full(valid, -np.inf)
        gaps = kth / np.where(lengths > 0, lengths, 1) - np.where(has_all, 0, last) / np.where(
            of_prefix > 0, of_prefix, 1
        )
        gaps = np.where(has_all, np.inf, gaps)
        return (scores, best), gaps.astype(np.float32)

    parts = map_batches(search_batch, queries, max_batch(documents))
    gaps = np.concatenate([np.zeros(0, np.float32), *(part for _, part in parts)])
    return concatenate([results for results, _ in parts], k), gaps


def shortlist(documents: Documents, queries: np.ndarray, dim: int, size: int) -> np.ndarray:
    """The first stage of a funnel by itself.

    Args:
        documents: N embeddings, from `lay_out`.
        queries: float32 [Q, D].
        dim: number of coordinates to compare, one of `documents.scan_dims`.
        size: documents per query.

    Returns:
        Rows int64 [Q, size] with about the largest cosines on the prefix, in no order; −1 where there are fewer.

    Raises:
        ValueError: the dim was not laid out, or queries have another width.
    """
    check_queries(documents, queries, size)

    def search_batch(batch: np.ndarray, valid: int) -> np.ndarray:
        return np.asarray(_first_stage(documents, batch, dim, size)[0])[:valid]

    parts = map_batches(search_batch, queries, max_batch(documents))
    rows = np.concatenate(parts) if parts else np.zeros((0, size), np.int64)
    return np.pad(rows.astype(np.int64), ((0, 0), (0, size - rows.shape[1])), constant_values=-1)


def check_stages(stages: Stages, dims: Sequence[int], k: int) -> None:
    """Raises ValueError unless the dims of the stages ascend and are among `dims`, and sizes descend to k or more."""
    if not stages:
        raise ValueError("a funnel has at least one stage (dim, size)")
    for dim, size in stages:
        if dim not in dims:
            raise ValueError(f"a stage at dim {dim} is not possible; the dims are {list(dims)}")
        if size < k:
            raise ValueError(f"a stage keeps {size} documents; at least k={k}")
    if any(a[0] >= b[0] or a[1] < b[1] for a, b in pairwise(stages)):
        raise ValueError(f"stages {list(stages)} are out of order; dims must ascend and sizes must not grow")


def _first_stage(documents: Documents, queries: np.ndarray, dim: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Rows [Q, ≤ size], and the least of their scores [Q]."""
    if dim not in documents.scan_dims:
        raise ValueError(f"dim {dim} was not laid out; there are {list(documents.scan_dims)}")
    packed = 1 << int(np.log2(np.clip(len(documents) / (MIN_BINS_PER_PLACE * size), 1, MAX_PACKED_ROWS)))
    projected = documents.project(queries).astype(np.float32)
    found: tuple[jax.Array, jax.Array] = _scan(
        projected, documents.chunks, documents.bias, documents.inverse_lengths[dim], dim, size, packed
    )
    return found


@partial(jax.jit, static_argnames=("dim", "size", "packed"))
def _scan(
    queries_QxD: jax.Array,
    chunks: jax.Array,
    bias: jax.Array,
    inverse_lengths: jax.Array,
    dim: int,
    size: int,
    packed: int,
) -> tuple[jax.Array, jax.Array]:
    """Rows [Q, size] with about the largest cosines on the prefix, in no order; −1 where there are too few.

    The second array [Q] has the least of these cosines, times the length of the query's prefix. Of every `packed` rows
    only the best stays, with its place among them in the low bits of its score.
    """
    place = jnp.arange(packed, dtype=jnp.int32)[:, None]

    def scan_chunk(c: jax.Array) -> jax.Array:
        tile = chunk_products(queries_QxD, chunks, c, dim) * inverse_lengths[c] + bias[c]
        bits = jax.lax.bitcast_convert_type(tile, jnp.int32).reshape(len(tile), packed, -1)
        placed = jax.lax.bitcast_convert_type((bits & -packed) | place, jnp.float32)
        placed = jnp.where(tile.reshape(bits.shape) > -jnp.inf, placed, -jnp.inf)
        return bin_maxima(placed.reshape(tile.shape), packed)

    maxima = jnp.moveaxis(jax.lax.map(scan_chunk, jnp.arange(len(chunks))), 0, 1)
    bins = maxima.shape[-1]
    flat = maxima.reshape(len(queries_QxD), -1)
    best, at = jax.lax.top_k(flat, min(size, flat.shape[1]))
    place_of_best = jax.lax.bitcast_convert_type(best, jnp.int32) & (packed - 1)
    rows = (at // bins) * chunks.shape[-1] + place_of_best * bins + at % bins
    # Not best[:, -1]: of a top-k that is sliced, XLA on a CPU sorts all the numbers, which takes ten times as long.
    return jnp.where(best > -jnp.inf, rows, -1), jnp.min(best, axis=1)


@partial(jax.jit, static_argnames=("stages", "k"))
def _narrow(
    source: jax.Array, queries_QxD: jax.Array, rows: jax.Array, stages: tuple[tuple[int, int], ...], k: int
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows [Q, k] of the best by whole embedding, after the further stages of a funnel.

    `source` is [N, D] or, gathered already, [Q, size, D]. One query at a time: its candidates fit the cache.
    """
    gathered = source.ndim == 3

    def narrow_query(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, candidates = inputs[:2]
        x = inputs[2] if gathered else source[candidates]
        for dim, size in stages:
            dots, squares = dot(x[:, :dim], query[:dim]), jnp.sum(x[:, :dim] ** 2, axis=1)
            cosines = jnp.where(squares > 0, dots * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
            cosines = jnp.where(candidates >= 0, cosines, -jnp.inf)
            best = jax.lax.top_k(cosines, min(size, len(candidates)))[1]
            x, candidates = x[best], candidates[best]
        scores, best = jax.lax.top_k(jnp.where(candidates >= 0, dot(x, query), -jnp.inf), min(k, len(candidates)))
        return scores, candidates[best]

    results: tuple[jax.Array, jax.Array] = jax.lax.map(
        narrow_query, (queries_QxD, rows, source) if gathered else (queries_QxD, rows)
    )
    return results
