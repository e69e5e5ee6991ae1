"""Documents in Milvus: embedded (Milvus Lite, a path that ends in .db) or on a server or cluster (http://host:19530).

Two collections. `documents` has the fields id, text, vector (the whole embedding), prefix_key and vector_key (hashes of
the prefix and of the whole: documents that share one are equal there). `documents_prefixes` has each distinct prefix
once, by its key and at unit length (see `distinct`). Milvus searches the prefixes; the documents that have them are
ranked by whole embeddings here. A prefix is written before its documents and deleted after them, so that a process that
is killed between leaves a prefix that no document has, which searches pass over. Each collection has one vector field,
as servers before 2.4 want it; whole embeddings have an index too, FLAT, without which servers do not load them. Indexes
of earlier versions have the prefix of every document in `documents`, copies and all; they are searched there.

Several processes may write to one server at once. Whoever deletes a prefix that no document has looks afterwards
whether one has come meanwhile, and whoever writes documents looks afterwards whether their prefixes are still there.

The same code serves both, so that a corpus that outgrows one machine moves to a cluster by another address. We claim
nothing about the speed of Milvus Lite, which is for trying things out: it runs in the process that opened it, and no
other may open it meanwhile.
"""

import contextlib
from pathlib import Path

from mrl_jax.search.index import is_server
from mrl_jax.search.index.base import Description
from mrl_jax.search.index.milvus_client import (
    CONNECT_SECONDS,
    call,
    client_errors,
    close,
    connect,
    is_passing,
)
from mrl_jax.search.index.milvus_collections import (
    COLLECTION,
    PREFIXES,
    PROBED_KINDS,
    check_vectors,
    count,
    create_collection,
    description_text,
    fields_of,
    load,
    milvus_kind,
    probe,
)
from mrl_jax.search.index.milvus_index import MilvusIndex
from mrl_jax.system.errors import UserError

MAX_DIMS = 32768  # of a vector, on a Milvus server


def create(uri: str, description: Description, collection: str = COLLECTION, token: str = "") -> MilvusIndex:
    """An empty index of `description.kind` at `uri`, a path that ends in .db or the address of a server.

    Args:
        uri: where; a server may need a token.
        description: what the index is for; its kind is one of those in `BACKENDS` for this place.
        collection: name of the collection that Milvus makes, beside one of the prefixes.
        token: of a server, such as user:password.

    Raises:
        UserError: there is such a collection already, Milvus does not have so many dims, or a server does not answer.
    """
    kind = milvus_kind(description)
    if description.width > MAX_DIMS:
        raise UserError(f"Milvus takes vectors of at most {MAX_DIMS:,} dims; these have {description.width:,}")
    client, types = connect(uri, collection, token)
    taken = UserError(f"{uri} has a collection {collection} already; it is not overwritten")
    fields = fields_of(types, collection, description)
    prefixes = collection + PREFIXES
    try:
        with client_errors(uri, f"{description.kind} of {description.prefix} dims: "):
            left_over = call(client, "has_collection", prefixes)  # made after that of documents, which is gone
            if call(client, "has_collection", collection):
                raise taken
            if kind in PROBED_KINDS and is_server(uri):
                probe(uri, client, types, description)
            if left_over:
                call(client, "drop_collection", prefixes)
            try:
                create_collection(client, collection, fields[collection], description)
            except Exception as error:
                if call(client, "has_collection", collection):  # of another process, which began at the same moment
                    raise taken from error
                raise
            try:
                create_collection(client, prefixes, fields[prefixes], description)
                load(client, prefixes, fields[prefixes], description)
            except Exception as error:
                if not is_passing(error):  # the server does not take this kind of index, from nobody
                    for name in fields:
                        with contextlib.suppress(Exception):
                            call(client, "drop_collection", name, seconds=CONNECT_SECONDS)
                raise  # else `open_` makes what is missing
            load(client, collection, fields[collection], description)
    except BaseException:
        close(uri, client)
        raise
    return MilvusIndex(uri, collection, client, description, kind, prefixes)


def open_(uri: str, write: bool = False, collection: str = COLLECTION, token: str = "") -> MilvusIndex:
    """The index at `uri`, which Milvus always opens for writing.

    Raises UserError: none there, not one of ours, in use, or a server that does not answer.
    """
    if not is_server(uri) and not Path(uri).exists():
        raise UserError(f"{uri} is not an index: there is no such file")
    client, types = connect(uri, collection, token)
    try:
        with client_errors(uri):
            if not call(client, "has_collection", collection):
                raise UserError(f"{uri} has no collection {collection}; build an index there first")
            about = call(client, "describe_collection", collection)
            try:
                description = Description.from_json(description_text(about))
            except ValueError:
                raise UserError(f"{uri} has a collection {collection} that mrl_jax did not make") from None
            fields = {field["name"] for field in about["fields"]}
            searched = collection if "prefix" in fields else collection + PREFIXES
            load(client, collection, fields, description)
            if searched != collection:
                if not call(client, "has_collection", searched):
                    if count(client, collection):
                        raise UserError(f"{uri} has no collection {searched}, which {collection} needs; rebuild it")
                    # What created the other one was killed, or is about to do the same.
                    made = fields_of(types, collection, description)[searched]
                    create_collection(client, searched, made, description)
                load(client, searched, {"prefix"}, description)
            kind = check_vectors(uri, client, searched, "prefix", description.prefix)
            check_vectors(uri, client, collection, "vector", description.width)
    except BaseException:
        close(uri, client)
        raise
    return MilvusIndex(uri, collection, client, description, kind, searched)


def exists(uri: str, token: str = "") -> bool:
    """Whether there is an index at `uri`, or one that a killed build has begun. Raises UserError as `connect` does."""
    if not is_server(uri) and not Path(uri).exists():
        return False
    client, _ = connect(uri, COLLECTION, token)
    try:
        with client_errors(uri):
            return bool(call(client, "has_collection", COLLECTION))
    finally:
        close(uri, client)
