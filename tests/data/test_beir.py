"""A search collection in a folder as BEIR has it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mrl_jax.data import DataConfig, PairDataset, Ranking, load
from mrl_jax.errors import UserError

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


def test_qrels_without_header(tmp_path: Path) -> None:
    config = build(tmp_path)
    for part in (tmp_path / "qrels").iterdir():
        part.write_text(part.read_text().partition("\n")[2])
    assert len(read(config).test) == 3


def test_validation_is_cut_from_train_without_dev(tmp_path: Path) -> None:
    config = build(tmp_path, dev=None, train=[f"q{i} d{j} 1" for i in range(1, 5) for j in (1, 3)])
    dataset = read(DataConfig("beir", path=config.path, validation_fraction=0.25))
    assert (len(dataset.train), len(dataset.validation)) == (6, 2)
    assert len({anchor for anchor, _ in texts(dataset.validation)}) == 1


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


WRONG = {  # what the sentence must say: what is wrong
    r"corpus\.jsonl: there is no such file": {"corpus": None},
    r"queries\.jsonl: there is no such file": {"queries": None},
    r"qrels/test\.tsv: there is no such file": {"test": None},
    r"corpus\.jsonl is empty": {"corpus": []},
    r"corpus\.jsonl, line 6: the _id 'd1' stands in an earlier line too": {"corpus": [*CORPUS, CORPUS[0]]},
    r"corpus\.jsonl, line 1: the row has no _id": {"corpus": [{"text": "a"}]},
    r"corpus\.jsonl, line 1: the row has no text": {"corpus": [{"_id": "a", "title": "b"}]},
    r"corpus\.jsonl, line 2: the row has no text": {"corpus": [CORPUS[0], {"_id": "a", "text": " ", "title": None}]},
    r"corpus\.jsonl, line 1: text must be a string, got 5": {"corpus": [{"_id": "a", "text": 5}]},
    r"corpus\.jsonl, line 1: title must be a string, got 5": {"corpus": [{"_id": "a", "text": "b", "title": 5}]},
    r"corpus\.jsonl, line 1: text holds half of a surrogate": {"corpus": ['{"_id": "a", "text": "\\ud83d"}']},
    r"queries\.jsonl, line 1: not valid JSON": {"queries": ["{"]},
    r"queries\.jsonl, line 2: the row has no text": {"queries": [QUERIES[0], {"_id": "a"}]},
    r"train\.tsv, line 2: the query 'q77' is not in queries\.jsonl": {"train": ["q77 d1 1"]},
    r"dev\.tsv, line 3: the document 'd77' is not in corpus\.jsonl": {"dev": ["q3 d1 1", "q3 d77 1"]},
    r"test\.tsv, line 2: the score must be a whole number below 2\^31, got '0\.5'": {"test": ["q5 d1 0.5"]},
    r"test\.tsv, line 2: the score must be a whole number below 2\^31, got '3000000000'": {
        "test": ["q5 d1 3000000000"]
    },
    r"test\.tsv, line 3: query q5 and document d1 are judged in an earlier line": {"test": ["q5 d1 1", "q5 d1 1"]},
    r"test\.tsv, line 2: 4 fields; needed are query-id, corpus-id, score": {"test": ["q5 0 d1 1"]},
    r"train\.tsv has no judgment above 0": {"train": ["q1 d1 0"]},
    r"test\.tsv names no relevant document": {"test": ["q5 d1 0"]},
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
    with pytest.raises(UserError, match=r"data\.path is not used by data=pairs; it belongs to beir"):
        load(DataConfig("pairs", path=str(tmp_path)))
