"""What is worked out once about data larger than memory, kept in CACHE/streamed for the runs that follow."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data.artefacts import cache_folder, sha256_of
from mrl_jax.errors import UserError

FORMAT = 1  # of what is kept


def folder(cache_dir: str | None, what: str, *said: str) -> Path:
    """The place of what is worked out from `said`."""
    key = hashlib.sha256("\n".join((str(FORMAT), *said)).encode()).hexdigest()
    return cache_folder(cache_dir) / "streamed" / f"{what}-{key[:24]}"


def kept(place: Path, make: Callable[[Path], None]) -> Path:
    """The folder `place`, which `make(partial folder)` fills unless it is there: whole or absent, made by one process.

    Others wait for it; the kernel releases the lock of a killed one. Raises `UserError` when it cannot be written.
    """
    if place.is_dir():
        return place
    partial = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_name(f".{place.name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for {place}, which another process prepares", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if place.is_dir():
                return place
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            print(f"preparing {place}", file=sys.stderr, flush=True)
            try:
                make(partial)
                os.replace(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as RuntimeError
        said = " ".join(str(error).split())
        raise UserError(f"{place} cannot be written ({said}); free some space, or set data.cache_dir") from error
    return place


class Labels(NamedTuple):
    """The labels of a file: the different ones in the order of their first rows, where those stand, and one a row."""

    names: list[str]
    places: list[str]
    rows: np.ndarray  # int32 [n], indices into `names`


def labels(place: Path, rows: Callable[[], Iterable[tuple[str, str]]]) -> Labels:
    """The labels of `rows`, (place, label) each, read once and then kept."""

    def make(partial: Path) -> None:
        first: dict[str, int] = {}
        places: list[str] = []
        numbers = array("i")
        for at, label in rows():
            number = first.setdefault(label, len(first))
            if number == len(places):
                places.append(at)
            numbers.append(number)
        found = np.array(numbers, np.int32)
        np.save(partial / "rows.npy", found)
        (partial / "labels.json").write_text(json.dumps([list(first), places, checksum(found)]), encoding="utf-8")

    kept(place, make)
    try:
        names, places, expected = json.loads((place / "labels.json").read_text(encoding="utf-8"))
        return Labels(names, places, load(place / "rows.npy", expected))
    except (OSError, ValueError, EOFError) as error:
        raise damaged(place, error) from error


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def load(path: Path, expected: str) -> np.ndarray:
    """An array whose checksum is known; raises `ValueError` where it has another one."""
    found: np.ndarray = np.load(path, allow_pickle=False)
    if checksum(found) != expected:
        raise ValueError(f"{path.name} is not as it was written")
    return found


def damaged(place: Path, why: object) -> UserError:
    """What to say of a folder whose files are not as they were written."""
    return UserError(f"{place} is damaged ({' '.join(str(why).split())}); delete it, and it is prepared again")


def sha256(path: Path) -> str:
    """Of a file's content and of its kind."""
    return f"{sha256_of(path)} {path.suffix.lower()}"
