"""A user's own vectors, for instance image features extracted elsewhere, with labels.

Either `.npz` files with the arrays `features` [n, d] and `labels` [n], or `.npy` files with the vectors and further
`.npy` files with the labels (`data.train_labels`, `data.test_labels`). Vectors become float32; labels may be whole
numbers or strings. Pickled objects are refused: loading them could run code.
"""

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data.base import DataConfig, Dataset, Split, class_names
from mrl_jax.data.readers.records import check_expansion, existing
from mrl_jax.errors import UserError

# What NumPy raises for a file that is not what its name says, or was damaged.
DAMAGED = (
    *(ValueError, TypeError, OverflowError, OSError, EOFError, SyntaxError, RecursionError, NotImplementedError),
    *(MemoryError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)


class Part(NamedTuple):
    """One checked file, or pair of files."""

    path: Path
    features: np.ndarray  # float32 [n, d]
    labels: list[str]  # [n]


def read(config: DataConfig) -> Dataset:
    """Read train, test and, if given, validation; else the validation split is empty.

    Raises `UserError` naming the file and what is wrong with its arrays.
    """
    train = load_part("train", config.train, config.train_labels)
    test = load_part("test", config.test, config.test_labels)
    empty = Part(train.path, train.features[:0], [])
    validation = empty
    if config.validation:
        validation = load_part("validation", config.validation, config.validation_labels)
    classes = class_names(train.labels)

    def split(part: Part) -> Split:
        if part.features.shape[1] != train.features.shape[1]:
            raise UserError(
                f"{part.path} has vectors of width {part.features.shape[1]}, {train.path} of {train.features.shape[1]}"
            )
        index = {name: number for number, name in enumerate(classes)}
        for row, label in enumerate(part.labels):
            if label not in index:
                raise UserError(f"{part.path}, row {row}: the label {label} does not occur in {train.path}")
        return Split(part.features, np.array([index[label] for label in part.labels], np.int32))

    return Dataset(train.path.stem, "features", classes, split(train), split(validation), split(test))


def load_part(part: str, name: str | None, labels_name: str | None) -> Part:
    """Read and check the vectors and labels of one part."""
    key, labels_key = f"data.{part}", f"data.{part}_labels"
    if name is None:
        raise UserError(f"data=features needs {key}, a .npz file with features and labels, or a .npy file")
    path = existing(key, name, (".npz", ".npy"))
    if path.suffix.lower() == ".npz":
        if labels_name is not None:
            raise UserError(f"{labels_key}={labels_name} goes with a .npy file; {key}={name} holds its own labels")
        arrays = load_npz(path, ("features", "labels"))
        features, labels = arrays["features"], arrays["labels"]
    else:
        if labels_name is None:
            raise UserError(f"{key}={name} needs {labels_key}, a .npy file with its labels")
        features = load_npy(path)
        labels = load_npy(existing(labels_key, labels_name, (".npy",)))
    features = check_features(path, features)
    return Part(path, features, check_labels(Path(labels_name or name), labels, len(features)))


def load_npz(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of these names; `UserError` if a needed one is missing."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(f"{path} holds a single array, not a .npz archive; name it .npy")
        with arrays:
            wanted = {f"{name}.npy" for name in (*needed, *optional)}
            sizes = [entry.file_size for entry in arrays.zip.infolist() if entry.filename in wanted]
            check_expansion(path, path.stat().st_size, sum(sizes))
            for name in needed:
                if name not in arrays:
                    found = ", ".join(arrays.files) or "none"
                    raise UserError(f"{path} has no array {name}; its arrays are {found}")
            return {name: arrays[name] for name in (*needed, *optional) if name in arrays}
    except DAMAGED as error:
        raise unreadable(path, error) from error


def load_npy(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise unreadable(path, error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(f"{path} is a .npz archive, not a single array; name it .npz")
    return array


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file that NumPy refuses."""
    if "Object arrays" in str(error):
        return UserError(f"{path} holds Python objects, which are not loaded; save plain number or string arrays")
    return UserError(f"{path} is not a readable {path.suffix} file written by NumPy")


def check_features(path: Path, features: np.ndarray, name: str = "features") -> np.ndarray:
    """The vectors as finite float32 [n, d]."""
    if features.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} have the type {features.dtype}, expected numbers")
    if features.ndim != 2:
        raise UserError(f"{path}: {name} have the shape {features.shape}, expected two axes [n, d]")
    if 0 in features.shape:
        raise UserError(f"{path}: {name} have the shape {features.shape}, so there is nothing to read")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is reported next
        features = features.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        count = f"{len(bad)} row{'s' * (len(bad) > 1)}"
        where = f"the first is row {bad[0]} (from 0)"
        raise UserError(f"{path}: {name} have {count} with NaN or infinite float32 values, {where}")
    return features


def check_labels(path: Path, labels: np.ndarray, expected: int) -> list[str]:
    """The labels as `expected` strings."""
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{path}: labels have the type {labels.dtype}, expected whole numbers or strings")
    if labels.shape != (expected,):
        raise UserError(f"{path}: labels have the shape {labels.shape}, expected ({expected},), one a vector")
    if labels.dtype.kind == "U" and labels.size:
        # NumPy makes strings of any 32 bits, also such as crash Python when it reads them.
        signs = np.ascontiguousarray(labels).view(np.dtype(np.uint32).newbyteorder(labels.dtype.byteorder))
        bad = np.flatnonzero(((signs > 0x10FFFF) | (signs >> 11 == 0x1B)).reshape(expected, -1).any(axis=1))
        if len(bad):
            raise UserError(f"{path}: the label in row {bad[0]} (from 0) holds a sign that is not in Unicode")
    return [str(label) for label in labels.tolist()]
