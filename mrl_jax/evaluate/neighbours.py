"""Nearest-neighbour metrics: training embeddings form the database, ranked by cosine on each renormalised prefix.

A neighbour is relevant when its class is the query's. Definitions as in the MRL paper (section 4.3 and appendix):

    knn_top1       1 if the nearest neighbour is relevant
    precision@k    share of the k nearest that are relevant
    map@k          mean over queries of AP@k = Σ_{i ≤ k, relevant} precision@i / min(k, R), R relevant in the database

(The paper divides by k, which is the same wherever each class has k examples; dividing by min(k, R) lets a perfect
ranking of a rarer class reach 1.)
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.nesting import blocks, scale_by_power_of_two
from mrl_jax.system import processes

QUERIES_PER_BATCH = 256
GROUP_COLUMNS = 64  # columns per group; `top_k` compares the maxima of groups first
TILED_FROM_ROWS = 1 << 16  # of a database: its scores are then made and stored tile by tile, in less memory
TILE_COLUMNS = 1024  # a multiple of GROUP_COLUMNS
MAX_SCORES_BYTES = 1 << 28  # of the scores of all batches at a time, at all dims, in the tiled form


@partial(jax.jit, static_argnames=("dims", "k"))
def _search(queries_QxD: jax.Array, database_DxN: jax.Array, dims: tuple[int, ...], k: int) -> list[jax.Array]:
    """Indices [Q, k] of the nearest rows for each of `dims`. One matmul over all coordinates serves all dims."""
    return [top_k(scores_QxN, k) for scores_QxN in _scores(queries_QxD, database_DxN, dims)]


def _scores(queries_QxD: jax.Array, database_DxN: jax.Array, dims: tuple[int, ...]) -> Iterator[jax.Array]:
    """For each of `dims`, [Q, N] numbers that order the rows of the database as their cosines do."""
    dot_QxN = jnp.zeros((queries_QxD.shape[0], database_DxN.shape[1]))
    squares_N = jnp.zeros(database_DxN.shape[1])
    for start, stop in blocks(dims):
        block = database_DxN[start:stop]
        dot_QxN = dot_QxN + jnp.matmul(queries_QxD[:, start:stop], block, precision="highest")
        squares_N = squares_N + jnp.sum(block * block, axis=0)
        # The query's own norm is left out: it does not change the order of its neighbours.
        inverse_N = jnp.where(squares_N > 0, jax.lax.rsqrt(jnp.where(squares_N > 0, squares_N, 1.0)), 0.0)
        yield dot_QxN * inverse_N


@partial(jax.jit, static_argnames=("dims", "k", "n"))
def _search_tiles(queries_QxD: jax.Array, tiles_TxDxS: jax.Array, dims: tuple[int, ...], k: int, n: int) -> jax.Array:
    """As `_search`, [K, Q, k], of a database [D, T·S] in tiles of S columns, of which the first n count.

    A tile's scores at all dims are made while its products are in the cache, so each goes through memory once; of the
    scores that are stored, only the k groups with the largest maxima are read again, as in `top_k`. The columns from n
    on repeat one before, which changes no maximum of a group that has columns that count; leaving them out of every
    tile's scores would take as long as all else together.
    """
    queries, (tiles, _, columns) = queries_QxD.shape[0], tiles_TxDxS.shape
    groups = columns // GROUP_COLUMNS

    def scores_of(tile_DxS: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = jnp.stack(list(_scores(queries_QxD, tile_DxS, dims)))
        grouped = each.reshape(len(dims), queries, groups, GROUP_COLUMNS)
        return grouped, grouped.max(-1)

    scores, maxima = jax.lax.map(scores_of, tiles_TxDxS)
    maxima = maxima.transpose(1, 2, 0, 3).reshape(len(dims), queries, -1)
    maxima = jnp.where(jnp.arange(tiles * groups) * GROUP_COLUMNS < n, maxima, -jnp.inf)
    chosen = jnp.sort(jax.lax.top_k(maxima, k)[1], axis=-1)
    dim, query = jnp.arange(len(dims))[:, None, None], jnp.arange(queries)[None, :, None]
    candidates = scores[chosen // groups, dim, query, chosen % groups]
    columns_of = chosen[..., None] * GROUP_COLUMNS + jnp.arange(GROUP_COLUMNS)
    candidates = jnp.where(columns_of < n, candidates, -jnp.inf).reshape(len(dims), queries, -1)
    best = jax.lax.top_k(candidates, k)[1]
    return jnp.take_along_axis(chosen, best // GROUP_COLUMNS, axis=-1) * GROUP_COLUMNS + best % GROUP_COLUMNS


def top_k(scores_QxN: jax.Array, k: int) -> jax.Array:
    """Indices of the k largest scores per row, ties to the lower index: as `lax.top_k`, but ~10× faster on the CPU.

    The k largest lie in the k groups of columns with the largest maxima, so only those groups are sorted. Groups are
    visited in column order, which preserves the rule for ties.

    Args:
        scores_QxN: [Q, N].
        k: at most N.

    Returns:
        int32 [Q, k], largest score first.
    """
    rows, n = scores_QxN.shape
    if n <= 4 * k * GROUP_COLUMNS:
        return jax.lax.top_k(scores_QxN, k)[1]
    padded = jnp.pad(scores_QxN, ((0, 0), (0, -n % GROUP_COLUMNS)), constant_values=-jnp.inf)
    groups = padded.reshape(rows, -1, GROUP_COLUMNS)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(groups, axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(groups, chosen[..., None], axis=1).reshape(rows, -1)
    best = jax.lax.top_k(candidates, k)[1]
    return jnp.take_along_axis(chosen, best // GROUP_COLUMNS, axis=1) * GROUP_COLUMNS + best % GROUP_COLUMNS


def neighbours(queries: np.ndarray, database: np.ndarray, dims: Sequence[int], k: int) -> Iterator[np.ndarray]:
    """Find the nearest database rows by cosine on each prefix, in O(Q·N·D) for all dims together.

    Each process of a run searches for its share of the queries.

    Args:
        queries: [Q, D], of any length.
        database: [N, D], of any length.
        dims: prefix lengths, ascending.
        k: at most N.

    Returns:
        For each of `dims`, indices int32 [Q, k], nearest first.
    """
    if not len(queries):
        return iter(np.zeros((len(dims), 0, k), np.int32))
    queries, database = _scaled(queries), _scaled(database)
    n, batch, threads = len(database), QUERIES_PER_BATCH, 1
    if n >= TILED_FROM_ROWS and n > 2 * k * GROUP_COLUMNS and jax.default_backend() == "cpu":
        affordable = MAX_SCORES_BYTES // (4 * len(dims) * n)  # queries whose scores are held at a time
        threads = max(1, min(processes.core_count(), affordable // 8))  # one batch occupies few cores
        batch = max(8, min(batch, affordable // threads // 8 * 8))
        nearest_of: Any = partial(_search_tiles, tiles_TxDxS=_tiles(database), dims=tuple(dims), k=k, n=n)
    else:
        columns = jnp.asarray(np.ascontiguousarray(database.T))
        nearest_of = partial(_search, database_DxN=columns, dims=tuple(dims), k=k)

    def search(queries: np.ndarray) -> np.ndarray:
        nearest = np.empty((len(queries), len(dims), k), np.int32)

        def fill(start: int) -> None:
            chunk = queries[start : start + batch]
            padded = np.pad(chunk, ((0, batch - len(chunk)), (0, 0)))
            for at, indices in enumerate(nearest_of(jnp.asarray(padded))):
                nearest[start : start + len(chunk), at] = np.asarray(indices)[: len(chunk)]

        pool = ThreadPoolExecutor(threads)
        try:
            list(pool.map(fill, range(0, len(queries), batch)))
        finally:
            pool.shutdown(cancel_futures=True)  # interrupted, it does not finish the others first
        return nearest

    return iter(processes.by_rows(search, queries).swapaxes(0, 1))


def _scaled(z: np.ndarray) -> np.ndarray:
    return np.asarray(scale_by_power_of_two(jnp.asarray(z)))


def _tiles(database: np.ndarray) -> jax.Array:
    """The columns of [N, D] in tiles [T, D, TILE_COLUMNS]; the last one repeats the last row."""
    padded = np.pad(database, ((0, -len(database) % TILE_COLUMNS), (0, 0)), mode="edge")
    return jnp.asarray(padded.reshape(-1, TILE_COLUMNS, database.shape[1]).transpose(0, 2, 1))


def outcomes(indices: np.ndarray, labels: np.ndarray, database_labels: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Per-query values of every metric.

    Args:
        indices: database rows int [Q, min(k, N)], nearest first.
        labels: classes of the queries, int [Q].
        database_labels: classes of the database, int [N].
        k: as in the names of the metrics.

    Returns:
        By metric float32 [Q].
    """
    relevant = database_labels[indices] == labels[:, None]
    counts = np.bincount(database_labels, minlength=int(labels.max(initial=0)) + 1)[labels]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    average = (precision * relevant).sum(axis=1) / np.clip(counts, 1, k)
    values = {"knn_top1": relevant[:, 0], f"map@{k}": average, f"precision@{k}": relevant.sum(axis=1) / k}
    return {metric: value.astype(np.float32) for metric, value in values.items()}
