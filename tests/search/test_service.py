"""The service against `search query` and the model itself, with hostile requests, and with many clients at once."""

import base64
import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mrl_jax
from mrl_jax import search
from mrl_jax.search import dispatch
from mrl_jax.system.errors import UserError

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from mrl_jax.search.service import options, schema, worker
from mrl_jax.search.service.answers import Answers, FewLengths
from mrl_jax.search.service.app import Metrics, Service
from mrl_jax.search.service.worker import Busy, Worker

LIMITS = options.Limits(max_body=200_000, max_texts=64, max_characters=5000, timeout=300)
HOSTILE = "<img src=x onerror=alert(1)></script>\u202e\x00"


@pytest.fixture(scope="module")
def documents(texts: dict[str, Path]) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in texts["train"].read_text().splitlines()]
    return [{"_id": f"d{i}", "text": line["text"]} for i, line in enumerate(lines)]


@pytest.fixture(scope="module")
def built(trained: Path, documents: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    index = folder / "index"
    command = ["build", str(trained), str(folder / "corpus.jsonl"), "--index", str(index), "--prefix", "8"]
    assert search.main(command) == 0
    return index


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


def serve(place: Path, write: bool = False, token: str | None = None, limits: options.Limits = LIMITS) -> Any:
    """A client of a service of an index; `stop` ends it."""
    metrics = Metrics()
    thread = Worker(lambda: Answers(str(place), write=write), watch=metrics.batch.observe)
    service = Service(thread.start(), thread, metrics, limits, token)
    client = TestClient(service.app, base_url="http://localhost", raise_server_exceptions=False)
    return SimpleNamespace(client=client, worker=thread, service=service, stop=thread.stop)


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[Any]:
    made = serve(built)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(served: Any) -> TestClient:
    return served.client


def sentence(answer: Any, status: int) -> str:
    """The one sentence of an error, as clients of OpenAI's API read it."""
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert message.isprintable()
    assert len(message) <= 1010
    return message


# ---- the same as the command line and the model ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"dim": 4}, {"dim": 8}, {"plan": "exact"}, {"plan": "4:100,8:50"}])
def test_a_search_is_that_of_the_command_line(
    options: dict, client: TestClient, built: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert search.main(["query", str(built), "orbit3 common2 orbit7", "--k", "7", *words]) == 0
    shown = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    answer = client.post("/search", json={"texts": ["orbit3 common2 orbit7"], "k": 7, **options})
    assert answer.status_code == 200, answer.text
    hits = answer.json()["results"][0]["hits"]
    assert [[f"{hit['score']:.4f}", hit["id"]] for hit in hits] == shown


@pytest.mark.parametrize("dim", [4, 8, 16])
def test_a_ranking_by_a_prefix_is_that_of_brute_force(
    dim: int, client: TestClient, trained: Path, documents: list[dict]
) -> None:
    model, texts = mrl_jax.load(trained), ["hockey1 common3", "kernel2 garden4 common5", "orbit1"]
    cosines = model.encode(texts, dim).astype(np.float64) @ model.encode([d["text"] for d in documents], dim).T
    answer = client.post("/search", json={"texts": texts, "k": 5, "dim": dim, "characters": 4}).json()
    for row, found in zip(cosines, answer["results"], strict=True):
        np.testing.assert_allclose([hit["score"] for hit in found["hits"]], np.sort(row)[::-1][:5], atol=1e-5)
        assert all(len(hit["text"]) == 4 for hit in found["hits"])


def test_vectors_are_searched_as_their_texts_are(client: TestClient, trained: Path) -> None:
    texts = ["hockey1 common3", "zzz"]
    vectors = 3 * mrl_jax.load(trained).encode(texts, prompt="query")  # of any length
    by_text, by_vector = (
        client.post("/search", json={key: value, "k": 4}).json()["results"]
        for key, value in (("texts", texts), ("vectors", vectors.tolist()))
    )
    assert [one["unknown"] for one in by_text] == [one["unknown"] for one in by_vector] == [False, True]
    assert [hit["id"] for hit in by_text[0]["hits"]] == [hit["id"] for hit in by_vector[0]["hits"]]


@pytest.mark.parametrize("length", [1e30, 1e-30])
def test_the_length_of_a_vector_does_not_matter(length: float, client: TestClient, trained: Path) -> None:
    vector = mrl_jax.load(trained).encode(["hockey1 common3"], prompt="query")[0].astype(float)
    near, far = (
        client.post("/search", json={"vectors": [(vector * scale).tolist()], "k": 4}).json()["results"][0]
        for scale in (1, length)
    )
    assert not far["unknown"]
    assert [hit["id"] for hit in far["hits"]] == [hit["id"] for hit in near["hits"]]


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-hnsw"])
def test_other_back_ends_answer_as_the_command_line_does(
    kind: str, trained: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("faiss")
    place = tmp_path / "index"
    words = ["build", str(trained), str(built.parent / "corpus.jsonl"), "--index", str(place), "--kind", kind]
    assert search.main([*words, "--prefix", "8"]) == 0
    made = serve(place, write=True)
    for dim in (4, 16):
        capsys.readouterr()
        made.stop() if dim == 16 else None
        found = serve(place) if dim == 16 else made
        assert search.main(["query", str(place), "garden3 common1", "--k", "5", "--dim", str(dim)]) == 0
        ids = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
        answer = found.client.post("/search", json={"texts": ["garden3 common1"], "k": 5, "dim": dim})
        assert [hit["id"] for hit in answer.json()["results"][0]["hits"]] == ids
    assert "needs an index of kind exact" in sentence(
        found.client.post("/search", json={"texts": ["x"], "plan": "exact"}), 400
    )
    found.stop()


def test_embeddings_are_those_of_the_model_in_both_forms(client: TestClient, trained: Path) -> None:
    texts = ["orbit1 common2", "garden7"]
    wanted = mrl_jax.load(trained).encode(texts, 5)
    own = client.post("/embed", json={"texts": texts, "dim": 5}).json()
    np.testing.assert_allclose(own["vectors"], wanted, atol=1e-6)
    asked = {"input": texts, "model": "any", "dimensions": 5}
    numbers = client.post("/v1/embeddings", json=asked).json()
    np.testing.assert_allclose([one["embedding"] for one in numbers["data"]], wanted, atol=1e-6)
    coded = client.post("/v1/embeddings", json={**asked, "encoding_format": "base64"}).json()
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]]
    np.testing.assert_array_equal(decoded, np.array([one["embedding"] for one in numbers["data"]], np.float32))
    assert [one["index"] for one in coded["data"]] == [0, 1]
    single = client.post("/v1/embeddings", json={"input": texts[0], "dimensions": 5}).json()
    np.testing.assert_allclose(single["data"][0]["embedding"], wanted[0], atol=1e-6)


def test_classes_are_those_of_the_model_with_and_without_a_cascade(client: TestClient, trained: Path) -> None:
    model, texts = mrl_jax.load(trained), ["orbit1 orbit2", "hockey3", "common1"]
    names, probabilities = model.predict(texts, 8)
    found = client.post("/classify", json={"texts": texts, "dim": 8, "top": 9}).json()["results"]
    assert [one["classes"][0]["class"] for one in found] == names
    assert [len(one["classes"]) for one in found] == [4] * 3  # as many as there are
    for one, row in zip(found, probabilities, strict=True):
        np.testing.assert_allclose([c["probability"] for c in one["classes"]], np.sort(row)[::-1], atol=1e-6)
    answer = client.post("/classify", json={"texts": texts, "cascade": True})
    with contextlib.suppress(ValueError):  # too few examples to certify anything with
        wanted = model.cascade().predict(texts)
        assert [(one["classes"][0]["class"], one["dim"]) for one in answer.json()["results"]] == list(
            zip(wanted.names, wanted.dims.tolist(), strict=True)
        )
        return
    assert "certif" in sentence(answer, 400)


def test_a_model_without_classes_says_so(client: TestClient, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("this model was trained on pairs: it has no classifier")

    monkeypatch.setattr(served.service._answers.model, "classifier", refuse)
    answer = client.post("/classify", json={"texts": ["x"], "dim": 4})
    assert sentence(answer, 400) == "this model was trained on pairs: it has no classifier"


# ---- documents -------------------------------------------------------------------------------------------------------


def test_documents_are_added_replaced_and_deleted(copied: Path, capsys: pytest.CaptureFixture) -> None:
    made = serve(copied, write=True)
    client = made.client

    def found(text: str) -> list[str]:
        answer = client.post("/search", json={"texts": [text], "k": 3}).json()
        return [hit["id"] for hit in answer["results"][0]["hits"]]

    new = [{"id": "new", "text": "orbit1 orbit2 orbit3", "title": "orbit4"}, {"id": HOSTILE, "text": "hockey9 hockey8"}]
    assert client.put("/documents", json={"documents": new}).json() | {"ms": 0} == {
        "added": 2, "documents": 242, "ms": 0,
    }  # fmt: skip
    assert client.post("/documents", json={"documents": new}).json()["added"] == 0
    assert found("orbit4 orbit1 orbit2 orbit3")[0] == "new"
    assert found("hockey9 hockey8")[0] == HOSTILE
    moved = [{"id": "new", "text": "garden1 garden2"}]
    assert client.post("/documents", json={"documents": moved}).json()["added"] == 1
    assert found("garden1 garden2")[0] == "new"
    assert found("orbit4 orbit1 orbit2 orbit3")[0] != "new"
    gone = client.request("DELETE", "/documents", json={"ids": ["new", "new", "none"]}).json()
    assert (gone["deleted"], gone["documents"]) == (1, 241)
    assert found("garden1 garden2")[0] != "new"
    assert client.get("/health").json()["status"] == "ok"  # its own changes are none
    assert search.main(["delete", str(copied), "d1"]) == 2
    assert "is being written by another process" in capsys.readouterr().err
    made.stop()
    assert search.main(["query", str(copied), "hockey9 hockey8", "--k", "1"]) == 0  # it is on the disk


def test_documents_are_left_alone_without_write(client: TestClient) -> None:
    said = "documents of this service cannot be changed; start it with --write"
    assert sentence(client.post("/documents", json={"documents": [{"id": "x", "text": "y"}]}), 403) == said
    assert sentence(client.request("DELETE", "/documents", json={"ids": ["d0"]}), 403) == said


def test_two_documents_of_one_id_are_refused(copied: Path) -> None:
    made = serve(copied, write=True)
    answer = made.client.put("/documents", json={"documents": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]})
    made.stop()
    assert sentence(answer, 400) == "two of the documents have the same id"


# ---- what changes on disk --------------------------------------------------------------------------------------------


def test_a_changed_index_is_named_and_searches_go_on(copied: Path) -> None:
    made = serve(copied)
    before = made.client.post("/search", json={"texts": ["orbit1"], "k": 5}).json()["results"]
    assert made.client.get("/health").json()["status"] == "ok"
    worst = made.client.post("/search", json={"texts": ["orbit1"], "k": 240}).json()["results"][0]["hits"][-1]["id"]
    assert search.main(["delete", str(copied), worst]) == 0
    health = made.client.get("/health").json()
    assert health["status"] == "changed"
    assert health["changes"][0].startswith(f"the index {copied} was changed on disk; this service answers from")
    assert made.client.post("/search", json={"texts": ["orbit1"], "k": 5}).json()["results"] == before
    made.stop()


def test_a_result_that_is_gone_from_the_disk_is_no_mistake_of_the_client(copied: Path) -> None:
    made = serve(copied)
    best = made.client.post("/search", json={"texts": ["orbit1"], "k": 1}).json()["results"][0]["hits"][0]["id"]
    assert search.main(["delete", str(copied), best]) == 0
    answer = made.client.post("/search", json={"texts": ["orbit1"], "k": 1})
    made.stop()
    assert "deleted one of the results; search again, or restart the service" in sentence(answer, 503)


def test_a_replaced_index_is_a_sentence(copied: Path, built: Path) -> None:
    made = serve(copied)
    shutil.rmtree(copied)
    shutil.copytree(built, copied)
    answer = made.client.post("/search", json={"texts": ["orbit1"]})
    assert sentence(answer, 503) == f"the index {copied} was replaced on disk; restart the service"
    assert made.client.post("/embed", json={"texts": ["orbit1"]}).status_code == 200  # the model is in memory
    assert "was replaced on disk" in made.client.get("/health").json()["changes"][0]
    made.stop()


def test_a_changed_run_is_named(copied: Path, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    thread = Worker(lambda: Answers(str(copied), str(run)))
    answers = thread.start()
    assert answers.facts.changes() == []
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "\n")
    assert answers.facts.changes()[0].startswith(f"the model's run {run} was changed on disk")
    thread.stop()


# ---- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "no key": ("/search", {}, "a search takes texts or vectors, and one of them"),
    "both": ("/search", {"texts": ["x"], "vectors": [[0.0] * 16]}, "a search takes texts or vectors, and one of them"),
    "typo": ("/search", {"text": ["x"]}, 'unknown key "text" (did you mean texts?)'),
    "k of zero": ("/search", {"texts": ["x"], "k": 0}, "k=0 is not allowed; it must be a whole number of 1…1000"),
    "k too large": ("/search", {"texts": ["x"], "k": 10**30}, "it must be a whole number of 1…1000"),
    "k no integer": ("/search", {"texts": ["x"], "k": 1.5}, "k=1.5 is not allowed; it must be a whole number"),
    "k true": ("/search", {"texts": ["x"], "k": True}, "k=true is not allowed; it must be a whole number"),
    "dim": ("/search", {"texts": ["x"], "dim": 5}, "dim=5 is not allowed; it must be one of 4, 8, 16"),
    "dim of embed": ("/embed", {"texts": ["x"], "dim": 17}, "dim=17 is not allowed; it must be a whole number of 1…16"),
    "dim of classes": ("/classify", {"texts": ["x"], "dim": 5}, "dim=5 has no classifier; allowed: 4, 8, 16"),
    "dim of a cascade": ("/classify", {"texts": ["x"], "dim": 4, "cascade": True}, "a cascade chooses its dims"),
    "plan": ("/search", {"texts": ["x"], "plan": "64"}, "plan=64 is not allowed"),
    "plan and dim": ("/search", {"texts": ["x"], "dim": 4, "plan": "4:50"}, "plan=4:50 ranks by all 16 dims"),
    "plan too wide": ("/search", {"texts": ["x"], "plan": "16:50"}, "the first stage can scan at most 8 dims"),
    "plan too long": ("/search", {"texts": ["x"], "plan": "4:10001"}, "keeps at most 10,000 documents"),
    "results": ("/search", {"texts": ["x"] * 11, "k": 1000}, "k=1000 for 11 queries is not allowed; at most 10,000"),
    "prompt": ("/embed", {"texts": ["x"], "prompt": "quarry"}, "(did you mean query?)"),
    "no list": ("/search", {"texts": "x"}, 'texts="x" is not allowed; it must be a list'),
    "no texts": ("/embed", {"dim": 4}, "the body lacks the key texts"),
    "empty list": ("/embed", {"texts": []}, "texts has 0 entries; 1…64 are allowed"),
    "too many": ("/embed", {"texts": ["x"] * 65}, "texts has 65 entries; 1…64 are allowed"),
    "empty text": ("/search", {"texts": ["x", " \n"]}, "texts[1] is empty"),
    "number": ("/search", {"texts": ["x", 3]}, "texts[1]=3 is not allowed; it must be a string"),
    "long text": ("/search", {"texts": ["y" * 5001]}, "texts[0] has 5,001 characters; at most 5,000 are allowed"),
    "narrow vector": ("/search", {"vectors": [[1.0] * 15]}, "vectors[0] has 15 entries; 16 are allowed"),
    "huge number": ("/search", {"vectors": [[1e39] * 16]}, "vectors[0][0]=1e+39 is not allowed"),
    "null": ("/search", {"vectors": [[None] * 16]}, "vectors[0][0]=null is not allowed"),
    "tokens": ("/v1/embeddings", {"input": [1, 2]}, "input[0]=1 is not allowed; it must be a string"),
    "object": (
        "/v1/embeddings",
        {"input": {}},
        "input=an object of 0 keys is not allowed; it must be a string or a list",
    ),
    "format": ("/v1/embeddings", {"input": "x", "encoding_format": "int8"}, "it must be one of float, base64"),
    "array": ("/search", [1], "the body=a list of 1 is not allowed; it must be an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str, client: TestClient) -> None:
    path, body, said = BAD[name]
    assert said in sentence(client.post(path, json=body), 400)


RAW = {
    "broken UTF-8": (b'{"texts": ["\xff"]}', "the body is not UTF-8: byte 12 is 0xff"),
    "UTF-16": ('{"texts": ["x"]}'.encode("utf-16"), "the body is not UTF-8"),
    "no JSON": (b"{'texts': ['x']}", "the body is not JSON"),
    "nothing": (b"", "the body is not JSON"),
    "NaN": (b'{"texts": ["x"], "k": NaN}', "the body is not JSON: NaN is no number of JSON"),
    "infinity": (b'{"vectors": [[' + b",".join([b"1e999"] * 16) + b"]]}", "vectors[0][0]=Infinity is not allowed"),
    "deep": (b"[" * 100_000, "the body is not JSON"),
    "digits": (b'{"texts": ["x"], "k": ' + b"9" * 5000 + b"}", "the body is not JSON"),
    "half a pair": (b'{"texts": ["\\ud800"]}', "texts[0] is not valid Unicode"),
    "key of a book": (b'{"' + b"k" * 100_000 + b'": 1}', "unknown key"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_none_is_one_sentence(name: str, client: TestClient) -> None:
    content, said = RAW[name]
    answer = client.post("/search", content=content, headers={"content-type": "application/json"})
    assert said in sentence(answer, 400)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = (
    "texts",
    "vectors",
    "k",
    "dim",
    "plan",
    "characters",
    "input",
    "dimensions",
    "cascade",
    "top",
    "documents",
    "ids",
)


@given(path=st.sampled_from(["/search", "/embed", "/classify", "/v1/embeddings", "/documents"]), data=st.data())
def test_whatever_is_sent_the_answer_is_json_and_no_failure(path: str, data: st.DataObject, client: TestClient) -> None:
    body = data.draw(JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    if answer.status_code != 200:
        sentence(answer, 403 if answer.status_code == 403 else 400)


@given(query=st.dictionaries(st.sampled_from(["dim", "dims", "k"]), st.text(max_size=12), max_size=2))
def test_whatever_stands_behind_the_question_mark_is_no_failure(query: dict, client: TestClient) -> None:
    answer = client.get("/map", params=query)
    if answer.status_code != 200:
        sentence(answer, 400)


def test_a_large_body_is_refused_unread(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-length": str(10**9)}
    answer = client.post("/search", content=iter([b"{}"]), headers=headers)
    assert sentence(answer, 413) == "the body has 1,000,000,000 bytes; at most 200,000 are allowed"
    assert answer.headers["connection"] == "close"
    endless = client.post(
        "/search", content=(b" " * 10_000 for _ in range(30)), headers={"content-type": "application/json"}
    )
    assert sentence(endless, 413) == "the body has more than 200,000 bytes, which are allowed"


def test_what_there_is_not_is_one_sentence(client: TestClient) -> None:
    assert sentence(client.get("/serch"), 404) == "there is no /serch; /docs lists what there is"
    assert "GET is not allowed" in sentence(client.get("/search"), 405)
    answer = client.post("/search", content=b'{"texts": ["x"]}', headers={"content-type": "text/plain"})
    assert "application/json" in sentence(answer, 415)


# ---- who may ask -----------------------------------------------------------------------------------------------------


def test_a_page_of_another_site_does_not_reach_a_service_without_a_token(client: TestClient) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]"):
        assert "is not allowed; one of localhost" in sentence(client.get("/health", headers={"host": host}), 421)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST", "127.0.0.2:80"):
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_a_token_is_wanted_and_health_says_nothing_without_it(built: Path) -> None:
    made = serve(built, token="correct-horse")
    client = made.client
    for given_ in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "correct-horse"},
        {"authorization": b"Bearer \xff"},
    ):
        answer = client.post("/search", json={"texts": ["x"]}, headers=given_)
        assert "wants its token" in sentence(answer, 401)
        assert client.get("/health", headers=given_).json() == {"status": "ok"}
        assert client.get("/metrics", headers=given_).status_code == 401
    known = {"authorization": "Bearer correct-horse", "host": "anywhere.example"}
    assert client.post("/search", json={"texts": ["x"]}, headers=known).status_code == 200
    assert client.get("/health", headers=known).json()["documents"] == 240
    assert client.get("/").status_code == client.get("/docs").status_code == 200  # they hold nothing of the index
    made.stop()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--host=0.0.0.0 is open to other machines; give --token or set MRL_JAX_TOKEN"),
        (["--host", "example.org"], "--host=example.org is open to other machines"),
        (["--token", "short"], "must be 8 or more visible ASCII characters"),
        (["--token", ""], "must be 8 or more visible ASCII characters"),
        (["--port", "65536"], "65536 is not allowed; it must be a whole number of 0…65535"),
        (["--timeout", "0"], "0 is not allowed; it must be a whole number of at least 1"),
        (["--max-wait-ms", "nan"], "nan is not allowed; it must be a number of at least 0"),
    ],
)
def test_options_that_are_not_allowed_end_in_a_sentence(
    words: list[str], said: str, built: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MRL_JAX_TOKEN", raising=False)
    assert search.main(["serve", str(built), *words]) == 2
    assert said in capsys.readouterr().err


def test_no_index_ends_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search.main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "none is not an index" in capsys.readouterr().err


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_thirty_two_clients_get_the_answers_of_one(served: Any) -> None:
    texts = [f"{topic}{n} common{n}" for n in range(16) for topic in ("orbit", "hockey", "kernel", "garden")]
    bodies = [{"texts": [text], "k": 3 + n % 4, "dim": (4, 8, 16)[n % 3]} for n, text in enumerate(texts)]
    alone = [served.client.post("/search", json=body).json()["results"] for body in bodies]
    with served.client as client, ThreadPoolExecutor(32) as pool:  # one event loop for all
        together = list(pool.map(lambda body: client.post("/search", json=body).json()["results"], bodies))
    for one, other in zip(alone, together, strict=True):
        assert [hit["id"] for hit in one[0]["hits"]] == [hit["id"] for hit in other[0]["hits"]]
        np.testing.assert_allclose(*([hit["score"] for hit in side[0]["hits"]] for side in (one, other)), atol=1e-6)
    counted = {
        sample.name: sample.value
        for family in text_string_to_metric_families(served.client.get("/metrics").text)
        for sample in family.samples
        if sample.name in ("mrl_jax_batch_texts_sum", "mrl_jax_batch_texts_count")
    }
    assert counted["mrl_jax_batch_texts_count"] < counted["mrl_jax_batch_texts_sum"]


class Recorder:
    """Answers items with themselves, and writes down what came together; it waits until it may begin."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, Any, list]] = []
        self.may_begin = threading.Event()

    def __call__(self, kind: str, key: Any, items: list) -> list:
        assert self.may_begin.wait(120)
        self.batches.append((kind, key, items))
        if "bad" in items:
            raise UserError("bad is not allowed")
        return [f"{kind} {item}" for item in items]


def running(**settings: Any) -> tuple[Recorder, Worker]:
    recorder = Recorder()
    thread = Worker(lambda: recorder, **{"max_wait": 0.0, "max_batch": 8, **settings})
    thread.start()
    return recorder, thread


def hold(thread: Worker) -> Future:
    """A job that keeps the thread until it may begin, while others gather."""
    first = thread.submit("search", "first", ["first"])
    while thread.waiting:
        time.sleep(0.001)
    return first


def test_what_waits_is_answered_together_by_options_in_the_order_of_arrival() -> None:
    recorder, thread = running()
    hold(thread)
    jobs = [
        thread.submit(kind, key, [str(n)])
        for n, (kind, key) in enumerate(
            [
                ("search", 1),
                ("search", 2),
                ("search", 1),
                ("upsert", None),
                ("search", 1),
                ("delete", None),
                ("search", 1),
            ]
        )
    ]
    recorder.may_begin.set()
    assert [job.result(120) for job in jobs] == [[f"{b} {n}"] for n, b in enumerate(
        ["search", "search", "search", "upsert", "search", "delete", "search"]
    )]  # fmt: skip
    thread.stop()
    assert recorder.batches[1:] == [
        ("search", 1, ["0", "2"]), ("search", 2, ["1"]), ("upsert", None, ["3"]), ("search", 1, ["4"]),
        ("delete", None, ["5"]), ("search", 1, ["6"]),
    ]  # fmt: skip


def test_a_mistake_of_one_is_no_mistake_of_the_others_and_who_left_costs_nothing() -> None:
    recorder, thread = running()
    hold(thread)
    left = thread.submit("search", 1, ["left"])
    assert left.cancel()
    good, bad = thread.submit("search", 1, ["good"]), thread.submit("search", 1, ["bad"])
    recorder.may_begin.set()
    assert good.result(120) == ["search good"]
    with pytest.raises(UserError, match="bad is not allowed"):
        bad.result(120)
    thread.stop()
    assert not any("left" in items for _, _, items in recorder.batches)


def test_the_queue_is_bounded_and_a_batch_is_too() -> None:
    recorder, thread = running(max_waiting=10)
    hold(thread)
    jobs = [thread.submit("search", 1, [n, n]) for n in range(5)]
    with pytest.raises(Busy):
        thread.submit("search", 1, [5])
    recorder.may_begin.set()
    assert [job.result(120) for job in jobs] == [[f"search {n}"] * 2 for n in range(5)]
    large = thread.submit("search", 1, list(range(50)))  # more than may wait, but nothing waits
    assert len(large.result(120)) == 50
    thread.stop()
    assert [len(items) for _, _, items in recorder.batches] == [1, 8, 2, 50]
    with pytest.raises(Busy):
        thread.submit("search", 1, [1])


def test_a_service_that_is_full_or_slow_says_when_to_come_again(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = serve(built, limits=LIMITS._replace(timeout=0.2))
    begin = threading.Event()
    monkeypatch.setattr(dispatch, "search_index", lambda *_: begin.wait(120))
    assert "not answered within 0.2 seconds" in sentence(made.client.post("/search", json={"texts": ["x"]}), 504)
    monkeypatch.setattr(made.worker, "_max_waiting", 0)
    made.worker.submit("embed", (None, None), ["x"])
    answer = made.client.post("/embed", json={"texts": ["x"]})
    assert sentence(answer, 503) == "too many texts are waiting; come again"
    assert answer.headers["retry-after"] == "1"
    begin.set()
    made.stop()
    assert made.client.get("/health").status_code == 503


def test_a_failure_is_printed_and_answered_and_the_service_lives(
    served: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(dispatch, "search_index", lambda *_: 1 / 0)
        answer = served.client.post("/search", json={"texts": ["x"]})
    assert sentence(answer, 500) == "the service failed to answer this; its log says more"
    assert "ZeroDivisionError" in capsys.readouterr().err
    with monkeypatch.context() as patched:  # after the worker has answered
        answers = served.service._answers
        patched.setattr(answers, "facts", answers.facts._replace(classes=()))
        answer = served.client.post("/classify", json={"texts": ["x"]})
    assert sentence(answer, 500) == "the service failed to answer this; its log says more"
    assert "IndexError" in capsys.readouterr().err
    assert served.client.post("/search", json={"texts": ["x"]}).status_code == 200


def test_few_programs_serve_every_k_and_clients_cannot_have_many_compiled(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    inner = dispatch.search_index
    monkeypatch.setattr(dispatch, "search_index", lambda i, z, k, *rest: asked.append(k) or inner(i, z, k, *rest))
    for k in (1, 9, 10, 11, 20, 21, 200):
        hits = served.client.post("/search", json={"texts": ["orbit1"], "k": k}).json()["results"][0]["hits"]
        assert len(hits) == k
    assert asked == [10, 10, 10, 20, 20, 40, 240]
    monkeypatch.setattr(served.service._answers, "_plans", {str(n) for n in range(32)})
    assert "32 plans" in sentence(served.client.post("/search", json={"texts": ["x"], "plan": "8:77"}), 400)


def test_texts_of_all_lengths_are_read_at_few_lengths_and_have_the_same_embeddings(trained: Path) -> None:
    model = mrl_jax.load(trained)
    few, read = FewLengths(model.reader), model.reader
    texts = [" ".join(f"common{n}" for n in range(length)) for length in (1, 5, 9, 15, 17, 40)]
    assert {few([text])["ids"].shape[1] for text in texts} == {16, 32, 64}
    alone = np.concatenate([model.encode([text]) for text in texts])
    model.reader = few
    np.testing.assert_allclose(np.concatenate([model.encode([text]) for text in texts]), alone, atol=1e-6)
    cut = SimpleNamespace(tokenizer=SimpleNamespace(truncation={"max_length": 20}))
    assert FewLengths(cut)._longest == 20
    assert few.vocabulary == read.vocabulary


# ---- what it says of itself ------------------------------------------------------------------------------------------


def test_health_and_metrics_say_what_happened(built: Path) -> None:
    made = serve(built)
    made.client.post("/search", json={"texts": ["orbit1", "garden2"], "dim": 4})
    made.client.post("/search", json={"texts": []})
    health = made.client.get("/health").json()
    assert {key: health[key] for key in ("documents", "width", "dims", "prefix", "kind", "classes", "writable")} == {
        "documents": 240, "width": 16, "dims": [4, 8, 16], "prefix": 8, "kind": "exact", "writable": False,
        "classes": ["garden", "hockey", "kernel", "orbit"],
    }  # fmt: skip
    values = {
        (sample.name, sample.labels.get("path"), sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(made.client.get("/metrics").text)
        for sample in family.samples
    }
    made.stop()
    assert values["mrl_jax_requests_total", "/search", "200"] == values["mrl_jax_requests_total", "/search", "400"] == 1
    assert values["mrl_jax_request_seconds_count", "/search", None] == 2
    assert values["mrl_jax_dims_read_total", "/search", None] == 8
    assert values["mrl_jax_waiting_texts", None, None] == 0
    assert values["mrl_jax_batch_texts_sum", None, None] == 2


def test_the_schema_names_every_address_and_its_examples_are_allowed(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) == {
        "/search", "/embed", "/v1/embeddings", "/classify", "/documents", "/map", "/health", "/metrics",
    }  # fmt: skip
    page = client.get("/docs")
    for path, methods in described["paths"].items():
        assert path in page.text
        for method, about in methods.items():
            if method == "get":
                assert client.get(path).status_code == 200
            else:
                example = about["requestBody"]["content"]["application/json"]["example"]
                status = client.request(method, path, json=example).status_code
                assert status == (403 if path == "/documents" else 200)
    assert not re.search(r"https?://|src=", page.text)


def test_the_check_agrees_with_a_reference_of_json_schema(client: TestClient) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = client.get("/openapi.json").json()["paths"]
    for path, body, _ in BAD.values():
        allowed = described[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        try:
            schema.check(body, allowed, "the body")
        except UserError:
            continue  # ours refuses more: empty texts of spaces, numbers beyond float32
        jsonschema.Draft202012Validator(allowed).validate(body)


def test_the_map_is_the_principal_components_of_the_prefix(
    client: TestClient, trained: Path, documents: list[dict]
) -> None:
    z = mrl_jax.load(trained).encode([one["text"] for one in documents], 4).astype(np.float64)
    drawn = client.get("/map", params={"dim": 4}).json()
    order = {text: i for i, text in enumerate(drawn["texts"])}
    rows = [order[" ".join(one["text"].split())[:160]] for one in documents]
    points = np.array([drawn["x"], drawn["y"]]).T[rows]
    u, s, _ = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    wanted = (u * s)[:, :2]
    np.testing.assert_allclose(  # up to a turn and the scale
        np.linalg.svd(points.T @ wanted)[1].sum(), np.linalg.norm(points) * np.linalg.norm(wanted), rtol=1e-3
    )
    whole = client.get("/map").json()
    assert whole["cluster"] == drawn["cluster"]
    assert 0 <= drawn["together"] <= whole["together"] <= 1
    assert len(whole["central"]) == max(whole["cluster"]) + 1


def test_writes_are_those_kinds_that_change_the_index() -> None:
    assert set(worker.WRITES) == {"upsert", "delete"}
