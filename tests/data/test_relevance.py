"""What is relevant to what among paired texts, against loops over small relations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.data import pair_ops
from mrl_jax.data.relevance import FurtherPositives, own_documents, search_of

RELATIONS = st.integers(2, 3).flatmap(
    lambda columns: st.lists(st.lists(st.integers(0, 9), min_size=columns, max_size=columns), min_size=1, max_size=25)
)


@given(RELATIONS)
def test_a_search_has_every_pair_as_a_judgment_and_a_querys_own_text_as_no_candidate(rows: list[list[int]]) -> None:
    search = search_of(np.array(rows))
    known = {(row[0], row[1]) for row in rows}
    found = {(search.queries[q], search.documents[d]) for q, d, gain in search.judgments if gain == 1}
    assert found == known
    assert len(search.judgments) == len(known)
    documents = {text for row in rows for text in row[1:]}
    wanted = {(query, query) for query, *_ in rows if query in documents} - known
    assert {(search.queries[q], search.documents[d]) for q, d in search.own} == wanted


@given(RELATIONS, st.data())
def test_a_batch_knows_every_positive_of_its_queries_that_it_holds(rows: list[list[int]], data: st.DataObject) -> None:
    """Either by a row of its own with the same query or positive, or by the further positives; and nothing else."""
    columns = np.array(rows, np.int32)
    known, width = {(row[0], row[1]) for row in rows}, columns.shape[1]
    further = FurtherPositives(columns)
    draw = st.lists(st.integers(0, len(rows) - 1), min_size=6, max_size=6)
    parts = [columns[data.draw(draw)] for _ in range(2)]
    labels = further.labels(parts)
    if labels is None:
        for batch in parts:
            assert len(set(batch.ravel())) == batch.size
            assert not any((a, d) in known for a, own, *_ in batch for d in batch[:, 1:].ravel() if d != own)
        return
    room = labels.shape[2] - width
    assert labels.dtype == np.int32
    assert room == 0 or room >= 4
    assert room & (room - 1) == 0
    for batch, label in zip(parts, labels, strict=True):
        np.testing.assert_array_equal(label[:, :width], batch)
        for i, (query, positive, *_) in enumerate(batch):
            given_ = set(label[i, width:].tolist()) - {-1}
            assert {(query, document) for document in given_} <= known
            held_elsewhere = {
                document
                for other in batch
                for column, document in enumerate(other[1:])
                if (query, document) in known and (column > 0 or other[0] != query) and document != positive
            }
            assert held_elsewhere <= given_


def test_data_without_further_positives_needs_no_room() -> None:
    questions_of_few_answers = np.array([[i, 100 + i % 3] for i in range(30)])
    answers_of_many_questions = questions_of_few_answers[:, ::-1]
    for columns in (questions_of_few_answers, answers_of_many_questions, np.arange(20).reshape(10, 2)):
        label = FurtherPositives(columns).labels([columns[[0, *range(len(columns))]]])
        assert label is not None
        assert label.shape == (1, len(columns) + 1, 2)


def test_a_batch_of_nothing_but_different_texts_has_no_numbers() -> None:
    columns = np.array([[0, 1], [2, 3], [0, 4], [5, 4], [5, 6]])
    further = FurtherPositives(columns)
    assert further.labels([columns[[0, 1]], columns[[1, 4]]]) is None
    assert further.labels([columns[[0, 1]], columns[[0, 2]]]) is not None  # the same query
    assert further.labels([columns[[0, 4]]]) is None
    assert further.labels([np.array([[0, 1], [5, 6]]), np.array([[0, 1], [5, 4]])]) is not None  # 0 has 4, too


def test_own_documents_have_equal_keys() -> None:
    np.testing.assert_array_equal(own_documents(["a", "b"], ["c", "b", "b"]), [[1, 1], [1, 2]])
    assert own_documents(["a"], ["b"]).shape == (0, 2)


def test_features_have_texts_of_their_own_too() -> None:
    z = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    ranking = pair_ops.ranking(pair_ops.build_pairs([z[[0, 1, 2]], z[[1, 2, 2]]]))
    assert {(q, d) for q, d in ranking.own} == {(1, 0)}  # of documents 1 and 2, which has itself as a positive
