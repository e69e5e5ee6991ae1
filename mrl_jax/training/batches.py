"""The examples of each step: a pure function of (seed, step), so that a resumed run sees the same batches.

Examples are read in one endless stream, with a new permutation per epoch; a batch is the next `batch_size` of them and
may span two epochs, so no example is ever left out.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from mrl_jax.data.relevance import FurtherPositives, Search, search_of
from mrl_jax.text import packing
from mrl_jax.training import duplicates

MASK_INPUTS = ("mask", "weights")  # inputs that are zero exactly at padding and so tell the length of a text
PADDED_LENGTHS = (16, 32, 64, 96, 128, 160, 192, 224, 256, 384, 512)  # of a batch: few, as each is compiled
LENGTH_STEP = 8  # tokens; padded lengths in `slices` are multiples of it
WINDOW_BATCHES = 50  # texts are sorted by length within windows of this many batches


class Examples:
    """One split as the model reads it: named arrays [n, …] and labels [n]."""

    separable = True  # whether a process can build its part of a batch from its part of the rows
    fingerprint: str | None = None  # SHA-256 of all arrays, if already known
    cut = 0  # number of texts that were longer than the encoder's maximum, if known

    def __init__(self, inputs: Mapping[str, Any], labels: np.ndarray) -> None:
        self.inputs = dict(inputs)
        self.labels = labels
        mask = next((self.inputs[name] for name in MASK_INPUTS if name in self.inputs), None)
        self.lengths = None if mask is None else np.count_nonzero(mask, axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def raw_inputs(self) -> Mapping[str, Any]:
        """What the preprocessor made of the split."""
        return self.inputs

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The content of the split: its labels, and its inputs by name."""
        return self.labels, self.inputs

    def subset(self, rows: np.ndarray) -> "Examples":
        """The examples at `rows`, int [m]."""
        return Examples({name: array[rows] for name, array in self.inputs.items()}, self.labels[rows])

    def padded_length(self, rows: np.ndarray) -> int | None:
        """The length to which the texts at `rows` are padded together; None for data without lengths.

        On accelerators compiling takes seconds and running a batch almost no time, so there are fewer lengths, and bags
        of words, whose padding costs almost nothing, are padded to the longest text of the split.
        """
        if self.lengths is None:
            return None
        longest = int(next(iter(self.inputs.values())).shape[1])
        accelerator_lengths = packing.ROW_LENGTHS if "mask" in self.inputs else ()
        lengths = PADDED_LENGTHS if jax.default_backend() == "cpu" else accelerator_lengths
        needed = int(self.lengths[rows].max(initial=1))
        return min(longest, next((n for n in lengths if n >= needed), longest))

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The batch of the examples at `rows`, with `label`; texts are padded to `length`, or as little as needed."""
        length = length or self.padded_length(rows)
        if length is None:
            batch = {name: np.asarray(array[rows]) for name, array in self.inputs.items()}
        else:
            batch = {name: array[rows, :length] for name, array in self.inputs.items()}
        return batch | {"label": self.labels[rows]}

    def pack(self, rows: np.ndarray, length: int, multiple: int) -> dict[str, np.ndarray]:
        """The texts at `rows`, packed into rows of `length` tokens, see `packing.pack`."""
        assert self.lengths is not None
        return packing.pack(self.inputs["ids"][rows], self.lengths[rows], length, multiple)

    def stream(self, seed: int, batch_size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """See `stream`."""
        return stream(self, seed, batch_size, start, stop)

    def read_ahead(self, rows: Iterator[Any], make: Callable[[Any], Any], start: int, stop: int) -> "BatchReader":
        """`make(rows)` for each of the steps start … stop − 1, computed ahead of time; of inputs read on demand two
        batches at a time, so that decoding goes on while the last images of one are waited for."""
        lazy = not all(isinstance(array, np.ndarray) for array in self.inputs.values())
        return BatchReader(prefetch(rows, make, threads=2 if lazy else 1), start)

    def stack(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
        """The batches of several members, `parts` of rows [B] each, stacked to [members, B, …]."""
        joint = self.take(np.concatenate(parts), length)
        return {name: array.reshape(len(parts), -1, *array.shape[1:]) for name, array in joint.items()}


class OfTable:
    """Examples that are made of the rows of a table, as pairs are of texts: what is the table's is passed on."""

    lengths = None  # rows are packed or gathered, so examples are not grouped by length
    separable = False  # texts are packed across the whole batch, so every process packs it and keeps its part
    table: Examples

    @property
    def inputs(self) -> dict[str, Any]:
        return self.table.inputs

    @property
    def raw_inputs(self) -> Mapping[str, Any]:
        """As `Examples.raw_inputs`."""
        return self.table.raw_inputs

    @property
    def fingerprint(self) -> str | None:
        return self.table.fingerprint

    def read_ahead(self, rows: Iterator[Any], make: Callable[[Any], Any], start: int, stop: int) -> "BatchReader":
        """As `Examples.read_ahead`."""
        return self.table.read_ahead(rows, make, start, stop)

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The batch of the examples at `rows`, with `label`."""
        return {name: array[0] for name, array in self.stack([rows], length).items()}

    def stack(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
        """The batches of several members, `parts` of rows each, stacked to [members, …]."""
        raise NotImplementedError


class PairExamples(OfTable):
    """Pairs as the model reads them: rows of a table of texts (or features), and the scores of the pairs.

    A batch holds the texts of B pairs column by column: B anchors, B positives, then B of each hard negative. With
    `chunks`, the pairs are divided into that many equal parts, each laid out in this way. Texts for a transformer are
    packed, several per row (see `packing`), so pairs of any lengths can be drawn into one batch.

    The label of a batch are the scores float32 [B]. With `mask_known`, pairs without scores of which not all others are
    negatives have instead what `FurtherPositives.labels` says, int32 [B, columns + P]; other batches stay as they were.
    With a teacher or a guide, a batch has their vectors of its texts, column by column of the whole batch.
    """

    def __init__(
        self,
        table: Examples,
        columns: np.ndarray,
        scores: np.ndarray | None,
        chunks: int = 1,
        multiple: int = 1,
        mask_known: bool = False,
        text_ids: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
        guide: np.ndarray | None = None,
        no_duplicates: bool = False,
    ) -> None:
        self.table, self.columns, self.chunks, self.multiple = table, columns, chunks, multiple
        # Other models' vectors of the texts, float32 [t, T].
        self.vectors = {name: z for name, z in (("teacher", teacher), ("guide", guide)) if z is not None}
        self.scored = scores is not None
        self.labels = np.zeros(len(columns), np.float32) if scores is None else scores.astype(np.float32)
        self.text_ids = columns if text_ids is None else text_ids  # which texts are equal, see `data.Pairs`
        self.further = FurtherPositives(self.text_ids) if mask_known and scores is None else None
        self.packed = "mask" in table.inputs
        self.no_duplicates = no_duplicates  # whether batches hold no text twice, where possible

    def __len__(self) -> int:
        return len(self.columns)

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The content of the split: its scores; the pairs and the table's inputs by name. The other models' vectors
        are not part of it: computed again, on other cores, they differ in the last digits."""
        return self.labels, {"columns": self.columns, **self.raw_inputs}

    def search(self) -> Search:
        """The pairs as a search task among the rows of the table."""
        return search_of(self.columns, self.text_ids)

    def padded_length(self, rows: np.ndarray) -> int | None:
        """The length of the rows that the texts of the pairs at `rows` are packed into, or padded to."""
        texts = self.columns[rows].ravel()
        if self.packed and self.table.lengths is not None:
            return packing.row_length(int(self.table.lengths[texts].max(initial=1)))
        return self.table.padded_length(texts)

    def stream(self, seed: int, batch_size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """See `stream`."""
        return stream(self, seed, batch_size, start, stop)

    def stack(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
        """The batches of several members, `parts` of rows [B] each, stacked to [members, …]."""
        length = length or self.padded_length(np.concatenate(parts))
        chunks = [chunk for rows in parts for chunk in np.split(rows, self.chunks)]
        batches = [self._texts(self.columns[chunk].T.ravel(), length) for chunk in chunks]
        rows_by_name = {name: max(len(batch[name]) for batch in batches) for name in batches[0]}
        joint = {name: np.stack([_pad_rows(b[name], n) for b in batches]) for name, n in rows_by_name.items()}
        joint = {name: array.reshape(len(parts), -1, *array.shape[2:]) for name, array in joint.items()}
        for name, z in self.vectors.items():
            joint[name] = np.stack([z[self.columns[rows].T.ravel()] for rows in parts])
        label = None if self.further is None else self.further.labels([self.text_ids[rows] for rows in parts])
        return joint | {"label": np.stack([self.labels[rows] for rows in parts]) if label is None else label}

    def _texts(self, texts: np.ndarray, length: int | None) -> dict[str, np.ndarray]:
        if not self.packed or length is None or self.table.lengths is None:
            return {name: array for name, array in self.table.take(texts, length).items() if name != "label"}
        return self.table.pack(texts, length, self.multiple)


@dataclass(frozen=True, eq=False)
class RankingExamples:
    """Queries, documents, and what is known of them."""

    queries: Examples
    documents: Examples
    judgments: np.ndarray  # int32 [j, 3]: query row, document row, gain
    own: np.ndarray  # int32 [m, 2]: query row, row of the document that is the query itself

    fingerprint = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def inputs(self) -> dict[str, Any]:
        return self.queries.inputs

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The content of the split: its judgments; the inputs of queries and documents by name."""
        parts = {"query": self.queries, "document": self.documents}
        return self.judgments, {f"{part}/{k}": v for part, of in parts.items() for k, v in of.raw_inputs.items()}


def _pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Append rows of zeros to `array` until it has `rows` of them."""
    return np.pad(array, ((0, rows - len(array)), *((0, 0),) * (array.ndim - 1)))


class Sized(Protocol):
    """What has an order of its examples."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray | None:
        """int [n], by which texts are grouped; None: they are not."""
        ...


def order(examples: Sized, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """The permutation of one epoch, int32 [n].

    To reduce padding, texts of similar length share a batch: the permuted texts are sorted by length within windows of
    `WINDOW_BATCHES` batches, and the batches of each window are shuffled. Of pairs with `no_duplicates`, see
    `duplicates`.
    """

    def permutation(epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        rng = np.random.default_rng((seed, epoch))
        # The same numbers as int64, in half the memory.
        return rng.permutation(np.arange(len(examples), dtype=np.int32)), rng

    if isinstance(examples, PairExamples) and examples.no_duplicates:
        return duplicates.order(examples.text_ids, lambda epoch: permutation(epoch)[0], epoch, batch_size)
    rows, rng = permutation(epoch)
    if examples.lengths is None:
        return rows
    for start in range(0, len(rows), WINDOW_BATCHES * batch_size):
        window = rows[start : start + WINDOW_BATCHES * batch_size]
        by_length = window[np.argsort(examples.lengths[window], kind="stable")]
        groups = np.split(by_length, range(batch_size, len(window), batch_size))
        window[:] = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
    return rows


def stream(examples: Sized, seed: int, batch_size: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """The rows int32 [batch_size] of each of the steps start … stop − 1."""
    current, rows = -1, np.zeros(0, np.int32)  # the current epoch and its order
    n = len(examples)
    for step in range(start, stop):
        parts, position, wanted = [], step * batch_size, batch_size
        while wanted:
            epoch, offset = divmod(position, n)
            if epoch != current:
                del rows  # frees the memory before the next order is computed
                current, rows = epoch, order(examples, seed, epoch, batch_size)
            part = rows[offset : offset + wanted]
            parts.append(part.copy())
            position, wanted = position + len(part), wanted - len(part)
        yield np.concatenate(parts)


def prefetch(items: Iterator[Any], make: Any, ahead: int = 2, threads: int = 1) -> Iterator[Any]:
    """`make(item)` for each item, in order, computed in threads, `ahead` items in advance."""
    with ThreadPoolExecutor(threads) as pool:
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


class BatchReader:
    """Iterates over the batches of the steps from `start` on; `state`, kept in checkpoints, has the next step."""

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
    examples: Any, batch_size: int, tokens: int | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]]:
    """Every example once, for evaluation, with texts in order of length.

    The last batch is padded with repeated examples, so that all batches (with `tokens`, all batches of one text length)
    have the same size. On two cores a MiniLM embeds short texts twice as fast with `tokens`: the activations of 1,000
    tokens fit in the cache, those of 10,000 do not.

    Args:
        examples: n of them.
        batch_size: examples per batch; the maximum with `tokens`.
        tokens: approximate number of tokens per batch; texts are then padded to a multiple of `LENGTH_STEP`.
        share: (i, n) to read only the batches i, i + n, …

    Yields:
        (rows int [≤ B], batch of B examples, valid bool [B], false for repeated examples).
    """
    parts = getattr(examples, "parts", ((0, examples),))  # texts and images, which share no batch here
    plan = ((start, of, *one) for start, of in parts for one in _plan_slices(of, batch_size, tokens))
    for start, of, part, padded, length in itertools.islice(plan, share[0], None, share[1]):
        yield start + part, of.take(padded, length), np.arange(len(padded)) < len(part)


def _plan_slices(
    examples: Any, batch_size: int, tokens: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int | None]]:
    """Plan the batches of `slices`: (rows, the rows padded with repeats, the length to pad texts to)."""
    n = len(examples)
    if (
        examples.lengths is None or tokens is None or "mask" not in examples.inputs
    ):  # a bag of words has small activations
        rows = np.arange(n) if examples.lengths is None else np.argsort(examples.lengths, kind="stable")
        for start in range(0, n, batch_size):
            part = rows[start : start + batch_size]
            yield part, np.resize(part, batch_size), None
        return
    rows = np.argsort(examples.lengths, kind="stable")
    lengths = np.maximum(-(-examples.lengths[rows] // LENGTH_STEP), 1) * LENGTH_STEP
    start = 0
    while start < n:
        length = int(lengths[start])
        while True:  # if there are too few texts of this length, use the next length
            size = min(batch_size, max(LENGTH_STEP, tokens // length // LENGTH_STEP * LENGTH_STEP))
            longest = int(lengths[min(start + size, n) - 1])
            if longest <= length:
                break
            length = int(lengths[np.searchsorted(lengths, length, side="right")])
        part = rows[start : start + size]
        start += len(part)
        yield part, np.resize(part, size), length
