"""A real Milvus server: what was acknowledged is found at once and for good, and mistakes are one sentence."""

import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrl_jax import search
from mrl_jax.search.index import BACKENDS, Description, Document, create_index, exists, open_index, rerank
from mrl_jax.search.truth import best_of_blocks, recall
from mrl_jax.system.errors import UserError

# On a busy machine the server answers for minutes from a part of what it has, after a restart and after a build, and
# does not say so: what is measured here then fails, so it is no test of every change.
if "MRL_JAX_CAMPAIGNS" not in os.environ:
    pytest.skip("set MRL_JAX_CAMPAIGNS=1 to start a Milvus server", allow_module_level=True)
if (sys.platform, platform.machine()) != ("linux", "x86_64"):
    pytest.skip("the wheel of the Milvus server is for Linux on x86-64", allow_module_level=True)
pytest.importorskip("milvus", reason="there is no Milvus server: pip install 'mrl_jax[milvus-server]'")
pytest.importorskip("pymilvus")

from milvus_server import PASSWORD, MilvusServer

from mrl_jax.search.index import milvus, milvus_client, milvus_collections, milvus_index

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKEN = f"root:{PASSWORD}"
SETTINGS = {"authorization_enabled": True, "common.session.ttl": 5}  # seconds until a killed server is given up
WIDTH, PREFIX = 32, 8
RELOAD_SECONDS = 120


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """One server for all tests, which asks for a token."""
    started = MilvusServer(tmp_path_factory.mktemp("milvus"), SETTINGS)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def place(server: MilvusServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty database, to which the environment has the token."""
    monkeypatch.setenv(milvus_client.TOKEN, TOKEN)
    name = f"test_{abs(hash(request.node.nodeid))}"
    client, _ = milvus_client.connect(server.uri, "any", "")
    milvus_client.call(client, "create_database", name)
    milvus_client.close(server.uri, client)
    return f"{server.uri}/{name}"


def description(kind: str = "flat", prefix: int = PREFIX, width: int = WIDTH) -> Description:
    return Description(width, tuple(sorted({4, prefix, width})), prefix, "model", "run#mrl#0", f"milvus-{kind}")


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(count, width))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def documents(count: int, start: int = 0, text: str = "text") -> list[Document]:
    return [Document(f"id '{i:05d}\"", f"{text} {i} “signs”\n") for i in range(start, start + count)]


def add(index: Any, z: np.ndarray, batch: int = 1000) -> None:
    for start in range(0, len(z), batch):
        index.add(documents(len(z[start : start + batch]), start), z[start : start + batch])


def found_ids(index: Any, rows: np.ndarray) -> list[int]:
    return [int(one.id[4:9]) for one in index.documents(rows[rows >= 0])]


# ---- what is stored is found -----------------------------------------------------------------------------------------


def test_flat_finds_what_brute_force_finds_before_and_after_it_is_written_to_disk(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_index, "MAX_MESSAGE_BYTES", 1 << 18)  # several messages and pages
    z, queries = vectors(5000), vectors(20, 1)
    assert not exists(place)
    index = create_index(place, description())
    add(index, z)
    prefixes = z[:, :PREFIX] / np.linalg.norm(z[:, :PREFIX], axis=1, keepdims=True)
    for _ in range(2):
        assert len(index) == 5000
        pages = [found_ids(index, handles) for handles, _ in index.blocks()]
        assert len(pages) > 1
        assert sorted(id_ for page in pages for id_ in page) == list(range(5000))
        hits = rerank(index, queries, 10, 100)
        for query, scores, rows in zip(queries, hits.scores, hits.rows, strict=True):
            shortlist = np.argsort(-(prefixes @ query[:PREFIX]))[:100]
            wanted = shortlist[np.argsort(-(z[shortlist] @ query))][:10]
            assert found_ids(index, rows) == wanted.tolist()
            np.testing.assert_allclose(scores, z[wanted] @ query, atol=1e-6)
        everything = rerank(index, queries[:3], 10, 5000)  # then the truth itself
        assert recall(everything, best_of_blocks(index.blocks(), queries[:3], 10)).min() == 1
        index.prepare()
        index.close()
        assert exists(place)
        index = open_index(place)
        assert index.description == description()
    index.close()


@pytest.mark.parametrize("kind", [kind.removeprefix("milvus-") for kind in BACKENDS["milvus"].kinds])
def test_every_kind_is_created_found_again_and_searched_by_its_own_index(
    place: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, queries = vectors(3000), vectors(3, 1)
    if kind == "diskann":  # the server of the wheel has it by name only
        monkeypatch.setattr(milvus_collections, "PROBE_SECONDS", 5.0)
        with pytest.raises(UserError, match="does not build an index of kind milvus-diskann; take another --kind"):
            create_index(place, description(kind))
        assert not exists(place)
        return
    index = create_index(place, description(kind))
    add(index, z, 1500)
    index.prepare()
    index.close()
    index = open_index(place)
    about = index._client.describe_index(index.searched, "prefix")
    assert about["index_type"].lower() == kind
    assert (about["indexed_rows"], about["pending_index_rows"]) == (3000, 0)
    truth = best_of_blocks(index.blocks(), queries, 10)
    assert recall(rerank(index, queries, 10, 3000), truth).min() == 1  # a shortlist of everything
    own = rerank(index, z[:50], 1, 50)
    assert np.mean([found_ids(index, row) == [i] for i, row in enumerate(own.rows)]) >= (0.7 if "pq" in kind else 0.95)
    index.close()
    with pytest.raises(UserError, match="not overwritten"):
        create_index(place, description(kind))


def test_hnsw_on_disk_finds_nearly_all_that_an_exact_shortlist_finds(place: str) -> None:
    z, queries = vectors(20_000, width=64), vectors(100, 1, width=64)
    index = create_index(place, description("hnsw", 16, 64))
    add(index, z, 5000)
    index.prepare()
    x = z[:, :16] / np.linalg.norm(z[:, :16], axis=1, keepdims=True)
    shortlists = np.argsort(-(queries[:, :16] @ x.T), axis=1)[:, :100]
    got = index.candidates(queries, 100)
    shares = [len(set(found_ids(index, a)) & set(b.tolist())) / 100 for a, b in zip(got, shortlists, strict=True)]
    assert np.mean(shares) >= 0.95
    index.close()


def test_what_was_acknowledged_is_seen_at_once_by_everybody(place: str) -> None:
    z = vectors(60)
    index = create_index(place, description("hnsw"))
    other = open_index(place)
    for start in range(0, 40, 10):
        index.add(documents(10, start), z[start : start + 10])
        assert len(other) == start + 10
        assert other.find([documents(1, start + 9)[0].id])
        assert found_ids(other, rerank(other, z[start : start + 10], 1, 10).rows[:, 0]) == [*range(start, start + 10)]
    first = documents(1)[0].id
    index.add([Document(first, "new")], z[50:51])
    assert len(other) == 40
    assert other.find([first]) == {first: Document(first, "new")}
    assert found_ids(other, rerank(other, z[50:51], 1, 10).rows[0]) == [0]
    np.testing.assert_allclose(rerank(other, z[:1], 40, 40).scores.max(), np.sort(z[1:40] @ z[0])[-1], atol=1e-6)
    assert index.delete([first, documents(1, 5)[0].id, "none"]) == 2
    assert len(other) == 38
    assert sorted(found_ids(other, rerank(other, z[:1], 40, 40).rows[0])) == [1, 2, 3, 4, *range(6, 40)]
    assert other._count(other.searched) == 38  # no prefix is left behind
    index.close()
    other.close()


def test_a_batch_larger_than_a_message_is_stored_in_several(place: str) -> None:
    index = create_index(place, description())
    many = [Document(str(i), f"{i:05d} " + "x" * 64_000) for i in range(1100)]  # 70 MB; servers take 64 at a time
    index.add(many, vectors(1100))
    assert len(index) == 1100
    assert index.find([one.id for one in many]) == {one.id: one for one in many}
    index.close()


# ---- several writers -------------------------------------------------------------------------------------------------


def test_writers_that_replace_the_same_documents_leave_each_of_them_findable(place: str) -> None:
    """Documents share few prefixes, which become unused and used again all the time."""
    create_index(place, description()).close()
    sorts = vectors(6)

    def write(seed: int) -> None:
        index, rng = open_index(place), np.random.default_rng(seed)
        for _ in range(25):
            chosen = rng.choice(12, rng.integers(1, 5), replace=False)
            index.add([documents(1, i)[0] for i in chosen], sorts[rng.integers(0, 6, len(chosen))])
            index.delete([documents(1, rng.integers(12))[0].id])
        index.close()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    index = open_index(place)
    stored = sorted(id_ for handles, _ in index.blocks() for id_ in found_ids(index, handles))
    assert len(stored) == len(index)
    assert sorted(found_ids(index, rerank(index, sorts[:1], 12, 12).rows[0])) == stored
    index.close()


def test_of_builds_that_begin_at_the_same_moment_each_works_or_says_why_not(place: str) -> None:
    z, said, begin = vectors(40), [], threading.Barrier(4)

    def build(kind: str) -> None:
        begin.wait()
        try:
            index = create_index(place, description(kind))
        except UserError as error:
            said.append(str(error))
            index = open_index(place)
        index.add(documents(40), z)
        index.close()

    builds = [threading.Thread(target=build, args=(kind,)) for kind in ("flat", "flat", "hnsw", "flat")]
    for one in builds:
        one.start()
    for one in builds:
        one.join()
    assert all("has a collection documents already; it is not overwritten" in one for one in said), said
    index = open_index(place)
    assert len(index) == 40
    assert found_ids(index, rerank(index, z, 1, 40).rows[:, 0]) == [*range(40)]
    index.close()


# ---- a server that is killed -----------------------------------------------------------------------------------------

WRITER = """
import sys
import numpy as np
from mrl_jax.search.index import Document, create_index, exists, milvus_client, open_index, Description
from mrl_jax.system.errors import UserError
place, seconds, start = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
milvus_client.call.__defaults__ = ()
milvus_client.call.__kwdefaults__["seconds"] = seconds
z = np.random.default_rng(0).normal(size=(20000, 32)).astype(np.float32)
z /= np.linalg.norm(z, axis=1, keepdims=True)
try:
    index = open_index(place)
    for i in range(start, 20000, 200):
        index.add([Document(str(j), f"text {j}") for j in range(i, i + 200)], z[i : i + 200])
        print(i + 200, flush=True)
    print("done", flush=True)
except UserError as error:
    print(f"error: {error}", flush=True)
"""


def start_writer(place: str, seconds: float, start: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, place, str(seconds), str(start)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def missing(place: str, count: int) -> list[int]:
    """Of documents 0 … count − 1, those that are not there or not found by their own embedding."""
    z = np.random.default_rng(0).normal(size=(20000, WIDTH)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    index = open_index(place)
    stored = index.find([str(i) for i in range(count)])
    lost = [i for i in range(count) if stored.get(str(i)) != Document(str(i), f"text {i}")]
    best = rerank(index, z[:count:10], 1, 20).rows[:, 0]
    lost += [i for i, one in zip(range(0, count, 10), index.documents(best), strict=True) if one.id != str(i)]
    index.close()
    return lost


def missing_for_good(place: str, count: int) -> list[int]:
    """As `missing`, after as long as a server that was started again may take to load what it has: until then it
    answers from a part of it, and does not say so."""
    until = time.monotonic() + RELOAD_SECONDS
    while (lost := missing(place, count)) and time.monotonic() < until:
        time.sleep(2)
    return lost


def test_a_build_outlives_a_server_that_is_killed_and_started_again_and_nothing_is_lost(
    server: MilvusServer, place: str
) -> None:
    create_index(place, description()).close()
    acknowledged = 0
    for rounds, seconds in ((1, 60.0), (2, 1.0)):  # the second one does not wait so long, and is begun again
        writer = start_writer(place, seconds, acknowledged)
        assert writer.stdout is not None
        for line in writer.stdout:
            assert line.strip().isdecimal(), line
            acknowledged = int(line)
            if acknowledged >= 4000 * rounds:
                break
        server.kill()
        if seconds == 1:
            rest = writer.stdout.read().split("\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest if line.isdecimal())])
            assert rest[-2] == f"error: {place} stopped answering"
        server.start()
        if seconds == 60:
            line = writer.stdout.readline()  # it goes on
            assert line.strip().isdecimal(), line
            acknowledged = int(line)
            assert missing_for_good(place, acknowledged) == []
            writer.kill()
            rest = writer.stdout.read().split("\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest if line.isdecimal())])
        writer.wait()
        assert missing_for_good(place, acknowledged) == []
    writer = start_writer(place, 60.0, acknowledged)
    assert writer.communicate()[0].split()[-1] == "done"
    assert missing_for_good(place, 20000) == []
    assert len(open_index(place)) == 20000


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_wrong_tokens_and_databases_are_said_and_no_token_is_printed(
    server: MilvusServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_index(place, description()).close()
    for token in ("", "root:secret-Word", "nobody:secret-Word", "secret-Word"):
        monkeypatch.setenv(milvus_client.TOKEN, token)
        for action in (exists, open_index, lambda where: create_index(where, description())):
            with pytest.raises(UserError) as error:
                action(place)
            assert f"{place} does not accept the token" in str(error.value), token
            assert "secret" not in str(error.value)
            assert "\n" not in str(error.value)
    assert exists(place, token=TOKEN)
    with pytest.raises(UserError, match=r"/nowhere: .*nowhere"):
        open_index(f"{server.uri}/nowhere", token=TOKEN)
    secret = server.uri.replace("://", "://root:secret@")
    with pytest.raises(UserError, match="the address of a server holds no name and no password") as error:
        open_index(secret)
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="is no address of a server"):
        open_index(f"{server.uri}/a/b")
    with pytest.raises(UserError, match="--token is for a Milvus server"):
        open_index("somewhere", token=TOKEN)


def test_collections_that_do_not_fit_are_said(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, types = milvus_client.connect(place, "any", "")

    def make(name: str, metric: str, width: int, about: Description) -> None:
        key = {"datatype": types.VARCHAR, "is_primary": True, "max_length": 64}
        for collection, first, second, dim in (
            (name, "id", "vector", width), (name + milvus.PREFIXES, "key", "prefix", PREFIX),
        ):  # fmt: skip
            schema = client.create_schema(auto_id=False, description=about.to_json())
            schema.add_field(first, **key)
            schema.add_field(second, types.FLOAT_VECTOR, dim=dim)
            client.create_collection(collection, schema=schema)
            params = client.prepare_index_params()
            params.add_index(second, index_name=second, index_type="FLAT", metric_type=metric)
            client.create_index(collection, params)

    make("wide", "IP", WIDTH + 1, description())
    make("far", "L2", WIDTH, description())
    client.create_collection("foreign", dimension=4)
    milvus_client.close(place, client)
    for collection, said in (
        ("wide", "vector of wide should have 32 dims compared by IP, and has 33 compared by IP; rebuild the index"),
        ("far", "prefix of far_prefixes should have 8 dims compared by IP, and has 8 compared by L2"),
        ("foreign", "has a collection foreign that mrl_jax did not make"),
        ("none", "has no collection none; build an index there first"),
    ):
        with pytest.raises(UserError, match=said):
            milvus.open_(place, collection=collection)
    with pytest.raises(UserError, match="--kind=milvus-hsnw is unknown"):
        create_index(place, description("hsnw"))
    from pymilvus import MilvusClient

    monkeypatch.setattr(MilvusClient, "get_server_version", lambda self, **_: "v2.2.16")
    with pytest.raises(UserError, match=r"is Milvus v2\.2\.16; servers from 2\.3 on are supported"):
        open_index(place)


def test_the_command_line_builds_queries_measures_and_deletes(
    place: str, tmp_path: Path, tiny: list[str], texts: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    from mrl_jax import train

    command = [*tiny, "evaluation.neighbours=false", "evaluation.refit=null", f"results_dir={tmp_path}", "run=one"]
    assert train.main(command) == 0
    corpus, queries = tmp_path / "corpus.jsonl", texts["test"]
    rows = [json.loads(line) for line in texts["train"].read_text().splitlines()]
    corpus.write_text("".join(json.dumps({"_id": str(i), **row}) + "\n" for i, row in enumerate(rows)))
    run = str(tmp_path / "tiny" / "one")
    words = ["build", run, str(corpus), "--index", place]
    assert search.main([*words, "--kind", "milvus-hnsw"]) == 0
    assert search.main([*words, "--token", TOKEN]) == 0
    assert "240 documents, 0 added now, 240 were there" in capsys.readouterr().out
    assert search.main(["query", place, "hockey1 hockey2", "--k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert search.main(["bench", place, "--queries", str(queries), "--k", "5"]) == 0
    measured = re.findall(r"milvus-hnsw 4:\d+ +(\S+)", capsys.readouterr().out)
    assert float(measured[-1]) >= 0.95
    assert search.main(["delete", place, "0"]) == 0
    assert "239 documents" in capsys.readouterr().out
    assert search.main([*words, "--kind", "milvus-flat"]) == 2
    assert "was built with --kind milvus-hnsw" in capsys.readouterr().err
    assert search.main([*words, "--token", "root:secret-Word"]) == 2
    said = capsys.readouterr()
    assert "does not accept the token" in said.err
    assert "secret" not in said.err + said.out


def test_a_server_that_freezes_is_left_after_a_time(
    server: MilvusServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(milvus_client.call.__kwdefaults__, "seconds", 2.0)
    index = create_index(place, description())
    assert server.process is not None
    os.kill(server.process.pid, 19)  # SIGSTOP
    started = time.monotonic()
    try:
        with pytest.raises(UserError, match="stopped answering"):
            len(index)
        with pytest.raises(UserError, match=re.escape(place)):
            open_index(place)
    finally:
        os.kill(server.process.pid, 18)  # SIGCONT
    assert time.monotonic() - started < 60
    index.close()
