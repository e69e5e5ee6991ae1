"""What recall is measured against: every back end's truth is that of NumPy over the embeddings that were added."""

from pathlib import Path

import numpy as np
import pytest

from mrl_jax.search.dispatch import search_index
from mrl_jax.search.index import BACKENDS, Description, Document, create_index
from mrl_jax.search.index import exact as exact_index
from mrl_jax.search.queries import SearchResults
from mrl_jax.search.truth import best_of_blocks, recall

WIDTH = 16
PLACES = {"exact": "index", "faiss": "index", "milvus-lite": "index.db"}
KINDS = [(name, kind) for name in PLACES for kind in BACKENDS[name].kinds]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def create(name: str, kind: str, folder: Path, prefix: int = 8):
    if BACKENDS[name].extra:
        pytest.importorskip({"faiss": "faiss", "milvus": "milvus_lite"}[BACKENDS[name].extra])
    description = Description(WIDTH, (1, 4, 7, 8, 16), prefix, "model", "run#mrl#0", kind)
    return create_index(str(folder / PLACES[name]), description)


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(str(i), f"text {i}") for i in range(start, start + count)]


def ids(index, rows: np.ndarray) -> list[str]:
    return [one.id for one in index.documents(rows[rows >= 0])]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_truth_is_brute_force_over_what_was_added_whatever_the_back_end_searches(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = create(name, kind, tmp_path)
    z, queries = vectors(700), vectors(9, 1)
    index.add(documents(600), z[:600])
    index.add(documents(100, 600), z[600:])
    index.delete(["3", "650"])
    alive = np.setdiff1d(np.arange(700), [3, 650])
    monkeypatch.setattr(type(index), "candidates", None)  # a truth that asks the index is none
    truth = best_of_blocks(index.blocks(), queries, 12)
    wanted = alive[np.argsort(-(z[alive].astype(np.float64) @ queries.T.astype(np.float64)), axis=0)[:12]].T
    for rows, best in zip(truth.rows, wanted, strict=True):
        assert ids(index, rows) == [str(i) for i in best]
    index.close()


def test_the_truth_does_not_depend_on_the_blocks_and_is_that_of_exact_search(tmp_path: Path) -> None:
    z, queries = vectors(900), vectors(20, 1)
    z[300:700] = z[5]  # copies, which tie: the lower row comes first
    queries[0] = z[5]
    index = exact_index.create(tmp_path / "index", Description(WIDTH, (4, 16), 4, "model", "run#mrl#0"))
    index.add(documents(900), z)
    expected = index.search(queries, 30, None)
    assert expected.rows[0].tolist() == [5, *range(300, 329)]
    for size in (1, 37, 256, 900):
        blocks = ((np.arange(s, min(s + size, 900)), z[s : s + size]) for s in range(0, 900, size))
        truth = best_of_blocks(blocks, queries, 30)
        np.testing.assert_array_equal(truth.rows, expected.rows)
        np.testing.assert_array_equal(truth.scores, expected.scores)


def test_fewer_documents_than_k_leave_places_empty() -> None:
    truth = best_of_blocks([(np.arange(3), vectors(3))], vectors(2, 1), 5)
    assert (truth.rows[:, 3:] == -1).all()
    assert (truth.scores[:, 3:] == -np.inf).all()
    assert recall(truth, truth).tolist() == [1, 1]
    nothing = SearchResults(np.full((2, 5), -np.inf, np.float32), np.full((2, 5), -1))
    assert recall(nothing, truth).tolist() == [0, 0]
    assert recall(nothing, nothing).tolist() == [0, 0]
    assert best_of_blocks([], vectors(2, 1), 5).rows.tolist() == [[-1] * 5] * 2


def test_recall_counts_what_is_found_and_takes_copies_for_each_other() -> None:
    truth = SearchResults(np.array([[0.9, 0.5, 0.5]], np.float32), np.array([[7, 1, 2]]))
    for rows, scores, share in (
        ([7, 1, 2], [0.9, 0.5, 0.5], 1),
        ([7, 8, 9], [0.9, 0.5, 0.5], 1),  # other copies of what 1 and 2 are copies of
        ([7, 8, 9], [0.9, 0.5, 0.4], 2 / 3),
        ([1, 2, 3], [0.5, 0.5, 0.5], 2 / 3),  # 7 is missing, whatever else is there
        ([7, -1, -1], [0.9, -np.inf, -np.inf], 1 / 3),
        ([-1, -1, -1], [-np.inf] * 3, 0),
    ):
        found = SearchResults(np.array([scores], np.float32), np.array([rows]))
        assert recall(found, truth)[0] == pytest.approx(share)


def test_an_index_that_loses_documents_is_measured_to_lose_them(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    index = create("faiss", "faiss-flat", tmp_path)
    z, queries = vectors(2000), vectors(40, 1)
    index.add(documents(2000), z)
    truth = best_of_blocks(index.blocks(), queries, 10)
    by_hand = np.argsort(-(queries.astype(np.float64) @ z.T.astype(np.float64)), axis=1)[:, :10]
    cosines = (queries[:, :8] @ z[:, :8].T) / np.linalg.norm(z[:, :8], axis=1)
    shortlists = np.argsort(-cosines, axis=1)[:, :50]
    wanted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(by_hand, shortlists, strict=True)])
    assert wanted < 0.9
    measured = recall(search_index(index, queries, 10, [(8, 50)]), truth).mean()
    assert measured == pytest.approx(wanted, abs=0.005)
