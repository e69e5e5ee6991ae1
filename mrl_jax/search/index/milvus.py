"""Documents in Milvus: embedded (Milvus Lite, a path that ends in .db) or on a server or cluster (http://host:19530).

A collection has the fields id, text, vector (the whole embedding) and prefix (its first coordinates, at unit length).
Milvus searches the prefix; what it finds is ranked by whole embeddings here. The same code serves both, so that a
corpus that outgrows a machine moves to a cluster by another address. Nothing is claimed about the speed of Milvus Lite,
which is made for trying things out: it answers from the process that opened it, and no other may open it meanwhile.
"""

import contextlib
import fcntl
import importlib
import json
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

from mrl_jax.errors import UserError, one_of
from mrl_jax.search.index import Description, Document, described
from mrl_jax.search.index.faiss import unit
from mrl_jax.search.index.store import check_add

COLLECTION = "documents"
ABOUT = "mrl_jax"  # the property with what an index was made for; Lite forgets descriptions of collections
SERVER = ("autoindex", "flat", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "diskann")
LITE = ("autoindex", "flat", "hnsw", "ivf_flat", "ivf_sq8")  # it takes any other name too, and cannot open that again
CELLS, PROBED = 128, 32  # of ivf_…: there are, and are searched first
LINKS, SEARCHED = 32, 128  # of a node of hnsw; nodes kept while it is searched, and twice that while it is built
MOST_DIMS = 32768  # limits of a Milvus server
MOST_FOUND = 16384
ID_BYTES, TEXT_BYTES = 512, 65535
MESSAGE = 16 << 20  # bytes sent or asked for at a time; servers take 64 MiB and send 100 MB
MANY = 1000  # ids in a filter
SECONDS = 5.0  # to wait for a server that does not answer
RETRIES = 5  # of a call that did not reach the server, within a second and a half; the client's own 75 take minutes

_opened: Counter[str] = Counter()  # files of Milvus Lite that this process has open, and how many times


class MilvusIndex:
    """See `Index`. Handles count the ids that this object has met."""

    def __init__(self, uri: str, collection: str, client: Any, description: Description, kind: str) -> None:
        self.uri, self.collection, self.description, self.kind = uri, collection, description, kind
        self._client: Any = client
        self._ids: list[str] = []
        self._handles: dict[str, int] = {}

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        if self._client is None:
            raise ValueError(f"the index at {self.uri} was closed")
        with _said(self.uri):
            return getattr(self._client, name)(self.collection, *args, retry_times=RETRIES, **options)

    def __len__(self) -> int:
        return int(self._call("query", filter="", output_fields=["count(*)"])[0]["count(*)"])

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        check_add(self.description, documents, vectors)
        sizes = [_bytes(one, "id", ID_BYTES) + _bytes(one, "text", TEXT_BYTES) for one in documents]
        prefixes = unit(vectors[:, : self.description.prefix])
        rows: list[dict[str, Any]] = []
        size = 0
        for one, more, vector, prefix in zip(
            documents, sizes, np.asarray(vectors, np.float32), prefixes, strict=True
        ):  # fmt: skip
            more += vector.nbytes + prefix.nbytes
            if rows and size + more > MESSAGE:
                self._call("upsert", rows)
                rows, size = [], 0
            rows.append({"id": one.id, "text": one.text, "vector": vector, "prefix": prefix})
            size += more
        if rows:
            self._call("upsert", rows)

    def delete(self, ids: Sequence[str]) -> int:
        known = list(self.find(ids))
        for some in _some(known, MANY):
            self._call("delete", filter=_among(some))
        return len(known)

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        return {row["id"]: Document(row["id"], row["text"]) for row in self._get(ids, "text", TEXT_BYTES)}

    def _get(self, ids: Sequence[str], field: str, size: int) -> Iterator[dict[str, Any]]:
        """The documents with these ids that there are, with one field of at most `size` bytes."""
        for some in _some(list(dict.fromkeys(ids)), max(1, min(MANY, 4 * MESSAGE // size))):
            yield from self._call("query", filter=_among(some), output_fields=["id", field])

    def candidates(self, queries: np.ndarray, size: int) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        if not np.isfinite(queries).all():
            raise ValueError("queries hold numbers that are not finite")
        if size < 1:
            raise ValueError(f"size={size} is not allowed; at least 1")
        if size > MOST_FOUND:
            raise UserError(f"Milvus finds at most {MOST_FOUND:,} documents at a time; {size:,} were asked for")
        handles = np.full((len(queries), size), -1, np.int64)
        prefixes = unit(queries[:, : self.description.prefix])
        step = max(1, min(MOST_FOUND // size, MESSAGE // prefixes[:1].nbytes or 1)) if len(queries) else 1
        for start in range(0, len(queries), step):
            for q, ids in enumerate(self._search(prefixes[start : start + step], size), start):
                handles[q, : len(ids)] = [self._handle(id_) for id_ in ids]
        return handles

    def _search(self, prefixes: np.ndarray, size: int) -> list[list[str]]:
        """The ids that are found for each query. Without these parameters Milvus finds fewer than there are."""
        every: list[dict[str, int]] = [{}]
        if self.kind in ("hnsw", "autoindex"):
            every = [{"ef": max(SEARCHED, size)}]
        elif self.kind.startswith("ivf"):
            every = [{"nprobe": PROBED}, {"nprobe": CELLS}]
        found: list[list[str]] = []
        for searched in every:
            hits = self._call(
                "search", data=list(prefixes), anns_field="prefix", limit=size, output_fields=["id"],
                search_params={"params": searched},
            )  # fmt: skip
            found = [[hit["id"] for hit in some] for some in hits]
            if all(len(ids) == size for ids in found):
                break
        return found

    def _handle(self, id_: str) -> int:
        if id_ not in self._handles:
            self._handles[id_] = len(self._ids)
            self._ids.append(id_)
        return self._handles[id_]

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        width = self.description.width
        found = {row["id"]: row["vector"] for row in self._get(self._known(handles), "vector", 4 * width)}
        return np.array(self._each(handles, found), np.float32).reshape(len(handles), width)

    def documents(self, handles: np.ndarray) -> list[Document]:
        return self._each(handles, self.find(self._known(handles)))

    def _known(self, handles: np.ndarray) -> list[str]:
        if len(handles) and not 0 <= np.min(handles) <= np.max(handles) < len(self._ids):
            raise ValueError("there are handles that this index did not give")
        return [self._ids[int(handle)] for handle in handles]

    def _each(self, handles: np.ndarray, found: dict[str, Any]) -> list[Any]:
        ids = self._known(handles)
        if any(id_ not in found for id_ in ids):
            raise UserError(f"{self.uri}: a document found was deleted meanwhile; search again")
        return [found[id_] for id_ in ids]

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            _close(self.uri, client)


def create(
    uri: str, description: Description, kind: str = "AUTOINDEX", collection: str = COLLECTION, token: str = ""
) -> MilvusIndex:
    """An empty index at `uri`, a path that ends in .db or the address of a server, which may want a token.

    Raises:
        UserError: a collection there already, a kind or dims that Milvus does not have, a server that does not answer.
    """
    kind = one_of("kind", kind.lower(), kinds(uri))
    if description.width > MOST_DIMS:
        raise UserError(f"Milvus takes vectors of at most {MOST_DIMS:,} dims; these have {description.width:,}")
    client, types = _connect(uri, collection, token)
    try:
        with _said(uri):
            if client.has_collection(collection, retry_times=RETRIES):
                raise UserError(f"{uri} has a collection {collection} already; it is not overwritten")
            told = json.dumps(description._asdict())
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=told)
            schema.add_field("id", types.VARCHAR, is_primary=True, max_length=ID_BYTES)
            schema.add_field("text", types.VARCHAR, max_length=TEXT_BYTES)
            schema.add_field("vector", types.FLOAT_VECTOR, dim=description.width)
            schema.add_field("prefix", types.FLOAT_VECTOR, dim=description.prefix)
            client.create_collection(
                collection, schema=schema, consistency_level="Strong", properties={ABOUT: told}, retry_times=RETRIES
            )
            try:
                client.create_index(collection, _indexed(client, description.prefix, kind), retry_times=RETRIES)
                client.load_collection(collection, retry_times=RETRIES)
            except BaseException:
                with contextlib.suppress(Exception):
                    client.drop_collection(collection, retry_times=RETRIES)
                raise
    except BaseException:
        _close(uri, client)
        raise
    return MilvusIndex(uri, collection, client, description, kind)


def _indexed(client: Any, prefix: int, kind: str) -> Any:
    """Indexes of both fields. Servers have no defaults for these parameters, or not all of them do."""
    params = {}
    if kind == "hnsw":
        params = {"M": LINKS, "efConstruction": 2 * SEARCHED}
    elif kind.startswith("ivf"):
        params = {"nlist": CELLS}
    if kind == "ivf_pq":
        params["m"] = next(m for m in range(max(1, prefix // 4), 0, -1) if prefix % m == 0)  # a byte for about 4 dims
    indexed = client.prepare_index_params()
    indexed.add_index("prefix", index_name="prefix", index_type=kind.upper(), metric_type="IP", params=params)
    # Servers load no vectors without an index.
    indexed.add_index("vector", index_name="vector", index_type="FLAT", metric_type="IP")
    return indexed


def open_(uri: str, collection: str = COLLECTION, token: str = "") -> MilvusIndex:
    """The index at `uri`. Raises UserError: none there, not one of ours, in use, or a server that does not answer."""
    if not _is_server(uri) and not Path(uri).exists():
        raise UserError(f"{uri} is not an index: there is no such file")
    client, _ = _connect(uri, collection, token)
    try:
        with _said(uri):
            if not client.has_collection(collection, retry_times=RETRIES):
                raise UserError(f"{uri} has no collection {collection}; build an index there first")
            about = client.describe_collection(collection, retry_times=RETRIES)
            told = about.get("properties", {}).get(ABOUT) or about.get("description") or ""
            try:
                description = described(told)
            except ValueError:
                raise UserError(f"{uri} has a collection {collection} that mrl_jax did not make") from None
            made = [client.describe_index(collection, name, retry_times=RETRIES) for name in ("prefix", "vector")]
            if not all(made):  # its builder was killed before it had made them
                kind = description.kind.removeprefix("milvus-")
                client.create_index(collection, _indexed(client, description.prefix, kind), retry_times=RETRIES)
                made = [client.describe_index(collection, "prefix", retry_times=RETRIES)]
            kind = made[0]["index_type"].lower()
            client.load_collection(collection, retry_times=RETRIES)
    except BaseException:
        _close(uri, client)
        raise
    return MilvusIndex(uri, collection, client, description, kind)


# ---- connections -----------------------------------------------------------------------------------------------------


def kinds(uri: str) -> tuple[str, ...]:
    """The kinds of index that there can be at `uri`."""
    return SERVER if _is_server(uri) else LITE


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _connect(uri: str, collection: str, token: str) -> tuple[Any, Any]:
    """A client, to be closed by `_close`, and the data types of a schema."""
    # When it is imported, the client configures the logging of the whole program, which closes everybody's handlers.
    configure, logging.config.dictConfig = logging.config.dictConfig, lambda config: None
    try:
        from pymilvus import DataType, MilvusClient

        if not _is_server(uri):
            import milvus_lite  # noqa: F401
    except ImportError:
        raise UserError("an index in Milvus needs its client: pip install 'mrl_jax[milvus]'") from None
    finally:
        logging.config.dictConfig = configure
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
        raise UserError(f"collection={collection} is not allowed; letters, digits and _, no digit first")
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
            return MilvusClient(uri, token=token, timeout=SECONDS), DataType
    _check_path(uri)
    try:
        client = MilvusClient(uri)
    except Exception as error:
        raise UserError(f"{uri} cannot be opened: it is damaged, or not writable ({_first_line(error)})") from None
    _opened[os.path.abspath(uri)] += 1
    return client, DataType


def _check_path(uri: str) -> None:
    """Raises UserError for what Milvus Lite would not explain, or would fill though it is something else."""
    path = Path(uri)
    if path.suffix != ".db":
        raise UserError(f"{uri} is no place for Milvus; a path that ends in .db, or http://host:19530")
    if not path.parent.is_dir():
        raise UserError(f"{uri}: the folder {path.parent} does not exist")
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "collections").is_dir())):
        raise UserError(f"{uri} is not a Milvus Lite database, which is a folder with one named collections")
    if not _opened[os.path.abspath(uri)]:
        with contextlib.suppress(FileNotFoundError), (path / "LOCK").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{uri} is in use by another process") from None


def _close(uri: str, client: Any) -> None:
    """Also stops the server thread of Milvus Lite, which would hold the file until this process ends."""
    with contextlib.suppress(Exception):  # a server that is gone is closed already
        client.close()
    if _is_server(uri):
        return
    path = os.path.abspath(uri)
    _opened[path] -= 1
    if not _opened[path]:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)


@contextlib.contextmanager
def _said(uri: str) -> Iterator[None]:
    """Whatever the client raises becomes one sentence."""
    from pymilvus.exceptions import MilvusException

    grpc: Any = importlib.import_module("grpc")
    try:
        yield
    except MilvusException as error:
        if error.code == grpc.StatusCode.UNAVAILABLE:
            raise UserError(f"{uri} does not answer any more") from None
        raise UserError(f"{uri}: {_first_line(error.message or error)}") from None
    except grpc.RpcError as error:
        raise UserError(f"{uri}: {_first_line(error.details() or error.code().name)}") from None


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["no reason was given"])[0]


# ---- texts -----------------------------------------------------------------------------------------------------------


def _bytes(document: Document, name: str, most: int) -> int:
    """Of a document's id or text. Raises UserError for what Milvus does not take."""
    value: str = getattr(document, name)
    size = len(_encoded(value))
    if size > most:
        raise UserError(f"document {document.id[:40]}: its {name} has {size:,} bytes; Milvus takes {most:,}")
    return size


def _encoded(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{value[:40]!a} cannot be stored in Milvus: {error.reason}") from None


def _among(ids: list[str]) -> str:
    """The filter for documents with these ids. (The client's own, by `ids=`, does not escape quotes.)

    These are the escapes that Lite knows as well as servers; both take any other character as it is.
    """
    escaped = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
    return "id in [" + ", ".join(f'"{_encoded(one).decode().translate(escaped)}"' for one in ids) + "]"


def _some(ids: list[str], many: int) -> Iterator[list[str]]:
    return (ids[i : i + many] for i in range(0, len(ids), many))
