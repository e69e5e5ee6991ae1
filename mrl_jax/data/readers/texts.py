"""The inputs of a trained model in a file: texts with or without ids, or vectors.

Texts are the column `text` of JSONL, CSV, TSV or Parquet, with ids in the column `_id` or `id` if there is one, or the
lines of a .txt file. Vectors are the rows of a .npy file, or of the array `features` in a .npz file.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrl_jax.data.inputs import StreamedTexts
from mrl_jax.data.readers.arrays import check_features, load_npy, load_npz
from mrl_jax.data.readers.records import (
    FORMATS,
    Record,
    abbreviate,
    json_records,
    lines,
    need_unicode,
    require_file,
)
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import sha256_of

STANDARD_INPUT = Path("/dev/stdin")
Id = str | int | None


class Inputs:
    """The texts or vectors of a file, from any row on.

    Attributes:
        total: number of rows; None for standard input, where it is not known.
        empty: number of texts so far without any character that is seen.
        ids: of the texts that were read and not yet taken from here; None where a row has no id.
        digest: SHA-256 of the file; None for standard input.
    """

    def __init__(self, key: str, name: str, kind: str, titled: bool = False) -> None:
        """Read a file once, to check and to count its rows.

        Args:
            key: of the command, for messages.
            name: a file, or `-` for JSONL from standard input.
            kind: `text` or `features`, as the model reads.
            titled: whether the title of a row, where it has one, is put before its text.

        Raises:
            UserError: the file cannot be read, or is of another kind.
        """
        self.empty, self.ids = 0, deque[Id]()
        self._columns = ("title", "text") if titled else ("text",)
        self.total: int | None = None
        self.digest: str | None = None
        self._vectors: np.ndarray | None = None
        if kind not in ("text", "features"):
            raise UserError(f"this model reads inputs of kind {kind}; from files, texts and features can be read")
        if name == "-":
            if kind != "text":
                raise UserError(f"{key}=-: standard input holds texts, and this model reads {kind}")
            self._path = STANDARD_INPUT
            return
        self._path = require_file(key, name, (".npy", ".npz") if kind == "features" else (*FORMATS, ".txt"))
        self.digest = sha256_of(self._path)
        if kind == "features":
            npz = self._path.suffix.lower() == ".npz"
            stored = load_npz(self._path, ("features",))["features"] if npz else load_npy(self._path)
            self._vectors = check_features(self._path, stored)
            self.total = len(self._vectors)
        else:
            self.total = sum(1 for _ in self._rows())
            if not self.total:
                raise UserError(f"{key}={name} is empty")

    def rest(self, start: int = 0) -> StreamedTexts | Iterator[str] | np.ndarray:
        """The rows from `start` on, for `EmbeddingModel.encode_stream`; their ids are added to `ids` with them."""
        if self._vectors is not None:
            self.ids.extend([None] * (len(self._vectors) - start))
            return self._vectors[start:]
        if self.total is None:
            return self._texts(start)
        return StreamedTexts(lambda: self._texts(start), self.total - start, "")

    def take_ids(self, count: int) -> list[Id]:
        """The ids of the next `count` rows."""
        return [self.ids.popleft() for _ in range(count)]

    def read_ids(self) -> Iterator[Id]:
        """All ids, read anew."""
        return (id_ for id_, _ in self._rows()) if self._vectors is None else itertools.repeat(None, len(self._vectors))

    def texts(self) -> Iterator[str]:
        """All texts, read anew, without their ids."""
        return (text for _, text in self._rows())

    def read(self) -> tuple[list[str], list[Id]]:
        """All texts and their ids; for files that fit in memory."""
        ids, texts = zip(*self._rows(), strict=True)
        return list(texts), list(ids)

    def _texts(self, start: int) -> Iterator[str]:
        for id_, text in itertools.islice(self._rows(), start, None):
            self.ids.append(id_)
            yield text

    def _rows(self) -> Iterator[tuple[Id, str]]:
        """Id and text of each row."""
        path, self.empty = self._path, 0
        rows: Iterator[tuple[Id, str]]
        if path.suffix.lower() == ".txt":
            rows = ((None, line.rstrip("\r\n")) for _, line in lines(path))
        else:
            read = json_records if path is STANDARD_INPUT else FORMATS[path.suffix.lower()]
            rows = ((_id(path, *row), self._text(path, *row)) for row in read(path, self._choose_columns))
        for id_, text in rows:
            self.empty += not text.strip()
            yield id_, text

    def _choose_columns(self, path: Path, names: list[str]) -> list[str]:
        if "text" not in names:
            raise UserError(f"{path} has no column text; its columns are {', '.join(names)}")
        columns = [name for name in self._columns if name in names]
        return [*columns, *[name for name in ("_id", "id") if name in names][:1]]

    def _text(self, path: Path, place: str, record: Record) -> str:
        """The text of a row, which may be empty but not absent, after its title."""
        if "text" not in record:
            raise UserError(f"{path}, {place}: the row has no text")
        parts = {name: record[name] for name in self._columns if record.get(name) is not None}
        for name, part in parts.items():
            if not isinstance(part, str):
                raise UserError(f"{path}, {place}: {name} must be a string, got {abbreviate(part)}")
            need_unicode(path, place, name, part)
        return " ".join(part for part in parts.values() if part)


def _id(path: Path, place: str, record: Record) -> Id:
    id_ = record.get("_id", record.get("id"))
    if id_ is not None and (not isinstance(id_, str | int) or isinstance(id_, bool)):
        raise UserError(f"{path}, {place}: an id must be a string or a whole number, got {abbreviate(id_)}")
    if isinstance(id_, str):
        need_unicode(path, place, "id", id_)
    return id_
