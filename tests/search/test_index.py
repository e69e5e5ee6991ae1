"""Folders of documents: what was acknowledged is there after a kill, what is damaged is named, and searches agree with
brute force, in JAX and in FAISS."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.search.dispatch import search_index
from mrl_jax.search.index import Description, Document, create_index, exact, faiss, rerank
from mrl_jax.system.errors import UserError

DIMS = (4, 8, 16)
WIDTH = 16


def description(kind: str = "exact", prefix: int = 8) -> Description:
    return Description(WIDTH, DIMS, prefix, "model", "run", kind)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, WIDTH)) / np.arange(1, WIDTH + 1) ** 0.5
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def named(count: int, start: int = 0) -> list[Document]:
    return [Document(f"id {i}", f"text {i}\n with ‘signs’ \0") for i in range(start, start + count)]


def make(kind: str, folder: Path, prefix: int = 8):
    module = exact if kind == "exact" else faiss
    return module.create(folder, description(kind, prefix))


def reopen(kind: str, folder: Path, write: bool = False):
    return (exact if kind == "exact" else faiss).open_(folder, write)


def ids(index, hits) -> list[list[str]]:
    return [[one.id for one in index.documents(rows[rows >= 0])] for rows in hits.rows]


def best(z: np.ndarray, query: np.ndarray, k: int, size: int, prefix: int) -> list[int]:
    """By hand: the `size` best by cosine on the prefix, ranked by the whole."""
    x = z[:, :prefix].astype(np.float64)
    shortlist = np.argsort(-(x @ query[:prefix]) / np.linalg.norm(x, axis=1), kind="stable")[:size]
    return list(shortlist[np.argsort(-(z[shortlist].astype(np.float64) @ query), kind="stable")][:k])


EVERY = ("exact", "faiss-flat", "faiss-hnsw", "faiss-ivf", "faiss-pq")


@pytest.mark.parametrize("kind", ["exact", "faiss-hnsw8", "faiss-rabitq"])
def test_a_search_after_the_first_reads_no_document_but_what_it_finds(kind: str, tmp_path: Path) -> None:
    """No statement of SQL visits every document, as counting them would; changes are counted all the same."""
    if kind != "exact":
        pytest.importorskip("faiss")
    with contextlib.closing(make(kind, tmp_path / "index")) as index:
        index.add(named(300), vectors(300))
        search_index(index, vectors(1, 1), 5, [(index.description.scanned, 20)])
        asked: list[str] = []
        index._connection.set_trace_callback(asked.append)
        hits = search_index(index, vectors(1, 2), 5, [(index.description.scanned, 20)])
        index.documents(hits.rows[0])
        index._connection.set_trace_callback(None)
        for statement in asked:
            (*_, plan) = index._connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchone()
            assert not plan.startswith("SCAN documents"), statement
        index.add(named(7, start=300), vectors(7, 3))
        assert len(index) == 307
        assert index.delete(["id 3", "id 305"]) == 2
        assert len(index) == 305


@pytest.mark.parametrize("kind", EVERY)
def test_searches_agree_with_brute_force_and_survive_reopening(kind: str, tmp_path: Path) -> None:
    z, queries = vectors(1200), vectors(20, 1)
    index = make(kind, tmp_path / "index")
    index.add(named(700), z[:700])
    index.add(named(500, 700), z[700:])
    index.close()
    index = reopen(kind, tmp_path / "index")
    assert len(index) == 1200
    assert index.description == description(kind)
    found = ids(index, rerank(index, queries, 5, 60))
    wanted = [[f"id {i}" for i in best(z, q, 5, 60, 8)] for q in queries]
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, wanted, strict=True)])
    assert shared >= {"faiss-flat": 1.0, "exact": 0.99}.get(kind, 0.6)  # cells, graphs and codes are approximate
    np.testing.assert_array_equal(index.vectors(np.array([3, 900])), z[[3, 900]])
    assert index.handles(["id 900", "none", "id 3"]) == {"id 3": 3, "id 900": 900}
    again = rerank(reopen(kind, tmp_path / "index"), queries, 5, 60)
    assert ids(index, again) == found


def test_exact_search_over_the_index_is_exact(tmp_path: Path) -> None:
    z, queries = vectors(3000), vectors(20, 1)
    index = make("exact", tmp_path / "index", prefix=4)
    index.add(named(3000), z)
    hits = index.search(queries, 7, None)
    assert ids(index, hits) == [[f"id {i}" for i in best(z, q, 7, 3000, 16)] for q in queries]
    hits = index.search(queries, 7, [(4, 200)])
    wanted = [{f"id {i}" for i in best(z, q, 7, 200, 4)} for q in queries]
    assert np.mean([len(a & set(b)) / 7 for a, b in zip(wanted, ids(index, hits), strict=True)]) > 0.97


@pytest.mark.parametrize("kind", ["exact", "faiss-flat"])
def test_replaced_and_deleted_documents_are_never_found(kind: str, tmp_path: Path) -> None:
    z = vectors(300)
    index = make(kind, tmp_path / "index")
    index.add(named(200), z[:200])
    assert ids(index, rerank(index, z[:1], 1, 20)) == [["id 0"]]
    index.add([Document("id 0", "new")], z[250:251])
    assert len(index) == 200
    assert index.find(["id 0", "none"]) == {"id 0": Document("id 0", "new")}
    assert ids(index, rerank(index, z[250:251], 1, 20)) == [["id 0"]]
    assert ids(index, rerank(index, z[:1], 1, 20)) != [["id 0"]]
    assert index.delete(["id 0", "id 5", "none"]) == 2
    assert len(index) == 198
    found = ids(index, rerank(index, z[:200], 198, 198))
    assert all(set(f) == {f"id {i}" for i in range(200)} - {"id 0", "id 5"} for f in found)
    index.close()
    assert len(reopen(kind, tmp_path / "index")) == 198


@pytest.mark.parametrize("kind", ["exact", "faiss-flat"])
def test_few_or_no_documents_leave_places_empty(kind: str, tmp_path: Path) -> None:
    index = make(kind, tmp_path / "index")
    if kind == "exact":
        assert (rerank(index, vectors(2), 3, 5).rows == -1).all()
        assert (index.search(vectors(2), 3, None).rows == -1).all()
    else:
        with pytest.raises(
            UserError, match=r"faiss-flat needs at least 1 documents with different prefixes; there are 0"
        ):
            rerank(index, vectors(2), 3, 5)
    index.add(named(2), vectors(2))
    assert [sorted(f) for f in ids(index, rerank(index, vectors(2, 1), 3, 5))] == [["id 0", "id 1"]] * 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 12), min_size=1, max_size=6)), max_size=8))
def test_any_history_of_changes_leaves_what_a_dictionary_would_hold(tmp_path_factory, history) -> None:
    folder = tmp_path_factory.mktemp("index")
    held: dict[str, tuple[str, np.ndarray]] = {}
    index = make("exact", folder)
    for step, (adding, some) in enumerate(history):
        names = [f"id {i}" for i in sorted(some)]
        if adding:
            z = vectors(len(names), seed=step)
            index.add([Document(name, f"{name} {step}") for name in names], z)
            held |= {name: (f"{name} {step}", row) for name, row in zip(names, z, strict=True)}
        else:
            assert index.delete(names) == sum(held.pop(name, None) is not None for name in names)
        if step % 3 == 2:
            index.close()
            index = reopen("exact", folder, write=True)
    assert len(index) == len(held)
    hits = rerank(index, np.eye(1, WIDTH, dtype=np.float32), 13, 13)
    rows = hits.rows[hits.rows >= 0]
    found = {d.id: (d.text, z) for d, z in zip(index.documents(rows), index.vectors(rows), strict=True)}
    assert {name: text for name, (text, _) in found.items()} == {name: text for name, (text, _) in held.items()}
    for name, (_, row) in found.items():
        np.testing.assert_array_equal(row, held[name][1])
    index.close()


WRITER = """
import sys, numpy as np
from pathlib import Path
from mrl_jax.search.index import Document, exact
index = exact.open_(Path(sys.argv[1]), write=True)
rng = np.random.default_rng(0)
for batch in range(10_000):
    index.add([Document(f"{batch} {i}", "x" * 500) for i in range(200)], np.full((200, 16), batch, np.float32))
    print(batch, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    make("exact", tmp_path / "index").close()
    rng = np.random.default_rng(0)
    acknowledged = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER.replace("range(10_000)", f"range({acknowledged}, 10_000)"),
             str(tmp_path / "index")], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(int(rng.integers(2, 12))):
            acknowledged = int(process.stdout.readline()) + 1
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += len(process.stdout.read().split())  # said before it died
        process.wait()
        index = reopen("exact", tmp_path / "index")
        index.verify()
        assert len(index) in (200 * acknowledged, 200 * (acknowledged + 1))  # the last may be there unsaid
        rows = np.flatnonzero(index.verify())
        stored = {d.id: z[0] for d, z in zip(index.documents(rows), index.vectors(rows), strict=True)}
        assert all(stored[f"{batch} {i}"] == batch for batch in range(acknowledged) for i in (0, 199))
        acknowledged = len(index) // 200
        index.close()


# ---- damage and mistakes ---------------------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path) -> Path:
    index = make("exact", tmp_path / "index")
    index.add(named(400), vectors(400))
    index.close()
    return tmp_path / "index"


def test_a_flipped_bit_is_found_before_anything_is_searched(built: Path) -> None:
    content = bytearray((built / "vectors.f32").read_bytes())
    content[12345] ^= 4
    (built / "vectors.f32").write_bytes(content)
    with pytest.raises(UserError, match=r"vectors\.f32 is damaged in rows 0 to 400; rebuild the index"):
        rerank(reopen("exact", built), vectors(1), 3, 10)


def test_a_damaged_faiss_file_is_rebuilt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    index = make("faiss-flat", tmp_path)
    index.add(named(100), vectors(100))
    wanted = ids(index, rerank(index, vectors(3, 1), 3, 10))
    (path,) = tmp_path.glob("*.index")
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    index.close()
    index = reopen("faiss-flat", tmp_path)
    assert ids(index, rerank(index, vectors(3, 1), 3, 10)) == wanted
    assert "is damaged or of an earlier version; it is made again" in capsys.readouterr().err


def test_what_is_not_an_index_is_said(built: Path, tmp_path: Path) -> None:
    for change, said in (
        (lambda: (built / "vectors.f32").write_bytes(b"short"), "5 bytes of 25,600; rebuild the index"),
        (lambda: (built / "documents.sqlite").write_bytes(b"no database at all" * 99), "documents.sqlite is damaged"),
        (lambda: (built / "documents.sqlite").unlink(), "is not an index: documents.sqlite or vectors.f32 is missing"),
    ):
        change()
        with pytest.raises(UserError, match=said):
            reopen("exact", built)
    with pytest.raises(UserError, match="is not an index"):
        reopen("exact", tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists and is not empty; it is not overwritten"):
        make("exact", built)


def test_an_index_of_another_format_is_refused(built: Path) -> None:
    with sqlite3.connect(built / "documents.sqlite") as connection:
        connection.execute("UPDATE about SET value = '99' WHERE key = 'format'")
    with pytest.raises(UserError, match="has format 99; this version reads 2"):
        reopen("exact", built)


def test_one_writer_at_a_time_and_readers_beside_it(built: Path) -> None:
    writer = reopen("exact", built, write=True)
    with pytest.raises(UserError, match="is being written by another process"):
        reopen("exact", built, write=True)
    reader = reopen("exact", built)
    before = ids(reader, rerank(reader, vectors(1, 1), 3, 20))
    writer.add(named(50, 400), vectors(50, 2))
    assert ids(reader, rerank(reader, vectors(1, 1), 3, 20)) == before
    with pytest.raises(UserError, match="was opened for reading"):
        reader.delete(["id 1"])
    writer.close()
    reopen("exact", built, write=True).close()


def test_vectors_that_do_not_fit_are_refused_and_nothing_is_kept(built: Path) -> None:
    index = reopen("exact", built, write=True)
    for documents, z, said in (
        (named(2, 900), vectors(2)[:, :8], r"vectors have shape \(2, 8\); 2 documents of this index take \[2, 16\]"),
        (named(2, 900), vectors(3), r"vectors have shape \(3, 16\)"),
        (named(2, 900), vectors(2) * np.nan, "not finite"),
        ([Document("a", ""), Document("a", "")], vectors(2), "have the same id"),
    ):
        with pytest.raises(ValueError, match=said):
            index.add(documents, z)
    assert len(index) == 400
    with pytest.raises(ValueError, match=r"queries have shape \(1, 8\)"):
        rerank(index, vectors(1)[:, :8], 3, 10)


def test_kinds_that_faiss_has_not_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--kind=faiss-hsnw is unknown \(did you mean faiss-hnsw\?\)"):
        create_index(str(tmp_path / "x"), description("faiss-hsnw"))
    index = make("faiss-pq", tmp_path / "y")
    index.add(named(100), vectors(100))
    with pytest.raises(UserError, match="faiss-pq needs at least 256 documents with different prefixes; there are 100"):
        rerank(index, vectors(1), 3, 10)
