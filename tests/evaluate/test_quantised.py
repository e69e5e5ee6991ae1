"""Search in quantised databases against a float64 loop that follows the definitions, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.evaluate import neighbours as search
from mrl_jax.evaluate.neighbours import neighbours
from mrl_jax.evaluate.quantised import SHORTLIST_PER_NEIGHBOUR, int8, one_bit

DIMS = (2, 5, 16)


def gaussian(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMS[-1])).astype(np.float32)


def dyadic(rng: np.random.Generator, count: int, width: int = DIMS[-1]) -> np.ndarray:
    """Few different values whose sums are exact, so that equal scores are equal in any order of adding."""
    return (rng.integers(-3, 4, (count, width)) / 4).astype(np.float32)


# --- one bit ------------------------------------------------------------------------------------------------------


def one_bit_by_loop(query: np.ndarray, database: np.ndarray, k: int) -> list[int]:
    def bits(x: np.ndarray) -> list[bool]:
        return [float(value) > 0 for value in x]

    def hamming(row: int) -> int:
        return sum(a != b for a, b in zip(bits(query), bits(database[row]), strict=True))

    def product(row: int) -> float:
        return sum(float(q) if bit else -float(q) for q, bit in zip(query, bits(database[row]), strict=True))

    shortlist = sorted(range(len(database)), key=hamming)[
        : SHORTLIST_PER_NEIGHBOUR * k
    ]  # sorting is stable: ties to the lower index
    return sorted(shortlist, key=lambda row: -product(row))[:k]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (7, 2), (9, 5), (60, 1), (60, 5)]))
def test_one_bit_search_is_the_loop_with_all_its_ties(seed, shape):
    """With few values many rows share Hamming distance and score; small databases are all in the shortlist."""
    rng, (size, k) = np.random.default_rng(seed), shape
    queries, database = dyadic(rng, 4), dyadic(rng, size)
    for dim, found in zip(DIMS, one_bit(queries, database, DIMS, k), strict=True):
        assert found.tolist() == [one_bit_by_loop(query[:dim], database[:, :dim], k) for query in queries]


def test_one_bit_search_of_more_queries_than_one_chunk_in_a_database_of_thousands():
    queries, database = (
        gaussian(search.QUERIES_PER_BATCH + 3, 0),
        gaussian(4 * SHORTLIST_PER_NEIGHBOUR * 10 * search.GROUP_COLUMNS + 5, 1),
    )
    for dim, found in zip(DIMS[1:], one_bit(queries, database, DIMS[1:], 10), strict=True):
        assert found.shape == (len(queries), 10)
        assert found.dtype == np.int32
        for row in (0, search.QUERIES_PER_BATCH - 1, search.QUERIES_PER_BATCH, search.QUERIES_PER_BATCH + 2):
            assert found[row].tolist() == one_bit_by_loop(queries[row, :dim], database[:, :dim], 10)


def test_rescoring_prefers_the_coordinates_that_are_large_in_the_query():
    """Both rows differ from the query in one sign; the second in the one that counts for less."""
    database = np.array([[-1, 1, 1], [1, 1, -1]], np.float32)
    query = np.array([[5, 1, 0.5]], np.float32)
    assert [found.tolist() for found in one_bit(query, database, (3,), 2)] == [[[1, 0]]]


def test_what_hamming_distance_leaves_out_of_the_shortlist_is_not_found():
    query = np.array([[9, 1, 1, 1]], np.float32)
    database = np.array(
        [[-1, 1, 1, 1]] * SHORTLIST_PER_NEIGHBOUR + [[1, -1, -1, 1]], np.float32
    )  # the last would score highest
    assert [found.tolist() for found in one_bit(query, database, (4,), 1)] == [[[0]]]
    assert [found.tolist() for found in one_bit(query, database, (4,), 2)] == [[[SHORTLIST_PER_NEIGHBOUR, 0]]]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_one_bit_ignores_lengths_of_embeddings_and_magnitudes_of_stored_coordinates(seed):
    rng = np.random.default_rng(seed)
    queries, database = dyadic(rng, 4), dyadic(rng, 40)
    stretched = database * rng.uniform(0.1, 10, database.shape).astype(np.float32)
    longer = queries * np.float32([[1], [2], [4], [0.5]])
    for a, b in zip(one_bit(queries, database, DIMS, 3), one_bit(longer, stretched, DIMS, 3), strict=True):
        np.testing.assert_array_equal(a, b)


# --- int8 ---------------------------------------------------------------------------------------------------------


def decoded_by_loop(database: np.ndarray) -> np.ndarray:
    """float64 [N, D]: each coordinate rounded to 255 levels up to its largest magnitude; also the scales [D]."""
    decoded, scales = np.zeros(database.shape), []
    for d in range(database.shape[1]):
        scale = max(abs(float(x)) for x in database[:, d]) / 127
        decoded[:, d] = [round(float(x) / scale) * scale if scale else 0.0 for x in database[:, d]]
        scales.append(scale)
    assert (np.abs(decoded - database) <= np.array(scales) / 2 * 1.000001).all()
    return decoded


def cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1)
    return np.divide(rows @ query.astype(float), lengths, out=np.zeros(len(rows)), where=lengths > 0)


def test_int8_search_is_cosine_with_the_rounded_database():
    """Coordinates of very different units, one of them always zero."""
    units = np.geomspace(0.01, 100, DIMS[-1]).astype(np.float32)
    queries, database = gaussian(20, 0) / units, gaussian(300, 1) * units
    database[:, 1] = 0
    decoded = decoded_by_loop(database)
    for dim, found in zip(DIMS, int8(queries, database, DIMS, 7), strict=True):
        assert found.shape == (20, 7)
        for query, got in zip(queries[:, :dim], found, strict=True):
            scores = cosines(query, decoded[:, :dim])
            # The k-th largest scores, whichever of nearly equal rows has them.
            tolerance = 1e-6 * np.linalg.norm(query)
            np.testing.assert_allclose(scores[got], np.sort(scores)[::-1][:7], atol=tolerance)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_equally_near_rows_come_in_the_order_of_the_database(seed):
    """Rows of one entry ±127·2^e: quantised without error, their cosines exactly equal."""
    rng = np.random.default_rng(seed)
    width, size = 4, 30
    database = np.zeros((size, width), np.float32)
    database[np.arange(size), rng.integers(0, width, size)] = 127 * rng.choice([-1, 1], size)
    query = rng.permutation(np.float32([1, 2, 4, 8]))[None]
    (found,) = int8(query, database, (width,), size)
    scores = (database / 127) @ query[0]
    assert found[0].tolist() == sorted(range(size), key=lambda row: -scores[row])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_integers_that_reach_127_everywhere_are_searched_without_loss(seed):
    rng = np.random.default_rng(seed)
    database = rng.integers(-127, 128, (50, DIMS[-1])).astype(np.float32)
    database[rng.integers(0, 50), :] = 127
    queries = gaussian(5, seed)
    for a, b in zip(int8(queries, database, DIMS, 4), neighbours(queries, database, DIMS, 4), strict=True):
        np.testing.assert_array_equal(a, b)


# --- both ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantised", [int8, one_bit])
def test_a_prefix_of_the_quantised_embedding_is_the_quantised_prefix(quantised):
    queries, database = gaussian(12, 0), gaussian(90, 1)
    for dim, found in zip(DIMS, quantised(queries, database, DIMS, 5), strict=True):
        (alone,) = quantised(queries[:, :dim].copy(), database[:, :dim].copy(), (dim,), 5)
        np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("quantised", [int8, one_bit])
def test_zero_coordinates_and_missing_queries_are_no_trouble(quantised):
    assert [found.shape for found in quantised(gaussian(0, 0), gaussian(9, 1), DIMS, 3)] == [(0, 3)] * len(DIMS)
    zeros = np.zeros((6, DIMS[-1]), np.float32)
    for found in quantised(gaussian(3, 0), zeros, DIMS, 6):
        np.testing.assert_array_equal(found, [list(range(6))] * 3)
