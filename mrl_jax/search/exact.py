"""Exact search: scan a prefix of all documents, then read more dims of those that Cauchy–Schwarz cannot rule out.

Why it is exact. The inner product of query q and document x splits at dim m into that of their prefixes and that of
their tails, and the latter is at most |q[m:]| |x[m:]|:

    <q, x>  ≤  <q[:m], x[:m]> + |q[m:]| |x[m:]|.

So every document has an upper bound, and a bin of rows has the largest bound of its rows. Documents of the most
promising bins are scored in full; the k-th best of these scores, τ, is a lower bound of the k-th best overall. Only
bins whose upper bound reaches τ can hold one of the k best. Rounding, of bfloat16 operands too, is bounded and added
to the bounds; the last few candidates are ranked in float64.

Cost: O(Q · N · m) for the scan, and O(D) per candidate. Where the bound rules out too little, the query is searched
again with m = D: in memory by the same scan, of a file by reading it through once for all such queries of a batch.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.evaluate.neighbours import top_k
from mrl_jax.search.layout import CHUNK_ROWS, FLOAT32_EPS, Documents, bin_maxima, chunk_products, dot
from mrl_jax.search.queries import (
    MAX_BATCH_QUERIES,
    SearchResults,
    batches,
    check_queries,
    concatenate,
    map_batches,
    max_batch,
    products,
)

BIN_ROWS = 16  # rows that share an upper bound, the largest of theirs
SPARE_BINS = 8  # bins beyond k, half of those that are scored in full at first
READ_ROWS = 8192  # embeddings that are read from a file at a time
# Of all bins; where more are promising, reading every document in full is faster: of a file, for many queries at once.
MAX_PROMISING_SHARE, MIN_PROMISING_SHARE = 0.1, 0.01


class Work(NamedTuple):
    """What a search did, mean over queries."""

    scanned: int  # dims that were read of every document
    candidates: float  # documents of which more was read
    full: float  # share of queries that every document was read for in full


class _BatchResult(NamedTuple):
    """Of the `valid` queries of a batch."""

    scores: np.ndarray  # float32 [valid, k]
    rows: np.ndarray  # int64 [valid, k]
    read: int  # documents of which more was read, sum over queries
    hard: np.ndarray  # int64, queries that are left to search from the whole embedding


def search(documents: Documents, queries: np.ndarray, k: int, start: int | None = None) -> tuple[SearchResults, Work]:
    """The k documents with the largest inner products, ties to the lower row: those of a float64 brute-force search.

    Args:
        documents: N embeddings, from `lay_out`.
        queries: float32 [Q, D].
        k: number of results per query.
        start: dim of the prefix that is read of every document, one that was laid out; the whole embedding by default.

    Returns:
        `SearchResults` of scores and rows [Q, k], and the `Work` that it took.

    Raises:
        ValueError: a dim was not laid out, queries have another width, or k is below 1.
    """
    check_queries(documents, queries, k)
    start = documents.dims[-1] if start is None else start
    if start not in documents.scan_dims:
        raise ValueError(f"start={start} was not laid out; there are {list(documents.scan_dims)}")
    reachable_k = min(k, len(documents))

    in_file = documents.dims[-1] not in documents.scan_dims  # what is beyond the prefix
    # Reading the file through costs the same for one query and for many.
    max_share = max(MIN_PROMISING_SHARE, MAX_PROMISING_SHARE / max(1, len(queries))) if in_file else MAX_PROMISING_SHARE

    def search_batch(batch: np.ndarray, valid: int) -> _BatchResult:
        first = _search_batch(documents, batch, valid, reachable_k, start, max_share)
        hard, read = first.hard, first.read
        if in_file:
            return first
        for some, count in batches(batch[hard], max_batch(documents)):
            again = _search_batch(documents, some, count, reachable_k, documents.dims[-1], max_share)
            first.scores[hard[:count]], first.rows[hard[:count]] = again.scores, again.rows
            read, hard = read + again.read, hard[count:]
        return first._replace(read=read)

    parts = map_batches(search_batch, queries, max_batch(documents))
    results = concatenate([(part.scores, part.rows) for part in parts], k)
    starts = np.cumsum([0, *(len(part.rows) for part in parts)])
    hard = np.concatenate([np.zeros(0, int), *(begin + part.hard for begin, part in zip(starts, parts, strict=False))])
    read = sum(part.read for part in parts)
    for begin in range(0, len(hard) if in_file else 0, MAX_BATCH_QUERIES):
        some = hard[begin : begin + MAX_BATCH_QUERIES]
        again = _read_through(documents, np.asarray(queries[some], np.float32), reachable_k)
        results.scores[some, :reachable_k], results.rows[some, :reachable_k] = again
        read += len(some) * len(documents)
    count = max(1, len(queries))
    return results, Work(start, read / count, len(hard) / count)


def _search_batch(
    documents: Documents, queries: np.ndarray, valid: int, k: int, start: int, max_share: float
) -> _BatchResult:
    """The first `valid` queries, but those where the bound on the prefix rules out too few documents."""
    prefixes = documents.project(queries)[:, :start]
    squares = (queries.astype(np.float64) ** 2).sum(axis=1)
    # As for the documents: cancellation must not make it too small.
    rest = np.maximum(squares - (prefixes**2).sum(axis=1), 0) + queries.shape[1] * 1e-15 * squares
    tails = np.sqrt(rest) * (1 + FLOAT32_EPS) * (start < queries.shape[1])
    size = documents.chunks.shape[-1]
    bins = min(2 * k + 2 * SPARE_BINS, documents.chunks.shape[0] * size // BIN_ROWS)
    bounds_on_device, rows_on_device = _upper_bounds(
        prefixes.astype(np.float32), tails.astype(np.float32), documents.chunks, documents.bias,
        documents.tail_lengths[start], start, bins,
    )  # fmt: skip
    gathered = documents.gather(rows_on_device)
    scores = np.asarray(_full_scores(gathered, documents.bias, queries, rows_on_device))
    rows, bounds = np.asarray(rows_on_device), np.asarray(bounds_on_device)
    best_scores, best_rows = np.full((valid, k), -np.inf, np.float32), np.full((valid, k), -1, np.int64)
    read, hard, max_promising = 0, [], bounds.shape[1] * max_share
    for q in range(valid):
        query = queries[q]
        # Below the exact score of the k-th best.
        kth = float(np.partition(scores[q], -k)[-k]) - 2 * _full_rounding(documents, query)
        promising = np.flatnonzero(bounds[q] >= kth - _bound_rounding(documents, prefixes[q]))
        if len(promising) <= bins:
            candidates = rows[q][(scores[q] >= kth) & (scores[q] > -np.inf)]
        elif len(promising) > max_promising and start < documents.dims[-1]:
            hard.append(q)
            continue
        else:
            candidates = _rule_out(documents, query, _rows_of_bins(promising, size), kth, start)
        read += max(len(promising), bins) * BIN_ROWS
        best_scores[q], best_rows[q] = _rank(documents, query, candidates, k)
    return _BatchResult(best_scores, best_rows, read, np.array(hard, int))


@partial(jax.jit, static_argnames=("dim", "best_bins"))
def _upper_bounds(
    queries_QxD: jax.Array,
    tails_Q: jax.Array,
    chunks: jax.Array,
    bias: jax.Array,
    tail_lengths: jax.Array,
    dim: int,
    best_bins: int,
) -> tuple[jax.Array, jax.Array]:
    """The largest upper bound in each bin [Q, C · CHUNK_ROWS / BIN_ROWS], and the rows [Q, n · BIN_ROWS] of the best n.

    Row r of a chunk is in its bin r mod (CHUNK_ROWS / BIN_ROWS).
    """

    def bound_chunk(c: jax.Array) -> jax.Array:
        tile = chunk_products(queries_QxD, chunks, c, dim) + tails_Q[:, None] * tail_lengths[c] + bias[c]
        return bin_maxima(tile, BIN_ROWS)

    maxima = jax.lax.map(bound_chunk, jnp.arange(len(chunks)))
    bounds = jnp.moveaxis(maxima, 0, 1).reshape(len(queries_QxD), -1)
    return bounds, _rows_of_bins(top_k(bounds, best_bins), chunks.shape[-1])


def _rows_of_bins(bins: Any, size: int) -> Any:
    """The rows [..., n · BIN_ROWS] of bins [..., n], of chunks of `size` rows; those from N on are of no document."""
    per_chunk = size // BIN_ROWS
    rows = (bins // per_chunk * size + bins % per_chunk)[..., None] + np.arange(BIN_ROWS) * per_chunk
    return rows.reshape(*bins.shape[:-1], -1)


@jax.jit
def _full_scores(source: jax.Array, bias: jax.Array, queries_QxD: jax.Array, rows: jax.Array) -> jax.Array:
    """Inner products [Q, n] of whole embeddings with the documents `rows`; −inf for rows of no document."""
    gathered = source.ndim == 3

    def score_query(inputs: tuple[jax.Array, ...]) -> jax.Array:
        query, candidates = inputs[:2]
        x = inputs[2] if gathered else source[jnp.minimum(candidates, len(source) - 1)]
        return dot(x, query) + bias.reshape(-1)[candidates]

    inputs = (queries_QxD, rows, source) if gathered else (queries_QxD, rows)
    scores: jax.Array = jax.lax.map(score_query, inputs)
    return scores


def _read_through(documents: Documents, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [Q, k] of the best, from whole embeddings that are read block by block."""
    vectors, bias, _ = documents.host
    roundings = np.array([2 * _full_rounding(documents, query) for query in queries], np.float32)
    kth = np.full((len(queries), k), -np.inf, np.float32)  # the k largest inner products so far, the smallest first
    # Of each query the rows, with their inner products, that may be among the best of those that were read.
    promising: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
    for start in range(0, len(vectors), READ_ROWS):
        block = vectors[start : start + READ_ROWS]
        dots = queries @ block.T + bias[start : start + len(block)]
        kth = np.partition(np.concatenate([kth, dots], axis=1), -k, axis=1)[:, -k:]
        least = kth.min(axis=1) - roundings
        for q, some in enumerate(promising):
            rows = np.flatnonzero((dots[q] >= least[q]) & (dots[q] > -np.inf))
            some.append((start + rows, dots[q, rows]))
    best = []
    for q, query in enumerate(queries):
        rows, dots = (np.concatenate(part) for part in zip(*promising[q], strict=True))
        best.append(_rank(documents, query, rows[dots >= kth[q].min() - roundings[q]], k))
    scores, found = (np.stack(part) for part in zip(*best, strict=True))
    return scores, found


def _rule_out(documents: Documents, query: np.ndarray, rows: np.ndarray, kth: float, start: int) -> np.ndarray:
    """Those of `rows` whose inner product may reach `kth`. It is summed dim by dim; rows that cannot reach it leave."""
    source, bias, tails = documents.host
    rows = rows[bias[rows] == 0]
    further = [m for m in documents.scan_dims if m > start] if documents.rotation is None else []
    sums, summed = np.zeros(len(rows), np.float32), 0
    for m in (start, *further, len(query)) if further else (len(query),):
        sums = sums + _partial_products(source, rows, query, summed, m)
        rest = float(np.linalg.norm(query[m:])) * (1 + FLOAT32_EPS) * tails[m][rows] if m < len(query) else 0.0
        may_reach = sums + rest >= kth - 2 * _full_rounding(documents, query)
        rows, sums, summed = rows[may_reach], sums[may_reach], m
    return rows


def _partial_products(source: Any, rows: np.ndarray, query: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Inner products of the coordinates start…stop, float32 [n]; `CHUNK_ROWS` at a time, so that little is copied."""
    sums = np.empty(len(rows), np.float32)
    for i in range(0, len(rows), CHUNK_ROWS):
        sums[i : i + CHUNK_ROWS] = source[rows[i : i + CHUNK_ROWS]][:, start:stop] @ query[start:stop]
    return sums


def _rank(documents: Documents, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [k] of the best, by inner products in float64, ties to the lower row."""
    source, query64 = documents.host[0], query.astype(np.float64)
    scores, best = np.full(k, -np.inf), np.full(k, -1)
    for start in range(0, len(rows), CHUNK_ROWS):
        some = rows[start : start + CHUNK_ROWS]
        all_scores = np.append(scores, products(source[some], query64))
        all_rows = np.append(best, some)
        order = np.lexsort((all_rows, -all_scores))[:k]
        scores, best = all_scores[order], all_rows[order]
    return scores.astype(np.float32), best


def _full_rounding(documents: Documents, query: np.ndarray) -> float:
    """By how much float32 may misjudge an inner product of whole embeddings."""
    return len(query) * FLOAT32_EPS * documents.max_length * float(np.linalg.norm(query))


def _bound_rounding(documents: Documents, prefix: np.ndarray) -> float:
    """By how much an upper bound may come out too small: the operands' rounding, and that of float32 sums."""
    rounded = prefix.astype(documents.dtype).astype(np.float64)
    length, error = float(np.linalg.norm(prefix)), float(np.linalg.norm(prefix - rounded))
    longest = documents.max_length + documents.max_rounding
    sums = (len(prefix) + 8) * FLOAT32_EPS * (length + error) * longest
    return error * longest + length * documents.max_rounding + sums
