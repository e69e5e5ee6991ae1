"""Copies: no kind of index loses documents to them, whatever the number of copies and however the index came about."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.search.index import BACKENDS, Description, Document, base, create_index, open_index, rerank
from mrl_jax.search.index.distinct import Distinct, find_distinct, group, keys
from mrl_jax.search.truth import best_of_blocks, recall
from mrl_jax.system.errors import UserError

WIDTH, PREFIX = 16, 8
PLACES = {"faiss": "index", "milvus-lite": "index.db"}
KINDS = [(name, kind) for name in PLACES for kind in BACKENDS[name].kinds]
every_kind = pytest.mark.parametrize(("name", "kind"), KINDS)


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, width)) / np.arange(1, width + 1) ** 0.5
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def documents(count: int, start: int = 0) -> list[Document]:
    return [Document(f"{i:05}", f"text {i}") for i in range(start, start + count)]


def description(kind: str, prefix: int = PREFIX, width: int = WIDTH) -> Description:
    return Description(width, tuple(sorted({prefix, width})), prefix, "model", "run#mrl#0", kind)


def create(name: str, kind: str, folder: Path, z: np.ndarray):
    pytest.importorskip({"faiss": "faiss", "milvus": "milvus_lite"}[BACKENDS[name].extra or ""])
    index = create_index(str(folder / PLACES[name]), description(kind))
    for start in range(0, len(z), 700):
        some = z[start : start + 700]
        index.add(documents(len(some), start), some)
    return index


def ids(index, rows: np.ndarray) -> list[int]:
    return [int(one.id) for one in index.documents(rows[rows >= 0])]


# ---- groups ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=30))
def test_groups_hold_equal_items_ascending_and_come_in_the_order_of_their_first(items: list[int]) -> None:
    groups = group(keys(np.array(items, np.float32)[:, None]))
    wanted = {item: [i for i, other in enumerate(items) if other == item] for item in items}
    assert [groups.of(g).tolist() for g in range(len(groups))] == list(wanted.values())
    assert groups.firsts.tolist() == [places[0] for places in wanted.values()]


def test_keys_are_equal_where_rows_are() -> None:
    z = np.float32([[0, 1], [-0.0, 1], [1, 0], [0, np.nextafter(np.float32(1), 2)]])
    some = keys(z).tolist()
    assert some[0] == some[1]
    assert len(set(map(tuple, some))) == 3
    wide = np.ascontiguousarray(vectors(9)[:, ::2])
    np.testing.assert_array_equal(keys(vectors(9)[:, ::2]), keys(wide))  # whatever the strides


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25), st.data())
def test_entries_expand_to_what_a_loop_over_the_documents_finds(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Coordinates (cos, sin, tail): the prefix says the first number, the whole both."""
    x = np.array([(np.cos(a), np.sin(a), b) for a, b in pairs], np.float32).reshape(-1, 3)
    rows = np.arange(len(x)) * 2 + 1  # others are of deleted documents
    cuts = [0, len(x) // 2, len(x)]
    distinct = find_distinct(((rows[a:b], x[a:b]) for a, b in pairwise(cuts)), 2)
    prefixes, embeddings = list(dict.fromkeys(a for a, _ in pairs)), list(dict.fromkeys(pairs))
    assert distinct.rows.tolist() == [rows[[a for a, _ in pairs].index(prefix)] for prefix in prefixes]
    entries = data.draw(st.permutations(range(len(prefixes))))
    size = data.draw(st.integers(1, 12))
    firsts = [rows[pairs.index(pair)] for entry in entries for pair in embeddings if pair[0] == prefixes[entry]][:size]
    expanded = distinct.expand(np.array([[*entries, -1]], np.int64), size)
    assert expanded.tolist() == [firsts + [-1] * (size - len(firsts))]
    for row, copies in zip(firsts, distinct.copies(np.array(firsts, np.int64), 3), strict=True):
        pair = pairs[rows.tolist().index(row)]
        assert copies.tolist() == [r for r, other in zip(rows, pairs, strict=True) if other == pair][:3]
    again = Distinct.from_file(io.BytesIO(distinct.to_bytes()))
    np.testing.assert_array_equal(again.rows, distinct.rows)


# ---- back ends -------------------------------------------------------------------------------------------------------


@every_kind
def test_what_is_alike_hides_nothing_and_everything_can_be_had(name: str, kind: str, tmp_path: Path) -> None:
    """1,500 of 1,900 documents alike: the best is found beside them, and as many as are asked for come back."""
    z = vectors(1900)
    z[200:1700] = z[0]
    index = create(name, kind, tmp_path, z)
    queries = vectors(20, 1)
    queries[0] = z[0]
    found = rerank(index, queries, 5, 100)
    truth = best_of_blocks(index.blocks(), queries, 5)
    assert ids(index, found.rows[0]) == [0, 200, 201, 202, 203]
    assert recall(found, truth).mean() >= (0.8 if kind in ("faiss-pq", "faiss-ivf") else 0.95)
    everything = rerank(index, queries[:2], 1900, 1900)
    for rows, scores, query in zip(everything.rows, everything.scores, queries, strict=False):
        assert sorted(ids(index, rows)) == list(range(1900))
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(scores, np.sort(z @ query)[::-1], atol=1e-6)
    index.close()


@every_kind
def test_recall_does_not_depend_on_copies(name: str, kind: str, tmp_path: Path) -> None:
    """Each document twice, or one of them six hundred times: as without, within 0.01."""
    z, queries = vectors(600), vectors(60, 1)
    measured = []
    for case, copies in enumerate((z[:0], z, np.repeat(z[:1], 600, axis=0))):
        (tmp_path / str(case)).mkdir()
        index = create(name, kind, tmp_path / str(case), np.concatenate([z, copies]))
        truth = best_of_blocks(index.blocks(), queries, 10)
        measured.append(recall(rerank(index, queries, 10, 100), truth).mean())
        index.close()
    assert min(measured[1:]) >= measured[0] - 0.01


@pytest.mark.parametrize(
    ("name", "kind"), [("faiss", "faiss-hnsw"), ("faiss", "faiss-ivf"), ("milvus-lite", "milvus-hnsw")]
)
@settings(max_examples=8, deadline=None)
@given(
    history=st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=6)),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_any_history_of_copies_leaves_what_a_dictionary_would_hold(
    name: str, kind: str, history: list, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    index, sorts = create(name, kind, folder, vectors(0)), vectors(4)
    sorts[3, :PREFIX] = sorts[2, :PREFIX]  # another embedding with the same prefix
    held = {9: 0}
    index.add([Document("9", "")], sorts[:1])
    for adding, changes in history:
        changed = dict(changes)
        if adding:
            index.add([Document(str(id_), "") for id_ in changed], sorts[list(changed.values())])
            held |= changed
        else:
            known = index.delete([str(id_) for id_ in changed])
            assert known == sum(held.pop(id_, None) is not None for id_ in changed)
        if not held:
            held[9] = 0
            index.add([Document("9", "")], sorts[:1])
        assert len(index) == len(held)
        for sort, scores in enumerate(sorts @ sorts.T):
            best = sorted(held, key=lambda id_: -scores[held[id_]])
            found = rerank(index, sorts[sort : sort + 1], len(held), len(held))
            assert sorted(ids(index, found.rows[0])) == sorted(held)
            np.testing.assert_allclose(found.scores[0], [scores[held[id_]] for id_ in best], atol=1e-5)
    index.close()


def test_an_index_of_faiss_has_each_prefix_once_and_a_file_of_before_is_built_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    faiss = pytest.importorskip("faiss")
    z = vectors(500)
    z[100:] = z[:1]
    index = create("faiss", "faiss-hnsw", tmp_path, z)
    index.prepare()
    assert index.searchable[0].ntotal == 100
    (path,) = (tmp_path / "index").glob("*.index")
    old = faiss.index_factory(PREFIX, "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
    old.add(base.unit(z[:, :PREFIX]))
    path.write_bytes(b"0" * 64 + b"\n" + faiss.serialize_index(old).tobytes())
    index.close()
    index = open_index(str(tmp_path / "index"))
    assert ids(index, rerank(index, z[:1], 3, 10).rows[0]) == [0, 100, 101]
    assert "of an earlier version; it is made again" in capsys.readouterr().err
    index.close()


def test_a_milvus_collection_of_before_is_searched_and_changed_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    from mrl_jax.search.index import milvus, milvus_client

    place, about, z = str(tmp_path / "index.db"), description("milvus-flat"), vectors(60)
    client, types = milvus_client.connect(place, "documents", "")
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.VARCHAR, is_primary=True, max_length=512)
    schema.add_field("text", types.VARCHAR, max_length=65535)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=WIDTH)
    schema.add_field("prefix", types.FLOAT_VECTOR, dim=PREFIX)
    client.create_collection("documents", schema=schema, properties={"mrl_jax": about.to_json()})
    milvus_client.close(place, client)
    index = milvus.open_(place)
    index.add(documents(60), z)
    index.close()
    index = milvus.open_(place)
    assert index.delete(["00003", "none"]) == 1
    found = rerank(index, z[5:6], 59, 59)
    wanted = np.argsort(-(z @ z[5]))
    assert ids(index, found.rows[0]) == wanted[wanted != 3].tolist()
    index.close()


# ---- product quantisation and errors of libraries --------------------------------------------------------------------


def test_bytes_of_a_quantised_vector_divide_it() -> None:
    for dim in range(1, 401):
        assert base.quantised_bytes(dim) == max(m for m in range(1, max(1, dim // 4) + 1) if dim % m == 0)


@pytest.mark.parametrize("prefix", [1, 2, 3, 5, 7, 13, 17, 75, 121])
def test_any_prefix_can_be_quantised_and_searched(prefix: int, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    width = prefix + 3
    z = vectors(300, width=width)
    index = create_index(str(tmp_path / "index"), description("faiss-pq", prefix, width))
    index.add(documents(300), z)
    if prefix == 1:  # of unit length: 1 or −1
        with pytest.raises(UserError, match="needs at least 256 documents with different prefixes; there are 2"):
            index.prepare()
    else:
        assert ids(index, rerank(index, z[7:8], 1, 300).rows[0]) == [7]
    index.close()


def test_errors_of_a_library_are_sentences_with_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    index = create("faiss", "faiss-flat", tmp_path, vectors(30))
    monkeypatch.setattr(faiss, "index_factory", lambda *_: faiss.IndexPQ(PREFIX, 3, 8, faiss.METRIC_INNER_PRODUCT))
    with pytest.raises(UserError, match=r"FAISS cannot search 8 dims as faiss-flat: .*d % M == 0"):
        index.prepare()
    index.close()
