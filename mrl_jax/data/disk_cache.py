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

from mrl_jax.errors import UserError
from mrl_jax.files import cache_folder, sha256_of

FORMAT = 1  # of what is kept
CHUNK = 1 << 16  # keys that are compared at a time


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


class Distinct(NamedTuple):
    """The texts of a file of pairs, counted column after column: n anchors, n positives, …"""

    first: np.ndarray  # int32 [t], ascending: where each distinct text stands first
    columns: np.ndarray  # int32 [n, c]: which of the distinct ones each is
    scores: np.ndarray | None  # float32 [n]


def distinct(place: Path, rows: Callable[[], Iterable[tuple[list[str], float | None]]]) -> Distinct:
    """What distinguishes the texts of `rows`, (texts, score) each, read once and then kept; by 128 bits of a hash."""

    def make(partial: Path) -> None:
        hashes: list[bytearray] = []
        scores = array("f")
        for texts, score in rows():
            hashes = hashes or [bytearray() for _ in texts]
            for column, text in zip(hashes, texts, strict=True):
                column += hashlib.blake2b(text.encode(), digest_size=16).digest()
            if score is not None:
                scores.append(score)
        width, keys = len(hashes) or 2, np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)
        hashes.clear()  # 16 bytes a text, as the keys
        first, numbers = _numbered(keys)
        columns = np.ascontiguousarray(numbers.reshape(width, -1).T)
        found = {"first": first, "columns": columns} | ({"scores": np.array(scores, np.float32)} if scores else {})
        for name, content in found.items():
            np.save(partial / f"{name}.npy", content)
        sums = {name: checksum(content) for name, content in found.items()}
        (partial / "sums.json").write_text(json.dumps(sums), encoding="utf-8")

    kept(place, make)
    try:
        sums = json.loads((place / "sums.json").read_text(encoding="utf-8"))
        found = {name: load(place / f"{name}.npy", expected) for name, expected in sums.items()}
        return Distinct(found["first"], found["columns"], found.get("scores"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise damaged(place, error) from error


def _numbered(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For keys [n, 2]: the rows where a new one stands, and for each row which of those it is, int32."""
    order = np.lexsort(keys.T)  # stable: of equal keys the first comes first
    starts = np.ones(len(keys), bool)
    for part in range(1, len(keys), CHUNK):
        near = keys[order[part - 1 : part + CHUNK]]
        starts[part : part + CHUNK] = (near[1:] != near[:-1]).any(axis=1)
    is_first = np.zeros(len(keys), bool)
    is_first[order[starts]] = True
    number = np.cumsum(is_first, dtype=np.int32) - 1
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.repeat(number[order[starts]], np.diff(np.append(np.flatnonzero(starts), len(keys))))
    return np.flatnonzero(is_first).astype(np.int32), numbers


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
