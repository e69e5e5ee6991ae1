"""Read corpora and queries: JSONL as in BEIR, one object per line, with `_id` (or `id`), `text` and perhaps `title`.

Corpora of pictures are read by `pictures`; a query may be a picture for models that read them, see `read_queries`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax.data.readers.records import lines, need_unicode
from mrl_jax.data.sources.image_text import ROLES
from mrl_jax.search.index import Document
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_file


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, its bytes, its JSON object) of a JSONL file, line by line."""
    need_file(path, path)
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}, line {number}: {str(content)[:40]} is not a JSON object")
        for key, value in content.items():
            if isinstance(value, str):
                need_unicode(path, f"line {number}", key, value)
        yield number, len(line.encode()), content


def read_documents(path: Path) -> Iterator[tuple[int, Document]]:
    """(bytes of its line, document) of each line of a corpus."""
    for number, size, content in read_lines(path):
        yield size, parse_document(path, number, content)


def parse_document(path: Path, number: int, content: dict[str, Any]) -> Document:
    """The document of one line of a corpus. Its title, if it has one, comes before its text."""
    id_ = content.get("_id", content.get("id"))
    text = content.get("text")
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    for key, value in (("_id", id_), ("text", text)):
        if not isinstance(value, str) or (key == "_id" and not value):
            raise UserError(f"{path}, line {number}: {key} is missing or not a string; every line has _id and text")
    title = content.get("title") or ""
    if not isinstance(title, str):
        raise UserError(f"{path}, line {number}: title is not a string")
    return Document(str(id_), f"{title} {text}".strip())


class Query(NamedTuple):
    id: str | None
    text: str
    picture: Path | None = None  # in place of the text


def read_queries(path: Path, reads: Sequence[str] = ("text",)) -> list[Query]:
    """The queries of a file; raises UserError where there are none.

    Args:
        path: JSONL. A line has `text`, or the path of a picture relative to the file, as `image` or `file_name`. Where
            it has both, as captions with pictures have, the captions are the queries: a text, or a list of them.
        reads: what the model reads, `text` or `image`, or both.
    """
    queries = []
    for number, _, content in read_lines(path):
        id_ = content.get("_id", content.get("id"))
        known = None if id_ is None else str(id_)
        text, column = content.get("text"), next((name for name in ROLES["image"] if name in content), None)
        texts: list[Any] = text if isinstance(text, list) and "image" in reads else [text]
        if "text" in reads and texts and all(isinstance(one, str) for one in texts):
            queries += [Query(known, one) for one in texts]
        elif "image" in reads and isinstance(content.get(str(column)), str):
            queries.append(Query(known, "", path.parent / content[str(column)]))
        else:
            raise UserError(
                f"{path}, line {number}: {' or '.join(reads)} is missing or not a string; every query has one"
            )
    if not queries:
        raise UserError(f"{path} has no queries")
    return queries


def file_size(path: Path) -> int:
    """Bytes of a corpus; raises UserError for one that is empty or not a file."""
    need_file(path, path)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    return path.stat().st_size
