"""Files: paths given by the user, atomic writes, hashes, the cache folder."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from mrl_jax.system.errors import UserError


def path_of(key: str, name: str) -> Path:
    """The path `name` with `~` expanded. Raises `UserError`, naming `key`, for a name that no file can have."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown user, no permission
        raise UserError(f"{key}={name}: there is no such file ({error})") from None
    return path


def need_file(what: object, path: Path, hint: str = "") -> None:
    """Raise `UserError` unless the path is a file; `what` stands for it in the message, `hint` ends it."""
    if not path.is_file():
        reason = "this is a folder; a file is needed" if path.is_dir() else "there is no such file"
        raise UserError(f"{what}: {reason}{hint}")


def need_folder(what: object, path: Path, hint: str = "") -> None:
    """Raise `UserError` unless the path is a folder; `what` stands for it in the message, `hint` ends it."""
    if not path.is_dir():
        reason = "this is a file; a folder is needed" if path.exists() else "there is no such folder"
        raise UserError(f"{what}: {reason}{hint}")


def write(path: Path, content: str | bytes | Sequence[bytes | memoryview]) -> None:
    """Replace a file atomically, by a text, bytes or parts of them; concurrent writers take turns.

    Raises `UserError` when the disk is full.
    """
    parts = [content.encode()] if isinstance(content, str) else [content] if isinstance(content, bytes) else content
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_exclusively(partial) as file:
            file.truncate()
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise cannot_write_error(path, error) from error


def _open_exclusively(path: Path) -> IO[bytes]:
    """Open `path`, created if absent, under an exclusive lock that lasts until it is closed.

    The name is fixed, so killed processes leave at most one such file, which the next writer reuses.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        with contextlib.suppress(OSError):  # file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # meanwhile another process renamed this file to its final name


class ResumableFile:
    """A file that appears under its name when it is whole; after a kill the same command continues it.

    Until then its beginning is in NAME.partial, and NAME.partial.json says what it was begun from.

    Attributes:
        file: open for reading and writing, at its start.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any]) -> None:
        """Open what there is, or begin.

        Args:
            path: of the whole file.
            origin: by name, all that the content depends on, for JSON.

        Raises:
            UserError: the whole file exists, another process writes it, or it was begun from something else.
        """
        self.path = path
        self.partial, self.sidecar = (path.with_name(path.name + end) for end in (".partial", ".partial.json"))
        self._refuse_existing()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise cannot_write_error(self.partial, error) from error
        try:
            self._lock()
            self._refuse_existing()  # another process may have finished it since
            if not self.partial.stat().st_size:
                write(self.sidecar, json.dumps(origin))
            self._compare(json.loads(json.dumps(origin)))
        except BaseException:
            self.file.close()
            raise

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.path):
            raise UserError(f"{self.path} exists; delete it, or choose another name")

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.partial} is being written by another process") from None
        except OSError:  # file system without locks
            pass

    def _compare(self, origin: Mapping[str, Any]) -> None:
        try:
            begun = dict(json.loads(self.sidecar.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            begun = {}
        if changed := [name for name in origin if begun.get(name) != origin[name]]:
            raise UserError(
                f"{self.partial} was begun with another {' and another '.join(changed)}; "
                "delete it to begin anew, or choose another name"
            )

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes, and write from there on."""
        self.file.truncate(size)
        self.file.seek(size)

    def finish(self, made: Path | None = None) -> None:
        """Give the file its name, or the file `made` from it, which is moved."""
        self.file.flush()
        with (made or self.partial).open("rb") as file:
            os.fsync(file.fileno())
        os.replace(made or self.partial, self.path)
        self.sidecar.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, which has been reported
            self.file.flush()
        with contextlib.suppress(OSError):
            if not os.fstat(self.file.fileno()).st_size:  # nothing to continue
                self.partial.unlink(missing_ok=True)
                self.sidecar.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.file.close()


def npy_header(rows: int, width: int, dtype: np.dtype) -> bytes:
    """What an .npy file begins with. NumPy leaves room in it, so that it is as long for any number of rows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)}
    )
    return buffer.getvalue()


def keep_rows(out: ResumableFile, begin: bytes, row_bytes: int) -> int:
    """Drop what follows the last whole row; returns how many rows there are."""
    size = out.file.seek(0, io.SEEK_END)
    count = max(0, size - len(begin)) // row_bytes
    if not count:
        out.cut(0)
        out.file.write(begin)
    out.cut(len(begin) + count * row_bytes)
    return count


def cannot_write_error(path: Path, error: Exception) -> Exception:
    """A `UserError` if `error` says that `path` cannot be written to disk, else `error` itself."""
    text = str(error)
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if getattr(error, "errno", None) in codes or any(os.strerror(code) in text for code in codes):
        return UserError(
            f"no space left for {path}; what was saved before is kept: free some space, then give the same command "
            "again, a training with resume=true"
        )
    if isinstance(error, OSError):
        return UserError(f"cannot write {path}: {error.strerror or text}")
    for code in (errno.EROFS, errno.EIO, errno.EACCES):
        if os.strerror(code) in text:  # raised by Orbax or TensorStore, without errno
            return UserError(f"cannot write {path}: {os.strerror(code)}")
    return error


def identity_of(path: Path) -> tuple[int, ...] | None:
    """Inode, size and two times in nanoseconds, of the last change of its content and of anything; None without a file.

    While all are the same, so is the content: programs can set the first time, but not the second.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache() -> Path:
    """`$MRL_JAX_CACHE`, or `~/.cache/mrl_jax`."""
    return Path(os.environ.get("MRL_JAX_CACHE") or Path.home() / ".cache" / "mrl_jax").expanduser()


def cache_folder(cache_dir: str | None) -> Path:
    """The configured cache folder, or the default one."""
    return path_of("data.cache_dir", cache_dir).absolute() if cache_dir else default_cache().absolute()
