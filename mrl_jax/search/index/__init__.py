"""Where documents and their embeddings are kept and searched: one interface, three back ends.

    exact    a folder: SQLite for ids and texts, one flat file of vectors; searched in JAX (the default)
    faiss    the same folder, its prefixes indexed by FAISS: flat, HNSW, IVF or PQ
    milvus   a Milvus Lite file, or a Milvus server by its address

A document is an id, a text and one embedding of unit length. The back end searches its prefix of `prefix` coordinates;
what is found there is ranked by the whole embedding. Handles stand for documents until the index is changed.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mrl_jax.search.funnel import Hits


class Description(NamedTuple):
    """What an index was made for; stored with it."""

    width: int  # D, of the embeddings
    dims: tuple[int, ...]  # the nesting dims, ending at D
    prefix: int  # dims that are searched first, one of `dims`
    model: str  # fingerprint of the model that made the embeddings; those of another are refused
    run: str  # the run directory and member that it came from
    kind: str = "exact"  # how the back end searches: exact, faiss-hnsw, …


def described(told: str) -> Description:
    """The description in a stored text. Raises `ValueError` for one that no index has."""
    try:
        content = json.loads(told)
        found = Description(**{**content, "dims": tuple(content["dims"])})
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no description of an index: {error}") from None
    whole = all(type(dim) is int and dim > 0 for dim in (found.width, found.prefix, *found.dims))
    texts = all(isinstance(text, str) for text in (found.model, found.run, found.kind))
    if not whole or not texts or found.prefix not in found.dims or found.dims[-1] != found.width:
        raise ValueError(f"no description of an index: {told[:200]}")
    if any(a >= b for a, b in zip(found.dims, found.dims[1:], strict=False)):
        raise ValueError(f"dims that do not ascend: {told[:200]}")
    return found


class Document(NamedTuple):
    id: str
    text: str


class Index(Protocol):
    """What every back end does. Mistakes of the user raise `UserError`."""

    description: Description

    def __len__(self) -> int:
        """How many documents there are."""

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        """Insert or replace by id; vectors float32 [n, D]. When it returns, a kill −9 loses none of them."""

    def delete(self, ids: Sequence[str]) -> int:
        """Remove documents; returns how many of the ids there were."""

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        """Those of the ids that there are, with their documents."""

    def candidates(self, queries: np.ndarray, size: int) -> Any:
        """Handles [Q, size] of the documents with about the largest cosines on the prefix; −1 where there are fewer.

        Queries are whole embeddings, float32 [Q, D].
        """

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        """The embeddings float32 [n, D] of handles [n]."""

    def documents(self, handles: np.ndarray) -> list[Document]:
        """The documents of handles [n]."""

    def close(self) -> None:
        """Release files and connections; everything acknowledged is kept."""


def rerank(index: Index, queries: np.ndarray, k: int, size: int) -> Hits:
    """The k best by whole embedding of the `size` that the back end finds on the prefix; `rows` are handles."""
    handles = np.asarray(index.candidates(queries, size))
    known, place = np.unique(handles, return_inverse=True)
    vectors = np.zeros((len(known), queries.shape[1]), np.float32)
    vectors[known >= 0] = index.vectors(known[known >= 0])
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for q, (found, at) in enumerate(zip(handles, place.reshape(handles.shape), strict=True)):
        dots = np.where(found >= 0, vectors[at] @ queries[q], -np.inf)
        order = np.lexsort((found, -dots))[:k]
        scores[q, : len(order)], rows[q, : len(order)] = dots[order], np.where(dots[order] > -np.inf, found[order], -1)
    return Hits(scores, rows)
