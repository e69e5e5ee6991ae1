"""Which examples make up a step: a pure function of (seed, step), so that a resumed run sees what it would have seen.

The examples are read in one endless stream, a fresh permutation an epoch; a batch is the next `batch_size` of them and
may span two epochs, so none is ever left out.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mrl_jax.text import packing

MASKS = ("mask", "weights")  # inputs that are zero exactly at padding; their rows are trimmed to the longest text
LENGTHS = (16, 32, 64, 96, 128, 160, 192, 224, 256, 384, 512)  # a batch is padded to one of these: few to compile
FINE = 8  # step of the lengths in `slices`
WINDOW = 50  # batches within which texts are grouped by length


class Examples:
    """One split as the model reads it: named arrays of equal length, and labels."""

    separable = True  # a process can make its part of a batch from its part of the rows
    fingerprint: str | None = None  # SHA-256 of all arrays, where it is known already
    cut = 0  # texts that were longer than the encoder reads, where the examples know

    def __init__(self, inputs: Mapping[str, Any], labels: np.ndarray) -> None:
        self.inputs = dict(inputs)
        self.labels = labels
        mask = next((self.inputs[name] for name in MASKS if name in self.inputs), None)
        self.lengths = None if mask is None else np.count_nonzero(mask, axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """What the split consists of: its labels, and its inputs by name."""
        return self.labels, self.inputs

    def subset(self, rows: np.ndarray) -> "Examples":
        """The examples at `rows`."""
        return Examples({name: array[rows] for name, array in self.inputs.items()}, self.labels[rows])

    def padded(self, rows: np.ndarray) -> int | None:
        """The length to which the texts at `rows` are padded together; None where there is nothing to pad.

        An accelerator compiles for seconds what it then runs in no time, so there the lengths are fewer, and a bag of
        words, for which padding is no work, has that of the longest text of the split.
        """
        if self.lengths is None:
            return None
        longest = int(next(iter(self.inputs.values())).shape[1])
        lengths = LENGTHS if jax.default_backend() == "cpu" else packing.ROW_LENGTHS if "mask" in self.inputs else ()
        needed = int(self.lengths[rows].max(initial=1))
        return min(longest, next((n for n in lengths if n >= needed), longest))

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The examples at `rows` as a batch with `label`, texts padded to `length` or to the longest among them."""
        length = length or self.padded(rows)
        if length is None:
            batch = {name: np.asarray(array[rows]) for name, array in self.inputs.items()}
        else:
            batch = {name: array[rows, :length] for name, array in self.inputs.items()}
        return batch | {"label": self.labels[rows]}

    def reading(self, rows: Iterator[Any], make: Callable[[Any], Any], start: int, stop: int) -> "Reading":
        """`make` of the rows of each of the steps start … stop-1, ahead of time."""
        return Reading(prefetch(rows, make), start)

    def stacked(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
        """The batches of several members, rows [size] each, with a leading axis for them; texts padded to `length`."""
        joint = self.take(np.concatenate(parts), length)
        return {name: array.reshape(len(parts), -1, *array.shape[1:]) for name, array in joint.items()}


class PairExamples:
    """Pairs as the model reads them: rows of a table of texts (or features) that belong together, and their scores.

    A batch holds the texts of B pairs column by column: B anchors, B positives, then B of each hard negative; with
    `chunks`, one such run of texts for each equal part of the pairs. Texts that a transformer reads are packed, several
    a row (see `packing`), so that pairs are drawn at random whatever their lengths.
    """

    lengths = None  # pairs are not grouped by length
    separable = False  # texts are packed across the whole batch, so every process packs all of them and keeps its part

    def __init__(
        self, table: Examples, columns: np.ndarray, scores: np.ndarray | None, chunks: int = 1, multiple: int = 1
    ) -> None:
        self.table, self.columns, self.chunks, self.multiple = table, columns, chunks, multiple
        self.scored = scores is not None
        self.labels = np.zeros(len(columns), np.float32) if scores is None else scores.astype(np.float32)
        self.packed = "mask" in table.inputs

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def inputs(self) -> dict[str, Any]:
        return self.table.inputs

    @property
    def fingerprint(self) -> str | None:
        return self.table.fingerprint

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """What the split consists of: its scores; the pairs and the table's inputs by name."""
        return self.labels, {"columns": self.columns, **self.inputs}

    def ranking(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs as a search: rows of the table that are queries [q] and documents [d], and judgments [j, 3]."""
        queries, query = np.unique(self.columns[:, 0], return_inverse=True)
        documents, document = np.unique(self.columns[:, 1:], return_inverse=True)
        positive = document.reshape(len(self), -1)[:, 0]
        couples = np.unique(np.stack([query, positive], axis=1), axis=0)
        return queries, documents, np.pad(couples, ((0, 0), (0, 1)), constant_values=1)

    def padded(self, rows: np.ndarray) -> int | None:
        """The length of the rows that the texts of the pairs at `rows` are packed into, or padded to."""
        texts = self.columns[rows].ravel()
        if self.packed and self.table.lengths is not None:
            return packing.row_length(int(self.table.lengths[texts].max(initial=1)))
        return self.table.padded(texts)

    def reading(self, rows: Iterator[Any], make: Callable[[Any], Any], start: int, stop: int) -> "Reading":
        """As of `Examples`."""
        return self.table.reading(rows, make, start, stop)

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The pairs at `rows` as a batch with `label`, their scores."""
        return {name: array[0] for name, array in self.stacked([rows], length).items()}

    def stacked(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
        """The batches of several members, with a leading axis for them."""
        length = length or self.padded(np.concatenate(parts))
        chunks = [chunk for rows in parts for chunk in np.split(rows, self.chunks)]
        batches = [self._texts(self.columns[chunk].T.ravel(), length) for chunk in chunks]
        most = {name: max(len(batch[name]) for batch in batches) for name in batches[0]}
        joint = {name: np.stack([_grown(b[name], n) for b in batches]) for name, n in most.items()}
        joint = {name: array.reshape(len(parts), -1, *array.shape[2:]) for name, array in joint.items()}
        return joint | {"label": np.stack([self.labels[rows] for rows in parts])}

    def _texts(self, texts: np.ndarray, length: int | None) -> dict[str, np.ndarray]:
        if not self.packed or length is None or self.table.lengths is None:
            return {name: array for name, array in self.table.take(texts, length).items() if name != "label"}
        return packing.pack(self.table.inputs["ids"][texts], self.table.lengths[texts], length, self.multiple)


@dataclass(frozen=True, eq=False)
class RankingExamples:
    """Queries, documents and judgments int32 [j, 3]: query, document, gain."""

    queries: Examples
    documents: Examples
    judgments: np.ndarray

    fingerprint = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def inputs(self) -> dict[str, Any]:
        return self.queries.inputs

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """What the split consists of: its judgments; the inputs of queries and documents by name."""
        parts = {"query": self.queries, "document": self.documents}
        return self.judgments, {f"{part}/{k}": v for part, of in parts.items() for k, v in of.inputs.items()}


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with rows of zeros added until it has `rows`."""
    return np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1)))


def order(examples: Examples | PairExamples, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """The permutation of one epoch. Texts of like length are drawn into the same batch: within a window of
    `WINDOW` batches they are sorted by length and the batches shuffled, which spares most of the padding."""
    rng = np.random.default_rng((seed, epoch))
    rows = rng.permutation(np.arange(len(examples), dtype=np.int32))  # as of int64, in half the memory
    if examples.lengths is None:
        return rows
    for start in range(0, len(rows), WINDOW * batch_size):
        window = rows[start : start + WINDOW * batch_size]
        by_length = window[np.argsort(examples.lengths[window], kind="stable")]
        groups = np.split(by_length, range(batch_size, len(window), batch_size))
        window[:] = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
    return rows


def stream(
    examples: Examples | PairExamples, seed: int, batch_size: int, start: int, stop: int
) -> Iterator[np.ndarray]:
    """The rows [batch_size] of the steps start … stop-1."""
    current, rows = -1, np.zeros(0, np.int32)  # an epoch and its order
    n = len(examples)
    for step in range(start, stop):
        parts, position, wanted = [], step * batch_size, batch_size
        while wanted:
            epoch, offset = divmod(position, n)
            if epoch != current:
                del rows  # before the next one is made
                current, rows = epoch, order(examples, seed, epoch, batch_size)
            part = rows[offset : offset + wanted]
            parts.append(part.copy())
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


class Reading:
    """The batches of the steps from `start` on. `state`, the step of the next one, is what a checkpoint keeps."""

    def __init__(self, batches: Iterator[Any], start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.start += 1
            yield batch

    @property
    def state(self) -> dict[str, int]:
        return {"next_index": self.start}


def slices(
    examples: Examples | PairExamples, batch_size: int, tokens: int | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
    """Every example once, for evaluation: (rows, batch, valid). Texts go by length; a last batch is filled up with
    repeats, for which `valid` is false, so that all batches (of one length, with `tokens`) have one size. Of `share`
    (i, n) batches i, i + n, … are read.

    With `tokens` a batch of texts has about so many of them, but at most `batch_size` texts, and lengths are rounded up
    to a multiple of `FINE`. On two cores a MiniLM embeds short texts twice as fast so: the activations of 1,000 tokens
    stay in the cache, those of 10,000 do not.
    """
    for part, filled, length in itertools.islice(_windows(examples, batch_size, tokens), share[0], None, share[1]):
        yield part, examples.take(filled, length), np.arange(len(filled)) < len(part)


def _windows(
    examples: Examples | PairExamples, batch_size: int, tokens: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int | None]]:
    """Every example once, in batches: (rows, the same filled up with repeats, the length to pad to)."""
    n = len(examples)
    if examples.lengths is None or tokens is None or "mask" not in examples.inputs:  # a bag of words has few numbers
        rows = np.arange(n) if examples.lengths is None else np.argsort(examples.lengths, kind="stable")
        for start in range(0, n, batch_size):
            part = rows[start : start + batch_size]
            yield part, np.resize(part, batch_size), None
        return
    rows = np.argsort(examples.lengths, kind="stable")
    lengths = np.maximum(-(-examples.lengths[rows] // FINE), 1) * FINE
    start = 0
    while start < n:
        length = int(lengths[start])
        while True:  # a batch that one length cannot fill takes texts of the next
            size = min(batch_size, max(FINE, tokens // length // FINE * FINE))
            longest = int(lengths[min(start + size, n) - 1])
            if longest <= length:
                break
            length = int(lengths[np.searchsorted(lengths, length, side="right")])
        part = rows[start : start + size]
        start += len(part)
        yield part, np.resize(part, size), length
