"""The default back end: a folder, searched in JAX.

The prefixes are held in memory, in bfloat16; whole embeddings stay in the file and are read for the few documents that
are ranked by them. A million documents of 384 dims searched on 64 take 128 MB that way, whatever D is. Exact search
scans as many principal directions instead of the prefix, which take the same memory again.

What is held in memory is saved beside the documents by whoever only reads them, in {prefixes|principal|dim64}-{version}
.layout (see `saved_layout`), since laying out ten million documents takes minutes and reading that file a second.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from mrl_jax.search import exact, shortlist
from mrl_jax.search.index import saved_layout, store
from mrl_jax.search.index.base import Description, unit
from mrl_jax.search.index.derived import read_or_make
from mrl_jax.search.index.store import exists
from mrl_jax.search.layout import Documents, StoredPrefixes, StoredVectors, lay_out
from mrl_jax.search.queries import SearchResults

__all__ = ["ExactIndex", "create", "exists", "open_"]


class ExactIndex(store.Store):
    """See `Index`. After a change, the next search lays out the prefixes again."""

    @cached_property
    def prefixes(self) -> Documents:
        """Laid out as the model made them."""
        return self._laid_out("prefixes", self.description.width, rotate=False)

    @cached_property
    def principal_directions(self) -> Documents:
        """Laid out as many principal directions, for exact search."""
        return self._laid_out("principal", self.description.width, rotate=True)

    @cached_property
    def by_dim(self) -> dict[int, Documents]:
        """Laid out for exact search by a prefix alone, by its dim; filled as dims are asked for."""
        return {}

    def _laid_out(self, name: str, dim: int, rotate: bool) -> Documents:
        """The first `dim` coordinates of the embeddings, laid out; read from a file, where one of this version is."""
        width, dims, prefix, *_ = self.description
        dims, scanned = tuple(m for m in dims if m <= dim), min(prefix, dim)

        def vectors(count: int) -> StoredVectors:
            file = self.folder / "vectors.f32", count, width
            return StoredVectors(*file) if dim == width else StoredPrefixes(*file, dim)

        def read(path: Path, key: str, is_intact: bool) -> Documents:
            return saved_layout.load(path, key, vectors(self.rows), dims, scanned, rotate, is_intact)

        def make() -> Documents:
            alive = self.alive()
            # Another process may have added rows since: those of `alive` are the ones that were verified.
            return lay_out(vectors(len(alive)), dims, scanned=scanned, alive=alive, rotate=rotate)

        return read_or_make(self, f"{name}-{{version}}.layout", read, make, saved_layout.parts, not self.writable)

    def _invalidate(self) -> None:
        for name in ("prefixes", "principal_directions", "by_dim"):
            self.__dict__.pop(name, None)

    def candidates(self, queries: np.ndarray, size: int, view: int | None = None) -> np.ndarray:
        del view  # every document is compared
        return shortlist.shortlist(self.prefixes, queries, self.description.prefix, size)

    def search(
        self, queries: np.ndarray, k: int, stages: list[tuple[int, int]] | None, dim: int | None = None
    ) -> SearchResults:
        """The k best by the stages of a funnel or, with None, of all documents: by the cosine of the first `dim`
        coordinates, one of the nesting dims, or by the whole embedding."""
        if stages is not None:
            return shortlist.search(self.prefixes, queries, k, stages)
        if dim is not None and dim < self.description.width:
            if dim not in self.by_dim:
                self.by_dim[dim] = self._laid_out(f"dim{dim}", dim, rotate=dim > self.description.prefix)
            documents = self.by_dim[dim]
            return exact.search(documents, unit(queries[:, :dim]), k, documents.scan_dims[-1])[0]
        return exact.search(self.principal_directions, queries, k, self.description.prefix)[0]


def create(place: str | Path, description: Description) -> ExactIndex:
    """An empty index in a new folder, open for writing. Raises UserError when the folder holds something."""
    store.create(Path(place), description)
    return open_(place, write=True)


def open_(place: str | Path, write: bool = False) -> ExactIndex:
    """The index in a folder. Raises UserError: none there, a damaged one, or one that another process writes to."""
    return ExactIndex(Path(place), *store.connect(Path(place), write), write)
