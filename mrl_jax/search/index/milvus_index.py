"""An open Milvus index: writes, reads by id, and searches. See `milvus` for its layout."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mrl_jax.search.index import distinct, is_server
from mrl_jax.search.index.base import Description, Document, batched, check_add, unit
from mrl_jax.search.index.milvus_client import (
    call,
    client_errors,
    close,
    one_of_filter,
    quote,
    server_time,
    text_bytes,
)
from mrl_jax.search.index.milvus_collections import (
    HNSW_NODES,
    IVF_CELLS,
    IVF_PROBED_CELLS,
    LOAD_SECONDS,
    MAX_ID_BYTES,
    MAX_TEXT_BYTES,
    POLL_SECONDS,
)
from mrl_jax.system import console
from mrl_jax.system.errors import UserError

# Limits of a Milvus server.
MAX_CANDIDATES = 16384
MAX_HNSW_NODES = 32768
MAX_MESSAGE_BYTES = 16 << 20  # sent or asked for at a time; servers accept 64 MiB and send 100 MB
MAX_FILTER_IDS = 1024


class MilvusIndex:
    """See `Index`. A handle is the place of an id in the list of those that this object has returned."""

    max_candidates = MAX_CANDIDATES

    def __init__(
        self, uri: str, collection: str, client: Any, description: Description, kind: str, searched: str
    ) -> None:
        self.uri, self.collection, self.description, self.kind = uri, collection, description, kind
        self.searched = searched  # the collection with the prefixes; `collection` itself in an earlier version's index
        self._client: Any = client
        self._ids: list[str] = []
        self._handles: dict[str, int] = {}
        self._moment = 0  # in the server's time; 0 for the present
        self._copies: dict[int, list[int]] = {}  # a handle that `candidates` returned → all documents like it

    @property
    def _is_grouped(self) -> bool:
        """Whether equal prefixes are stored once."""
        return self.searched != self.collection

    def _call(self, name: str, *args: Any, collection: str | None = None, **options: Any) -> Any:
        if self._client is None:
            raise ValueError(f"the index at {self.uri} was closed")
        if name in ("query", "search"):
            options = {**self._consistency(), **options}
        with self._errors():
            return call(self._client, name, collection or self.collection, *args, **options)

    def _consistency(self) -> dict[str, Any]:
        """Options of a read that sees all that was acknowledged, to anybody, when `_read_anew` was last called.

        A server keeps a read waiting until it has seen a moment, about 0.2 s for the present one; what belongs to one
        search is read as of one moment, and only its first read waits.
        """
        if self._moment:
            return {"consistency_level": "Customized", "guarantee_timestamp": self._moment}
        return {"consistency_level": "Strong"}

    def _read_anew(self) -> None:
        if is_server(self.uri) and self._client is not None:  # a file has no time
            with self._errors():
                self._moment = server_time(self._client)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return client_errors(self.uri, f"milvus-{self.kind} of {self.description.prefix} dims: ")

    def __len__(self) -> int:
        self._read_anew()
        return self._count(self.collection)

    def _count(self, collection: str) -> int:
        return int(self._call("query", collection=collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        check_add(self.description, documents, vectors)
        sizes = [text_bytes(one, "id", MAX_ID_BYTES) + text_bytes(one, "text", MAX_TEXT_BYTES) for one in documents]
        vectors = np.asarray(vectors, np.float32)
        prefixes = unit(vectors[:, : self.description.prefix])
        rows: list[dict[str, Any]] = [
            {"id": one.id, "text": one.text, "vector": vector} for one, vector in zip(documents, vectors, strict=True)
        ]
        sizes = [size + vector.nbytes for size, vector in zip(sizes, vectors, strict=True)]
        if not self._is_grouped:
            sizes = [size + prefix.nbytes for size, prefix in zip(sizes, prefixes, strict=True)]
            self._upsert(self.collection, sizes, [{**row, "prefix": x} for row, x in zip(rows, prefixes, strict=True)])
            return
        before = self._prefix_keys([one.id for one in documents])
        prefix_keys, vector_keys = _hex(distinct.keys(prefixes)), _hex(distinct.keys(vectors))
        by_key = dict(zip(prefix_keys, prefixes, strict=True))
        self._upsert_prefixes(by_key)
        for row, prefix_key, vector_key in zip(rows, prefix_keys, vector_keys, strict=True):
            row |= {"prefix_key": prefix_key, "vector_key": vector_key}
        self._upsert(self.collection, sizes, rows)
        if is_server(self.uri):  # a file has one writer
            self._upsert_prefixes({key: by_key[key] for key in by_key.keys() - self._stored_prefixes(by_key)})
        self._delete_unused(set(before.values()) - by_key.keys())

    def _upsert_prefixes(self, by_key: dict[str, np.ndarray]) -> None:
        sizes = [prefix.nbytes for prefix in by_key.values()]
        self._upsert(self.searched, sizes, [{"key": key, "prefix": prefix} for key, prefix in by_key.items()])

    def _stored_prefixes(self, keys: Iterable[str]) -> set[str]:
        """Those of these keys whose prefixes are there."""
        self._read_anew()
        stored: set[str] = set()
        for some in batched(list(keys), MAX_FILTER_IDS):
            rows = self._call(
                "query", filter=one_of_filter("key", some), output_fields=["key"], collection=self.searched
            )
            stored |= {row["key"] for row in rows}
        return stored

    def _upsert(self, collection: str, sizes: list[int], rows: list[dict[str, Any]]) -> None:
        """Insert rows of about so many bytes, or replace them, in messages of a size that a server takes."""
        start, message_size = 0, 0
        for stop, size in enumerate(sizes):
            if stop > start and message_size + size > MAX_MESSAGE_BYTES:
                self._call("upsert", rows[start:stop], collection=collection)
                start, message_size = stop, 0
            message_size += size
        if rows:
            self._call("upsert", rows[start:], collection=collection)
        self._copies.clear()

    def delete(self, ids: Sequence[str]) -> int:
        known = self._prefix_keys(ids)
        for some in batched(list(known), MAX_FILTER_IDS):
            self._call("delete", filter=one_of_filter("id", some))
        self._copies.clear()
        if self._is_grouped:
            self._delete_unused(set(known.values()))
        return len(known)

    def _prefix_keys(self, ids: Sequence[str]) -> dict[str, str]:
        """id → key of its prefix, or the id itself where prefixes have none, of the documents with these ids."""
        self._read_anew()
        field = "prefix_key" if self._is_grouped else "id"
        return {row["id"]: row[field] for row in self._get(ids, field, MAX_ID_BYTES)}

    def _delete_unused(self, prefix_keys: set[str]) -> None:
        """Delete those of these prefixes that no document has."""
        self._read_anew()
        for some in batched(sorted(prefix_keys), MAX_FILTER_IDS):
            unused = set(some)
            for rows in self._scan(one_of_filter("prefix_key", some), ["prefix_key"], MAX_CANDIDATES):
                unused -= {row["prefix_key"] for row in rows}
            if unused:
                self._call("delete", filter=one_of_filter("key", sorted(unused)), collection=self.searched)
            if unused and is_server(self.uri):
                self._restore_prefixes(unused)

    def _restore_prefixes(self, keys: set[str]) -> None:
        """Write those of these prefixes again that a document has: another process wrote it meanwhile."""
        self._read_anew()
        for rows in self._scan(one_of_filter("prefix_key", sorted(keys)), ["prefix_key", "vector"], self._page_size):
            prefixes = unit(np.array([row["vector"][: self.description.prefix] for row in rows], np.float32))
            self._upsert_prefixes({row["prefix_key"]: prefix for row, prefix in zip(rows, prefixes, strict=True)})

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        self._read_anew()
        return self._find(ids)

    def _find(self, ids: Sequence[str]) -> dict[str, Document]:
        return {row["id"]: Document(row["id"], row["text"]) for row in self._get(ids, "text", MAX_TEXT_BYTES)}

    def handles(self, ids: Sequence[str]) -> dict[str, int]:
        return {id_: self._handle(id_) for id_ in self.find(ids)}

    def _get(self, ids: Sequence[str], field: str, size: int) -> Iterator[dict[str, Any]]:
        """id and one field, of at most `size` bytes, of the documents with these ids."""
        for some in batched(list(dict.fromkeys(ids)), max(1, min(MAX_FILTER_IDS, 4 * MAX_MESSAGE_BYTES // size))):
            yield from self._call("query", filter=one_of_filter("id", some), output_fields=["id", field])

    def candidates(self, queries: np.ndarray, size: int, view: int | None = None) -> np.ndarray:
        del view  # no kind of Milvus ranks a part of what it finds
        if queries.ndim != 2 or queries.shape[1] != self.description.width:
            raise ValueError(f"queries have shape {queries.shape}; the index takes [Q, {self.description.width}]")
        if not np.isfinite(queries).all():
            raise ValueError("queries hold numbers that are not finite")
        if size < 1:
            raise ValueError(f"size={size} is not allowed; at least 1")
        if size > MAX_CANDIDATES:
            raise UserError(f"Milvus returns at most {MAX_CANDIDATES:,} documents per query; {size:,} were asked for")
        self._read_anew()
        handles = np.full((len(queries), size), -1, np.int64)
        prefixes = unit(queries[:, : self.description.prefix])
        step = max(1, min(MAX_CANDIDATES // size, MAX_MESSAGE_BYTES // (4 * self.description.prefix)))
        for start in range(0, len(queries), step):
            keys_of_queries = self._search(prefixes[start : start + step], size)
            documents = self._embeddings({key for keys in keys_of_queries for key in keys})
            for q, keys in enumerate(keys_of_queries, start):
                found = [handle for key in keys for handle in documents.get(key, ())][:size]
                handles[q, : len(found)] = found
        return handles

    def _search(self, prefixes: np.ndarray, size: int) -> list[list[str]]:
        """The keys of each query's best prefixes. Where Milvus returns fewer than there are, it searches wider."""
        key = "key" if self._is_grouped else "id"
        setting, value, entries = "", 0, 0
        if self.kind in ("hnsw", "autoindex", "diskann"):
            setting, value = "search_list" if self.kind == "diskann" else "ef", max(HNSW_NODES, size)
        elif self.kind.startswith("ivf"):
            setting, value = "nprobe", IVF_PROBED_CELLS
        while True:
            hits = self._call(
                "search", data=list(prefixes), anns_field="prefix", limit=size, output_fields=[key],
                search_params={"params": {setting: value} if setting else {}}, collection=self.searched,
            )  # fmt: skip
            keys = [[hit[key] for hit in hits_of_query] for hits_of_query in hits]
            fewest = min(map(len, keys))
            entries = entries or (self._count(self.searched) if fewest < size else size)
            nodes = min(MAX_HNSW_NODES, 2 * entries)
            widest = {"ef": nodes, "search_list": nodes, "nprobe": IVF_CELLS}.get(setting, 0)
            if fewest >= min(size, entries) or value >= widest:
                return keys
            value = min(2 * value, widest)

    def _embeddings(self, keys: set[str]) -> dict[str, list[int]]:
        """Key of a prefix → a document for each distinct embedding that begins with it, in the order of ids."""
        if not self._is_grouped:
            return {id_: [self._handle(id_)] for id_ in sorted(keys)}
        by_prefix: dict[str, dict[str, list[str]]] = {}
        for some in batched(sorted(keys), MAX_FILTER_IDS):
            condition = one_of_filter("prefix_key", some)
            for rows in self._scan(condition, ["prefix_key", "vector_key"], MAX_CANDIDATES):
                for row in rows:
                    by_prefix.setdefault(row["prefix_key"], {}).setdefault(row["vector_key"], []).append(row["id"])
        documents: dict[str, list[int]] = {}
        for key, by_vector in by_prefix.items():
            copies = [[self._handle(id_) for id_ in ids] for ids in sorted(map(sorted, by_vector.values()))]
            documents[key] = [handles[0] for handles in copies]
            self._copies |= {handles[0]: handles for handles in copies}
        return documents

    def copies(self, handles: np.ndarray, most: int) -> list[np.ndarray]:
        return [np.array(self._copies.get(handle, [handle])[:most]) for handle in handles.tolist()]

    def prepare(self) -> None:
        """A server indexes what is on its disk, and scans what is not: have it write all there, and wait for indexes.

        Milvus Lite indexes what is added.
        """
        if not is_server(self.uri):
            return
        with console.stage("index"):
            for collection in dict.fromkeys((self.collection, self.searched)):
                self._call("flush", collection=collection, seconds=LOAD_SECONDS)
            until = time.monotonic() + LOAD_SECONDS
            while left := self._call("describe_index", "prefix", collection=self.searched).get("pending_index_rows", 0):
                if time.monotonic() > until:
                    console.say(f"{self.uri} has still to index {left:,} prefixes, and scans them until then")
                    return
                time.sleep(POLL_SECONDS)

    def _handle(self, id_: str) -> int:
        if id_ not in self._handles:
            self._handles[id_] = len(self._ids)
            self._ids.append(id_)
        return self._handles[id_]

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        ids, width = self._ids_of(handles), self.description.width
        by_id = {row["id"]: row["vector"] for row in self._get(ids, "vector", 4 * width)}
        return np.array(self._in_order(ids, by_id), np.float32).reshape(len(handles), width)

    @property
    def _page_size(self) -> int:
        """Documents with their vectors that are asked for at a time."""
        return max(1, min(MAX_CANDIDATES, MAX_MESSAGE_BYTES // (4 * self.description.width)))

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._read_anew()
        width = self.description.width
        for rows in self._scan("", ["vector"], self._page_size):
            handles = np.array([self._handle(row["id"]) for row in rows], np.int64)
            yield handles, np.array([row["vector"] for row in rows], np.float32).reshape(len(rows), width)

    def _scan(self, condition: str, fields: list[str], count: int) -> Iterator[list[dict[str, Any]]]:
        """id and more fields of the documents that a filter selects, by id and `count` at a time.

        As the client's iterator, which does not escape the id after which it continues. All are asked for first, since
        an iterator waits for the present at each step.
        """
        rows = self._call("query", filter=condition, output_fields=["id", *fields], limit=count)
        if len(rows) < count:
            if rows:
                yield list(rows)
            return
        after = ""
        while rows := self._call(
            "query", filter=" and ".join(filter(None, (after, condition))), output_fields=["id", *fields], limit=count,
            iterator="True", reduce_stop_for_best="True",
        ):  # fmt: skip
            yield list(rows)
            after = f"id > {quote(rows[-1]['id'])}"

    def documents(self, handles: np.ndarray) -> list[Document]:
        ids = self._ids_of(handles)
        return self._in_order(ids, self._find(ids))

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
            close(self.uri, client)


def _hex(some_keys: np.ndarray) -> list[str]:
    """Keys as texts."""
    return [key.tobytes().hex() for key in some_keys]
