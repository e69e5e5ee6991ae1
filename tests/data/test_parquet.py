"""Parquet files: whatever PyArrow writes is read as PyArrow reads it; a column of another type is one sentence."""

import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from mrl_jax.data import DataConfig, Pairs, load
from mrl_jax.data.readers import records
from mrl_jax.system.errors import UserError

COUNT = 300
TEXTS = [f"a text that begins alike {i % 40} {'ö' * (i % 7)}" for i in range(COUNT)]
SCORES = np.linspace(0, 5, COUNT)


def read(path: Path, *columns: str) -> list[dict]:
    """The rows that this package reads."""
    return [row for _, row in records.records("data.train", str(path), lambda _, names: list(columns) or names)]


def same_as_pyarrow(path: Path) -> None:
    assert read(path) == pq.read_table(path).to_pylist()


TEXT_ENCODINGS = [None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]


@pytest.mark.parametrize("encoding", TEXT_ENCODINGS)
@pytest.mark.parametrize("page", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
def test_texts_in_every_encoding_and_compression_are_read(
    tmp_path: Path, encoding: str | None, page: str, compression: str
) -> None:
    table = pa.table({"text": TEXTS, "label": [i % 3 for i in range(COUNT)]})
    pq.write_table(
        table, tmp_path / "a.parquet", compression=compression, data_page_version=page, row_group_size=110,
        use_dictionary=encoding is None, column_encoding=None if encoding is None else {"text": encoding},
    )  # fmt: skip
    same_as_pyarrow(tmp_path / "a.parquet")


NUMBERS = {
    "float32 in streams of bytes": (pa.float32(), "BYTE_STREAM_SPLIT"),
    "float64 in streams of bytes": (pa.float64(), "BYTE_STREAM_SPLIT"),
    "int64 by differences": (pa.int64(), "DELTA_BINARY_PACKED"),
    "int32 by differences": (pa.int32(), "DELTA_BINARY_PACKED"),
    "int8": (pa.int8(), "PLAIN"),
    "uint64": (pa.uint64(), "PLAIN"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_in_every_encoding_are_read(tmp_path: Path, kind: str) -> None:
    type_, encoding = NUMBERS[kind]
    scores = pa.array([round(s) if pa.types.is_integer(type_) else float(s) for s in SCORES], type_)
    table = pa.table({"sentence1": TEXTS, "sentence2": TEXTS[::-1], "score": scores})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_dictionary=False, column_encoding={"score": encoding})
    same_as_pyarrow(path)
    test = write_table(tmp_path / "b.jsonl", SIMILAR)
    train = load(DataConfig("pairs", train=str(path), test=test, validation_fraction=0.0)).train
    assert isinstance(train, Pairs)
    np.testing.assert_allclose(train.scores, np.asarray(scores, np.float32))


SIMILAR = [{"sentence1": "q", "sentence2": "r", "score": 1}]

TEXT_TYPES = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "dictionary of large_string": pa.dictionary(pa.int32(), pa.large_string()),
}


@pytest.mark.parametrize("encoding", TEXT_ENCODINGS)
@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_texts_of_every_type_are_read(tmp_path: Path, kind: str, encoding: str | None) -> None:
    if "dictionary" in kind and "DELTA" in str(encoding):
        pytest.skip("PyArrow writes such a file and does not read it")
    texts = pa.array([*TEXTS[:50], None, ""]).cast(TEXT_TYPES[kind])
    path = tmp_path / "a.parquet"
    encodings = None if encoding is None else {"text": encoding}
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=encoding is None, column_encoding=encodings)
    same_as_pyarrow(path)


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_are_text_in_utf_8_or_refused(tmp_path: Path, kind: pa.DataType, dictionary: bool) -> None:
    path = tmp_path / "a.parquet"
    texts = [*TEXTS[:50], None, ""]
    table = pa.table({"text": pa.array([None if t is None else t.encode() for t in texts], kind)})
    pq.write_table(table, path, use_dictionary=dictionary, store_schema=False)
    assert [row["text"] for row in read(path)] == texts
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"], kind)}), path, use_dictionary=dictionary)
    with pytest.raises(UserError, match=r"a\.parquet is not .*\(a column of bytes is no text in UTF-8\)"):
        read(path)


LISTS = {
    "list": pa.list_(pa.string()),
    "large_list": pa.large_list(pa.large_string()),
    "fixed_size_list": pa.list_(pa.string(), 2),
    "list of dictionary": pa.list_(pa.dictionary(pa.int32(), pa.string())),
}


def hard(count: int) -> list[dict]:
    return [{"anchor": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i % 5}", f"m{i % 7}"]} for i in range(count)]


def flat(rows: list[dict]) -> list[tuple[str, ...]]:
    return [(row["anchor"], row["positive"], *row["negatives"]) for row in rows]


def pairs(train: str, folder: Path, **options: object) -> list[tuple[str, ...]]:
    test = write_table(folder / "test.jsonl", [{"anchor": "other", "positive": "document"}])
    part = load(DataConfig("pairs", train=train, test=test, validation_fraction=0.0, **options)).train
    table = list(part.table)
    return [tuple(table[row] for row in rows) for rows in part.columns]


@pytest.mark.parametrize("encoding", TEXT_ENCODINGS)
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_negatives_is_several_negatives(tmp_path: Path, kind: str, encoding: str | None) -> None:
    if "dictionary" in kind and "DELTA" in str(encoding):
        pytest.skip("PyArrow writes such a file and does not read it")
    rows, path = hard(40), tmp_path / "a.parquet"
    schema = pa.schema([("anchor", pa.string()), ("positive", pa.string()), ("negatives", LISTS[kind])])
    leaf = "negatives.list.element"
    pq.write_table(
        pa.Table.from_pylist(rows, schema), path, row_group_size=15, use_dictionary=encoding is None,
        column_encoding=None if encoding is None else {"anchor": "PLAIN", "positive": "PLAIN", leaf: encoding},
    )  # fmt: skip
    same_as_pyarrow(path)
    assert pairs(str(path), tmp_path) == flat(rows)


def test_a_dictionary_that_grew_too_large_and_ends_in_plain_texts_is_read(tmp_path: Path) -> None:
    rows = [{"text": f"{i} {'x' * 50}", "negatives": [f"{i} {'y' * 40}"] * 2} for i in range(3000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, dictionary_pagesize_limit=20_000, data_page_size=5000)
    assert "PLAIN" in pq.read_metadata(path).row_group(0).column(0).encodings
    same_as_pyarrow(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "parquet"])
def test_lists_and_columns_of_negatives_mean_the_same_in_every_format(
    tmp_path: Path, suffix: str, streaming: bool
) -> None:
    rows = hard(20)
    columns = [
        {"anchor": a, "positive": p, "negative_1": first, "negative_2": second} for a, p, first, second in flat(rows)
    ]
    found = [
        pairs(write_table(tmp_path / f"{name}.{suffix}", part), tmp_path, streaming=streaming, cache_dir=str(tmp_path))
        for name, part in (("lists", rows), ("columns", columns))
    ]
    assert found == [flat(rows)] * 2


def test_a_text_in_a_repeated_list_is_held_once(tmp_path: Path) -> None:
    """As in a column of texts: a small file may repeat a long one without end."""
    path = tmp_path / "a.parquet"
    text = "x" * 10_000
    pq.write_table(pa.table({"negatives": [[text, text]] * 5000}), path)
    found = [item for row in read(path) for item in row["negatives"]]
    assert (len(found), set(found)) == (10_000, {text})
    assert len({id(item) for item in found}) <= -(-5000 // records.PARQUET_BATCH_ROWS)


REFUSED = {
    "fewer": ({"negatives": ["a"]}, "the row has 1 negatives, those before have 2"),
    "none": ({"negatives": []}, "the row has 0 negatives, those before have 2"),
    "missing": ({"negatives": None}, "the row has no negatives"),
    "null in the list": ({"negatives": ["a", None]}, r"the row has no negatives\[1\]"),
    "blank in the list": ({"negatives": ["a", "  "]}, r"negatives\[1\] is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_that_do_not_fit_are_one_sentence(tmp_path: Path, suffix: str, case: str) -> None:
    change, sentence = REFUSED[case]
    rows = hard(3)
    rows[1] |= change
    with pytest.raises(UserError, match=rf"a\.{suffix}, (line|row) 2: {sentence}"):
        pairs(write_table(tmp_path / f"a.{suffix}", rows), tmp_path)


def test_a_list_that_is_no_negative_and_a_list_of_numbers_are_refused(tmp_path: Path) -> None:
    for change, sentence in (
        ({"positive": ["a", "b"]}, r"positive must be a string, got \['a', 'b'\]"),
        ({"negatives": [1, 2]}, r"negatives\[0\] must be a string, got 1"),
        ({"negatives": [["a"], ["b"]]}, r"negatives\[0\] must be a string, got \['a'\]"),
    ):
        for suffix in ("jsonl", "parquet"):
            with pytest.raises(UserError, match=rf"(line|row) 1: {sentence}"):
                pairs(write_table(tmp_path / f"a.{suffix}", [hard(1)[0] | change]), tmp_path)


MOMENT = np.datetime64("2026-01-02T03:04:05.123456789")
WRONG_TYPES = {
    "timestamp": pa.array([MOMENT]),
    "date32": pa.array([1], pa.date32()),
    "struct": pa.array([{"text": "a"}]),
    "list<element: struct": pa.array([[{"text": "a"}]]),
    "map": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    "fixed_size_binary": pa.array([b"abcd"], pa.binary(4)),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_a_column_of_a_wrong_type_is_named_with_its_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": WRONG_TYPES[kind], "label": ["x"]}), path)
    with pytest.raises(
        UserError, match=rf"a\.parquet: the column text has the type {kind}.*; expected text or numbers"
    ):
        read(path)
    assert read(path, "label") == [{"label": "x"}]  # a column that is not read may be anything


VALUES = {
    "int": (pa.array([7]), "text must be a string, got 7"),
    "bool": (pa.array([True]), "text must be a string, got True"),
    "float": (pa.array([0.5]), r"text must be a string, got 0\.5"),
    "decimal": (pa.array([decimal.Decimal("1.5")]), r"text must be a string, got Decimal\('1\.5'\)"),
    "null": (pa.array([None], pa.null()), "the row has no text"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_is_no_text_is_named_with_its_row(tmp_path: Path, kind: str) -> None:
    column, sentence = VALUES[kind]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column, "label": ["x"]}), path)
    with pytest.raises(UserError, match=rf"a\.parquet, row 1: {sentence}"):
        load(DataConfig("files", train=str(path), test=str(path)))


def test_labels_may_be_whole_numbers_but_not_booleans(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for labels, names in (([3, 20, 3], ("3", "20")), (["b", "a", "b"], ("a", "b"))):
        pq.write_table(pa.table({"text": ["x", "y", "z"], "label": labels}), path)
        assert load(DataConfig("files", train=str(path), test=str(path))).classes == names
    pq.write_table(pa.table({"text": ["x"], "label": [True]}), path)
    with pytest.raises(UserError, match="row 1: label must be a string or a whole number, got True"):
        load(DataConfig("files", train=str(path), test=str(path)))


@pytest.mark.parametrize("groups", [0, 1])
def test_an_empty_file_is_called_empty(tmp_path: Path, groups: int) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(groups):
            writer.write_table(table)
    with pytest.raises(UserError, match=r"a\.parquet is empty"):
        load(DataConfig("files", train=str(path), test=str(path)))


def test_texts_that_share_their_beginning_are_unpacked_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of some kilobytes may stand for gigabytes in this encoding, and is refused before it fills the memory."""
    monkeypatch.setattr(records, "MAX_UNPACKED_BYTES", 1 << 22)
    path = tmp_path / "a.parquet"
    encoding = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "compression": "zstd"}
    pq.write_table(pa.table({"text": ["x" * 50_000] * 1200}), path, **encoding)
    assert path.stat().st_size < 1 << 16
    rows: list[str] = []
    with pytest.raises(UserError, match="over 100 times as many"):
        rows.extend(place for place, _ in records.records("data.train", str(path), lambda _, names: names))
    assert 0 < len(rows) < 200


COLUMNS = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=20))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(COLUMNS, st.one_of(st.none(), st.lists(COLUMNS, max_size=4))), max_size=30),
    st.sampled_from([True, False]), st.sampled_from(["1.0", "2.0"]), st.integers(1, 9),
)  # fmt: skip
def test_any_texts_and_lists_are_those_that_pyarrow_reads(
    tmp_path_factory: pytest.TempPathFactory, rows: list, dictionary: bool, page: str, group: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("negatives", pa.list_(pa.string()))])
    table = pa.Table.from_pylist([{"text": text, "negatives": items} for text, items in rows], schema)
    pq.write_table(table, path, use_dictionary=dictionary, data_page_version=page, row_group_size=group)
    same_as_pyarrow(path)
