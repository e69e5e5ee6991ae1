"""Adaptive retrieval: search on a prefix of the embedding, read more dims only of what may be among the best.

    exact      all N documents; with `start` < D only their first coordinates, and more of the few that Cauchy–Schwarz
               cannot rule out. The k best by inner product either way, provably, ties to the lower row.
    funnel     a shortlist by cosine on a prefix, narrowed on longer prefixes, ranked by the whole embedding
               (Kusupati et al. 2022, section 4.3). Fast; what the shortlist misses stays missed.

Documents are laid out in chunks of rows, coordinates first, so that a prefix is a contiguous part of each chunk and
one copy serves all dims. Scores are made chunk by chunk and reduced at once to the maxima of bins of rows: there is
never an N × Q matrix, and what is sorted is 16 to 32 times smaller.

Why the exact search is exact. The inner product of query q and document x splits at dim m into that of their prefixes
and that of their tails, and the latter is at most |q_tail| |x_tail|. So every document has an upper bound, and a bin
has the largest of its rows. Documents of the most promising bins are scored in full; the k-th best of these scores, τ,
is a lower bound of the k-th best overall. Only bins whose bound reaches τ can hold one of the k best. Rounding, of
bfloat16 operands too, is bounded and added; the last few candidates are ranked in float64.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.evaluate.neighbours import top_k
from mrl_jax.nesting import check_dims

CHUNK = 1024  # rows: products with them fit the cache
BIN = 16  # rows whose largest upper bound is kept, by exact search
PACKED = 32  # most rows of which one is kept, by the first step of a funnel; its index takes the low bits of the score
ROOM = 50  # least bins for each document of a shortlist, so that the good ones rarely share a bin
QUERIES = 256  # at a time
SHARE = 64  # of them that are worth a core of their own
FROM_DISK = 32  # the same where documents are read from a file: what they read is held in memory
SPARE = 8  # bins more than k, half of those that are scored in full at first
MOST = 0.1  # share of bins that may be promising; with more, every document is better read in full
EPS = float(np.finfo(np.float32).eps)
LENGTHS = 1e-12, 1e12  # between which products neither overflow nor vanish beside the rounding that is reckoned with

T = TypeVar("T")


class Hits(NamedTuple):
    """The k best of each query, best first."""

    scores: np.ndarray  # float32 [Q, k], inner products of whole embeddings
    rows: np.ndarray  # int [Q, k]; −1, with a score of −inf, where there are fewer than k documents


class Work(NamedTuple):
    """What a search did, mean over queries."""

    scanned: int  # dims that were read of every document
    candidates: float  # documents of which more was read
    full: float  # share of queries that every document was read for in full


class Stored:
    """float32 [N, D] in a file, row after row. Indexed by a slice or an array of rows like an array, it reads those.

    Not a memory map: what that touches counts as this process's memory, sixteen pages for every row.
    """

    def __init__(self, path: Path, count: int, width: int) -> None:
        self.shape = (count, width)
        self._file = path.open("rb")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        count, width = self.shape
        if isinstance(rows, slice):
            start, stop, step = rows.indices(count)
            found = np.empty((max(0, stop - start), width), np.float32)
            self._read(found, start)
            return found[::step]
        found = np.empty((rows.size, width), np.float32)
        for place, row in enumerate(rows.ravel().tolist()):
            self._read(found[place], row)
        return found.reshape(*rows.shape, width)

    def _read(self, into: np.ndarray, row: int) -> None:
        if os.preadv(self._file.fileno(), [into], row * 4 * self.shape[1]) != into.nbytes:
            raise OSError(f"{self._file.name} ends before row {row + len(into)}")


@dataclass(frozen=True, eq=False)
class Documents:
    """N embeddings laid out for search; made by `lay_out`."""

    rows: Any  # float32 [N, D], a JAX array or `Stored`
    dims: tuple[int, ...]  # the nesting dims, ending at D
    # Their first W coordinates, [C, W, CHUNK]: float32, or the bits of bfloat16 as uint16. XLA copies a slice of uint16
    # as a block of memory but one of bfloat16 number by number, which on the CPU takes three times the product itself.
    chunks: jax.Array
    bias: jax.Array  # float32 [C, CHUNK]: 0, and −inf for rows that do not exist or were deleted
    inverse: dict[int, jax.Array]  # dim → 1 / length of the prefix [C, CHUNK]; 1 where it is zero
    tails: dict[int, jax.Array]  # dim → length of what is cut off [C, CHUNK]
    rounding: float  # largest distance of an embedding from its copy in `chunks`
    longest: float  # largest length of an embedding
    rotation: np.ndarray | None  # float64 [D, W], orthonormal columns: what is scanned is `rows @ rotation`

    def scanned(self, queries: np.ndarray) -> np.ndarray:
        """Queries [Q, D] in the coordinates that are scanned: float64 [Q, ≤ D]."""
        wide = queries.astype(np.float64)
        return wide if self.rotation is None else wide @ self.rotation

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dtype(self) -> Any:
        """Of the scanned copy."""
        return jnp.bfloat16 if self.chunks.dtype == jnp.uint16 else jnp.float32

    @property
    def batch(self) -> int:
        """How many queries are searched for together."""
        return FROM_DISK if isinstance(self.rows, Stored) else QUERIES

    @property
    def laid_out(self) -> tuple[int, ...]:
        """The dims at which all documents can be scanned."""
        return tuple(self.inverse)

    @cached_property
    def host(self) -> tuple[Any, np.ndarray, dict[int, np.ndarray]]:
        """The rows, their bias and for each dim the lengths of their tails [≥ N], as NumPy arrays."""
        rows = self.rows if isinstance(self.rows, Stored) else np.asarray(self.rows)
        return rows, np.asarray(self.bias).reshape(-1), {m: np.asarray(x).reshape(-1) for m, x in self.tails.items()}


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
        vectors: float32 [N, D], an array; or `Stored` in a file, read in chunks and never held whole.
        dims: nesting dims, ending at D; `exact` can start and `funnel` step at any of them up to `scanned`.
        dtype: of the scanned copy. bfloat16 halves the bytes and is twice as fast where the hardware has it.
        scanned: coordinates to copy, one of the dims; all by default.
        alive: bool [N]; false for rows that are never found.
        rotate: scan the embeddings' principal directions, those about the origin, in place of their coordinates. Inner
            products stay as they are, and what a prefix leaves out becomes as small as can be, so that `exact` rules
            out more; but prefixes are no longer those of the model.

    Raises:
        ValueError: dims that do not end at D, `scanned` that is none of them, numbers that are not finite, embeddings
            so long or so short (`LENGTHS`) that their products are not.
    """
    count, width = vectors.shape
    dims = check_dims(dims, width)
    scanned = width if scanned is None else scanned
    if scanned not in dims:
        raise ValueError(f"scanned={scanned} is not one of the dims {list(dims)}")
    size = min(CHUNK, max(PACKED, -(-count // PACKED) * PACKED))
    number = max(1, -(-count // size))
    chunks = _zeros((number, scanned, size), dtype)
    bias = np.full((number, size), -np.inf, np.float32)
    inverse = {m: np.ones((number, size), np.float32) for m in dims if m <= scanned}
    tails = {m: np.zeros((number, size), np.float32) for m in dims if m <= scanned}
    rounding = longest = 0.0
    rotation = _principal(vectors)[:, :scanned] if rotate else None
    for c in range(number if count else 0):
        some = np.asarray(vectors[c * size : (c + 1) * size], np.float32)
        if not np.isfinite(some).all():
            raise ValueError(f"embeddings {c * size}…{c * size + len(some) - 1} hold numbers that are not finite")
        n, wide = len(some), some.astype(np.float64)
        seen = wide[:, :scanned] if rotation is None else wide @ rotation
        chunks[c, :, :n] = seen.T
        copy = np.asarray(chunks[c, :, :n].T, np.float64)
        bias[c, :n] = 0.0 if alive is None else np.where(alive[c * size : c * size + n], 0.0, -np.inf)
        squares, whole = np.cumsum(seen**2, axis=1), (wide**2).sum(axis=1)
        for m in tails:
            length = np.sqrt(squares[:, m - 1])
            inverse[m][c, :n] = np.where(length > 0, 1 / np.maximum(length, 1e-30), 1.0)
            # Cancellation may leave a difference that is too small: the bound must not be.
            rest = np.maximum(whole - squares[:, m - 1], 0.0) + width * 1e-15 * whole
            tails[m][c, :n] = np.sqrt(rest) * (1 + EPS) if m < width else 0.0
        rounding = max(rounding, float(np.sqrt(((seen - copy) ** 2).sum(axis=1)).max()))
        longest = max(longest, float(np.sqrt(whole).max()))
    _check_length("the longest embedding", longest)
    return Documents(
        # JAX cannot index an array without rows; this one's is never found.
        vectors
        if isinstance(vectors, Stored) and count
        else jnp.asarray(vectors if count else np.zeros((1, width)), jnp.float32),
        dims,
        jax.device_put(chunks if chunks.dtype == np.float32 else chunks.view(np.uint16)),
        jnp.asarray(bias),
        {m: jnp.asarray(x) for m, x in inverse.items()},
        {m: jnp.asarray(x) for m, x in tails.items()},
        rounding,
        longest,
        rotation,
    )


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that `jax.device_put` takes over on the CPU without a copy: they start at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    found: np.ndarray = memory[start : start + size].view(dtype).reshape(shape)
    return found


def _principal(vectors: Any, sample: int = 16384) -> np.ndarray:
    """The principal directions [D, D] about the origin of a sample, as columns, those of most energy first."""
    some = np.asarray(vectors[np.arange(0, len(vectors), max(1, len(vectors) // sample))], np.float64)
    directions: np.ndarray = np.linalg.eigh(some.T @ some)[1][:, ::-1]
    return directions


# ---- scanning all documents -----------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("dim", "first"))
def _bounds(
    queries_QxD: jax.Array,
    tails_Q: jax.Array,
    chunks: jax.Array,
    bias: jax.Array,
    tails: jax.Array,
    dim: int,
    first: int,
) -> tuple[jax.Array, jax.Array]:
    """The largest upper bound in each bin, [Q, C · CHUNK / BIN], and the rows [Q, first · BIN] of the best bins.

    Row r of a chunk is in its bin r mod (CHUNK / BIN).
    """

    def one(c: jax.Array) -> jax.Array:
        tile = _product(queries_QxD, chunks, c, dim) + tails_Q[:, None] * tails[c] + bias[c]
        return _maxima(tile, BIN)

    found = jax.lax.map(one, jnp.arange(len(chunks)))
    bounds = jnp.moveaxis(found, 0, 1).reshape(len(queries_QxD), -1)
    return bounds, _rows_of(top_k(bounds, first), chunks.shape[-1])


def _rows_of(bins: Any, size: int) -> Any:
    """The rows [..., n · BIN] of bins [..., n], of chunks of `size` rows; those from N on are none."""
    each = size // BIN
    rows = (bins // each * size + bins % each)[..., None] + np.arange(BIN) * each
    return rows.reshape(*bins.shape[:-1], -1)


@partial(jax.jit, static_argnames=("dim", "size", "packed"))
def _shortlist(
    queries_QxD: jax.Array, chunks: jax.Array, bias: jax.Array, inverse: jax.Array, dim: int, size: int, packed: int
) -> jax.Array:
    """Rows [Q, size] with about the largest cosines on the prefix, in no order; −1 where there are too few.

    Of `packed` rows only the best is kept, with its place among them in the low bits of its score.
    """
    place = jnp.arange(packed, dtype=jnp.int32)[:, None]

    def one(c: jax.Array) -> jax.Array:
        tile = _product(queries_QxD, chunks, c, dim) * inverse[c] + bias[c]
        bits = jax.lax.bitcast_convert_type(tile, jnp.int32).reshape(len(tile), packed, -1)
        placed = jax.lax.bitcast_convert_type((bits & -packed) | place, jnp.float32)
        return _maxima(jnp.where(tile.reshape(bits.shape) > -jnp.inf, placed, -jnp.inf).reshape(tile.shape), packed)

    found = jnp.moveaxis(jax.lax.map(one, jnp.arange(len(chunks))), 0, 1)
    bins = found.shape[-1]
    flat = found.reshape(len(queries_QxD), -1)
    best, at = jax.lax.top_k(flat, min(size, flat.shape[1]))
    inside = jax.lax.bitcast_convert_type(best, jnp.int32) & (packed - 1)
    rows = (at // bins) * chunks.shape[-1] + inside * bins + at % bins
    return jnp.where(best > -jnp.inf, rows, -1)


def _product(queries_QxD: jax.Array, chunks: jax.Array, c: jax.Array, dim: int) -> jax.Array:
    """Products [Q, CHUNK] of the first `dim` coordinates of queries and chunk c, accumulated in float32."""
    x = jax.lax.dynamic_slice(chunks, (c, 0, 0), (1, dim, chunks.shape[-1]))[0]
    if chunks.dtype == jnp.uint16:
        x = jax.lax.bitcast_convert_type(x, jnp.bfloat16)
        return jnp.matmul(queries_QxD[:, :dim].astype(x.dtype), x, preferred_element_type=jnp.float32)
    return jnp.matmul(queries_QxD[:, :dim], x, precision=jax.lax.Precision.HIGHEST)


def _maxima(tile: jax.Array, rows: int) -> jax.Array:
    """The maxima [Q, n] of each `rows` numbers, n apart, of a tile [Q, rows · n]; unrolled, since XLA then fuses it."""
    each = jnp.split(tile, rows, axis=1)
    return reduce(jnp.maximum, each)


# ---- a shortlist, narrowed ------------------------------------------------------------------------------------------


def funnel(documents: Documents, queries: np.ndarray, k: int, steps: Sequence[tuple[int, int]]) -> Hits:
    """The k best of a shortlist.

    Args:
        queries: float32 [Q, D].
        steps: (dim, size) with ascending dims and descending sizes: `[(64, 100)]` takes the 100 best by cosine on 64
            coordinates and ranks them by the whole embedding; `[(32, 400), (64, 200), (128, 50)]` narrows in between.

    Raises:
        ValueError: steps out of order, a dim that was not laid out, a size below k, a query of another width.
    """
    _check(documents, queries, k)
    check_steps(steps, documents.dims, k)
    (dim, size), *further = steps
    if further and documents.rotation is not None:
        raise ValueError("a funnel over rotated documents has one step: only the scanned copy is rotated")

    def search(batch: np.ndarray, valid: int) -> tuple[np.ndarray, np.ndarray]:
        rows = _first(documents, batch, dim, size)
        scores, best = _narrow(_gather(documents, rows), batch, rows, tuple(further), k)
        return np.asarray(scores)[:valid], np.asarray(best)[:valid]

    return _joined(_each(search, queries, documents.batch), k)


def shortlist(documents: Documents, queries: np.ndarray, dim: int, size: int) -> np.ndarray:
    """Rows int [Q, size] with about the largest cosines on the first `dim` coordinates, in no order; −1 where there are
    fewer documents. Arguments and errors as for `funnel`, whose first step it is."""
    _check(documents, queries, size)

    def search(batch: np.ndarray, valid: int) -> np.ndarray:
        return np.asarray(_first(documents, batch, dim, size))[:valid]

    parts = _each(search, queries, documents.batch)
    found = np.concatenate(parts) if parts else np.zeros((0, size), np.int64)
    return np.pad(found.astype(np.int64), ((0, 0), (0, size - found.shape[1])), constant_values=-1)


def _first(documents: Documents, queries: np.ndarray, dim: int, size: int) -> jax.Array:
    """The first step of a funnel: rows [Q, ≤ size]."""
    if dim not in documents.laid_out:
        raise ValueError(f"dim {dim} was not laid out; there are {list(documents.laid_out)}")
    packed = 1 << int(np.log2(np.clip(len(documents) / (ROOM * size), 1, PACKED)))
    seen = documents.scanned(queries).astype(np.float32)
    found: jax.Array = _shortlist(seen, documents.chunks, documents.bias, documents.inverse[dim], dim, size, packed)
    return found


def check_steps(steps: Sequence[tuple[int, int]], dims: Sequence[int], k: int) -> None:
    """Raises ValueError unless `steps` can be taken: dims ascend and are among `dims`, sizes descend to k or more."""
    if not steps:
        raise ValueError("a funnel has at least one step (dim, size)")
    for dim, size in steps:
        if dim not in dims:
            raise ValueError(f"a step at dim {dim} is not possible; the dims are {list(dims)}")
        if size < k:
            raise ValueError(f"a step keeps {size} documents; at least k={k}")
    if any(a[0] >= b[0] or a[1] < b[1] for a, b in pairwise(steps)):
        raise ValueError(f"steps {list(steps)} are out of order; dims ascend and sizes do not grow")


def _gather(documents: Documents, rows: jax.Array) -> Any:
    """What `_narrow` reads: the array itself, or of one on disk just the rows, [Q, size, D]."""
    if isinstance(documents.rows, jax.Array):
        return documents.rows
    # A row −1 stands for none; what is read for it is not looked at.
    return jnp.asarray(documents.rows[np.clip(np.asarray(rows), 0, len(documents) - 1)])


@partial(jax.jit, static_argnames=("steps", "k"))
def _narrow(
    source: jax.Array, queries_QxD: jax.Array, rows: jax.Array, steps: tuple[tuple[int, int], ...], k: int
) -> tuple[jax.Array, jax.Array]:
    """Scores and rows [Q, k] of the best by whole embedding, after the further steps of a funnel.

    `source` is [N, D] or, gathered already, [Q, size, D]. A query at a time: its candidates fit the cache.
    """
    gathered = source.ndim == 3

    def one(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        query, found = inputs[:2]
        x = inputs[2] if gathered else source[found]
        for dim, size in steps:
            dots, squares = _dot(x[:, :dim], query[:dim]), jnp.sum(x[:, :dim] ** 2, axis=1)
            cosines = jnp.where(squares > 0, dots * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
            kept = jax.lax.top_k(jnp.where(found >= 0, cosines, -jnp.inf), min(size, len(found)))[1]
            x, found = x[kept], found[kept]
        scores, kept = jax.lax.top_k(jnp.where(found >= 0, _dot(x, query), -jnp.inf), min(k, len(found)))
        return scores, found[kept]

    found: tuple[jax.Array, jax.Array] = jax.lax.map(
        one, (queries_QxD, rows, source) if gathered else (queries_QxD, rows)
    )
    return found


def _dot(x: jax.Array, query: jax.Array) -> jax.Array:
    return jnp.matmul(x, query, precision=jax.lax.Precision.HIGHEST)


# ---- exact ----------------------------------------------------------------------------------------------------------


def exact(documents: Documents, queries: np.ndarray, k: int, start: int | None = None) -> tuple[Hits, Work]:
    """The k documents with the largest inner products, ties to the lower row: those of a float64 brute-force search.

    Args:
        queries: float32 [Q, D].
        start: dim of the prefix that is read of every document, the whole embedding by default; one that was laid out.

    Raises:
        ValueError: a dim that was not laid out, a query of another width, k below 1.
    """
    _check(documents, queries, k)
    start = documents.dims[-1] if start is None else start
    if start not in documents.laid_out:
        raise ValueError(f"start={start} was not laid out; there are {list(documents.laid_out)}")
    most = min(k, len(documents))

    def search(batch: np.ndarray, valid: int) -> tuple[tuple[np.ndarray, np.ndarray], int, int]:
        found, read, hard = _exact(documents, batch, valid, most, start)
        again = len(hard)
        for some, count in _batches(batch[hard], documents.batch):
            better, more, _ = _exact(documents, some, count, most, documents.dims[-1])
            for old, new in zip(found, better, strict=True):
                old[hard[:count]] = new
            read, hard = read + more, hard[count:]
        return found, read, again

    parts = _each(search, queries, documents.batch)
    count = max(1, len(queries))
    work = Work(start, sum(read for _, read, _ in parts) / count, sum(again for *_, again in parts) / count)
    return _joined([found for found, _, _ in parts], k), work


def _exact(
    documents: Documents, queries: np.ndarray, valid: int, k: int, start: int
) -> tuple[tuple[np.ndarray, np.ndarray], int, np.ndarray]:
    """One batch: scores and rows [valid, k], documents of which more was read, and the queries that are left to do
    from the whole embedding, since the bound rules out too little of the prefix."""
    prefixes = documents.scanned(queries)[:, :start]
    lengths = (queries.astype(np.float64) ** 2).sum(axis=1)
    # As for the documents: cancellation must not make it too small.
    rest = np.maximum(lengths - (prefixes**2).sum(axis=1), 0) + queries.shape[1] * 1e-15 * lengths
    tails = np.sqrt(rest) * (1 + EPS) * (start < queries.shape[1])
    size = documents.chunks.shape[-1]
    first = min(2 * k + 2 * SPARE, documents.chunks.shape[0] * size // BIN)
    bounds, rows = _bounds(
        prefixes.astype(np.float32), tails.astype(np.float32), documents.chunks, documents.bias, documents.tails[start],
        start, first,
    )  # fmt: skip
    scores = np.asarray(_scored(_gather(documents, rows), documents.bias, queries, rows))
    rows, bounds = np.asarray(rows), np.asarray(bounds)
    found = np.full((valid, k), -np.inf, np.float32), np.full((valid, k), -1, np.int64)
    read, hard, most = 0, [], bounds.shape[1] * MOST
    for q in range(valid):
        query = queries[q]
        rounding = len(query) * EPS * documents.longest * float(np.linalg.norm(query))
        kth = float(np.partition(scores[q], -k)[-k]) - 2 * rounding  # below the k-th best
        promising = np.flatnonzero(bounds[q] >= kth - _rounding(documents, prefixes[q]))
        if len(promising) <= first:
            chosen = rows[q][(scores[q] >= kth) & (scores[q] > -np.inf)]
        elif len(promising) > most and start < documents.dims[-1] in documents.laid_out:
            hard.append(q)
            continue
        else:
            chosen = _promising(documents, query, _rows_of(promising, size), kth, start)
        read += max(len(promising), first) * BIN
        found[0][q], found[1][q] = _ranked(documents, query, chosen, k)
    return found, read, np.array(hard, int)


def _rounding(documents: Documents, prefix: np.ndarray) -> float:
    """By how much a bound may come out too small: the operands' rounding, and that of float32 sums."""
    copy = prefix.astype(documents.dtype).astype(np.float64)
    length, error = float(np.linalg.norm(prefix)), float(np.linalg.norm(prefix - copy))
    longest = documents.longest + documents.rounding
    return error * longest + length * documents.rounding + (len(prefix) + 8) * EPS * (length + error) * longest


@jax.jit
def _scored(source: jax.Array, bias: jax.Array, queries_QxD: jax.Array, rows: jax.Array) -> jax.Array:
    """Inner products [Q, n] of whole embeddings with the documents `rows`; −inf for those that are none."""

    def one(inputs: tuple[jax.Array, ...]) -> jax.Array:
        query, found = inputs[:2]
        x = inputs[2] if source.ndim == 3 else source[jnp.minimum(found, len(source) - 1)]
        return _dot(x, query) + bias.reshape(-1)[found]

    scores: jax.Array = jax.lax.map(one, (queries_QxD, rows, source) if source.ndim == 3 else (queries_QxD, rows))
    return scores


def _promising(documents: Documents, query: np.ndarray, rows: np.ndarray, kth: float, start: int) -> np.ndarray:
    """Those of `rows` whose inner product may reach `kth`: it grows dim by dim, and what cannot reach it leaves."""
    source, bias, tails = documents.host
    rows = rows[bias[rows] == 0]
    further = [m for m in documents.laid_out if m > start] if documents.rotation is None else []
    sums, done = np.zeros(len(rows), np.float32), 0
    for m in (start, *further, len(query)) if further else (len(query),):
        sums = sums + _dots(source, rows, query, done, m)
        rest = float(np.linalg.norm(query[m:])) * (1 + EPS) * tails[m][rows] if m < len(query) else 0.0
        kept = sums + rest >= kth - 2 * len(query) * EPS * documents.longest * float(np.linalg.norm(query))
        rows, sums, done = rows[kept], sums[kept], m
    return rows


def _dots(source: Any, rows: np.ndarray, query: np.ndarray, a: int, b: int) -> np.ndarray:
    """Inner products of the coordinates a…b, float32 [n]; some rows at a time, so that little is copied."""
    sums = np.empty(len(rows), np.float32)
    for i in range(0, len(rows), CHUNK):
        sums[i : i + CHUNK] = source[rows[i : i + CHUNK]][:, a:b] @ query[a:b]
    return sums


def _ranked(documents: Documents, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [k] of the best, by inner products in float64, ties to the lower row."""
    source, exact64 = documents.host[0], query.astype(np.float64)
    scores, best = np.full(k, -np.inf), np.full(k, -1)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        every = np.append(scores, (source[some].astype(np.float64) * exact64).sum(axis=1)), np.append(best, some)
        order = np.lexsort((every[1], -every[0]))[:k]
        scores, best = every[0][order], every[1][order]
    return scores.astype(np.float32), best


# ---- batches of queries ---------------------------------------------------------------------------------------------


def _check(documents: Documents, queries: np.ndarray, k: int) -> None:
    if queries.ndim != 2 or queries.shape[1] != documents.dims[-1]:
        raise ValueError(f"queries have shape {queries.shape}; the documents take [Q, {documents.dims[-1]}]")
    if k < 1:
        raise ValueError(f"k={k} is not allowed; at least 1")
    if not np.isfinite(queries).all():
        raise ValueError("queries hold numbers that are not finite")
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    for length in (lengths.max(initial=0.0), lengths.min(initial=1.0, where=lengths > 0)):
        _check_length("a query", float(length))


def _check_length(what: str, length: float) -> None:
    """Raises ValueError unless the length is 0 or within `LENGTHS`."""
    least, most = LENGTHS
    if length and not least <= length <= most:
        raise ValueError(f"{what} has length {length:.0e}; between {least:.0e} and {most:.0e} are allowed: scale them")


def _batches(queries: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, int]]:
    """Queries at most `most` at a time, filled up to a power of two (few shapes to compile), and how many are real."""
    for start in range(0, len(queries), most):
        some = np.asarray(queries[start : start + most], np.float32)
        size = 1 << (len(some) - 1).bit_length()
        yield np.pad(some, ((0, size - len(some)), (0, 0))), len(some)


def _each(search: Callable[[np.ndarray, int], T], queries: np.ndarray, most: int) -> list[T]:
    """`search(batch, valid)` of each batch, in order; side by side on a CPU: one tile keeps few cores busy."""
    cores = _cores()
    batches = _batches(queries, min(most, max(SHARE, -(-len(queries) // cores))))
    if cores == 1 or len(queries) <= SHARE:
        return [search(*batch) for batch in batches]
    pool = ThreadPoolExecutor(cores)
    try:
        return list(pool.map(lambda batch: search(*batch), batches))
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Of this process; 1 where an accelerator does the work."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> Hits:
    """The batches' scores and rows as one, filled up to k."""
    if not parts:
        return Hits(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
    scores, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    missing = ((0, 0), (0, k - rows.shape[1]))
    return Hits(
        np.pad(scores, missing, constant_values=-np.inf),
        np.pad(rows.astype(np.int64), missing, constant_values=-1),
    )
