"""One request over HTTP: who may ask, what it may cost, what is answered.

    401  no token, or another one          413  a body of too many bytes, which is not read
    403  documents are not to be changed   415  a body that is not application/json
    421  a name that is not this machine's 503  as much is waiting as may wait; Retry-After says when to come again
    400  whatever else a client got wrong  504  not answered in time

Every error is `{"error": {"message": …}}` with one sentence, as clients of OpenAI's API expect it. A service without a
token answers this machine only. Pages of other sites, which run there in a browser, cannot reach it either: bodies have
to be application/json, which no page may send elsewhere unasked, and the Host has to be a name of this machine.
"""

import asyncio
import base64
import hmac
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mrl_jax.search.index import Document
from mrl_jax.search.service import page, pictures, schema
from mrl_jax.search.service.answers import Answers, Unavailable
from mrl_jax.search.service.options import Limits, is_loopback
from mrl_jax.search.service.schema import Endpoint
from mrl_jax.search.service.worker import Busy, Worker
from mrl_jax.system.errors import UserError

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN_TO_ALL = ("/health",)  # also without the token: the answer then says nothing of the index
FAILED = "the service failed to answer this; its log says more"
RETRY_SECONDS = 1
MAX_RESULTS = 10_000  # of all queries of a request
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}

Reply = dict[str, Any]


class Refused(Exception):
    """A status other than 400, with its sentence."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Metrics:
    """What is counted, of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "mrl_jax_requests", "Requests by address and status.", ["method", "path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "mrl_jax_request_seconds", "Time from a request's headers to its answer.", ["method", "path"],
            registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "mrl_jax_batch_texts", "Texts that were answered together.", buckets=BATCH_SIZES, registry=self.registry
        )
        self.waiting = Gauge("mrl_jax_waiting_texts", "Texts that wait for a batch.", registry=self.registry)
        self.dims = Counter(
            "mrl_jax_dims_read", "Dims that were read per text: scanned by a search, or by a classifier's answer.",
            ["path"], registry=self.registry,
        )  # fmt: skip


class Service:
    """The application, for an index that a worker has opened."""

    def __init__(self, answers: Answers, worker: Worker, metrics: Metrics, limits: Limits, token: str | None) -> None:
        self._answers, self._worker, self._metrics, self._limits, self._token = answers, worker, metrics, limits, token
        metrics.waiting.set_function(lambda: worker.waiting)
        self._decoders = ThreadPoolExecutor(pictures.THREADS, thread_name_prefix="picture")
        self._started = time.time()
        self.table = schema.endpoints(answers.facts, limits)
        description = schema.openapi(self.table, token is not None)
        act: dict[str, Callable[[Endpoint, dict[str, Any]], Awaitable[Reply]]] = {
            "/search": self._search, "/embed": self._embed, "/v1/embeddings": self._openai, "/classify": self._classify,
            "/documents": self._documents, "/map": self._map,
        }  # fmt: skip
        routes = [
            Route(one.path, self._endpoint(one, act[one.path]), methods=[one.method])
            for one in self.table
            if one.path in act
        ]
        routes += [
            Route("/health", self._guarded("/health", self._health)),
            Route("/metrics", self._guarded("/metrics", self._show_metrics)),
        ]
        for one in self.table:
            if one.path == "/picture":
                routes.append(Route(one.path, self._guarded(one.path, partial(self._picture, one))))
        pages = {
            "/": (
                page.search_page(token is not None, answers.facts.reads, answers.facts.pictures is not None),
                "text/html",
            ),
            "/docs": (page.reference(description), "text/html"),
            "/openapi.json": (page.Page(_json(description), {}), "application/json"),
        }
        routes += [Route(path, self._static(path, *content)) for path, content in pages.items()]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _unknown})

    # ---- who may ask, and what happens to mistakes ----

    def _endpoint(self, endpoint: Endpoint, act: Callable[[Endpoint, dict[str, Any]], Awaitable[Reply]]) -> Any:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            if endpoint.method == "GET":
                values = schema.check_query(endpoint, request.query_params)
            else:
                values = schema.check_body(endpoint, schema.parse(await self._body(request)))
            reply = await act(endpoint, values)
            if endpoint.path != "/v1/embeddings":
                reply["ms"] = round(1000 * (time.perf_counter() - started), 2)
            return _reply(reply)

        return self._guarded(endpoint.path, answer)

    def _guarded(self, path: str, answer: Callable[[Request], Awaitable[Response]]) -> Any:
        """`answer` within the limits of the service; every mistake becomes a status and a sentence."""

        async def guarded(request: Request) -> Response:
            started = time.perf_counter()
            response = await self._within_limits(path, request, answer)
            taken = time.perf_counter() - started
            self._metrics.requests.labels(request.method, path, response.status_code).inc()
            self._metrics.seconds.labels(request.method, path).observe(taken)
            return response

        return guarded

    async def _within_limits(
        self, path: str, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        try:
            self._check_host(request)
            if path not in OPEN_TO_ALL and not self._knows_token(request):
                challenge = {"www-authenticate": "Bearer", "connection": "close"}
                raise Refused(401, "this service wants its token: Authorization: Bearer …", challenge)
            async with asyncio.timeout(self._limits.timeout):
                return await answer(request)
        except Refused as error:
            return _error(error.status, str(error), error.headers)
        except Busy:
            return _error(503, "too many texts are waiting; come again", {"retry-after": str(RETRY_SECONDS)})
        except Unavailable as error:
            return _error(503, str(error))
        except UserError as error:
            return _error(400, str(error))
        except ValueError as error:
            return _error(400, str(UserError(str(error))))
        except TimeoutError:
            return _error(504, f"not answered within {self._limits.timeout:g} seconds", {"connection": "close"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return _error(500, FAILED)

    def _check_host(self, request: Request) -> None:
        if self._token is not None:
            return
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not is_loopback(name.lower().removeprefix("[").removesuffix("]")):
            raise Refused(421, f"Host {name[:80]!r} is not allowed; one of {', '.join(LOCAL_NAMES)}")

    def _knows_token(self, request: Request) -> bool:
        if self._token is None:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Headers are Latin-1, and a token may be anything.
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token.encode())

    async def _body(self, request: Request) -> bytes:
        """The body, of which no more is read than is allowed."""
        most, close = self._limits.max_body, {"connection": "close"}
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, f"Content-Type {kind[:80]!r} is not allowed; application/json", close)
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise Refused(413, f"the body has {int(length):,} bytes; at most {most:,} are allowed", close)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refused(413, f"the body has more than {most:,} bytes, which are allowed", close)
            parts.append(part)
        return b"".join(parts)

    def _static(self, path: str, content: page.Page, kind: str) -> Any:
        async def show(_: Request) -> Response:
            return Response(content.text, media_type=kind, headers={**HEADERS, **content.headers})

        return show

    # ---- answers ----

    async def _ask(self, kind: str, options: Hashable, items: list[Any]) -> list[Any]:
        if not self._worker.alive:
            raise Refused(503, "the service is about to end")
        future: Future[list[Any]] = self._worker.submit(kind, options, items)
        try:
            return await asyncio.wrap_future(future)
        except (UserError, ValueError):
            raise
        except Exception as error:  # the worker has printed it; of TimeoutError, it is not that of a request
            raise Refused(500, FAILED) from error

    async def _items(self, what: str, endpoint: Endpoint, values: dict[str, Any]) -> list[Any]:
        """What is asked of: texts, embeddings, or pictures, which are decoded here."""
        allowed = [key for key in ("texts", "images", "vectors") if key in endpoint.properties]
        if sum(key in values for key in allowed) != 1:
            raise UserError(f"{what} takes {', '.join(allowed[:-1])} or {allowed[-1]}, and one of them")
        if "vectors" in values:
            return [np.array(vector, np.float32) for vector in values["vectors"]]
        if "images" not in values:
            return list(values["texts"])
        rule, loop = self._answers.rule, asyncio.get_running_loop()
        assert rule is not None
        waiting = [
            loop.run_in_executor(self._decoders, pictures.decode, number, encoded, rule)
            for number, encoded in enumerate(values["images"])
        ]
        return list(await asyncio.gather(*waiting))

    async def _search(self, endpoint: Endpoint, values: dict[str, Any]) -> Reply:
        items = await self._items("a search", endpoint, values)
        if len(items) * values["k"] > MAX_RESULTS:
            raise UserError(f"k={values['k']} for {len(items)} queries is not allowed; at most {MAX_RESULTS:,} in all")
        facts = self._answers.facts
        dim = None if values["dim"] == facts.width else values["dim"]
        found = await self._ask("search", (values["k"], dim, values["plan"]), items)
        self._metrics.dims.labels(endpoint.path).inc(sum(one["dims"] for one in found))
        most = values["characters"]
        results = [
            {
                "hits": [{"id": doc.id, "score": score, "text": doc.text[:most]} for doc, score in one["hits"]],
                "unknown": one["unknown"],
            }
            for one in found
        ]
        return {"dim": values["dim"], "results": results}

    async def _embed(self, endpoint: Endpoint, values: dict[str, Any]) -> Reply:
        items = await self._items("an embedding", endpoint, values)
        vectors = await self._vectors(endpoint, items, values.get("dim"), values.get("prompt"))
        return {"dim": len(vectors[0]), "vectors": [z.tolist() for z in vectors]}

    async def _vectors(
        self, endpoint: Endpoint, items: list[Any], dim: int | None, prompt: str | None
    ) -> list[np.ndarray]:
        vectors = await self._ask("embed", (dim, prompt), items)
        self._metrics.dims.labels(endpoint.path).inc(sum(map(len, vectors)))
        return vectors

    async def _openai(self, endpoint: Endpoint, values: dict[str, Any]) -> Reply:
        texts = [values["input"]] if isinstance(values["input"], str) else values["input"]
        vectors = await self._vectors(endpoint, texts, values.get("dimensions"), values.get("prompt"))
        as_bytes = values["encoding_format"] == "base64"
        words = sum(len(text.split()) for text in texts)
        return {
            "object": "list",
            "model": self._answers.facts.model[:16],
            "data": [
                {
                    "object": "embedding",
                    "index": i,
                    "embedding": base64.b64encode(z.astype("<f4").tobytes()).decode() if as_bytes else z.tolist(),
                }
                for i, z in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": words, "total_tokens": words},
        }

    async def _classify(self, endpoint: Endpoint, values: dict[str, Any]) -> Reply:
        if values["cascade"] and "dim" in values:
            raise UserError(f"a cascade chooses its dims; leave dim={values['dim']} out, or cascade")
        items = await self._items("a class", endpoint, values)
        answers = await self._ask("classify", (values.get("dim"), values["cascade"]), items)
        self._metrics.dims.labels(endpoint.path).inc(sum(dim for _, dim in answers))
        classes = self._answers.facts.classes
        results = []
        for p, dim in answers:
            best = np.argsort(-p, kind="stable")[: values["top"]]
            results.append({"classes": [{"class": classes[c], "probability": float(p[c])} for c in best], "dim": dim})
        return {"results": results}

    async def _documents(self, endpoint: Endpoint, values: dict[str, Any]) -> Reply:
        if not self._answers.facts.writable:
            raise Refused(403, "documents of this service cannot be changed; start it with --write")
        if "documents" in values and self._answers.facts.pictures:
            raise Refused(403, "the documents of this index are pictures, which `search build` adds")
        if "ids" in values:
            kind, items = "delete", [*dict.fromkeys(values["ids"])]
        else:
            kind = "upsert"
            items = [
                Document(one["id"], f"{one.get('title', '')} {one['text']}".strip()) for one in values["documents"]
            ]
            if len({one.id for one in items}) < len(items):
                raise UserError("two of the documents have the same id")
        done = await self._ask(kind, None, items)
        key = "deleted" if kind == "delete" else "added"
        return {key: sum(one[key] for one in done), "documents": done[-1]["documents"]}

    async def _map(self, _: Endpoint, values: dict[str, Any]) -> Reply:
        (drawn,) = await self._ask("map", None, [values["dim"]])
        return dict(drawn)

    async def _picture(self, endpoint: Endpoint, request: Request) -> Response:
        """A picture of the index, by its id: no other file can be asked for."""
        values = schema.check_query(endpoint, request.query_params)
        root = self._answers.facts.pictures
        (document,) = await self._ask("find", None, [values["id"]])
        if document is None or root is None:
            raise Refused(404, f"there is no document {values['id'][:80]!r}")
        loop = asyncio.get_running_loop()
        try:
            content = await loop.run_in_executor(self._decoders, pictures.shown, root, document.id, values["side"])
        except UserError as error:
            raise Refused(404, str(error)) from None
        return Response(content, media_type="image/jpeg", headers=HEADERS)

    async def _health(self, request: Request) -> Response:
        facts = self._answers.facts
        alive, changes = self._worker.alive, facts.changes()
        status = "failed" if not alive else "changed" if changes else "ok"
        reply: Reply = {"status": status}
        if self._knows_token(request):
            about = facts._asdict()
            for name in ("files", "run_files"):
                del about[name]
            reply |= about | {
                "changes": changes, "waiting": self._worker.waiting, "seconds": round(time.time() - self._started),
                "max_body": self._limits.max_body,
            }  # fmt: skip
        return _reply(reply, 200 if alive else 503)

    async def _show_metrics(self, _: Request) -> Response:
        return Response(
            generate_latest(self._metrics.registry), media_type="text/plain; version=0.0.4", headers=HEADERS
        )


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _reply(content: Reply, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_json(content), status, {**HEADERS, **(headers or {})}, "application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _reply({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, headers)


def _unknown(request: Request, error: Exception) -> Response:
    """No such address, or not with this method."""
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no {request.url.path[:80]}; /docs lists what there is",
        405: f"{request.method} is not allowed here; /docs lists what is",
    }
    return _error(error.status_code, str(UserError(said.get(error.status_code, error.detail))), error.headers)
