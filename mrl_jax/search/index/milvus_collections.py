"""The collections of a Milvus index: their fields, the index of each field, and what is checked of them."""

import contextlib
import secrets
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from mrl_jax.search.index import distinct
from mrl_jax.search.index.base import Description, quantised_bytes, unit
from mrl_jax.search.index.milvus_client import CONNECT_SECONDS, call
from mrl_jax.system.errors import UserError

COLLECTION = "documents"
PREFIXES = "_prefixes"  # appended to the name of a collection for that of its prefixes
DESCRIPTION_PROPERTY = "mrl_jax"  # holds the `Description`; Milvus Lite forgets descriptions of collections
METRIC = "IP"  # of prefixes of unit length: the cosine
IVF_CELLS, IVF_PROBED_CELLS = 128, 32  # of ivf_…: cells in all, and cells that are searched first
HNSW_LINKS, HNSW_NODES = 32, 128  # per node; nodes that a search keeps in view, and twice as many while it is built
MAX_ID_BYTES, MAX_TEXT_BYTES = 512, 65535
LOAD_SECONDS = 600.0  # to wait until a server has loaded a collection, written it to disk or indexed it
POLL_SECONDS = 0.5
# DISKANN is accepted by servers that cannot build it, and then tried for ever: it is tried on random vectors before.
PROBED_KINDS, PROBE_ROWS, PROBE_SECONDS = ("diskann",), 2048, 30.0  # servers index from 1,024 rows on


def fields_of(types: Any, collection: str, description: Description) -> dict[str, dict[str, dict[str, Any]]]:
    """The fields of the two collections. That of documents comes first: whoever creates it has the index."""
    key = {"datatype": types.VARCHAR, "max_length": 2 * distinct.KEY_BYTES}
    return {
        collection: {
            "id": {"datatype": types.VARCHAR, "is_primary": True, "max_length": MAX_ID_BYTES},
            "text": {"datatype": types.VARCHAR, "max_length": MAX_TEXT_BYTES},
            "vector": {"datatype": types.FLOAT_VECTOR, "dim": description.width},
            "prefix_key": key,
            "vector_key": key,
        },
        collection + PREFIXES: {
            "key": {**key, "is_primary": True},
            "prefix": {"datatype": types.FLOAT_VECTOR, "dim": description.prefix},
        },
    }


def create_collection(client: Any, name: str, fields: dict[str, dict[str, Any]], description: Description) -> None:
    text = description.to_json()
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
    for field, options in fields.items():
        schema.add_field(field, **options)
    call(
        client, "create_collection", name, schema=schema, consistency_level="Strong",
        properties={DESCRIPTION_PROPERTY: text},
    )  # fmt: skip


def description_text(about: dict[str, Any]) -> str:
    """What a collection says of itself, which need not be ours."""
    return about.get("properties", {}).get(DESCRIPTION_PROPERTY) or about.get("description") or ""


def load(client: Any, name: str, fields: Iterable[str], description: Description) -> None:
    """Load a collection, after making the indexes that it lacks if a `create` was killed."""
    vectors = [field for field in ("prefix", "vector") if field in fields]
    if not all(describe_index(client, name, field) for field in vectors):
        create_index(client, name, vectors, description)
    call(client, "load_collection", name, seconds=LOAD_SECONDS)


def create_index(client: Any, name: str, fields: Iterable[str], description: Description) -> None:
    """Index fields: the prefix by the kind of index that is described, the whole vector by what loads it as it is."""
    kind = milvus_kind(description).upper()
    index_params = client.prepare_index_params()
    for field in fields:
        index_type = kind if field == "prefix" else "FLAT"  # servers load no vectors without an index
        params: dict[str, int] = {}  # not every server has defaults for these
        if index_type == "HNSW":
            params = {"M": HNSW_LINKS, "efConstruction": 2 * HNSW_NODES}
        elif index_type.startswith("IVF"):
            params = {"nlist": IVF_CELLS}
        if index_type == "IVF_PQ":
            params["m"] = quantised_bytes(description.prefix)
        index_params.add_index(field, index_name=field, index_type=index_type, metric_type=METRIC, params=params)
    # Not until all is indexed that is there: an index that a server cannot build would keep us waiting.
    call(client, "create_index", name, index_params, seconds=LOAD_SECONDS, sync=False)


def probe(uri: str, client: Any, types: Any, description: Description) -> None:
    """Raises UserError where the server does not build an index of this kind, of a collection that is dropped again."""
    name, dim = f"{COLLECTION}_probe_{secrets.token_hex(8)}", description.prefix
    fields: dict[str, dict[str, Any]] = {
        "id": {"datatype": types.INT64, "is_primary": True},
        "prefix": {"datatype": types.FLOAT_VECTOR, "dim": dim},
    }
    rows = unit(np.random.default_rng(0).normal(size=(PROBE_ROWS, dim)))
    try:
        create_collection(client, name, fields, description)
        call(client, "insert", name, [{"id": i, "prefix": row} for i, row in enumerate(rows)])
        call(client, "flush", name)
        create_index(client, name, {"prefix"}, description)
        until = time.monotonic() + PROBE_SECONDS
        while describe_index(client, name, "prefix")["indexed_rows"] < PROBE_ROWS:
            if time.monotonic() > until:
                raise UserError(f"{uri} does not build an index of kind {description.kind}; take another --kind")
            time.sleep(POLL_SECONDS)
    finally:
        with contextlib.suppress(Exception):
            call(client, "drop_collection", name, seconds=CONNECT_SECONDS)


def check_vectors(uri: str, client: Any, collection: str, field: str, dim: int) -> str:
    """The type of a field's index, in small letters. Raises UserError for other vectors than a description says."""
    fields = {one["name"]: one for one in call(client, "describe_collection", collection)["fields"]}
    there = int(fields.get(field, {}).get("params", {}).get("dim", 0))
    index = describe_index(client, collection, field)
    if there != dim or index["metric_type"] != METRIC:
        raise UserError(
            f"{uri}: {field} of {collection} should have {dim} dims compared by {METRIC}, and has {there} compared by "
            f"{index['metric_type']}; rebuild the index"
        )
    return str(index["index_type"]).lower()


def describe_index(client: Any, name: str, field: str) -> dict[str, Any]:
    """Of a field, its index with index_type, metric_type and, on servers, pending_index_rows; empty for none."""
    return call(client, "describe_index", name, field) or {}


def count(client: Any, name: str) -> int:
    options: dict[str, Any] = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
    return int(call(client, "query", name, **options)[0]["count(*)"])


def milvus_kind(description: Description) -> str:
    return description.kind.removeprefix("milvus-").lower()
