"""Post-hoc arms: fewer numbers from the embeddings of a trained model, without training one.

Each is an affine map of the embedding, fitted on the training split, after which prefixes are taken: the first m
coordinates of `(z − mean) @ matrix` are the compression to m numbers, so these embeddings are nested too.

    truncated          the first coordinates as they are
    random_subset      coordinates in random order
    random_projection  Gaussian directions (Johnson and Lindenstrauss, 1984)
    pca                principal directions, by descending variance
    pca_whitened       the same, each scaled to unit variance
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C]


class Compression(NamedTuple):
    """The map of one post-hoc arm."""

    mean: np.ndarray  # float32 [D]
    matrix: np.ndarray  # float32 [D, D]

    def apply(self, z: np.ndarray) -> np.ndarray:
        """Embeddings [n, D] whose prefixes are the compressions of `z` [n, D]."""
        return (z - self.mean) @ self.matrix


def fit(name: str, z: np.ndarray, seed: int) -> Compression:
    """The map called `name`, fitted on training embeddings `z` [n, D]; `seed` draws what is random."""
    width = z.shape[1]
    rng = np.random.default_rng((seed, width))
    mean, matrix = np.zeros(width), np.eye(width)
    match name:
        case "truncated":
            pass
        case "random_subset":
            matrix = matrix[:, rng.permutation(width)]
        case "random_projection":
            matrix = rng.normal(size=(width, width)) / np.sqrt(width)
        case "pca" | "pca_whitened":
            mean = z.mean(axis=0, dtype=np.float64)
            centred = z - mean
            variance, matrix = np.linalg.eigh(centred.T @ centred / len(z))
            variance, matrix = variance[::-1], matrix[:, ::-1]
            largest = matrix[np.abs(matrix).argmax(axis=0), np.arange(width)]
            matrix = matrix * np.sign(largest)  # a direction has no sign of its own
            if name == "pca_whitened":
                # Directions without variance hold rounding errors; dividing by those would blow them up.
                real = variance > 1e-9 * max(variance[0], 1e-30)
                matrix = np.where(real, matrix / np.sqrt(np.where(real, variance, 1.0)), 0.0)
        case _:
            raise ValueError(f"{name} is not a post-hoc arm")
    return Compression(mean.astype(np.float32), matrix.astype(np.float32))


def own_head(
    compression: Compression, kernel: np.ndarray, bias: np.ndarray, dims: Sequence[int]
) -> dict[int, Classifier]:
    """The full-width model's own classifier, kernel [D, C] and bias [C], on the compressed embeddings.

    It reads the least-squares reconstruction of z from its m numbers, `mean + y[:m] @ pinv(matrix[:, :m])`. This is how
    such baselines are usually published: without refitting, which they are the worse for.
    """
    kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    offset = bias + compression.mean @ kernel
    heads = {}
    for m in dims:
        back = np.linalg.pinv(compression.matrix[:, :m].astype(np.float64))
        heads[m] = ((back @ kernel).astype(np.float32), offset.astype(np.float32))
    return heads
