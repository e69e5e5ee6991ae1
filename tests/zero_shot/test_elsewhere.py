"""Collections of ir_datasets and of the Hugging Face Hub; data sets on this disk stand for them."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import model_folders
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrl_jax import zero_shot
from mrl_jax.system.errors import UserError
from mrl_jax.zero_shot import collections, elsewhere

ir_datasets = pytest.importorskip("ir_datasets")
hub = pytest.importorskip("huggingface_hub")

DOCUMENTS = {"d1": "the quick fox", "d2": "a lazy dog fell", "d3": "stocks\u2028fell"}
QUERIES = {"q1": "quick fox", "q2": "lazy dog"}
JUDGED = [("q1", "d1", 2), ("q1", "d3", 0), ("q2", "d2", 1)]


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[str]:
    """The name of a data set of ir_datasets that lies on this disk."""
    place = tmp_path / "ir"
    place.mkdir()
    for name, texts in (("docs", DOCUMENTS), ("queries", QUERIES)):
        lines = (f"{id_}\t{text}\n" for id_, text in texts.items())
        (place / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    (place / "qrels").write_text("".join(f"{q} 0 {d} {gain}\n" for q, d, gain in JUDGED))
    files = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels"}
    dataset = ir_datasets.create_dataset(**{key: str(place / name) for key, name in files.items()})
    name = "mrl-jax-test/tiny"
    ir_datasets.registry.register(name, dataset)
    yield name
    del ir_datasets.registry._registered[name]


class Hub:
    """Data sets as the Hub converts them: tables by configuration/split/number.parquet."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.downloads: list[str] = []

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)

    def list_repo_files(self, repository: str, repo_type: str, revision: str) -> list[str]:
        assert (repository, repo_type, revision) == ("owner/tiny", "dataset", "refs/convert/parquet")
        return [".gitattributes", *(str(path.relative_to(self.place)) for path in self.place.rglob("*.parquet"))]

    def snapshot_download(self, repository: str, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert (repository, repo_type, revision) == ("owner/tiny", "dataset", "refs/convert/parquet")
        self.downloads += allow_patterns
        return str(self.place)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A data set of the Hub, without any table yet."""
    one = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: one)
    monkeypatch.setattr(hub, "snapshot_download", one.snapshot_download)
    return one


def write_search(data: Hub, language: str = "") -> None:
    texts = [{"_id": id_, "title": "", "text": text, "more": {"any": 1}} for id_, text in DOCUMENTS.items()]
    data.write(f"{language}corpus/corpus/0000.parquet", texts[:2])
    data.write(f"{language}corpus/corpus/0001.parquet", texts[2:])
    queries = [{"_id": id_, "text": text} for id_, text in QUERIES.items()]
    data.write(f"{language}queries/queries/0000.parquet", queries)
    judged = [{"score": gain, "corpus-id": d, "query-id": q, "iteration": 0} for q, d, gain in JUDGED]
    data.write(f"{language}{'qrels' if language else 'default'}/test/0000.parquet", judged)
    data.write(f"{language}{'qrels' if language else 'default'}/train/0000.parquet", judged[:1])


def fetch(tmp_path: Path, name: str) -> collections.Collection:
    return collections.read(elsewhere.fetch("--on", name, str(tmp_path / "cache")))


def check_search(found: collections.Collection) -> None:
    assert found.first.texts == list(QUERIES.values())
    assert found.second.texts == list(DOCUMENTS.values())
    queries, documents = list(QUERIES), list(DOCUMENTS)
    assert found.truth.tolist() == [[queries.index(q), documents.index(d), gain] for q, d, gain in JUDGED]


def test_a_search_of_ir_datasets_is_read_as_it_is_there(tmp_path: Path, registered: str) -> None:
    found = fetch(tmp_path, f"ir_datasets:{registered}")
    check_search(found)
    assert found.name == "mrl-jax-test-tiny"


def test_a_model_is_evaluated_on_a_collection_of_ir_datasets(tmp_path: Path, registered: str) -> None:
    model_folders.make(tmp_path / "tiny")
    words = (str(tmp_path / "tiny"), "--on", f"ir_datasets:{registered}", "--dims", "4,16")
    places = ("--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache"))
    assert zero_shot.main([*words, *places]) == 0
    assert (tmp_path / "out" / "mrl-jax-test-tiny" / "tiny" / "evaluation.csv").is_file()


@pytest.mark.parametrize(("language", "name"), [("", ""), ("", "/default"), ("en-", "/en"), ("en-", "/en/test")])
def test_a_search_of_the_hub(tmp_path: Path, data: Hub, language: str, name: str) -> None:
    write_search(data, language)
    check_search(fetch(tmp_path, f"hub:owner/tiny{name}"))
    assert len(data.downloads) == 4  # the train judgments are not


def test_other_judgments_than_those_of_the_test(tmp_path: Path, data: Hub) -> None:
    write_search(data)
    found = fetch(tmp_path, "hub:owner/tiny/default/train")
    assert found.truth.tolist() == [[0, 0, 2]]
    assert len(found.second.texts) == len(DOCUMENTS)


def test_names_that_look_alike_are_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(given: str, name: str, folder: Path) -> None:
        elsewhere.write_search(folder, [{"_id": "d", "text": name}], [{"_id": "q", "text": "x"}], [("q", "d", 1)])

    monkeypatch.setitem(elsewhere.SOURCES, "hub", write)
    one, other = (fetch(tmp_path, f"hub:{name}") for name in ("a/b-c", "a-b/c"))
    assert (one.second.texts, other.second.texts) == (["a/b-c"], ["a-b/c"])


def test_a_process_that_was_first_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(given: str, name: str, folder: Path) -> None:
        if "second" not in texts:
            texts.append("second")  # while the first one downloads, another one begins and ends
            assert fetch(tmp_path, "hub:a/b").second.texts == ["second"]
        text = texts.pop() if len(texts) > 1 else "first"
        elsewhere.write_search(folder, [{"_id": "d", "text": text}], [{"_id": "q", "text": "x"}], [("q", "d", 1)])

    texts = ["begun"]
    monkeypatch.setitem(elsewhere.SOURCES, "hub", write)
    assert fetch(tmp_path, "hub:a/b").second.texts == ["second"]


def test_a_full_disk_is_a_sentence_that_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        with elsewhere.downloading("x"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(elsewhere.SOURCES, "hub", fill)
    with pytest.raises(UserError, match=f"no space left for {tmp_path}/cache/collections/hub/.*/a-b;"):
        fetch(tmp_path, "hub:a/b")


def test_a_collection_is_downloaded_once(tmp_path: Path, data: Hub) -> None:
    write_search(data)
    fetch(tmp_path, "hub:owner/tiny")
    downloads = len(data.downloads)
    fetch(tmp_path, "hub:owner/tiny")
    assert len(data.downloads) == downloads


def test_scored_pairs_and_labelled_texts_of_the_hub(tmp_path: Path, data: Hub) -> None:
    rows = [
        {"sentence1": "a b", "sentence2": "b c", "score": 2.5, "genre": "x"},
        {"sentence1": "c", "sentence2": "c", "score": 5.0, "genre": "x"},
    ]
    data.write("default/test/0000.parquet", rows)
    data.write("default/train/0000.parquet", rows)
    pairs = fetch(tmp_path, "hub:owner/tiny")
    assert (pairs.name, pairs.metric, pairs.truth.tolist()) == ("owner-tiny", "spearman", [2.5, 5.0])
    texts = [{"text": f"text {n}", "label": n % 2, "label_text": "x"} for n in range(6)]
    data.write("labels/test/0000.parquet", texts[:2])
    data.write("labels/train/0000.parquet", texts[2:])
    labelled = fetch(tmp_path, "hub:owner/tiny/labels")
    assert (labelled.classes, len(labelled.first.texts), len(labelled.second.texts)) == (2, 2, 4)
    assert labelled.truth.tolist() == [0, 1, 0, 1, 0, 1]


def test_each_mistake_is_a_sentence_and_leaves_nothing(tmp_path: Path, data: Hub, registered: str) -> None:
    data.write("one/test/0000.parquet", [{"text": "a", "category": "b"}])
    data.write("two/train/0000.parquet", [{"text": "a", "label": 1}])
    wrong = {
        "ir_datasets:": "has no name behind the colon",
        "ir_datasets:mrl-jax-test/tinny": "did you mean mrl-jax-test/tiny",
        "ir_datasets:cranfeld": "did you mean cranfield",
        "hub:tiny": "is no hub:OWNER/NAME",
        "hub:owner/tiny": "has no configuration default; its configurations are: one, two",
        "hub:owner/tiny/three": "has no configuration three",
        "hub:owner/tiny/two": "has no split test; its splits are train",
        "hub:owner/tiny/one": "has the columns text, category; allowed are text and label",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message) as raised:
            fetch(tmp_path, name)
        assert str(raised.value).startswith(f"--on={name}")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or "partial" in path.name]


def test_tables_of_a_search_without_a_column_are_named(tmp_path: Path, data: Hub) -> None:
    write_search(data)
    data.write("queries/queries/0000.parquet", [{"_id": "q1", "title": "quick fox"}])
    with pytest.raises(UserError, match="has the columns _id, title; needed are _id \\(or id\\) and text"):
        fetch(tmp_path, "hub:owner/tiny")
    write_search(data)
    data.write("default/test/0000.parquet", [{"query-id": "q1", "corpus-id": "d1"}])
    with pytest.raises(UserError, match="has the columns query-id, corpus-id; needed are query-id, corpus-id, score"):
        fetch(tmp_path, "hub:owner/tiny")


def test_a_data_set_without_judgments_is_named(tmp_path: Path) -> None:
    file = tmp_path / "docs.tsv"
    file.write_text("d1\ta text\n")
    ir_datasets.registry.register("mrl-jax-test/docs", ir_datasets.create_dataset(docs_tsv=str(file)))
    with pytest.raises(UserError, match="has no queries; a search needs docs, queries and qrels"):
        fetch(tmp_path, "ir_datasets:mrl-jax-test/docs")
    del ir_datasets.registry._registered["mrl-jax-test/docs"]


def test_without_a_network_a_sentence_says_so(
    tmp_path: Path, data: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(data, "list_repo_files", unreachable)
    assert zero_shot.main(["wordllama", "--on", "hub:owner/tiny", "--cache-dir", str(tmp_path)]) == 2
    assert "--on=hub:owner/tiny cannot be downloaded (Network is unreachable)" in capsys.readouterr().err


def test_a_line_of_a_text_stays_a_line(tmp_path: Path, data: Hub) -> None:
    """U+2028 is written as it is, and is no end of a line to a reader of JSONL."""
    write_search(data)
    path = Path(elsewhere.fetch("--on", "hub:owner/tiny", str(tmp_path)))
    with (path / "corpus.jsonl").open(encoding="utf-8", newline="\n") as file:
        assert [json.loads(line)["_id"] for line in file] == list(DOCUMENTS)
