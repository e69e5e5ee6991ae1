"""Adaptive retrieval against a float64 brute-force search: exact search is exact, whatever the data."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax import funnel
from mrl_jax.search import layout, shortlist
from mrl_jax.search import queries as batching
from mrl_jax.search.exact import BIN_ROWS
from mrl_jax.search.funnel import exact, lay_out

DIMS = (4, 8, 16, 32)


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows [Q, k] by float64 inner products, ties to the lower row."""
    scores = [(vectors.astype(np.float64) * query.astype(np.float64)).sum(1) for query in queries]
    return np.stack([np.lexsort((np.arange(len(s)), -s))[:k] for s in scores])


def nested(n: int, seed: int, width: int = 32) -> np.ndarray:
    """Unit vectors whose first coordinates carry most, in clusters."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(5).normal(size=(40, width))
    z = (centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, width))) / np.arange(1, width + 1) ** 0.5
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def adversarial(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Documents and queries that are made to break a search with bins, bounds and rounded copies."""
    rng = np.random.default_rng(0)
    match name:
        case "random":
            z = rng.normal(size=(9000, 32))
        case "clustered":
            return nested(9000, 0), nested(5, 1)
        case "identical":
            z = np.repeat(rng.normal(size=(1, 32)), 5000, axis=0)
        case "duplicates":
            z = np.repeat(rng.normal(size=(300, 32)), 17, axis=0)
        case "differ in the tail":  # prefixes tell nothing
            z = rng.normal(size=(5000, 32))
            z[:, :8] = 1
        case "differ in the last bit":
            z = np.tile(rng.normal(size=32), (5000, 1)).astype(np.float32)
            z[:, 31] = np.nextafter(z[:, 31], np.float32(rng.choice([-9, 9], 5000)))
        case "one bin":  # all that is good lies in one bin of the first chunk
            z = 0.01 * rng.normal(size=(8192, 32))
            z[:: layout.CHUNK_ROWS // BIN_ROWS][:BIN_ROWS] = 1 + 0.01 * rng.normal(size=(BIN_ROWS, 32))
        case "zeros":
            z = np.zeros((100, 32))
        case "long and short":
            z = rng.normal(size=(6000, 32)) * 10.0 ** rng.uniform(-6, 6, (6000, 1))
        case "negative":
            z = -np.abs(rng.normal(size=(5000, 32)))
            return z.astype(np.float32), np.abs(rng.normal(size=(5, 32))).astype(np.float32)
    return z.astype(np.float32), np.concatenate([z[:3], rng.normal(size=(2, 32))]).astype(np.float32)


KINDS = (
    "random", "clustered", "identical", "duplicates", "differ in the tail", "differ in the last bit", "one bin",
    "zeros", "long and short", "negative",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("start", "scanned"), [(4, 32), (16, 32), (32, 32), (4, 8)])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_search_is_brute_force(kind: str, rotate: bool, start: int, scanned: int, dtype) -> None:
    vectors, queries = adversarial(kind)
    documents = lay_out(vectors, DIMS, dtype, scanned, rotate=rotate)
    hits, work = exact(documents, queries, 10, start)
    np.testing.assert_array_equal(hits.rows, brute_force(vectors, queries, 10))
    dots = (vectors.astype(np.float64)[hits.rows] * queries.astype(np.float64)[:, None]).sum(-1)
    np.testing.assert_allclose(hits.scores, dots, rtol=1e-6)
    assert work.scanned == start


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from(DIMS),
    st.sampled_from((None, 16)),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_exact_search_is_brute_force_at_any_size(
    n: int, q: int, k: int, start: int, scanned: int | None, half: bool, seed: int
) -> None:
    """Few distinct values, so that ties abound."""
    rng = np.random.default_rng(seed)
    vectors, queries = (rng.integers(-2, 3, (count, 32)).astype(np.float32) for count in (n, q))
    documents = lay_out(vectors, DIMS, jnp.bfloat16 if half else jnp.float32, scanned)
    hits, _ = exact(documents, queries, k, min(start, scanned or start))
    assert hits.rows.shape == (q, k)
    wanted = brute_force(vectors, queries, k)
    np.testing.assert_array_equal(hits.rows[:, : wanted.shape[1]], wanted)
    assert (hits.rows[:, n:] == -1).all()
    assert (hits.scores[:, n:] == -np.inf).all()


def test_a_prefix_rules_out_most_documents_where_it_carries_most() -> None:
    vectors, queries = nested(40_000, 0), nested(64, 1)
    documents = lay_out(vectors, DIMS)
    hits, work = exact(documents, queries, 10, 16)
    np.testing.assert_array_equal(hits.rows, brute_force(vectors, queries, 10))
    assert work.candidates < 4000
    assert work.full < 0.1


def test_rotated_documents_rule_out_more_where_no_prefix_carries_much() -> None:
    rotation = np.linalg.qr(np.random.default_rng(9).normal(size=(32, 32)))[0].astype(np.float32)
    vectors, queries = nested(40_000, 0) @ rotation, nested(64, 1) @ rotation
    _, plain = exact(lay_out(vectors, DIMS), queries, 10, 16)
    documents = lay_out(vectors, DIMS, rotate=True)
    hits, rotated = exact(documents, queries, 10, 16)
    np.testing.assert_array_equal(hits.rows, brute_force(vectors, queries, 10))
    assert rotated.full < 0.5 * plain.full
    found = funnel.funnel(documents, queries, 10, [(16, 100)]).rows
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, hits.rows, strict=True)])
    assert shared > 0.9
    with pytest.raises(ValueError, match="over rotated documents has one stage"):
        funnel.funnel(documents, queries, 10, [(8, 100), (16, 50)])


def test_deleted_documents_are_never_found() -> None:
    vectors, queries = nested(5000, 0), nested(6, 1)
    alive = np.random.default_rng(0).random(5000) < 0.5
    documents = lay_out(vectors, DIMS, alive=alive)
    wanted = np.flatnonzero(alive)[brute_force(vectors[alive], queries, 10)]
    for start in DIMS:
        np.testing.assert_array_equal(exact(documents, queries, 10, start)[0].rows, wanted)
    found = funnel.funnel(documents, queries, 10, [(8, 60), (16, 20)]).rows
    assert alive[found].all()
    none = lay_out(vectors[:20], DIMS, alive=np.arange(20) < 3)
    for hits in (exact(none, queries, 5)[0], funnel.funnel(none, queries, 5, [(8, 5)])):
        assert (np.sort(hits.rows[:, :3], axis=1) == [0, 1, 2]).all()
        assert (hits.rows[:, 3:] == -1).all()


# ---- funnels ---------------------------------------------------------------------------------------------------------


def cosines(vectors: np.ndarray, query: np.ndarray, m: int) -> np.ndarray:
    x = vectors[:, :m].astype(np.float64)
    return x @ query[:m].astype(np.float64) / np.linalg.norm(x, axis=1)


def funnel_by_hand(vectors: np.ndarray, query: np.ndarray, k: int, steps: list[tuple[int, int]]) -> np.ndarray:
    rows = np.arange(len(vectors))
    for dim, size in steps:
        rows = rows[np.argsort(-cosines(vectors[rows], query, dim), kind="stable")[:size]]
    return rows[np.argsort(-(vectors[rows].astype(np.float64) @ query.astype(np.float64)))[:k]]


@pytest.mark.parametrize("steps", [[(8, 100)], [(4, 300), (8, 100), (16, 30)], [(16, 12)]])
def test_a_funnel_finds_what_one_by_hand_finds(steps: list[tuple[int, int]]) -> None:
    """But for the rare documents that share a bin with a better one, in the first step."""
    vectors, queries = nested(20_000, 0), nested(200, 1)
    found = funnel.funnel(lay_out(vectors, DIMS, jnp.float32), queries, 10, steps).rows
    wanted = [funnel_by_hand(vectors, query, 10, steps) for query in queries]
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted, strict=True)])
    assert shared > 0.98


def test_where_no_bin_is_shared_a_funnel_equals_the_one_by_hand() -> None:
    """All that is good lies in bins of its own."""
    vectors, queries = nested(16 * layout.CHUNK_ROWS, 0), np.abs(nested(50, 1))
    vectors[:, :2] = -5
    good = np.random.default_rng(0).permutation(layout.CHUNK_ROWS // layout.MAX_PACKED_ROWS)  # one row per bin
    vectors[good] = nested(len(good), 2)
    documents = lay_out(vectors, DIMS, jnp.float32)
    assert len(documents) / (shortlist.MIN_BINS_PER_PLACE * 10) >= layout.MAX_PACKED_ROWS
    found = funnel.funnel(documents, queries, 3, [(8, 10), (16, 5)]).rows
    for query, rows in zip(queries, found, strict=True):
        np.testing.assert_array_equal(rows, funnel_by_hand(vectors, query, 3, [(8, 10), (16, 5)]))


def test_documents_on_disk_give_the_same(tmp_path) -> None:
    vectors, queries = nested(9000, 0), nested(7, 1)
    vectors.tofile(tmp_path / "vectors")
    stored = funnel.StoredVectors(tmp_path / "vectors", *vectors.shape)
    some = np.array([[3, 8999], [0, 3]])
    np.testing.assert_array_equal(stored[some], vectors[some])
    np.testing.assert_array_equal(stored[8000:20000:7], vectors[8000:20000:7])
    on_disk, in_memory = lay_out(stored, DIMS, scanned=8), lay_out(vectors, DIMS, scanned=8)
    for steps in ([(4, 50)], [(4, 200), (16, 40)]):
        for a, b in zip(
            funnel.funnel(on_disk, queries, 5, steps), funnel.funnel(in_memory, queries, 5, steps), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(exact(on_disk, queries, 5, 8)[0].rows, brute_force(vectors, queries, 5))
    assert on_disk.chunks.shape[1] == 8


@pytest.mark.parametrize("read_rows", [100, 8192])
def test_a_file_is_read_through_where_the_prefix_rules_out_too_little(
    read_rows: int, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrl_jax.search.exact.READ_ROWS", read_rows)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(n, 32)).astype(np.float32) for n in (3000, 9))
    vectors[2000:2010] = vectors[7]  # ties, to the lower row
    queries[0] = vectors[7]
    vectors.tofile(tmp_path / "vectors")
    alive = rng.random(3000) < 0.9
    alive[[7, 2000, 2001]] = False, True, True
    stored = funnel.StoredVectors(tmp_path / "vectors", *vectors.shape)
    hits, work = exact(lay_out(stored, DIMS, scanned=8, alive=alive), queries, 5, 8)
    there = np.flatnonzero(alive)
    np.testing.assert_array_equal(hits.rows, there[brute_force(vectors[alive], queries, 5)])
    assert work.full > 0.5


@pytest.mark.parametrize("cores", [1, 2, 3, 7])
def test_any_number_of_cores_finds_the_same(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "core_count", lambda: cores)
    monkeypatch.setattr(batching, "CORE_QUERIES", 8)
    z, queries = nested(3000, 0), nested(101, 1)
    documents = lay_out(z, DIMS, jnp.float32)
    wanted = brute_force(z, queries, 5)
    hits, work = exact(documents, queries, 5, 8)
    np.testing.assert_array_equal(hits.rows, wanted)
    assert 0 < work.candidates < 3000
    np.testing.assert_array_equal(funnel.funnel(documents, queries, 5, [(16, 3000)]).rows, wanted)
    every = np.tile(np.arange(3000), (101, 1))
    np.testing.assert_array_equal(np.sort(funnel.shortlist(documents, queries, 4, 3000)), every)


def test_what_goes_wrong_on_another_core_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "core_count", lambda: 2)
    with pytest.raises(ValueError, match="dim 5 was not laid out"):
        funnel.shortlist(lay_out(nested(200, 0), DIMS), nested(200, 1), 5, 10)


def test_queries_in_any_batch_find_the_same() -> None:
    vectors, queries = nested(5000, 0), nested(300, 1)
    documents = lay_out(vectors, DIMS)
    for search in (lambda q: exact(documents, q, 5, 8)[0], lambda q: funnel.funnel(documents, q, 5, [(8, 50)])):
        every = search(queries).rows
        np.testing.assert_array_equal(
            np.concatenate([search(queries[i : i + 37]).rows for i in range(0, 300, 37)]), every
        )
        assert search(queries[:0]).rows.shape == (0, 5)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "at least one stage"),
        ([(5, 100)], r"a stage at dim 5 is not possible; the dims are \[4, 8, 16, 32\]"),
        ([(4, 9)], "a stage keeps 9 documents; at least k=10"),
        ([(8, 100), (4, 50)], "out of order"),
        ([(4, 50), (8, 100)], "out of order"),
        ([(16, 50)], r"dim 16 was not laid out; there are \[4, 8\]"),
    ],
)
def test_impossible_steps_are_named(steps: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        funnel.funnel(lay_out(nested(100, 0), DIMS, scanned=8), nested(1, 1), 10, steps)


def test_other_mistakes_are_named() -> None:
    documents = lay_out(nested(100, 0), DIMS, scanned=8)
    queries = nested(1, 1)
    for call, said in (
        (
            lambda: exact(documents, queries[:, :16], 3, 8),
            r"queries have shape \(1, 16\); the documents take \[Q, 32\]",
        ),
        (lambda: exact(documents, queries[0], 3, 8), r"queries have shape \(32,\)"),
        (lambda: exact(documents, queries, 0, 8), "k=0 is not allowed; at least 1"),
        (lambda: exact(documents, queries, 3), r"start=32 was not laid out; there are \[4, 8\]"),
        (lambda: exact(documents, queries * np.nan, 3, 8), "queries hold numbers that are not finite"),
        (lambda: lay_out(nested(10, 0) * np.inf, DIMS), "embeddings 0…9 hold numbers that are not finite"),
        (lambda: lay_out(nested(10, 0), (4, 8)), "must end at the embedding width 32"),
        (lambda: lay_out(nested(10, 0), DIMS, scanned=5), r"scanned=5 is not one of the dims \[4, 8, 16, 32\]"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
