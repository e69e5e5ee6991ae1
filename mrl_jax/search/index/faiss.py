"""A folder as for `exact`, its prefixes searched by FAISS; its candidates are ranked by whole embeddings here.

    faiss-flat     every prefix compared
    faiss-hnsw     a graph of neighbours (Malkov & Yashunin 2016): fast for single queries, slow to build
    faiss-hnsw8    the same on whole embeddings, one byte per dim
    faiss-ivf      cells around k-means centres, the nearest few searched; on fewer dims than the prefix where the
                   description says so (AdANNS, Rege et al. 2023)
    faiss-pq       product quantisation, one byte per four dims (Jégou, Douze & Schmid 2011)
    faiss-rabitq   whole embeddings, one bit per dim and two numbers beside (RaBitQ, Gao & Long 2024)

The FAISS index has each distinct prefix once (see `distinct`). It is derived from the folder and saved beside it, in
{kind}-{version}.index: one line with a SHA-256, which documents share a prefix, then what FAISS serialises. Where the
hash does not match, because the documents changed, the file is damaged or an earlier version of this program wrote it,
the index is built again from the stored vectors. A file that was found intact once is not hashed again (`verified`).

The hash notices damage, not malice: FAISS trusts the bytes that it parses. Open the folder of a stranger only if you
trust them to run code, or delete its *.index first, which leaves text and vectors.
"""

import contextlib
import hashlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.search.index import BACKENDS, store
from mrl_jax.search.index.base import Description, library_errors, quantised_bytes, unit
from mrl_jax.search.index.derived import read_or_make
from mrl_jax.search.index.distinct import Distinct, find_distinct
from mrl_jax.search.index.store import exists
from mrl_jax.system import console
from mrl_jax.system.errors import UserError

__all__ = ["FaissIndex", "create", "exists", "open_"]

FORMAT = 3  # of the file
HNSW_LINKS = 32  # per node of the graph
HNSW_NODES = 128  # nodes that a search of the graph keeps in view; twice as many while it is built
IVF_CELLS = 4  # there are this times √N cells …
IVF_PROBED_SHARE = 0.04  # … of which this share is searched, but at least IVF_MIN_PROBED
IVF_MIN_PROBED = 8
IVF_CELL_ROWS = 39  # at least so many entries per cell, if there is more than one
MIN_ENTRIES = {
    "faiss-flat": 1, "faiss-hnsw": 1, "faiss-hnsw8": 1, "faiss-ivf": 1, "faiss-pq": 256, "faiss-rabitq": 1,
}  # fmt: skip
BLOCK_ROWS = 65536  # prefixes that are read at a time, and most of those that FAISS trains on
BLAS_QUERIES = 20  # batches of so many queries or more are matmuls, six times as fast as FAISS' default


class FaissIndex(store.Store):
    """See `Index`. An entry of the FAISS index is a distinct prefix."""

    @cached_property
    def searchable(self) -> tuple[Any, Distinct]:
        """The FAISS index, and the documents that its entries stand for."""
        faiss = library()

        def read(path: Path, digest: str, is_intact: bool) -> tuple[Any, Distinct]:
            line, content = path.read_bytes().split(b"\n", 1)
            if not line.startswith(_head(digest)) or not (is_intact or line == _head(digest, content)):
                raise ValueError("not what was written for these documents")
            file = io.BytesIO(content)
            distinct = Distinct.from_file(file)
            return faiss.deserialize_index(np.frombuffer(content, np.uint8, offset=file.tell())), distinct

        def make() -> tuple[Any, Distinct]:
            distinct = find_distinct(self.blocks(), self.description.scanned)
            with self._errors():
                return self._build(faiss, distinct.rows), distinct

        def parts(digest: str, made: tuple[Any, Distinct]) -> list[bytes]:
            content = made[1].to_bytes() + faiss.serialize_index(made[0]).tobytes()
            return [_head(digest, content) + b"\n", content]

        return read_or_make(self, f"{self.description.kind}-{{version}}.index", read, make, parts)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        settings = f"FAISS cannot search {self.description.scanned} dims as {self.description.kind}"
        return library_errors(self.folder, settings, RuntimeError, AssertionError, MemoryError)

    def _build(self, faiss: Any, rows: np.ndarray) -> Any:
        """A FAISS index of the prefixes of `rows`."""
        kind, dim, count = self.description.kind, self.description.scanned, len(rows)
        if count < MIN_ENTRIES[kind]:
            raise UserError(
                f"{self.folder}: {kind} needs at least {MIN_ENTRIES[kind]} documents with different prefixes; "
                f"there are {count:,}: add documents, or build an index of another --kind"
            )
        cells = max(1, min(count // IVF_CELL_ROWS, round(IVF_CELLS * count**0.5)))
        recipes = {
            "faiss-flat": "Flat",
            "faiss-hnsw": f"HNSW{HNSW_LINKS},Flat",
            "faiss-hnsw8": f"HNSW{HNSW_LINKS}_SQ8",
            "faiss-ivf": f"IVF{cells},Flat",
            "faiss-pq": f"PQ{quantised_bytes(dim)}np",  # np: without minutes of training for a Hamming distance
            "faiss-rabitq": "RaBitQfs",  # the rotation before it that the paper has changed nothing
        }
        coarse = self.description.coarse
        if kind == "faiss-ivf" and coarse not in (None, dim):
            index = _with_coarse_cells(faiss, dim, coarse, cells)
        else:
            index = faiss.index_factory(dim, recipes[kind], faiss.METRIC_INNER_PRODUCT)
        if kind in ("faiss-hnsw", "faiss-hnsw8"):
            index.hnsw.efConstruction = 2 * HNSW_NODES
        if kind in ("faiss-pq", "faiss-ivf"):  # no warning, which would come once for each byte of a vector
            (index.pq if kind == "faiss-pq" else index).cp.min_points_per_centroid = 1
        if not index.is_trained:
            index.train(self._prefixes(rows[:: max(1, count // BLOCK_ROWS)]))
        with console.progress(count, f"index {kind}", "doc") as bar:
            for start in range(0, count, BLOCK_ROWS):
                block = rows[start : start + BLOCK_ROWS]
                index.add(self._prefixes(block))
                bar.update(len(block))
        return index

    def _prefixes(self, rows: np.ndarray) -> np.ndarray:
        return unit(self.stored_vectors()[rows][:, : self.description.scanned])

    def _invalidate(self) -> None:
        self.__dict__.pop("searchable", None)

    def prepare(self) -> None:
        super().prepare()
        _ = self.searchable

    def candidates(self, queries: np.ndarray, size: int, view: int | None = None) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        index, distinct = self.searchable
        prefixes = unit(queries[:, : self.description.scanned])
        with self._errors():
            entries = _search(library(), index, prefixes, min(size, index.ntotal), view or size)
        return distinct.expand(entries, size)

    def copies(self, handles: np.ndarray, most: int) -> list[np.ndarray]:
        return self.searchable[1].copies(handles, most)


def _with_coarse_cells(faiss: Any, dim: int, coarse: int, cells: int) -> Any:
    """An IVF index of `dim` dims whose cells are formed, and found for a query, on the first `coarse` of them."""
    centres = faiss.IndexFlatIP(coarse)
    index = faiss.IndexIVFFlat(
        faiss.IndexPreTransform(faiss.RemapDimensionsTransform(dim, coarse, False), centres),
        dim,
        cells,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.spherical = False  # a centre would be scaled by all its dims, of which only the first are compared
    return index


def _head(digest: str, content: bytes | None = None) -> bytes:
    """The first line of the file, or what it begins with: the format, the documents, a SHA-256 of the content."""
    return f"{FORMAT} {digest} {'' if content is None else hashlib.sha256(content).hexdigest()}".encode()


def _search(faiss: Any, index: Any, prefixes: np.ndarray, size: int, view: int) -> np.ndarray:
    """The entries [Q, size] of about the largest inner products; all are there, as there are `size` at least. A graph
    keeps at least `view` nodes in view.

    Where a search finds fewer, more cells are probed, up to all; of a graph that is not connected, all nodes compared.
    """
    if isinstance(index, faiss.IndexIVF):
        probed = max(IVF_MIN_PROBED, round(IVF_PROBED_SHARE * index.nlist))
        found: np.ndarray = index.search(prefixes, size, params=faiss.SearchParametersIVF(nprobe=probed))[1]
        while probed < index.nlist and (short := (found < 0).any(axis=1)).any():
            probed *= 2
            found[short] = index.search(prefixes[short], size, params=faiss.SearchParametersIVF(nprobe=probed))[1]
    elif isinstance(index, faiss.IndexHNSW):
        nodes = faiss.SearchParametersHNSW(efSearch=max(HNSW_NODES, view))
        found = index.search(prefixes, size, params=nodes)[1]
        if (short := (found < 0).any(axis=1)).any():
            found[short] = faiss.downcast_index(index.storage).search(prefixes[short], size)[1]
    else:
        found = index.search(prefixes, size)[1]
    return found


def library() -> Any:
    """The module faiss, set to use matmuls from `BLAS_QUERIES` queries on."""
    try:
        import faiss
    except ImportError:
        raise BACKENDS["faiss"].missing_extra() from None
    faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES
    return faiss


def create(place: str | Path, description: Description) -> FaissIndex:
    """An empty index in a new folder, open for writing. Raises UserError when the folder holds something."""
    library()
    store.create(Path(place), description)
    return open_(place, write=True)


def open_(place: str | Path, write: bool = False) -> FaissIndex:
    """The index in a folder. Raises UserError: none there, a damaged one, or one that another process writes to."""
    return FaissIndex(Path(place), *store.connect(Path(place), write), write)
