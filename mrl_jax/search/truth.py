"""Exact search by brute force over stored embeddings, block by block: what recall is measured against.

One rule for every back end: the truth is computed here, in float64 and from the stored embeddings themselves. No
search that is to be measured has a part in it, since an index that asked for everything loses a document then loses
it now, and would be compared with itself. Cost: O(Q · N · D); one block of embeddings is in memory at a time.
"""

from collections.abc import Iterable

import numpy as np

from mrl_jax.search.queries import SearchResults, products

BATCH_QUERIES = 256  # queries whose products with a block are in memory together
FLOAT64_EPS = float(np.finfo(np.float64).eps)
TIE_TOLERANCE = 8 * float(np.finfo(np.float32).eps)  # of float32 inner products of unit vectors


def best_of_blocks(blocks: Iterable[tuple[np.ndarray, np.ndarray]], queries: np.ndarray, k: int) -> SearchResults:
    """The k documents with the largest inner products, ties to the lower handle.

    Args:
        blocks: (handles int [n], embeddings float32 [n, D]) of all documents, as `Index.blocks` yields them.
        queries: float32 [Q, D].
        k: number of results per query.

    Returns:
        `SearchResults` [Q, k]; the rows are handles.
    """
    queries64 = queries.astype(np.float64)
    scores, best = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1, np.int64)
    for handles, vectors in blocks:
        x = vectors.astype(np.float64)
        longest = float(np.linalg.norm(x, axis=1).max(initial=0.0))
        for start in range(0, len(queries), BATCH_QUERIES):
            for q, dots in enumerate(queries64[start : start + BATCH_QUERIES] @ x.T, start):
                # A matmul may round copies of an embedding differently: those near the k-th are summed again, alike.
                rounding = 2 * len(queries64[q]) * FLOAT64_EPS * longest * float(np.linalg.norm(queries64[q]))
                at = np.flatnonzero(dots >= scores[q, -1] - rounding)
                if len(at) > k:
                    at = at[dots[at] >= np.partition(dots[at], -k)[-k] - rounding]
                all_scores = np.append(scores[q], products(x[at], queries64[q]))
                all_handles = np.append(best[q], handles[at])
                order = np.lexsort((all_handles, -all_scores))[:k]
                scores[q], best[q] = all_scores[order], all_handles[order]
    return SearchResults(scores.astype(np.float32), best)


def recall(results: SearchResults, truth: SearchResults) -> np.ndarray:
    """Share [Q] of the k best that a search found.

    Where several documents are as near as the k-th best, as copies are, it does not matter which of them is returned.
    """
    wanted = (truth.rows >= 0).sum(axis=1)
    last = np.take_along_axis(truth.scores, np.maximum(wanted - 1, 0)[:, None], axis=1)
    same = (results.rows[:, :, None] == truth.rows[:, None, :]) & (truth.rows >= 0)[:, None, :]
    as_near = (results.rows >= 0) & ~same.any(axis=2) & (results.scores >= last - TIE_TOLERANCE)
    replaceable = (truth.rows >= 0) & ~same.any(axis=1) & (truth.scores <= last + TIE_TOLERANCE)
    hits = same.any(axis=1).sum(axis=1) + np.minimum(as_near.sum(axis=1), replaceable.sum(axis=1))
    return np.asarray(hits / np.maximum(wanted, 1))
