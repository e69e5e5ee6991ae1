"""Which examples make up a step: a pure function of (seed, step), so that a resumed run sees what it would have seen.

The examples are read in one endless stream, a fresh permutation an epoch; a batch is the next `batch_size` of them and
may span two epochs, so none is ever left out.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

MASKS = ("mask", "weights")  # inputs that are zero exactly at padding; their rows are trimmed to the longest text
LENGTHS = (16, 32, 64, 96, 128, 160, 192, 224, 256, 384, 512)  # a batch is padded to one of these: few to compile
WINDOW = 50  # batches within which texts are grouped by length


class Examples:
    """One split as the model reads it: named arrays of equal length, and labels."""

    def __init__(self, inputs: Mapping[str, Any], labels: np.ndarray) -> None:
        self.inputs = dict(inputs)
        self.labels = labels
        mask = next((self.inputs[name] for name in MASKS if name in self.inputs), None)
        self.lengths = None if mask is None else np.count_nonzero(mask, axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    def padded(self, rows: np.ndarray) -> int | None:
        """The length to which the texts at `rows` are padded together; None where there is nothing to pad."""
        if self.lengths is None:
            return None
        longest = int(next(iter(self.inputs.values())).shape[1])
        needed = int(self.lengths[rows].max(initial=1))
        return min(longest, next((n for n in LENGTHS if n >= needed), longest))

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The examples at `rows` as a batch with `label`, texts padded to `length` or to the longest among them."""
        length = length or self.padded(rows)
        if length is None:
            batch = {name: np.asarray(array[rows]) for name, array in self.inputs.items()}
        else:
            batch = {name: array[rows, :length] for name, array in self.inputs.items()}
        return batch | {"label": self.labels[rows]}


def order(examples: Examples, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """The permutation of one epoch. Texts of like length are drawn into the same batch: within a window of
    `WINDOW` batches they are sorted by length and the batches shuffled, which spares most of the padding."""
    rng = np.random.default_rng((seed, epoch))
    rows = rng.permutation(len(examples))
    if examples.lengths is None:
        return rows
    grouped = []
    for window in np.split(rows, range(WINDOW * batch_size, len(rows), WINDOW * batch_size)):
        window = window[np.argsort(examples.lengths[window], kind="stable")]
        groups = np.split(window, range(batch_size, len(window), batch_size))
        grouped += [groups[i] for i in rng.permutation(len(groups))]
    return np.concatenate(grouped)


def stream(examples: Examples, seed: int, batch_size: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """The rows [batch_size] of the steps start … stop-1."""
    orders: dict[int, np.ndarray] = {}
    n = len(examples)
    for step in range(start, stop):
        parts, position, wanted = [], step * batch_size, batch_size
        while wanted:
            epoch, offset = divmod(position, n)
            if epoch not in orders:
                orders = {k: v for k, v in orders.items() if k == epoch - 1} | {
                    epoch: order(examples, seed, epoch, batch_size)
                }
            part = orders[epoch][offset : offset + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        yield np.concatenate(parts)


def prefetch(items: Iterator[Any], make: Any, ahead: int = 2) -> Iterator[Any]:
    """`make(item)` for each item, computed in a thread `ahead` items before it is asked for."""
    with ThreadPoolExecutor(1) as pool:
        waiting = []
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def slices(examples: Examples, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
    """Every example once, for evaluation: (rows, batch, valid). Texts go by length; the last batch is filled up with
    repeats, for which `valid` is false, so that all batches have one size."""
    n = len(examples)
    if not n:
        return
    rows = np.arange(n) if examples.lengths is None else np.argsort(examples.lengths, kind="stable")
    for start in range(0, n, batch_size):
        part = rows[start : start + batch_size]
        filled = np.resize(part, batch_size)
        yield part, examples.take(filled), np.arange(batch_size) < len(part)
