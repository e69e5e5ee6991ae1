"""What may be asked of the service: one table of JSON schemas, which requests are checked by and documented with.

`check` understands the part of JSON Schema that the table uses, and answers in one sentence: the place, the value, what
is allowed, and the nearest match of a key that there is not.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mrl_jax.search.service.answers import Facts
from mrl_jax.search.service.options import Limits
from mrl_jax.search.service.pictures import MAX_PICTURES, MAX_SIDE, SIDE
from mrl_jax.system.errors import UserError, nearest

MAX_K = 1000
MAX_SHOWN_CHARACTERS = 40  # of a value in a message

Schema = Mapping[str, Any]


class Endpoint(NamedTuple):
    """One of the service's addresses."""

    method: str
    path: str
    summary: str
    properties: dict[str, Schema]  # of the body or, of GET, of the query
    required: tuple[str, ...]
    answer: str  # what comes back
    example: dict[str, Any]


def endpoints(facts: Facts, limits: Limits) -> tuple[Endpoint, ...]:
    """The table, for an open index."""
    dims, longest = list(facts.dims), limits.max_characters
    texts = _list_of(_text(limits), limits, "the texts")
    of_kind = {"text": {"texts": texts}, "image": {"images": _images(limits)}}
    asked = {key: schema for kind in facts.reads for key, schema in of_kind[kind].items()}  # what the model reads
    needed = tuple(asked) if len(asked) == 1 else ()
    what = " or ".join({"text": "text", "image": "picture"}[kind] for kind in facts.reads)
    search_dim: Schema = {"type": "integer", "enum": dims, "default": facts.width, "description": "dims to rank by"}
    any_dim = _whole(1, facts.width, None, "dims of the embeddings")
    prompts = sorted({"query", "document", "passage", "corpus", *facts.prompts})
    prompt = {"type": "string", "enum": prompts, "description": "what the model has before each text"}
    vector = {"type": "array", "items": {"type": "number"}, "minItems": facts.width, "maxItems": facts.width}
    id_ = {"type": "string", "minLength": 1, "maxLength": 512}
    document = {
        "type": "object",
        "properties": {"id": id_, "text": _text(limits, 0), "title": _text(limits, 0)},
        "required": ["id", "text"],
    }
    table = (
        Endpoint(
            "POST", "/search", f"the best documents of each {what} or embedding",
            {
                **asked,
                "vectors": _list_of(vector, limits, f"embeddings of {facts.width} numbers, in place of texts"),
                "k": _whole(1, MAX_K, 10, "results of each"),
                "dim": search_dim,
                "plan": {
                    "type": "string", "maxLength": 200, "default": "auto",
                    "description": "auto (what `search plan` saved, else exact), exact, or stages as 64:200,128:50",
                },
                "characters": _whole(0, longest, min(200, longest), "of each document's text that are sent"),
            },
            (), "results: of each query its hits (id, score, text), and whether no token of it is known; dim; ms",
            {"texts": ["how do I unmount a drive"], "k": 5},
        ),
        Endpoint(
            "POST", "/embed", f"embeddings of {what}s, of unit length", {**asked, "dim": any_dim, "prompt": prompt},
            needed, f"vectors: a list of numbers for each {what}; dim; ms", {"texts": ["a text"], "dim": dims[0]},
        ),
        Endpoint(
            "POST", "/v1/embeddings", "the same, as clients of OpenAI's API ask for it",
            {
                "input": {"anyOf": [_text(limits), texts]},
                "model": {"type": "string", "maxLength": 200, "description": "ignored: there is one model"},
                "dimensions": any_dim,
                "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
                "user": {"type": "string", "maxLength": 1000, "description": "ignored"},
                "prompt": prompt,
            },
            ("input",), "data: of each text its embedding, as numbers or the base64 of float32s; usage counts words",
            {"input": ["a text"], "dimensions": dims[0], "encoding_format": "base64"},
        ),
        Endpoint(
            "POST", "/classify", f"the class of each {what}, where the model is a classifier",
            {
                **asked,
                "dim": any_dim | {"description": "dims that are read; by default the largest that has a classifier"},
                "cascade": {
                    "type": "boolean", "default": False,
                    "description": "read few dims first, and more where the answer is unsure",
                },
                "top": _whole(1, MAX_K, 1, f"classes of each {what}"),
            },
            needed, f"results: of each {what} its most probable classes with probabilities, and the dims read; ms",
            {"texts": ["the shuttle reached orbit"], "top": 3},
        ),
        *(
            Endpoint(
                method, "/documents", "add documents, or replace those of the same id (needs --write)",
                {"documents": _list_of(document, limits, "id, text and perhaps title of each")}, ("documents",),
                "added: documents that are new or had another text; documents: how many there are now; ms",
                {"documents": [{"id": "doc-17", "text": "a text"}]},
            )
            for method in ("PUT", "POST")
        ),
        Endpoint(
            "DELETE", "/documents", "remove documents (needs --write)",
            {"ids": _list_of(id_, limits, "of documents")}, ("ids",),
            "deleted: of the ids that there were; documents: how many there are now; ms", {"ids": ["doc-17"]},
        ),
        Endpoint(
            "GET", "/map", "a sample of the corpus in two coordinates, in clusters of the whole embedding",
            {"dim": search_dim}, (), "x, y, cluster, texts of each document; central: a text for each cluster", {},
        ),
        Endpoint(
            "GET", "/picture", "a document that is a picture: a JPEG of at most so many pixels a side",
            {"id": id_ | {"maxLength": 4096}, "side": _whole(16, MAX_SIDE, SIDE, "pixels of the longer side at most")},
            ("id",), "the picture, image/jpeg", {},
        ),
        Endpoint("GET", "/health", "what is open, and whether it changed on disk", {}, (), "status: ok or changed", {}),
        Endpoint("GET", "/metrics", "counts and latencies, as Prometheus reads them", {}, (), "text", {}),
    )  # fmt: skip
    absent = ([] if facts.pictures else ["/picture"]) + ([] if "text" in facts.reads else ["/v1/embeddings"])
    return tuple(_without_texts(one, facts) for one in table if one.path not in absent)


def _without_texts(endpoint: Endpoint, facts: Facts) -> Endpoint:
    """The endpoint with an example that a model of pictures alone can answer."""
    if "text" in facts.reads or "texts" not in endpoint.example:
        return endpoint
    rest = {key: value for key, value in endpoint.example.items() if key != "texts"}
    return endpoint._replace(example={"images": ["the base64 of a file"], **rest})


def _images(limits: Limits) -> dict[str, Any]:
    encoded = {"type": "string", "minLength": 1, "maxLength": limits.max_body}
    return {
        "type": "array", "items": encoded, "minItems": 1, "maxItems": MAX_PICTURES,
        "description": "pictures: the base64 of JPEG, PNG, GIF, BMP, WebP or TIFF files",
    }  # fmt: skip


def _text(limits: Limits, least: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": limits.max_characters}


def _whole(low: int, high: int, default: int | None, what: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": low, "maximum": high, "description": what}
    return schema if default is None else schema | {"default": default}


def _list_of(item: Schema, limits: Limits, what: str) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": limits.max_texts, "description": what}


def body_schema(endpoint: Endpoint) -> dict[str, Any]:
    """The schema of a request's body."""
    schema = {"type": "object", "properties": endpoint.properties, "additionalProperties": False}
    return schema | ({"required": list(endpoint.required)} if endpoint.required else {})


def openapi(table: tuple[Endpoint, ...], secured: bool) -> dict[str, Any]:
    """The table as an OpenAPI 3.1 document."""
    error = {"description": "a sentence: error.message"}
    paths: dict[str, Any] = {}
    for one in table:
        about: dict[str, Any] = {
            "summary": one.summary,
            "responses": {"200": {"description": one.answer}, "4XX": error, "503": error, "504": error},
        }
        if one.method == "GET":
            about["parameters"] = [{"name": key, "in": "query", "schema": of} for key, of in one.properties.items()]
        else:
            content = {"schema": body_schema(one), "example": one.example}
            about["requestBody"] = {"required": True, "content": {"application/json": content}}
        paths.setdefault(one.path, {})[one.method.lower()] = about
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "mrl_jax search", "version": "1", "description": "An index of Matryoshka embeddings."},
        "paths": paths,
    }
    if secured:
        document["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"token": []}]
    return document


# ---- checks ----------------------------------------------------------------------------------------------------------

NAMES = {
    "string": "a string", "integer": "a whole number", "number": "a number", "boolean": "true or false",
    "array": "a list", "object": "an object",
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,),
}  # fmt: skip


def parse(body: bytes) -> Any:
    """The JSON value of a body. Raises `UserError` where it is none, or holds numbers that JSON has not."""
    try:
        return json.loads(body.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise UserError(f"the body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON: {error}") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def check_body(endpoint: Endpoint, value: Any) -> dict[str, Any]:
    """The body, if it has what the endpoint takes, with defaults. Raises `UserError`."""
    check(value, body_schema(endpoint), "the body")
    defaults: dict[str, Any] = {
        key: schema["default"] for key, schema in endpoint.properties.items() if "default" in schema
    }
    defaults.update(value)
    return defaults


def check_query(endpoint: Endpoint, query: Mapping[str, str]) -> dict[str, Any]:
    """As `check_body`, for what stands behind the question mark of an address: words, some of them numbers."""
    whole = [key for key, schema in endpoint.properties.items() if schema["type"] == "integer"]
    words = {
        key: int(word) if key in whole and re.fullmatch("[0-9]{1,9}", word) else word for key, word in query.items()
    }
    return check_body(endpoint, words)


def check(value: Any, schema: Schema, name: str) -> None:
    """Raise `UserError` for a value that the schema does not allow."""
    if "anyOf" in schema:
        choices = schema["anyOf"]
        fitting = [one for one in choices if _is(value, one["type"])]
        if not fitting:
            raise _refused(name, value, " or ".join(NAMES[one["type"]] for one in choices))
        check(value, fitting[0], name)
        return
    kind = schema["type"]
    if not _is(value, kind):
        allowed = ", ".join(map(str, schema["enum"])) if "enum" in schema else NAMES[kind]
        raise _refused(name, value, f"one of {allowed}" if "enum" in schema else allowed)
    if "enum" in schema and value not in schema["enum"]:
        hint = nearest(value, schema["enum"]) if isinstance(value, str) else ""
        raise _refused(name, value, f"one of {', '.join(map(str, schema['enum']))}", hint)
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and not low <= value <= high:
        raise _refused(name, value, f"{NAMES[kind]} of {low}…{high}")
    if kind == "string":
        _check_text(value, schema, name)
    elif kind == "array":
        _check_list(value, schema, name)
    elif kind == "object":
        _check_object(value, schema, name)


def _is(value: Any, kind: str) -> bool:
    return type(value) in TYPES[kind]  # true is an int to `isinstance`


def _check_text(value: str, schema: Schema, name: str) -> None:
    if len(value) > schema.get("maxLength", len(value)):
        raise UserError(f"{name} has {len(value):,} characters; at most {schema['maxLength']:,} are allowed")
    if len(value.strip()) < schema.get("minLength", 0):
        raise UserError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is not valid Unicode: it holds half of a surrogate pair") from None


def _check_list(value: list[Any], schema: Schema, name: str) -> None:
    low, high = schema["minItems"], schema["maxItems"]
    if not low <= len(value) <= high:
        allowed = f"{low:,}" if low == high else f"{low:,}…{high:,}"
        raise UserError(f"{name} has {len(value):,} entries; {allowed} are allowed")
    if schema["items"] == {"type": "number"}:  # a check of each by itself would take longer than a search
        for i, number in enumerate(value):
            # Above the largest float32 it would be infinite.
            if type(number) not in (int, float) or not abs(number) < 3e38:
                raise _refused(f"{name}[{i}]", number, "a number that float32 holds")
        return
    for i, item in enumerate(value):
        check(item, schema["items"], f"{name}[{i}]")


def _check_object(value: dict[str, Any], schema: Schema, name: str) -> None:
    properties = schema["properties"]
    for key in value:
        if key not in properties:
            hint = nearest(key[:MAX_SHOWN_CHARACTERS], properties)
            allowed = ", ".join(properties) or "none"
            raise UserError(f"{name} has the unknown key {_shown(key)}{hint}; allowed: {allowed}")
    for key in schema.get("required", ()):
        if key not in value:
            raise UserError(f"{name} lacks the key {key}")
    for key, item in value.items():
        check(item, properties[key], key if name == "the body" else f"{name}.{key}")


def _refused(name: str, value: Any, allowed: str, hint: str = "") -> UserError:
    return UserError(f"{name}={_shown(value)} is not allowed{hint}; it must be {allowed}")


def _shown(value: Any) -> str:
    """The beginning of a value, as JSON; of a large one no more is written than is shown."""
    if isinstance(value, list | dict):
        return f"a list of {len(value):,}" if isinstance(value, list) else f"an object of {len(value):,} keys"
    text = json.dumps(value[: MAX_SHOWN_CHARACTERS + 1] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"
