"""The client of Milvus: connections, errors as sentences, and texts as Milvus takes them."""

import contextlib
import fcntl
import importlib
import logging
import logging.config
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mrl_jax.search.index import BACKENDS, is_server
from mrl_jax.search.index.base import Document, first_line
from mrl_jax.system.errors import UserError

CONNECT_SECONDS = 5.0  # to wait for a server that does not answer

_open_files: Counter[str] = Counter()  # how many times this process has each Milvus Lite file open


def connect(uri: str, collection: str, token: str) -> tuple[Any, Any]:
    """A client, to be closed by `close`, and the data types of a schema."""
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
        raise UserError(f"{uri} cannot be opened: it is damaged, or not writable ({first_line(error)})") from None
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


@contextlib.contextmanager
def client_errors(uri: str, settings: str = "") -> Iterator[None]:
    """Turn whatever the client raises into a `UserError` of one sentence, with the settings of the index."""
    from pymilvus.exceptions import MilvusException

    grpc: Any = importlib.import_module("grpc")
    try:
        yield
    except MilvusException as error:
        if error.code == grpc.StatusCode.UNAVAILABLE:
            raise UserError(f"{uri} stopped answering") from None
        raise UserError(f"{uri}: {settings}{first_line(error.message or error)}") from None
    except grpc.RpcError as error:
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
