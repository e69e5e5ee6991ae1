"""Nearest neighbours when the database keeps fewer bytes: 8 bits or 1 bit a coordinate instead of 32.

Scales and thresholds belong to a coordinate, so the prefix of a quantised embedding is the quantised prefix. Queries
stay float32, as they need not be stored. Bytes of m dimensions: 4m (float32), m (int8), m / 8 (1 bit).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mrl_jax.evaluate.neighbours import QUERIES, neighbours

SHORTLIST = 4  # candidates per wanted neighbour that 1-bit search rescores


def int8(queries: np.ndarray, database: np.ndarray, dims: Sequence[int], k: int) -> Iterator[np.ndarray]:
    """Indices int32 [Q, k] for each of `dims`, by cosine of the queries [Q, D] with the database [N, D] in 8 bits.

    Symmetric codes −127 … 127 with one scale a coordinate, its largest magnitude in the database.
    """
    scale = np.abs(database).max(axis=0, initial=1e-30) / 127
    codes = np.rint(database / scale)
    return neighbours(queries, (codes * scale).astype(np.float32), dims, k)


def one_bit(queries: np.ndarray, database: np.ndarray, dims: Sequence[int], k: int) -> Iterator[np.ndarray]:
    """Indices int32 [Q, k] for each of `dims`, with one bit a coordinate: is it above its mean in the database?

    A shortlist of 4k by Hamming distance to the query's bits, then rescored by the inner product of the float query
    with the bits read as ±1; equal scores stay in the order of the shortlist. The database is never more than bits.
    """
    mean = database.mean(axis=0)
    centred = (queries - mean).astype(np.float32)
    signs, codes = _signs(centred), _signs(database - mean)
    # The inner product of signs is m − 2 · (Hamming distance) and their length the same for all: cosine ranks alike.
    shortlists = neighbours(signs, codes, dims, min(SHORTLIST * k, len(database)))
    for dim, shortlist in zip(dims, shortlists, strict=True):
        prefix = jnp.asarray(codes[:, :dim])
        parts = []
        for start in range(0, len(queries), QUERIES):
            chunk = slice(start, start + QUERIES)
            filled = np.pad(shortlist[chunk], ((0, max(0, start + QUERIES - len(queries))), (0, 0)))
            rows = np.pad(centred[chunk, :dim], ((0, len(filled) - len(centred[chunk])), (0, 0)))
            parts.append(np.asarray(_rescored(rows, prefix, filled, k))[: len(centred[chunk])])
        yield np.concatenate(parts) if parts else np.zeros((0, k), np.int32)


def _signs(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, np.float32(1), np.float32(-1))


@partial(jax.jit, static_argnames="k")
def _rescored(queries_Qxm: jax.Array, codes_Nxm: jax.Array, shortlist_QxS: jax.Array, k: int) -> jax.Array:
    scores_QxS = jnp.einsum("qm,qsm->qs", queries_Qxm, codes_Nxm[shortlist_QxS])
    best = jax.lax.top_k(scores_QxS, min(k, shortlist_QxS.shape[1]))[1]
    return jnp.take_along_axis(shortlist_QxS, best, axis=1)
