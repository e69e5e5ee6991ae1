"""Where documents and their embeddings are stored and searched: one interface (`Index`), and `BACKENDS` that have it.

    exact    a folder: SQLite for ids and texts, one flat file of vectors; searched in JAX (the default)
    faiss    the same folder, its prefixes indexed by FAISS: flat, HNSW, IVF, PQ, or HNSW and RaBitQ of whole embeddings
    milvus   a Milvus Lite file, or a Milvus server by its address

A further back end is a module with the functions that `Backend` names, and an entry in `BACKENDS`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax.search.index.base import Description, Document, Index, rerank
from mrl_jax.system.errors import UserError, one_of

__all__ = [
    "BACKENDS", "Backend", "Description", "Document", "Index",
    "by_kind", "create_index", "default_kind", "exists", "is_in_folder", "open_as", "open_index", "rerank",
]  # fmt: skip


def is_server(place: str) -> bool:
    """An address: http://host:19530, perhaps with a database after a slash."""
    return place.startswith(("http://", "https://"))


def is_database(place: str) -> bool:
    """A Milvus Lite file."""
    return not is_server(place) and place.endswith(".db")


def is_in_folder(place: str) -> bool:
    """A folder: whatever is not something else, but not an address of another kind."""
    return bool(place) and "://" not in place and not is_database(place)


class Backend(NamedTuple):
    """One way to store and search documents."""

    # Imported when it is first used, since clients take a second. It has `create(place, description)` and
    # `open_(place, write)`, which return an `Index`, and `exists(place)`: whether a build there is to be continued.
    # Those of servers take a `token`, too.
    module: str
    is_place: Callable[[str], bool]  # whether its indexes are at places like this one
    kinds: tuple[str, ...]  # ways to search, by the names that --kind and a stored description give them; default first
    extra: str | None = None  # the optional dependency that it needs: pip install 'mrl_jax[extra]'

    def load(self) -> Any:
        """The module, which needs nothing of the extra before one of its functions is called."""
        return importlib.import_module(self.module)

    def missing_extra(self) -> UserError:
        """The error for an extra that is not installed."""
        return UserError(f"an index of kind {self.kinds[0]} needs more packages: pip install 'mrl_jax[{self.extra}]'")


BACKENDS: dict[str, Backend] = {
    "exact": Backend("mrl_jax.search.index.exact", is_in_folder, ("exact",)),
    "faiss": Backend(
        "mrl_jax.search.index.faiss", is_in_folder,
        ("faiss-flat", "faiss-hnsw", "faiss-hnsw8", "faiss-ivf", "faiss-pq", "faiss-rabitq"), "faiss",
    ),
    "milvus-lite": Backend(  # it takes any other name as well, and cannot open the index again
        "mrl_jax.search.index.milvus", is_database,
        ("milvus-autoindex", "milvus-flat", "milvus-hnsw", "milvus-ivf_flat", "milvus-ivf_sq8"), "milvus",
    ),
    "milvus": Backend(
        "mrl_jax.search.index.milvus", is_server,
        ("milvus-autoindex", "milvus-flat", "milvus-hnsw", "milvus-ivf_flat", "milvus-ivf_sq8", "milvus-ivf_pq",
         "milvus-diskann"), "milvus",
    ),
}  # fmt: skip


def by_kind(place: str) -> dict[str, Backend]:
    """The kinds of index that there can be at `place`, each with its back end; the default first."""
    kinds = {kind: backend for backend in BACKENDS.values() if backend.is_place(place) for kind in backend.kinds}
    if not kinds:
        raise UserError(f"{place!r} is no place for an index; give a folder, a file ….db, or http://host:19530")
    return kinds


def default_kind(place: str) -> str:
    return next(iter(by_kind(place)))


def _access(place: str, token: str) -> dict[str, str]:
    """What a back end needs to know of whoever comes. Raises UserError for a token where nobody asks for one."""
    if token and not is_server(place):
        raise UserError(f"--token is for a Milvus server; {place} is none")
    return {"token": token} if token else {}


def create_index(place: str, description: Description, token: str = "") -> Index:
    """An empty index at `place`, of `description.kind`. Raises UserError: no such kind there, or a place in use."""
    kinds = by_kind(place)
    backend = kinds[one_of("--kind", description.kind, kinds)]
    index: Index = backend.load().create(place, description, **_access(place, token))
    return index


def open_index(place: str, write: bool = False, token: str = "") -> Index:
    """The index at `place`, whatever its back end. Raises UserError where there is none or it cannot be used.

    Args:
        place: a folder, a Milvus Lite file or the address of a server.
        write: whether documents may be added and deleted.
        token: of a server, such as user:password; by default what the environment says.
    """
    kinds, access = by_kind(place), _access(place, token)
    if is_in_folder(place):  # several back ends have folders, all of them with the same store
        from mrl_jax.search.index import store

        kind = store.read_description(Path(place)).kind
        if kind not in kinds:
            raise UserError(f"{place} is an index of kind {kind}; this version opens {', '.join(kinds)}")
    else:
        kind = default_kind(place)
    index: Index = kinds[kind].load().open_(place, write, **access)
    return index


def open_as(place: str, kind: str) -> Index:
    """The documents of a folder, for reading, searched as if the index were of another kind that folders can have."""
    index: Index = by_kind(place)[kind].load().open_(place)
    index.description = index.description._replace(kind=kind)
    return index


def exists(place: str, token: str = "") -> bool:
    """Whether there is something at `place` already: then a build continues it."""
    there: bool = by_kind(place)[default_kind(place)].load().exists(place, **_access(place, token))
    return there
