"""Adaptive retrieval over arrays, the Python API: `from mrl_jax import funnel`.

documents = funnel.lay_out(vectors, dims=(64, 128, 256))
results = funnel.funnel(documents, queries, k=10, steps=[(64, 100)])  # a shortlist, then the whole embedding
results, work = funnel.exact(documents, queries, k=10, start=64)  # what a float64 brute-force search returns
"""

from collections.abc import Sequence

import numpy as np

from mrl_jax.search import shortlist as shortlists
from mrl_jax.search.exact import Work
from mrl_jax.search.exact import search as exact
from mrl_jax.search.layout import Documents, StoredVectors, lay_out
from mrl_jax.search.queries import SearchResults
from mrl_jax.search.shortlist import shortlist

__all__ = ["Documents", "SearchResults", "StoredVectors", "Work", "exact", "funnel", "lay_out", "shortlist"]


def funnel(documents: Documents, queries: np.ndarray, k: int, steps: Sequence[tuple[int, int]]) -> SearchResults:
    """The k best of a shortlist, narrowed in `steps` of (dim, size): the stages of `shortlist.search`."""
    return shortlists.search(documents, queries, k, steps)
