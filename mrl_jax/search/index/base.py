"""What an index stores and what every back end does.

A document is an id, a text and one embedding of unit length. The back end searches its prefix of `prefix` coordinates;
`rerank` then orders the candidates by the whole embedding. Handles are integers that stand for documents until the
index is changed.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mrl_jax.search.queries import SearchResults
from mrl_jax.system.errors import UserError

PQ_BYTE_DIMS = 4
MAX_RERANK_BYTES = 1 << 28  # of whole embeddings that are read at a time to rank candidates
WHOLE = ("faiss-hnsw8", "faiss-rabitq")  # kinds that search whole embeddings first, in a byte or a bit per dim
# Kinds whose first order is nearly that of whole embeddings, and the share of a shortlist that is ranked by these: the
# rest is there for the graph, which needs a wide view to find the nearest.
RANKED_SHARE = {"faiss-hnsw8": 0.05}
RANKED_PER_RESULT = 4  # but at least so many

T = TypeVar("T")


class Description(NamedTuple):
    """What an index was made for; stored with it."""

    width: int  # D, of the embeddings
    dims: tuple[int, ...]  # the nesting dims, ending at D
    prefix: int  # dims that are searched first, one of `dims`
    model: str  # fingerprint of the model that made the embeddings; those of another are refused
    run: str  # the run directory, arm and seed of the model, joined by '#'
    kind: str = "exact"  # how the back end searches: exact, faiss-hnsw, …
    coarse: int | None = None  # dims that cells are formed on, one of `dims` up to `prefix`; by default the prefix
    pictures: str | None = None  # the folder that the pictures lie below whose paths in it are the ids; None: texts

    @property
    def scanned(self) -> int:
        """The dims that are searched first: those of the prefix, of some kinds all."""
        return self.width if self.kind in WHOLE else self.prefix

    def to_json(self) -> str:
        """The text that an index stores."""
        return json.dumps({key: value for key, value in self._asdict().items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """Read what `to_json` wrote. Raises ValueError for a text that does not describe an index."""
        try:
            content = json.loads(text)
            description = cls(**{**content, "dims": tuple(content["dims"])})
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"not a description of an index: {error}") from None
        width, dims, prefix, *texts, coarse, pictures = description
        positive = all(type(dim) is int and dim > 0 for dim in (width, prefix, *dims))
        if (
            not positive
            or not all(isinstance(value, str) for value in (*texts, pictures or ""))
            or prefix not in dims
            or dims[-1] != width
            or not (coarse is None or (type(coarse) is int and coarse in dims and coarse <= prefix))
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
    max_candidates: int  # per query

    def __len__(self) -> int:
        """Number of documents."""

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        """Insert or replace by id; vectors float32 [n, D]. When it returns, a kill −9 loses none of them."""

    def delete(self, ids: Sequence[str]) -> int:
        """Remove documents; returns how many of the ids there were."""

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        """The documents with these ids, by id; ids without a document are left out."""

    def handles(self, ids: Sequence[str]) -> dict[str, int]:
        """The handles of the documents with these ids, by id; ids without a document are left out."""

    def candidates(self, queries: np.ndarray, size: int, view: int | None = None) -> Any:
        """Handles [Q, size] of the documents with about the largest cosines on the prefix; −1 where there are fewer.

        A graph is searched as widely as for `view` of them, by default `size`; only kinds in `RANKED_SHARE` are asked.
        Queries are whole embeddings, float32 [Q, D]. An approximate search returns one document per embedding, and
        `copies` the others; where it finds fewer than there are, it searches wider, up to everything.
        """

    def copies(self, handles: np.ndarray, most: int) -> list[np.ndarray]:
        """Of each of handles [n] from `candidates`, those of the documents that it stands for: at most `most`."""

    def prepare(self) -> None:
        """Make ready to be searched, after a build. Raises UserError where these documents cannot be."""

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        """The embeddings float32 [n, D] of handles [n]."""

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(handles [n], embeddings float32 [n, D]) of all documents, as they are stored: not by a search."""

    def documents(self, handles: np.ndarray) -> list[Document]:
        """The documents of handles [n]."""

    def close(self) -> None:
        """Release files and connections; everything acknowledged is kept."""


def rerank(index: Index, queries: np.ndarray, k: int, size: int, dim: int | None = None) -> SearchResults:
    """The k best of the `size` candidates that the back end returns for the prefix, by whole embedding or, with `dim`,
    by the cosine of their first `dim` coordinates.

    Args:
        index: of any back end.
        queries: float32 [Q, D].
        k: number of results per query.
        size: candidates per query, at least k.
        dim: number of coordinates to compare; by default all.

    Returns:
        `SearchResults` [Q, k]; the rows are handles.
    """
    count = ranked(index.description.kind, k, size) if dim in (None, queries.shape[1]) else size
    if count < size:
        handles = np.asarray(index.candidates(queries, count, view=size))
    else:  # a back end of other kinds need not know `view`
        handles = np.asarray(index.candidates(queries, size))
    best_of_queries = []
    at_once = max(1, MAX_RERANK_BYTES // (4 * queries.shape[1] * max(1, handles.shape[1])))
    for start in range(0, len(queries), at_once):
        some = slice(start, start + at_once)
        best_of_queries += _best(index, queries[some], handles[some], k, dim)
    return _with_copies(index, best_of_queries, k)


def ranked(kind: str, k: int, size: int) -> int:
    """How many of `size` candidates are ranked by whole embeddings for k results."""
    return min(size, max(RANKED_PER_RESULT * k, math.ceil(RANKED_SHARE.get(kind, 1) * size)))


def _best(
    index: Index, queries: np.ndarray, handles: np.ndarray, k: int, dim: int | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each query the scores and handles of the k best among `handles` [Q, size], −1 for none."""
    unique, at = np.unique(handles, return_inverse=True)
    vectors = np.zeros((len(unique), queries.shape[1]), np.float32)
    vectors[unique >= 0] = index.vectors(unique[unique >= 0])
    if dim is not None and dim < queries.shape[1]:
        queries, vectors = unit(queries[:, :dim]), unit(vectors[:, :dim])
    best = []
    for query, candidates, places in zip(queries, handles, at.reshape(handles.shape), strict=True):
        dots = np.where(candidates >= 0, vectors[places] @ query, -np.inf)
        order = np.lexsort((candidates, -dots))[:k]
        order = order[dots[order] > -np.inf]
        best.append((dots[order], candidates[order]))
    return best


def _with_copies(index: Index, best_of_queries: list[tuple[np.ndarray, np.ndarray]], k: int) -> SearchResults:
    """The k best [Q, k] of the documents that the best candidates stand for, ties to the lower handle."""
    chosen = np.unique(np.concatenate([np.zeros(0, np.int64), *(handles for _, handles in best_of_queries)]))
    copies = dict(zip(chosen.tolist(), index.copies(chosen, k), strict=True))
    scores = np.full((len(best_of_queries), k), -np.inf, np.float32)
    rows = np.full((len(best_of_queries), k), -1, np.int64)
    for q, (dots, handles) in enumerate(best_of_queries):
        if not len(handles):
            continue
        documents = [copies[handle] for handle in handles.tolist()]
        all_scores = np.repeat(dots, [len(some) for some in documents])
        all_rows = np.concatenate(documents)
        order = np.lexsort((all_rows, -all_scores))[:k]
        scores[q, : len(order)], rows[q, : len(order)] = all_scores[order], all_rows[order]
    return SearchResults(scores, rows)


@contextlib.contextmanager
def library_errors(place: object, settings: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn these errors of a library into a `UserError` that names the place, the settings and the reason."""
    try:
        yield
    except errors as error:
        raise UserError(f"{place}: {settings}: {first_line(error)}") from None


def first_line(error: object) -> str:
    """What a library gives as its reason, in one line and without the place in its source."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text.rpartition("Error: ")[2] or "no reason given"


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


def quantised_bytes(dim: int) -> int:
    """Bytes of a vector in product quantisation: one for at least `PQ_BYTE_DIMS` dims, and as many for each byte."""
    return next(count for count in range(max(1, dim // PQ_BYTE_DIMS), 0, -1) if dim % count == 0)
