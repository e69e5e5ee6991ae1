"""Metrics against scikit-learn and against their published formulas in plain float64 Python."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors

from mrl_jax import arms, evaluate
from mrl_jax.config import EvaluationConfig
from mrl_jax.evaluate import calibration, classification
from mrl_jax.evaluate import neighbours as search
from mrl_jax.evaluate.neighbours import neighbours, outcomes, top_k
from mrl_jax.losses import heads

DIMS = (2, 8, 24)


# --- classification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [6, 40])
def test_accuracies_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 300)
    said = classification.answers(jnp.asarray(logits), labels)
    for k, hits in ((1, said.top1), (5, said.top5)):
        wanted = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(classes))
        assert hits.mean() == pytest.approx(wanted, abs=1e-12)
    np.testing.assert_array_equal(said.prediction, logits.argmax(1))


def test_confidence_is_the_probability_of_the_predicted_class():
    logits = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32) * 4
    exponentials = np.exp(logits.astype(np.float64))
    said = classification.answers(jnp.asarray(logits), np.zeros(300, np.int32))
    np.testing.assert_allclose(said.confidence, exponentials.max(1) / exponentials.sum(1), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (8, 7), elements=st.sampled_from([-1.0, 0.0, 2.0])), st.integers(0, 6))
def test_tied_logits_rank_the_lower_class_first(logits, label):
    said = classification.answers(jnp.asarray(logits), np.full(8, label, np.int32))
    for i, row in enumerate(logits.tolist()):
        ranking = sorted(range(7), key=lambda c: (-row[c], c))
        assert said.prediction[i] == ranking[0]
        assert said.top1[i] == (label == ranking[0])
        assert said.top5[i] == (label in ranking[:5])


def test_five_classes_or_fewer_are_always_among_the_top_five():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)
    assert classification.answers(logits, np.arange(20, dtype=np.int32) % 5).top5.all()


# --- calibration --------------------------------------------------------------------------------------------------


def ece_by_bins(confidence: list[float], correct: list[bool], bins: int) -> float:
    """In exact fractions, so that it is certain on which side of a bin's edge a confidence lies."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b < Fraction(c) * bins <= b + 1]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


@given(st.lists(st.tuples(st.floats(2**-10, 1, width=32), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_size(answers, bins):
    confidence, correct = (list(values) for values in zip(*answers, strict=True))
    got = calibration.expected_calibration_error(np.array(confidence, np.float32), np.array(correct), bins)
    assert got == pytest.approx(ece_by_bins(confidence, correct, bins), abs=1e-9)


def test_bins_are_open_on_the_left_and_closed_on_the_right():
    """0.5 and 0.25 belong to (0, 1/2]; bins are summed within, so one right and one wrong answer cancel there."""
    confidence, correct = np.array([0.25, 0.5, 1.0]), np.array([True, False, True])
    assert calibration.expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.25 / 3)


def test_a_classifier_right_as_often_as_it_says_is_calibrated():
    assert calibration.expected_calibration_error(np.full(4, 0.75), np.array([1, 1, 1, 0])) == 0
    assert calibration.expected_calibration_error(np.ones(4), np.zeros(4)) == 1


# --- neighbours ---------------------------------------------------------------------------------------------------


def embeddings(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMS[-1])).astype(np.float32)


def test_neighbours_at_every_dim_are_those_of_scikit_learn():
    """More queries than one chunk, and not a multiple of it; database rows of very different lengths."""
    queries, database = embeddings(search.QUERIES_PER_BATCH + 44, 0), embeddings(500, 1)
    database *= np.random.default_rng(2).uniform(0.01, 100, (500, 1)).astype(np.float32)
    for dim, found in zip(DIMS, neighbours(queries, database, DIMS, 5), strict=True):
        oracle = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(
            database[:, :dim].astype(float)
        )
        distances, wanted = oracle.kneighbors(queries[:, :dim].astype(float))
        assert found.shape == (len(queries), 5)
        for row in np.flatnonzero((found != wanted).any(1)):  # float32 may swap what lies closer than its precision
            got = 1 - cosine(queries[row, :dim], database[found[row], :dim])
            np.testing.assert_allclose(got, distances[row], atol=1e-6)
        assert (found == wanted).all(1).mean() > 0.95


def cosine(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    query, rows = query.astype(float), rows.astype(float)
    return rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)


def test_equally_near_rows_come_in_the_order_of_the_database():
    database = np.zeros((6, 4), np.float32)
    database[[1, 3, 4]] = [2, 0, 0, 0]  # powers of two: their cosines are exactly equal
    database[[0, 2, 5]] = [0, 8, 0, 0]
    queries = np.array([[1, 0.5, 0, 0], [0.5, 1, 0, 0]], np.float32)
    for found in neighbours(queries, database, (2, 4), 6):
        np.testing.assert_array_equal(found, [[1, 3, 4, 0, 2, 5], [0, 2, 5, 1, 3, 4]])


def test_a_zero_row_scores_zero_between_near_and_opposite_rows():
    database = np.array([[-1, 0], [0, 0], [1, 0]], np.float32)
    (found,) = neighbours(np.array([[1, 0], [0, 0]], np.float32), database, (2,), 3)
    np.testing.assert_array_equal(found[0], [2, 1, 0])
    np.testing.assert_array_equal(found[1], [0, 1, 2])  # a zero query is equally far from all


@pytest.mark.parametrize("extra", [-1, 0, 1, search.GROUP_COLUMNS])
@pytest.mark.parametrize("levels", [2, 10**6])
def test_a_large_database_in_tiles_has_the_same_neighbours(extra: int, levels: int, monkeypatch: pytest.MonkeyPatch):
    """Few levels make ties; several batches of queries, and tiles that end within a group or with one."""
    rng, n = np.random.default_rng(levels), 3 * search.TILE_COLUMNS + extra
    queries, database = (
        (rng.integers(0, levels, (count, DIMS[-1])) - levels // 2).astype(np.float32) for count in (21, n)
    )
    database[[0, 7, n - 1]] = 0
    whole = list(neighbours(queries, database, DIMS, 5))
    monkeypatch.setattr(search, "TILED_FROM_ROWS", 1)
    monkeypatch.setattr(search, "MAX_SCORES_BYTES", 4 * len(DIMS) * n * 8)
    threads: list[int] = []
    pool = search.ThreadPoolExecutor
    monkeypatch.setattr(search, "ThreadPoolExecutor", lambda count: threads.append(count) or pool(count))
    monkeypatch.setattr(search.processes, "core_count", lambda: 64)  # no more batches at a time than memory allows
    tiled = list(neighbours(queries, database, DIMS, 5))
    monkeypatch.setattr(search, "MAX_SCORES_BYTES", 4 * len(DIMS) * n * 8 * 3)
    for alone, together in zip(tiled, neighbours(queries, database, DIMS, 5), strict=True):
        np.testing.assert_array_equal(alone, together)
    assert threads == [1, 3]
    for dim, a, b in zip(DIMS, whole, tiled, strict=True):
        for row in np.flatnonzero((a != b).any(1)):  # float32 may swap what lies closer than its precision
            same = [cosine(queries[row, :dim] + 1e-9, database[found[row], :dim] + 1e-9) for found in (a, b)]
            np.testing.assert_allclose(*same, atol=1e-6)
        assert (a == b).all(1).mean() > 0.9


def test_no_queries_have_no_neighbours():
    assert [found.shape for found in neighbours(embeddings(0, 0), embeddings(7, 1), DIMS, 3)] == [(0, 3)] * 3


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("extra", [0, 1, search.GROUP_COLUMNS - 1])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 5, 1000, 10**9]))
def test_top_k_is_a_full_sort_with_ties_to_the_lower_index(k, extra, seed, levels):
    """Just above the size at which groups are used, on and off a group's boundary, with few and with many values."""
    rng = np.random.default_rng(seed)
    scores = (
        rng.integers(0, levels, (4, 4 * k * search.GROUP_COLUMNS + search.GROUP_COLUMNS + extra)) - levels / 2
    ).astype(np.float32)
    columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    wanted = np.lexsort((columns, -scores))[:, :k]
    np.testing.assert_array_equal(jitted_top_k(jnp.asarray(scores), k), wanted)


jitted_top_k = jax.jit(top_k, static_argnums=1)


@pytest.mark.parametrize("n", [3, 4 * 3 * search.GROUP_COLUMNS, 4 * 3 * search.GROUP_COLUMNS + 1, 2000])
def test_top_k_agrees_with_a_full_sort_below_at_and_above_the_switch_to_groups(n):
    scores = np.random.default_rng(n).permutation(4 * n).reshape(4, n).astype(np.float32)
    np.testing.assert_array_equal(jitted_top_k(jnp.asarray(scores), 3), np.argsort(-scores, axis=1)[:, :3])


def test_top_k_finds_winners_that_share_one_group_and_winners_in_the_last_one():
    n, group = 20 * search.GROUP_COLUMNS + 7, search.GROUP_COLUMNS
    scores = np.zeros((3, n), np.float32)
    scores[0, 2 * group : 2 * group + 4] = [1, 4, 2, 3]
    scores[1, -4:] = [4, 4, 4, 4]
    scores[2] = -np.inf
    wanted = [[2 * group + i for i in (1, 3, 2, 0)], list(range(n - 4, n)), [0, 1, 2, 3]]
    np.testing.assert_array_equal(jitted_top_k(jnp.asarray(scores), 4), wanted)


# --- retrieval metrics --------------------------------------------------------------------------------------------


def metrics_by_formula(neighbour_labels: list[int], label: int, relevant: int, k: int, paper: bool) -> tuple:
    """knn_top1, AP@k and precision@k of one query, as the module's docstring (or the paper) defines them."""
    hits, average = 0, 0.0
    for i, other in enumerate(neighbour_labels[:k], 1):
        if other == label:
            hits += 1
            average += hits / i
    divisor = k if paper else min(k, relevant)
    return float(neighbour_labels[0] == label), average / divisor if divisor else 0.0, hits / k


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 40))
def test_retrieval_metrics_are_their_formulas(seed, classes, size):
    """Rare classes, classes that the database lacks, and databases smaller than k are all among these."""
    rng = np.random.default_rng(seed)
    database_labels = rng.integers(0, classes, size)
    labels = rng.integers(0, classes + 1, 6)  # one class more than the database has
    indices = np.stack([rng.permutation(size)[:10] for _ in labels])
    got = outcomes(indices, labels, database_labels, 10)
    for i, label in enumerate(labels):
        relevant = int((database_labels == label).sum())
        wanted = metrics_by_formula(database_labels[indices[i]].tolist(), label, relevant, 10, paper=False)
        assert [got[name][i] for name in ("knn_top1", "map@10", "precision@10")] == pytest.approx(wanted, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_with_ten_examples_a_class_map_is_that_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    database_labels = rng.permutation(np.repeat(np.arange(4), 10))
    labels = rng.integers(0, 4, 6)
    indices = np.stack([rng.permutation(40)[:10] for _ in labels])
    got = outcomes(indices, labels, database_labels, 10)["map@10"]
    wanted = [
        metrics_by_formula(database_labels[row].tolist(), label, 10, 10, paper=True)[1]
        for row, label in zip(indices, labels, strict=True)
    ]
    assert got == pytest.approx(wanted, abs=1e-6)


def test_a_perfect_ranking_of_a_rare_class_has_map_one_and_an_absent_class_zero():
    database_labels = np.array([3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    indices = np.tile(np.arange(10), (2, 1))
    got = outcomes(indices, np.array([3, 7]), database_labels, 10)
    assert got["map@10"].tolist() == [1, 0]
    assert got["precision@10"] == pytest.approx([0.2, 0])
    assert got["knn_top1"].tolist() == [1, 0]


# --- one member at every dim --------------------------------------------------------------------------------------


def test_a_nested_arm_is_scored_at_and_between_its_dims_and_a_fixed_one_at_its_width():
    mrl, mrl_e, *fixed = arms.expand(["mrl", "mrl_e", "ff"], (8, 16, 64))
    between, only = EvaluationConfig(), EvaluationConfig(interpolated=False)
    assert evaluate.dims_of(mrl, (8, 16, 64), between) == (8, 12, 16, 40, 64)
    assert evaluate.dims_of(mrl_e, (8, 16, 64), only) == (8, 16, 64)
    assert evaluate.dims_of(None, (8, 16, 64), EvaluationConfig(interpolated=False, dims=(5, 8))) == (5, 8, 16, 64)
    assert [evaluate.dims_of(arm, (8, 16, 64), between) for arm in fixed] == [(8,), (16,), (64,)]


@pytest.mark.parametrize(
    ("name", "scored"),
    [("mrl", {2, 8, 24}), ("mrl_e", {2, 5, 8, 16, 24}), ("ff8", {8})],
)
def test_linear_metrics_come_from_the_arms_own_heads(name, scored):
    """A tied head answers between the nesting dims, separate heads only where they were trained."""
    arm = {a.label: a for a in arms.expand(["mrl", "mrl_e", "ff"], DIMS)}[name]
    head = heads.init(jax.random.key(0), arm.head, DIMS, 7)
    z, labels = embeddings(50, 0), np.random.default_rng(1).integers(0, 7, 50)
    wanted = evaluate.dims_of(arm, DIMS, EvaluationConfig())
    own = heads.classifiers(head, arm.head, DIMS, wanted)
    scores = {(s.dim, s.metric): s for s in evaluate.linear(z, labels, own) if s.dim in (arm.width, *scored)}
    assert {dim for dim, _ in scores} == scored
    for dim in scored:
        tied = arm.head == "tied"
        kernel = np.concatenate(head["kernel"])[:dim] if tied else head["kernel"][DIMS.index(dim)]
        logits = z[:, :dim] @ np.asarray(kernel)
        assert scores[dim, "linear_top1"].value == pytest.approx(np.mean(logits.argmax(1) == labels))
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(7))
        assert scores[dim, "linear_top5"].value == pytest.approx(top5)
        np.testing.assert_array_equal(scores[dim, "linear_top1"].outcomes, logits.argmax(1) == labels)
        probability = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
        gap = ece_by_bins(probability.max(1).tolist(), (logits.argmax(1) == labels).tolist(), 15)
        assert scores[dim, "ece"].value == pytest.approx(gap, abs=1e-5)


def test_nearest_neighbour_metrics_of_a_database_smaller_than_k():
    z, labels = embeddings(5, 0), np.array([0, 0, 1, 1, 2])
    scores = {(s.dim, s.metric): s for s in evaluate.nearest(z, labels, z[:4], labels[:4], DIMS)}
    assert {dim for dim, _ in scores} == set(DIMS)
    for dim in DIMS:
        # A query that lies in the database finds itself; the fifth has a class that the database lacks.
        np.testing.assert_array_equal(scores[dim, "knn_top1"].outcomes, [1, 1, 1, 1, 0])
        assert scores[dim, "knn_top1"].value == pytest.approx(0.8)
        assert scores[dim, "precision@10"].outcomes == pytest.approx([0.2, 0.2, 0.2, 0.2, 0])
        assert scores[dim, "map@10"].outcomes[4] == 0
