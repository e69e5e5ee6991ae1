"""Choose how the documents of a folder are searched: build every kind of index, time it here, take the fastest.

What is fastest depends on the machine, the number of documents, the embeddings and how many queries come together: one
query at a time favours a graph, many at a time a scan. So all are tried on held-out queries. Of each kind, and each dim
that `exact` can scan first, shortlists are tested from the longest down as in `plan`, until one is no longer shown to
keep the recall; the sequences share delta. So P(the expected recall of what is chosen is below the target) ≤ delta.
Exact search needs no test. What is timed is a search from embedded queries to results, reading from the file included.
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrl_jax.search import plan as plans
from mrl_jax.search.dispatch import Stages, search_index
from mrl_jax.search.index import Description, Index, by_kind, is_in_folder, open_as
from mrl_jax.search.index.exact import ExactIndex
from mrl_jax.search.index.store import Store
from mrl_jax.search.queries import SearchResults, leave_out
from mrl_jax.search.truth import best_of_blocks
from mrl_jax.system.errors import UserError, one_of

ROUNDS = 3  # the least of so many measurements counts
MAX_BATCHES = 20  # that one of them is the median of
ROUND_SECONDS = 1.0  # after so long no further batch of a round is begun


class Method(NamedTuple):
    """A way to search that keeps the target, or the longest shortlist of a way that does not."""

    kind: str
    stages: Stages | None  # of a shortlist; None for exact search
    quality: float  # recall@k or nDCG@k on the held-out queries
    p: float  # of its expectation being below the target
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
        show: called with each method as soon as it was tried.

    Returns:
        The chosen method; None where none of the kinds keeps the target, and the index stays as it was.

    Raises:
        ValueError: target or delta is out of range, or there are too few queries to certify anything.
        UserError: documents or vectors are damaged.
    """
    tests = check_settleable(index.description, kinds, len(queries), target, delta, metric)
    index.alive()
    index.prepare()  # so that the kinds need not verify the documents again
    truth = leave_out(best_of_blocks(index.blocks(), queries, plans.asked_of(k, own)), own).rows
    goal = plans.Goal(truth, k, target, metric, own)
    tried: list[Method] = []
    for kind in kinds:
        with contextlib.closing(open_as(str(index.folder), kind)) as one:
            try:
                for method in _try(one, queries, goal, delta / tests, together):
                    tried.append(method)
                    show(method)
            except UserError as error:  # an extra that is not installed, too few documents for this kind
                print(f"{kind} is left out: {error}", file=sys.stderr)
    timed = [(method.seconds, i) for i, method in enumerate(tried) if method.seconds is not None]
    if not timed:
        return None
    chosen = tried[min(timed)[1]]
    index.set_kind(chosen.kind)
    plans.save(index.folder, index.version, k, metric, target, delta, chosen.stages, chosen.kind)
    for kind in {*kinds} - {chosen.kind}:
        for path in index.folder.glob("*.layout" if kind == "exact" else f"{kind}-*.index"):
            path.unlink(missing_ok=True)
    index.prepare()
    return chosen


def check_settleable(
    about: Description, kinds: Sequence[str], queries: int, target: float, delta: float, metric: plans.Metric
) -> int:
    """The number of sequences of shortlists that `choose` tests.

    Raises ValueError: target or delta is out of range, or so many queries cannot certify anything.
    """
    tests = max(1, sum(len(_first_dims(about, kind)) for kind in kinds))
    plans.check_settleable(queries, target, delta, tests, metric)
    return tests


def _first_dims(about: Description, kind: str) -> list[int]:
    """The dims that an index of this kind can search first."""
    if kind == "exact":
        return [m for m in about.dims if m < about.width and m <= about.prefix]
    return [about._replace(kind=kind).scanned]


def _try(index: Index, queries: np.ndarray, goal: plans.Goal, level: float, together: int) -> Iterator[Method]:
    """The methods of one kind of index; each sequence of shortlists is tested at `level`."""
    about = index.description

    def search(z: np.ndarray, stages: Stages | None) -> SearchResults:
        return search_index(index, z, goal.asked, stages)

    if isinstance(index, ExactIndex):
        built, megabytes = _built(lambda: index.principal_directions.nbytes)
        yield Method(about.kind, None, 1.0, 0.0, _seconds(search, queries, None, together), megabytes, built)
    built, megabytes = _built(lambda: _prepared(index))
    for dim in _first_dims(about, about.kind):

        def by_size(size: int, dim: int = dim) -> SearchResults:
            return search(queries, [(dim, size)])

        kept: Method | None = None
        for size, quality, p in plans.test_sizes(by_size, goal, len(index), level):
            tested = Method(about.kind, [(dim, size)], quality, p, None, megabytes, built)
            if p <= level:
                kept = tested
            elif kept is None:
                yield tested
        if kept is not None:
            yield kept._replace(seconds=_seconds(search, queries, kept.stages, together))


def _prepared(index: Index) -> int:
    """Make an index ready; the bytes of what a shortlist is searched in."""
    if isinstance(index, ExactIndex):
        return index.prefixes.nbytes
    assert isinstance(index, Store)
    index.prepare()
    return sum(path.stat().st_size for path in index.folder.glob(f"{index.description.kind}-*.index"))


def _built(make: Callable[[], int]) -> tuple[float, float]:
    """The seconds that something takes, and the megabytes that it returns as bytes."""
    started = time.perf_counter()
    size = make()
    return time.perf_counter() - started, size / 1e6


def _seconds(
    search: Callable[[np.ndarray, Stages | None], object], queries: np.ndarray, stages: Stages | None, together: int
) -> float:
    """Of a search for `together` queries: the least over rounds of the median over batches, after one that warms up."""
    batches = [np.resize(queries[at:], (together, queries.shape[1])) for at in range(0, len(queries), together)]
    search(batches[0], stages)
    medians = []
    for _ in range(ROUNDS):
        measured: list[float] = []
        began = time.perf_counter()
        for batch in itertools.islice(itertools.cycle(batches), MAX_BATCHES):
            started = time.perf_counter()
            search(batch, stages)
            measured.append(time.perf_counter() - started)
            if time.perf_counter() - began > ROUND_SECONDS:
                break
        medians.append(float(np.median(measured)))
    return min(medians)
