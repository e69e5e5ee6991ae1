"""Files: paths given by the user, atomic writes, hashes, the cache folder."""

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO

from mrl_jax.errors import UserError


def path_of(key: str, name: str) -> Path:
    """The path `name` with `~` expanded. Raises `UserError`, naming `key`, for a name that no file can have."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown user, no permission
        raise UserError(f"{key}={name}: there is no such file ({error})") from None
    return path


def write(path: Path, content: str | bytes) -> None:
    """Replace a file atomically; concurrent writers take turns. Raises `UserError` when the disk is full."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_exclusively(partial) as file:
            file.truncate()
            file.write(content.encode() if isinstance(content, str) else content)
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


def cannot_write_error(path: Path, error: Exception) -> Exception:
    """A `UserError` if `error` says that `path` cannot be written to disk, else `error` itself."""
    text = str(error)
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if getattr(error, "errno", None) in codes or any(os.strerror(code) in text for code in codes):
        return UserError(f"no space left for {path}; what was saved before is kept: free some space, then resume=true")
    if isinstance(error, OSError):
        return UserError(f"cannot write {path}: {error.strerror or text}")
    for code in (errno.EROFS, errno.EIO, errno.EACCES):
        if os.strerror(code) in text:  # raised by Orbax or TensorStore, without errno
            return UserError(f"cannot write {path}: {os.strerror(code)}")
    return error


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
