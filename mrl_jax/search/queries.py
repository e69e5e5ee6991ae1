"""Queries: what is checked of them, how batches of them share the cores, and what a search returns for them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from mrl_jax.search.layout import Documents, check_length
from mrl_jax.system import processes

MAX_BATCH_QUERIES = 256  # queries that are searched for together
MAX_BATCH_QUERIES_ON_DISK = 32  # the same where documents are read from a file: all that is read is held in memory
PRODUCT_ROWS = 1024  # rows that `products` holds in float64 at a time
CORE_QUERIES = 64  # queries that justify one more core

T = TypeVar("T")


class SearchResults(NamedTuple):
    """The k best documents of each query, best first."""

    scores: np.ndarray  # float32 [Q, k], inner products of whole embeddings
    rows: np.ndarray  # int [Q, k]; −1, with a score of −inf, where there are fewer than k documents


def leave_out(results: SearchResults, own: np.ndarray | None) -> SearchResults:
    """The best k of k + 1 results without the document `own` [Q] of each query, −1 for none; None: all results."""
    if own is None:
        return results
    is_own = (results.rows == own[:, None]) & (own >= 0)[:, None]
    order = np.argsort(is_own, axis=1, kind="stable")[:, :-1]
    return SearchResults(*(np.take_along_axis(part, order, axis=1) for part in results))


def check_queries(documents: Documents, queries: np.ndarray, k: int) -> None:
    """Raises ValueError for queries of a wrong shape, not finite or of an extreme length, and for k below 1."""
    if queries.ndim != 2 or queries.shape[1] != documents.dims[-1]:
        raise ValueError(f"queries have shape {queries.shape}; the documents take [Q, {documents.dims[-1]}]")
    if k < 1:
        raise ValueError(f"k={k} is not allowed; at least 1")
    if not np.isfinite(queries).all():
        raise ValueError("queries hold numbers that are not finite")
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    for length in (lengths.max(initial=0.0), lengths.min(initial=1.0, where=lengths > 0)):
        check_length("a query", float(length))


def max_batch(documents: Documents) -> int:
    """How many queries are searched for together."""
    return MAX_BATCH_QUERIES_ON_DISK if documents.on_disk else MAX_BATCH_QUERIES


def batches(queries: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of at most `size` queries, padded to a power of two (few shapes to compile), and how many are real."""
    for start in range(0, len(queries), size):
        batch = np.asarray(queries[start : start + size], np.float32)
        padded = 1 << (len(batch) - 1).bit_length()
        yield np.pad(batch, ((0, padded - len(batch)), (0, 0))), len(batch)


def map_batches(search: Callable[[np.ndarray, int], T], queries: np.ndarray, size: int) -> list[T]:
    """`search(batch, valid)` of each batch, in order; in parallel on a CPU, where one batch occupies few cores."""
    cores = core_count()
    parts = batches(queries, min(size, max(CORE_QUERIES, -(-len(queries) // cores))))
    if cores == 1 or len(queries) <= CORE_QUERIES:
        return [search(*part) for part in parts]
    pool = ThreadPoolExecutor(cores)
    try:
        return list(pool.map(lambda part: search(*part), parts))
    finally:
        pool.shutdown(cancel_futures=True)


def core_count() -> int:
    """CPU cores of this process; 1 where an accelerator does the work."""
    return processes.core_count() if jax.default_backend() == "cpu" else 1


def products(x: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Inner products [n] of rows [n, D] and a query float64 [D], in float64; equal rows have equal products.

    Unlike a matmul's, each row's sum is independent of where the row stands, so that copies of a document tie.
    """
    sums = np.empty(len(x))
    for start in range(0, len(x), PRODUCT_ROWS):
        sums[start : start + PRODUCT_ROWS] = (x[start : start + PRODUCT_ROWS].astype(np.float64) * query).sum(axis=1)
    return sums


def concatenate(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> SearchResults:
    """The batches' scores and rows as one, padded to k columns."""
    if not parts:
        return SearchResults(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
    scores, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    missing = ((0, 0), (0, k - rows.shape[1]))
    return SearchResults(
        np.pad(scores, missing, constant_values=-np.inf),
        np.pad(rows.astype(np.int64), missing, constant_values=-1),
    )
