"""A user's own pairs, as texts or as vectors: what is read, how it is kept apart, cut and limited, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from helpers import write_table
from hypothesis import given
from hypothesis import strategies as st
from pair_files import BROKEN, HARD, SCORED, TEST, UNSCORED

from mrl_jax.data import DataConfig, PairDataset, Pairs, Ranking, load
from mrl_jax.data.pair_ops import build_pairs
from mrl_jax.system.errors import UserError


def read(folder: Path, train: list[dict], test: list[dict], suffix: str = "jsonl", **options: object) -> PairDataset:
    """The data set of files with these rows."""
    paths = {name: write_table(folder / f"{name}.{suffix}", rows) for name, rows in (("train", train), ("test", test))}
    dataset = load(DataConfig("pairs", **paths, **options))
    assert isinstance(dataset, PairDataset)
    return dataset


def texts(pairs: Pairs) -> list[tuple[str, ...]]:
    """The pairs as tuples of texts."""
    return [tuple(pairs.table[row] for row in rows) for rows in pairs.columns]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    end = "\t" if suffix == "tsv" else "\n"  # in .tsv every line is a row
    scored = [
        {key: text.replace("\n", end) if isinstance(text, str) else text for key, text in r.items()} for r in SCORED
    ]
    dataset = read(tmp_path, HARD, scored, suffix)
    assert (dataset.name, dataset.kind, len(dataset.validation)) == ("train", "text", 0)
    assert texts(dataset.train) == [("x", "X", "Y", "Z")]
    assert dataset.train.scores is None
    assert isinstance(dataset.test, Pairs)
    assert texts(dataset.test) == [("one, 1", f'a "1"{end}or so'), ("ö", "o")]
    assert dataset.test.scores is not None
    assert (dataset.test.scores.dtype, dataset.test.scores.tolist()) == (np.float32, [4.5, 0])


def test_a_text_stands_once_in_the_table(tmp_path: Path) -> None:
    train = read(tmp_path, UNSCORED, SCORED).train
    assert (train.table, train.columns.dtype) == (["a", "b", "A", "B"], np.int32)
    assert texts(train) == [("a", "A"), ("b", "B"), ("a", "B")]


@pytest.mark.parametrize("names", [("anchor", "passage"), ("question", "document"), ("query", "positive")])
def test_other_names_of_the_columns(tmp_path: Path, names: tuple[str, str]) -> None:
    train = read(tmp_path, [{"id": 3, names[0]: "a", names[1]: "A"}], SCORED).train
    assert texts(train) == [("a", "A")]


def test_pairs_without_scores_are_tested_by_a_search(tmp_path: Path) -> None:
    """Each distinct positive and negative is a document, also one that is a query too; a pair counts once."""
    test = read(tmp_path, [{"text1": "a", "text2": "A", "score": "1e-3"}], [*TEST]).test
    assert isinstance(test, Ranking)
    assert (test.queries, test.documents) == (["q", "r"], ["q", "A"])
    assert test.judgments.tolist() == [[0, 1, 1], [1, 0, 1]]
    assert (test.query_ids, test.document_ids, test.judgments.dtype) == (["0", "1"], ["0", "1"], np.int32)
    hard = read(tmp_path, UNSCORED, HARD).test
    assert isinstance(hard, Ranking)
    assert (hard.documents, hard.judgments.tolist()) == (["X", "Y", "Z"], [[0, 0, 1]])


def test_anchors_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validation = write_table(
        tmp_path / "validation.jsonl", [{"anchor": "b", "positive": "B"}, {"anchor": "q", "positive": "B"}]
    )
    dataset = read(tmp_path, [*UNSCORED, {"anchor": "q", "positive": "B"}], TEST, validation=validation)
    assert texts(dataset.train) == [("a", "A"), ("a", "B")]
    assert texts(dataset.validation) == [("b", "B")]
    assert capsys.readouterr().err.splitlines() == [
        "validation: dropped 1 of 2 anchors (1 of 2 pairs), which the test has too",
        "training: dropped 2 of 3 anchors (2 of 4 pairs), which validation or the test has too",
    ]
    with pytest.raises(UserError, match="train has no training pair whose anchor is not in validation or the test"):
        read(tmp_path, TEST, TEST)


def test_validation_is_cut_from_train_by_anchor(tmp_path: Path) -> None:
    rows = [{"anchor": f"a{i % 20}", "positive": f"p{i}"} for i in range(60)]
    dataset, again = (read(tmp_path, rows, TEST, validation_fraction=0.25) for _ in range(2))
    train, validation = texts(dataset.train), texts(dataset.validation)
    assert {anchor for anchor, _ in train}.isdisjoint(anchor for anchor, _ in validation)
    assert (len(train), len(validation), len(dataset.validation.table)) == (45, 15, 5 + 15)
    assert texts(again.validation) == validation
    assert len(read(tmp_path, UNSCORED, TEST).validation) == 0  # too few to cut


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_the_cut_keeps_every_pair_and_parts_no_anchor(rows: list, fraction: float, scored: bool) -> None:
    scores = np.arange(len(rows), dtype=np.float32) if scored else None
    pairs = build_pairs(list(zip(*[(str(a), str(b)) for a, b in rows], strict=True)), scores)
    parts = [pairs.take(numbers) for numbers in pairs.cut(fraction)]
    kept, out = (texts(part) for part in parts)
    assert sorted(kept + out) == sorted(texts(pairs))
    assert {a for a, _ in kept}.isdisjoint(a for a, _ in out)
    assert kept
    for part in parts:
        assert len(set(part.table)) == len(part.table) == len(np.unique(part.columns))
    if scored:
        assert np.concatenate([part.scores for part in parts]).sum() == pytest.approx(scores.sum())


def test_limit_applies_to_every_part(tmp_path: Path) -> None:
    rows = [{"anchor": f"a{i}", "positive": f"p{i}"} for i in range(100)]
    test = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(100)]
    dataset = read(tmp_path, rows, test, limit=3)
    whole = read(tmp_path, rows, test).test
    assert (len(dataset.train), len(dataset.train.table), len(dataset.validation)) == (3, 6, 3)
    assert isinstance(dataset.test, Ranking)
    assert isinstance(whole, Ranking)
    assert (len(dataset.test), len(dataset.test.documents)) == (3, 30)
    for query, document, _ in dataset.test.judgments:
        assert dataset.test.queries[query][1:] == dataset.test.documents[document][1:]
    for row, name in enumerate(dataset.test.document_ids):
        assert whole.documents[int(name)] == dataset.test.documents[row]
    scored = [{"sentence1": str(i), "sentence2": "s", "score": i} for i in range(9)]
    limited = read(tmp_path, rows, scored, limit=4).test
    assert isinstance(limited, Pairs)
    assert [float(a) for a, _ in texts(limited)] == list(limited.scores)
    assert len(limited) == 4


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(DataConfig("pairs", train=str(tmp_path / name), test=write_table(tmp_path / "test.jsonl", TEST)))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=pairs needs data\.test"):
        load(DataConfig("pairs", train=write_table(tmp_path / "train.jsonl", UNSCORED)))
    with pytest.raises(UserError, match=r"data\.task is not used by data=pairs; it belongs to wordnet and"):
        load(DataConfig("pairs", task="pairs"))
    with pytest.raises(UserError, match=r"data\.task=pair is unknown \(did you mean pairs\?\)"):
        load(DataConfig("features", task="pair"))  # type: ignore[arg-type]


VECTORS = np.array([[0, 0], [1, 0], [2, 0], [1, 0], [3, 4]], float)


def test_pairs_of_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", anchors=VECTORS, positives=VECTORS + 0.5, negatives=np.ones((5, 3, 2)))
    np.savez(
        tmp_path / "test.npz", anchors=VECTORS + 9, positives=np.array([[7, 7], [-0.0, 8], [7, 7], [0.0, 8], [1, 1]])
    )
    np.savez(tmp_path / "scored.npz", anchors=VECTORS + 5, positives=VECTORS, scores=np.arange(5))
    paths = {name: str(tmp_path / f"{name}.npz") for name in ("train", "test")}
    dataset = load(DataConfig("features", task="pairs", **paths, validation_fraction=0.5))
    assert isinstance(dataset, PairDataset)
    assert (dataset.kind, dataset.train.columns.shape[1]) == ("features", 5)
    assert len(dataset.train) + len(dataset.validation) == 5
    train, validation = (part.table[part.columns] for part in (dataset.train, dataset.validation))
    assert not {tuple(row) for row in train[:, 0]} & {tuple(row) for row in validation[:, 0]}
    assert np.array_equal(train[:, 1], train[:, 0] + 0.5)
    assert isinstance(dataset.test, Ranking)
    assert dataset.test.documents.tolist() == [[7, 7], [0, 8], [1, 1]]  # each distinct vector once
    assert len(dataset.test.queries) == 4
    scored = load(DataConfig("features", task="pairs", train=paths["train"], test=str(tmp_path / "scored.npz")))
    assert scored.test.scores.tolist() == [0, 1, 2, 3, 4]


WRONG = {  # what is saved instead of anchors and positives, and the sentence
    "has no array positives; its arrays are anchors": {"anchors": VECTORS},
    r"positives have the shape \(5, 1\), expected \(5, 2\)": {"anchors": VECTORS, "positives": VECTORS[:, :1]},
    r"negatives have the shape \(5, 2\), expected \[5, h, 2\]": {"negatives": VECTORS},
    "negatives have 5 rows with NaN": {"negatives": np.full((5, 1, 2), np.nan)},
    r"scores have the shape \(1,\), expected \(5,\)": {"scores": np.ones(1)},
    "a score is NaN or infinite as float32, the first in row 4": {"scores": np.array([1, 2, 3, 4, 1e300])},
    "scores have the type <U1, expected numbers": {"scores": np.array(list("abcde"))},
    "has negatives and scores": {"scores": np.ones(5), "negatives": np.ones((5, 1, 2))},
    "vectors of width 3, .*test.npz of 2|vectors of width 2, .*train.npz of 3": {
        "anchors": np.ones((1, 3)),
        "positives": np.ones((1, 3)),
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arrays_are_one_sentence(tmp_path: Path, message: str) -> None:
    whole = {"anchors": VECTORS, "positives": VECTORS}
    np.savez(tmp_path / "test.npz", **whole)
    np.savez(tmp_path / "train.npz", **(WRONG[message] if "anchors" in WRONG[message] else whole | WRONG[message]))
    with pytest.raises(UserError, match=message):
        load(DataConfig("features", task="pairs", train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz")))


def test_a_tokenizer_learns_from_training_pairs_only(tmp_path: Path) -> None:
    rows = [{"anchor": f"a{i}", "positive": f"p{i}"} for i in range(20)]
    dataset = read(tmp_path, rows, TEST, validation_fraction=0.5)
    assert set(dataset.train.raw) == {text for pair in texts(dataset.train) for text in pair}
    assert set(dataset.train.raw).isdisjoint(dataset.validation.raw)
