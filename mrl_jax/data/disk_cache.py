"""Results about data larger than memory that are computed once and stored in CACHE/streamed for later runs."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data.readers.arrays import DAMAGED
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cache_folder, sha256_of

FORMAT_VERSION = 1  # of the stored files
KEYS_PER_COMPARISON = 1 << 16  # rows of keys compared at a time
READ_BYTES = 1 << 20  # of a file that is looked through, at a time


def folder(cache_dir: str | None, name: str, *inputs: str) -> Path:
    """Where the result `name` that follows from `inputs` is stored."""
    key = hashlib.sha256("\n".join((str(FORMAT_VERSION), *inputs)).encode()).hexdigest()
    return cache_folder(cache_dir) / "streamed" / f"{name}-{key[:24]}"


def build_once(place: Path, build: Callable[[Path], None]) -> Path:
    """Have `build(partial folder)` fill the folder `place` unless it exists, and return it.

    The folder is complete or absent, and one process builds it. Others wait; the kernel releases the lock of a killed
    process. Raises `UserError` if the folder cannot be written.
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
                print(f"waiting for {place}, which another process is preparing", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if place.is_dir():
                return place
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            print(f"preparing {place}", file=sys.stderr, flush=True)
            try:
                build(partial)
                os.replace(partial, place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as RuntimeError
        reason = " ".join(str(error).split())
        raise UserError(f"{place} cannot be written ({reason}); free some space, or set data.cache_dir") from error
    return place


def vectors(place: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that `compute` gives, computed once and then stored."""
    build_once(place, lambda partial: np.save(partial / "vectors.npy", compute()))
    try:
        found: np.ndarray = np.load(place / "vectors.npy", allow_pickle=False)
    except DAMAGED as error:
        raise damaged_error(place, error) from error
    return found


class Labels(NamedTuple):
    """The labels of a file."""

    names: list[str]  # the distinct labels in order of first occurrence
    places: list[str]  # where each of them occurs first
    rows: np.ndarray  # int32 [n], the label of each row as an index into `names`


def labels(place: Path, rows: Callable[[], Iterable[tuple[str, str]]]) -> Labels:
    """The labels of `rows`, (place, label) each, read once and then stored."""

    def build(partial: Path) -> None:
        first: dict[str, int] = {}
        places: list[str] = []
        numbers = array("i")
        for at, label in rows():
            number = first.setdefault(label, len(first))
            if number == len(places):
                places.append(at)
            numbers.append(number)
        indices = np.array(numbers, np.int32)
        np.save(partial / "rows.npy", indices)
        (partial / "labels.json").write_text(json.dumps([list(first), places, checksum(indices)]), encoding="utf-8")

    build_once(place, build)
    try:
        names, places, expected = json.loads((place / "labels.json").read_text(encoding="utf-8"))
        return Labels(names, places, load(place / "rows.npy", expected))
    except (OSError, ValueError, EOFError) as error:
        raise damaged_error(place, error) from error


class DistinctTexts(NamedTuple):
    """The distinct texts of a file of pairs. Texts are counted column after column: n anchors, n positives, …"""

    first: np.ndarray  # int32 [t], ascending: where each distinct text occurs first
    columns: np.ndarray  # int32 [n, c]: the text of each cell as an index into `first`
    scores: np.ndarray | None  # float32 [n]


def deduplicate(place: Path, rows: Callable[[], Iterable[tuple[list[str], float | None]]]) -> DistinctTexts:
    """The distinct texts of `rows`, (texts, score) each, read once and then stored; identified by 128-bit hashes."""

    def build(partial: Path) -> None:
        hashes: list[bytearray] = []
        scores = array("f")
        for texts, score in rows():
            hashes = hashes or [bytearray() for _ in texts]
            for column, text in zip(hashes, texts, strict=True):
                column += hashlib.blake2b(text.encode(), digest_size=16).digest()
            if score is not None:
                scores.append(score)
        width, keys = len(hashes) or 2, np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)
        hashes.clear()  # as large as the keys: 16 bytes per text
        first, numbers = number_keys(keys)
        columns = np.ascontiguousarray(numbers.reshape(width, -1).T)
        arrays = {"first": first, "columns": columns} | ({"scores": np.array(scores, np.float32)} if scores else {})
        for name, content in arrays.items():
            np.save(partial / f"{name}.npy", content)
        sums = {name: checksum(content) for name, content in arrays.items()}
        (partial / "sums.json").write_text(json.dumps(sums), encoding="utf-8")

    build_once(place, build)
    try:
        sums = json.loads((place / "sums.json").read_text(encoding="utf-8"))
        arrays = {name: load(place / f"{name}.npy", expected) for name, expected in sums.items()}
        return DistinctTexts(arrays["first"], arrays["columns"], arrays.get("scores"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise damaged_error(place, error) from error


def number_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct keys in order of first occurrence. O(n log n).

    Args:
        keys: uint64 [n, 2].

    Returns:
        The row of the first occurrence of each distinct key, int32 [t], and the number of each row's key, int32 [n].
    """
    order = np.lexsort(keys.T)  # stable: the first of equal keys comes first
    starts = np.ones(len(keys), bool)
    for part in range(1, len(keys), KEYS_PER_COMPARISON):
        chunk = keys[order[part - 1 : part + KEYS_PER_COMPARISON]]
        starts[part : part + KEYS_PER_COMPARISON] = (chunk[1:] != chunk[:-1]).any(axis=1)
    is_first = np.zeros(len(keys), bool)
    is_first[order[starts]] = True
    number = np.cumsum(is_first, dtype=np.int32) - 1
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.repeat(number[order[starts]], np.diff(np.append(np.flatnonzero(starts), len(keys))))
    return np.flatnonzero(is_first).astype(np.int32), numbers


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def texts_digest(texts: Sequence[str]) -> str:
    """SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(f"{len(encoded)} ".encode() + encoded)
    return digest.hexdigest()


def load(path: Path, expected: str) -> np.ndarray:
    """Load an array; raises `ValueError` unless it has the `expected` checksum."""
    array: np.ndarray = np.load(path, allow_pickle=False)
    if checksum(array) != expected:
        raise ValueError(f"{path.name} is not as it was written")
    return array


def damaged_error(place: Path, reason: object) -> UserError:
    """The error for a folder whose files are not as they were written."""
    return UserError(f"{place} is damaged ({' '.join(str(reason).split())}); delete it, and it is prepared again")


def file_digest(path: Path) -> str:
    """What identifies a file's rows: SHA-256 of its content, its suffix, and how the suffix is read where that changed:
    a quotation mark in .tsv once hid line ends."""
    suffix = path.suffix.lower()
    return f"{sha256_of(path)} {suffix}" + (" by line" if suffix == ".tsv" and has_quotation_mark(path) else "")


def has_quotation_mark(path: Path) -> bool:
    """Whether there is one anywhere in a file."""
    with path.open("rb") as file:
        return any(b'"' in block for block in iter(lambda: file.read(READ_BYTES), b""))
