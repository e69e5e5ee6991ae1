"""The default back end: a folder, searched in JAX.

The prefixes are held in memory, in bfloat16; whole embeddings stay in the file and are read for the few documents that
are ranked by them. A million documents of 384 dims searched on 64 take 128 MB that way, whatever D is. Exact search
scans as many principal directions instead of the prefix, which take the same memory again.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from mrl_jax.search import exact, shortlist
from mrl_jax.search.index import store
from mrl_jax.search.index.base import Description, unit
from mrl_jax.search.index.store import exists
from mrl_jax.search.layout import Documents, StoredPrefixes, StoredVectors, lay_out
from mrl_jax.search.queries import SearchResults

__all__ = ["ExactIndex", "create", "exists", "open_"]


class ExactIndex(store.Store):
    """See `Index`. After a change, the next search lays out the prefixes again."""

    @cached_property
    def prefixes(self) -> Documents:
        """Laid out as the model made them."""
        return self._lay_out(rotate=False)

    @cached_property
    def principal_directions(self) -> Documents:
        """Laid out as many principal directions, for exact search."""
        return self._lay_out(rotate=True)

    @cached_property
    def by_dim(self) -> dict[int, Documents]:
        """Laid out for exact search by a prefix alone, by its dim; filled as dims are asked for."""
        return {}

    def _lay_out(self, rotate: bool, dim: int | None = None) -> Documents:
        alive, (width, dims, prefix, *_) = self.verify(), self.description
        # Another process may have added rows since: those of `alive` are the ones that were verified.
        file = self.folder / "vectors.f32", len(alive), width
        vectors = StoredVectors(*file) if dim is None else StoredPrefixes(*file, dim)
        dim = dim or width
        dims = tuple(m for m in dims if m <= dim)
        return lay_out(vectors, dims, scanned=min(prefix, dim), alive=alive, rotate=rotate)

    def _invalidate(self) -> None:
        for name in ("prefixes", "principal_directions", "by_dim"):
            self.__dict__.pop(name, None)

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
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
                self.by_dim[dim] = self._lay_out(rotate=dim > self.description.prefix, dim=dim)
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
