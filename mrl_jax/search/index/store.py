"""A folder of documents: ids, texts and the row of each embedding in SQLite, the embeddings in one flat file.

    documents.sqlite   tables `documents` (id, text, row, a checksum of the three), `batches` (a checksum of the vectors
                       that each `add` wrote) and `about`
    vectors.f32        float32, row after row, only ever appended
    verified.json      the two as they were when they were last found intact (see `verified`); derived

Vectors reach the disk before the transaction that names their rows is committed, so that every row that SQLite names is
there; vectors that a killed process wrote without naming them are overwritten by the next `add`. Replaced and deleted
documents keep their row in the file until the index is rebuilt.
"""

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mrl_jax.search.index import verified
from mrl_jax.search.index.base import Description, Document, batched, check_add
from mrl_jax.search.layout import StoredVectors
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_folder

FORMAT = 2
FILES = ("documents.sqlite", "vectors.f32")  # whatever else is in the folder is derived from them
MAX_STATEMENT_IDS = 500  # ids in one SQL statement
BLOCK_NUMBERS = 1 << 22  # numbers of one block of vectors
VERIFIED_ROWS = 16384  # vectors that `verify` reads at a time

# All that a process that is killed in `create` can leave behind.
KILLED_CREATE_FILES = {".lock", "vectors.f32", "documents.sqlite.part", "documents.sqlite.part-journal"}

SCHEMA = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, text TEXT NOT NULL, row INTEGER NOT NULL UNIQUE, crc INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE batches (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Store:
    """An open folder. One process may write at a time; any number may read what was committed when they opened it."""

    max_candidates = sys.maxsize

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, lock: contextlib.ExitStack, writable: bool = False
    ) -> None:
        self.folder, self.writable, self._connection, self._lock = folder, writable, connection, lock
        self._counted = (-1, 0)  # a version, and the number of its documents
        try:
            self.description = self._read_description()
            # Whether all was found intact, and has been changed since by nobody but this process, which has the lock.
            self._intact = writable and (not self.rows or verified.is_verified(folder, FILES))
        except BaseException:
            self.close()
            raise

    def _read_description(self) -> Description:
        """The stored description. Raises UserError unless it is intact and the vectors are all there."""
        folder, about = self.folder, dict(self._select("SELECT key, value FROM about"))
        if about.get("format") != str(FORMAT):
            raise UserError(f"{folder} has format {about.get('format')}; this version reads {FORMAT}")
        if about.get("crc") != str(_crc(about.get("description"))) or not str(about.get("version", 0)).isdigit():
            raise self._damage("the stored description is not the one that was written")
        try:
            description = Description.from_json(about.get("description", ""))
        except (TypeError, ValueError) as error:
            raise self._damage(str(error)) from None
        size, needed = (folder / "vectors.f32").stat().st_size, 4 * description.width * self.rows
        if size < needed:
            raise UserError(f"{folder / 'vectors.f32'} is damaged: {size:,} bytes of {needed:,}; rebuild the index")
        return description

    # ---- reading ----

    @property
    def rows(self) -> int:
        """Number of rows in the file of vectors, including those of deleted documents."""
        return self._number("SELECT coalesce(max(stop), 0) FROM batches")

    @property
    def version(self) -> int:
        """A number that every change of the documents increases."""
        return self._number("SELECT coalesce((SELECT CAST(value AS INTEGER) FROM about WHERE key = 'version'), 0)")

    def __len__(self) -> int:
        if self._counted[0] != (version := self.version):  # SQLite counts by reading all ids: 5 ms of a million
            self._counted = version, int(self._select("SELECT count(*) FROM documents")[0][0])
        return self._counted[1]

    def stored_vectors(self) -> StoredVectors:
        """The vectors float32 [rows, D], read from the file when they are needed."""
        return StoredVectors(self.folder / "vectors.f32", self.rows, self.description.width)

    def vectors(self, handles: np.ndarray) -> np.ndarray:
        return self.stored_vectors()[handles]

    def blocks(self, alive: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows [n] and embeddings float32 [n, D], ascending; of the documents `alive`, by default all."""
        alive = self.alive() if alive is None else alive
        vectors, size = self.stored_vectors(), max(1, BLOCK_NUMBERS // self.description.width)
        for start in range(0, len(alive), size):
            there = alive[start : start + size]
            if there.any():
                yield start + np.flatnonzero(there), vectors[start : start + len(there)][there]

    def copies(self, handles: np.ndarray, most: int) -> list[np.ndarray]:
        return [np.array([handle]) for handle in handles]  # each stands for itself, unless a back end groups them

    def prepare(self) -> None:
        if self._intact:
            verified.record(self.folder, verified.settled(self.folder, FILES))

    def documents(self, handles: np.ndarray) -> list[Document]:
        rows = [int(row) for row in handles]
        by_row: dict[int, Document] = {}
        for some in batched(rows, MAX_STATEMENT_IDS):
            marks = ",".join("?" * len(some))
            by_row |= dict(self._scan_documents(f"WHERE row IN ({marks})", some))
        if any(row not in by_row for row in rows):
            raise UserError(f"{self.folder}: another process deleted one of the results; search again")
        return [by_row[row] for row in rows]

    def find(self, ids: Sequence[str]) -> dict[str, Document]:
        return {one.id: one for _, one in self._find_rows(ids)}

    def handles(self, ids: Sequence[str]) -> dict[str, int]:
        return {one.id: row for row, one in self._find_rows(ids)}

    def _find_rows(self, ids: Sequence[str]) -> Iterator[tuple[int, Document]]:
        for some in batched(ids, MAX_STATEMENT_IDS):
            yield from self._scan_documents(f"WHERE id IN ({','.join('?' * len(some))})", some)

    def _scan_documents(self, where: str = "", values: Sequence[object] = ()) -> Iterator[tuple[int, Document]]:
        """(row, document) of each document that a condition selects; raises UserError for a damaged one."""
        for id_, text, row, crc in self._scan(f"SELECT id, text, row, crc FROM documents {where}", values):
            if crc != _crc(id_, text, row):
                raise self._damage(f"document {str(id_)[:40]!a} is not what was written")
            yield row, Document(id_, text)

    def _damage(self, why: str) -> UserError:
        return UserError(f"{self.folder / 'documents.sqlite'} is damaged: {why}; rebuild the index")

    @property
    def is_intact(self) -> bool:
        """Whether documents and vectors were found intact before, and are as they were then."""
        return self._intact or verified.is_verified(self.folder, FILES)

    def alive(self) -> np.ndarray:
        """bool [rows], whether a row's document is still there. Verifies what was not found intact before."""
        if not self.is_intact:
            before = verified.settled(self.folder, FILES)
            alive = self.verify()
            verified.record(self.folder, before)
            self._intact = self.writable
            return alive
        known = np.fromiter((row for (row,) in self._scan("SELECT row FROM documents")), np.int64)
        return self._alive(known, self.rows)

    def digest(self) -> str:
        """Stands for the documents: two states of an index with the same digest have the same."""
        batches = self._select("SELECT start, stop, crc FROM batches ORDER BY start")
        return hashlib.sha256(repr((self.description, self.version, batches)).encode()).hexdigest()

    def verify(self) -> np.ndarray:
        """Read everything; returns bool [rows], whether a row's document is still there.

        Raises UserError where documents or vectors are not those that were written, or vectors are not finite.
        """
        known = np.fromiter((row for row, _ in self._scan_documents()), np.int64)
        end = 0
        for start, stop, crc in self._select("SELECT start, stop, crc FROM batches ORDER BY start"):
            if start != end or not isinstance(stop, int) or stop <= start:
                raise self._damage(f"rows {start} to {stop} follow row {end}")
            self._verify_batch(start, stop, crc)
            end = stop
        return self._alive(known, end)

    def _alive(self, known: np.ndarray, end: int) -> np.ndarray:
        if len(known) and not 0 <= known.min() <= known.max() < end:
            raise self._damage(f"a document has a row outside 0…{end - 1:,}")
        alive = np.zeros(end, bool)
        alive[known] = True
        return alive

    def _verify_batch(self, start: int, stop: int, stored_crc: int) -> None:
        """Raises UserError unless the vectors that one `add` wrote are intact."""
        width, crc, finite = 4 * self.description.width, 0, True
        with (self.folder / "vectors.f32").open("rb") as file:
            file.seek(start * width)
            for at in range(start, stop, VERIFIED_ROWS):
                content = file.read(width * (min(at + VERIFIED_ROWS, stop) - at))
                crc = zlib.crc32(content, crc)
                finite = finite and bool(np.isfinite(np.frombuffer(content[: len(content) // 4 * 4], "<f4")).all())
        if crc != stored_crc or not finite:
            raise UserError(
                f"{self.folder / 'vectors.f32'} is damaged in rows {start:,} to {stop:,}; rebuild the index"
            )

    # ---- writing ----

    def add(self, documents: Sequence[Document], vectors: np.ndarray) -> None:
        check_add(self.description, documents, vectors)
        content, start = np.ascontiguousarray(vectors, np.float32), self.rows
        if not len(content):
            return
        with self._transaction():
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
        with self._transaction():
            for some in batched(ids, MAX_STATEMENT_IDS):
                marks = ",".join("?" * len(some))
                count += self._connection.execute(f"DELETE FROM documents WHERE id IN ({marks})", some).rowcount
        return count

    def set_kind(self, kind: str) -> None:
        """Make it an index of another kind. The documents stay as they are, and with them the version."""
        description = self.description._replace(kind=kind)
        with self._transaction(of_documents=False):
            text = description.to_json()
            for key, value in (("description", text), ("crc", str(_crc(text)))):
                self._connection.execute("UPDATE about SET value = ? WHERE key = ?", (value, key))
        self.description = description

    @contextlib.contextmanager
    def _transaction(self, of_documents: bool = True) -> Iterator[None]:
        """A transaction that is on the disk when it ends, or leaves no trace."""
        if not self.writable:
            raise UserError(f"{self.folder} was opened for reading")
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                if of_documents:
                    self._connection.execute(
                        "INSERT INTO about VALUES ('version', 1) "
                        "ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
                    )
        except sqlite3.Error as error:
            raise UserError(f"{self.folder}: {error}; the last change was rolled back") from None
        except OSError as error:
            raise UserError(f"{self.folder}: {error.strerror}; the last change was rolled back") from None
        self._invalidate()

    def _invalidate(self) -> None:
        """Called after every change: whatever was derived from the documents is out of date."""

    def _select(self, query: str, values: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._connection.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise UserError(f"{self.folder / 'documents.sqlite'} cannot be read: {error}") from None

    def _number(self, query: str) -> int:
        """The one number that a query returns."""
        value = self._select(query)[0][0]
        if not isinstance(value, int) or not 0 <= value < 2**48:
            raise self._damage(f"{value!r} is not a count")
        return value

    def _scan(self, query: str, values: Sequence[object] = ()) -> Iterator[tuple]:  # type: ignore[type-arg]
        """As `_select`, row by row: never all of them in memory."""
        try:
            yield from self._connection.execute(query, values)
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise UserError(f"{self.folder / 'documents.sqlite'} cannot be read: {error}") from None

    def close(self) -> None:
        self._connection.close()
        self._lock.close()


def read_description(folder: Path) -> Description:
    """The description of the index in `folder`. Raises UserError: none there, or a damaged one."""
    store = Store(folder, *connect(folder, write=False))
    store.close()
    return store.description


def exists(place: str | Path) -> bool:
    """Whether something is at `place` already, other than what a killed `create` left there."""
    path = Path(place)
    return path.exists() and (path.is_file() or not is_free(path))


def is_free(folder: Path) -> bool:
    """Whether an index can be created in a folder: it is empty, or has only what a killed `create` left there."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    unused = names <= KILLED_CREATE_FILES and not ("vectors.f32" in names and (folder / "vectors.f32").stat().st_size)
    return unused and (folder.is_dir() or not folder.exists())


def create(folder: Path, description: Description) -> None:
    """Create an empty store. Raises UserError when the folder holds something, or cannot be written."""
    part = folder / "documents.sqlite.part"
    text = description.to_json()
    about = {"format": str(FORMAT), "description": text, "crc": str(_crc(text))}
    if not is_free(folder):
        raise UserError(f"{folder} exists and is not empty; it is not overwritten")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not is_free(folder):  # another process created it meanwhile
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


def _lock(folder: Path) -> contextlib.ExitStack:
    """Keep other writers out until it is closed. Raises UserError while there is one."""
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
    """A connection and the writer's lock, for `Store`.

    Raises UserError: no index there, a damaged one, or one that another process writes to.
    """
    path = folder / "documents.sqlite"
    need_folder(f"{folder} is not an index", folder)
    if not all((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder} is not an index: {' or '.join(FILES)} is missing")
    lock = _lock(folder) if write else contextlib.ExitStack()
    try:
        # Also for reading: whoever comes next rolls back what a killed process left half done.
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        lock.close()
        raise UserError(f"{path} cannot be opened: {error}") from None
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA trusted_schema = OFF")
        # Something else may pass for a table: a view that never ends, or a table with triggers.
        schema = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        if [sql.strip() for (sql,) in schema] != sorted(filter(None, map(str.strip, SCHEMA.split(";")))):
            raise sqlite3.DatabaseError("its tables are not those of an index")
        is_intact = verified.is_verified(folder, FILES[:1])
        if not is_intact and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages are not consistent")
    except (sqlite3.Error, UnicodeError, TypeError, AttributeError) as error:
        connection.close()
        lock.close()
        raise UserError(f"{path} is damaged: {error}; rebuild the index") from None
    return connection, lock


def _crc(*values: object) -> int:
    """A checksum of texts and numbers."""
    return zlib.crc32("\0".join(map(str, values)).encode("utf-8", "surrogatepass"))
