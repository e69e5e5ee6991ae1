"""Pack several texts into each row of tokens: no padding to the longest text of a batch, the same embeddings.

A row of L tokens holds whole texts one after another. Tokens attend to tokens of the same `segment` only, `position`
counts within a text, and `slot` says where each text's mean stands afterwards:

    ids       int32 [R, L]   tokens
    segment   int32 [R, L]   1, 2, … for the texts of a row in turn; 0 is padding
    position  int32 [R, L]   0, 1, … within each text
    slot      int32 [S]      row · (L + 1) + segment − 1 of each text; an empty text points at a place that holds none
"""

from typing import NamedTuple

import numpy as np

ROW_LENGTHS = (64, 128, 256, 512)  # tokens per row: each length is compiled for, so there are few


def row_length(longest: int) -> int:
    """Tokens per row for texts of at most `longest` tokens."""
    return next((n for n in ROW_LENGTHS if n >= longest), longest)


def assign(lengths: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Assign texts to rows by best fit: the longest first, each where it leaves the least room.

    At most 22 % more rows than needed (Johnson et al., 1974), in practice one more. O(S·row).

    Args:
        lengths: int [S], the tokens of each text, at most `row`.
        row: tokens per row.

    Returns:
        The row of each text, int32 [S]; where its first token stands in that row, int32 [S]; the number of rows R.
    """
    rows, starts = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    with_room: list[list[int]] = [[] for _ in range(row + 1)]  # free tokens → rows that have that many
    used = 0
    for text in np.argsort(-lengths, kind="stable"):
        length = int(lengths[text])
        free = next((n for n in range(length, row + 1) if with_room[n]), None)
        if free is None:
            chosen, free, used = used, row, used + 1
        else:
            chosen = with_room[free].pop()
        rows[text], starts[text] = chosen, row - free
        with_room[free - length].append(chosen)
    return rows, starts, max(1, used)


def round_rows(rows: int, multiple: int = 1) -> int:
    """`rows` rounded up, by a quarter at most and to a `multiple`: each number of rows is compiled for."""
    step = 1 << max(0, rows.bit_length() - 3)
    rows = -(-rows // step) * step
    return -(-rows // multiple) * multiple


class Layout(NamedTuple):
    """Where the tokens of packed texts stand."""

    cell: np.ndarray  # int [T]: row · L + column of each token, text by text
    text: np.ndarray  # int [T], its text
    place: np.ndarray  # int [T], where it stands in its text
    shape: tuple[int, int]  # R, L
    segment: np.ndarray  # int32 [S], of each text in its row
    slot: np.ndarray  # int32 [S]

    def fill(self, values_T: np.ndarray) -> np.ndarray:
        """A value per token as int32 [R, L]; padding is 0."""
        cells = np.zeros(self.shape[0] * self.shape[1], np.int32)
        cells[self.cell] = values_T
        return cells.reshape(self.shape)


def lay_out(lengths_S: np.ndarray, row: int, multiple: int = 1) -> Layout:
    """Assign texts to rows; arguments and errors as for `pack`."""
    if lengths_S.max(initial=0) > row:
        raise ValueError(f"a text of {lengths_S.max()} tokens does not fit into a row of {row}")
    at, start, used = assign(lengths_S, row)
    rows = round_rows(used, multiple)
    # The texts of a row by their first token, so that segments count upwards.
    order = np.lexsort((start, at))
    order = order[lengths_S[order] > 0]
    first = np.searchsorted(at[order], at[order])  # the place in `order` where each text's row begins
    segment = np.zeros(len(at), np.int32)
    segment[order] = np.arange(len(order)) - first + 1
    text = np.repeat(np.arange(len(at)), lengths_S)
    place = np.arange(len(text)) - np.repeat(np.cumsum(lengths_S) - lengths_S, lengths_S)
    cell = at[text] * row + start[text] + place
    slot = np.where(lengths_S > 0, at * (row + 1) + segment - 1, row).astype(np.int32)
    return Layout(cell, text, place, (rows, row), segment, slot)


def pack(ids_SxT: np.ndarray, lengths_S: np.ndarray, row: int, multiple: int = 1) -> dict[str, np.ndarray]:
    """Pack texts into rows.

    Args:
        ids_SxT: int32 [S, T], the token ids of each text.
        lengths_S: int [S], how many of them each text has.
        row: tokens per row, L.
        multiple: of which the number of rows shall be one (rows are shared out to devices).

    Returns:
        The arrays that the top of this module lists, with R as `round_rows` makes it.

    Raises:
        ValueError: a text is longer than a row.
    """
    return packed(ids_SxT, lay_out(lengths_S, row, multiple))


def packed(ids_SxT: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays that the top of this module lists, of texts that are laid out."""
    return {
        "ids": layout.fill(ids_SxT[layout.text, layout.place]),
        "segment": layout.fill(layout.segment[layout.text]),
        "position": layout.fill(layout.place),
        "slot": layout.slot,
    }
