"""A user's own labelled texts: JSONL, CSV, TSV or Parquet files with the columns `text` and `label`.

    {"text": "the goalie stopped 31 shots", "label": "hockey"}

Labels may be strings or whole numbers; both become class names (strings). The classes are those of the train file.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.data.base import DataConfig, Dataset, Split, class_names
from mrl_jax.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
FIELD_LIMIT = 1 << 30  # characters of one CSV field; the module's own limit of 128 kB is less than a long document


class Row(NamedTuple):
    """A checked example and where it stands."""

    place: str  # "line 7" or, in Parquet, "row 7"; from 1
    text: str
    label: str


def read(config: DataConfig) -> Dataset:
    """Read `data.train`, `data.test` and, if given, `data.validation`; else the validation split is empty.

    Raises `UserError` naming the file and the line of the first thing that is wrong.
    """
    train = rows("data.train", config.train)
    test = rows("data.test", config.test)
    validation = rows("data.validation", config.validation) if config.validation else []
    classes = class_names(row.label for row in train)

    def part(examples: list[Row], path: str | None) -> Split:
        index = {name: number for number, name in enumerate(classes)}
        for row in examples:
            if row.label not in index:
                raise UserError(f"{path}, {row.place}: the label {row.label!r} does not occur in {config.train}")
        return Split([row.text for row in examples], np.array([index[row.label] for row in examples], np.int32))

    return Dataset(
        name=Path(config.train or "").stem,
        kind="text",
        classes=classes,
        train=part(train, config.train),
        validation=part(validation, config.validation),
        test=part(test, config.test),
    )


def rows(key: str, name: str | None) -> list[Row]:
    """All examples of a file, checked."""
    if name is None:
        raise UserError(f"data=files needs {key}, a file ending in {', '.join(SUFFIXES)}")
    path = existing(key, name, SUFFIXES)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            records = json_records(path)
        case ".csv":
            records = csv_records(path, ",")
        case ".tsv":
            records = csv_records(path, "\t")
        case _:
            records = parquet_records(path)
    examples = [checked(path, place, record) for place, record in records]
    if not examples:
        raise UserError(f"{key}={name} is empty")
    return examples


def existing(key: str, name: str, suffixes: tuple[str, ...]) -> Path:
    """The path of a file that exists and ends in one of these suffixes."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{key}={name}: there is no such file")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{key}={name}: unknown file type {path.suffix or '(none)'}; allowed: {', '.join(suffixes)}")
    return path


def checked(path: Path, place: str, record: dict[str, Any]) -> Row:
    """The record as a `Row`, or a `UserError` that says what is missing or of the wrong type."""
    text, label = record.get("text"), record.get("label")
    for column, value in (("text", text), ("label", label)):
        if value is None or value == "":
            raise UserError(f"{path}, {place}: the row has no {column}")
    if not isinstance(text, str):
        raise UserError(f"{path}, {place}: text must be a string, got {shown(text)}")
    try:
        f"{text}{label}".encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}, {place}: text or label holds half of a surrogate pair, which is no text") from None
    except ValueError:
        raise UserError(f"{path}, {place}: the label has too many digits") from None
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise UserError(f"{path}, {place}: label must be a string or a whole number, got {shown(label)}")
    return Row(place, text, str(label))


def shown(value: object) -> str:
    """A value in an error message, at most 40 characters of it."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends; a byte-order mark is dropped."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not valid UTF-8 (byte {error.start + 1})") from error


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file; blank lines are skipped."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: expected an object with text and label, got {shown(record)}")
        yield f"line {number}", record


def csv_records(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV file with a header line; a quoted field may span lines, the last one is named in errors."""
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if header:
            need_columns(path, header)
        for values in reader:
            if len(values) > len(header):
                raise UserError(f"{path}, line {reader.line_num}: {len(values)} fields, the header has {len(header)}")
            if values:
                yield f"line {reader.line_num}", dict(zip(header, values, strict=False))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def parquet_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        need_columns(path, pq.read_schema(path).names)
        records = pq.read_table(path, columns=["text", "label"]).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for number, record in enumerate(records, start=1):
        yield f"row {number}", record


def need_columns(path: Path, names: list[str]) -> None:
    """Raise `UserError` unless `text` and `label` are among the columns."""
    for column in ("text", "label"):
        if column not in names:
            raise UserError(f"{path} has no column {column}; its columns are {', '.join(names)}")
