"""Laid-out documents in a file, so that they are laid out once and not by every command.

One line of JSON (what the layout is of, a checksum, what is no array), then the bytes of the arrays one after another;
their shapes follow from the number of documents and the dims. Whole embeddings are not in it. The file is derived: one
that does not fit its index is made again.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.search.layout import Documents, aligned_zeros, chunk_shape

FORMAT = 1
MAX_LINE_BYTES = 1 << 16


def parts(key: str, documents: Documents) -> list[bytes | memoryview]:
    """The content of the file with a layout, made with bfloat16, of what `key` stands for."""
    lengths, tails = documents.inverse_lengths.values(), documents.tail_lengths.values()
    rotation = [] if documents.rotation is None else [documents.rotation]
    arrays = [np.ascontiguousarray(x) for x in (documents.chunks, documents.bias, *lengths, *tails, *rotation)]
    about = {
        "format": FORMAT, "key": key, "crc": _crc(arrays),
        "max_rounding": documents.max_rounding, "max_length": documents.max_length,
    }  # fmt: skip
    return [json.dumps(about).encode() + b"\n", *map(_bytes, arrays)]


def load(
    path: Path, key: str, vectors: Any, dims: Sequence[int], scanned: int, is_rotated: bool, is_intact: bool
) -> Documents:
    """Read the content that `parts` made.

    Args:
        path: of the file.
        key: what the layout must be of.
        vectors, dims, scanned, is_rotated: as `layout.lay_out` took them.
        is_intact: whether the file was verified before; otherwise its checksum is computed.

    Raises:
        ValueError, OSError: the file is not there, damaged, or the layout of something else.
    """
    count, width = vectors.shape
    shape, scan_dims = chunk_shape(count), [m for m in dims if m <= scanned]
    arrays = [aligned_zeros((shape[0], scanned, shape[1]), np.dtype(np.uint16))]
    arrays += [aligned_zeros(shape, np.dtype(np.float32)) for _ in range(1 + 2 * len(scan_dims))]
    arrays += [aligned_zeros((width, scanned), np.dtype(np.float64))] * is_rotated
    with path.open("rb") as file:
        about = _parse(file.readline(MAX_LINE_BYTES))
        if about["format"] != FORMAT or about["key"] != key:
            raise ValueError("the layout of something else")
        if any(file.readinto(_bytes(array)) != array.nbytes for array in arrays) or file.read(1):
            raise ValueError("a file of another length")
    if not is_intact and _crc(arrays) != about["crc"]:
        raise ValueError("not what was written")
    chunks, bias, *rest = arrays
    n = len(scan_dims)
    return Documents(
        vectors,
        tuple(dims),
        jax.device_put(chunks),
        jnp.asarray(bias),
        {m: jnp.asarray(x) for m, x in zip(scan_dims, rest[:n], strict=True)},
        {m: jnp.asarray(x) for m, x in zip(scan_dims, rest[n : 2 * n], strict=True)},
        about["max_rounding"],
        about["max_length"],
        rest[2 * n] if is_rotated else None,
    )


def _parse(line: bytes) -> dict[str, Any]:
    """The line of JSON. Raises ValueError unless it is one that `parts` may have made."""
    try:
        about = json.loads(line)
        types = {name: type(value) for name, value in about.items()}
    except (AttributeError, RecursionError):
        types = {}
    if types != {"format": int, "key": str, "crc": int, "max_rounding": float, "max_length": float}:
        raise ValueError("no layout")
    return about  # type: ignore[no-any-return]


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _crc(arrays: Sequence[np.ndarray]) -> int:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(_bytes(array), crc)
    return crc
