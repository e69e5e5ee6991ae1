"""The rows of a user's own table in JSONL, CSV, TSV or Parquet.

Each row comes with its place ("line 7" or, in Parquet, "row 7"; from 1), so that an error can name it.
"""

import codecs
import contextlib
import csv
import itertools
import json
from collections.abc import Callable, Collection, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mrl_jax.data.config import DataConfig
from mrl_jax.data.inputs import STREAMING_MIN_BYTES
from mrl_jax.data.readers import delimited
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_file, path_of

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # at the beginning of a file
MAX_FIELD_CHARACTERS = 1 << 30  # of one CSV field; the module's own limit of 128 kB is less than a long document
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
PARQUET_BATCH_ROWS = 4096  # rows of a Parquet file read at a time
MAX_UNPACKED_BYTES = 1 << 30  # that a file may unpack to, whatever its own size …
MAX_UNPACKED_RATIO = 100  # … or this many times its own size, if that is more: text unpacks to less than 20 times
PARQUET_ERRORS = (OSError, ValueError, MemoryError)  # that PyArrow raises for damaged files besides its own exceptions

Record = dict[str, Any]
ChooseColumns = Callable[[Path, list[str]], list[str]]  # path, header → columns to read; raises `UserError`


def records(key: str, name: str, choose: ChooseColumns) -> Iterator[tuple[str, Record]]:
    """(place, row) of every row of a file. JSONL has no header: its rows come with all keys that they have."""
    path = require_file(key, name, FORMATS)
    return FORMATS[path.suffix.lower()](path, choose)


def require_name(source: str, key: str, name: str | None) -> str:
    """The file name given for `key`, without which `source` cannot be read."""
    if name is None:
        raise UserError(f"data={source} needs {key}, a file ending in {', '.join(FORMATS)}")
    return name


def require_file(key: str, name: str, suffixes: Collection[str]) -> Path:
    """The path of a file that exists and ends in one of these suffixes."""
    path = path_of(key, name)
    need_file(f"{key}={name}", path)
    if path.suffix.lower() not in suffixes:
        hint = "; unpack it first" if path.suffix.lower() in PACKED else ""
        raise UserError(
            f"{key}={name}: unknown file type {path.suffix or '(none)'}; allowed: {', '.join(suffixes)}{hint}"
        )
    return path


def is_streamed(config: DataConfig) -> bool:
    """Whether texts stay on disk: as `data.streaming` says, else by the size of `data.train`."""
    if config.streaming is not None or config.train is None:
        return bool(config.streaming)
    path = path_of("data.train", config.train)
    return path.is_file() and size(path) >= STREAMING_MIN_BYTES


def size(path: Path) -> int:
    """Size of a file in bytes, that of Parquet without compression."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with contextlib.suppress(*PARQUET_ERRORS, pa.ArrowException):  # reading the rows says what is wrong
            metadata = pq.read_metadata(path)
            return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return path.stat().st_size


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; a byte-order mark is dropped. Where no line ends in LF, all end in CR."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        first = file.readline()
        begin = [first] if first.endswith(b"\n") else first.splitlines(keepends=True)  # else it is the whole file
        for number, line in enumerate(itertools.chain(begin, file), start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                hint = "; it looks like UTF-16: save it as UTF-8" if first[:2] in UTF_16_MARKS else ""
                raise UserError(f"{path}, line {number}: not valid UTF-8 (byte {error.start + 1}){hint}") from error


def json_records(path: Path, _: ChooseColumns | None = None) -> Iterator[tuple[str, Record]]:
    """The objects of a JSONL file, with all their keys; blank lines are skipped."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: expected an object with named fields, got {abbreviate(record)}")
        yield f"line {number}", record


def csv_records(path: Path, choose: ChooseColumns) -> Iterator[tuple[str, Record]]:
    """The rows of a CSV file with a header line. A quoted field may span lines; errors name the last of them.

    Fields are divided by commas or, where the header has none of these, by semicolons, as spreadsheets write them in
    countries where a comma is the decimal point.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    text = (line for _, line in lines(path))
    begin = list(itertools.islice(text, 1))
    delimiter = ";" if ";" in "".join(begin) and "," not in "".join(begin) else ","
    reader = csv.reader(itertools.chain(begin, text), delimiter=delimiter, strict=True)
    first = 1  # line of the row that is read
    try:
        header = next(reader, [])
        if header:
            check_distinct_columns(path, choose(path, header), header)
        first = reader.line_num + 1
        for values in reader:
            place = f"line {reader.line_num}"
            check_field_count(path, place, values, header)
            if values:
                yield place, dict(zip_longest(header, values))
            first = reader.line_num + 1
    except csv.Error as error:
        raise csv_error(path, first, reader.line_num, delimiter, error) from error


def csv_error(path: Path, first: int, last: int, delimiter: str, error: csv.Error) -> UserError:
    """The error for a row from line `first` to `last`; it names the line where a quotation mark opens amiss."""
    between = "comma" if delimiter == "," else "semicolon"
    opened = delimited.open_quote(itertools.islice(lines(path), first - 1, last), delimiter)
    if opened is None:
        reason = "a carriage return stands outside quotation marks" if "new-line" in str(error) else str(error)
        return UserError(f"{path}, line {last}: not valid CSV ({reason})")
    return UserError(
        f"{path}, line {opened}: not valid CSV (the quotation mark that opens here is not closed before a {between} "
        f"or a line end; line {last}: {error}); put such a field in quotation marks and double those in it"
    )


def tsv_records(path: Path, choose: ChooseColumns) -> Iterator[tuple[str, Record]]:
    """The rows of a TSV file with a header line; a line is a row (see `delimited`). Blank lines are skipped."""
    header: list[str] = []
    needed = 0  # fields up to the last column that is read
    for number, line in lines(path):
        if not line.strip("\r\n"):
            continue
        place = f"line {number}"
        if not header:
            header = delimited.tab_fields(line)
            wanted = choose(path, header)
            check_distinct_columns(path, wanted, header)
            needed = 1 + max(header.index(name) for name in wanted)
            continue
        values = delimited.tab_fields(line, len(header))
        check_field_count(path, place, values, header)
        if len(values) < needed and delimited.is_cut_quote(values):
            raise UserError(
                f"{path}, {place}: {len(values)} fields, the header has {len(header)}; in .tsv every line is a row, "
                "also within quotation marks; save texts with line ends in them as .csv, .jsonl or .parquet"
            )
        yield place, dict(zip_longest(header, values))


def check_field_count(path: Path, place: str, values: list[str], header: list[str]) -> None:
    """Raise `UserError` for a row of more fields than the header."""
    if len(values) > len(header):
        raise UserError(f"{path}, {place}: {len(values)} fields, the header has {len(header)}")


def parquet_records(path: Path, choose: ChooseColumns) -> Iterator[tuple[str, Record]]:
    """The rows of a Parquet file, in any encoding and compression that PyArrow reads.

    A value that the file's dictionary holds once is one object here too: a small file may repeat a long text a million
    times.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size, number, unpacked = path.stat().st_size, 0, 0
    try:
        schema = pq.read_schema(path)
        wanted = choose(path, schema.names)
        check_distinct_columns(path, wanted, schema.names)
        for name in wanted:
            check_column_type(path, name, schema.field(name).type)
        for batch in parquet_batches(path, wanted):
            unpacked += batch.nbytes + 16 * len(batch)
            check_expansion(path, size, unpacked)
            batch.validate(full=True)  # a damaged page may point beyond its dictionary
            columns = [column_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"row {number}", dict(zip(batch.schema.names, values, strict=True))
    except (pa.ArrowException, *PARQUET_ERRORS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable Parquet file ({reason})") from error


def parquet_batches(path: Path, wanted: list[str]) -> Iterator[Any]:
    """The content of a Parquet file, some rows at a time, its texts as dictionaries where their encoding allows it.

    Which it does not where texts are encoded by what they share with those before (DELTA_…), and that is only known by
    trying: to ask a damaged file for its encodings aborts the process. Such texts may unpack to many times their size,
    so few are read at a time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    options = {"buffer_size": 1 << 20, "pre_buffer": False}
    with pq.ParquetFile(path, **options) as plain:
        leaves = [plain.schema.column(i).path for i in range(len(plain.schema.names))]
        texts = [leaf for leaf in leaves if any(leaf == name or leaf.startswith(f"{name}.") for name in wanted)]
        with pq.ParquetFile(path, read_dictionary=texts, **options) as file:
            for group in range(file.num_row_groups):  # one by one: each has dictionaries of its own
                done = 0
                try:
                    for batch in file.iter_batches(PARQUET_BATCH_ROWS, [group], wanted, use_threads=False):
                        yield batch
                        done += len(batch)
                    continue
                except (pa.ArrowException, *PARQUET_ERRORS):  # damage is met again below
                    pass
                for batch in plain.iter_batches(PARQUET_BATCH_ROWS // 64, [group], wanted, use_threads=False):
                    if done < len(batch):
                        yield batch.slice(done)
                    done = max(0, done - len(batch))


def check_column_type(path: Path, name: str, column_type: Any) -> None:
    """Raise `UserError` for a column of a Parquet file that holds no text, no numbers and no lists of them."""
    from pyarrow import types

    inner = column_type
    while hasattr(inner, "value_type"):  # of lists and dictionaries
        inner = inner.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    others = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    if not any(test(inner) for test in (*texts, *others)):
        raise UserError(f"{path}: the column {name} has the type {column_type}; expected text or numbers")


def column_values(column: Any) -> list[Any]:
    """The values of an Arrow array; equal values of a dictionary are the same object."""
    if hasattr(column, "flatten") and hasattr(column.type, "value_type"):  # lists
        values = iter(column_values(column.flatten()))
        lengths = column.value_lengths().to_pylist()
        return [None if length is None else list(itertools.islice(values, length)) for length in lengths]
    if not hasattr(column, "dictionary"):
        return list(decode(column).to_pylist())
    used = column.indices.unique().drop_null()  # the dictionary may hold every text of the file, and be asked often
    by_index = dict(zip(used.to_pylist(), decode(column.dictionary.take(used)).to_pylist(), strict=True))
    return [by_index.get(index) for index in column.indices.to_pylist()]


def decode(values: Any) -> Any:
    """Bytes as UTF-8 text: some writers (Impala, older Spark) do not mark text as such. Other arrays as they are."""
    import pyarrow as pa

    if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
        return values
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise ValueError("a column of bytes is no text in UTF-8") from None


FORMATS: dict[str, Callable[[Path, ChooseColumns], Iterator[tuple[str, Record]]]] = {
    ".jsonl": json_records,
    ".ndjson": json_records,
    ".csv": csv_records,
    ".tsv": tsv_records,
    ".parquet": parquet_records,
}


def check_expansion(path: Path, packed: int, unpacked: int) -> None:
    """Raise `UserError` for content that unpacks to far more bytes than text and numbers do, and fills the memory."""
    if unpacked > max(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * packed):
        raise UserError(
            f"{path} has {packed:,} bytes and unpacks to {unpacked:,} or more, over "
            f"{MAX_UNPACKED_RATIO} times as many; save it without compression if that is meant"
        )


def check_distinct_columns(path: Path, wanted: list[str], names: list[str]) -> None:
    """Raise `UserError` if two columns have the name of one that is read."""
    for name in wanted:
        if names.count(name) > 1:
            raise UserError(f"{path} has {names.count(name)} columns named {name}; keep one of them")


def text_field(path: Path, place: str, record: Record, column: str) -> str:
    """The non-empty string in a column, or a `UserError` that says what is there."""
    value = record.get(column)
    if value is None or value == "":
        raise UserError(f"{path}, {place}: the row has no {column}")
    if not isinstance(value, str):
        raise UserError(f"{path}, {place}: {column} must be a string, got {abbreviate(value)}")
    need_unicode(path, place, column, value)
    return value


def need_unicode(path: Path, place: str, column: str, text: str) -> None:
    """Raise `UserError` for a string that JSON can write but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}, {place}: {column} holds half of a surrogate pair, which is no text") from None


def abbreviate(value: object) -> str:
    """A value for an error message, in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
