"""Linear classifiers fitted anew on embeddings at each prefix length, their regularisation chosen on validation.

What an embedding is worth to whoever trains a classifier on it: post-hoc arms need one, and trained arms get the same
for a comparison of embeddings alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from mrl_jax import processes
from mrl_jax.errors import UserError
from mrl_jax.evaluate.classification import rows_at_once

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C], float32

ROWS = 8192  # embeddings at a time in float64
RIDGE = tuple(10.0**e for e in range(1, -7, -1))  # penalties, in units of the mean variance of a coordinate
LOGISTIC = (1e-2, 1e-3, 1e-4, 1e-5)  # penalties per example, coordinates scaled to a mean variance of 1
# Tighter than 1e-6 doubles the time, and the accuracy that validation picks is the same within its noise.
SEARCH = {"ftol": 1e-6, "maxiter": 200, "maxcor": 30}
ELEMENTS = 1 << 27  # of logits [C, n] that are held at once by the search; beyond, a part of the examples at a time
MOST = 8 << 30  # bytes that the search may take for its own history of steps


def check(kind: str | None, classes: int, width: int) -> None:
    """Raises UserError where fitting `kind` to `classes` at `width` dims would take more memory than is reasonable."""
    # L-BFGS keeps two arrays in float64 of each of the last steps.
    needed = 2 * SEARCH["maxcor"] * 8 * classes * (width + 1)
    if kind == "logistic" and needed > MOST:
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

    The Gram matrix of the centred embeddings is made once, O(n·D²); a prefix's is its leading block, and one
    eigendecomposition of that, O(m³), gives the solution for every penalty.

    Args:
        z: float [n, D] with `labels` int [n]; the penalty is chosen on `validation` [v, D], `validation_labels` [v].
        dims: prefix lengths.
        classes: C.

    Returns:
        For each of `dims` the kernel [m, C] and bias [C]. Of equally accurate penalties the largest is taken.
    """
    mean, gram, cross = _moments(z, labels, classes)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    # Variance below the rounding of float32 is none: penalties stay off zero when all embeddings are alike.
    least = len(z) * float(np.finfo(np.float32).eps ** 2 * np.mean(mean**2) + np.finfo(np.float32).tiny)

    def fit(m: int) -> Classifier:
        kernels = _ridge_path(gram[:m, :m], cross[:m], least)
        candidates = (_classifier(kernel, shares, mean[:m]) for kernel in kernels)
        return _best(candidates, validation[:, :m], validation_labels)

    return _each(fit, dims, classes)


def _moments(z: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [D], and the products [D, D] and [D, C] of centred embeddings with themselves and with one-hot classes.

    Centring the classes too would change nothing, as centred embeddings sum to zero.
    """
    mean = z.mean(axis=0, dtype=np.float64)
    gram, cross = np.zeros((len(mean), len(mean))), np.zeros((len(mean), classes))
    for start in range(0, len(z), ROWS):
        centred, some = z[start : start + ROWS] - mean, labels[start : start + ROWS]
        gram += centred.T @ centred
        one_hot = csr_array((np.ones(len(some)), (some, np.arange(len(some)))), (classes, len(some)))
        cross += (one_hot @ centred).T
    return mean, gram, cross


def _ridge_path(gram: np.ndarray, cross: np.ndarray, least: float) -> Iterator[np.ndarray]:
    """The kernels `(gram + penalty · mean eigenvalue · I)⁻¹ cross` [m, C], by descending penalty."""
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0.0)
    rotated, scale = vectors.T @ cross, max(float(values.mean()), least)
    for penalty in RIDGE:
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

    Arguments and result as for `ridge`. Minimises `mean cross-entropy + penalty / 2 · Σ kernel²` until a step gains
    less than a millionth, so rounding (another number of cores) moves a prediction in a thousand; one scale for all
    coordinates leaves the geometry of the embedding as it is.
    """
    mean, variance = z.mean(axis=0, dtype=np.float64), z.var(axis=0, dtype=np.float64)
    labels_n = jnp.asarray(labels)

    def fit(m: int) -> Classifier:
        scale = float(np.sqrt(variance[:m].mean())) or 1.0
        x_mxn = jnp.asarray(((z[:, :m] - mean[:m]) / scale).T, jnp.float32)
        path = _logistic_path(x_mxn, labels_n, classes)
        candidates = (_classifier(weights[:, :m].T / scale, weights[:, m], mean[:m]) for weights in path)
        return _best(candidates, validation[:, :m], validation_labels)

    return _each(fit, dims, classes)


def _each(fit: Callable[[int], Classifier], dims: Sequence[int], classes: int) -> dict[int, Classifier]:
    """`fit(m)` for each of `dims`, of which each process of a run does a share."""
    stacked = processes.by_items(lambda m: np.vstack(fit(m)), dims, lambda m: (m + 1, classes))
    return {m: (weights[:-1], weights[-1]) for m, weights in zip(dims, stacked, strict=True)}


def _logistic_path(x_mxn: jax.Array, labels_n: jax.Array, classes: int) -> Iterator[np.ndarray]:
    """The minimisers [C, m + 1], the bias last, by descending penalty, each the start of the search for the next."""
    shape, n = (classes, x_mxn.shape[0] + 1), x_mxn.shape[1]
    size = max(1, ELEMENTS // classes)
    parts = [(x_mxn[:, i : i + size], labels_n[i : i + size]) for i in range(0, n, size)]

    def objective(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        weights = jnp.asarray(flat.reshape(shape), jnp.float32)
        value, slope = 0.0, np.zeros(shape)
        for x, labels in parts:
            its_value, its_slope = _logistic(weights, penalty, x, labels)
            value, slope = value + len(labels) / n * float(its_value), slope + len(labels) / n * np.asarray(its_slope)
        return value, slope.ravel()

    flat = np.zeros(shape[0] * shape[1])
    for penalty in LOGISTIC:
        flat = minimize(objective, flat, (penalty,), "L-BFGS-B", jac=True, options=SEARCH).x
        yield flat.reshape(shape)


@jax.jit
@jax.value_and_grad
def _logistic(weights: jax.Array, penalty: float, x_mxn: jax.Array, labels_n: jax.Array) -> jax.Array:
    """Objective of `logistic`; `weights` [C, m + 1], the bias last. Examples come last: twice as fast on the CPU."""
    logits = jnp.matmul(weights[:, :-1], x_mxn, precision="highest") + weights[:, -1:]
    picked = jnp.take_along_axis(logits, labels_n[None], axis=0)[0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=0) - picked) + 0.5 * penalty * jnp.sum(weights[:, :-1] ** 2)


def _classifier(kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> Classifier:
    """A classifier of centred embeddings as one of the embeddings themselves."""
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def _best(candidates: Iterable[Classifier], z: np.ndarray, labels: np.ndarray) -> Classifier:
    """The first of the candidates with the highest accuracy."""

    def right(candidate: Classifier) -> int:
        (kernel, bias), rows = candidate, rows_at_once(candidate[0].shape[1])
        starts = range(0, len(z), rows)
        return sum(
            int(np.count_nonzero(np.argmax(z[i : i + rows] @ kernel + bias, axis=1) == labels[i : i + rows]))
            for i in starts
        )

    return max(candidates, key=right)


CLASSIFIERS = {"logistic": logistic, "ridge": ridge}  # of `evaluation.refit`
