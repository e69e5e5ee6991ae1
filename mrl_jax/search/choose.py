"""Choose how the documents of a folder are searched: build every kind of index, time it here, take the fastest.

What is fastest depends on the machine, the number of documents, the embeddings and how many queries come together: one
query at a time favours a graph, many at a time a scan. So all are tried on held-out queries, in two steps, as in Pareto
testing (Laufer-Goldshtein, Fisch, Barzilay & Jaakkola, ICLR 2023). A pilot of some queries finds for each kind, and for
each dim that `exact` can scan first, the shortlist that is likely to keep the recall, and these are timed. The others
certify: of the fastest one or two methods, shortlists are tested from a longer one down as in `plan`, until one is not
shown to keep the recall; the methods share delta. As pilot and certificate are of different queries, P(the expected
recall of what is chosen is below the target) ≤ delta. Exact search needs no test. What is timed is a search from
embedded queries to results, reading from the file included.
"""

import bisect
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search import plan as plans
from mrl_jax.search import timing
from mrl_jax.search.dispatch import Stages, search_index
from mrl_jax.search.index import Description, Index, by_kind, is_in_folder, open_as
from mrl_jax.search.index.exact import ExactIndex
from mrl_jax.search.index.store import Store
from mrl_jax.search.queries import SearchResults, leave_out
from mrl_jax.search.truth import best_of_blocks
from mrl_jax.system.errors import UserError, one_of

PILOT, MAX_PILOT = 4, 1000  # one of so many held-out queries is of the pilot, and at most so many are
FINALISTS = 2  # most methods that are certified
LONGEST, STEPS = 500, 40  # shortlists have 1 to LONGEST documents per result, in so many steps of equal ratio
LONGER = 3  # steps above the shortlist that is likely to be certified, where testing begins


class Method(NamedTuple):
    """A way to search, and what it finds and costs."""

    kind: str
    stages: Stages | None  # of a shortlist; None for exact search
    quality: float  # recall@k or nDCG@k on the queries that it was tried on
    p: float | None  # of its expectation being below the target; None where only the pilot was searched for
    seconds: float | None  # of one batch of queries; None where the target is not kept
    megabytes: float  # in memory
    build_seconds: float

    def __str__(self) -> str:
        stages = "" if self.stages is None else " " + ",".join(f"{dim}:{size}" for dim, size in self.stages)
        return f"{self.kind}{stages}"


def kinds_of(place: str, asked: str) -> list[str]:
    """The kinds of index to try: of `asked`, auto or a list such as exact,faiss-hnsw, those that can be in a folder.

    Raises UserError: `place` is no folder, or a kind that there is not.
    """
    if not is_in_folder(place):
        raise UserError(f"--kind={asked} is for an index in a folder, whose kind can change; {place} is none")
    known = list(by_kind(place))
    if asked == "auto":
        return known
    return list(dict.fromkeys(one_of("--kind", kind.strip(), known) for kind in asked.split(",")))


def choose(
    index: Store,
    kinds: Sequence[str],
    queries: np.ndarray,
    k: int,
    target: float = 0.99,
    delta: float = 0.05,
    together: int = 1,
    own: np.ndarray | None = None,
    metric: plans.Metric = "recall",
    show: Callable[[Method], None] = lambda method: None,
) -> Method | None:
    """Make an index one of the kind that is fastest on this machine, among those that are shown to keep the target.

    Args:
        index: of a folder, open for writing; `plan.json` beside it says what was chosen.
        kinds: to try.
        queries: float32 [Q, D], held out: not those that the choice is reported on.
        k: number of results per query.
        target: recall@k (or nDCG@k) against exact search, in (0, 1).
        delta: probability with which the target may be missed, in (0, 1).
        together: number of queries that come together.
        own: int [Q], the row of the document that is the query itself and is left out of its results; −1 for none.
        metric: what the target is for.
        show: called with each method as soon as it was tried: by the pilot first, then by the other queries.

    Returns:
        The chosen method; None where none of the kinds keeps the target, and the index stays as it was.

    Raises:
        ValueError: target or delta is out of range, or there are too few queries to certify anything.
        UserError: documents or vectors are damaged.
    """
    check_settleable(len(queries), target, delta, metric)
    index.alive()
    index.prepare()  # so that the kinds need not verify the documents again
    truth = leave_out(best_of_blocks(index.blocks(), queries, plans.asked_of(k, own)), own).rows
    order = np.random.default_rng(0).permutation(len(queries))
    pilot, others = (
        (queries[some], plans.Goal(truth[some], k, target, metric, None if own is None else own[some]))
        for some in np.split(order, [min(len(order) // PILOT, MAX_PILOT)])
    )
    exact: list[Method] = []
    promising: list[Method] = []
    for kind in kinds:
        with contextlib.closing(open_as(str(index.folder), kind)) as one:
            try:
                for method in try_kind(one, *pilot, len(others[0]), delta / FINALISTS, together):
                    show(method)
                    (exact if method.stages is None else promising).append(method)
            except UserError as error:  # an extra that is not installed, too few documents for this kind
                print(f"{kind} is left out: {error}", file=sys.stderr)
    bar = min((method.seconds for method in exact if method.seconds is not None), default=float("inf"))
    finalists = sorted(
        (method for method in promising if method.seconds is not None and method.seconds < bar), key=_seconds_of
    )[:FINALISTS]
    kept = list(exact)
    for finalist in finalists:
        with contextlib.closing(open_as(str(index.folder), finalist.kind)) as one:
            certified = certify(one, finalist, *others, delta / len(finalists), together)
        show(certified)
        kept += [] if certified.seconds is None else [certified]
    if not kept:
        return None
    chosen = min(kept, key=_seconds_of)
    index.set_kind(chosen.kind)
    plans.save(index.folder, index.version, k, metric, target, delta, chosen.stages, chosen.kind)
    for kind in {*kinds} - {chosen.kind}:
        for path in index.folder.glob("*.layout" if kind == "exact" else f"{kind}-*.index"):
            path.unlink(missing_ok=True)
    index.prepare()
    return chosen


def check_settleable(queries: int, target: float, delta: float, metric: plans.Metric) -> None:
    """Raises ValueError: target or delta is out of range, or so many queries cannot certify anything."""
    plans.check_settleable(
        queries, target, delta, FINALISTS, metric, lambda needed: min((needed - 1) // (PILOT - 1), MAX_PILOT)
    )


def _first_dims(about: Description, kind: str) -> list[int]:
    """The dims that an index of this kind can search first."""
    if kind == "exact":
        return [m for m in about.dims if m < about.width and m <= about.prefix]
    return [about._replace(kind=kind).scanned]


def shortlist_sizes(asked: int, count: int) -> list[int]:
    """Lengths of shortlists to try for `asked` results among `count` documents, the shortest first."""
    steps = np.geomspace(asked, LONGEST * asked, STEPS)
    return sorted({min(round(size), count) for size in steps if count >= asked})


def try_kind(
    index: Index, queries: np.ndarray, goal: plans.Goal, others: int, level: float, together: int
) -> Iterator[Method]:
    """The methods of one kind of index, tried on the queries of the pilot.

    Of each dim that it can search first, the shortlist that `others` queries would just certify at `level` if they lost
    as much as these.
    """
    about = index.description
    if isinstance(index, ExactIndex):
        built, megabytes = timing.built(lambda: index.principal_directions.nbytes)
        seconds = timing.seconds(_search(index, goal), queries, None, together)
        yield Method(about.kind, None, 1.0, 0.0, seconds, megabytes, built)
    built, megabytes = timing.built(lambda: timing.prepare(index))
    sizes = shortlist_sizes(goal.asked, len(index))
    for dim in _first_dims(about, about.kind) if sizes else ():

        @functools.cache
        def losses(size: int, dim: int = dim) -> np.ndarray:
            return goal.losses(_search(index, goal)(queries, [(dim, size)]))

        def is_likely(size: int) -> bool:
            return plans.p_value(np.resize(losses(size), others), 1 - goal.target, level) <= level

        kept = is_likely(sizes[-1])  # if not, no shorter one is: of a list, a shorter one finds a part
        place = bisect.bisect_left(sizes[:-1], True, key=is_likely) if kept else -1
        stages = [(dim, sizes[place])]
        method = Method(about.kind, stages, float(1 - losses(sizes[place]).mean()), None, None, megabytes, built)
        if kept:
            method = method._replace(seconds=timing.seconds(_search(index, goal), queries, stages, together))
        yield method


def certify(
    index: Index, promising: Method, queries: np.ndarray, goal: plans.Goal, level: float, together: int
) -> Method:
    """The shortest list that is shown to keep the target; with `seconds` None the one that failed, if the first did."""
    assert promising.stages is not None
    dim, size = promising.stages[0]
    sizes = shortlist_sizes(goal.asked, len(index))
    sizes = sizes[: sizes.index(size) + 1 + LONGER]
    search = _search(index, goal)
    tested = [
        promising._replace(stages=[(dim, size)], quality=quality, p=p, seconds=None)
        for size, quality, p in plans.test_sizes(lambda n: search(queries, [(dim, n)]), goal, sizes, level)
    ]
    kept = [method for method in tested if method.p is not None and method.p <= level]
    if not kept:
        return tested[0]
    return kept[-1]._replace(seconds=timing.seconds(search, queries, kept[-1].stages, together))


def _search(index: Index, goal: plans.Goal) -> Callable[[np.ndarray, Stages | None], SearchResults]:
    return lambda z, stages: search_index(index, z, goal.asked, stages)


def _seconds_of(method: Method) -> float:
    return float("inf") if method.seconds is None else method.seconds
