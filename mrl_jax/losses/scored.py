"""Nested losses of scored pairs, and of similarities that a teacher gives: the full width, or another model.

    CoSENT        log(1 + Σ_{s_i > s_j} exp((cos_k,j − cos_k,i) / τ))    Su, 2022; Huang et al., 2024, IEEE TASLP
    regression    (cos_k − s)²                                        Reimers and Gurevych, 2019, arXiv:1908.10084
    distillation  the similarities at full width, or those of another model, are the targets of the prefixes: all of
                  them, or those of the nearest, which make a prefix a shortlist

and Σ_k c_k · L_k over the granularities, with cos_k the cosine of two renormalised prefixes (see `cosines`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrl_jax.losses.cosines import MASKED, check_pairs, check_temperature, cosine_matrices, prefix_cosines


def nested_cosent(
    a_BxD: jax.Array,
    b_BxD: jax.Array,
    scores_B: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · log(1 + Σ_{i, j: scores_i > scores_j} exp((cos_j − cos_i) / τ)): pairs ordered by score.

    CoSENTLoss of sentence-transformers at scale 1/τ. With pairs sorted by score, the inner sum over i is a cumulative
    sum: O(B·D + K·B·log B), no `B × B` array. Pairs of equal scores are not compared.

    Args:
        a_BxD, b_BxD: [B, D], the two embeddings of each pair.
        scores_B: [B]; only their order matters.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not match, invalid dims, or a temperature that is not positive.
    """
    a_BxD, b_BxD, dims, weights = check_pairs(a_BxD, b_BxD, dims, weights)
    check_temperature(temperature)
    scores_B = _check_scores(scores_B, len(a_BxD))
    order = jnp.argsort(scores_B)
    logits_KxB = prefix_cosines(a_BxD, b_BxD, dims)[:, order] / temperature
    scores_B = scores_B[order]
    # The first pair with a higher score, B if there is none.
    higher = jnp.searchsorted(scores_B, scores_B, side="right")
    log_sums_from = jax.lax.cumlogsumexp(-logits_KxB, axis=1, reverse=True)
    exists = higher < len(scores_B)
    of_higher = jnp.where(exists, log_sums_from[:, jnp.minimum(higher, len(scores_B) - 1)], MASKED)
    losses_K = jax.nn.logsumexp(jnp.pad(logits_KxB + of_higher, ((0, 0), (1, 0))), axis=1)
    return jnp.dot(weights, losses_K), losses_K


def nested_cosine_regression(
    a_BxD: jax.Array,
    b_BxD: jax.Array,
    scores_B: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over pairs of (cos_k − score)²: CosineSimilarityLoss of sentence-transformers.

    Args:
        a_BxD, b_BxD: [B, D], the two embeddings of each pair.
        scores_B: [B], in −1…1.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not match or invalid dims.
    """
    a_BxD, b_BxD, dims, weights = check_pairs(a_BxD, b_BxD, dims, weights)
    errors_KxB = prefix_cosines(a_BxD, b_BxD, dims) - _check_scores(scores_B, len(a_BxD))
    losses_K = jnp.mean(errors_KxB**2, axis=1)
    return jnp.dot(weights, losses_K), losses_K


def _check_scores(scores_B: jax.Array, pairs: int) -> jax.Array:
    scores_B = jnp.asarray(scores_B, jnp.float32)
    if scores_B.shape != (pairs,):
        raise ValueError(f"{pairs} pairs need as many scores; got shape {scores_B.shape}")
    return scores_B


def nested_distillation(
    queries_BxD: jax.Array,
    documents_NxD: jax.Array | None,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
    targets_BxN: jax.Array | None = None,
    neighbours: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over queries of KL(softmax(cos_D / τ) ‖ softmax(cos_k / τ)), the softmax over documents.

    The similarities at full width, without gradient, are the targets of the prefixes (Hinton, Vinyals and Dean, 2015,
    arXiv:1503.02531). The loss of the full width itself is 0. With `targets_BxN`, the cosines of another model, these
    take the place of cos_D, and the full width learns too.

    Args:
        queries_BxD, documents_NxD: [B, D] and [N, D]; without documents each query is compared with the other queries.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array.
        targets_BxN: [B, N], the teacher's cosines; None: those of the full width.
        neighbours: the target is spread over so many documents only, those nearest to the query by the teacher (and
            those that are as near as the last of them): a prefix that is to be a shortlist has to keep these, and
            nothing else. None: all.

    Returns:
        The scalar loss, and the unweighted loss of each granularity in nats, float32 [K].

    Raises:
        ValueError: on shapes that do not match, invalid dims, a temperature that is not positive, or `neighbours` < 1.
    """
    compared = queries_BxD if documents_NxD is None else documents_NxD
    queries_BxD, compared, dims, weights = check_pairs(queries_BxD, compared, dims, weights, paired=False)
    check_temperature(temperature)
    if neighbours is not None and neighbours < 1:
        raise ValueError(f"neighbours={neighbours} must be at least 1")
    logits = [cosines_BxN / temperature for cosines_BxN in cosine_matrices(queries_BxD, compared, dims)]
    if targets_BxN is not None:
        logits.append(_check_targets(targets_BxN, logits[0].shape) / temperature)
    if documents_NxD is None:
        itself_BxB = jnp.eye(len(queries_BxD), dtype=bool)
        logits = [jnp.where(itself_BxB, MASKED, logits_BxB) for logits_BxB in logits]
    *students, teacher = logits
    teacher = jax.lax.stop_gradient(teacher)
    if neighbours is not None and neighbours < teacher.shape[1]:
        # The minimum, not the last: of a top-k that is sliced, XLA on a CPU sorts all the numbers.
        furthest = jnp.min(jax.lax.top_k(teacher, neighbours)[0], axis=1, keepdims=True)
        teacher = jnp.where(teacher >= furthest, teacher, MASKED)
    *students, teacher = map(jax.nn.log_softmax, (*students, teacher))
    divergences = [jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1)) for student in students]
    losses_K = jnp.stack([*divergences, *([jnp.zeros(())] if targets_BxN is None else [])])
    return jnp.dot(weights, losses_K), losses_K


def nested_similarity_regression(
    queries_BxD: jax.Array,
    documents_NxD: jax.Array,
    targets_BxN: jax.Array,
    dims: Sequence[int],
    weights: jax.Array | Sequence[float],
    temperature: jax.Array | float = 0.05,
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over queries and documents of ((cos_k − target) / τ)²: a teacher's similarities.

    Unlike rankings within the row of a query, similarities are taught on one scale for all pairs, as scored pairs need
    it; dividing by τ gives the loss the size of CoSENT's at the same τ.

    Args:
        queries_BxD, documents_NxD: [B, D] and [N, D].
        targets_BxN: [B, N], the teacher's cosines.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.
        temperature: τ > 0, a number or a scalar array.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K].

    Raises:
        ValueError: on shapes that do not match, invalid dims, or a temperature that is not positive.
    """
    queries_BxD, documents_NxD, dims, weights = check_pairs(queries_BxD, documents_NxD, dims, weights, paired=False)
    check_temperature(temperature)
    targets_BxN = _check_targets(targets_BxN, (len(queries_BxD), len(documents_NxD)))
    matrices = cosine_matrices(queries_BxD, documents_NxD, dims)
    losses_K = jnp.stack([jnp.mean(((cosines_BxN - targets_BxN) / temperature) ** 2) for cosines_BxN in matrices])
    return jnp.dot(weights, losses_K), losses_K


def _check_targets(targets_BxN: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    targets_BxN = jnp.asarray(targets_BxN, jnp.float32)
    if targets_BxN.shape != shape:
        raise ValueError(f"{shape[0]} queries and {shape[1]} documents need as many targets; got {targets_BxN.shape}")
    return targets_BxN


def nested_pair_distillation(
    a_BxD: jax.Array, b_BxD: jax.Array, dims: Sequence[int], weights: jax.Array | Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Σ_k weights[k] · mean over pairs of (cos_k − cos_D)², the cosine of the full width without gradient.

    The counterpart of `nested_distillation` for data in which each embedding has a single partner.

    Args:
        a_BxD, b_BxD: [B, D], the two embeddings of each pair.
        dims: nesting dims, ascending, the last D.
        weights: [K], summed as given.

    Returns:
        The scalar loss, and the unweighted loss of each granularity, float32 [K], 0 for the full width.

    Raises:
        ValueError: on shapes that do not match or invalid dims.
    """
    a_BxD, b_BxD, dims, weights = check_pairs(a_BxD, b_BxD, dims, weights)
    cosines_KxB = prefix_cosines(a_BxD, b_BxD, dims)
    errors = jnp.mean((cosines_KxB[:-1] - jax.lax.stop_gradient(cosines_KxB[-1])) ** 2, axis=1)
    losses_K = jnp.pad(errors, (0, 1))
    return jnp.dot(weights, losses_K), losses_K
