"""Quotation marks in tables of text: with tabs a line is a row, with commas a quoted field may span lines."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax.data import DataConfig, Dataset, PairDataset, load
from mrl_jax.data.readers import delimited

FIELDS = {  # as a field stands in a .tsv, and the text it is
    '"Tis the season': '"Tis the season',
    '"': '"',
    'a "': 'a "',
    '"a': '"a',
    'a"': 'a"',
    '"Yes", he said': '"Yes", he said',
    'say "yes"': 'say "yes"',
    '"A" and "B"': '"A" and "B"',
    '"a"': "a",
    '"a, b"': "a, b",
    '"she said ""cut"""': 'she said "cut"',
    '""""': '"',
    '"a\tb"': "a\tb",
    "5' 3\"": "5' 3\"",
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quotation_mark_in_tsv_hides_no_line(tmp_path: Path, field: str, streaming: bool, end: str) -> None:
    """Labelled texts and pairs, in memory and streamed: as many rows as lines, each with its own label."""
    cells = [(field, "a"), ("one", "b"), (field, "c"), ('two "', "d")]
    expected = [(FIELDS.get(text, text), label) for text, label in cells]

    def write(name: str, header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
        lines = ["\t".join(row) for row in (header, *rows)]
        (tmp_path / name).write_bytes("".join(line + end for line in lines).encode())
        return str(tmp_path / name)

    options = {"streaming": streaming, "validation_fraction": 0, "cache_dir": str(tmp_path / "cache")}
    path = write("labelled.tsv", ("text", "label"), cells)
    labelled = load(DataConfig("files", train=path, test=path, **options))
    assert isinstance(labelled, Dataset)
    labels = [labelled.classes[row] for row in labelled.train.labels]
    assert list(zip(labelled.train.inputs, labels, strict=True)) == expected
    assert list(labelled.test.inputs) == [text for text, _ in expected]

    train = write("pairs.tsv", ("anchor", "positive"), cells)
    test = write("test.tsv", ("anchor", "positive"), [("other", text) for text, _ in cells])
    pairs = load(DataConfig("pairs", train=train, test=test, **options))
    assert isinstance(pairs, PairDataset)
    table = list(pairs.train.table)
    assert [tuple(table[row] for row in rows) for rows in pairs.train.columns] == expected
    assert list(pairs.test.documents) == list(dict.fromkeys(text for text, _ in expected))


@given(st.lists(st.text('ab", \t', min_size=1), min_size=1, max_size=4))
def test_what_the_csv_module_quotes_on_one_line_is_read(fields: list[str]) -> None:
    line = io.StringIO()
    csv.writer(line, delimiter="\t").writerow(fields)
    assert delimited.tab_fields(line.getvalue(), len(fields)) == fields


@given(st.lists(st.text('a"\n,', max_size=6), min_size=1, max_size=5), st.booleans())
def test_an_open_quotation_mark_is_where_the_csv_module_fails(lines: list[str], quoted: bool) -> None:
    """None exactly where strict CSV reads all; and what the csv module writes is never amiss."""
    text = io.StringIO()
    if quoted:
        csv.writer(text).writerow(lines)
    else:
        text.write("\n".join(lines))
    numbered = list(enumerate(text.getvalue().splitlines(keepends=True), start=1))
    try:
        list(csv.reader((line for _, line in numbered), strict=True))
    except csv.Error:
        assert not quoted
        assert delimited.open_quote(numbered, ",") is not None
    else:
        assert delimited.open_quote(numbered, ",") is None


OPEN = {  # a CSV that is amiss, and the line where the mark opens
    '"a\n': 1,
    'a,b\n"c,d\ne,f\n': 2,
    '"a"b,c\n': 1,
    '"a\nb""",c\n"x\ny"z\n': 3,
    '"a\nb","c\nd\n': 2,
    'a"b"c,"\n': 1,
}


@pytest.mark.parametrize("text", OPEN)
def test_the_line_of_an_open_quotation_mark(text: str) -> None:
    assert delimited.open_quote(enumerate(text.splitlines(keepends=True), start=1), ",") == OPEN[text]
