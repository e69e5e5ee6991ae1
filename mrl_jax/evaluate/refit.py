"""Linear classifiers fitted anew on embeddings at each prefix length, their regularisation chosen on validation.

What an embedding is worth to whoever trains a classifier on it: post-hoc arms need one, and trained arms get the same
for a comparison of embeddings alone. Ridge is there in an instant, but short prefixes of unequal classes need the
logistic loss: on Reuters R52, truncated to 8 dimensions, validation accuracy is 76 % against 89 %.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

Classifier = tuple[np.ndarray, np.ndarray]  # kernel [m, C] and bias [C], float32

RIDGE = tuple(10.0**e for e in range(1, -7, -1))  # penalties, in units of the mean variance of a coordinate
LOGISTIC = (1e-2, 1e-3, 1e-4, 1e-5)  # penalties per example, coordinates scaled to a mean variance of 1


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
    mean = z.mean(axis=0, dtype=np.float64)
    centred = z - mean
    targets = np.eye(classes)[labels]
    base = targets.mean(axis=0)
    gram, cross = centred.T @ centred, centred.T @ (targets - base)
    fitted = {}
    for m in dims:
        values, vectors = np.linalg.eigh(gram[:m, :m])
        values = np.maximum(values, 0.0)
        rotated = vectors.T @ cross[:m]
        scale = max(float(values.mean()), 1e-30)

        def solutions(
            m: int = m,
            values: np.ndarray = values,
            vectors: np.ndarray = vectors,
            rotated: np.ndarray = rotated,
            scale: float = scale,
        ) -> Iterable[Classifier]:
            for penalty in RIDGE:
                kernel = vectors @ (rotated / (values + penalty * scale)[:, None])
                yield kernel.astype(np.float32), (base - mean[:m] @ kernel).astype(np.float32)

        fitted[m] = _best(solutions(), validation[:, :m], validation_labels)
    return fitted


def logistic(
    z: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    dims: Sequence[int],
    classes: int,
) -> dict[int, Classifier]:
    """Multinomial logistic regression with an L2 penalty on the kernel, by L-BFGS, warm-started down the penalties.

    Arguments and result as for `ridge`. Minimises `mean cross-entropy + penalty / 2 · Σ kernel²`.
    """
    labels_n = jnp.asarray(labels)
    fitted = {}
    for m in dims:
        mean = z[:, :m].mean(axis=0, dtype=np.float64)
        scale = max(float(np.sqrt(np.mean(z[:, :m].var(axis=0, dtype=np.float64)))), 1e-30)
        x_nxm = jnp.asarray((z[:, :m] - mean) / scale, jnp.float32)

        def objective(flat: np.ndarray, penalty: float, x: jax.Array = x_nxm, m: int = m) -> tuple[float, np.ndarray]:
            value, slope = _logistic(jnp.asarray(flat, jnp.float32).reshape(m + 1, classes), penalty, x, labels_n)
            return float(value), np.asarray(slope, np.float64).ravel()

        def solutions(
            m: int = m,
            mean: np.ndarray = mean,
            scale: float = scale,
            objective: Callable[[np.ndarray, float], tuple[float, np.ndarray]] = objective,
        ) -> Iterable[Classifier]:
            flat = np.zeros((m + 1) * classes)
            for penalty in LOGISTIC:
                # A tighter tolerance doubles the time and moves validation accuracy by ±0.2 points, either way.
                options = {"ftol": 1e-5, "maxiter": 200}
                flat = minimize(objective, flat, (penalty,), "L-BFGS-B", jac=True, options=options).x
                kernel, bias = flat.reshape(m + 1, classes)[:m] / scale, flat.reshape(m + 1, classes)[m]
                yield kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)

        fitted[m] = _best(solutions(), validation[:, :m], validation_labels)
    return fitted


@jax.jit
@jax.value_and_grad
def _logistic(weights: jax.Array, penalty: float, x_nxm: jax.Array, labels_n: jax.Array) -> jax.Array:
    """Objective of `logistic`; `weights` [m + 1, C], the bias last."""
    logits = x_nxm @ weights[:-1] + weights[-1]
    picked = jnp.take_along_axis(logits, labels_n[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked) + 0.5 * penalty * jnp.sum(weights[:-1] ** 2)


def _best(candidates: Iterable[Classifier], z: np.ndarray, labels: np.ndarray) -> Classifier:
    """The first of the candidates with the highest accuracy."""
    return max(candidates, key=lambda c: np.count_nonzero(np.argmax(z @ c[0] + c[1], axis=1) == labels))
