"""Post-hoc arms: compress the embeddings of a trained model, without training another.

Each is an affine map of the embedding, fitted on the training split. The first m coordinates of `(z − mean) @ matrix`
are the compression to m numbers, so these embeddings are nested too.

    truncated          the first coordinates as they are
    random_subset      coordinates in random order
    random_projection  Gaussian directions (Johnson and Lindenstrauss, 1984)
    pca                principal directions about the mean, by descending variance
    pca_whitened       the same, each scaled to unit variance
    rotated            principal directions about the origin of the embeddings at unit length, by descending energy

To add one, write a function, list it in `COMPRESSIONS`, and name it in an arm of `arms.ARMS`. One that is no affine
map, `csr` of `sparse`, stands in `CODES`. Of the affine maps only `pca` and
`pca_whitened` centre the embeddings. Neighbours are compared by cosine, which depends on the origin, so at full width
`pca` preserves the distances between embeddings but not their cosines; the first two and `rotated` preserve both,
`random_projection` preserves squared distances and inner products on average, `pca_whitened` neither. Of all
orthonormal directions the first m of `rotated` keep most of the inner products (Eckart and Young, 1936).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from mrl_jax.evaluate import sparse

CHUNK_ROWS = 8192  # embeddings converted to float64 at a time
MIN_LENGTH = 1e-30  # of an embedding that has a direction

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C]


class Compression(NamedTuple):
    """The affine map of one post-hoc arm."""

    mean: np.ndarray  # float32 [D]
    matrix: np.ndarray  # float32 [D, D]; columns of zeros, if any, come last

    def apply(self, z: np.ndarray) -> np.ndarray:
        """Compress embeddings `z` [n, D]; each prefix of the result [n, D] is a compression."""
        compressed: np.ndarray = (z - self.mean) @ self.matrix
        return compressed


def fit(name: str, z: np.ndarray, seed: int) -> Compression:
    """Fit a compression.

    Args:
        name: a key of `COMPRESSIONS`.
        z: training embeddings float32 [n, D], n ≥ 1.
        seed: of random directions and orders.

    Raises:
        ValueError: `name` is not in the table.
    """
    if name not in COMPRESSIONS:
        raise ValueError(f"{name} is not a compression; allowed: {', '.join(COMPRESSIONS)}")
    rng = np.random.default_rng((seed, z.shape[1]))
    mean, matrix = COMPRESSIONS[name](z, rng)
    return Compression(mean.astype(np.float32), matrix.astype(np.float32))


Affine = tuple[np.ndarray, np.ndarray]  # mean [D] and matrix [D, D], in float64


def truncated(z: np.ndarray, rng: np.random.Generator) -> Affine:
    """The coordinates as they are."""
    return np.zeros(z.shape[1]), np.eye(z.shape[1])


def random_subset(z: np.ndarray, rng: np.random.Generator) -> Affine:
    """The coordinates in random order."""
    return np.zeros(z.shape[1]), np.eye(z.shape[1])[:, rng.permutation(z.shape[1])]


def random_projection(z: np.ndarray, rng: np.random.Generator) -> Affine:
    """Gaussian directions."""
    width = z.shape[1]
    return np.zeros(width), rng.normal(size=(width, width)) / np.sqrt(width)


def pca(z: np.ndarray, rng: np.random.Generator) -> Affine:
    """Principal directions."""
    mean, _, directions = _principal(z)
    return mean, directions


def rotated(z: np.ndarray, rng: np.random.Generator) -> Affine:
    """Principal directions of cosines: about the origin, of embeddings at unit length."""
    unit = z / np.maximum(np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True), MIN_LENGTH)
    origin, _, directions = _principal(unit, about=np.zeros(z.shape[1]))
    return origin, directions


def pca_whitened(z: np.ndarray, rng: np.random.Generator) -> Affine:
    """Principal directions, scaled to unit variance."""
    mean, variance, directions = _principal(z)
    # A standard deviation under 1e-5 of an embedding's length is float32 rounding, which scaling would only amplify.
    significant = variance > 1e-10 * (variance.sum() + mean @ mean)
    return mean, np.where(significant, directions / np.sqrt(np.where(significant, variance, 1.0)), 0.0)


COMPRESSIONS: dict[str, Callable[[np.ndarray, np.random.Generator], Affine]] = {
    "truncated": truncated,
    "random_subset": random_subset,
    "random_projection": random_projection,
    "pca": pca,
    "pca_whitened": pca_whitened,
    "rotated": rotated,
}
# Codes by dim that are no prefixes of one another: (embeddings by split, dims, seed) → for each dim codes by split.
CODES: dict[str, Callable[[Mapping[str, np.ndarray], tuple[int, ...], int], Iterator[dict[str, np.ndarray]]]] = {
    "csr": sparse.at_dims
}
LEARNT = ("pca", "pca_whitened", "rotated")  # from embeddings; of the others only their width counts


class View(NamedTuple):
    """Compressed embeddings that stand for some dims."""

    columns: dict[int, int]  # by dim the number of leading columns that are compared for it
    z: dict[str, np.ndarray]  # float32 [n, columns] by split
    compression: Compression | None  # the affine map that it comes from, if it is one


def views(name: str, z: Mapping[str, np.ndarray], dims: Sequence[int], seed: int) -> Iterator[View]:
    """Compress embeddings, one view for all dims where they are nested, else one for each.

    Args:
        name: a key of `COMPRESSIONS` or `CODES`.
        z: embeddings float32 [n, D] by split; `train` is what is learnt from.
        dims: sizes of the compressed embeddings, in float32 numbers.
        seed: of whatever is random.
    """
    if name in CODES:
        for dim, codes in zip(dims, CODES[name](z, tuple(dims), seed), strict=True):
            yield View({dim: codes["train"].shape[1]}, codes, None)
    else:
        compression = fit(name, z["train"], seed)
        yield View({m: m for m in dims}, {split: compression.apply(x) for split, x in z.items()}, compression)


def _principal(z: np.ndarray, about: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The point that variance is measured about, the mean by default, [D]; variances [D], descending; and directions
    [D, D] as columns, in float64; O(n·D² + D³)."""
    mean = z.mean(axis=0, dtype=np.float64) if about is None else about
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, len(z), CHUNK_ROWS):
        centred = z[start : start + CHUNK_ROWS] - mean
        covariance += centred.T @ centred / len(z)
    variance, directions = np.linalg.eigh(covariance)
    variance, directions = variance[::-1], directions[:, ::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    # The sign of a direction is arbitrary: make its largest entry positive.
    return mean, variance, directions * np.sign(largest)


def own_head(
    compression: Compression, kernel: np.ndarray, bias: np.ndarray, dims: Sequence[int]
) -> dict[int, Classifier]:
    """Apply the full-width model's own classifier to compressed embeddings.

    It reads the least-squares reconstruction of z from its m numbers y, `mean + y · pinv(matrix[:, :m])`: dropped
    coordinates become zero, dropped principal directions take their mean. For `random_projection` this is z projected
    onto the m directions; the alternative `y · matrix[:, :m]ᵀ · D / m` is unbiased, but its squared error is about
    D / m times that of guessing zero, and it does not return z at m = D. Published baselines usually use this
    classifier without refitting, which understates them.

    Args:
        compression: the map, [D] to [D].
        kernel: [D, C].
        bias: [C].
        dims: prefix lengths of the compressed embedding.

    Returns:
        By dim m the equivalent classifier of m numbers: kernel [m, C] and bias [C], float32.
    """
    kernel, matrix = np.asarray(kernel, np.float64), compression.matrix.astype(np.float64)
    offset = (np.asarray(bias, np.float64) + compression.mean @ kernel).astype(np.float32)
    rank = np.count_nonzero(matrix.any(axis=0))
    # With matrix = Q R, the pseudoinverse of a prefix is R[:m, :m]⁻¹ Q[:, :m]ᵀ: one factorisation serves all prefixes.
    q, r = np.linalg.qr(matrix[:, :rank])
    rotated = q.T @ kernel
    heads = {}
    for m in dims:
        rows, used = np.zeros((m, kernel.shape[1]), np.float32), min(m, rank)
        rows[:used] = solve_triangular(r[:used, :used], rotated[:used])
        heads[m] = (rows, offset)
    return heads
