"""The client of Milvus: connections, calls that outlast a restart of the server, errors as sentences, and texts as
Milvus takes them.
"""

import contextlib
import fcntl
import importlib
import logging
import logging.config
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mrl_jax.search.index import BACKENDS, is_server
from mrl_jax.search.index.base import Document, first_line
from mrl_jax.system.errors import UserError

TOKEN = "MRL_JAX_MILVUS_TOKEN"  # the environment variable with the token of a server
OLDEST_SERVER = (2, 3)  # which is the first with upserts
CONNECT_SECONDS = 5.0  # to wait for a server that does not answer
# The same while an index is open: a killed server answers 30 to 60 seconds after it is started again.
CALL_SECONDS = 120.0
CONNECT_FAILED = 2  # what the client says of a connection that it cannot make
# What a server says while it loads again what was loaded before: collections that are not (fully) loaded; replicas,
# channels, segments or nodes that are missing.
STARTING = frozenset((101, 103, 400, 401, 500, 501, 503, 600, 601, 602, 901, 902, 903, 904))
RETRY_SECONDS = 0.5  # between two tries of a call that a server is not ready for

_open_files: Counter[str] = Counter()  # how many times this process has each Milvus Lite file open


def connect(uri: str, collection: str, token: str) -> tuple[Any, Any]:
    """A client, to be closed by `close`, and the data types of a schema.

    Args:
        uri: a path that ends in .db, or the address of a server, http://host:19530 or https://host, perhaps with the
            name of a database: http://host:19530/name.
        collection: a name, which is checked.
        token: of a server; by default what `TOKEN` says.

    Raises:
        UserError: no such file or server, one that is too old, that wants another token or has no such database.
    """
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
        return _connect_server(MilvusClient, uri, token or os.environ.get(TOKEN, "")), DataType
    _check_path(uri)
    try:
        client = MilvusClient(uri)
    except Exception as error:
        raise UserError(f"{uri} cannot be opened: it is damaged, or not writable ({first_line(error)})") from None
    _open_files[os.path.abspath(uri)] += 1
    return client, DataType


def _connect_server(client_class: Any, uri: str, token: str) -> Any:
    place = urlsplit(uri)
    if "@" in place.netloc:
        raise UserError(f"the address of a server holds no name and no password; give them by --token or {TOKEN}")
    if place.query or place.fragment or place.path.strip("/").count("/"):
        raise UserError(f"{uri} is no address of a server; give http://host:19530 or http://host:19530/database")
    try:
        port = place.port or (443 if place.scheme == "https" else 19530)
        socket.create_connection((place.hostname or "", port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(f"{uri} does not answer: {error}") from None
    with client_errors(uri):
        client = client_class(uri, token=token, timeout=CONNECT_SECONDS)
    try:
        with client_errors(uri):
            version = str(call(client, "get_server_version", seconds=CONNECT_SECONDS))
            if place.path.strip("/"):
                call(client, "list_collections", seconds=CONNECT_SECONDS)  # fails where there is no such database
        found = re.search(r"(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise UserError(f"{uri} is Milvus {version}; servers from {oldest} on are supported")
    except BaseException:
        close(uri, client)
        raise
    return client


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


def close(uri: str, client: Any) -> None:
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


def call(client: Any, name: str, *args: Any, seconds: float = CALL_SECONDS, **options: Any) -> Any:
    """Call a method of the client, for `seconds` again and again where the server is away or not ready yet.

    Whatever is called here may be called twice: writes are by primary key.
    """
    from pymilvus.exceptions import MilvusException

    until = time.monotonic() + seconds
    while True:
        try:  # the client itself tries again, until its timeout, where nobody answers
            return getattr(client, name)(*args, timeout=max(1.0, until - time.monotonic()), **options)
        except MilvusException as error:
            if not is_passing(error) or time.monotonic() + RETRY_SECONDS > until:
                raise
        time.sleep(RETRY_SECONDS)


def server_time(client: Any) -> int:
    """A moment after everything that the server acknowledged; 0 where the client does not tell."""
    handler = client._get_connection()
    return int(call(handler, "alloc_timestamp")) if hasattr(handler, "alloc_timestamp") else 0


def is_passing(error: Any) -> bool:
    """Whether a server answers so only for a moment, as while it starts."""
    return bool(getattr(error, "retriable", False)) or getattr(error, "code", 0) in STARTING or _is_away(error)


def _is_away(error: Any) -> bool:
    """Whether nobody answered, or in time; a connection that cannot be made again has lost the reason."""
    grpc: Any = importlib.import_module("grpc")
    status = _status(error)
    return status in (CONNECT_FAILED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _status(error: Any) -> Any:
    """The status of the call that an error of the client comes from; else the number that it has from the server."""
    grpc: Any = importlib.import_module("grpc")
    of_call = error if isinstance(error, grpc.RpcError) else error.__cause__
    return of_call.code() if isinstance(of_call, grpc.RpcError) else getattr(error, "code", 0)


@contextlib.contextmanager
def client_errors(uri: str, settings: str = "") -> Iterator[None]:
    """Turn whatever the client raises into a `UserError` of one sentence, with the settings of the index."""
    from pymilvus.exceptions import MilvusException

    grpc: Any = importlib.import_module("grpc")
    try:
        yield
    except MilvusException as error:
        if _status(error) == grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(f"{uri} does not accept the token; give one by --token, or in {TOKEN}") from None
        if _is_away(error):
            raise UserError(f"{uri} stopped answering") from None
        raise UserError(f"{uri}: {settings}{first_line(error.message or error)}") from None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UserError(f"{uri} stopped answering") from None
        raise UserError(f"{uri}: {settings}{first_line(error.details() or error.code().name)}") from None


# ---- texts -----------------------------------------------------------------------------------------------------------


def text_bytes(document: Document, name: str, limit: int) -> int:
    """Size of a document's id or text in UTF-8. Raises UserError for one that Milvus does not take."""
    value: str = getattr(document, name)
    size = len(encode(value))
    if size > limit:
        raise UserError(f"document {document.id[:40]}: its {name} has {size:,} bytes; Milvus takes {limit:,}")
    return size


def encode(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{value[:40]!a} cannot be stored in Milvus: {error.reason}") from None


def one_of_filter(field: str, values: Iterable[str]) -> str:
    """The filter for rows with one of these values in a field; the client's own, by `ids=`, does not escape quotes."""
    return f"{field} in [{', '.join(map(quote, values))}]"


def quote(value: str) -> str:
    """A text in a filter. Milvus Lite and servers both know these escapes, and take any other character as it is."""
    escaped = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
    return f'"{encode(value).decode().translate(escaped)}"'
