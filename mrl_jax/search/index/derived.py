"""What follows from the documents of a folder: saved beside them, and made again where it is out of date or damaged."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mrl_jax.search.index import verified
from mrl_jax.search.index.store import Store
from mrl_jax.system import files
from mrl_jax.system.errors import UserError

T = TypeVar("T")


def read_or_make(
    store: Store,
    name: str,
    read: Callable[[Path, str, bool], T],
    make: Callable[[], T],
    parts: Callable[[str, T], Sequence[bytes | memoryview]],
    save: bool = True,
) -> T:
    """Read something from its file or, where that cannot be used, make and save it.

    Args:
        store: of the documents.
        name: of the file, with {version} where the version of the documents belongs; others of it are deleted.
        read: called with the path, the digest of the documents that the file must be of, and whether it was found
            intact before, so that its checksum is known to be right; raises ValueError, RuntimeError or OSError where
            it cannot be used.
        make: makes it anew.
        parts: called with the digest and what was made; the content to save.
        save: whether what is made is saved.

    Raises:
        UserError: documents or vectors are damaged.
    """
    digest = store.digest()
    path = store.folder / name.format(version=store.version)
    if not store.is_intact:
        store.alive()
    if path.exists():
        before = verified.settled(store.folder, (path.name,))
        is_intact = verified.is_verified(store.folder, (path.name,))
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            found = read(path, digest, is_intact)
            if not is_intact:
                verified.record(store.folder, before)
            return found
        print(f"{path} is damaged or of an earlier version; it is made again", file=sys.stderr)
    made = make()
    if save and store.digest() == digest:  # else another process has changed the documents meanwhile
        try:
            for other in store.folder.glob(name.format(version="*")):
                other.unlink(missing_ok=True)
            files.write(path, parts(digest, made))
            verified.record(store.folder, verified.settled(store.folder, (path.name,)))
        except (UserError, OSError) as error:  # a disk that is full or read-only: searched all the same
            print(f"{path} was not saved: {error}", file=sys.stderr)
    return made
