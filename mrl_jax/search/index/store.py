"""Documents in a folder: ids, texts and the place of each embedding in SQLite, the embeddings in one flat file.

    documents.sqlite   tables `documents` (id, text, row, a checksum of the three), `batches` (a checksum of the vectors
                       that each `add` wrote) and `about`
    vectors.f32        float32, row after row, only ever appended

Vectors reach the disk before the transaction that names their rows is committed, so that whatever SQLite knows is
there; what a killed process left behind it is overwritten by the next. Replaced and deleted documents keep their row in
the file until the index is built anew.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrl_jax.errors import UserError
from mrl_jax.search.funnel import Stored
from mrl_jax.search.index import Description, Document, described

FORMAT = 2
MANY = 500  # ids in one SQL statement
ROWS = 16384  # vectors that are read at a time to check them

# All that a process that is killed in `create` can leave behind.
BEGUN = {".lock", "vectors.f32", "documents.sqlite.part", "documents.sqlite.part-journal"}

COLUMNS = "id, text, row, crc"
SCHEMA = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, text TEXT NOT NULL, row INTEGER NOT NULL UNIQUE, crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE batches (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Store:
    """An open folder. One process may write at a time; any number may read what was committed when they opened it."""

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, writable: bool, lock: contextlib.ExitStack
    ) -> None:
        self.folder, self._connection, self._writable, self._lock = folder, connection, writable, lock
        try:
            self.description = self._checked()
        except BaseException:
            self.close()
            raise

    def _checked(self) -> Description:
        """What the folder says of itself, if that agrees with what is there."""
        folder, about = self.folder, dict(self._rows("SELECT key, value FROM about"))
        if about.get("format") != str(FORMAT):
            raise UserError(f"{folder} has format {about.get('format')}; this version reads {FORMAT}")
        if about.get("crc") != str(_crc(about.get("description"))) or not str(about.get("version", 0)).isdigit():
            raise self._damaged("what it says of the index is not what was written")
        try:
            description = described(about.get("description", ""))
        except (TypeError, ValueError) as error:
            raise self._damaged(str(error)) from None
        size, needed = (folder / "vectors.f32").stat().st_size, 4 * description.width * self.rows
        if size < needed:
            raise UserError(f"{folder / 'vectors.f32'} is damaged: {size:,} bytes of {needed:,}; build the index anew")
        return description

    # ---- what there is ----

    @property
    def rows(self) -> int:
        """Rows in the file of vectors, those of deleted documents included."""
        return self._number("SELECT coalesce(max(stop), 0) FROM batches")

    @property
    def version(self) -> int:
        """Changes with every change of the documents."""
        return self._number("SELECT coalesce((SELECT CAST(value AS INTEGER) FROM about WHERE key = 'version'), 0)")

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM documents")[0][0])

    def stored(self) -> Stored:
        """The vectors float32 [rows, D], read from the file when they are asked for."""
        return Stored(self.folder / "vectors.f32", self.rows, self.description.width)

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        return self.stored()[handles]

    def documents(self, handles: np.ndarray) -> list[Document]:
        found: dict[int, Document] = {}
        for some in _some([int(row) for row in handles]):
            marks = ",".join("?" * len(some))
            found |= dict(self._intact(f"SELECT {COLUMNS} FROM documents WHERE row IN ({marks})", some))
        gone = next((int(row) for row in handles if int(row) not in found), None)
        if gone is not None:
            raise UserError(f"{self.folder}: a document found was deleted meanwhile; search again")
        return [found[int(row)] for row in handles]

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        found: dict[str, Document] = {}
        for some in _some(list(ids)):
            marks = ",".join("?" * len(some))
            intact = self._intact(f"SELECT {COLUMNS} FROM documents WHERE id IN ({marks})", some)
            found |= {one.id: one for _, one in intact}
        return found

    def _intact(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple[int, Document]]:
        """The row and document of each line of a query for `COLUMNS`; raises UserError for a damaged one."""
        for id_, text, row, crc in self._scan(query, values):
            if crc != _crc(id_, text, row):
                raise self._damaged(f"document {str(id_)[:40]!a} is not what was written")
            yield row, Document(id_, text)

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.folder / 'documents.sqlite'} is damaged: {why}; build the index anew")

    def verify(self) -> np.ndarray:
        """Read everything once; returns bool [rows], whether a row's document is still there.

        Raises UserError where documents or vectors are not those that were written, or no numbers.
        """
        known = np.fromiter((row for row, _ in self._intact(f"SELECT {COLUMNS} FROM documents")), np.int64)
        width, end = 4 * self.description.width, 0
        with (self.folder / "vectors.f32").open("rb") as file:
            for start, stop, wanted in self._rows("SELECT start, stop, crc FROM batches ORDER BY start"):
                if start != end or not isinstance(stop, int) or stop <= start:
                    raise self._damaged(f"rows {start} to {stop} after {end}")
                crc, end, finite = 0, stop, True
                file.seek(start * width)
                for at in range(start, stop, ROWS):
                    content = file.read(width * (min(at + ROWS, stop) - at))
                    crc = zlib.crc32(content, crc)
                    finite = finite and bool(np.isfinite(np.frombuffer(content[: len(content) // 4 * 4], "<f4")).all())
                if crc != wanted or not finite:
                    raise UserError(
                        f"{self.folder / 'vectors.f32'} is damaged in rows {start:,} to {stop:,}; build the index anew"
                    )
        if len(known) and not 0 <= known.min() <= known.max() < end:
            raise self._damaged(f"it names a row beyond {end:,}")
        alive = np.zeros(end, bool)
        alive[known] = True
        return alive

    # ---- changing it ----

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        check_add(self.description, documents, vectors)
        content, start = np.ascontiguousarray(vectors, np.float32), self.rows
        if not len(content):
            return
        with self._changing():
            with (self.folder / "vectors.f32").open("r+b") as file:
                file.seek(start * content.itemsize * content.shape[1])
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._connection.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET text = excluded.text, row = excluded.row, crc = excluded.crc",
                [(*one, row, _crc(*one, row)) for row, one in enumerate(documents, start)],
            )
            self._connection.execute(
                "INSERT INTO batches VALUES (?, ?, ?)", (start, start + len(content), zlib.crc32(content))
            )

    def delete(self, ids: Sequence[str]) -> int:
        count = 0
        with self._changing():
            for some in _some(list(ids)):
                marks = ",".join("?" * len(some))
                count += self._connection.execute(f"DELETE FROM documents WHERE id IN ({marks})", some).rowcount
        return count

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """A transaction that is on the disk when it ends, or never was."""
        if not self._writable:
            raise UserError(f"{self.folder} was opened for reading")
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute(
                    "INSERT INTO about VALUES ('version', 1) "
                    "ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
                )
        except sqlite3.Error as error:
            raise UserError(f"{self.folder}: {error}; nothing of the last change was kept") from None
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}; nothing of the last change was kept") from None
        self._changed()

    def _changed(self) -> None:
        """Called after every change: what was derived from the documents is out of date."""

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._connection.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise UserError(f"{self.folder / 'documents.sqlite'} cannot be read: {error}") from None

    def _number(self, query: str) -> int:
        """The one number that a query gives."""
        value = self._rows(query)[0][0]
        if not isinstance(value, int) or not 0 <= value < 2**48:
            raise self._damaged(f"{value!r} is no count")
        return value

    def _scan(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple]:  # type: ignore[type-arg]
        """As `_rows`, but never all of them in memory."""
        try:
            yield from self._connection.execute(query, values)
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise UserError(f"{self.folder / 'documents.sqlite'} cannot be read: {error}") from None

    def close(self) -> None:
        self._connection.close()
        self._lock.close()


def check_add(description: Description, documents: Sequence[Document], vectors: np.ndarray) -> None:
    """Raises ValueError unless `vectors` are one finite embedding of the right width for each document, ids unique."""
    if vectors.shape != (len(documents), description.width):
        raise ValueError(
            f"vectors have shape {vectors.shape}; {len(documents)} documents of this index take "
            f"[{len(documents)}, {description.width}]"
        )
    if not np.isfinite(vectors).all():
        raise ValueError("vectors hold numbers that are not finite")
    if len({one.id for one in documents}) < len(documents):
        raise ValueError("an id stands twice among the documents")


def is_free(folder: Path) -> bool:
    """Whether an index can be made in a folder: nothing is in it, or only what a killed `create` left there."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    begun = names <= BEGUN and not ("vectors.f32" in names and (folder / "vectors.f32").stat().st_size)
    return begun and (folder.is_dir() or not folder.exists())


def create(folder: Path, description: Description) -> None:
    """Make an empty store. Raises UserError when the folder holds something, or cannot be written."""
    part = folder / "documents.sqlite.part"
    told = json.dumps(description._asdict())
    about = {"format": str(FORMAT), "description": told, "crc": str(_crc(told))}
    if not is_free(folder):
        raise UserError(f"{folder} exists and is not empty; it is not overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not is_free(folder):  # another process was faster
                return
            (folder / "vectors.f32").touch()
            part.unlink(missing_ok=True)
            part.with_name(f"{part.name}-journal").unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(part)) as connection, connection:
                connection.executescript(SCHEMA)
                connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
            part.rename(folder / "documents.sqlite")
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _locked(folder: Path) -> contextlib.ExitStack:
    """Keep other writers out until it is closed. Raises UserError when one is there."""
    lock = contextlib.ExitStack()
    try:
        file = lock.enter_context((folder / ".lock").open("w"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"{folder} is being written by another process") from None
    except OSError as error:
        lock.close()
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return lock


def connect(folder: Path, write: bool) -> tuple[sqlite3.Connection, contextlib.ExitStack]:
    """What `Store` takes. Raises UserError: no index there, a damaged one, or one that another process writes to."""
    path = folder / "documents.sqlite"
    if not path.is_file() or not (folder / "vectors.f32").is_file():
        raise UserError(f"{folder} is not an index: documents.sqlite or vectors.f32 is missing")
    refuse_foreign_journal(folder / "documents.sqlite-journal")
    lock = _locked(folder) if write else contextlib.ExitStack()
    try:
        # Also for reading: what a killed process left half done is rolled back by whoever comes next.
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        lock.close()
        raise UserError(f"{path} cannot be opened: {error}") from None
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA trusted_schema = OFF")
        # A table may as well be a view that never ends, or have triggers.
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        if [sql.strip() for (sql,) in found] != sorted(filter(None, map(str.strip, SCHEMA.split(";")))):
            raise sqlite3.DatabaseError("its tables are not those of an index")
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages are not consistent")
    except (sqlite3.Error, UnicodeError, TypeError, AttributeError) as error:
        connection.close()
        lock.close()
        raise UserError(f"{path} is damaged: {error}; build the index anew") from None
    return connection, lock


def _crc(*values: object) -> int:
    """A checksum of texts and numbers."""
    return zlib.crc32("\0".join(map(str, values)).encode("utf-8", "surrogatepass"))


def refuse_foreign_journal(path: Path) -> None:
    """Raise `UserError` for a journal that names another file: SQLite would delete that once it has rolled back.

    Only transactions over several databases write such a name, which ends their journal (8 bytes of magic at its end).
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        if file.read() == bytes.fromhex("d9d505f920a163d7"):
            raise UserError(f"{path} is no journal of an index; delete it, or restore the folder from a copy")


def _some(values: list[Any]) -> Iterable[list[Any]]:
    return (values[i : i + MANY] for i in range(0, len(values), MANY))
