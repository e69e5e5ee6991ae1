"""Nested cross-entropy: pure functions of arrays that return a scalar and the loss of each granularity.

    L(z, y) = Σ_k c_k · CE(logits_k, y)                                            (MRL paper, eq. 1)

The weights `c` are an argument, not a compiled constant: all ones train a Matryoshka embedding, a one-hot row trains
the fixed-size model of that width, and both run through the same compiled step.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mrl_jax.rows import is_zero

MAX_LOG_VARIANCE = 10.0  # bound on |s_k|: the factors exp(−s_k) lie in 4.5e-5 … 2.2e4


def cross_entropy(logits_BxC: jax.Array, labels_B: jax.Array, label_smoothing: Any = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example; value and gradient are finite wherever the logits are.

    With `label_smoothing` s the target is (1 − s) · one_hot + s / C (Szegedy et al., 2016, arXiv:1512.00567).
    Uses a gather instead of multiplying by one-hot labels: no second `B × C` array.

    Args:
        logits_BxC: [B, C].
        labels_B: int [B], in 0 … C − 1.
        label_smoothing: s in [0, 1), a number or a scalar array.

    Returns:
        float32 [B].
    """
    logits_BxC = logits_BxC.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits_BxC, axis=-1)
    true_logit = jnp.take_along_axis(logits_BxC, labels_B[:, None], axis=-1)[:, 0]
    if is_zero(label_smoothing):
        return log_normalizer - true_logit
    losses_B: jax.Array = (
        log_normalizer - (1.0 - label_smoothing) * true_logit - label_smoothing * jnp.mean(logits_BxC, axis=-1)
    )
    return losses_B


def nested_cross_entropy(
    logits: Sequence[jax.Array] | jax.Array,
    labels: jax.Array,
    weights: jax.Array | Sequence[float],
    label_smoothing: Any = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over the batch of the cross-entropy at granularity k.

    Args:
        logits: K arrays [B, C] (or one [K, B, C]), one per granularity; from `nesting.nested_logits` for a tied head
            (MRL-E) or from K separate heads (MRL).
        labels: int [B], in 0 … C − 1; labels out of range are not detected and make the loss meaningless.
        weights: [K], the relative importance of each granularity. They are summed as given, not normalised.
        label_smoothing: in [0, 1).

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: the numbers of logits and weights differ.
    """
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != (len(logits),):
        raise ValueError(f"{len(logits)} granularities of logits need as many weights; got shape {weights.shape}")
    losses_K = jnp.stack([jnp.mean(cross_entropy(logits_BxC, labels, label_smoothing)) for logits_BxC in logits])
    return jnp.dot(weights, losses_K), losses_K


def nested_logit_distillation(
    logits: Sequence[jax.Array], weights: jax.Array | Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over the batch of KL(softmax(logits_K) ‖ softmax(logits_k)).

    The answers of the full width, without gradient, are the targets of the prefixes (Hinton, Vinyals and Dean, 2015,
    arXiv:1503.02531, at temperature 1). The loss of the full width itself is 0.

    Args:
        logits: K arrays [B, C], one per granularity, the full width last.
        weights: [K], summed as given.

    Returns:
        The scalar loss, and the unweighted loss of each granularity in nats, float32 [K].
    """
    *students, teacher = (jax.nn.log_softmax(logits_BxC.astype(jnp.float32)) for logits_BxC in logits)
    teacher = jax.lax.stop_gradient(teacher)
    divergences = [jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)) for student in students]
    losses_K = jnp.stack([*divergences, jnp.zeros(())])
    return jnp.dot(jnp.asarray(weights, jnp.float32), losses_K), losses_K


def uncertainty_weighted(losses_K: jax.Array, log_variances_K: jax.Array, weights_K: jax.Array) -> jax.Array:
    """Σ_k c_k · (exp(−s_k) · L_k + s_k / 2): the importance of each granularity learned with the model.

    s_k = log σ_k² is a parameter, 0 at the start (Kendall, Gal and Cipolla, 2018, arXiv:1705.07115, for
    classification). At the minimum over s_k the gradient of L_k is divided by 2·L_k, so granularities with a small
    loss gain weight. s_k is clipped to ±`MAX_LOG_VARIANCE`, without gradient beyond: as a loss reaches 0, its s_k would
    go to −∞ and exp(−s_k) would overflow.

    Args:
        losses_K: L_k, float32 [K].
        log_variances_K: s_k, float32 [K].
        weights_K: c_k, float32 [K].

    Returns:
        The scalar loss.
    """
    log_variances_K = jnp.clip(log_variances_K, -MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
    return jnp.dot(weights_K, jnp.exp(-log_variances_K) * losses_K + log_variances_K / 2)


def sample_granularities(key: jax.Array, granularities: int, count: int) -> jax.Array:
    """Draw a random subset of the granularities, as factors for their loss weights.

    Args:
        key: of the random draw.
        granularities: K.
        count: size of the subset, 1…K.

    Returns:
        float32 [K]: K / count for the granularities drawn, 0 for the others, so that expected weights are unchanged.
    """
    ranks = jnp.argsort(jnp.argsort(jax.random.uniform(key, (granularities,))))
    return jnp.where(ranks < count, granularities / count, 0.0)
