"""The default back end: a folder, searched in JAX.

The prefixes are held in memory, in bfloat16; whole embeddings stay in the file and are read for the few documents that
are ranked by them. A million documents of 384 dims searched on 64 take 128 MB that way, whatever D is. With `rotate` an
exact search on as many principal directions is prepared as well, at the same price.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from mrl_jax.search import funnel
from mrl_jax.search.funnel import Documents, Hits, Stored
from mrl_jax.search.index import Description
from mrl_jax.search.index import store as folders
from mrl_jax.search.index.store import Store


class ExactIndex(Store):
    """See `Index`. A change lays the prefixes out anew at the next search."""

    @cached_property
    def laid_out(self) -> Documents:
        """The prefixes as the model made them."""
        return self._lay_out(rotate=False)

    @cached_property
    def rotated(self) -> Documents:
        """As many principal directions, for exact search."""
        return self._lay_out(rotate=True)

    def _lay_out(self, rotate: bool) -> Documents:
        of, alive = self.description, self.verify()
        # Another process may have added some since.
        vectors = Stored(self.folder / "vectors.f32", len(alive), of.width)
        return funnel.lay_out(vectors, of.dims, scanned=of.prefix, alive=alive, rotate=rotate)

    def _changed(self) -> None:
        for name in ("laid_out", "rotated"):
            self.__dict__.pop(name, None)

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
        return funnel.shortlist(self.laid_out, queries, self.description.prefix, size)

    def search(self, queries: np.ndarray, k: int, steps: list[tuple[int, int]] | None) -> Hits:
        """The k best of a funnel's steps, or of all documents where there are none."""
        if steps is not None:
            return funnel.funnel(self.laid_out, queries, k, steps)
        return funnel.exact(self.rotated, queries, k, self.description.prefix)[0]


def create(folder: Path, description: Description) -> ExactIndex:
    """An empty index in a new folder, open for writing. Raises UserError when the folder holds something."""
    folders.create(folder, description)
    return open_(folder, write=True)


def open_(folder: Path, write: bool = False) -> ExactIndex:
    """The index in `folder`. Raises UserError: none there, a damaged one, or one that another process writes to."""
    connection, lock = folders.connect(folder, write)
    return ExactIndex(folder, connection, write, lock)
