"""Several texts in a row of tokens: no padding to the longest text of a batch, the same embeddings.

A row of L tokens holds whole texts one after another. Attention is kept within a text by comparing `segment` numbers, a
token's place in its text is its `position`, and `slot` says where each text's mean is found afterwards:

    ids       int32 [R, L]   tokens
    segment   int32 [R, L]   1, 2, … for the texts of a row in turn; 0 is padding
    position  int32 [R, L]   0, 1, … within each text
    slot      int32 [S]      row · (L + 1) + segment − 1 of each text; an empty text points at a place that holds none
"""

import numpy as np

LENGTHS = (64, 128, 256, 512)  # of a row: few to compile


def row_length(longest: int) -> int:
    """The length of rows for texts of at most `longest` tokens."""
    return next((n for n in LENGTHS if n >= longest), longest)


def assign(lengths: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray, int]:
    """For texts of `lengths` [S] ≤ `row` tokens: the row [S] that each is put in, its first token there [S], and R.

    Best fit by descending length: a text goes where it leaves the least room. At most 22 % more rows than needed
    (Johnson et al., 1974), in practice one more. O(S·row).
    """
    rows, starts = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    with_room: list[list[int]] = [[] for _ in range(row + 1)]  # free tokens → rows that have so many
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


def rounded(rows: int, multiple: int = 1) -> int:
    """A number of rows of which there are few, at most a quarter more: each one is compiled for."""
    step = 1 << max(0, rows.bit_length() - 3)
    rows = -(-rows // step) * step
    return -(-rows // multiple) * multiple


def pack(ids_SxT: np.ndarray, lengths_S: np.ndarray, row: int, multiple: int = 1) -> dict[str, np.ndarray]:
    """The arrays above for texts `ids_SxT` of `lengths_S` tokens; the number of rows is `rounded`.

    Raises `ValueError` when a text is longer than a row.
    """
    if lengths_S.max(initial=0) > row:
        raise ValueError(f"a text of {lengths_S.max()} tokens does not fit into a row of {row}")
    at, start, used = assign(lengths_S, row)
    rows = rounded(used, multiple)
    # The texts of a row by their first token, so that segments count upwards.
    order = np.lexsort((start, at))
    order = order[lengths_S[order] > 0]
    first = np.searchsorted(at[order], at[order])  # the place in `order` where each text's row begins
    segment = np.zeros(len(at), np.int32)
    segment[order] = np.arange(len(order)) - first + 1
    text = np.repeat(np.arange(len(at)), lengths_S)
    place = np.arange(len(text)) - np.repeat(np.cumsum(lengths_S) - lengths_S, lengths_S)
    cells = at[text] * row + start[text] + place
    packed = {name: np.zeros(rows * row, np.int32) for name in ("ids", "segment", "position")}
    packed["ids"][cells] = ids_SxT[text, place]
    packed["segment"][cells] = segment[text]
    packed["position"][cells] = place
    slot = np.where(lengths_S > 0, at * (row + 1) + segment - 1, row).astype(np.int32)
    return {name: array.reshape(rows, row) for name, array in packed.items()} | {"slot": slot}
