"""Milvus Lite: what was acknowledged is there, what cannot be is said before anything is sent."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mrl_jax import search
from mrl_jax.search.index import Description, Document, create_index, rerank
from mrl_jax.system.errors import UserError

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from mrl_jax.search.index import milvus, milvus_client, milvus_index

DESCRIPTION = Description(16, (4, 8, 16), 8, "model", "run", "milvus-flat")


def vectors(count: int, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, 16))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def named(count: int, start: int = 0) -> list[Document]:
    return [Document(f"id '{i}\"", f"text {i} “signs”\n") for i in range(start, start + count)]


@pytest.fixture
def index(tmp_path: Path):
    made = milvus.create(str(tmp_path / "index.db"), DESCRIPTION)
    yield made
    made.close()


def test_what_is_found_is_what_brute_force_finds_and_reopening_keeps_it(
    index: milvus.MilvusIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_index, "MAX_MESSAGE_BYTES", 5000)  # several messages
    z, queries = vectors(500), vectors(8, 1)
    index.add(named(500), z)
    x = z[:, :8].astype(np.float64) / np.linalg.norm(z[:, :8].astype(np.float64), axis=1, keepdims=True)
    for _ in range(2):
        assert len(index) == 500
        assert index.description == DESCRIPTION
        handles = index.handles([one.id for one in [*named(3, 7), Document("none", "")]])
        assert index.documents(np.array([*handles.values()])) == named(3, 7)
        blocks = [handles for handles, _ in index.blocks()]
        assert len(blocks) > 1
        assert sorted(one.id for one in index.documents(np.concatenate(blocks))) == sorted(one.id for one in named(500))
        hits = rerank(index, queries, 5, 40)
        for query, scores, rows in zip(queries, hits.scores, hits.rows, strict=True):
            shortlist = np.argsort(-(x @ query[:8]))[:40]
            wanted = shortlist[np.argsort(-(z[shortlist] @ query))][:5]
            assert [one.id for one in index.documents(rows)] == [named(1, i)[0].id for i in wanted]
            np.testing.assert_allclose(scores, z[wanted] @ query, atol=1e-6)
        index.close()
        index = milvus.open_(str(tmp_path / "index.db"))
    index.close()


def test_a_collection_whose_builder_was_killed_before_it_made_the_indexes_is_completed(
    index: milvus.MilvusIndex, tmp_path: Path
) -> None:
    index.add(named(40), vectors(40))
    for name, field in ((milvus.COLLECTION, "vector"), (milvus.COLLECTION + milvus.PREFIXES, "prefix")):
        index._client.release_collection(name)
        index._client.drop_index(name, field)
        assert not index._client.list_indexes(name)
    index.close()
    again = milvus.open_(str(tmp_path / "index.db"))
    assert again.kind == "flat"
    assert [found[0] for found in rerank(again, vectors(40), 1, 40).scores] == pytest.approx([1] * 40, abs=1e-6)
    again.close()


def test_replaced_and_deleted_documents_are_never_found(index: milvus.MilvusIndex) -> None:
    z = vectors(50)
    index.add(named(40), z[:40])
    first, fifth = named(1)[0].id, named(1, 5)[0].id
    index.add([Document(first, "new")], z[45:46])
    assert len(index) == 40
    assert index.find([first, "none"]) == {first: Document(first, "new")}
    assert index.delete([first, fifth, "none"]) == 2
    assert len(index) == 38
    hits = rerank(index, z[:3], 40, 40)
    assert (hits.rows[:, 38:] == -1).all()
    found = {one.id for one in index.documents(hits.rows[0, :38])}
    assert found == {one.id for one in named(40)} - {first, fifth}


WRITER = """
import sys, time
import numpy as np
from mrl_jax.search.index import Document, milvus
index = milvus.open_(sys.argv[1])
index.add([Document(str(i), "x") for i in range(3000)], np.ones((3000, 16), np.float32))
print("added", flush=True)
time.sleep(60)
"""


def test_what_was_acknowledged_survives_kill_9_and_one_process_opens_a_file(tmp_path: Path) -> None:
    place = str(tmp_path / "index.db")
    milvus.create(place, DESCRIPTION).close()
    process = subprocess.Popen([sys.executable, "-c", WRITER, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "added\n"
    with pytest.raises(UserError, match=r"index\.db is in use by another process"):
        milvus.open_(place)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    index = milvus.open_(place)
    assert len(index) == 3000
    index.close()


def test_mistakes_are_said_before_anything_is_sent(index: milvus.MilvusIndex, tmp_path: Path) -> None:
    for documents, z, error, said in (
        (named(2), vectors(2)[:, :8], ValueError, r"vectors have shape \(2, 8\)"),
        (named(2), vectors(2) * np.nan, ValueError, "not finite"),
        ([Document("a", "b")] * 2, vectors(2), ValueError, "have the same id"),
        ([Document("ü" * 300, "b")], vectors(1), UserError, "its id has 600 bytes; Milvus takes 512"),
        ([Document("a", "b" * 65536)], vectors(1), UserError, "document a: its text has 65,536 bytes"),
    ):
        with pytest.raises(error, match=said):
            index.add(documents, z)
    assert len(index) == 0
    with pytest.raises(ValueError, match=r"queries have shape \(1, 8\); the index takes \[Q, 16\]"):
        index.candidates(vectors(1)[:, :8], 3)
    with pytest.raises(UserError, match="at most 16,384 documents per query; 20,000 were asked for"):
        index.candidates(vectors(1), 20_000)


def test_places_that_are_no_index_are_said(index: milvus.MilvusIndex, tmp_path: Path) -> None:
    (tmp_path / "file.db").write_text("no database")
    milvus.create(str(tmp_path / "other.db"), DESCRIPTION, collection="letters").close()
    foreign, _ = milvus_client.connect(str(tmp_path / "foreign.db"), "documents", "")
    foreign.create_collection("documents", dimension=4)
    milvus_client.close(str(tmp_path / "foreign.db"), foreign)
    for place, said in (
        ("none.db", "is not an index: there is no such file"),
        ("file.db", "is not a Milvus Lite database"),
        ("other.db", "has no collection documents; build an index there first"),
        ("foreign.db", "has a collection documents that mrl_jax did not make"),
    ):
        with pytest.raises(UserError, match=said):
            milvus.open_(str(tmp_path / place))
    diskann = DESCRIPTION._replace(kind="milvus-diskann")
    for place, description, said in (
        ("index.db", DESCRIPTION, "has a collection documents already; it is not overwritten"),
        ("no/folder.db", DESCRIPTION, "the folder .*no does not exist"),
        ("new.db", diskann, "--kind=milvus-diskann is unknown.*; allowed: milvus-autoindex, milvus-flat"),
        ("new.db", DESCRIPTION._replace(width=40_000), "at most 32,768 dims; these have 40,000"),
    ):
        with pytest.raises(UserError, match=said):
            create_index(str(tmp_path / place), description)


def test_a_server_that_is_down_is_said_at_once() -> None:
    started = time.monotonic()
    for uri in ("http://127.0.0.1:1", "http://no-such-host.invalid:19530", "http://127.0.0.1:99999"):
        with pytest.raises(UserError, match=f"{uri} does not answer"):
            milvus.open_(uri)
    assert time.monotonic() - started < 60


def test_a_server_that_is_something_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_client, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: [server.accept() for _ in range(9)], daemon=True).start()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=uri):
            milvus.open_(uri)


def test_the_command_line_builds_and_queries(
    tmp_path: Path, tiny: list[str], texts: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    from mrl_jax import train

    command = [*tiny, "evaluation.neighbours=false", "evaluation.refit=null", f"results_dir={tmp_path}", "run=one"]
    assert train.main(command) == 0
    corpus, place = tmp_path / "corpus.jsonl", str(tmp_path / "index.db")
    lines = texts["train"].read_text().splitlines()
    corpus.write_text("".join(line.replace("{", f'{{"_id": "{i}", ', 1) + "\n" for i, line in enumerate(lines)))
    run = str(tmp_path / "tiny" / "one")
    assert search.main(["build", run, str(corpus), "--index", place]) == 0
    assert search.main(["build", run, str(corpus), "--index", place]) == 0
    assert "240 documents, 0 added now, 240 were there" in capsys.readouterr().out
    assert search.main(["query", place, "hockey1 hockey2", "--k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert search.main(["delete", place, "0"]) == 0
    assert "239 documents" in capsys.readouterr().out
