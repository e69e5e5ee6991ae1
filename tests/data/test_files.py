"""A user's own files: all formats give the same data; every mistake is one sentence with file and line."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.data import DataConfig, load
from mrl_jax.data.sources.files import rows
from mrl_jax.system.errors import UserError

ROWS = [("der Torwart hielt, 31 Mal", "hockey"), ('she said "cut"\nand they did', "politics"), ("größer 🎉", "hockey")]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1)  # csv folds \r; NUL ends a field


def write(path: Path, examples: list[tuple[str, object]]) -> str:
    """Write examples in the format of the suffix."""
    match path.suffix:
        case ".jsonl" | ".ndjson":
            path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in examples), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.table({"text": [t for t, _ in examples], "label": [y for _, y in examples]}), path)
        case suffix:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
                writer.writerows([("text", "label"), *examples])
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str) -> None:
    examples = [(text.replace("\n", "\t"), label) for text, label in ROWS] if suffix == "tsv" else ROWS
    config = DataConfig(
        "files",
        train=write(tmp_path / f"train.{suffix}", examples),
        test=write(tmp_path / f"test.{suffix}", examples[:1]),
        validation=write(tmp_path / f"validation.{suffix}", examples[1:]),
    )
    dataset = load(config)
    assert (dataset.name, dataset.kind, dataset.classes) == ("train", "text", ("hockey", "politics"))
    assert list(dataset.train.inputs) == [text for text, _ in examples]
    assert dataset.train.labels.tolist() == [0, 1, 0]
    assert list(dataset.test.inputs) == [examples[0][0]]
    assert dataset.test.labels.tolist() == [0]
    assert list(dataset.validation.inputs) == [text for text, _ in examples[1:]]


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1), st.sampled_from(["jsonl", "csv", "tsv", "parquet"]))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, examples: list, suffix: str) -> None:
    if suffix == "tsv":  # where every line is a row
        examples = [(text.replace("\n", " "), label.replace("\n", " ")) for text, label in examples]
    path = write(tmp_path_factory.mktemp("any") / f"a.{suffix}", examples)
    assert [(row.text, row.label) for row in rows("data.train", path)] == examples


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_whole_number_labels_become_names(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", [("a", 10), ("b", 2), ("c", 2), ("d", 10)])
    assert load(DataConfig("files", train=path, test=path)).classes == ("2", "10")


def test_one_class_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [("a", "x"), ("b", "x")])
    assert load(DataConfig("files", train=path, test=path)).classes == ("x",)


def test_a_text_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("word " * 100_000, "x")])
    assert len(rows("data.train", path)[0].text) == 500_000


def test_a_byte_order_mark_and_blank_lines_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\n\r\na,x\r\n\r\n")
    assert rows("data.train", str(path)) == [("line 3", "a", "x")]


@given(examples=st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_semicolons_divide_where_the_header_has_no_comma(
    tmp_path_factory: pytest.TempPathFactory, examples: list
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows([("text", "label"), *examples])
    assert [(row.text, row.label) for row in rows("data.train", str(path))] == examples


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_that_differ_in_case_or_white_space_only_are_said(
    tmp_path: Path, streaming: bool, capsys: pytest.CaptureFixture
) -> None:
    examples = [("a", "ice hockey"), ("b", "Ice  hockey"), ("c", "x"), ("d", "x "), ("e", "y")]
    path = write(tmp_path / "a.jsonl", examples)
    dataset = load(DataConfig("files", train=path, test=path, streaming=streaming, cache_dir=str(tmp_path)))
    assert len(dataset.classes) == 5
    said = [line for line in capsys.readouterr().err.splitlines() if "differ only in case" in line]
    assert said == [
        f"{path}: 'Ice  hockey' and 'ice hockey' differ only in case or white space, and are different classes; 2 "
        "groups of classes are like that"
    ]
    load(DataConfig("files", train=write(tmp_path / "b.jsonl", examples[1:3]), test=path[:-7] + "b.jsonl"))
    assert "differ only" not in capsys.readouterr().err


GOOD = b'{"text": "a", "label": "x"}\n'
BROKEN = {  # file name: content, what the sentence must say
    "empty.jsonl": (b"", "data.train=.*empty.jsonl is empty"),
    "blank.jsonl": (b"\n\n", "is empty"),
    "empty.csv": (b"", "is empty"),
    "header_only.csv": (b"text,label\n", "is empty"),
    "json.jsonl": (GOOD + b'{"text": "b", \n', r"json.jsonl, line 2: not valid JSON"),
    "list.jsonl": (GOOD + b'["b", "x"]\n', r"line 2: expected an object"),
    "utf8.jsonl": (GOOD + GOOD + b'{"text": "\xff", "label": "x"}\n', r"utf8.jsonl, line 3: not valid UTF-8"),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), "utf16.jsonl, line 1: .*it looks like UTF-16: save it as UTF-8"),
    "utf8.csv": (b"text,label\nsch\xf6n,x\n", r"utf8.csv, line 2: not valid UTF-8 \(byte 4\)"),
    "no_text.jsonl": (GOOD + b'{"label": "x"}\n', r"no_text.jsonl, line 2: the row has no text"),
    "no_label.jsonl": (GOOD + b'{"text": "b"}\n', r"no_label.jsonl, line 2: the row has no label"),
    "null_label.jsonl": (b'{"text": "b", "label": null}\n', r"line 1: the row has no label"),
    "null_text.jsonl": (b'{"text": null, "label": "x"}\n', r"line 1: the row has no text"),
    "empty_label.csv": (b"text,label\na,x\nb,\n", r"line 3: the row has no label"),
    "short.csv": (b"text,label\na\n", r"line 2: the row has no label"),
    "long.csv": (b"text,label\na,x,y\n", r"line 2: 3 fields, the header has 2"),
    "open_quote.csv": (
        b'text,label\na,x\n"b,x\nc,x\nd,x\n',
        r"open_quote.csv, line 3: not valid CSV \(the quotation mark",
    ),
    "ends_early.csv": (
        b'text,label\n"a\nb",x\n"b\nc"d,x\ne,x\n',
        r"ends_early.csv, line 4: not valid CSV .*; line 5: ",
    ),
    "later.csv": (b'text,label\n"a\nb","x\ny,z\n', r"later.csv, line 3: not valid CSV"),
    "return.csv": (
        b"text,label\na\rb,x\n",
        r"line 2: not valid CSV \(a carriage return stands outside quotation marks",
    ),
    "semicolons.csv": (
        b'text;label\n"a"b;x\n',
        r"line 2: .* is not closed before a semicolon or a line end",
    ),
    "packed.gz": (b"x", r"unknown file type .gz; allowed: .jsonl, .* .parquet; unpack it first"),
    "two_lines.tsv": (b'text\tlabel\n"a\nb"\tx\n', r"line 2: 1 fields, the header has 2; in .tsv every line is a row"),
    "long.tsv": (b"text\tlabel\na\tx\ty\n", r"line 2: 3 fields, the header has 2"),
    "short.tsv": (b"text\tlabel\na\n", r"line 2: the row has no label"),
    "number.jsonl": (b'{"text": 5, "label": "x"}\n', r"line 1: text must be a string, got 5"),
    "float.jsonl": (b'{"text": "a", "label": 0.5}\n', r"line 1: label must be a string or a whole number, got 0.5"),
    "bool.jsonl": (b'{"text": "a", "label": true}\n', r"line 1: label must be a string or a whole number, got True"),
    "column.csv": (b"text,class\na,x\n", r"column.csv has no column label; its columns are text, class"),
    "not.parquet": (b"text,label\n", r"not.parquet is not a readable Parquet file"),
    "what.xlsx": (b"x", r"unknown file type .xlsx; allowed: .jsonl, .ndjson, .csv, .tsv, .parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    test = write(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(UserError, match=message) as error:
        load(DataConfig("files", train=str(tmp_path / name), test=test))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"data\.test=.*absent\.jsonl: there is no such file"):
        load(DataConfig("files", train=train, test=str(tmp_path / "absent.jsonl")))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_line_ends_may_be_of_any_system(tmp_path: Path, suffix: str) -> None:
    examples = [("one, \t “two”", "x"), ("three", "y")]
    path = Path(write(tmp_path / f"train.{suffix}", examples))
    content = path.read_bytes().replace(b"\r\n", b"\n")
    for end in (b"\n", b"\r\n", b"\r"):
        for last in (end, b""):
            path.write_bytes(content.replace(b"\n", end).removesuffix(end) + last)
            assert [(row.place, row.text, row.label) for row in rows("data.train", str(path))] == [
                (f"line {i}", *example) for i, example in enumerate(examples, 1 if suffix == "jsonl" else 2)
            ]


def test_a_carriage_return_within_a_text_stays_where_lines_end_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"text\tlabel\none\rtwo\tx\n")
    assert [row.text for row in rows("data.train", str(path))] == ["one\rtwo"]


@pytest.mark.parametrize("suffix", ["", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_folder_in_the_place_of_a_file_is_named_as_one(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"train{suffix}").mkdir()
    test = write(tmp_path / "test.jsonl", ROWS)
    for streaming in (None, True):
        with pytest.raises(UserError, match=r"data\.train=.*: this is a folder; a file is needed"):
            load(DataConfig("files", train=str(tmp_path / f"train{suffix}"), test=test, streaming=streaming))


@pytest.mark.parametrize("key", ["train", "test"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    given_paths = {name: write(tmp_path / f"{name}.jsonl", ROWS) for name in ("train", "test") if name != key}
    with pytest.raises(UserError, match=rf"data=files needs data\.{key}"):
        load(DataConfig("files", **given_paths))


@pytest.mark.parametrize("key", ["test", "validation"])
def test_a_label_that_train_lacks_is_named_with_its_line(tmp_path: Path, key: str) -> None:
    paths = {name: write(tmp_path / f"{name}.jsonl", ROWS) for name in ("train", "test", "validation")}
    write(tmp_path / f"{key}.jsonl", [*ROWS, ("new", "curling")])
    with pytest.raises(UserError, match=rf"{key}\.jsonl, line 4: the label 'curling' does not occur in .*train\.jsonl"):
        load(DataConfig("files", **paths))


def test_a_parquet_row_without_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", None]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: the row has no label"):
        load(DataConfig("files", train=str(path), test=str(path)))


def test_a_parquet_file_without_the_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "y": ["x"]}), path)
    with pytest.raises(UserError, match="has no column label; its columns are text, y"):
        load(DataConfig("files", train=str(path), test=str(path)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut \\ud83d emoji", "label": "a"}', "half of a surrogate pair"),
        ('{"text": "x", "label": ' + "9" * 5000 + "}", "line 1"),
    ],
)
def test_what_json_can_write_and_text_cannot_hold(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        load(DataConfig(source="files", train=str(path), test=str(path)))
