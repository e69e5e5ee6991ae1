"""Arrays from a user's `.npz` and `.npy` files. Pickled objects are refused: loading them could run code."""

import lzma
import sys
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from mrl_jax.data.readers.records import check_expansion
from mrl_jax.system.errors import UserError

# What NumPy raises for a file that is not what its name says, or was damaged.
DAMAGED = (
    *(ValueError, TypeError, OverflowError, OSError, EOFError, SyntaxError, RecursionError, NotImplementedError),
    *(MemoryError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)


PROBED_ROWS = 4096  # vectors that are looked at to guess whether they are packed bits
MIN_BIT_VARIANCE = 0.05  # of a bit that says something; at most 0.25
MAX_CORRELATION = 0.3  # of two bits that are coordinates of their own


def load_npz(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays of these names; `UserError` if a required one is missing."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(f"{path} holds a single array, not a .npz archive; name it .npy")
        with arrays:
            wanted = {f"{name}.npy" for name in (*required, *optional)}
            sizes = [entry.file_size for entry in arrays.zip.infolist() if entry.filename in wanted]
            check_expansion(path, path.stat().st_size, sum(sizes))
            for name in required:
                if name not in arrays:
                    names = ", ".join(arrays.files) or "none"
                    raise UserError(f"{path} has no array {name}; its arrays are {names}")
            return {name: arrays[name] for name in (*required, *optional) if name in arrays}
    except DAMAGED as error:
        raise unreadable_error(path, error) from error


def load_npy(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise unreadable_error(path, error) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(f"{path} is a .npz archive, not a single array; name it .npz")
    return array


def unreadable_error(path: Path, error: Exception) -> UserError:
    """The error for a file that NumPy refuses."""
    if "Object arrays" in str(error):
        return UserError(f"{path} holds Python objects, which are not loaded; save plain number or string arrays")
    return UserError(f"{path} is not a readable {path.suffix} file written by NumPy")


def check_features(
    path: Path, features: np.ndarray, name: str = "features", packed_bits: bool | None = None
) -> np.ndarray:
    """The vectors as finite float32 [n, d]; of packed bits, which `packed_bits` says they are, [n, 8 d] of 0 and 1."""
    if features.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} have the type {features.dtype}, expected numbers")
    if features.ndim != 2:
        raise UserError(f"{path}: {name} have the shape {features.shape}, expected two axes [n, d]")
    if 0 in features.shape:
        raise UserError(f"{path}: {name} have the shape {features.shape}, so there is nothing to read")
    if packed_bits:
        if features.dtype not in (np.uint8, np.int8):
            raise UserError(
                f"{path}: {name} have the type {features.dtype}; data.packed_bits=true takes bytes, uint8 or int8"
            )
        return np.unpackbits(as_bytes(features), axis=1).astype(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is reported next
        features = features.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        count = f"{len(bad)} row{'s' * (len(bad) > 1)}"
        where = f"the first is row {bad[0]} (from 0)"
        raise UserError(f"{path}: {name} have {count} with NaN or infinite float32 values, {where}")
    return features


def as_bytes(features: np.ndarray) -> np.ndarray:
    """Packed bits as uint8: sentence-transformers' `ubinary` as they are, and `binary`, int8, which is 128 less."""
    return features if features.dtype == np.uint8 else (features.astype(np.int16) + 128).astype(np.uint8)


def look_packed(features: np.ndarray) -> bool:
    """Whether vectors may be packed bits; nothing can tell it for certain.

    In numbers of 8 bits that are spread about a centre, the two highest bits exclude each other; in packed bits they
    are two coordinates.
    """
    if features.dtype not in (np.uint8, np.int8) or features.ndim != 2 or 0 in features.shape:
        return False
    bits = np.unpackbits(as_bytes(features[:PROBED_ROWS]), axis=1).reshape(-1, features.shape[1], 8).astype(np.float64)
    variance = bits.var(axis=0)  # [d, 8]
    high, next_high = bits[..., 0], bits[..., 1]
    covariance = (high * next_high).mean(axis=0) - high.mean(axis=0) * next_high.mean(axis=0)
    both = (variance[:, :2] > MIN_BIT_VARIANCE).all(axis=1)
    if 2 * np.count_nonzero(both) < len(both):
        return False
    return bool(np.median(np.abs(covariance[both]) / np.sqrt(variance[both, 0] * variance[both, 1])) < MAX_CORRELATION)


def hint_packed(path: Path, features: np.ndarray, packed_bits: bool | None) -> None:
    """Print how to read packed bits where vectors look like some and it was not said what they are."""
    if packed_bits is None and look_packed(features):
        hint = "data.packed_bits=true reads eight coordinates per byte, data.packed_bits=false keeps numbers"
        print(f"{path}: the vectors look like packed bits and are taken for numbers; {hint}", file=sys.stderr)


def check_labels(path: Path, labels: np.ndarray, expected: int, name: str = "labels") -> list[str]:
    """The labels as `expected` strings."""
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{path}: {name} have the type {labels.dtype}, expected whole numbers or strings")
    if labels.shape != (expected,):
        raise UserError(f"{path}: {name} have the shape {labels.shape}, expected ({expected},), one per vector")
    if labels.dtype.kind == "U" and labels.size:
        # NumPy makes strings of any 32 bits, even of such as crash Python when it reads them.
        codes = np.ascontiguousarray(labels).view(np.dtype(np.uint32).newbyteorder(labels.dtype.byteorder))
        bad = np.flatnonzero(((codes > 0x10FFFF) | (codes >> 11 == 0x1B)).reshape(expected, -1).any(axis=1))
        if len(bad):
            one = name.removesuffix("s")
            raise UserError(f"{path}: the {one} in row {bad[0]} (from 0) holds a character that is not in Unicode")
    return [str(label) for label in labels.tolist()]


def check_scores(path: Path, scores: np.ndarray, expected: int) -> np.ndarray:
    """The scores as `expected` finite float32."""
    if scores.dtype.kind not in "fiu":
        raise UserError(f"{path}: scores have the type {scores.dtype}, expected numbers")
    if scores.shape != (expected,):
        raise UserError(f"{path}: scores have the shape {scores.shape}, expected ({expected},), one per pair")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is reported next
        scores = scores.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(f"{path}: a score is NaN or infinite as float32, the first in row {bad[0]} (from 0)")
    return scores
