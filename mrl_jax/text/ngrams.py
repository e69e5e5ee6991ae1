"""Runs of two or more units (words or characters), which are units of their own.

A run is known by its bucket, a hash of its token ids, so that NumPy here, JAX and ONNX find the same ones:

    h = n;  h = h · P + id for each of its n ids;  bucket = (h · Q mod 2³²) / 2¹²

Runs that share a bucket are one unit: of 50,000, one in twenty. Characters do not run across words.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

BUCKETS = 1 << 20
P, Q, MODULUS = 16_777_619, 2_654_435_769, 1 << 32  # of FNV and of Fibonacci hashing
MAX_LENGTH = 8  # units per run


def buckets(ids: Any, n: int) -> Any:
    """The bucket of each run of n ids, [… , L − n + 1]; `ids` is a uint32 [… , L] of NumPy or JAX."""
    last = ids.shape[-1] - n + 1
    h = ids[..., :last] * np.uint32(0) + np.uint32(n)
    for k in range(n):
        h = h * np.uint32(P) + ids[..., k : last + k]
    return (h * np.uint32(Q)) >> np.uint32(12)


def is_run(ids: Any, known: Any, n: int, space: int | None) -> Any:
    """Whether the n ids from each place on are a run, all `known` `space` only at its ends: bool [… , L − n + 1]."""
    last = ids.shape[-1] - n + 1
    run = known[..., :last]
    for k in range(1, n):
        run = run & known[..., k : last + k]
        if space is not None and k < n - 1:
            run = run & (ids[..., k : last + k] != space)
    return run


def of_texts(ids: np.ndarray, text: np.ndarray, longest: int, space: int | None) -> Iterator[tuple[np.ndarray, Any]]:
    """The text and the bucket of each run of 2 … `longest` ids, from the ids of several texts in a row.

    Args:
        ids: int [n], 0 where a unit is unknown.
        text: int [n], the text of each id, ascending.
        longest: units per run.
        space: the id of the space between words, which is no part of a run but at its ends.
    """
    for n in range(2, min(longest, len(ids)) + 1):
        run = is_run(ids, ids > 0, n, space) & (text[n - 1 :] == text[: len(ids) - n + 1])
        yield text[: len(run)][run], buckets(ids.astype(np.uint32), n)[run].astype(np.int64)
