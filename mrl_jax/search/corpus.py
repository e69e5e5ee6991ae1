"""Read corpora and queries: JSONL as in BEIR, one object per line, with `_id` (or `id`), `text` and perhaps `title`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax.data.readers.records import lines, need_unicode
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


def read_queries(path: Path) -> list[Query]:
    """The queries of a file; raises UserError where there are none."""
    queries = []
    for number, _, content in read_lines(path):
        if not isinstance(content.get("text"), str):
            raise UserError(f"{path}, line {number}: text is missing or not a string; every query has one")
        id_ = content.get("_id", content.get("id"))
        queries.append(Query(None if id_ is None else str(id_), content["text"]))
    if not queries:
        raise UserError(f"{path} has no queries")
    return queries


def file_size(path: Path) -> int:
    """Bytes of a corpus; raises UserError for one that is empty or not a file."""
    need_file(path, path)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    return path.stat().st_size
