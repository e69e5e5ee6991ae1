"""Apply linear classifiers to prefixes: predictions, confidence, top-1 and top-5 accuracy."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_ROWS, MAX_LOGIT_ELEMENTS = 8192, 1 << 25  # per batch of embeddings, so that memory does not grow with n

# By prefix length m the linear classifier: kernel [m, C] and bias [C].
Classifiers = Mapping[int, tuple[Any, Any]]


class Answers(NamedTuple):
    """The answers of a classifier to n examples."""

    prediction: np.ndarray  # int32 [n]
    confidence: np.ndarray  # float32 [n], the probability of the predicted class
    top1: np.ndarray  # bool [n]
    top5: np.ndarray  # bool [n]; always true for five classes or fewer


@jax.jit
def _answers(logits_BxC: jax.Array, labels_B: jax.Array) -> tuple[jax.Array, ...]:
    true = jnp.take_along_axis(logits_BxC, labels_B[:, None], axis=-1)
    # The rank of the true class; of equal logits the lower class comes first, as for argmax.
    earlier = jnp.arange(logits_BxC.shape[-1]) < labels_B[:, None]
    rank_B = jnp.sum((logits_BxC > true) | ((logits_BxC == true) & earlier), axis=-1)
    confidence_B = jnp.max(jax.nn.softmax(logits_BxC, axis=-1), axis=-1)
    return jnp.argmax(logits_BxC, axis=-1), confidence_B, rank_B < 1, rank_B < 5


def _logits(z: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> jax.Array:
    return jnp.matmul(jnp.asarray(z), kernel, precision="highest") + bias


def answers(logits: jax.Array, labels: np.ndarray) -> Answers:
    """Compare `logits` [n, C] with `labels` int [n]."""
    return Answers(*(np.asarray(x) for x in _answers(logits, jnp.asarray(labels))))


def rows_at_once(classes: int) -> int:
    """How many embeddings to classify per batch."""
    return min(MAX_ROWS, max(1, MAX_LOGIT_ELEMENTS // classes))


def at_each_dim(z: np.ndarray, labels: np.ndarray, classifiers: Classifiers) -> dict[int, Answers]:
    """The answers of each classifier to the embeddings `z` [n, D], each reading its own prefix; by dim."""
    by_dim = {}
    for dim, (kernel, bias) in classifiers.items():
        rows = rows_at_once(len(bias))
        parts = [
            answers(_logits(z[start : start + rows, :dim], kernel, bias), labels[start : start + rows])
            for start in range(0, max(1, len(z)), rows)
        ]
        by_dim[dim] = Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return by_dim
