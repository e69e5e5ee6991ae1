"""Losses of pairs at every prefix against loops in float64, finite differences, and each other."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from mrl_jax.data.relevance import FurtherPositives
from mrl_jax.losses import (
    Guide,
    TextIds,
    cached_gradient,
    nested_cosent,
    nested_cosine_regression,
    nested_cosines,
    nested_distillation,
    nested_info_nce,
    nested_pair_distillation,
    nested_similarity_regression,
)

WIDTH = 10
DIMS = (1, 4, 7, 10)
WEIGHTS = np.array([0.5, 1.0, 0.0, 2.0])
TARGETS = np.random.default_rng(7).uniform(-1, 1, (6, 6)).astype(np.float32)  # the cosines of a teacher


# --- the formulas, one pair at a time, in float64 -----------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray, m: int) -> float:
    length = np.linalg.norm(a[:m]) * np.linalg.norm(b[:m])
    return float(a[:m] @ b[:m] / length) if length > 0 else 0.0


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + float(np.log(sum(np.exp(value - top) for value in values)))


def info_nce(queries: Any, documents: Any, m: int, temperature: float, symmetric: bool) -> float:
    batch = len(queries)
    logits = [[cosine(q, d, m) / temperature for d in documents] for q in queries]
    forward = [log_sum(logits[i]) - logits[i][i] for i in range(batch)]
    backward = [log_sum([logits[j][i] for j in range(batch)]) - logits[i][i] for i in range(batch)]
    return float(np.mean([forward, backward] if symmetric else forward))


def cosent(a: Any, b: Any, scores: Any, m: int, temperature: float) -> float:
    cosines = [cosine(x, y, m) for x, y in zip(a, b, strict=True)]
    pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if scores[i] > scores[j]]
    return log_sum([0.0, *((cosines[j] - cosines[i]) / temperature for i, j in pairs)])


def regression(a: Any, b: Any, scores: Any, m: int) -> float:
    return float(np.mean([(cosine(x, y, m) - s) ** 2 for x, y, s in zip(a, b, scores, strict=True)]))


def distillation(
    queries: Any,
    documents: Any,
    m: int,
    temperature: float,
    targets: Any = None,
    neighbours: int | None = None,
    full: Any = None,
) -> float:
    """KL divergence of the prefix of m from the teacher; `documents` None: the other queries. `full`: both sides as the
    teacher sees them, where they are not the embeddings themselves. The full width is not taught by itself."""
    if targets is None and m == queries.shape[1]:
        return 0.0
    divergences = []
    for i, q in enumerate(queries):
        others = [j for j in range(len(queries)) if j != i] if documents is None else list(range(len(documents)))
        compared = queries if documents is None else documents
        whole_q, whole = (q, compared) if full is None else (full[0][i], full[0] if documents is None else full[1])
        student = [cosine(q, compared[j], m) / temperature for j in others]
        teacher = [cosine(whole_q, whole[j], len(whole_q)) / temperature for j in others]
        if targets is not None:
            teacher = list(np.float64(targets[i]) / temperature)
        furthest = sorted(teacher)[-min(neighbours or len(teacher), len(teacher))]
        nearest = [t for t in teacher if t >= furthest]
        divergences.append(
            sum(
                np.exp(t - log_sum(nearest)) * (t - log_sum(nearest) - s + log_sum(student))
                for t, s in zip(teacher, student, strict=True)
                if t >= furthest
            )
        )
    return float(np.mean(divergences))


def pair_distillation(a: Any, b: Any, m: int) -> float:
    return float(np.mean([(cosine(x, y, m) - cosine(x, y, a.shape[1])) ** 2 for x, y in zip(a, b, strict=True)]))


# --- embeddings to try --------------------------------------------------------------------------------------------


def vectors(seed: int, rows: int, width: int = WIDTH) -> np.ndarray:
    """Random rows among which some are zero, zero in their first half, equal, opposite, orthogonal and badly scaled."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, width)).astype(np.float32)
    for i, kind in enumerate(rng.integers(0, 10, rows)):
        match kind:
            case 0:
                z[i] = 0
            case 1:
                z[i, : width // 2] = 0
            case 2:
                z[i] = z[0]
            case 3:
                z[i] = -z[0]
            case 4:
                z[i] = np.eye(width)[i % width]
            case 5:
                z[i] *= 1e4 if i % 2 else 1e-4
    return z


def differences(function: Any, values: tuple[np.ndarray, ...], step: float = 1e-6) -> list[np.ndarray]:
    """Central differences of a function of float64 arrays, along every coordinate."""
    gradients = []
    for which, value in enumerate(values):
        gradient = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = [np.array(v, np.float64) for v in values]
                moved[which][index] += sign * step
                ends.append(function(*moved))
            gradient[index] = (ends[0] - ends[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def plain(seed: int, *rows: int) -> tuple[np.ndarray, ...]:
    """Random rows without special cases."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(n, WIDTH)).astype(np.float32) for n in rows)


SCORES = np.array([0.1, 0.9, 0.5, 0.5, -0.3, 0.9])  # with ties
LOSSES = {  # name → (ours, the formula at one width), both of two [6, D] arrays
    "info_nce": (
        lambda a, b, dims, w: nested_info_nce(a, b, dims, w, 0.2),
        lambda a, b, m: info_nce(a, b, m, 0.2, True),
    ),
    "info_nce_forward": (
        lambda a, b, dims, w: nested_info_nce(a, b, dims, w, 0.2, symmetric=False, streamed=True),
        lambda a, b, m: info_nce(a, b, m, 0.2, False),
    ),
    "cosent": (
        lambda a, b, dims, w: nested_cosent(a, b, SCORES, dims, w, 0.2),
        lambda a, b, m: cosent(a, b, SCORES, m, 0.2),
    ),
    "regression": (
        lambda a, b, dims, w: nested_cosine_regression(a, b, SCORES, dims, w),
        lambda a, b, m: regression(a, b, SCORES, m),
    ),
    "distillation": (
        lambda a, b, dims, w: nested_distillation(a, b, dims, w, 0.2),
        lambda a, b, m: distillation(a, b, m, 0.2),
    ),
    "shortlist": (
        lambda a, b, dims, w: nested_distillation(a, b, dims, w, 0.2, neighbours=2),
        lambda a, b, m: distillation(a, b, m, 0.2, neighbours=2),
    ),
    "shortlist_of_others": (
        lambda a, b, dims, w: nested_distillation(a, None, dims, w, 0.2, neighbours=3),
        lambda a, b, m: distillation(a, None, m, 0.2, neighbours=3),
    ),
    "others": (
        lambda a, b, dims, w: nested_distillation(a, None, dims, w, 0.2),
        lambda a, b, m: distillation(a, None, m, 0.2),
    ),
    "pair_distillation": (nested_pair_distillation, pair_distillation),
    "taught_rankings": (
        lambda a, b, dims, w: nested_distillation(a, b, dims, w, 0.2, TARGETS),
        lambda a, b, m: distillation(a, b, m, 0.2, TARGETS),
    ),
    "taught_similarities": (
        lambda a, b, dims, w: nested_similarity_regression(a, b, TARGETS, dims, w, 1.0),
        lambda a, b, m: np.mean(
            [(cosine(q, d, m) - float(TARGETS[i, j])) ** 2 for i, q in enumerate(a) for j, d in enumerate(b)]
        ),
    ),
}
TAUGHT_BY_ITSELF = ("distillation", "shortlist", "shortlist_of_others", "others", "pair_distillation")


@partial(jax.jit, static_argnames=("name", "dims"))
def evaluate(name: str, a: Any, b: Any, weights: Any, dims: tuple[int, ...] = DIMS) -> Any:
    """((loss, losses), gradients with respect to both arrays)."""
    ours = LOSSES[name][0]
    return jax.value_and_grad(lambda a, b: ours(a, b, dims, weights), argnums=(0, 1), has_aux=True)(a, b)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_each_loss_is_its_formula_at_every_prefix(name, seed):
    a, b = vectors(seed, 6), vectors(seed + 100, 6)
    (total, each), _ = evaluate(name, a, b, WEIGHTS)
    wanted = [LOSSES[name][1](a.astype(np.float64), b.astype(np.float64), m) for m in DIMS]
    np.testing.assert_allclose(each, wanted, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(total, WEIGHTS @ np.array(wanted), rtol=2e-5, atol=2e-6)
    assert total.dtype == each.dtype == jnp.float32


def test_info_nce_of_equal_embeddings_is_the_logarithm_of_the_candidates():
    z = jnp.ones((5, WIDTH))
    for streamed in (False, True):
        _, each = nested_info_nce(z, jnp.ones((9, WIDTH)), DIMS, WEIGHTS, streamed=streamed)
        np.testing.assert_allclose(each, (np.log(9) + np.log(5)) / 2, rtol=1e-5)


def test_cosines_are_those_of_the_renormalised_prefixes():
    a, b = vectors(0, 20), vectors(1, 20)
    wanted = [[cosine(x, y, m) for x, y in zip(np.float64(a), np.float64(b), strict=True)] for m in DIMS]
    np.testing.assert_allclose(nested_cosines(a, b, DIMS), wanted, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.01, 1e-3])
def test_cosent_survives_exponents_that_overflow(temperature):
    a = np.eye(WIDTH, dtype=np.float32)[:6]
    b = a * np.array([1, -1, 1, -1, 1, -1], np.float32)[:, None]  # cosines 1 and −1, in the wrong order throughout
    scores = jnp.arange(6.0) % 2
    step = jax.jit(jax.value_and_grad(lambda a: nested_cosent(a, b, scores, (WIDTH,), [1.0], temperature)[0]))
    value, gradient = step(a)
    np.testing.assert_allclose(value, 2 / temperature + np.log(9), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_cosent_of_equal_scores_is_zero_and_teaches_nothing():
    a, b = plain(0, 6, 6)
    step = jax.jit(jax.value_and_grad(lambda a: nested_cosent(a, b, jnp.ones(6), DIMS, WEIGHTS)[0]))
    value, gradient = step(a)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", TAUGHT_BY_ITSELF)
def test_the_full_width_teaches_and_does_not_learn(name):
    a, b = plain(0, 6, 6)
    (_, each), (gradient, _) = evaluate(name, a, b, np.ones(len(DIMS)))
    assert each[-1] == 0
    assert (each[:-1] > 0).all()
    assert not gradient[:, DIMS[-2] :].any()
    assert gradient[:, : DIMS[-2]].any()


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences_in_float64(name):
    formula = LOSSES[name][1]
    a, b = plain(3, 6, 6)
    _, got = evaluate(name, a, b, WEIGHTS)
    # The teacher has no gradient: its width is left out of what moves, and its cosines are those at the start.
    if name in TAUGHT_BY_ITSELF:
        got = [g[:, : DIMS[-2]] for g in got]
        at = (np.float64(a), np.float64(b))

        def exact(x: np.ndarray, y: np.ndarray) -> float:
            return sum(w * taught(name, x, y, m, *at) for w, m in zip(WEIGHTS[:-1], DIMS[:-1], strict=True))

        wanted = differences(exact, (a[:, : DIMS[-2]], b[:, : DIMS[-2]]))
    else:
        wanted = differences(lambda x, y: sum(w * formula(x, y, m) for w, m in zip(WEIGHTS, DIMS, strict=True)), (a, b))
    for ours_, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-4, atol=1e-6)


def taught(name: str, a: np.ndarray, b: np.ndarray, m: int, full_a: np.ndarray, full_b: np.ndarray) -> float:
    """The distillation losses with a teacher apart."""
    if name == "pair_distillation":
        return float(
            np.mean([(cosine(a[i], b[i], m) - cosine(full_a[i], full_b[i], WIDTH)) ** 2 for i in range(len(a))])
        )
    documents, neighbours = {
        "distillation": (b, None), "shortlist": (b, 2), "shortlist_of_others": (None, 3), "others": (None, None)
    }[name]  # fmt: skip
    return distillation(a, documents, m, 0.2, neighbours=neighbours, full=(full_a, full_b))


def closed_form(
    queries: Any,
    documents: Any,
    dims: Any,
    weights: Any,
    temperature: float,
    symmetric: bool,
    valid: Any = None,
    excluded: Any = None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], float, tuple[np.ndarray, np.ndarray]]:
    """InfoNCE in float64, a loop over prefixes: losses [K], gradients of both sides and of the temperature, and the
    scale Σ_k w_k / ‖z[:m_k]‖ of each row's gradient. Cells that are `excluded` [B, N] leave both softmaxes."""
    batch = len(queries)
    kept = np.arange(batch) if valid is None else np.flatnonzero(valid)
    sides = queries[kept].astype(np.float64), documents[np.r_[kept, batch : len(documents)]].astype(np.float64)
    all_in = np.zeros((batch, len(documents))) if excluded is None else np.where(excluded, -np.inf, 0.0)
    masked = all_in[np.ix_(kept, np.r_[kept, batch : len(documents)])]
    losses, d_temperature = [], 0.0
    gradients, scales = [np.zeros_like(z) for z in sides], [np.zeros((len(z), 1)) for z in sides]
    for weight, m in zip(weights, dims, strict=True):
        lengths = [np.linalg.norm(z[:, :m], axis=1, keepdims=True) for z in sides]
        inverses = [np.divide(1, x, out=np.zeros_like(x), where=x > 0) for x in lengths]
        units = [z[:, :m] * inverse for z, inverse in zip(sides, inverses, strict=True)]
        cosines = units[0] @ units[1].T
        share, eye = (0.5 if symmetric else 1.0) / len(kept), np.eye(*cosines.shape)
        of_rows = log_softmax(cosines / temperature + masked, axis=1)
        loss, slope = -share * np.sum(of_rows[eye > 0]), share * (np.exp(of_rows) - eye)
        if symmetric:
            of_columns = log_softmax((cosines / temperature + masked)[:, : len(kept)], axis=0)
            loss -= share * np.trace(of_columns)
            slope[:, : len(kept)] += share * (np.exp(of_columns) - np.eye(len(kept)))
        losses.append(loss)
        slope *= weight / temperature
        d_temperature -= np.sum(slope * cosines) / temperature
        for which, (mine, other) in enumerate((units, units[::-1])):
            turned, turned_cosines = (slope, cosines) if which == 0 else (slope.T, cosines.T)
            along = np.sum(turned * turned_cosines, axis=1, keepdims=True)
            gradients[which][:, :m] += (turned @ other - along * mine) * inverses[which]
            scales[which] += weight * inverses[which]
    whole = np.zeros(queries.shape), np.zeros(documents.shape)
    whole_scales = np.zeros((batch, 1)), np.zeros((len(documents), 1))
    for target, source in zip((whole, whole_scales), (gradients, scales), strict=True):
        target[0][kept], target[1][np.r_[kept, batch : len(documents)]] = source
    return np.array(losses), whole, d_temperature, whole_scales


def test_the_closed_form_of_the_gradient_is_right():
    q, d = plain(5, 5, 8)
    for symmetric in (False, True):

        def exact(q: np.ndarray, d: np.ndarray, symmetric: bool = symmetric) -> float:
            return sum(w * info_nce(q, d, m, 0.3, symmetric) for w, m in zip(WEIGHTS, DIMS, strict=True))

        losses, gradients, slope, _ = closed_form(q, d, DIMS, WEIGHTS, 0.3, symmetric)
        np.testing.assert_allclose(WEIGHTS @ losses, exact(np.float64(q), np.float64(d)))
        for ours, theirs in zip(gradients, differences(exact, (q, d)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)
        ends = [closed_form(q, d, DIMS, WEIGHTS, 0.3 + step, symmetric)[0] @ WEIGHTS for step in (1e-6, -1e-6)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


@partial(jax.jit, static_argnames=("dims", "symmetric", "streamed", "temperature"))
def value_and_gradients(q, d, weights, learned, valid, dims, symmetric, streamed, temperature, ids=None, guide=None):
    """Losses, and gradients with respect to queries, documents, weights and the temperature, where it is learned."""

    def ours(q, d, weights, learned):
        tau = learned if temperature is None else temperature
        return nested_info_nce(q, d, dims, weights, tau, symmetric, streamed, valid, ids, guide)

    return jax.value_and_grad(ours, argnums=(0, 1, 2, 3), has_aux=True)(q, d, weights, learned)


def agrees(
    q, d, dims, weights, temperature, symmetric, streamed, learned, valid=None, ids=None, excluded=None, guide=None
):
    losses, wanted, slope, scales = closed_form(q, d, dims, weights, temperature, symmetric, valid, excluded)
    fixed = None if learned else temperature
    (total, each), got = value_and_gradients(
        q, d, weights, jnp.float32(temperature), valid, tuple(dims), symmetric, streamed, fixed, ids, guide
    )
    np.testing.assert_allclose(each, losses, rtol=2e-5, atol=1e-6 / temperature)
    np.testing.assert_allclose(total, weights @ losses, rtol=2e-5, atol=1e-5 / temperature)
    np.testing.assert_allclose(got[2], losses, rtol=2e-5, atol=1e-6 / temperature)
    # A probability is off by what its logit and the normaliser are, half a float32 step of 1/τ each, and a gradient by
    # that, times 1/τ, times 1/‖z‖.
    tolerance = 1e-6 / temperature + 2**-23 / temperature**2
    for ours, theirs, scale in zip(got[:2], wanted, scales, strict=True):
        assert (np.abs(ours - theirs) <= tolerance * scale).all()
    if learned:
        np.testing.assert_allclose(got[3], slope, rtol=1e-4, atol=tolerance * np.sum(weights) / temperature)


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """Tiles of 16 rows, so that small batches have several, the last of them padded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mrl_jax.losses.row_tiles.TILE_ROWS", 16)
        yield


@pytest.mark.slow
@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    batch=st.sampled_from([1, 5, 40]),
    negatives=st.sampled_from([0, 3]),
    dims=st.sampled_from([(10,), (1, 2, 9, 10)]),
    temperature=st.sampled_from([1.0, 0.05, 0.025, 0.02, 0.01]),
    symmetric=st.booleans(),
    learned=st.booleans(),
)
def test_streamed_and_direct_agree_with_the_closed_form(seed, batch, negatives, dims, temperature, symmetric, learned):
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(dims))
    for draw in range(3):  # a new shape is compiled, another draw is not
        q, d = vectors(seed + draw, batch), vectors(seed + draw + 100, batch + negatives)
        for streamed in (False, True):
            agrees(q, d, dims, weights, temperature, symmetric, streamed, learned)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("temperature", "learned"), [(0.025, False), (0.01, False), (0.01, True)])
@pytest.mark.slow
def test_probabilities_that_vanish_in_float32_are_no_trouble(streamed, temperature, learned):
    """Opposite positives among equal negatives: exp(−2/τ) is 1e-35 at 0.025 and 0 in float32 at 0.01."""
    eye = np.eye(WIDTH, dtype=np.float32)
    q = np.concatenate([eye, eye, eye])
    d = np.concatenate([-eye, eye, eye[::-1]])
    agrees(q, d, DIMS, WEIGHTS + 0.1, temperature, True, streamed, learned)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("temperature", [0.05, pytest.param(0.01, marks=pytest.mark.slow)])
def test_padding_is_neither_query_nor_candidate(streamed, temperature):
    q, d = vectors(0, 40), vectors(1, 45)
    valid = np.arange(40) % 3 > 0
    q[~valid], d[:40][~valid] = q[1], q[1]  # would be the best candidates of query 1
    agrees(q, d, DIMS, WEIGHTS + 0.1, temperature, True, streamed, False, valid)
    total, each = nested_info_nce(q, d, DIMS, WEIGHTS, temperature, streamed=streamed, valid=jnp.zeros(40, bool))
    assert total == 0
    assert not each.any()


def excluded_cells(pairs: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Cell by cell what is neither a negative nor the own positive, of a batch [B, c] drawn from pairs [n, c]."""
    known = {(int(anchor), int(positive)) for anchor, positive in pairs[:, :2]}
    documents = batch[:, 1:].T.ravel()
    cells = np.zeros((len(batch), len(documents)), bool)
    for i, query in enumerate(batch[:, 0]):
        for j, document in enumerate(documents):
            cells[i, j] = i != j and (document == query or (int(query), int(document)) in known)
    return cells


FORMS = [(False, 0.05), (True, 0.05), (True, 0.01)]  # streamed, temperature: every way to compute the normalisers


@pytest.mark.parametrize(("streamed", "temperature"), FORMS)
@pytest.mark.parametrize(("columns", "symmetric"), [(2, False), (3, True)])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), texts=st.sampled_from([4, 12, 60]))
def test_known_positives_equal_texts_and_the_querys_own_are_no_negatives(
    seed, texts, streamed, temperature, columns, symmetric
):
    """Of data with any relation between few texts; rows repeat, and a batch does not hold every row of the data."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, texts, (30, columns)).astype(np.int32)
    batch, valid = pairs[rng.integers(0, 30, 24)], np.arange(24) % 5 < 4 + seed % 2
    label = FurtherPositives(pairs).labels([batch])[0]
    label = np.pad(label, ((0, 0), (0, columns + 16 - label.shape[1])), constant_values=-1)  # one shape to compile
    ids = TextIds(label[:, 0], label[:, 1:columns].T.ravel(), label[:, columns:])
    z = rng.normal(size=(2, texts, WIDTH)).astype(np.float32)  # an encoder with dropout: two views of a text
    q, d = z[0][batch[:, 0]], z[1][batch[:, 1:].T.ravel()]
    excluded = excluded_cells(pairs, batch)
    agrees(q, d, DIMS, WEIGHTS + 0.1, temperature, symmetric, streamed, False, valid, ids, excluded)


def guided_cells(queries: np.ndarray, documents: np.ndarray, margin: float) -> np.ndarray:
    """Cell by cell what a guide finds nearer than the positive less the margin, of vectors of unit length."""
    cosines = [[cosine(q, d, len(q)) for d in documents] for q in queries.astype(np.float64)]
    cells = np.zeros((len(queries), len(documents)), bool)
    for i, row in enumerate(cosines):
        for j, similarity in enumerate(row):
            cells[i, j] = i != j and similarity > row[i] - margin - 1e-6
    return cells


@pytest.mark.parametrize(
    ("streamed", "temperature", "symmetric", "numbered"),
    [(True, 0.05, False, False), *((*form, True, True) for form in FORMS)],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), margin=st.sampled_from([0.0, 0.3, -0.2]))
def test_what_a_guide_finds_nearer_than_the_positive_is_no_negative(
    seed, margin, streamed, temperature, symmetric, numbered
):
    """Alone and beside the known positives, in both directions; a copy of the positive is one too."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, 40, (24, 3)).astype(np.int32)
    seen = rng.normal(size=(40, 5)).astype(np.float32)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    of_queries, of_documents = seen[texts[:, 0]], seen[texts[:, 1:].T.ravel()]
    valid = np.arange(24) % 5 < 4
    excluded = guided_cells(of_queries, of_documents, margin)
    ids = None
    if numbered:
        excluded |= excluded_cells(texts, texts)
        ids = TextIds(texts[:, 0], texts[:, 1:].T.ravel(), FurtherPositives(texts).labels([texts])[0][:, 3:])
        ids = ids._replace(known=np.pad(ids.known, ((0, 0), (0, 16 - ids.known.shape[1])), constant_values=-1))
    q, d = vectors(seed, 24), vectors(seed + 1, 48)
    guide = Guide(of_queries, of_documents, jnp.float32(margin))
    agrees(q, d, DIMS, WEIGHTS + 0.1, temperature, symmetric, streamed, False, valid, ids, excluded, guide)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_guided_loss_is_that_of_gist(streamed):
    """GISTEmbedLoss of sentence-transformers 6.2.0 with hard negatives, of prefixes of 4 and 10 dims, without its cells
    of two queries or two documents, which this loss does not have."""
    expected = {0.0: [14.509444, 8.445740], 0.1: [14.363922, 7.688187]}
    rng = np.random.default_rng(11)
    sides = [rng.normal(size=(12, 10)).astype(np.float32) for _ in range(6)]
    q, d, hard, *seen = sides
    seen = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in seen]
    for margin, losses in expected.items():
        guide = Guide(seen[0], np.concatenate(seen[1:]), margin)
        _, each = nested_info_nce(
            q, np.concatenate([d, hard]), (4, 10), [1.0, 1.0], 0.05, False, streamed, guide=guide
        )  # fmt: skip
        np.testing.assert_allclose(each, losses, rtol=2e-6)


def test_five_answers_of_a_hundred_questions_are_no_negatives_of_each_other():
    """All ways to compute the loss of a batch of them against one loop: direct, by tiles, in parts and of several
    members together (over devices: below); the same cells leave the softmax of a question and that of an answer."""
    rng = np.random.default_rng(0)
    batch = np.stack([np.arange(100), 100 + rng.permutation(100) % 5], axis=1).astype(np.int32)
    label = FurtherPositives(batch).labels([batch])[0]
    ids = TextIds(label[:, 0], label[:, 1], label[:, 2:])
    excluded = excluded_cells(batch, batch)
    assert (excluded == excluded.T).all()
    assert excluded.sum() == 5 * 20 * 19
    q, d = plain(1, 100, 100)
    for streamed, temperature in FORMS:
        agrees(q, d, DIMS, WEIGHTS + 0.1, temperature, True, streamed, False, None, ids, excluded)
    losses, (wanted_q, wanted_d), _, _ = closed_form(q, d, DIMS, WEIGHTS, 0.05, True, None, excluded)

    def loss(_, z):  # [parts, 2, rows of a part, D]: as `TrainStep` puts the parts together
        return nested_info_nce(z[:, 0].reshape(100, -1), z[:, 1].reshape(100, -1), DIMS, WEIGHTS, 0.05, ids=ids)

    parts = jnp.stack([q, d]).reshape(2, 4, 25, -1).swapaxes(0, 1)
    at = {"zero": jnp.zeros((100, WIDTH)), "other": jnp.zeros((100, WIDTH))}
    rows = jnp.arange(100).reshape(4, 25)

    def embed_part(params, part):
        z, places = part
        return z + jnp.stack([params["zero"][places], params["other"][places]])

    got, each = jax.jit(partial(cached_gradient, embed_part, loss))(at, (parts, rows))
    np.testing.assert_allclose(each, losses, rtol=2e-5)
    np.testing.assert_allclose(got["zero"], wanted_q, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got["other"], wanted_d, rtol=1e-3, atol=1e-5)
    together = jax.vmap(lambda scale: nested_info_nce(q * scale, d, DIMS, WEIGHTS, 0.05, streamed=True, ids=ids)[1])
    np.testing.assert_allclose(jax.jit(together)(jnp.array([1.0, 2.0])), [losses, losses], rtol=2e-5)


@pytest.mark.parametrize(("streamed", "temperature"), FORMS)
@pytest.mark.slow
def test_where_all_texts_differ_numbers_change_nothing(streamed, temperature):
    q, d = plain(0, 40, 45)
    ids = TextIds(np.arange(40), np.arange(100, 145), np.full((40, 4), -1))
    found = [
        value_and_gradients(q, d, WEIGHTS, jnp.float32(1), None, DIMS, True, streamed, temperature, given_ids)
        for given_ids in (None, ids)
    ]
    for without, with_ids in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(without, with_ids, rtol=1e-4, atol=1e-5)


def test_a_query_whose_every_candidate_is_known_has_no_loss():
    q, d = plain(0, 5, 8)
    ids = TextIds(jnp.zeros(5, int), jnp.ones(8, int))
    for streamed in (False, True):
        total, each = nested_info_nce(q, d, DIMS, WEIGHTS, streamed=streamed, ids=ids)
        np.testing.assert_allclose(each, 0, atol=1e-5)
        assert np.isfinite(total)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_vectors_have_no_gradient_and_spoil_none(name):
    a, b = plain(0, 6, 6)
    a[2], b[2], a[3, :5], b[4] = 0, 0, 0, 0
    _, got = evaluate(name, a, b, WEIGHTS)
    assert all(np.isfinite(gradient).all() for gradient in got)
    assert not got[0][2].any()
    assert not got[1][np.array([2, 4])].any()
    assert got[0][0].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", range(len(DIMS) - 1))
def test_one_hot_weights_train_a_fixed_size_model(name, k):
    """The loss is that of the truncated embeddings alone, and nothing beyond the prefix gets any gradient at all."""
    a, b = plain(k, 6, 6)
    m = DIMS[k]
    (value, _), got = evaluate(name, a, b, np.eye(len(DIMS))[k])
    assert all(not gradient[:, m:].any() for gradient in got)
    if name not in TAUGHT_BY_ITSELF:
        (wanted_value, _), wanted = evaluate(name, a[:, :m], b[:, :m], np.ones(1), (m,))
        np.testing.assert_allclose(value, wanted_value, rtol=1e-6)
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(mine[:, :m], theirs, rtol=1e-5, atol=1e-7)


def test_the_losses_of_the_granularities_carry_gradients_too():
    q, d = plain(0, 40, 40)
    of_losses = jax.jit(jax.grad(lambda q, k: nested_info_nce(q, d, DIMS, WEIGHTS, streamed=True)[1][k]))
    of_total = jax.jit(jax.grad(lambda q, weights: nested_info_nce(q, d, DIMS, weights, streamed=True)[0]))
    for k in range(len(DIMS)):
        by_losses = of_losses(q, k)
        by_weights = of_total(q, jnp.eye(len(DIMS))[k])
        np.testing.assert_allclose(by_losses, by_weights, atol=1e-7)


# --- how it is run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("streamed", "temperature"), [(False, 0.05), (True, 0.05), (True, 0.01)])
@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.slow
def test_members_of_a_population_are_those_alone(streamed, temperature, numbered):
    members = [plain(seed, 20, 24) for seed in range(2)]
    q, d = (jnp.stack(side) for side in zip(*members, strict=True))
    texts = np.random.default_rng(1).integers(0, 30, (2, 64))
    ids = TextIds(jnp.asarray(texts[:, :20]), jnp.asarray(texts[:, 20:44]), jnp.asarray(texts[:, 44:, None]))
    ids = ids if numbered else None
    weights = jnp.float32(np.random.default_rng(0).uniform(size=(2, len(DIMS))))

    @jax.jit
    def step(q, d, w, ids):
        return jax.value_and_grad(
            lambda q, d: nested_info_nce(q, d, DIMS, w, temperature, streamed=streamed, ids=ids)[0], argnums=(0, 1)
        )(q, d)

    together = jax.vmap(step)(q, d, weights, ids)
    for i in range(2):
        alone = step(q[i], d[i], weights[i], jax.tree.map(lambda x: x[i], ids))  # noqa: B023
        for mine, all_ in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(all_[i], mine, rtol=1e-4, atol=1e-6 / temperature)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.slow
def test_narrow_embeddings_are_accumulated_in_float32(streamed):
    q, d = (jnp.bfloat16(x) for x in plain(0, 40, 40))

    def loss(q, d):
        return nested_info_nce(q, d, DIMS, WEIGHTS, streamed=streamed)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, each), got = step(q, d)
    (_, wanted_each), wanted = step(q.astype(jnp.float32), d.astype(jnp.float32))
    assert each.dtype == jnp.float32
    np.testing.assert_allclose(each, wanted_each, rtol=1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs, rtol=2**-8)


def test_large_batches_are_streamed_and_small_ones_are_not():
    def loops(rows, dims):
        z = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32)
        return "scan" in str(jax.make_jaxpr(lambda q, d: nested_info_nce(q, d, dims, np.ones(len(dims))))(z, z))

    assert loops(4096, DIMS)
    assert not loops(32, DIMS)
    assert not loops(2048, (WIDTH,))


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mrl_jax.losses import Guide, TextIds, info_nce, row_tiles

row_tiles.TILE_ROWS = 16
rng = np.random.default_rng(0)
q, d = (jnp.float32(rng.normal(size=(64, 12))) for _ in range(2))
sharding = NamedSharding(Mesh(jax.devices(), ("data",)), P("data"))
for streamed in (False, True):
    for temperature in (0.05, 0.01):
        def loss(q, d, ids, guide):
            masks = {"ids": ids, "guide": guide and Guide(*guide)}
            return info_nce.nested_info_nce(q, d, (3, 12), jnp.ones(2), temperature, streamed=streamed, **masks)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        some = TextIds(*(jnp.asarray(rng.integers(0, 40, shape)) for shape in (64, 64, (64, 2))))
        answers = TextIds(jnp.arange(64), 100 + jnp.arange(64) % 5, jnp.full((64, 4), -1))
        for ids, guide in ((None, None), (some, None), (answers, (q, d))):
            alone, sharded = step(q, d, ids, guide), step(*jax.device_put((q, d, ids, guide), sharding))
            assert len(sharded[1][0].sharding.device_set) == 4
            for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(sharded), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.slow
def test_a_batch_sharded_over_devices_has_global_negatives():
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr


# --- gradient caching ---------------------------------------------------------------------------------------------


def encoder(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "first": jnp.float32(rng.normal(size=(6, 8))),
        "last": jnp.float32(rng.normal(size=(8, WIDTH))),
        "temperature": jnp.float32(0.1),
    }


def embed(params: Any, chunk: Any) -> Any:
    return {side: jnp.tanh(x @ params["first"]) @ params["last"] for side, x in chunk.items()}


@pytest.mark.parametrize("dims", [(WIDTH,), (4, WIDTH), DIMS], ids=str)
def test_the_cached_gradient_is_the_gradient(dims):
    params, weights = encoder(len(dims)), jnp.arange(1.0, len(dims) + 1)
    chunks = dict(zip("qd", jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 5, 6))), strict=True))

    def loss(params, embeddings):
        q, d = (embeddings[side].reshape(-1, WIDTH) for side in "qd")
        return nested_info_nce(q, d, dims, weights, params["temperature"])

    def whole(params):
        return loss(params, embed(params, chunks))

    wanted, wanted_losses = jax.jit(jax.grad(whole, has_aux=True))(params)
    got, losses = jax.jit(partial(cached_gradient, embed, loss))(params, chunks)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_fit_is_refused(name):
    a, b = plain(0, 6, 6)
    ours = LOSSES[name][0]
    with pytest.raises(ValueError, match="4 nesting dims need as many weights"):
        ours(a, b, DIMS, WEIGHTS[:2])
    with pytest.raises(ValueError, match="must end at the embedding width 10"):
        ours(a, b, DIMS[:-1], WEIGHTS[:-1])
    if "others" not in name:  # which reads the first alone
        with pytest.raises(ValueError, match=r"one width; got shapes \(6, 10\) and \(6, 9\)"):
            ours(a, b[:, :9], DIMS, WEIGHTS)
    if name in ("cosent", "regression", "pair_distillation"):
        with pytest.raises(ValueError, match="as many first as second embeddings; got 6 and 5"):
            ours(a, b[:5], DIMS, WEIGHTS)


def test_what_does_not_fit_one_loss_is_refused():
    a, b = plain(0, 6, 6)
    with pytest.raises(ValueError, match="6 queries need as many documents, the positives first; got 5"):
        nested_info_nce(a, b[:5], DIMS, WEIGHTS)
    with pytest.raises(ValueError, match=r"valid must be \[6\], one per query; got shape \(5,\)"):
        nested_info_nce(a, b, DIMS, WEIGHTS, valid=jnp.ones(5, bool))
    for ids in (TextIds(np.arange(5), np.arange(6)), TextIds(np.arange(6), np.arange(6), np.arange(6))):
        with pytest.raises(ValueError, match=r"ids must be of queries \[6\], documents \[6\] and known \[6, P\]; got"):
            nested_info_nce(a, b, DIMS, WEIGHTS, ids=ids)
    for loss in (nested_info_nce, nested_distillation):
        with pytest.raises(ValueError, match="temperature=0 must be positive"):
            loss(a, b, DIMS, WEIGHTS, 0)
    for taught in (
        lambda targets: nested_distillation(a, b, DIMS, WEIGHTS, 0.05, targets),
        lambda targets: nested_similarity_regression(a, b, targets, DIMS, WEIGHTS),
    ):
        with pytest.raises(ValueError, match=r"6 queries and 6 documents need as many targets; got \(6, 5\)"):
            taught(TARGETS[:, :5])
    for loss in (nested_cosent, nested_cosine_regression):
        with pytest.raises(ValueError, match=r"6 pairs need as many scores; got shape \(5,\)"):
            loss(a, b, jnp.ones(5), DIMS, WEIGHTS)
