"""A folder as for `exact`, its prefixes searched by FAISS; its candidates are ranked by whole embeddings here.

    faiss-flat   every prefix compared
    faiss-hnsw   a graph of neighbours (Malkov & Yashunin 2016): fast for single queries, slow to build
    faiss-ivf    cells around k-means centres, the nearest few searched
    faiss-pq     product quantisation, one byte per four dims (Jégou, Douze & Schmid 2011)

The FAISS index is derived from the folder and saved beside it, in {kind}-{version}.index: one line with a SHA-256, then
what FAISS serialises. Where the hash does not match, because the documents changed, the file is damaged or an earlier
version of this program wrote it, the index is rebuilt from the stored vectors.

The hash notices damage, not malice: FAISS trusts the bytes that it parses. Open the folder of a stranger only if you
trust them to run code, or delete its *.index first, which leaves text and vectors.
"""

import contextlib
import hashlib
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import console, files
from mrl_jax.errors import UserError
from mrl_jax.search.index import BACKENDS, store
from mrl_jax.search.index.base import Description, unit
from mrl_jax.search.index.store import exists

__all__ = ["FaissIndex", "create", "exists", "open_"]

HNSW_LINKS = 32  # per node of the graph
HNSW_NODES = 128  # nodes that a search of the graph keeps in view; twice as many while it is built
IVF_CELLS = 4  # there are this times √N cells …
IVF_PROBED_SHARE = 0.04  # … of which this share is searched, but at least IVF_MIN_PROBED
IVF_MIN_PROBED = 8
IVF_CELL_ROWS = 39  # at least so many documents per cell: FAISS warns of fewer
PQ_BYTE_DIMS = 4  # dims that share one byte
MIN_DOCUMENTS = {"faiss-flat": 1, "faiss-hnsw": 1, "faiss-ivf": 40, "faiss-pq": 256}
BLOCK_ROWS = 65536  # prefixes that are read at a time, and most of those that FAISS trains on
BLAS_QUERIES = 20  # batches of so many queries or more are matmuls, six times as fast as FAISS' default


class FaissIndex(store.Store):
    """See `Index`."""

    @cached_property
    def _searchable(self) -> tuple[Any, np.ndarray]:
        """The FAISS index and the row of each of its entries."""
        faiss = library()
        rows = np.flatnonzero(self.verify())
        path = self.folder / f"{self.description.kind}-{self.version}.index"
        if path.exists():
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                digest, content = path.read_bytes().split(b"\n", 1)
                if digest == self._digest(content):
                    return self._configure(faiss.deserialize_index(np.frombuffer(content, np.uint8))), rows
            print(f"{path} is damaged or of an earlier version; it is rebuilt", file=sys.stderr)
        index = self._build(faiss, rows)
        content = faiss.serialize_index(index).tobytes()
        try:
            for outdated in self.folder.glob(f"{self.description.kind}-*.index"):
                outdated.unlink(missing_ok=True)
            files.write(path, self._digest(content) + b"\n" + content)
        except (UserError, OSError) as error:  # a disk that is full or read-only: searched all the same
            print(f"{path} was not saved: {error}", file=sys.stderr)
        return self._configure(index), rows

    def _digest(self, content: bytes) -> bytes:
        """SHA-256, in hexadecimal, of a FAISS index and of the documents that it is for."""
        batches = self._select("SELECT start, stop, crc FROM batches ORDER BY start")
        documents = repr((self.description, self.version, batches)).encode()
        return hashlib.sha256(hashlib.sha256(documents).digest() + content).hexdigest().encode()

    def _build(self, faiss: Any, rows: np.ndarray) -> Any:
        kind, dim, count = self.description.kind, self.description.prefix, len(rows)
        if count < MIN_DOCUMENTS[kind]:
            raise UserError(f"{self.folder}: {kind} needs at least {MIN_DOCUMENTS[kind]} documents; there are {count}")
        cells = max(1, min(count // IVF_CELL_ROWS, round(IVF_CELLS * count**0.5)))
        recipes = {
            "faiss-flat": "Flat",
            "faiss-hnsw": f"HNSW{HNSW_LINKS},Flat",
            "faiss-ivf": f"IVF{cells},Flat",
            "faiss-pq": f"PQ{max(1, dim // PQ_BYTE_DIMS)}",
        }
        index = faiss.index_factory(dim, recipes[kind], faiss.METRIC_INNER_PRODUCT)
        if kind == "faiss-hnsw":
            index.hnsw.efConstruction = 2 * HNSW_NODES
        if not index.is_trained:
            index.train(self._prefixes(rows[:: max(1, count // BLOCK_ROWS)]))
        with console.progress(count, f"index {kind}", "doc") as bar:
            for start in range(0, count, BLOCK_ROWS):
                block = rows[start : start + BLOCK_ROWS]
                index.add(self._prefixes(block))
                bar.update(len(block))
        return index

    def _configure(self, index: Any) -> Any:
        """Set what only matters to searching, which FAISS does not serialise."""
        if self.description.kind == "faiss-hnsw":
            index.hnsw.efSearch = HNSW_NODES
        if self.description.kind == "faiss-ivf":
            index.nprobe = max(IVF_MIN_PROBED, round(IVF_PROBED_SHARE * index.nlist))
        return index

    def _prefixes(self, rows: np.ndarray) -> np.ndarray:
        return unit(self.stored_vectors()[rows][:, : self.description.prefix])

    def _invalidate(self) -> None:
        self.__dict__.pop("_searchable", None)

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        index, rows = self._searchable
        if self.description.kind == "faiss-hnsw":
            index.hnsw.efSearch = max(HNSW_NODES, size)
        entries = index.search(unit(queries[:, : self.description.prefix]), min(size, len(rows)))[1]
        handles = np.where(entries >= 0, rows[entries], -1)
        return np.pad(handles, ((0, 0), (0, size - handles.shape[1])), constant_values=-1)


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
