"""An order of an epoch in which, where possible, no text stands twice in a batch (`trainer.no_duplicates`).

A text that a batch holds twice is a negative less. As NO_DUPLICATES of sentence-transformers, a batch takes the next
pairs whose texts it does not hold yet, and those that it passes over come first in the batches after it. Only where
every pair that is left (or of `MAX_WAITING` batches) has a text of the batch does the batch take one all the same: all
batches are of one size, and no pair of an epoch is left out.

A batch may span two epochs. So the pairs that begin such a batch, the last ones of their epoch, are chosen first, from
its permutation alone: the order of an epoch follows from its own permutation and the one before.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

MAX_WAITING = 50  # batches of pairs that may be passed over; time grows with it where most texts are the same
CHUNK_ROWS = 4096  # whose texts are looked up at a time


def order(texts: np.ndarray, permutation: Callable[[int], np.ndarray], epoch: int, batch_size: int) -> np.ndarray:
    """The rows of one epoch, int32 [n].

    Args:
        texts: of each pair, int [n, c]; equal numbers are equal texts.
        permutation: epoch → int32 [n].
        epoch: from 0; batches are counted from the beginning of the first.
        batch_size: B; with fewer pairs than that the order is the permutation.
    """
    rows, count = permutation(epoch), len(texts)
    if count < batch_size:
        return rows
    head, tail = -epoch * count % batch_size, (epoch + 1) * count % batch_size
    last = _tail(texts, rows, tail, batch_size)
    taken: set[int] = set()
    if head:
        before = _tail(texts, permutation(epoch - 1), batch_size - head, batch_size)
        taken = set(texts[before].ravel().tolist())
    is_last = np.zeros(count, bool)
    is_last[last] = True
    rest = rows[~is_last[rows]]
    sizes = [*([head] if head else []), *[batch_size] * ((len(rest) - head) // batch_size)]
    batches = _batches(texts, rest, sizes, taken, MAX_WAITING * batch_size)
    return np.concatenate([np.fromiter((row for batch in batches for row in batch), np.int32, len(rest)), last])


def _tail(texts: np.ndarray, rows: np.ndarray, size: int, batch_size: int) -> np.ndarray:
    """`size` of the rows, the first that go together, from behind."""
    (tail,) = _batches(texts, rows[::-1], [size], set(), MAX_WAITING * batch_size)
    return np.array(tail[::-1], np.int32)


def _batches(
    texts: np.ndarray, rows: np.ndarray, sizes: Iterable[int], taken: set[int], most: int
) -> Iterator[list[int]]:
    """Batches of these sizes; the first one holds the texts `taken` already, and at most about `most` rows wait."""
    fresh = ((row, pair) for start in range(0, len(rows), CHUNK_ROWS)
             for row, pair in _with_texts(texts, rows[start : start + CHUNK_ROWS]))  # fmt: skip
    waiting: list[tuple[int, list[int]]] = []
    for size in sizes:
        batch: list[int] = []
        passed: list[tuple[int, list[int]]] = []  # over, by this batch
        rest = iter(waiting)
        for source in (rest, fresh):
            while len(batch) < size and len(passed) <= most and (one := next(source, None)) is not None:
                if taken.isdisjoint(one[1]):
                    batch.append(one[0])
                    taken.update(one[1])
                else:
                    passed.append(one)
        waiting = [*passed, *rest]
        missing = size - len(batch)
        batch += [row for row, _ in waiting[:missing]]
        waiting, taken = waiting[missing:], set()
        yield batch


def _with_texts(texts: np.ndarray, rows: np.ndarray) -> Iterable[tuple[int, list[int]]]:
    return zip(rows.tolist(), texts[rows].tolist(), strict=True)
