"""Classifiers of a few examples per class on a frozen embedding: how well its classes are apart, and how compact.

    nearest mean   the class whose mean of n examples is nearest (prototypes of Snell et al. 2017, arXiv:1703.05175)
    logistic       minimises ½ ‖W‖² + Σ cross-entropy: scikit-learn's default, as no validation split tunes a penalty

Both read prefixes of unit length, as `encode` returns them. What n examples are worth depends on which they are, so
accuracy is the mean over `DRAWS` draws; draws of few examples are parts of those of more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from mrl_jax.nesting import truncate

DRAWS = 20
MAX_ELEMENTS = 1 << 25  # of the examples, kernels or scores of several draws that are held at once
LBFGS_OPTIONS = {"ftol": 1e-7, "gtol": 1e-6, "maxiter": 200, "maxcor": 10}

Fitted = tuple[np.ndarray, np.ndarray]  # kernels float32 [R, m, C] and biases [R, C] of R draws


def draw(labels: np.ndarray, classes: int, examples: int, seed: int) -> np.ndarray:
    """Row numbers int [DRAWS, N] of `examples` per class, sorted by class; a class with fewer gives all it has."""
    counts = np.bincount(labels, minlength=classes)
    first = np.cumsum(counts) - counts
    rows = []
    for number in range(DRAWS):
        order = np.lexsort((np.random.default_rng((seed, number)).random(len(labels)), labels))
        rank = np.arange(len(labels)) - first[labels[order]]
        rows.append(order[rank < examples])
    return np.stack(rows)


def nearest_mean(z_RxNxm: np.ndarray, labels_N: np.ndarray, classes: int) -> Fitted:
    """argmin_c ‖z − μ_c‖² = argmax_c μ_c · z − ½ ‖μ_c‖²; a class without examples is never the answer."""
    counts = np.bincount(labels_N, minlength=classes)
    shares_CxN = (labels_N == np.arange(classes)[:, None]) / np.maximum(counts, 1)[:, None]
    means_RxCxm = shares_CxN.astype(np.float32) @ z_RxNxm
    biases_RxC = np.where(counts > 0, -0.5 * np.sum(means_RxCxm**2, axis=2), -np.inf)
    return means_RxCxm.swapaxes(1, 2), biases_RxC.astype(np.float32)


def logistic(z_RxNxm: np.ndarray, labels_N: np.ndarray, classes: int) -> Fitted:
    """The classifiers of all draws by one search: the sum of their objectives has their minima as its own."""
    draws, count, m = z_RxNxm.shape
    shape = (draws, m + 1, classes)
    z, labels = jnp.asarray(z_RxNxm), jnp.asarray(labels_N)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _objective(jnp.asarray(flat.reshape(shape), jnp.float32), z, labels)
        return float(value) / count, np.asarray(slope, np.float64).ravel() / count

    flat = minimize(objective, np.zeros(np.prod(shape)), method="L-BFGS-B", jac=True, options=LBFGS_OPTIONS).x
    weights = flat.reshape(shape).astype(np.float32)
    return weights[:, :-1], weights[:, -1]


@jax.jit
@jax.value_and_grad
def _objective(weights_RxMxC: jax.Array, z_RxNxm: jax.Array, labels_N: jax.Array) -> jax.Array:
    """Objective of `logistic`, the bias last in M = m + 1."""
    kernels, biases = weights_RxMxC[:, :-1], weights_RxMxC[:, -1:]
    logits = jnp.matmul(z_RxNxm, kernels, precision="highest") + biases
    picked = jnp.take_along_axis(logits, labels_N[None, :, None], axis=2)[..., 0]
    return jnp.sum(jax.nn.logsumexp(logits, axis=2) - picked) + 0.5 * jnp.sum(kernels**2)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, int], Fitted]] = {"": nearest_mean, "logistic_": logistic}


def share_right(z: np.ndarray, labels: np.ndarray, kernels: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """For each example of `z` [n, m] the number of classifiers that are right about it, float64 [n]."""
    rows = max(1, MAX_ELEMENTS // biases.size)
    parts = [np.zeros(0)]
    for start in range(0, len(z), rows):
        scores_RxBxC = z[start : start + rows] @ kernels + biases[:, None]
        parts.append((scores_RxBxC.argmax(axis=2) == labels[start : start + rows]).sum(axis=0))
    return np.concatenate(parts)


def outcomes(
    z: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    dims: Sequence[int],
    classes: int,
    examples: int,
    seed: int,
) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Score classifiers of `examples` training examples per class.

    Args:
        z: embeddings float32 [n, D] by split: train, validation, test.
        labels: classes int [n] by split.
        dims: prefix lengths.
        classes: C.
        examples: per class.
        seed: of the draws.

    Yields:
        (split, dim, method, share of the draws whose classifier is right about each example, float32 [n]).
    """
    drawn = draw(labels["train"], classes, examples, seed)
    labels_N = labels["train"][drawn[0]]
    for dim in dims:
        prefix: dict[str, Any] = {name: np.asarray(truncate(jnp.asarray(x), dim)) for name, x in z.items()}
        at_once = max(1, MAX_ELEMENTS // (dim * max(drawn.shape[1], classes)))
        for method, fit in METHODS.items():
            right = {split: np.zeros(len(labels[split])) for split in ("validation", "test")}
            for start in range(0, DRAWS, at_once):
                fitted = fit(prefix["train"][drawn[start : start + at_once]], labels_N, classes)
                for split, total in right.items():
                    total += share_right(prefix[split], labels[split], *fitted)
            for split, total in right.items():
                yield split, dim, method, (total / DRAWS).astype(np.float32)
