"""How fields are quoted in tables of text: one rule for tabs, another for commas.

Tabs: a line is a row, whatever quotation marks stand in it. A field that begins and ends with a quotation mark, with
none but doubled ones between, is what stands between them; only such a field may hold tabs. In every other field a
quotation mark is a character like any other, as texts begin with one and never close it.

Commas (RFC 4180): a field that begins with a quotation mark ends at the next single one and may span lines.
"""

import re
from collections.abc import Iterable

QUOTED = r'"[^"]*(?:""[^"]*)*"'
TAB_FIELD = re.compile(rf"({QUOTED}|[^\t]*)(?:\t|$)")


def tab_fields(line: str, columns: int | None = None) -> list[str]:
    """The fields of a line of a tab-separated file, without quotation marks around them.

    A tab is only taken for a part of a quoted field where the line has more fields than `columns` otherwise, and just
    as many then.
    """
    line = line.rstrip("\r\n")
    fields = line.split("\t")
    if columns is not None and len(fields) > columns:
        joined = TAB_FIELD.findall(line)
        joined = joined if line.endswith("\t") else joined[:-1]  # the last match is the empty one at the end
        fields = joined if len(joined) == columns else fields
    return [unquote(field) for field in fields]


def unquote(field: str) -> str:
    """What stands between the quotation marks of a quoted field; any other field as it is."""
    return field[1:-1].replace('""', '"') if re.fullmatch(QUOTED, field) else field


def is_cut_quote(fields: list[str]) -> bool:
    """Whether a quoted field seems to go on in the next line, or to come from the one before."""
    return fields[-1].startswith('"') or fields[0].endswith('"')


def open_quote(lines: Iterable[tuple[int, str]], delimiter: str) -> int | None:
    """The line where the quotation mark opens that is not closed before a delimiter, a line end or the end.

    Args:
        lines: numbered lines with their ends; the first begins a row.
        delimiter: one character.

    Returns:
        The number of the line; None where every quotation mark that opens a field is closed.
    """
    opened: int | None = None
    for number, line in lines:
        at = 0  # where a field begins, or goes on if one is open
        while at < len(line):
            if opened is None and line[at] == '"':
                opened, at = number, at + 1
            elif opened is None:
                at = line.find(delimiter, at) + 1 or len(line)
            else:
                at = line.find('"', at) + 1 or len(line) + 1
                after = line[at : at + 1]
                if at > len(line):
                    continue  # the field goes on in the next line
                if after not in ('"', delimiter, "\r", "\n", ""):
                    return opened
                opened, at = (opened if after == '"' else None), at + 1
    return opened
