"""How well the classifier on a prefix does: top-1 and top-5 accuracy, its predictions and its confidence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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


def answers(logits: jax.Array, labels: np.ndarray) -> Answers:
    """`logits` [n, C] against `labels` [n]."""
    return Answers(*(np.asarray(x) for x in _answers(logits, jnp.asarray(labels))))
