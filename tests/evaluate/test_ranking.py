"""Ranking metrics against trec_eval (through pytrec_eval) and scipy, on random runs with ties and empty judgments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, spearmanr

from mrl_jax.data.relevance import own_documents, search_of
from mrl_jax.evaluate import ranking

pytrec_eval = pytest.importorskip("pytrec_eval")

THEIRS = {
    "ndcg@10": "ndcg_cut_10",
    "map@10": "map_cut_10",
    "recall@1": "recall_1",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
}


def judged(rng, queries: int, documents: int) -> np.ndarray:
    """Random judgments; the last query has none, the one before only gains of 0."""
    couples = [(q, d) for q in range(queries - 1) for d in rng.permutation(documents)[: rng.integers(1, 15)]]
    gains = rng.integers(0, 4, len(couples))
    found = np.column_stack([np.array(couples), gains])
    found[found[:, 0] == queries - 2, 2] = 0
    return found


@given(st.integers(0, 2**31), st.integers(3, 12), st.integers(3, 150))
@settings(max_examples=40, deadline=None)
def test_metrics_are_those_of_trec_eval(seed, queries, documents):
    rng = np.random.default_rng(seed)
    judgments = judged(rng, queries, documents)
    indices = np.stack([rng.permutation(documents)[: min(100, documents)] for _ in range(queries)])
    found = ranking.outcomes(indices, judgments, documents)
    qrels = {f"q{q}": {} for q in range(queries)}
    for q, d, gain in judgments:
        qrels[f"q{q}"][f"d{d}"] = int(gain)
    run = {f"q{q}": {f"d{d}": float(-place) for place, d in enumerate(row)} for q, row in enumerate(indices)}
    measures = {"ndcg_cut.10", "map_cut.10", "recall.1,10,100", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for q in range(queries):
        for ours, name in THEIRS.items():
            assert found[ours][q] == pytest.approx(theirs.get(f"q{q}", {}).get(name, 0.0), abs=1e-9), (ours, q)
        reciprocal = theirs.get(f"q{q}", {}).get("recip_rank", 0.0)
        assert found["mrr@10"][q] == pytest.approx(reciprocal if reciprocal >= 0.1 else 0.0, abs=1e-9)


def official(scores: np.ndarray, qrels: dict, query_ids: list[str], document_ids: list[str]) -> dict[str, list[float]]:
    """BEIR's search and evaluation: `ignore_identical_ids` drops a result with the query's id, and no judgment."""
    results = {
        query: {document: float(scores[q, d]) for d, document in enumerate(document_ids) if document != query}
        for q, query in enumerate(query_ids)
    }
    measures = {"ndcg_cut.10", "map_cut.10", "recall.1,10,100", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(results)
    return {name: [theirs[query][name] for query in query_ids] for name in (*THEIRS.values(), "recip_rank")}


@given(st.integers(0, 2**31), st.sampled_from([3, 20, 130]))
@settings(max_examples=15, deadline=None)
def test_a_query_that_is_a_document_is_scored_as_by_beir(seed, documents):
    """Some queries have the id of a document, which is nearest to them; some of these are judged, too."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(documents, 8)).astype(np.float32)
    document_ids = [f"d{d}" for d in range(documents)]
    taken = rng.choice(documents, min(5, documents), replace=False)
    query_ids = [*(document_ids[d] for d in taken), "q1", "q2"]
    queries = np.concatenate([z[taken], rng.normal(size=(2, 8))]).astype(np.float32)
    judgments = np.array(
        [
            (q, d, rng.integers(0, 3))
            for q in range(len(queries))
            for d in rng.choice(documents, min(3, documents), replace=False)
        ]
    )
    qrels: dict[str, dict[str, int]] = {query: {} for query in query_ids}
    for q, d, gain in judgments:
        qrels[query_ids[q]][document_ids[d]] = int(gain)
    own = own_documents(query_ids, document_ids)
    assert len(own) == len(taken)
    for m, found in zip((3, 8), ranking.rank(queries, z, judgments, (3, 8), own), strict=True):
        x, y = (
            a[:, :m] / np.linalg.norm(a[:, :m], axis=1, keepdims=True) for a in (np.float64(queries), np.float64(z))
        )
        theirs = official(x @ y.T, qrels, query_ids, document_ids)
        for ours, name in THEIRS.items():
            np.testing.assert_allclose(found[ours], theirs[name], atol=1e-6, err_msg=ours)
        reciprocal = np.array(theirs["recip_rank"])
        np.testing.assert_allclose(found["mrr@10"], np.where(reciprocal >= 0.1, reciprocal, 0), atol=1e-6)


def test_pairs_in_both_directions_are_found_first():
    """Quora: each of two duplicates is a query and a document, so that it is nearest to itself."""
    rng = np.random.default_rng(0)
    columns = np.array([pair for i in range(20) for pair in ((2 * i, 2 * i + 1), (2 * i + 1, 2 * i))])
    z = np.repeat(rng.normal(size=(20, 8)), 2, axis=0) + 0.01 * rng.normal(size=(40, 8))
    search = search_of(columns)
    (with_own,) = ranking.rank(z[search.queries], z[search.documents], search.judgments, (8,))
    (without,) = ranking.rank(z[search.queries], z[search.documents], search.judgments, (8,), search.own)
    assert with_own["recall@1"].mean() == 0
    assert without["recall@1"].mean() == 1


def test_documents_are_ranked_by_cosine_on_the_prefix_and_ties_by_row():
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(5, 8)), rng.normal(size=(40, 8))
    documents[7] = documents[3]  # equal: the lower row first
    queries[0] = documents[3]
    judgments = np.array([[0, 7, 1], [1, 2, 1], [2, 5, 1], [3, 9, 1], [4, 9, 1]])
    for m, metrics in zip((4, 8), ranking.rank(queries, documents, judgments, (4, 8)), strict=True):
        q, d = queries[:, :m], documents[:, :m]
        cosine = (q @ d.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(d, axis=1)
        place = np.argsort(np.argsort(-cosine, axis=1, kind="stable"), axis=1)[judgments[:, 0], judgments[:, 1]]
        np.testing.assert_allclose(metrics["mrr@10"], np.where(place < 10, 1 / (place + 1), 0), rtol=1e-6)
        assert place[0] == 1


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_spearman_is_that_of_scipy_and_the_mean_of_its_shares(seed):
    rng = np.random.default_rng(seed)
    a, b, scores = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)), rng.integers(0, 6, 50)
    a[0] = 0
    for m, (rho, shares) in zip((2, 6), ranking.spearman(a, b, scores, (2, 6)), strict=True):
        (cosines,) = ranking.prefix_cosines(a, b, (m,))
        assert rho == pytest.approx(spearmanr(cosines, scores)[0], abs=1e-12)
        assert shares.mean() == pytest.approx(rho, abs=1e-6)


def test_the_shares_have_the_spread_of_the_correlation_under_resampling():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1))
    scores = np.round(2 * x[:, 0] + rng.normal(size=400)) / 2
    a, b = np.concatenate([np.cos(x), np.sin(x)], axis=1), np.tile([[0.0, 1.0]], (400, 1))
    ((_, shares),) = ranking.spearman(a, b, scores, (2,))
    sines = np.sin(x[:, 0])
    resampled = bootstrap(
        (sines, scores), lambda u, v: spearmanr(u, v)[0], paired=True, vectorized=False, n_resamples=600, rng=rng
    )
    assert shares.std() / np.sqrt(400) == pytest.approx(resampled.standard_error, rel=0.2)


def test_without_spread_the_correlation_is_zero():
    a = np.ones((4, 2))
    ((rho, shares),) = ranking.spearman(a, a, np.arange(4), (2,))
    assert rho == 0
    np.testing.assert_array_equal(shares, 0)
