"""A search collection in a folder as BEIR has it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mrl_jax.data import DataConfig, PairDataset, Ranking, load
from mrl_jax.system.errors import UserError

CORPUS = [
    {"_id": "d1", "title": "Emma", "text": "A novel."},
    {"_id": "d2", "title": "", "text": "Cats sleep."},
    {"_id": "d3", "text": "Dogs bark."},
    {"_id": "d4", "title": "Only a title", "text": ""},
    {"_id": "d5", "text": "Cats sleep."},
]
QUERIES = [{"_id": f"q{i}", "text": f"question {min(i, 8)}"} for i in range(10)]  # q8 and q9 ask the same
QRELS = {
    "train": ["q1 d1 1", "q1 d2 0", "q2 d3 2", "q9 d1 1"],
    "dev": ["q3 d2 1", "q4 d4 1"],
    "test": ["q5 d2 2", "q5 d1 -1", "q6 d1 0", "q7 d4 1", "q8 d3 1"],
}


def build(folder: Path, **changes: list) -> DataConfig:
    """A small collection with some of its files replaced; one that is replaced by None is left out."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (
        {"corpus": CORPUS, "queries": QUERIES} | {k: v for k, v in changes.items() if k not in QRELS}
    ).items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows or []]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    for name, rows in (QRELS | {k: v for k, v in changes.items() if k in QRELS}).items():
        lines = [row.replace(" ", "\t") for row in ["query-id corpus-id score", *(rows or [])]]
        (folder / "qrels" / f"{name}.tsv").write_text("".join(line + "\n" for line in lines))
    for name in (name for name, rows in changes.items() if rows is None):
        (folder / (f"qrels/{name}.tsv" if name in QRELS else f"{name}.jsonl")).unlink()
    return DataConfig("beir", path=str(folder))


def read(config: DataConfig) -> PairDataset:
    """The data set, typed."""
    dataset = load(config)
    assert isinstance(dataset, PairDataset)
    assert isinstance(dataset.test, Ranking)
    return dataset


def texts(pairs) -> list[tuple[str, ...]]:
    return [tuple(pairs.table[row] for row in rows) for rows in pairs.columns]


def test_a_collection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = read(build(tmp_path / "tiny"))
    assert (dataset.name, dataset.kind) == ("tiny", "text")
    assert texts(dataset.train) == [("question 1", "Emma A novel."), ("question 2", "Dogs bark.")]
    assert texts(dataset.validation) == [("question 3", "Cats sleep."), ("question 4", "Only a title")]
    test = dataset.test
    assert test.documents == ["Emma A novel.", "Cats sleep.", "Dogs bark.", "Only a title", "Cats sleep."]
    assert list(test.document_ids) == ["d1", "d2", "d3", "d4", "d5"]  # all, also two of the same text
    assert (test.query_ids, test.queries) == (["q5", "q7", "q8"], ["question 5", "question 7", "question 8"])
    assert test.judgments.tolist() == [[0, 1, 2], [0, 0, 0], [1, 3, 1], [2, 2, 1]]
    assert test.judgments.dtype == np.int32
    assert capsys.readouterr().err.splitlines() == [
        "left out 1 of 4 test queries: no relevant document",
        "training: dropped 1 of 3 anchors (1 of 3 pairs), which validation or the test has too",
    ]


def test_validation_is_cut_from_train_without_dev(tmp_path: Path) -> None:
    config = build(tmp_path, dev=None, train=[f"q{i} d{j} 1" for i in range(1, 5) for j in (1, 3)])
    dataset = read(DataConfig("beir", path=config.path, validation_fraction=0.25))
    assert (len(dataset.train), len(dataset.validation)) == (6, 2)
    assert len({anchor for anchor, _ in texts(dataset.validation)}) == 1


def test_a_file_in_the_place_of_a_folder_and_the_reverse_are_named(tmp_path: Path) -> None:
    config = build(tmp_path / "tiny")
    with pytest.raises(UserError, match=r"corpus\.jsonl: this is a file; a folder is needed"):
        load(DataConfig("beir", path=f"{config.path}/corpus.jsonl"))
    Path(f"{config.path}/queries.jsonl").unlink()
    Path(f"{config.path}/queries.jsonl").mkdir()
    with pytest.raises(UserError, match=r"queries\.jsonl: this is a folder; a file is needed"):
        load(config)


def test_training_pairs_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mined.csv"
    path.write_text("query,passage,negative\nmine,yes,no\nquestion 5,yes,no\n")
    config = build(tmp_path / "tiny", train=None)
    with pytest.raises(UserError, match=r"qrels/train\.tsv: there is no such file; give .* data\.train instead"):
        load(config)
    assert texts(read(DataConfig("beir", path=config.path, train=str(path))).train) == [("mine", "yes", "no")]


def test_limit_keeps_the_judged_documents(tmp_path: Path) -> None:
    corpus = [*CORPUS, *({"_id": f"e{i}", "text": f"other {i}"} for i in range(50))]
    config = build(tmp_path, corpus=corpus, test=["q5 e40 1", "q5 e41 0"])
    test = read(DataConfig("beir", path=config.path, limit=1)).test
    assert list(test.document_ids) == ["d1", "d2", "d3", "d4", "d5", "e0", "e1", "e2", "e40", "e41"]
    assert test.judgments.tolist() == [[0, 8, 1], [0, 9, 0]]


def test_queries_that_are_documents_are_known(tmp_path: Path) -> None:
    """As in ArguAna; the text is another one, as the document has a title."""
    queries = [*QUERIES, {"_id": "d1", "text": "A novel."}, {"_id": "d3", "text": "Dogs bark."}]
    config = build(tmp_path, queries=queries, test=["q5 d2 1", "d1 d3 1", "d1 d1 1", "d3 d2 1"])
    test = read(config).test
    assert [(test.query_ids[q], test.document_ids[d]) for q, d in test.own] == [("d1", "d1"), ("d3", "d3")]
    assert len(test.judgments) == 4  # that of d1 with itself counts, as in BEIR
    cut = test.first(2)
    assert all(cut.query_ids[q] == cut.document_ids[d] for q, d in cut.own)
    assert len(cut.own) == len({*cut.query_ids} & {"d1", "d3"})


SLIPS = {  # of a collection that is used all the same: the sentences, and what is changed
    "empty document": (
        ["corpus.jsonl: 2 of 7 lines: no text, kept as an empty one (the first is 'd6', line 6)"],
        {"corpus": [*CORPUS, {"_id": "d6", "title": "", "text": ""}, {"_id": "d7", "title": None, "text": None}]},
    ),
    "empty document that is judged": (
        [
            "corpus.jsonl: 1 of 6 lines: no text, kept as an empty one (the first is 'd6', line 6)",
            "qrels/train.tsv: left out 1 of 2 pairs: a text is empty",
        ],
        {"corpus": [*CORPUS, {"_id": "d6", "text": " "}], "train": ["q1 d1 1", "q1 d6 1"]},
    ),
    "empty query": (
        ["queries.jsonl: 1 of 11 lines: no text, kept as an empty one (the first is 'q77', line 11)"],
        {"queries": [*QUERIES, {"_id": "q77", "text": ""}]},
    ),
    "repeated document": (
        [
            "corpus.jsonl: 1 of 6 lines: the _id stands in an earlier line too, and the last such line counts "
            "(the first is 'd1', line 6)"
        ],
        {"corpus": [{"_id": "d1", "text": "old"}, *CORPUS[1:], CORPUS[0]]},
    ),
    "judgments of unknown queries": (
        ["qrels/train.tsv: 2 of 3 judgments: not in queries.jsonl, left out (the first is 'q77', line 2)"],
        {"train": ["q77 d1 1", "q1 d1 1", "q78 d1 1"]},
    ),
    "judgments of unknown documents": (
        [
            "qrels/dev.tsv: 1 of 3 judgments: not in corpus.jsonl, left out (the first is 'd77', line 3)",
            "qrels/test.tsv: 1 of 2 judgments: not in corpus.jsonl, left out (the first is 'd9', line 3)",
        ],
        {"dev": ["q3 d2 1", "q3 d77 1", "q4 d4 1"], "test": ["q5 d2 2", "q5 d9 1"]},
    ),
    "repeated judgments": (
        [
            "qrels/test.tsv: 1 of 4 judgments: judged in an earlier line too, and the last such line counts "
            "(the first is 'q5 d1', line 4)",
            "qrels/test.tsv: 1 of 4 judgments: judged otherwise in an earlier line, and the last such line counts "
            "(the first is 'q5 d2', line 5)",
        ],
        {"test": ["q5 d2 1", "q5 d1 0", "q5 d1 0", "q5 d2 2"]},
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_of_a_collection_are_counted(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected, changes = SLIPS[name]
    dataset = read(build(tmp_path, **changes))
    told = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()]
    assert [line for line in told if ".jsonl: " in line or ".tsv: " in line] == expected
    test = dataset.test
    gains = {(test.query_ids[q], test.document_ids[d]): int(gain) for q, d, gain in test.judgments}
    assert gains[("q5", "d2")] == 2
    documents = dict(zip(test.document_ids, test.documents, strict=True))
    assert documents["d1"] == "Emma A novel."
    assert [documents[name] for name in ("d6", "d7") if name in documents] == [""] * (len(documents) - len(CORPUS))
    assert all(all(pair) for pair in texts(dataset.train))


@pytest.mark.parametrize("header", ["query_id doc_id relevance", "qid pid label", "a b c", None])
def test_qrels_with_any_header_or_none(tmp_path: Path, header: str | None) -> None:
    config = build(tmp_path)
    expected = read(config).test.judgments.tolist()
    for part in (tmp_path / "qrels").iterdir():
        rows = part.read_text().partition("\n")[2]
        part.write_text(rows if header is None else header.replace(" ", "\t") + "\n" + rows)
    assert read(config).test.judgments.tolist() == expected


def test_scores_that_a_data_frame_wrote_as_1_point_0_are_whole(tmp_path: Path) -> None:
    config = build(tmp_path)
    expected = read(config).test.judgments.tolist()
    for part in (tmp_path / "qrels").iterdir():
        head, *rows = part.read_text().splitlines()
        part.write_text("\n".join([head, *(f"{row}.0" for row in rows)]))
    assert read(config).test.judgments.tolist() == expected


WRONG = {  # what the sentence must say: what is wrong
    r"corpus\.jsonl: there is no such file": {"corpus": None},
    r"queries\.jsonl: there is no such file": {"queries": None},
    r"qrels/test\.tsv: there is no such file": {"test": None},
    r"corpus\.jsonl is empty": {"corpus": []},
    r"corpus\.jsonl, line 1: the row has no _id": {"corpus": [{"text": "a"}]},
    r"corpus\.jsonl, line 1: the row has no text": {"corpus": [{"_id": "a", "title": "b"}]},
    r"corpus\.jsonl, line 1: text must be a string, got 5": {"corpus": [{"_id": "a", "text": 5}]},
    r"corpus\.jsonl, line 1: title must be a string, got 5": {"corpus": [{"_id": "a", "text": "b", "title": 5}]},
    r"corpus\.jsonl, line 1: text holds half of a surrogate": {"corpus": ['{"_id": "a", "text": "\\ud83d"}']},
    r"queries\.jsonl, line 1: not valid JSON": {"queries": ["{"]},
    r"queries\.jsonl, line 2: the row has no text": {"queries": [QUERIES[0], {"_id": "a"}]},
    r"test\.tsv, line 2: the score must be a whole number below 2\^31, got '0\.5'": {"test": ["q5 d1 0.5"]},
    r"test\.tsv, line 2: the score must be a whole number below 2\^31, got '3000000000'": {
        "test": ["q5 d1 3000000000"]
    },
    r"test\.tsv, line 2: 4 fields; needed are query-id, corpus-id, score": {"test": ["q5 0 d1 1"]},
    r"train\.tsv has no judgment above 0": {"train": ["q1 d1 0"]},
    r"test\.tsv names no relevant document": {"test": ["q5 d1 0"]},
    r"test\.tsv names no relevant document, so": {"test": ["q5 d77 1"]},
    r"train\.tsv has no judgment above 0, so": {"train": ["q77 d1 1"]},
    r"corpus\.jsonl has no line with a text": {"corpus": [{"_id": "a", "text": " ", "title": None}]},
    r"has no training pair whose anchor is not in validation or the test too": {"train": ["q9 d1 1"]},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(build(tmp_path, **WRONG[message]))
    assert "\n" not in str(error.value)


def test_the_folder_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=beir needs data\.path"):
        load("beir")
    with pytest.raises(UserError, match=r"data\.path=.*absent: there is no such folder"):
        load(DataConfig("beir", path=str(tmp_path / "absent")))
    with pytest.raises(UserError, match=r"data\.path is not used by data=pairs; it belongs to cifar and beir"):
        load(DataConfig("pairs", path=str(tmp_path)))
