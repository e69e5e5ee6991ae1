"""A map of the corpus: a sample of its documents in two coordinates, at every dim, in the colours of their clusters.

The clusters are those of the whole embedding (k-means). At dim m, the two principal components of the prefixes, scaled
to unit length, show what m coordinates already keep apart. The components of each dim are turned onto those of the
whole embedding (orthogonal Procrustes), which have no signs or order of their own, so that points move little from one
dim to the next. How much a prefix separates is also a number: the share of documents whose nearest neighbour in the
sample, at m dims, is of their cluster.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from mrl_jax.search.index.base import unit

MAX_POINTS = 2000
MAX_READ = 200_000  # documents that the sample is drawn from, the first ones
MAX_CLUSTERS = 8
TEXT_CHARACTERS = 160


def sample_of(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], count: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Handles [n] and embeddings [n, D] of at most `count` documents, the same ones each time.

    Every document read gets a random number, and those with the least are kept.
    """
    rng, read = np.random.default_rng(0), 0
    kept: list[np.ndarray] = []
    for handles, vectors in blocks:
        part = [rng.random(len(handles)), handles, vectors]
        if kept:
            part = [np.concatenate(both) for both in zip(kept, part, strict=True)]
        least = np.sort(np.argsort(part[0], kind="stable")[:count])
        kept, read = [column[least] for column in part], read + len(handles)
        if read >= MAX_READ:
            break
    return kept[1], kept[2]


class Map:
    """Of a sample of documents; what is computed for a dim is kept."""

    def __init__(self, vectors: np.ndarray, texts: Sequence[str], ids: Sequence[str] | None = None) -> None:
        """
        Args:
            vectors: float32 [n, D], of the sample.
            texts: of the documents.
            ids: of documents that are to be shown by them: pictures.
        """
        self._vectors = unit(vectors).astype(np.float64)
        self._texts = [" ".join(text.split())[:TEXT_CHARACTERS] for text in texts]
        self._by_dim: dict[int, dict[str, Any]] = {}
        self._axes = _two_components(self._vectors)
        # As many as there are, for few documents; copies of one text have one cluster.
        distinct = len(np.unique(self._vectors, axis=0))
        count = max(1, min(MAX_CLUSTERS, distinct // 4))
        _, label = kmeans2(self._vectors, count, minit="++", seed=0, missing="warn") if count > 1 else (0, None)
        self._cluster = np.zeros(len(vectors), int) if label is None else _by_size(label)
        central = [self._most_central(c) for c in range(self._cluster.max() + 1)]
        self._central = [self._texts[row] for row in central]
        self._ids = {} if ids is None else {"ids": [*ids], "central_ids": [ids[row] for row in central]}

    def _most_central(self, cluster: int) -> int:
        """The row nearest to the mean of its cluster."""
        rows = np.flatnonzero(self._cluster == cluster)
        return int(rows[np.argmax(self._vectors[rows] @ self._vectors[rows].mean(axis=0))])

    def at(self, dim: int) -> dict[str, Any]:
        """The map at a dim, ready for JSON."""
        if dim not in self._by_dim:
            z = unit(self._vectors[:, :dim]).astype(np.float64)
            axes = _two_components(z)
            left, _, right = np.linalg.svd(axes.T @ self._axes)
            axes = axes @ (left @ right)
            axes /= max(np.abs(axes).max(), 1e-9)
            self._by_dim[dim] = {
                "dim": dim,
                "x": axes[:, 0].round(4).tolist(),
                "y": axes[:, 1].round(4).tolist(),
                "cluster": self._cluster.tolist(),
                "central": self._central,
                "texts": self._texts,
                "together": self._together(z),
                **self._ids,
            }
        return self._by_dim[dim]

    def _together(self, z: np.ndarray) -> float | None:
        """Share of documents whose nearest neighbour is of their cluster; None for a single document."""
        if len(z) < 2:
            return None
        cosines = z @ z.T
        np.fill_diagonal(cosines, -np.inf)
        return round(float((self._cluster[cosines.argmax(axis=1)] == self._cluster).mean()), 4)


def _two_components(z: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2] of rows; zeros where there are fewer."""
    centred = z - z.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    components = (u * s)[:, :2]
    return np.pad(components, ((0, 0), (0, 2 - components.shape[1])))


def _by_size(label: np.ndarray) -> np.ndarray:
    """Clusters numbered from the largest to the smallest."""
    names, numbers, counts = np.unique(label, return_inverse=True, return_counts=True)
    rank = np.empty(len(names), int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(names))
    return rank[numbers]
