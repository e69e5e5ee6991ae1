"""Documents in Milvus: embedded (Milvus Lite, a path that ends in .db) or on a server or cluster (http://host:19530).

A collection has the fields id, text, vector (the whole embedding) and prefix (its first coordinates, at unit length).
Milvus searches the prefix; what it finds is ranked by whole embeddings here. The same code serves both, so that a
corpus that outgrows a machine moves to a cluster by another address. Nothing is claimed about the speed of Milvus Lite,
which is made for trying things out.
"""

import contextlib
import importlib.util
import json
import logging
import logging.config
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mrl_jax.errors import UserError, one_of
from mrl_jax.index import Description, Document
from mrl_jax.index.faiss import unit
from mrl_jax.index.store import check_add

COLLECTION = "documents"
ABOUT = "mrl_jax"  # the property with what an index was made for; servers keep it in the description as well
SERVER = ("autoindex", "flat", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "diskann")
LITE = ("autoindex", "flat")  # it takes any other name without a word, and searches as it can
LITE_WITH_FAISS = ("hnsw", "ivf_flat")
MOST_DIMS = 32768  # limits of a Milvus server
MOST_FOUND = 16384
ID_BYTES, TEXT_BYTES = 512, 65535
MESSAGE = 16 << 20  # bytes sent at a time; servers take 64 MiB
SECONDS = 5.0  # to wait for a server that does not answer


class MilvusIndex:
    """See `Index`. Handles count the ids that this object has met."""

    def __init__(self, uri: str, client: Any, description: Description) -> None:
        self.uri, self._client, self.description = uri, client, description
        self._ids: list[str] = []
        self._handles: dict[str, int] = {}

    def __len__(self) -> int:
        with self._said():
            return int(self._client.query(COLLECTION, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        check_add(self.description, documents, vectors)
        for one in documents:
            for name, value, most in (("id", one.id, ID_BYTES), ("text", one.text, TEXT_BYTES)):
                if len(value.encode()) > most:
                    raise UserError(
                        f"document {one.id[:40]}: its {name} has {len(value.encode()):,} bytes; Milvus takes {most:,}"
                    )
        prefixes = unit(vectors[:, : self.description.prefix])
        rows: list[dict[str, Any]] = []
        size = 0
        for one, vector, prefix in zip(documents, np.asarray(vectors, np.float32), prefixes, strict=True):
            rows.append({"id": one.id, "text": one.text, "vector": vector, "prefix": prefix})
            size += len(one.id) + len(one.text.encode()) + vector.nbytes + prefix.nbytes
            if size > MESSAGE:
                self._upsert(rows)
                rows, size = [], 0
        self._upsert(rows)

    def _upsert(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            with self._said():
                self._client.upsert(COLLECTION, rows)

    def delete(self, ids: Sequence[str]) -> int:
        known = list(self.find(ids))
        for some in _some(known):
            with self._said():
                self._client.delete(COLLECTION, filter=_among(some))
        return len(known)

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        return {row["id"]: Document(row["id"], row["text"]) for row in self._get(list(dict.fromkeys(ids)), ["text"])}

    def _get(self, ids: list[str], fields: list[str]) -> Iterator[dict[str, Any]]:
        for some in _some(ids):
            with self._said():
                yield from self._client.query(COLLECTION, filter=_among(some), output_fields=["id", *fields])

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        if size > MOST_FOUND:
            raise UserError(f"Milvus finds at most {MOST_FOUND:,} documents at a time; {size:,} were asked for")
        handles = np.full((len(queries), size), -1, np.int64)
        prefixes = unit(queries[:, : self.description.prefix])
        step = max(1, MOST_FOUND // size)  # queries a call: what comes back is limited too
        for start in range(0, len(queries), step):
            with self._said():
                found = self._client.search(
                    COLLECTION, data=list(prefixes[start : start + step]), anns_field="prefix", limit=size,
                    output_fields=["id"],
                )  # fmt: skip
            for q, hits in enumerate(found, start):
                handles[q, : len(hits)] = [self._handle(hit["id"]) for hit in hits]
        return handles

    def _handle(self, id_: str) -> int:
        if id_ not in self._handles:
            self._handles[id_] = len(self._ids)
            self._ids.append(id_)
        return self._handles[id_]

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        ids = [self._ids[int(handle)] for handle in handles]
        found = {row["id"]: row["vector"] for row in self._get(list(dict.fromkeys(ids)), ["vector"])}
        self._all_there(ids, found)
        return np.array([found[id_] for id_ in ids], np.float32).reshape(len(ids), self.description.width)

    def documents(self, handles: np.ndarray) -> list[Document]:
        ids = [self._ids[int(handle)] for handle in handles]
        found = self.find(ids)
        self._all_there(ids, found)
        return [found[id_] for id_ in ids]

    def _all_there(self, ids: Sequence[str], found: dict[str, Any]) -> None:
        if any(id_ not in found for id_ in ids):
            raise UserError(f"{self.uri}: a document found was deleted meanwhile; search again")

    def _said(self) -> contextlib.AbstractContextManager[None]:
        return _said(self.uri)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a server that is gone is closed already
            self._client.close()
        _release(self.uri)


def _release(uri: str) -> None:
    """Stop the server thread of Milvus Lite, which would hold the file until this process ends."""
    if not _is_server(uri):
        with contextlib.suppress(ImportError):
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(uri)


def create(uri: str, description: Description, kind: str = "autoindex") -> MilvusIndex:
    """An empty index at `uri`, a path that ends in .db or the address of a server.

    Raises:
        UserError: an index there already, a kind or dims that Milvus does not have, a server that does not answer.
    """
    one_of("kind", kind.lower(), _kinds(uri))
    if description.width > MOST_DIMS:
        raise UserError(f"Milvus takes vectors of at most {MOST_DIMS:,} dims; these have {description.width:,}")
    if not _is_server(uri) and Path(uri).exists():
        raise UserError(f"{uri} exists; it is not overwritten")
    client, types = _connect(uri)
    with _said(uri):
        if client.has_collection(COLLECTION):
            client.close()
            raise UserError(f"{uri} has a collection {COLLECTION} already; it is not overwritten")
        told = json.dumps(description._asdict())
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=told)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=ID_BYTES)
        schema.add_field("text", types.VARCHAR, max_length=TEXT_BYTES)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=description.width)
        schema.add_field("prefix", types.FLOAT_VECTOR, dim=description.prefix)
        indexed = client.prepare_index_params()
        indexed.add_index("prefix", index_type=kind.upper(), metric_type="IP")
        indexed.add_index("vector", index_type="FLAT", metric_type="IP")  # servers load no field without an index
        client.create_collection(
            COLLECTION, schema=schema, index_params=indexed, consistency_level="Strong", properties={ABOUT: told}
        )
    return MilvusIndex(uri, client, description)


def open_(uri: str) -> MilvusIndex:
    """The index at `uri`. Raises UserError: none there, not one of ours, in use, or a server that does not answer."""
    if not _is_server(uri) and not Path(uri).exists():
        raise UserError(f"{uri} is not an index: there is no such file")
    client, _ = _connect(uri)
    try:
        with _said(uri):
            if not client.has_collection(COLLECTION):
                raise UserError(f"{uri} has no collection {COLLECTION}; build an index there first")
            about = client.describe_collection(COLLECTION)
            told = about.get("properties", {}).get(ABOUT) or about.get("description") or ""
            try:
                content = json.loads(told)
                description = Description(**{**content, "dims": tuple(content["dims"])})
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{uri} has a collection {COLLECTION} that mrl_jax did not make") from None
            client.load_collection(COLLECTION)
    except BaseException:
        client.close()
        _release(uri)
        raise
    return MilvusIndex(uri, client, description)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _kinds(uri: str) -> tuple[str, ...]:
    if _is_server(uri):
        return SERVER
    return LITE + (LITE_WITH_FAISS if importlib.util.find_spec("faiss") else ())


def _connect(uri: str) -> tuple[Any, Any]:
    """A client, and the data types of a schema."""
    # When it is imported, the client configures the logging of the whole program, which closes everybody's handlers.
    configure, logging.config.dictConfig = logging.config.dictConfig, lambda config: None
    try:
        from pymilvus import DataType, MilvusClient
    except ImportError:
        raise UserError("an index in Milvus needs its client: pip install 'mrl_jax[milvus]'") from None
    finally:
        logging.config.dictConfig = configure
    for name in ("pymilvus", "milvus_lite", "grpc"):  # what goes wrong is said below, in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if _is_server(uri):
        place = urlsplit(uri)
        try:
            port = place.port or (443 if place.scheme == "https" else 19530)
            socket.create_connection((place.hostname or "", port), SECONDS).close()
        except (OSError, ValueError) as error:
            raise UserError(f"{uri} does not answer: {error}") from None
        with _said(uri):
            return MilvusClient(uri, timeout=SECONDS), DataType
    path = Path(uri)
    if not path.parent.is_dir():
        raise UserError(f"{uri}: the folder {path.parent} does not exist")
    if path.is_file():
        raise UserError(f"{uri} is not a Milvus Lite database")
    try:
        return MilvusClient(uri), DataType
    except Exception as error:
        raise UserError(
            f"{uri} cannot be opened: it is in use by another process, or damaged ({_first_line(error)})"
        ) from None


@contextlib.contextmanager
def _said(uri: str) -> Iterator[None]:
    """Whatever the client raises becomes one sentence."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise UserError(f"{uri}: {_first_line(error.message or error)}") from None


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no reason was given"])[0]


def _among(ids: list[str]) -> str:
    """The filter for documents with these ids. (The client's own, by `ids=`, does not escape quotes.)"""
    return f"id in {json.dumps(ids, ensure_ascii=False)}"


def _some(ids: list[str], many: int = 1000) -> Iterator[list[str]]:
    return (ids[i : i + many] for i in range(0, len(ids), many))
