"""Read corpora and queries: JSONL as in BEIR, one object per line, with `_id` (or `id`), `text` and perhaps `title`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrl_jax.data.readers.records import need_unicode
from mrl_jax.errors import UserError
from mrl_jax.search.index import Document


def read_lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number, its bytes, its JSON object) of a JSONL file, line by line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
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
                yield number, len(line), content
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


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


def read_queries(path: Path) -> list[str]:
    """The texts of a file of queries; raises UserError where there are none."""
    texts = []
    for number, _, content in read_lines(path):
        if not isinstance(content.get("text"), str):
            raise UserError(f"{path}, line {number}: text is missing or not a string; every query has one")
        texts.append(content["text"])
    if not texts:
        raise UserError(f"{path} has no queries")
    return texts


def file_size(path: Path) -> int:
    """Bytes of a corpus; raises UserError for one that is empty or not a file."""
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    return path.stat().st_size
