"""Documents in Milvus: embedded (Milvus Lite, a path that ends in .db) or on a server or cluster (http://host:19530).

A collection has the fields id, text, vector (the whole embedding) and prefix (its first coordinates, at unit length).
Milvus searches the prefix; its candidates are ranked by whole embeddings here. The same code serves both, so that a
corpus that outgrows one machine moves to a cluster by another address. We claim nothing about the speed of Milvus Lite,
which is for trying things out: it runs in the process that opened it, and no other may open it meanwhile.
"""

import contextlib
import fcntl
import importlib
import logging
import logging.config
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mrl_jax.errors import UserError
from mrl_jax.search.index import BACKENDS, is_server
from mrl_jax.search.index.base import Description, Document, batched, check_add, unit

COLLECTION = "documents"
DESCRIPTION_PROPERTY = "mrl_jax"  # holds the `Description`; Milvus Lite forgets descriptions of collections
IVF_CELLS, IVF_PROBED_CELLS = 128, 32  # of ivf_…: cells in all, and cells that are searched first
HNSW_LINKS, HNSW_NODES = 32, 128  # per node; nodes that a search keeps in view, and twice as many while it is built
PQ_BYTE_DIMS = 4  # of ivf_pq: about so many dims share one byte
# Limits of a Milvus server.
MAX_DIMS = 32768
MAX_CANDIDATES = 16384
MAX_ID_BYTES, MAX_TEXT_BYTES = 512, 65535
MAX_MESSAGE_BYTES = 16 << 20  # sent or asked for at a time; servers accept 64 MiB and send 100 MB
MAX_FILTER_IDS = 1000
CONNECT_SECONDS = 5.0  # to wait for a server that does not answer
RETRIES = 5  # of a call that did not reach the server, within a second and a half; the client's own 75 take minutes

_open_files: Counter[str] = Counter()  # how many times this process has each Milvus Lite file open


class MilvusIndex:
    """See `Index`. A handle is the place of an id in the list of those that this object has returned."""

    def __init__(self, uri: str, collection: str, client: Any, description: Description, kind: str) -> None:
        self.uri, self.collection, self.description, self.kind = uri, collection, description, kind
        self._client: Any = client
        self._ids: list[str] = []
        self._handles: dict[str, int] = {}

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        if self._client is None:
            raise ValueError(f"the index at {self.uri} was closed")
        with client_errors(self.uri):
            return getattr(self._client, name)(self.collection, *args, retry_times=RETRIES, **options)

    def __len__(self) -> int:
        return int(self._call("query", filter="", output_fields=["count(*)"])[0]["count(*)"])

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        check_add(self.description, documents, vectors)
        text_sizes = [_bytes(one, "id", MAX_ID_BYTES) + _bytes(one, "text", MAX_TEXT_BYTES) for one in documents]
        vectors = np.asarray(vectors, np.float32)
        prefixes = unit(vectors[:, : self.description.prefix])
        rows: list[dict[str, Any]] = []
        message_size = 0
        for one, size, vector, prefix in zip(documents, text_sizes, vectors, prefixes, strict=True):
            size += vector.nbytes + prefix.nbytes
            if rows and message_size + size > MAX_MESSAGE_BYTES:
                self._call("upsert", rows)
                rows, message_size = [], 0
            rows.append({"id": one.id, "text": one.text, "vector": vector, "prefix": prefix})
            message_size += size
        if rows:
            self._call("upsert", rows)

    def delete(self, ids: Sequence[str]) -> int:
        known = list(self.find(ids))
        for some in batched(known, MAX_FILTER_IDS):
            self._call("delete", filter=_id_filter(some))
        return len(known)

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        return {row["id"]: Document(row["id"], row["text"]) for row in self._get(ids, "text", MAX_TEXT_BYTES)}

    def _get(self, ids: Sequence[str], field: str, size: int) -> Iterator[dict[str, Any]]:
        """id and one field, of at most `size` bytes, of the documents with these ids."""
        for some in batched(list(dict.fromkeys(ids)), max(1, min(MAX_FILTER_IDS, 4 * MAX_MESSAGE_BYTES // size))):
            yield from self._call("query", filter=_id_filter(some), output_fields=["id", field])

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        if not np.isfinite(queries).all():
            raise ValueError("queries hold numbers that are not finite")
        if size < 1:
            raise ValueError(f"size={size} is not allowed; at least 1")
        if size > MAX_CANDIDATES:
            raise UserError(f"Milvus returns at most {MAX_CANDIDATES:,} documents per query; {size:,} were asked for")
        handles = np.full((len(queries), size), -1, np.int64)
        prefixes = unit(queries[:, : self.description.prefix])
        step = max(1, min(MAX_CANDIDATES // size, MAX_MESSAGE_BYTES // (4 * self.description.prefix)))
        for start in range(0, len(queries), step):
            for q, ids in enumerate(self._search(prefixes[start : start + step], size), start):
                handles[q, : len(ids)] = [self._handle(id_) for id_ in ids]
        return handles

    def _search(self, prefixes: np.ndarray, size: int) -> list[list[str]]:
        """The ids of each query's candidates. Without these parameters Milvus returns fewer than there are."""
        attempts: list[dict[str, int]] = [{}]
        if self.kind in ("hnsw", "autoindex"):
            attempts = [{"ef": max(HNSW_NODES, size)}]
        elif self.kind.startswith("ivf"):
            attempts = [{"nprobe": IVF_PROBED_CELLS}, {"nprobe": IVF_CELLS}]
        ids: list[list[str]] = []
        for params in attempts:
            hits = self._call(
                "search", data=list(prefixes), anns_field="prefix", limit=size, output_fields=["id"],
                search_params={"params": params},
            )  # fmt: skip
            ids = [[hit["id"] for hit in hits_of_query] for hits_of_query in hits]
            if all(len(ids_of_query) == size for ids_of_query in ids):
                break
        return ids

    def _handle(self, id_: str) -> int:
        if id_ not in self._handles:
            self._handles[id_] = len(self._ids)
            self._ids.append(id_)
        return self._handles[id_]

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        ids, width = self._ids_of(handles), self.description.width
        by_id = {row["id"]: row["vector"] for row in self._get(ids, "vector", 4 * width)}
        return np.array(self._in_order(ids, by_id), np.float32).reshape(len(handles), width)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        width = self.description.width
        count = max(1, min(MAX_CANDIDATES, MAX_MESSAGE_BYTES // (4 * width)))
        rows = self._call("query_iterator", batch_size=count, filter="", output_fields=["id", "vector"])
        try:
            while block := self._next_rows(rows):
                handles = np.array([self._handle(row["id"]) for row in block], np.int64)
                yield handles, np.array([row["vector"] for row in block], np.float32).reshape(len(block), width)
        finally:
            rows.close()

    def _next_rows(self, rows: Any) -> list[dict[str, Any]]:
        with client_errors(self.uri):
            return list(rows.next())

    def documents(self, handles: np.ndarray) -> list[Document]:
        ids = self._ids_of(handles)
        return self._in_order(ids, self.find(ids))

    def _ids_of(self, handles: np.ndarray) -> list[str]:
        if len(handles) and not 0 <= np.min(handles) <= np.max(handles) < len(self._ids):
            raise ValueError("this index did not return some of these handles")
        return [self._ids[int(handle)] for handle in handles]

    def _in_order(self, ids: list[str], by_id: dict[str, Any]) -> list[Any]:
        if any(id_ not in by_id for id_ in ids):
            raise UserError(f"{self.uri}: another process deleted one of the results; search again")
        return [by_id[id_] for id_ in ids]

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            _close(self.uri, client)


def create(uri: str, description: Description, collection: str = COLLECTION, token: str = "") -> MilvusIndex:
    """An empty index of `description.kind` at `uri`, a path that ends in .db or the address of a server.

    Args:
        uri: where; a server may need a token.
        description: what the index is for; its kind is one of those in `BACKENDS` for this place.
        collection: name of the collection that Milvus makes.
        token: of a server, such as user:password.

    Raises:
        UserError: there is such a collection already, Milvus does not have so many dims, or a server does not answer.
    """
    kind = _milvus_kind(description)
    if description.width > MAX_DIMS:
        raise UserError(f"Milvus takes vectors of at most {MAX_DIMS:,} dims; these have {description.width:,}")
    client, types = _connect(uri, collection, token)
    try:
        with client_errors(uri):
            if client.has_collection(collection, retry_times=RETRIES):
                raise UserError(f"{uri} has a collection {collection} already; it is not overwritten")
            text = description.to_json()
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
            schema.add_field("id", types.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
            schema.add_field("text", types.VARCHAR, max_length=MAX_TEXT_BYTES)
            schema.add_field("vector", types.FLOAT_VECTOR, dim=description.width)
            schema.add_field("prefix", types.FLOAT_VECTOR, dim=description.prefix)
            client.create_collection(
                collection,
                schema=schema,
                consistency_level="Strong",
                properties={DESCRIPTION_PROPERTY: text},
                retry_times=RETRIES,
            )
            try:
                client.create_index(collection, _index_params(client, description.prefix, kind), retry_times=RETRIES)
                client.load_collection(collection, retry_times=RETRIES)
            except BaseException:
                with contextlib.suppress(Exception):
                    client.drop_collection(collection, retry_times=RETRIES)
                raise
    except BaseException:
        _close(uri, client)
        raise
    return MilvusIndex(uri, collection, client, description, kind)


def _index_params(client: Any, prefix: int, kind: str) -> Any:
    """For indexes of both fields. Not every server has defaults for these parameters."""
    params = {}
    if kind == "hnsw":
        params = {"M": HNSW_LINKS, "efConstruction": 2 * HNSW_NODES}
    elif kind.startswith("ivf"):
        params = {"nlist": IVF_CELLS}
    if kind == "ivf_pq":
        params["m"] = next(m for m in range(max(1, prefix // PQ_BYTE_DIMS), 0, -1) if prefix % m == 0)
    index_params = client.prepare_index_params()
    index_params.add_index("prefix", index_name="prefix", index_type=kind.upper(), metric_type="IP", params=params)
    # Servers load no vectors without an index.
    index_params.add_index("vector", index_name="vector", index_type="FLAT", metric_type="IP")
    return index_params


def open_(uri: str, write: bool = False, collection: str = COLLECTION, token: str = "") -> MilvusIndex:
    """The index at `uri`, which Milvus always opens for writing.

    Raises UserError: none there, not one of ours, in use, or a server that does not answer.
    """
    if not is_server(uri) and not Path(uri).exists():
        raise UserError(f"{uri} is not an index: there is no such file")
    client, _ = _connect(uri, collection, token)
    try:
        with client_errors(uri):
            if not client.has_collection(collection, retry_times=RETRIES):
                raise UserError(f"{uri} has no collection {collection}; build an index there first")
            about = client.describe_collection(collection, retry_times=RETRIES)
            text = about.get("properties", {}).get(DESCRIPTION_PROPERTY) or about.get("description") or ""
            try:
                description = Description.from_json(text)
            except ValueError:
                raise UserError(f"{uri} has a collection {collection} that mrl_jax did not make") from None
            indexes = [client.describe_index(collection, name, retry_times=RETRIES) for name in ("prefix", "vector")]
            if not all(indexes):  # `create` was killed before it had made them
                params = _index_params(client, description.prefix, _milvus_kind(description))
                client.create_index(collection, params, retry_times=RETRIES)
                indexes = [client.describe_index(collection, "prefix", retry_times=RETRIES)]
            kind = indexes[0]["index_type"].lower()
            client.load_collection(collection, retry_times=RETRIES)
    except BaseException:
        _close(uri, client)
        raise
    return MilvusIndex(uri, collection, client, description, kind)


def exists(uri: str) -> bool:
    """Whether there is an index at `uri` that can be opened."""
    try:
        open_(uri).close()
    except UserError:
        return False
    return True


def _milvus_kind(description: Description) -> str:
    return description.kind.removeprefix("milvus-").lower()


# ---- connections -----------------------------------------------------------------------------------------------------


def _connect(uri: str, collection: str, token: str) -> tuple[Any, Any]:
    """A client, to be closed by `_close`, and the data types of a schema."""
    # On import, the client configures the logging of the whole program, which closes the handlers of everybody else.
    configure, logging.config.dictConfig = logging.config.dictConfig, lambda config: None
    try:
        from pymilvus import DataType, MilvusClient

        if not is_server(uri):
            import milvus_lite  # noqa: F401
    except ImportError:
        raise BACKENDS["milvus"].missing_extra() from None
    finally:
        logging.config.dictConfig = configure
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
        raise UserError(f"collection={collection} is not allowed; use letters, digits and _, no digit first")
    for name in ("pymilvus", "milvus_lite", "grpc"):  # errors become sentences below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if is_server(uri):
        place = urlsplit(uri)
        try:
            port = place.port or (443 if place.scheme == "https" else 19530)
            socket.create_connection((place.hostname or "", port), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise UserError(f"{uri} does not answer: {error}") from None
        with client_errors(uri):
            return MilvusClient(uri, token=token, timeout=CONNECT_SECONDS), DataType
    _check_path(uri)
    try:
        client = MilvusClient(uri)
    except Exception as error:
        raise UserError(f"{uri} cannot be opened: it is damaged, or not writable ({_first_line(error)})") from None
    _open_files[os.path.abspath(uri)] += 1
    return client, DataType


def _check_path(uri: str) -> None:
    """Raises UserError where Milvus Lite would fail without a reason, or write into what is something else."""
    path = Path(uri)
    if path.suffix != ".db":
        raise UserError(f"{uri} is not a place for Milvus; give a path that ends in .db, or http://host:19530")
    if not path.parent.is_dir():
        raise UserError(f"{uri}: the folder {path.parent} does not exist")
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "collections").is_dir())):
        raise UserError(f"{uri} is not a Milvus Lite database, which is a folder with one named collections")
    if not _open_files[os.path.abspath(uri)]:
        with contextlib.suppress(FileNotFoundError), (path / "LOCK").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{uri} is in use by another process") from None


def _close(uri: str, client: Any) -> None:
    """Also stops the server thread of Milvus Lite, which would hold the file until this process ends."""
    with contextlib.suppress(Exception):  # a server that is gone is closed already
        client.close()
    if is_server(uri):
        return
    path = os.path.abspath(uri)
    _open_files[path] -= 1
    if not _open_files[path]:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)


@contextlib.contextmanager
def client_errors(uri: str) -> Iterator[None]:
    """Turn whatever the client raises into a `UserError` of one sentence."""
    from pymilvus.exceptions import MilvusException

    grpc: Any = importlib.import_module("grpc")
    try:
        yield
    except MilvusException as error:
        if error.code == grpc.StatusCode.UNAVAILABLE:
            raise UserError(f"{uri} stopped answering") from None
        raise UserError(f"{uri}: {_first_line(error.message or error)}") from None
    except grpc.RpcError as error:
        raise UserError(f"{uri}: {_first_line(error.details() or error.code().name)}") from None


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


# ---- texts -----------------------------------------------------------------------------------------------------------


def _bytes(document: Document, name: str, limit: int) -> int:
    """Size of a document's id or text in UTF-8. Raises UserError for one that Milvus does not take."""
    value: str = getattr(document, name)
    size = len(_encode(value))
    if size > limit:
        raise UserError(f"document {document.id[:40]}: its {name} has {size:,} bytes; Milvus takes {limit:,}")
    return size


def _encode(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{value[:40]!a} cannot be stored in Milvus: {error.reason}") from None


def _id_filter(ids: list[str]) -> str:
    """The filter for documents with these ids. (The client's own, by `ids=`, does not escape quotes.)

    Milvus Lite and servers both know these escapes, and take any other character as it is.
    """
    escaped = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
    return "id in [" + ", ".join(f'"{_encode(one).decode().translate(escaped)}"' for one in ids) + "]"
