"""Metrics of a ranking against relevance judgments, and of cosines against gold scores.

With G the gains of the documents in ranked order, R the number of relevant ones (gain > 0) of the query:

    recall@k    relevant among the first k / R
    mrr@k       1 / rank of the first relevant document, 0 beyond k
    map@k       Σ_{i ≤ k, relevant} precision@i / R
    ndcg@k      Σ_{i ≤ k} G_i / log₂(i + 1) over the same sum for the best order

as trec_eval computes them (recall_k, recip_rank, map_cut_k, ndcg_cut_k), which BEIR does too. A query without relevant
documents scores 0. Documents of equal score are ranked by row number.

Where queries are documents, a query's own is no candidate for it, as it would be its first answer: BEIR's rule
(`ignore_identical_ids`). If it is judged relevant, it counts in R and is never found, which is BEIR's way, too.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import rankdata

from mrl_jax.evaluate import neighbours

DEPTH = 100  # documents ranked per query
METRICS = ("ndcg@10", "mrr@10", "map@10", "recall@1", "recall@10", "recall@100")


def rank(
    queries: np.ndarray,
    documents: np.ndarray,
    judgments: np.ndarray,
    dims: Sequence[int],
    own: np.ndarray | None = None,
    find: Callable[..., Iterator[np.ndarray]] = neighbours.neighbours,
) -> Iterator[dict[str, np.ndarray]]:
    """Rank documents by cosine on each prefix and score the rankings, in O(Q·N·D) for all dims together.

    Args:
        queries: [Q, D].
        documents: [N, D].
        judgments: int [j, 3], query row, document row and gain.
        dims: prefix lengths, ascending.
        own: int [m, 2], query row and the row of a document that is no candidate for it.
        find: of `quantised`, for documents that are stored so.

    Yields:
        For each of `dims`, float64 [Q] by metric.
    """
    for indices in find(queries, documents, dims, depth(own, len(documents))):
        yield outcomes(without_own(indices, own, len(documents)), judgments, len(documents))


def depth(own: np.ndarray | None, documents: int) -> int:
    """How many documents to find per query, so that `DEPTH` are left where its own are left out."""
    most = 0 if own is None else int(np.bincount(own[:, 0]).max(initial=0))
    return min(DEPTH + most, documents)


def without_own(indices: np.ndarray, own: np.ndarray | None, documents: int) -> np.ndarray:
    """The rankings [Q, depth] without the queries' own documents, `DEPTH` of each."""
    if own is not None and len(own):
        excluded = csr_array((np.ones(len(own), bool), (own[:, 0], own[:, 1])), (len(indices), documents))
        indices = _leave_out(indices, excluded)
    return indices[:, :DEPTH]


def _leave_out(indices: np.ndarray, excluded: csr_array) -> np.ndarray:
    """The rankings [Q, depth] without the documents that are `excluded` [Q, N]; −1 fills up the end."""
    out = _lookup(excluded, indices)
    order = np.argsort(out, axis=1, kind="stable")
    return np.take_along_axis(np.where(out, -1, indices), order, axis=1)


def _lookup(table: csr_array, indices: np.ndarray) -> np.ndarray:
    """The entries of a table [Q, N] at the columns `indices` [Q, depth] of each row."""
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    return np.asarray(table[rows, indices.ravel()]).reshape(indices.shape)


def outcomes(indices: np.ndarray, judgments: np.ndarray, documents: int) -> dict[str, np.ndarray]:
    """Per-query values of every metric.

    Args:
        indices: document rows int [Q, depth], best first; −1 for none.
        judgments: int [j, 3], as for `rank`.
        documents: N, the size of the collection.

    Returns:
        By metric float64 [Q].
    """
    queries, depth = indices.shape
    gains = csr_array((judgments[:, 2].astype(float), (judgments[:, 0], judgments[:, 1])), (queries, documents))
    ranked_gains = np.where(indices < 0, 0, _lookup(gains, indices))
    relevant = ranked_gains > 0
    positive = judgments[judgments[:, 2] > 0]
    count = np.maximum(np.bincount(positive[:, 0], minlength=queries), 1)
    top = slice(None, 10)
    ranks = np.arange(1, depth + 1)
    precision = np.cumsum(relevant, axis=1) / ranks
    discount = 1 / np.log2(ranks[top] + 1)
    values = {
        "ndcg@10": ranked_gains[:, top] @ discount / _ideal(positive, queries),
        "mrr@10": np.max(relevant[:, top] / ranks[top], axis=1),
        "map@10": np.sum((precision * relevant)[:, top], axis=1) / count,
    } | {f"recall@{k}": relevant[:, :k].sum(axis=1) / count for k in (1, 10, 100)}
    return values


def _ideal(positive: np.ndarray, queries: int, k: int = 10) -> np.ndarray:
    """The discounted gain [Q] of the best order of the relevant documents; 1 where there are none."""
    order = np.lexsort((-positive[:, 2], positive[:, 0]))
    query, gain = positive[order, 0], positive[order, 2]
    position = np.arange(len(query)) - np.searchsorted(query, query)  # of each document in the best order, from 0
    terms = np.where(position < k, gain / np.log2(position + 2), 0.0)
    ideal: np.ndarray = np.bincount(query, terms, minlength=queries)
    return np.where(ideal > 0, ideal, 1.0)


def spearman(
    anchors: np.ndarray, others: np.ndarray, scores: np.ndarray, dims: Sequence[int]
) -> Iterator[tuple[float, np.ndarray]]:
    """Spearman's correlation ρ of the cosines of pairs with their gold scores, at each prefix.

    Each pair also gets its contribution to ρ; the mean of the contributions is ρ. With standardised ranks x and y it is

        x y − ρ (x² + y²) / 2 + ρ,

    the influence function of a correlation. So resampling their mean approximates resampling ρ itself (with ranks held
    fixed), and differences between models can be treated as means of paired numbers.

    Args:
        anchors, others: embeddings [n, D] of the two members of each pair.
        scores: gold scores [n].
        dims: prefix lengths.

    Yields:
        For each of `dims`, ρ and the contributions float32 [n].
    """
    y = _standardise_ranks(scores)
    for cosines in prefix_cosines(anchors, others, dims):
        x = _standardise_ranks(cosines)
        rho = float(np.mean(x * y))
        yield rho, (x * y - rho * (x * x + y * y) / 2 + rho).astype(np.float32)


def prefix_cosines(a: np.ndarray, b: np.ndarray, dims: Sequence[int]) -> Iterator[np.ndarray]:
    """Cosine of each pair of rows [n, D], float64 [n], for each prefix; 0 if one of the two is zero."""
    for m in dims:
        x, y = a[:, :m].astype(np.float64), b[:, :m].astype(np.float64)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        yield np.where(lengths > 0, np.sum(x * y, axis=1) / np.where(lengths > 0, lengths, 1.0), 0.0)


def _standardise_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (the mean rank for ties) scaled to mean 0 and variance 1; zeros if all values are equal."""
    ranks: np.ndarray = rankdata(values)
    ranks = ranks - ranks.mean()
    spread = float(ranks.std())
    return ranks / spread if spread > 0 else ranks
