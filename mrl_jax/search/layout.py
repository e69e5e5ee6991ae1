"""Lay out embeddings so that any prefix of all of them can be scanned.

The embeddings are cut into chunks of rows and stored coordinates first, [C, D, CHUNK_ROWS]: a prefix of m coordinates
is a contiguous part of each chunk, so that one copy serves all nesting dims. Beside the chunks stand, per row and dim
m, 1 / |x[:m]| for cosines and |x[m:]| for the Cauchy–Schwarz bound of `exact`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.nesting import check_dims

CHUNK_ROWS = 1024  # rows per chunk: their products with a batch of queries fit the cache
MAX_PACKED_ROWS = 32  # rows per chunk are a multiple of it; see `shortlist`
ROTATION_SAMPLE_ROWS = 16384  # embeddings that the principal directions are computed from
FLOAT32_EPS = float(np.finfo(np.float32).eps)
# Between these lengths, products neither overflow nor vanish beside the rounding errors that are accounted for.
MIN_LENGTH, MAX_LENGTH = 1e-12, 1e12


class StoredVectors:
    """float32 [N, D] in a file, row after row. A slice or an array of rows reads those rows, as it would of an array.

    Not a memory map: what a map touches counts as this process's memory, sixteen pages per row.
    """

    def __init__(self, path: Path, count: int, width: int) -> None:
        self.shape = (count, width)
        self._stored = width
        self._file = path.open("rb")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        width = self._stored
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            block = np.empty((max(0, stop - start), width), np.float32)
            self._read(block, start)
            return block[::step]
        block, wanted = np.empty((rows.size, width), np.float32), rows.ravel().tolist()
        if hasattr(os, "posix_fadvise"):  # not on macOS
            # All are asked for before one is waited for: 50 rows that no cache holds take a tenth of the time.
            for row in wanted:
                os.posix_fadvise(self._file.fileno(), row * 4 * width, 4 * width, os.POSIX_FADV_WILLNEED)
        for i, row in enumerate(wanted):
            self._read(block[i], row)
        return block.reshape(*rows.shape, width)

    def _read(self, into: np.ndarray, row: int) -> None:
        if os.preadv(self._file.fileno(), [into], row * 4 * self._stored) != into.nbytes:
            raise OSError(f"{self._file.name} ends before row {row + len(into)}")


class StoredPrefixes(StoredVectors):
    """As `StoredVectors`, of the first `dim` coordinates, each row scaled to unit length; a zero row stays zero."""

    def __init__(self, path: Path, count: int, width: int, dim: int) -> None:
        super().__init__(path, count, width)
        self.shape = (count, dim)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        block = super().__getitem__(rows)[..., : self.shape[1]]
        length = np.linalg.norm(block, axis=-1, keepdims=True)
        return np.asarray(block / np.where(length > 0, length, 1), np.float32)


@dataclass(frozen=True, eq=False)
class Documents:
    """N embeddings laid out for search; `lay_out` makes one."""

    vectors: Any  # float32 [N, D], a JAX array or `StoredVectors`
    dims: tuple[int, ...]  # the nesting dims, ending at D
    # Their first W coordinates, [C, W, CHUNK_ROWS]: float32, or the bits of bfloat16 as uint16. XLA copies a slice of
    # uint16 as a block of memory but one of bfloat16 number by number, which takes three times the matmul on a CPU.
    chunks: jax.Array
    bias: jax.Array  # float32 [C, CHUNK_ROWS]: 0, and −inf for rows that do not exist or were deleted
    inverse_lengths: dict[int, jax.Array]  # dim → 1 / length of the prefix [C, CHUNK_ROWS]; 1 where it is zero
    tail_lengths: dict[int, jax.Array]  # dim → length of the coordinates beyond it [C, CHUNK_ROWS]
    max_rounding: float  # largest distance of an embedding from its copy in `chunks`
    max_length: float  # largest length of an embedding
    rotation: np.ndarray | None  # float64 [D, W], orthonormal columns: the chunks hold `vectors @ rotation`

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dtype(self) -> Any:
        """Of the copy in `chunks`."""
        return jnp.bfloat16 if self.chunks.dtype == jnp.uint16 else jnp.float32

    @property
    def on_disk(self) -> bool:
        """Whether whole embeddings are read from a file when they are needed."""
        return isinstance(self.vectors, StoredVectors)

    @property
    def nbytes(self) -> int:
        """Of the copy that is scanned, in memory."""
        lengths = [*self.inverse_lengths.values(), *self.tail_lengths.values()]
        return sum(array.nbytes for array in (self.chunks, self.bias, *lengths))

    @property
    def scan_dims(self) -> tuple[int, ...]:
        """The dims at which all documents can be scanned."""
        return tuple(self.inverse_lengths)

    @cached_property
    def host(self) -> tuple[Any, np.ndarray, dict[int, np.ndarray]]:
        """The vectors, their bias and per dim the lengths of their tails [≥ N], as NumPy arrays."""
        vectors = self.vectors if self.on_disk else np.asarray(self.vectors)
        tails = {m: np.asarray(x).reshape(-1) for m, x in self.tail_lengths.items()}
        return vectors, np.asarray(self.bias).reshape(-1), tails

    def project(self, queries: np.ndarray) -> np.ndarray:
        """Queries [Q, D] in the coordinates of the chunks: float64 [Q, ≤ D]."""
        wide = queries.astype(np.float64)
        return wide if self.rotation is None else wide @ self.rotation

    def gather(self, rows: jax.Array) -> jax.Array:
        """What re-ranking reads: all vectors [N, D] or, of a file, those of `rows` [Q, n] only, as [Q, n, D]."""
        if isinstance(self.vectors, jax.Array):
            return self.vectors
        # A row −1 stands for no document; what is read for it is ignored.
        return jnp.asarray(self.vectors[np.clip(np.asarray(rows), 0, len(self) - 1)])


def lay_out(
    vectors: Any,
    dims: Sequence[int],
    dtype: Any = jnp.bfloat16,
    scanned: int | None = None,
    alive: np.ndarray | None = None,
    rotate: bool = False,
) -> Documents:
    """Lay out embeddings for search.

    Args:
        vectors: float32 [N, D], an array; or `StoredVectors`, read chunk by chunk and never held as a whole.
        dims: nesting dims, ending at D; `exact` can start and a funnel have its first stage at those up to `scanned`.
        dtype: of the scanned copy. bfloat16 halves the bytes and is twice as fast where the hardware has it.
        scanned: number of coordinates to copy, one of the dims; all of them by default.
        alive: bool [N]; false for rows that no search returns.
        rotate: scan the embeddings' principal directions (about the origin) in place of their coordinates. Inner
            products stay the same, and the tail beyond a prefix becomes as short as possible, so that `exact` rules
            out more; but prefixes are no longer those of the model.

    Returns:
        `Documents`, for `exact.search`, `shortlist.search` and `shortlist.shortlist`.

    Raises:
        ValueError: dims do not end at D, `scanned` is not one of them, the vectors hold numbers that are not finite, or
            the longest is outside `MIN_LENGTH`…`MAX_LENGTH`.
    """
    count, width = vectors.shape
    dims = check_dims(dims, width)
    scanned = width if scanned is None else scanned
    if scanned not in dims:
        raise ValueError(f"scanned={scanned} is not one of the dims {list(dims)}")
    shape = chunk_shape(count)
    size = shape[1]
    chunks = aligned_zeros((shape[0], scanned, size), dtype)
    bias = np.full(shape, -np.inf, np.float32)
    inverse_lengths = {m: np.ones(shape, np.float32) for m in dims if m <= scanned}
    tail_lengths = {m: np.zeros(shape, np.float32) for m in dims if m <= scanned}
    max_rounding = max_length = 0.0
    rotation = _principal_directions(vectors)[:, :scanned] if rotate else None
    for c in range(shape[0] if count else 0):
        block = np.asarray(vectors[c * size : (c + 1) * size], np.float32)
        if not np.isfinite(block).all():
            raise ValueError(f"embeddings {c * size}…{c * size + len(block) - 1} hold numbers that are not finite")
        n, wide = len(block), block.astype(np.float64)
        projected = wide[:, :scanned] if rotation is None else wide @ rotation
        chunks[c, :, :n] = projected.T
        rounded = np.asarray(chunks[c, :, :n].T, np.float64)
        bias[c, :n] = 0.0 if alive is None else np.where(alive[c * size : c * size + n], 0.0, -np.inf)
        squares, totals = np.cumsum(projected**2, axis=1), (wide**2).sum(axis=1)
        for m in tail_lengths:
            length = np.sqrt(squares[:, m - 1])
            inverse_lengths[m][c, :n] = np.where(length > 0, 1 / np.maximum(length, 1e-30), 1.0)
            # Cancellation may leave a difference that is too small: the bound must not be.
            rest = np.maximum(totals - squares[:, m - 1], 0.0) + width * 1e-15 * totals
            tail_lengths[m][c, :n] = np.sqrt(rest) * (1 + FLOAT32_EPS) if m < width else 0.0
        max_rounding = max(max_rounding, float(np.sqrt(((projected - rounded) ** 2).sum(axis=1)).max()))
        max_length = max(max_length, float(np.sqrt(totals).max()))
    check_length("the longest embedding", max_length)
    if not count:  # JAX cannot index an array without rows; no search returns this one's
        vectors = np.zeros((1, width), np.float32)
    return Documents(
        vectors if isinstance(vectors, StoredVectors) else jnp.asarray(vectors, jnp.float32),
        dims,
        jax.device_put(chunks if chunks.dtype == np.float32 else chunks.view(np.uint16)),
        jnp.asarray(bias),
        {m: jnp.asarray(x) for m, x in inverse_lengths.items()},
        {m: jnp.asarray(x) for m, x in tail_lengths.items()},
        max_rounding,
        max_length,
        rotation,
    )


def chunk_shape(count: int) -> tuple[int, int]:
    """The number of chunks of `count` rows, and of rows per chunk."""
    size = min(CHUNK_ROWS, max(MAX_PACKED_ROWS, -(-count // MAX_PACKED_ROWS) * MAX_PACKED_ROWS))
    return max(1, -(-count // size)), size


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that `jax.device_put` adopts on the CPU without a copy: they start at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    zeros: np.ndarray = memory[start : start + size].view(dtype).reshape(shape)
    return zeros


def _principal_directions(vectors: Any) -> np.ndarray:
    """The principal directions [D, D] about the origin of a sample, as columns, those of most energy first."""
    stride = max(1, len(vectors) // ROTATION_SAMPLE_ROWS)
    sample = np.asarray(vectors[np.arange(0, len(vectors), stride)], np.float64)
    directions: np.ndarray = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    return directions


def check_length(what: str, length: float) -> None:
    """Raises ValueError unless the length is 0 or within `MIN_LENGTH`…`MAX_LENGTH`."""
    if length and not MIN_LENGTH <= length <= MAX_LENGTH:
        allowed = f"between {MIN_LENGTH:.0e} and {MAX_LENGTH:.0e}"
        raise ValueError(f"{what} has length {length:.0e}; it must be {allowed}: scale the vectors")


# ---- arithmetic over the chunks, for jitted functions ----------------------------------------------------------------


def chunk_products(queries_QxD: jax.Array, chunks: jax.Array, c: jax.Array, dim: int) -> jax.Array:
    """Inner products [Q, CHUNK_ROWS] of the first `dim` coordinates of queries and chunk c, accumulated in float32."""
    x = jax.lax.dynamic_slice(chunks, (c, 0, 0), (1, dim, chunks.shape[-1]))[0]
    if chunks.dtype == jnp.uint16:
        x = jax.lax.bitcast_convert_type(x, jnp.bfloat16)
        return jnp.matmul(queries_QxD[:, :dim].astype(x.dtype), x, preferred_element_type=jnp.float32)
    return jnp.matmul(queries_QxD[:, :dim], x, precision=jax.lax.Precision.HIGHEST)


def bin_maxima(tile: jax.Array, rows: int) -> jax.Array:
    """The maxima [Q, n] over `rows` numbers, n apart, of a tile [Q, rows · n]; unrolled, since XLA then fuses it."""
    return reduce(jnp.maximum, jnp.split(tile, rows, axis=1))


def dot(x: jax.Array, query: jax.Array) -> jax.Array:
    """Inner products [n] of rows [n, D] and a query [D], at full float32 precision."""
    return jnp.matmul(x, query, precision=jax.lax.Precision.HIGHEST)
