"""The rows of a user's own table, whichever of the formats JSONL, CSV, TSV and Parquet it is kept in.

Each row comes with its place ("line 7" or, in Parquet, "row 7"; from 1), so that an error can name it.
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mrl_jax.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
FIELD_LIMIT = 1 << 30  # characters of one CSV field; the module's own limit of 128 kB is less than a long document

Record = dict[str, Any]
Choose = Callable[[Path, list[str]], list[str]]  # of a header: the columns to read; raises `UserError` for a wrong one


def records(key: str, name: str, choose: Choose) -> Iterator[tuple[str, Record]]:
    """(place, row) of every row of a file; JSONL has no header, so its rows come with whatever keys they have."""
    path = existing(key, name, SUFFIXES)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return json_records(path)
        case ".csv":
            return csv_records(path, ",", choose)
        case ".tsv":
            return csv_records(path, "\t", choose)
        case _:
            return parquet_records(path, choose)


def existing(key: str, name: str, suffixes: tuple[str, ...]) -> Path:
    """The path of a file that exists and ends in one of these suffixes."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{key}={name}: there is no such file")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{key}={name}: unknown file type {path.suffix or '(none)'}; allowed: {', '.join(suffixes)}")
    return path


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


def json_records(path: Path) -> Iterator[tuple[str, Record]]:
    """The objects of a JSONL file; blank lines are skipped."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: expected an object with named fields, got {shown(record)}")
        yield f"line {number}", record


def csv_records(path: Path, delimiter: str, choose: Choose) -> Iterator[tuple[str, Record]]:
    """The rows of a CSV file with a header line; a quoted field may span lines, the last one is named in errors."""
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if header:
            choose(path, header)
        for values in reader:
            if len(values) > len(header):
                raise UserError(f"{path}, line {reader.line_num}: {len(values)} fields, the header has {len(header)}")
            if values:
                yield f"line {reader.line_num}", dict(zip_longest(header, values))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def parquet_records(path: Path, choose: Choose) -> Iterator[tuple[str, Record]]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=choose(path, pq.read_schema(path).names)).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for number, record in enumerate(table, start=1):
        yield f"row {number}", record


def text_field(path: Path, place: str, record: Record, column: str) -> str:
    """The non-empty string in a column, or a `UserError` that says what is there."""
    value = record.get(column)
    if value is None or value == "":
        raise UserError(f"{path}, {place}: the row has no {column}")
    if not isinstance(value, str):
        raise UserError(f"{path}, {place}: {column} must be a string, got {shown(value)}")
    need_unicode(path, place, column, value)
    return value


def need_unicode(path: Path, place: str, column: str, text: str) -> None:
    """Raise `UserError` for a string that JSON can write but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}, {place}: {column} holds half of a surrogate pair, which is no text") from None


def shown(value: object) -> str:
    """A value in an error message, at most 40 characters of it."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
