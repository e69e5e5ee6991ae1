"""Choose a shortlist for `funnel` that keeps a wanted recall or nDCG, with a bound, and as cheap as can be.

For each dim the shortlist sizes are tested from the longest down, until one is no longer shown to be good enough: the
hypothesis that its expected recall@k against exact search is below the target is to be rejected at level delta / dims,
by the Hoeffding–Bentkus p-value of Bates, Angelopoulos, Lei, Malik & Jordan (2021, "Distribution-free, risk-controlling
prediction sets", Journal of the ACM 68). Testing in a fixed sequence needs no further correction, the dims share delta.
So P(the plan's expected recall is below the target) ≤ delta, over the draw of the held-out queries.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import binom

from mrl_jax.search import funnel
from mrl_jax.search.funnel import Documents

SIZES = (100, 50, 20, 10, 5, 2, 1)  # lengths of shortlists, in multiples of k


class Cost(NamedTuple):
    """Of one query: floating-point operations, and what it reads from memory when it comes alone."""

    mflop: float
    megabytes: float


class Candidate(NamedTuple):
    """A shortlist that was tried."""

    steps: tuple[tuple[int, int], ...]
    quality: float  # recall@k or nDCG@k on the held-out queries
    p: float  # of its expectation being below the target
    certified: bool
    cost: Cost


class Planned(NamedTuple):
    """`chosen` is None where no plan within the budget is certified: then only exact search keeps the target."""

    chosen: Candidate | None
    tried: tuple[Candidate, ...]
    exact: Cost


def plan(
    documents: Documents,
    queries: np.ndarray,
    k: int = 10,
    target: float = 0.99,
    delta: float = 0.05,
    budget: float | None = None,
    dims: Sequence[int] | None = None,
    truth: np.ndarray | None = None,
    metric: Literal["recall", "ndcg"] = "recall",
) -> Planned:
    """The cheapest shortlist whose recall@k, or nDCG@k, is shown to reach `target`.

    Args:
        queries: float32 [Q, D], held out: not those that the plan is reported on.
        target: recall@k (or nDCG@k) against exact search, in (0, 1); delta: probability with which it may be missed.
        budget: most megabytes that a query may read.
        dims: of the prefixes to try; those that are laid out, but for D, by default.
        truth: rows [Q, k] of exact search, where they are known already.
        metric: what the target is for.

    Raises:
        ValueError: target or delta out of range; too few queries to show anything; no dim to try.
    """
    for name, value in (("target", target), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} is not allowed; between 0 and 1")
    dims = [m for m in documents.laid_out if m < documents.dims[-1]] if dims is None else list(dims)
    if not dims:
        raise ValueError(f"there is no prefix to plan with: only {documents.dims[-1]} dims are laid out")
    needed = queries_needed(target, delta / len(dims))
    if len(queries) < needed:
        raise ValueError(
            f"{len(queries)} held-out queries cannot settle recall {target} at delta={delta}, not even without a "
            f"single miss; at least {needed} are needed"
        )
    if truth is None:
        truth = funnel.exact(documents, queries, k, documents.laid_out[-1])[0].rows
    tried: list[Candidate] = []
    for dim in dims:
        for size in sorted({min(k * n, len(documents)) for n in SIZES}, reverse=True):
            if size < k:
                continue
            found = funnel.funnel(documents, queries, k, [(dim, size)]).rows
            misses = 1 - {"recall": recall, "ndcg": ndcg}[metric](found, truth)
            p = p_value(misses, 1 - target)
            cost = shortlist_cost(documents, ((dim, size),))
            tried.append(Candidate(((dim, size),), float(1 - misses.mean()), p, p <= delta / len(dims), cost))
            if not tried[-1].certified:
                break
    good = [one for one in tried if one.certified and (budget is None or one.cost.megabytes <= budget)]
    chosen = min(good, key=lambda one: one.cost.megabytes, default=None)
    return Planned(chosen, tuple(tried), exact_cost(documents))


def recall(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share [Q] of the documents in `truth` [Q, k] (−1: none) that are in `found` [Q, k]."""
    hit = (found[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]
    return np.asarray(hit.any(axis=1).sum(axis=1) / np.maximum(1, (truth >= 0).sum(axis=1)))


def ndcg(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """nDCG@k [Q] of `found` [Q, k], best first; the documents in `truth` [Q, k] (−1: none) are relevant, all alike.

    Järvelin and Kekäläinen 2002, ACM Transactions on Information Systems 20.
    """
    discount = 1 / np.log2(np.arange(2, truth.shape[1] + 2))
    hit = (found[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]
    ideal = np.cumsum(discount)[np.maximum(1, (truth >= 0).sum(axis=1)) - 1]
    return np.asarray((hit.any(axis=2) * discount[: found.shape[1]]).sum(axis=1) / ideal)


def p_value(losses: np.ndarray, alpha: float) -> float:
    """Of the hypothesis that independent losses [n] in [0, 1] have a mean above `alpha` (Hoeffding–Bentkus)."""
    n, mean = len(losses), float(np.mean(losses))
    if mean >= alpha:
        return 1.0
    divergence = (mean * math.log(mean / alpha) if mean else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - alpha))
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, alpha))
    return min(1.0, math.exp(-n * divergence), bentkus)


def queries_needed(target: float, delta: float) -> int:
    """The least number of queries that can show the target when none of them misses anything: target^n ≤ delta."""
    return math.ceil(math.log(delta) / math.log(target) - 1e-9)


def shortlist_cost(documents: Documents, steps: Sequence[tuple[int, int]]) -> Cost:
    """Of a scan at the first step's dim and of reading what each step kept up to the next dim."""
    numbers = [len(documents) * steps[0][0]]
    ends = [*(dim for dim, _ in steps[1:]), documents.dims[-1]]
    numbers += [size * end for (_, size), end in zip(steps, ends, strict=True)]
    size = 2 if documents.chunks.dtype == np.uint16 else 4
    return Cost(2 * sum(numbers) / 1e6, (numbers[0] * size + 4 * sum(numbers[1:])) / 1e6)


def exact_cost(documents: Documents) -> Cost:
    """Of reading every document in full."""
    number = len(documents) * documents.dims[-1]
    return Cost(2 * number / 1e6, number * (2 if documents.chunks.dtype == np.uint16 else 4) / 1e6)
