"""A folder as for `exact`, its prefixes searched by FAISS; what is found there is ranked by whole embeddings here.

    faiss-flat   every prefix compared
    faiss-hnsw   a graph of neighbours (Malkov & Yashunin 2016): fast for single queries, slow to build
    faiss-ivf    cells around k-means centres, the nearest few searched
    faiss-pq     product quantisation, a byte for four dims (Jégou, Douze & Schmid 2011)

The FAISS index is derived from the folder and kept beside it; it is made anew when the documents have changed. FAISS
trusts what it reads, to the point of running into foreign memory, so what is kept is signed with a key of this user:
in a folder that came from elsewhere, or was damaged, it is made anew too.
"""

import contextlib
import hashlib
import hmac
import secrets
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax import console, files
from mrl_jax.errors import UserError, one_of
from mrl_jax.files import default_cache
from mrl_jax.search.index import Description
from mrl_jax.search.index import store as folders
from mrl_jax.search.index.store import Store

KINDS = ("faiss-flat", "faiss-hnsw", "faiss-ivf", "faiss-pq")
LINKS = 32  # of a node of HNSW
SEARCHED = 128  # nodes kept while HNSW is searched, and twice that while it is built
CELLS = 4  # IVF has this times √N cells …
PROBED = 0.04  # … of which this share is searched, 8 at least
LEAST = {"faiss-ivf": 40, "faiss-pq": 256}  # documents that there must be
ROWS = 65536  # at a time


class FaissIndex(Store):
    """See `Index`."""

    @cached_property
    def _built(self) -> tuple[Any, np.ndarray]:
        """The FAISS index and the row of each of its entries."""
        faiss = library()
        rows = np.flatnonzero(self.verify())
        path = self.folder / f"{self.description.kind}-{self.version}.index"
        if path.exists():
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                signature, content = path.read_bytes().split(b"\n", 1)
                if hmac.compare_digest(signature, self._signature(content)):
                    return self._ready(faiss.deserialize_index(np.frombuffer(content, np.uint8))), rows
            print(f"{path} is damaged, or was not made here; it is made anew", file=sys.stderr)
        index = self._build(faiss, rows)
        content = faiss.serialize_index(index).tobytes()
        try:
            for old in self.folder.glob(f"{self.description.kind}-*.index"):
                old.unlink(missing_ok=True)
            files.write(path, self._signature(content) + b"\n" + content)
        except (UserError, OSError) as error:  # a disk that is full or read-only: searched all the same
            print(f"{path} is not kept: {error}", file=sys.stderr)
        return self._ready(index), rows

    def _signature(self, content: bytes) -> bytes:
        """Of what may be read again as the index of these documents."""
        batches = self._rows("SELECT start, stop, crc FROM batches ORDER BY start")
        told = repr((self.description, self.version, batches)).encode()
        return hmac.digest(key(), hashlib.sha256(told).digest() + content, "sha256").hex().encode()

    def _build(self, faiss: Any, rows: np.ndarray) -> Any:
        kind, dim, count = self.description.kind, self.description.prefix, len(rows)
        if count < LEAST.get(kind, 1):
            raise UserError(f"{self.folder}: {kind} needs {LEAST.get(kind, 1)} documents or more; there are {count}")
        cells = max(1, min(count // 39, round(CELLS * count**0.5)))
        made = {
            "faiss-flat": "Flat",
            "faiss-hnsw": f"HNSW{LINKS},Flat",
            "faiss-ivf": f"IVF{cells},Flat",
            "faiss-pq": f"PQ{max(1, dim // 4)}",
        }
        index = faiss.index_factory(dim, made[kind], faiss.METRIC_INNER_PRODUCT)
        if kind == "faiss-hnsw":
            index.hnsw.efConstruction = 2 * SEARCHED
        if not index.is_trained:
            sample = rows[:: max(1, count // ROWS)]
            index.train(self._prefixes(sample))
        with console.progress(count, f"index {kind}", "doc") as bar:
            for start in range(0, count, ROWS):
                some = rows[start : start + ROWS]
                index.add(self._prefixes(some))
                bar.update(len(some))
        return index

    def _ready(self, index: Any) -> Any:
        """With the settings that only matter to searching."""
        if self.description.kind == "faiss-hnsw":
            index.hnsw.efSearch = SEARCHED
        if self.description.kind == "faiss-ivf":
            index.nprobe = max(8, round(PROBED * index.nlist))
        return index

    def _prefixes(self, rows: np.ndarray) -> np.ndarray:
        return unit(self.stored()[rows][:, : self.description.prefix])

    def _changed(self) -> None:
        self.__dict__.pop("_built", None)

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        index, rows = self._built
        if self.description.kind == "faiss-hnsw":
            index.hnsw.efSearch = max(SEARCHED, size)
        found = index.search(unit(queries[:, : self.description.prefix]), min(size, len(rows)))[1]
        handles = np.where(found >= 0, rows[found], -1)
        return np.pad(handles, ((0, 0), (0, size - handles.shape[1])), constant_values=-1)


def key() -> bytes:
    """What this user signs with: 32 bytes in the cache folder, made when first needed."""
    path = default_cache() / "key"
    with contextlib.suppress(OSError):
        found = path.read_bytes()
        if len(found) == 32:
            return found
    made = secrets.token_bytes(32)
    with contextlib.suppress(OSError, UserError):  # without a place for it nothing is ever read again
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        files.write(path, made)
        path.chmod(0o600)
    return made


def library() -> Any:
    """The module faiss, with batches of 20 queries or more as matrix products, six times as fast as its default."""
    try:
        import faiss
    except ImportError:
        raise UserError("an index of kind faiss-… needs FAISS: pip install 'mrl_jax[faiss]'") from None
    faiss.cvar.distance_compute_blas_threshold = 20
    return faiss


def unit(x: np.ndarray) -> np.ndarray:
    """Rows float32 of unit length; a zero row stays zero."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.ascontiguousarray(x / np.where(length > 0, length, 1), np.float32)


def create(folder: Path, description: Description) -> FaissIndex:
    """An empty index in a new folder, open for writing. Raises UserError when the folder holds something."""
    one_of("kind", description.kind, KINDS)
    library()
    folders.create(folder, description)
    return open_(folder, write=True)


def open_(folder: Path, write: bool = False) -> FaissIndex:
    """The index in `folder`. Raises UserError: none there, a damaged one, or one that another process writes to."""
    connection, lock = folders.connect(folder, write)
    return FaissIndex(folder, connection, write, lock)
