"""Equal vectors: which documents share an embedding, and which embeddings share a prefix.

Copies break approximate search. In a graph, the neighbours of a copy are its copies, so that a search never leaves
them; in cells, they take every place on a shortlist. So one rule for every approximate back end: each distinct prefix
is indexed once, a shortlist counts distinct embeddings, and whoever has ranked these expands each to its documents.

Vectors are equal where their bytes are, which a hash of 128 bits stands for. Memory: 48 bytes per document, and one
block of vectors at a time.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mrl_jax.search.index.base import unit

KEY_BYTES = 16


@dataclass(frozen=True)
class Groups:
    """n items in G groups, by their first item: group g has `members[starts[g] : starts[g + 1]]`, ascending."""

    starts: np.ndarray  # int64 [G + 1]
    members: np.ndarray  # int64 [n]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def firsts(self) -> np.ndarray:
        """The first item [G] of each group, ascending."""
        return np.asarray(self.members[self.starts[:-1]])

    def of(self, group: int, most: int | None = None) -> np.ndarray:
        """The items of a group, or the first `most` of them."""
        start, stop = self.starts[group], self.starts[group + 1]
        return self.members[start : stop if most is None else min(stop, start + most)]


@dataclass(frozen=True)
class Distinct:
    """Documents by their row, distinct embeddings by the lowest row that has them, distinct prefixes as entries."""

    embeddings: Groups  # of rows
    prefixes: Groups  # of groups in `embeddings`

    @cached_property
    def rows(self) -> np.ndarray:
        """A row [entries] with each distinct prefix: what is indexed."""
        return np.asarray(self.embeddings.firsts[self.prefixes.firsts])

    def expand(self, entries: np.ndarray, size: int) -> np.ndarray:
        """The distinct embeddings [Q, size] that have these prefixes [Q, n], in order and at most `size`.

        Args:
            entries: int [Q, n], best first; −1 where there is none.
            size: places per query.

        Returns:
            Rows int64 [Q, size]; −1 where there are fewer.
        """
        rows = np.full((len(entries), size), -1, np.int64)
        firsts = self.embeddings.firsts
        if len(self.prefixes) == len(self.embeddings):  # then entry i is embedding i
            n = min(size, entries.shape[1])
            rows[:, :n] = np.where(entries[:, :n] >= 0, firsts[entries[:, :n]], -1)
            return rows
        for q, some in enumerate(entries):
            there, parts = 0, []
            for entry in some[some >= 0]:
                parts.append(self.prefixes.of(entry, size - there))
                there += len(parts[-1])
                if there == size:
                    break
            rows[q, :there] = firsts[np.concatenate(parts)] if parts else []
        return rows

    def copies(self, rows: np.ndarray, most: int) -> list[np.ndarray]:
        """The documents with the embedding of each of `rows`, which `expand` returned; the lowest `most` of each."""
        groups = np.searchsorted(self.embeddings.firsts, rows)
        return [self.embeddings.of(group, most) for group in groups]

    def to_bytes(self) -> bytes:
        """For a file; `from_file` reads it."""
        file = io.BytesIO()
        for groups in (self.embeddings, self.prefixes):
            np.save(file, groups.starts)
            np.save(file, groups.members)
        return file.getvalue()

    @classmethod
    def from_file(cls, file: io.BytesIO) -> "Distinct":
        """Read what `to_bytes` wrote; the file is left behind it. Raises ValueError for anything else."""
        arrays = [np.load(file, allow_pickle=False) for _ in range(4)]
        return cls(Groups(*arrays[:2]), Groups(*arrays[2:]))


def keys(vectors: np.ndarray) -> np.ndarray:
    """A key per row of a float32 array [n, D], as uint64 [n, 2]; rows are equal where their keys are."""
    rows = np.ascontiguousarray(vectors + np.float32(0))  # −0 becomes 0
    digests = (hashlib.blake2b(row.data, digest_size=KEY_BYTES).digest() for row in rows)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def group(some_keys: np.ndarray) -> Groups:
    """Group items by their keys, uint64 [n, 2]; O(n log n)."""
    order = np.lexsort(some_keys.T)  # stable, so that the items of a group ascend
    ordered = some_keys[order]
    starts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))[: len(order)])
    counts = np.diff(np.append(starts, len(order)))
    by_first = np.argsort(order[starts])
    offsets = np.append(0, np.cumsum(counts[by_first]))
    places = np.repeat(starts[by_first] - offsets[:-1], counts[by_first]) + np.arange(len(order))
    return Groups(offsets, order[places])


def find_distinct(blocks: Iterable[tuple[np.ndarray, np.ndarray]], prefix: int) -> Distinct:
    """Which embeddings and which of their prefixes are equal.

    Args:
        blocks: (rows int [n], ascending, embeddings float32 [n, D]) of all documents, as `Index.blocks` yields them.
        prefix: number of coordinates that are indexed, at unit length.
    """
    rows, whole_keys, prefix_keys = [np.zeros(0, np.int64)], [keys(np.zeros((0, 1)))], [keys(np.zeros((0, 1)))]
    for some, vectors in blocks:
        rows.append(some)
        whole_keys.append(keys(vectors))
        prefix_keys.append(keys(unit(vectors[:, :prefix])))
    embeddings = group(np.concatenate(whole_keys))
    prefixes = group(np.concatenate(prefix_keys)[embeddings.firsts])
    return Distinct(Groups(embeddings.starts, np.concatenate(rows)[embeddings.members]), prefixes)
