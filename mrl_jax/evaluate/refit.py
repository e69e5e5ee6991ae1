"""Linear classifiers fitted anew on embeddings at each prefix length, their regularisation chosen on validation.

They measure what an embedding is worth to someone who trains a classifier on it. Post-hoc arms have no classifier of
their own; trained arms are refitted too, so that embeddings can be compared under the same classifier.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from mrl_jax.evaluate.classification import rows_at_once
from mrl_jax.system import console, processes
from mrl_jax.system.errors import UserError

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C], float32

CHUNK_ROWS = 8192  # embeddings converted to float64 at a time
RIDGE_PENALTIES = tuple(10.0**e for e in range(1, -7, -1))  # relative to the mean variance of a coordinate
LOGISTIC_PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)  # per example, with coordinates scaled to a mean variance of 1
# A tighter ftol doubles the time, and the accuracy of the chosen classifier stays the same within its noise.
LBFGS_OPTIONS = {"ftol": 1e-6, "maxiter": 200, "maxcor": 30}
MAX_LOGIT_ELEMENTS = 1 << 23  # of the logits [C, n] held at once; beyond, examples are processed in tiles …
TILE_ELEMENTS = 1 << 19  # … of so many logits
MAX_HISTORY_BYTES = 8 << 30  # that L-BFGS may use for its history of steps


def check(kind: str | None, classes: int, width: int) -> None:
    """Raise `UserError` if fitting `kind` to `classes` at `width` dims would exceed `MAX_HISTORY_BYTES`."""
    # L-BFGS stores two float64 arrays per step of its history.
    needed = 2 * LBFGS_OPTIONS["maxcor"] * 8 * classes * (width + 1)
    if kind == "logistic" and needed > MAX_HISTORY_BYTES:
        raise UserError(
            f"evaluation.refit=logistic is not allowed for {classes:,} classes at {width:,} dims: the search would "
            f"take {needed / 2**30:,.0f} GiB; use evaluation.refit=ridge, or null where no post-hoc arm needs it"
        )


def ridge(
    z: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    dims: Sequence[int],
    classes: int,
) -> dict[int, Classifier]:
    """Ridge regression on one-hot classes, intercept not penalised, in closed form.

    The Gram matrix of the centred embeddings is computed once, in O(n·D²). That of a prefix is its leading block, and
    one eigendecomposition of it, O(m³), gives the solution for every penalty.

    Args:
        z: training embeddings, float [n, D].
        labels: int [n].
        validation: embeddings float [v, D], on which the penalty is chosen.
        validation_labels: int [v].
        dims: prefix lengths.
        classes: C.

    Returns:
        By dim m the kernel [m, C] and bias [C], float32, with the most accurate penalty, the largest one for ties.
    """
    mean, gram, cross = _moments(z, labels, classes)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    # Variance below float32 rounding counts as rounding: this keeps penalties above zero if all embeddings are equal.
    min_scale = len(z) * float(np.finfo(np.float32).eps ** 2 * np.mean(mean**2) + np.finfo(np.float32).tiny)

    def fit(m: int) -> Classifier:
        kernels = _ridge_path(gram[:m, :m], cross[:m], min_scale)
        candidates = (_classifier(kernel, shares, mean[:m]) for kernel in kernels)
        return _most_accurate(candidates, validation[:, :m], validation_labels)

    return _fit_each_dim(fit, dims, classes)


def _moments(z: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean [D], and XᵀX [D, D] and XᵀY [D, C] of centred embeddings X and one-hot classes Y, in float64.

    Centring the classes too would change nothing, as centred embeddings sum to zero.
    """
    mean = z.mean(axis=0, dtype=np.float64)
    gram, cross = np.zeros((len(mean), len(mean))), np.zeros((len(mean), classes))
    for start in range(0, len(z), CHUNK_ROWS):
        centred, chunk_labels = z[start : start + CHUNK_ROWS] - mean, labels[start : start + CHUNK_ROWS]
        gram += centred.T @ centred
        count = len(chunk_labels)
        one_hot = csr_array((np.ones(count), (chunk_labels, np.arange(count))), (classes, count))
        cross += (one_hot @ centred).T
    return mean, gram, cross


def _ridge_path(gram: np.ndarray, cross: np.ndarray, min_scale: float) -> Iterator[np.ndarray]:
    """The kernels `(gram + penalty · mean eigenvalue · I)⁻¹ cross` [m, C], by descending penalty."""
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)
    rotated, scale = vectors.T @ cross, max(float(values.mean()), min_scale)
    for penalty in RIDGE_PENALTIES:
        yield vectors @ (rotated / (values + penalty * scale)[:, None])


def logistic(
    z: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    dims: Sequence[int],
    classes: int,
) -> dict[int, Classifier]:
    """Multinomial logistic regression with an L2 penalty on the kernel, by L-BFGS, warm-started down the penalties.

    Arguments and result as for `ridge`. Minimises `mean cross-entropy + penalty / 2 · Σ kernel²` until the relative
    gain of a step is below 1e-6, so rounding (another number of cores) may change one prediction in a thousand. All
    coordinates share one scale, which preserves the geometry of the embedding.
    """
    mean, variance = z.mean(axis=0, dtype=np.float64), z.var(axis=0, dtype=np.float64)
    labels_n = jnp.asarray(labels)

    def fit(m: int) -> Classifier:
        scale = float(np.sqrt(variance[:m].mean())) or 1.0
        x_mxn = jnp.asarray(((z[:, :m] - mean[:m]) / scale).T, jnp.float32)
        path = _logistic_path(x_mxn, labels_n, classes)
        candidates = (_classifier(weights[:, :m].T / scale, weights[:, m], mean[:m]) for weights in path)
        return _most_accurate(candidates, validation[:, :m], validation_labels)

    return _fit_each_dim(fit, dims, classes)


def _fit_each_dim(fit: Callable[[int], Classifier], dims: Sequence[int], classes: int) -> dict[int, Classifier]:
    """`fit(m)` for each of `dims`; the processes of a run share the work."""
    with console.progress(len(dims), "refit", "dim", leave=False) as bar:

        def weights_at(m: int) -> np.ndarray:
            weights = np.vstack(fit(m))
            bar.update()
            return weights

        stacked = processes.by_items(weights_at, dims, lambda m: (m + 1, classes))
    return {m: (weights[:-1], weights[-1]) for m, weights in zip(dims, stacked, strict=True)}


def _logistic_path(x_mxn: jax.Array, labels_n: jax.Array, classes: int) -> Iterator[np.ndarray]:
    """The minimisers [C, m + 1], the bias last, by descending penalty, each search starting from the previous one."""
    shape = (classes, x_mxn.shape[0] + 1)
    whole = classes * x_mxn.shape[1] <= MAX_LOGIT_ELEMENTS
    function = (_in_one if whole else _in_tiles)(x_mxn, labels_n, classes)

    def objective(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        value, slope = function(flat.reshape(shape), penalty)
        return value, slope.ravel()

    flat = np.zeros(shape[0] * shape[1])
    for penalty in LOGISTIC_PENALTIES:
        flat = minimize(objective, flat, (penalty,), "L-BFGS-B", jac=True, options=LBFGS_OPTIONS).x
        yield flat.reshape(shape)


Objective = Callable[
    [np.ndarray, float], tuple[float, np.ndarray]
]  # weights float64 [C, m + 1], penalty → value, slope


def _in_one(x_mxn: jax.Array, labels_n: jax.Array, classes: int) -> Objective:
    """The objective of `logistic`, all logits at once."""
    del classes

    def objective(weights: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        value, slope = _logistic_objective(jnp.asarray(weights, jnp.float32), penalty, x_mxn, labels_n)
        return float(value), np.asarray(slope, np.float64)

    return objective


@jax.jit
@jax.value_and_grad
def _logistic_objective(weights: jax.Array, penalty: float, x_mxn: jax.Array, labels_n: jax.Array) -> jax.Array:
    """Objective of `logistic`; `weights` [C, m + 1], bias last. With examples last it is twice as fast on the CPU."""
    logits = jnp.matmul(weights[:, :-1], x_mxn, precision="highest") + weights[:, -1:]
    picked = jnp.take_along_axis(logits, labels_n[None], axis=0)[0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=0) - picked) + 0.5 * penalty * jnp.sum(weights[:, :-1] ** 2)


def _in_tiles(x_mxn: jax.Array, labels_n: jax.Array, classes: int) -> Objective:
    """The objective of `logistic` for many classes, with the logits of T examples at a time, which the cache holds.

    The logits of the labels are linear in the weights, so their mean needs no more than the mean of x over each class.
    """
    m, n = x_mxn.shape
    size = max(1, TILE_ELEMENTS // classes)
    count = -(-n // size)
    x = jnp.pad(jnp.vstack([x_mxn, jnp.ones((1, n))]), ((0, 0), (0, count * size - n)))  # one for the bias
    share = jnp.pad(jnp.full(n, 1 / n), (0, count * size - n))  # examples that fill up the last tile have none
    means = np.asarray(jax.ops.segment_sum(x[:, :n].T / n, labels_n, classes), np.float64)
    tiles = x.reshape(m + 1, count, size).swapaxes(0, 1), share.reshape(count, size)

    def objective(weights: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        values, slope = _logsumexp_of_tiles(jnp.asarray(weights, jnp.float32), *tiles)
        kernel = weights.copy()
        kernel[:, -1] = 0.0
        value = np.asarray(values, np.float64).sum() - np.sum(weights * means) + 0.5 * penalty * np.sum(kernel**2)
        return float(value), np.asarray(slope, np.float64) - means + penalty * kernel

    return objective


@jax.jit
def _logsumexp_of_tiles(weights: jax.Array, x_txMxT: jax.Array, share_txT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ_n share_n · logsumexp(W x_n) of each tile [t], and the slope of their sum: Σ_n share_n · softmax(W x_n) x_nᵀ.

    The sums of the exponentials divide x, which is smaller than softmax.
    """

    def add(slope: jax.Array, tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_MxT, share_T = tile
        logits = jnp.matmul(weights, x_MxT, precision="highest")
        largest = jnp.max(logits, axis=0)
        powers = jnp.exp(logits - largest)
        total = jnp.sum(powers, axis=0)
        slope += jnp.matmul(powers, (x_MxT * (share_T / total)).T, precision="highest")
        return slope, jnp.dot(share_T, largest + jnp.log(total), precision="highest")

    slope, values = jax.lax.scan(add, jnp.zeros_like(weights), (x_txMxT, share_txT))
    return values, slope


def _classifier(kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> Classifier:
    """Turn a classifier of centred embeddings into one of the embeddings themselves."""
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def _most_accurate(candidates: Iterable[Classifier], z: np.ndarray, labels: np.ndarray) -> Classifier:
    """The candidate with the highest accuracy, the first one for ties."""

    def right(candidate: Classifier) -> int:
        (kernel, bias), rows = candidate, rows_at_once(candidate[0].shape[1])
        starts = range(0, len(z), rows)
        return sum(
            int(np.count_nonzero(np.argmax(z[i : i + rows] @ kernel + bias, axis=1) == labels[i : i + rows]))
            for i in starts
        )

    return max(candidates, key=right)


CLASSIFIERS = {"logistic": logistic, "ridge": ridge}  # by `evaluation.refit`
