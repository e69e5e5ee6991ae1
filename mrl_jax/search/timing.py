"""How long a search takes on this machine, and what its index takes: what methods are compared by."""

import itertools
import time
from collections.abc import Callable

import numpy as np

from mrl_jax.search.dispatch import Stages
from mrl_jax.search.index import Index
from mrl_jax.search.index.exact import ExactIndex
from mrl_jax.search.index.store import Store

ROUNDS = 3  # the least of so many measurements counts
MAX_BATCHES = 20  # that one of them is the median of
ROUND_SECONDS = 1.0  # after so long no further batch of a round is begun


def seconds(
    search: Callable[[np.ndarray, Stages | None], object], queries: np.ndarray, stages: Stages | None, together: int
) -> float:
    """Of a search for `together` of the queries: the least over rounds of the median over batches, after one that warms
    up. Batches begin anew at the end of the queries.

    Args:
        search: of some queries, by these stages.
        queries: float32 [Q, D].
        stages: of a shortlist; None for exact search.
        together: number of queries that come together.
    """
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


def prepare(index: Index) -> int:
    """Make an index ready; the bytes of what a shortlist is searched in."""
    if isinstance(index, ExactIndex):
        return index.prefixes.nbytes
    assert isinstance(index, Store)
    index.prepare()
    return sum(path.stat().st_size for path in index.folder.glob(f"{index.description.kind}-*.index"))


def built(make: Callable[[], int]) -> tuple[float, float]:
    """The seconds that something takes, and the megabytes that it returns as bytes."""
    started = time.perf_counter()
    size = make()
    return time.perf_counter() - started, size / 1e6
