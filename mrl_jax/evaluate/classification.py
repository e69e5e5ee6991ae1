"""How well the classifier on a prefix does: top-1 and top-5 accuracy, its predictions and its confidence."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROWS, ELEMENTS = 8192, 1 << 25  # embeddings at a time, and most logits: memory does not grow with n

# For each prefix length m a linear classifier: kernel [m, C] and bias [C].
Classifiers = Mapping[int, tuple[Any, Any]]


class Answers(NamedTuple):
    """What a classifier said about n examples."""

    prediction: np.ndarray  # int32 [n]
    confidence: np.ndarray  # float32 [n], the probability of the predicted class
    top1: np.ndarray  # bool [n]
    top5: np.ndarray  # bool [n]; with five classes or fewer always true


@jax.jit
def _answers(logits_BxC: jax.Array, labels_B: jax.Array) -> tuple[jax.Array, ...]:
    true = jnp.take_along_axis(logits_BxC, labels_B[:, None], axis=-1)
    # The rank of the true class, ties to its disadvantage except for the class of lowest index, as argmax has it.
    earlier = jnp.arange(logits_BxC.shape[-1]) < labels_B[:, None]
    rank_B = jnp.sum((logits_BxC > true) | ((logits_BxC == true) & earlier), axis=-1)
    confidence_B = jnp.max(jax.nn.softmax(logits_BxC, axis=-1), axis=-1)
    return jnp.argmax(logits_BxC, axis=-1), confidence_B, rank_B < 1, rank_B < 5


def _logits(z: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> jax.Array:
    return jnp.matmul(jnp.asarray(z), kernel, precision="highest") + bias


def answers(logits: jax.Array, labels: np.ndarray) -> Answers:
    """`logits` [n, C] against `labels` [n]."""
    return Answers(*(np.asarray(x) for x in _answers(logits, jnp.asarray(labels))))


def rows_at_once(classes: int) -> int:
    """How many embeddings to classify together."""
    return min(ROWS, max(1, ELEMENTS // classes))


def at_each_dim(z: np.ndarray, labels: np.ndarray, classifiers: Classifiers) -> dict[int, Answers]:
    """What each classifier says about the embeddings `z` [n, D], read at its own prefix."""
    said = {}
    for dim, (kernel, bias) in classifiers.items():
        rows = rows_at_once(len(bias))
        parts = [
            answers(_logits(z[start : start + rows, :dim], kernel, bias), labels[start : start + rows])
            for start in range(0, max(1, len(z)), rows)
        ]
        said[dim] = Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return said
