"""Score one trained member at every dim: embeddings in, per-example outcomes and their means out."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mrl_jax import heads, nesting
from mrl_jax.arms import Arm
from mrl_jax.evaluate import calibration, classification, neighbours

NEIGHBOURS = 10  # k of map@k and precision@k


class Score(NamedTuple):
    """One metric at one dim: its value, and the outcome of each example where the value is their mean."""

    dim: int
    metric: str
    value: float
    outcomes: np.ndarray | None  # float32 [n]


def dims_of(arm: Arm, dims: Sequence[int], interpolated: bool) -> tuple[int, ...]:
    """Where an arm is scored: a fixed-size arm at its own width, others at the nesting dims and between them."""
    if arm.width is not None:
        return (arm.width,)
    return tuple(sorted({*dims, *(nesting.interpolated(dims) if interpolated else ())}))


def linear(
    z: np.ndarray, labels: np.ndarray, head: heads.Head, arm: Arm, dims: Sequence[int], wanted: Sequence[int]
) -> Iterator[Score]:
    """`linear_top1`, `linear_top5` and `ece` of the arm's own heads on the embeddings `z` [n, D].

    The tied head of MRL-E answers at any dim; separate heads only at the nesting dims that the arm trained.
    """
    at = tuple(wanted) if arm.head == "tied" else tuple(dims)
    every = heads.logits(head, arm.head, jnp.asarray(z), at)
    trained = set(wanted) if arm.head == "tied" else set(arm.trained(dims)) & set(wanted)
    for dim, logits in zip(at, every, strict=True):
        if dim not in trained:
            continue
        answers = classification.answers(logits, labels)
        yield Score(dim, "linear_top1", float(answers.top1.mean()), answers.top1.astype(np.float32))
        yield Score(dim, "linear_top5", float(answers.top5.mean()), answers.top5.astype(np.float32))
        error = calibration.expected_calibration_error(answers.confidence, answers.top1)
        yield Score(dim, "ece", error, None)


def nearest(
    z: np.ndarray, labels: np.ndarray, database: np.ndarray, database_labels: np.ndarray, wanted: Sequence[int]
) -> Iterator[Score]:
    """`knn_top1`, `map@10` and `precision@10` with `database` [N, D] searched by cosine on each prefix."""
    k = min(NEIGHBOURS, len(database))
    for dim, indices in zip(wanted, neighbours.neighbours(z, database, wanted, k), strict=True):
        for metric, values in neighbours.outcomes(indices, labels, database_labels, NEIGHBOURS).items():
            yield Score(dim, metric, float(values.mean()), values)
