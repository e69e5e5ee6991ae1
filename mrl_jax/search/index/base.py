"""What an index stores and what every back end does.

A document is an id, a text and one embedding of unit length. The back end searches its prefix of `prefix` coordinates;
`rerank` then orders the candidates by the whole embedding. Handles are integers that stand for documents until the
index is changed.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mrl_jax.search.queries import SearchResults

T = TypeVar("T")


class Description(NamedTuple):
    """What an index was made for; stored with it."""

    width: int  # D, of the embeddings
    dims: tuple[int, ...]  # the nesting dims, ending at D
    prefix: int  # dims that are searched first, one of `dims`
    model: str  # fingerprint of the model that made the embeddings; those of another are refused
    run: str  # the run directory, arm and seed of the model, joined by '#'
    kind: str = "exact"  # how the back end searches: exact, faiss-hnsw, …

    def to_json(self) -> str:
        """The text that an index stores."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Read what `to_json` wrote. Raises ValueError for a text that does not describe an index."""
        try:
            content = json.loads(text)
            description = cls(**{**content, "dims": tuple(content["dims"])})
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"not a description of an index: {error}") from None
        width, dims, prefix, *texts = description
        positive = all(type(dim) is int and dim > 0 for dim in (width, prefix, *dims))
        if (
            not positive
            or not all(isinstance(value, str) for value in texts)
            or prefix not in dims
            or dims[-1] != width
        ):
            raise ValueError(f"not a description of an index: {text[:200]}")
        if any(a >= b for a, b in pairwise(dims)):
            raise ValueError(f"dims must ascend: {text[:200]}")
        return description


class Document(NamedTuple):
    id: str
    text: str


class Index(Protocol):
    """What every back end does. Mistakes of the user raise `UserError`."""

    description: Description

    def __len__(self) -> int:
        """Number of documents."""

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        """Insert or replace by id; vectors float32 [n, D]. When it returns, a kill −9 loses none of them."""

    def delete(self, ids: Sequence[str]) -> int:
        """Remove documents; returns how many of the ids there were."""

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        """The documents with these ids, by id; ids without a document are left out."""

    def candidates(self, queries: np.ndarray, size: int) -> Any:
        """Handles [Q, size] of the documents with about the largest cosines on the prefix; −1 where there are fewer.

        Queries are whole embeddings, float32 [Q, D].
        """

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        """The embeddings float32 [n, D] of handles [n]."""

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(handles [n], embeddings float32 [n, D]) of all documents, as they are stored: not by a search."""

    def documents(self, handles: np.ndarray) -> list[Document]:
        """The documents of handles [n]."""

    def close(self) -> None:
        """Release files and connections; everything acknowledged is kept."""


def rerank(index: Index, queries: np.ndarray, k: int, size: int) -> SearchResults:
    """The k best by whole embedding of the `size` candidates that the back end returns for the prefix.

    Args:
        index: of any back end.
        queries: float32 [Q, D].
        k: number of results per query.
        size: candidates per query, at least k.

    Returns:
        `SearchResults` [Q, k]; the rows are handles.
    """
    handles = np.asarray(index.candidates(queries, size))
    unique, at = np.unique(handles, return_inverse=True)
    vectors = np.zeros((len(unique), queries.shape[1]), np.float32)
    vectors[unique >= 0] = index.vectors(unique[unique >= 0])
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for q, (candidates, places) in enumerate(zip(handles, at.reshape(handles.shape), strict=True)):
        dots = np.where(candidates >= 0, vectors[places] @ queries[q], -np.inf)
        order = np.lexsort((candidates, -dots))[:k]
        scores[q, : len(order)] = dots[order]
        rows[q, : len(order)] = np.where(dots[order] > -np.inf, candidates[order], -1)
    return SearchResults(scores, rows)


def check_add(description: Description, documents: Sequence[Document], vectors: np.ndarray) -> None:
    """Raises ValueError unless `vectors` are one finite embedding of the right width per document, ids unique."""
    if vectors.shape != (len(documents), description.width):
        raise ValueError(
            f"vectors have shape {vectors.shape}; {len(documents)} documents of this index take "
            f"[{len(documents)}, {description.width}]"
        )
    if not np.isfinite(vectors).all():
        raise ValueError("vectors hold numbers that are not finite")
    if len({one.id for one in documents}) < len(documents):
        raise ValueError("two of the documents have the same id")


def batched(values: Sequence[T], size: int) -> Iterator[list[T]]:
    """The values in lists of at most `size` (`itertools.batched` of Python 3.12)."""
    return (list(values[i : i + size]) for i in range(0, len(values), size))


def unit(x: np.ndarray) -> np.ndarray:
    """Rows float32 of unit length; a zero row stays zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.where(length > 0, length, 1), np.float32)
