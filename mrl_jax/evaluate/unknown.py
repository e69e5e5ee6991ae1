"""Inputs of no known class: how well a score of confidence tells them from test examples, as area under the ROC curve.

maximum softmax probability   of the arm's own classifier (Hendrycks and Gimpel 2017, arXiv:1610.02136)
k-th nearest neighbour        cosine of the k-th nearest training example (Sun et al. 2022, arXiv:2204.06507)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from scipy.stats import rankdata

from mrl_jax.evaluate.neighbours import neighbours
from mrl_jax.nesting import truncate

K_NEIGHBOURS = 10
PAIRING_SEED = 0x5EED


def max_softmax(z: np.ndarray, kernel: Any, bias: Any) -> np.ndarray:
    """log(p / (1 − p)) of the most probable class, float64 [n]: in the order of p, which would be rounded to 1."""
    logits = z[:, : len(kernel)].astype(np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    top = logits.argmax(axis=1)[:, None]
    others = logits.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    best: np.ndarray = np.take_along_axis(logits, top, axis=1)[:, 0] - logsumexp(others, axis=1)
    return best


def nearest_cosines(
    z: Mapping[str, np.ndarray], database: np.ndarray, dims: Sequence[int]
) -> dict[int, dict[str, np.ndarray]]:
    """The cosine of each example's k-th nearest neighbour at each of `dims`, float64 [n] by the names of `z`."""
    k = min(K_NEIGHBOURS, len(database))
    by_dim: dict[int, dict[str, np.ndarray]] = {dim: {} for dim in dims}
    for name, queries in z.items():
        for dim, indices in zip(dims, neighbours(queries, database, dims, k), strict=True):
            unit, other = (
                np.asarray(truncate(jnp.asarray(x), dim), np.float64) for x in (queries, database[indices[:, -1]])
            )
            by_dim[dim][name] = np.sum(unit * other, axis=1)
    return by_dim


def auroc(known: np.ndarray, unknown: np.ndarray) -> tuple[float, np.ndarray]:
    """The probability that a known example has a higher score than an unknown one, ties counting half.

    Args:
        known: scores [n].
        unknown: scores [m].

    Returns:
        The area, and outcomes float32 [n] with the area as their mean, whose differences between two scores have the
        variance of DeLong et al. (1988): each known example's share of the unknown ones below it, and, drawn once and
        the same for every score, an unknown example's share of known ones above it, scaled to count m of them.
    """
    n, m = len(known), len(unknown)
    ranks = rankdata(np.concatenate([known, unknown]))
    below = (ranks[:n] - rankdata(known)) / m  # of each known example: the share of unknown ones below it
    above = 1 - (ranks[n:] - rankdata(unknown)) / n  # of each unknown example: the share of known ones above it
    area = float(below.mean())
    order = np.random.default_rng(PAIRING_SEED).permutation(m)
    paired = above[np.resize(order, n)]
    return area, (below + np.sqrt(n / m) * (paired - paired.mean())).astype(np.float32)
