"""As few dims as a query needs: a shortlist by a short prefix, and one by a longer prefix where that is not settled.

What a shortlist may have missed is, by its prefix, below the last document that it has. The larger the gap between the
k-th result and that document (`shortlist.search_with_gaps`), the less likely is it that such a document belongs among
the k best. So a query is settled where its gap reaches a margin; else the next step searches for it again. It is to
retrieval what `evaluate.cascade` is to classification.

Margins are learnt on one half of held-out queries, for several tolerances, and tested on the other half, from the most
cautious tolerance on, until the wanted recall is no longer shown (Learn then Test, Angelopoulos, Bates, Candès, Jordan
& Lei 2021, arXiv:2110.01052, with the p-value of `plan`). So P(the expected recall is below the target) ≤ delta, over
the draw of the queries. Which steps to take is decided on the first half, too.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

from mrl_jax.search import plan as plans
from mrl_jax.search import shortlist
from mrl_jax.search.layout import Documents
from mrl_jax.search.queries import SearchResults, leave_out

TOLERANCES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # mean loss of the queries that a step settles
LAST_SIZES_PER_K = (50, 20, 10)  # shortlists of the last step, in multiples of k; earlier steps have the shortest
MAX_STEPS = 3


class Step(NamedTuple):
    """A shortlist of `size` by `dim` coordinates, and the gap from which a query is settled by it."""

    dim: int
    size: int
    margin: float  # −inf of the last step


class Certified(NamedTuple):
    """A search that was tested on held-out queries; of one step, it is a fixed shortlist."""

    steps: tuple[Step, ...]
    quality: float  # recall@k or nDCG@k, on the half of the queries that it was tested on
    p: float  # of its expectation being below the target
    megabytes: float  # that a query reads when it comes alone, mean over that half
    settled: tuple[float, ...]  # share of the queries that each step settles


def search(
    documents: Documents, queries: np.ndarray, k: int, steps: Sequence[Step]
) -> tuple[SearchResults, np.ndarray]:
    """The k best of the first shortlist that settles a query.

    Args:
        documents: N embeddings, from `lay_out`.
        queries: float32 [Q, D].
        k: number of results per query.
        steps: by ascending dims; whatever the last one finds is returned.

    Returns:
        `SearchResults` [Q, k], and the dims int [Q] of the step that settled each query.

    Raises:
        ValueError: there is no step, dims do not ascend or were not laid out, a size is below k, or queries have
            another width.
    """
    check_steps(steps, documents.scan_dims, k)
    left = np.arange(len(queries))
    scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    dims = np.full(len(queries), steps[-1].dim)
    for i, step in enumerate(steps):
        found, gaps = shortlist.search_with_gaps(documents, queries[left], k, step.dim, step.size)
        is_settled = (gaps >= step.margin) | (i == len(steps) - 1)
        now = left[is_settled]
        scores[now], rows[now], dims[now] = found.scores[is_settled], found.rows[is_settled], step.dim
        left = left[~is_settled]
        if not len(left):
            break
    return SearchResults(scores, rows), dims


def check_steps(steps: Sequence[Step], dims: Sequence[int], k: int) -> None:
    """Raises ValueError unless the dims of the steps ascend and are among `dims`, and no size is below k."""
    if not steps:
        raise ValueError("there must be at least one step (dim, size, margin)")
    for step in steps:
        shortlist.check_stages([(step.dim, step.size)], dims, k)
    if any(a.dim >= b.dim for a, b in pairwise(steps)):
        raise ValueError(f"the dims of the steps {[step.dim for step in steps]} must ascend")


class _Tried(NamedTuple):
    """A shortlist on all held-out queries."""

    losses: np.ndarray  # [Q], 1 − recall@k or nDCG@k
    gaps: np.ndarray  # [Q]
    megabytes: float  # that it reads for one query


def certify(
    documents: Documents,
    queries: np.ndarray,
    goal: plans.Goal,
    delta: float = 0.05,
    seed: int = 0,
) -> tuple[Certified | None, Certified | None]:
    """The cheapest fixed shortlist and the cheapest search in steps that are shown to reach a goal, each alone.

    Args:
        documents: N embeddings, from `lay_out`.
        queries: float32 [Q, D], held out.
        goal: what is to be kept of the results for them.
        delta: probability with which the target may be missed; the two share it.
        seed: of the halves that margins are learnt and tested on.

    Returns:
        Of one step and of several; None where none was found on the first half, or it failed on the second.

    Raises:
        ValueError: there is no prefix to search by, or there are too few queries.
    """
    dims = [m for m in documents.scan_dims if m < documents.dims[-1]]
    if not dims:
        raise ValueError(f"there is no prefix to plan with: only {documents.dims[-1]} dims are laid out")
    plans.check_settleable(len(queries) // 2, goal.target, delta, 2, goal.metric)
    sizes = sorted({min(goal.k * n, len(documents)) for n in LAST_SIZES_PER_K if goal.k * n >= goal.asked})
    tried = {(m, size): _try(documents, queries, goal, m, size) for m in dims for size in sizes}
    order = np.random.default_rng(seed).permutation(len(queries))
    learn, test = order[: len(order) // 2], order[len(order) // 2 :]
    fixed = [((last, size),) for last in dims for size in sizes]
    chains = [
        (*((m, sizes[0]) for m in earlier), (last, size))
        for (last, size) in tried
        for count in range(1, MAX_STEPS)
        for earlier in combinations([m for m in dims if m < last], count)
    ]
    level = delta / 2
    return tuple(_best(some, tried, learn, test, goal.target, level) for some in (fixed, chains))  # type: ignore[return-value]


def _try(documents: Documents, queries: np.ndarray, goal: plans.Goal, dim: int, size: int) -> _Tried:
    found, gaps = shortlist.search_with_gaps(documents, queries, goal.asked, dim, size)
    losses = 1 - plans.MEASURES[goal.metric](leave_out(found, goal.own).rows, goal.truth)
    return _Tried(losses, gaps, plans.shortlist_cost(documents, [(dim, size)]).megabytes)


Chain = tuple[tuple[int, int], ...]


def _best(
    chains: Sequence[Chain],
    tried: dict[tuple[int, int], _Tried],
    learn: np.ndarray,
    test: np.ndarray,
    target: float,
    level: float,
) -> Certified | None:
    """Of the chain and tolerance that are cheapest on `learn`, what is certified on `test`."""
    cheapest: tuple[float, Chain, int] | None = None
    for chain in chains:
        parts = [tried[one] for one in chain]
        for i, tolerance in enumerate(TOLERANCES):
            outcome = _outcome(parts, _margins(parts, learn, tolerance), learn)
            keeps = plans.p_value(outcome.losses, 1 - target, level) <= level
            if keeps and (cheapest is None or outcome.megabytes < cheapest[0]):
                cheapest = outcome.megabytes, chain, i
    if cheapest is None:
        return None
    _, chain, most = cheapest
    parts = [tried[one] for one in chain]
    certified: Certified | None = None
    for tolerance in TOLERANCES[: most + 1]:
        margins = _margins(parts, learn, tolerance)
        outcome = _outcome(parts, margins, test)
        p = plans.p_value(outcome.losses, 1 - target, level)
        if p > level:
            break
        steps = tuple(Step(*one, margin) for one, margin in zip(chain, margins, strict=True))
        one = Certified(steps, float(1 - outcome.losses.mean()), p, outcome.megabytes, outcome.settled)
        if certified is None or one.megabytes <= certified.megabytes:
            certified = one
    return certified


def _margins(parts: Sequence[_Tried], learn: np.ndarray, tolerance: float) -> list[float]:
    """The least margin of each step with which those that it settles lose no more than `tolerance`, in the mean."""
    margins, left = [], learn
    for part in parts[:-1]:
        order = np.argsort(-part.gaps[left], kind="stable")
        means = np.cumsum(part.losses[left][order]) / np.arange(1, len(order) + 1)
        enough = np.flatnonzero(means <= tolerance)
        margin = float(part.gaps[left][order][enough[-1]]) if len(enough) else np.inf
        margins.append(margin)
        left = left[part.gaps[left] < margin]
    return [*margins, -np.inf]


class _Outcome(NamedTuple):
    losses: np.ndarray
    megabytes: float
    settled: tuple[float, ...]


def _outcome(parts: Sequence[_Tried], margins: Sequence[float], some: np.ndarray) -> _Outcome:
    """What steps with these margins would do for some of the queries."""
    losses, megabytes, settled, left = np.zeros(len(some)), 0.0, [], np.ones(len(some), bool)
    for part, margin in zip(parts, margins, strict=True):
        megabytes += part.megabytes * left.sum() / len(some)
        now = left & (part.gaps[some] >= margin)
        losses[now] = part.losses[some][now]
        settled.append(float(now.mean()))
        left &= ~now
    return _Outcome(losses, megabytes, tuple(settled))
