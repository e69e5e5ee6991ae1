"""Choose a shortlist that keeps a wanted recall or nDCG, with a bound, and as cheap as possible.

For each dim the shortlist sizes are tested from the longest down, until one is no longer shown to be good enough: the
hypothesis that its expected recall@k against exact search is below the target is to be rejected at level delta / dims,
as Bates, Angelopoulos, Lei, Malik & Jordan (2021, "Distribution-free, risk-controlling prediction sets", Journal of the
ACM 68) do, see `p_value`. Testing in a fixed sequence needs no further correction, the dims share delta. So P(the
plan's expected recall is below the target) ≤ delta, over the draw of the held-out queries.
"""

import json
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mrl_jax.search import exact, shortlist
from mrl_jax.search.index.base import RANKED_SHARE, Description
from mrl_jax.search.layout import Documents
from mrl_jax.search.queries import SearchResults, leave_out
from mrl_jax.system import files
from mrl_jax.system.errors import UserError

# Shortlist sizes to try, in multiples of k.
SIZES_PER_K = (500, 300, 200, 150, 100, 70, 50, 35, 25, 20, 15, 12, 10, 7, 5, 3, 2, 1)
MAX_STAKE = 0.9  # of the capital, that one loss of 1 can take
MANY_QUERIES = 1_000_000  # beyond which the number that is needed is only bounded from below


Metric = Literal["recall", "ndcg"]


class Cost(NamedTuple):
    """Of one query: floating-point operations, and what it reads from memory when it comes alone."""

    mflop: float
    megabytes: float


class Goal(NamedTuple):
    """What a search is to keep of the results of exact search, on held-out queries."""

    truth: np.ndarray  # rows [Q, k] of exact search
    k: int  # results per query
    target: float  # that the expected recall@k or nDCG@k is to reach
    metric: Metric
    own: np.ndarray | None  # [Q], the row of the document that is the query itself; −1 for none

    @property
    def asked(self) -> int:
        """Results per query that are searched for."""
        return asked_of(self.k, self.own)

    def losses(self, results: SearchResults) -> np.ndarray:
        """Of each query what `results` of `asked` documents miss, in [0, 1]."""
        return 1 - MEASURES[self.metric](leave_out(results, self.own).rows, self.truth)


def asked_of(k: int, own: np.ndarray | None) -> int:
    """Results per query that are searched for, so that k are left without the query itself."""
    return k if own is None else k + 1


class Candidate(NamedTuple):
    """A shortlist that was tried."""

    stages: tuple[tuple[int, int], ...]
    quality: float  # recall@k or nDCG@k on the held-out queries
    p: float  # of its expectation being below the target
    certified: bool
    cost: Cost


class Plan(NamedTuple):
    """`chosen` is None where no shortlist within the budget is certified: then only exact search keeps the target."""

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
    metric: Metric = "recall",
    own: np.ndarray | None = None,
) -> Plan:
    """The cheapest shortlist whose recall@k, or nDCG@k, is shown to reach `target`.

    Args:
        documents: N embeddings, from `lay_out`.
        queries: float32 [Q, D], held out: not those that the plan is reported on.
        k: number of results per query.
        target: recall@k (or nDCG@k) against exact search, in (0, 1).
        delta: probability with which the target may be missed, in (0, 1).
        budget: maximum number of megabytes that a query may read.
        dims: of the prefixes to try; by default all that are laid out, except D.
        truth: rows [Q, k] of exact search, where they are known already.
        metric: what the target is for.
        own: int [Q], the row of the document that is the query itself and is left out of its results; −1 for none.

    Returns:
        The `Plan`: the cheapest certified shortlist, and all that were tried.

    Raises:
        ValueError: target or delta is out of range, there are too few queries to certify anything, or no dim to try.
    """
    dims = [m for m in documents.scan_dims if m < documents.dims[-1]] if dims is None else list(dims)
    if not dims:
        raise ValueError(f"there is no prefix to plan with: only {documents.dims[-1]} dims are laid out")
    check_settleable(len(queries), target, delta, len(dims), metric)
    if truth is None:
        found, _ = exact.search(documents, queries, asked_of(k, own), documents.scan_dims[-1])
        truth = leave_out(found, own).rows
    goal = Goal(truth, k, target, metric, own)
    tried: list[Candidate] = []
    for dim in dims:

        def search(size: int, dim: int = dim) -> SearchResults:
            return shortlist.search(documents, queries, goal.asked, ((dim, size),))

        sizes = {min(k * n, len(documents)) for n in SIZES_PER_K}
        for size, quality, p in test_sizes(search, goal, sizes, delta / len(dims)):
            stages = ((dim, size),)
            tried.append(Candidate(stages, quality, p, p <= delta / len(dims), shortlist_cost(documents, stages)))
    affordable = [one for one in tried if one.certified and (budget is None or one.cost.megabytes <= budget)]
    chosen = min(affordable, key=lambda one: one.cost.megabytes, default=None)
    return Plan(chosen, tuple(tried), exact_cost(documents))


def test_sizes(
    search: Callable[[int], SearchResults], goal: Goal, sizes: Collection[int], level: float
) -> Iterator[tuple[int, float, float]]:
    """(size, quality, p) of shortlists from the longest on, up to the first that is not shown to reach the goal.

    Args:
        search: the `goal.asked` best that a shortlist of a size finds.
        goal: what is to be kept.
        sizes: to test; those below `goal.asked` are left out.
        level: at which each size is tested.
    """
    for size in sorted((size for size in sizes if size >= goal.asked), reverse=True):
        losses = goal.losses(search(size))
        p = p_value(losses, 1 - goal.target, level)
        yield size, float(1 - losses.mean()), p
        if p > level:
            return


# ---- quality ---------------------------------------------------------------------------------------------------------


def recall(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share [Q] of the documents in `truth` [Q, k] (−1: none) that are in `rows` [Q, k]."""
    hit = (rows[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]
    return np.asarray(hit.any(axis=1).sum(axis=1) / np.maximum(1, (truth >= 0).sum(axis=1)))


def ndcg(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """nDCG@k [Q] of `rows` [Q, k], best first; the documents in `truth` [Q, k] (−1: none) are equally relevant.

    Järvelin and Kekäläinen 2002, ACM Transactions on Information Systems 20.
    """
    discount = 1 / np.log2(np.arange(2, truth.shape[1] + 2))
    hit = (rows[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]
    ideal = np.cumsum(discount)[np.maximum(1, (truth >= 0).sum(axis=1)) - 1]
    return np.asarray((hit.any(axis=2) * discount[: rows.shape[1]]).sum(axis=1) / ideal)


MEASURES: dict[Metric, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"recall": recall, "ndcg": ndcg}


def p_value(losses: np.ndarray, alpha: float, level: float) -> float:
    """Of the hypothesis that independent losses [n] in [0, 1] have a mean of at least `alpha`.

    Whoever doubts the hypothesis bets on each loss in turn that it is smaller, for even odds if the mean is `alpha`;
    the chance that the capital ever grows n-fold is at most 1 / n if the hypothesis holds. As the stakes follow the
    variance of the losses before, many small losses (one of ten results missed) count for what they are: a mean loss
    of half of alpha = 0.01 is shown with 1,200 queries about as often as by the Hoeffding–Bentkus bound with 3,000.

    Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting", Journal of the Royal
    Statistical Society B 86, the predictable plug-in of equation 26.

    Args:
        losses: in an order that means nothing: they are shuffled.
        alpha: in (0, 1).
        level: at which the p-value will be tested, for which the stakes are chosen; it is a p-value at every level.
    """
    losses = np.random.default_rng(0).permutation(np.asarray(losses, np.float64))
    seen = np.arange(1, len(losses) + 1)
    means = (0.5 + np.cumsum(losses)) / (seen + 1)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    stakes = np.minimum(MAX_STAKE / (1 - alpha), np.sqrt(2 * math.log(1 / level) / (len(losses) * before)))
    return float(min(1.0, np.exp(-np.cumsum(np.log1p(stakes * (alpha - losses))).max(initial=0.0))))


def queries_needed(target: float, delta: float) -> int:
    """The least number of queries that can certify the target when none of them misses anything; of more than
    `MANY_QUERIES` the number that the largest stakes would take, which is no more."""
    least = math.ceil(-math.log(delta) / math.log1p(MAX_STAKE * (1 - target) / target))
    if least > MANY_QUERIES:
        return least
    few, many = 0, math.ceil(2 * math.log(delta) / math.log(target))  # target^n ≤ delta would do for larger stakes
    while p_value(np.zeros(many), 1 - target, delta) > delta:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if p_value(np.zeros(middle), 1 - target, delta) > delta else (few, middle)
    return many


def check_settleable(
    queries: int,
    target: float,
    delta: float,
    tests: int,
    metric: Metric,
    others: Callable[[int], int] = lambda needed: 0,
) -> None:
    """Raises ValueError unless so many held-out queries can certify the target when `tests` sequences share `delta`.

    `others` is the number that something else needs beside those that certify.
    """
    for name, value in (("target", target), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} is not allowed; it must be between 0 and 1")
    needed = queries_needed(target, delta / tests)
    needed += others(needed)
    if queries < needed:
        raise ValueError(
            f"{queries} held-out queries cannot certify {metric} {target} at delta={delta}, not even without a "
            f"single miss; at least {needed} are needed"
        )


# ---- cost ------------------------------------------------------------------------------------------------------------


def shortlist_cost(documents: Documents, stages: Sequence[tuple[int, int]]) -> Cost:
    """Of a scan at the first stage's dim and of reading what each stage keeps up to the next dim."""
    scanned = len(documents) * stages[0][0]
    ends = [*(dim for dim, _ in stages[1:]), documents.dims[-1]]
    read = sum(size * end for (_, size), end in zip(stages, ends, strict=True))
    return Cost(2 * (scanned + read) / 1e6, (scanned * documents.chunks.dtype.itemsize + 4 * read) / 1e6)


def exact_cost(documents: Documents) -> Cost:
    """Of reading every document in full."""
    numbers = len(documents) * documents.dims[-1]
    return Cost(2 * numbers / 1e6, numbers * documents.chunks.dtype.itemsize / 1e6)


# ---- plan.json in an index -------------------------------------------------------------------------------------------


def save(
    folder: Path,
    version: int,
    k: int,
    metric: Metric,
    target: float,
    delta: float,
    stages: Sequence[tuple[int, int]] | None,
    kind: str = "exact",
) -> None:
    """Write the chosen shortlist, for an index of this version and kind; raises UserError when the disk is full."""
    content = {"version": version, "kind": kind, "k": k, metric: target, "delta": delta, "steps": stages}
    if kind in RANKED_SHARE:
        content["ranked"] = RANKED_SHARE[kind]
    crc = zlib.crc32(json.dumps(content).encode())
    files.write(folder / "plan.json", json.dumps(content | {"crc": crc}) + "\n")


def load(folder: Path, version: int, k: int, description: Description) -> list[tuple[int, int]] | None:
    """The stages that `save` wrote for these documents, this kind and at least k results; None where there are none.

    Raises UserError for a damaged file and for stages that this index cannot take.
    """
    path = folder / "plan.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if content.pop("crc") != zlib.crc32(json.dumps(content).encode()):
            raise ValueError
        if content["version"] != version or content["k"] < k or content["steps"] is None:
            return None
        if content.get("kind", "exact") != description.kind:  # files of earlier versions name none
            return None
        if content.get("ranked", 1) != RANKED_SHARE.get(description.kind, 1):  # what was certified is another search
            return None
        stages = [(int(dim), int(size)) for dim, size in content["steps"]]
        shortlist.check_stages(stages, description.dims, k)
        if stages[0][0] > description.scanned:
            raise ValueError("more dims than are scanned")
        if description.kind != "exact" and [dim for dim, _ in stages] != [description.scanned]:
            raise ValueError("an index of this kind has one stage, at the dims that it searches first")
        return stages
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path} is damaged; delete it, or plan again") from None
