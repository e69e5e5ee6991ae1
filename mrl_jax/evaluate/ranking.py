"""How well a ranking finds what was judged relevant, and how well cosines follow gold scores.

With G the gains of the documents in ranked order, R the number of relevant ones (gain > 0) of the query:

    recall@k    relevant among the first k / R
    mrr@k       1 / rank of the first relevant document, 0 beyond k
    map@k       Σ_{i ≤ k, relevant} precision@i / R
    ndcg@k      Σ_{i ≤ k} G_i / log₂(i + 1) over the same sum for the best order

as trec_eval computes them (recall_k, recip_rank, map_cut_k, ndcg_cut_k), which BEIR does too. A query without relevant
documents scores 0. Documents of equal score rank by their row.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

from mrl_jax.evaluate import neighbours

DEPTH = 100  # documents that are ranked for a query
METRICS = ("ndcg@10", "mrr@10", "map@10", "recall@1", "recall@10", "recall@100")


def ranked(
    queries: np.ndarray, documents: np.ndarray, judgments: np.ndarray, dims: Sequence[int]
) -> Iterator[dict[str, np.ndarray]]:
    """For each of `dims` every metric, float32 [Q], of ranking by cosine on the prefix.

    `queries` [Q, D], `documents` [N, D], `judgments` int [j, 3] of query row, document row and gain. One pass of
    O(Q·N·D) for all dims.
    """
    depth = min(DEPTH, len(documents))
    for indices in neighbours.neighbours(queries, documents, dims, depth):
        yield outcomes(indices, judgments, len(documents))


def outcomes(indices: np.ndarray, judgments: np.ndarray, documents: int) -> dict[str, np.ndarray]:
    """Every metric, float32 [Q], of the rankings `indices` [Q, depth], best first, of a collection of N `documents`."""
    queries, depth = indices.shape
    gains = csr_array((judgments[:, 2].astype(float), (judgments[:, 0], judgments[:, 1])), (queries, documents))
    found = np.asarray(gains[np.repeat(np.arange(queries), depth), indices.ravel()]).reshape(queries, depth)
    relevant = found > 0
    positive = judgments[judgments[:, 2] > 0]
    count = np.maximum(np.bincount(positive[:, 0], minlength=queries), 1)
    top = slice(None, 10)
    rank = np.arange(1, depth + 1)
    precision = np.cumsum(relevant, axis=1) / rank
    discount = 1 / np.log2(rank[top] + 1)
    values = {
        "ndcg@10": found[:, top] @ discount / _ideal(positive, queries),
        "mrr@10": np.max(relevant[:, top] / rank[top], axis=1),
        "map@10": np.sum((precision * relevant)[:, top], axis=1) / count,
    } | {f"recall@{k}": relevant[:, :k].sum(axis=1) / count for k in (1, 10, 100)}
    return {metric: value.astype(np.float32) for metric, value in values.items()}


def _ideal(positive: np.ndarray, queries: int, k: int = 10) -> np.ndarray:
    """The discounted gain [Q] of the best order of the relevant documents; 1 where there are none."""
    order = np.lexsort((-positive[:, 2], positive[:, 0]))
    query, gain = positive[order, 0], positive[order, 2]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    terms = np.where(place < k, gain / np.log2(place + 2), 0.0)
    ideal: np.ndarray = np.bincount(query, terms, minlength=queries)
    return np.where(ideal > 0, ideal, 1.0)


def spearman(
    anchors: np.ndarray, others: np.ndarray, scores: np.ndarray, dims: Sequence[int]
) -> Iterator[tuple[float, np.ndarray]]:
    """For each of `dims` Spearman's correlation ρ of the pairs' cosines with their gold `scores` [n].

    With it the pairs' shares in ρ, float32 [n], whose mean it is: with x and y the standardised ranks,

        x y − ρ (x² + y²) / 2 + ρ,

    the influence function of a correlation. So resampling their mean approximates resampling ρ itself (for ranks kept
    as they are), and differences between models can be treated as means of paired numbers.
    """
    y = _standardised(scores)
    for cosines in prefix_cosines(anchors, others, dims):
        x = _standardised(cosines)
        rho = float(np.mean(x * y))
        yield rho, (x * y - rho * (x * x + y * y) / 2 + rho).astype(np.float32)


def prefix_cosines(a: np.ndarray, b: np.ndarray, dims: Sequence[int]) -> Iterator[np.ndarray]:
    """Cosine [n] of each pair of rows, in float64, for each prefix; 0 where one of them is zero."""
    for m in dims:
        x, y = a[:, :m].astype(np.float64), b[:, :m].astype(np.float64)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        yield np.where(lengths > 0, np.sum(x * y, axis=1) / np.where(lengths > 0, lengths, 1.0), 0.0)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Ranks (the mean rank for ties) with mean 0 and variance 1; zeros where all values are equal."""
    ranks: np.ndarray = rankdata(values)
    ranks = ranks - ranks.mean()
    spread = float(ranks.std())
    return ranks / spread if spread > 0 else ranks
