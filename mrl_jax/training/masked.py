"""Texts with hidden tokens, for masked language modelling: several texts per row, and the tokens to predict.

    ids, segment, position   int32 [R, L]   packed texts with hidden tokens, see `text.packing`
    masked                   int32 [S]      row · L + column of each hidden token; 0 where there are fewer than S
    label                    int32 [S, 2]   the token that stood there, and the number of its text in the batch; −1
                                            where there are fewer

S follows from the size of the rows, so that steps of the same rows have the same shapes, and only S states meet the
vocabulary instead of R · L. Training hides other tokens in each step, by (seed, step); in the other splits a text
always has the same hidden tokens, whatever batch it is in.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mrl_jax.text import masking, packing
from mrl_jax.text.masking import Vocabulary
from mrl_jax.training.batches import Examples, OfTable, stream

FIXED_SEED = 0x3A5C  # of the hidden tokens of validation and test, the same in every run
MULTIPLE = 8  # S is a multiple of it


class MaskedExamples(OfTable):
    """One split of texts, as a transformer predicts their hidden tokens.

    The rows of a training batch are [row, seed, step], int64 [B, 3]; elsewhere they are row numbers [B].
    """

    def __init__(
        self,
        table: Examples,
        vocabulary: Vocabulary,
        rate: float,
        words: np.ndarray | None = None,
        chunks: int = 1,
        multiple: int = 1,
        kept: np.ndarray | None = None,
    ) -> None:
        """`words` is as from `masking.word_numbers`, None to hide tokens by themselves. A batch is divided into
        `chunks` equal parts, and the numbers of rows and of predictions of each are multiples of `multiple`. `kept` are
        the rows of the table that are examples, None: all; a table on disk stays there."""
        assert table.lengths is not None
        self.table, self.vocabulary, self.rate, self.words = table, vocabulary, rate, words
        self.chunks, self.multiple = chunks, multiple
        self.kept = np.arange(len(table)) if kept is None else kept
        self.labels, self.token_counts = table.labels[self.kept], table.lengths[self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def arrays(self) -> tuple[np.ndarray, dict[str, Any]]:
        """As `Examples.arrays`."""
        return self.table.arrays()

    def padded_length(self, rows: np.ndarray) -> int:
        """Tokens per row that the texts at `rows` are packed into."""
        return packing.row_length(int(self.token_counts[_texts(rows)].max(initial=1)))

    def stream(self, seed: int, batch_size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """The rows int64 [batch_size, 3] of each of the steps start … stop − 1."""
        for step, rows in enumerate(stream(self, seed, batch_size, start, stop), start):
            yield np.stack([rows, np.full_like(rows, seed), np.full_like(rows, step)], axis=1).astype(np.int64)

    def stack(self, parts: Sequence[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
        """The batches of several members, `parts` of rows each, stacked to [members, …]."""
        length = length or self.padded_length(np.concatenate(parts))
        batches = [batch for rows in parts for batch in self._batches(rows, length)]
        sizes = {name: max(len(batch[name]) for batch in batches) for name in batches[0]}
        joint = {name: np.stack([_padded(batch[name], n, name) for batch in batches]) for name, n in sizes.items()}
        return {name: array.reshape(len(parts), -1, *array.shape[2:]) for name, array in joint.items()}

    def _batches(self, rows: np.ndarray, length: int) -> Iterator[dict[str, np.ndarray]]:
        """The parts of one member's batch."""
        texts, lengths = self.kept[_texts(rows)], self.token_counts[_texts(rows)]
        ids = np.asarray(self.table.inputs["ids"][texts])
        ids = ids[:, : max(1, int(lengths.max(initial=1)))]
        numbers = self._numbers(rows, ids.shape[1])
        allowed = self.vocabulary.is_ordinary[ids] & (np.arange(ids.shape[1]) < lengths[:, None])
        words = None if self.words is None else self.words[texts][:, : ids.shape[1]]
        # In training a text has this share on average, in some steps none; elsewhere one hidden token at least.
        fixed = rows.ndim == 1
        wanted, coins = self.rate * allowed.sum(axis=1), numbers[:, 0, 0]
        chosen, rank = masking.choose(allowed, numbers[:, 1:, 0], wanted, coins, words, at_least_one=fixed)
        for part in np.split(np.arange(len(texts)), self.chunks):
            layout = packing.lay_out(lengths[part], length, self.multiple)
            yield self._batch(ids[part], chosen[part], rank[part], numbers[part, 1:, 1:], layout, fixed)

    def _batch(
        self,
        ids: np.ndarray,
        chosen: np.ndarray,
        rank: np.ndarray,
        numbers: np.ndarray,
        layout: packing.Layout,
        fixed: bool,
    ) -> dict[str, np.ndarray]:
        """The batch of texts that are laid out, with `chosen` tokens hidden."""
        unit = math.lcm(MULTIPLE, self.multiple)
        size = unit * math.ceil(self.rate * layout.shape[0] * layout.shape[1] / unit)
        at = np.flatnonzero(chosen[layout.text, layout.place])
        if fixed:
            size = max(size, packing.round_rows(len(at), unit))
        elif len(at) > size:  # texts without padding or special tokens: those that were chosen last stay
            at = np.sort(at[np.argsort(rank[layout.text[at], layout.place[at]], kind="stable")[:size]])
        text, place = layout.text[at], layout.place[at]
        hidden = ids.copy()
        hidden[text, place] = masking.replace(ids[text, place], numbers[text, place], self.vocabulary)
        batch = packing.packed(hidden, layout)
        del batch["slot"]
        label = np.stack([ids[text, place], text], axis=1).astype(np.int32)
        masked = layout.cell[at].astype(np.int32)
        return batch | {name: _padded(x, size, name) for name, x in (("masked", masked), ("label", label))}

    def _numbers(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Uniform random numbers [B, 1 + length, `NUMBERS`]: of each text, then of each of its tokens."""
        shape = (1 + length, masking.NUMBERS)
        if rows.ndim == 1:
            return np.stack([np.random.default_rng((FIXED_SEED, int(row))).random(shape) for row in rows])
        _, seed, step = rows[0]
        return np.random.default_rng((int(seed), int(step), FIXED_SEED)).random((len(rows), *shape))


def _texts(rows: np.ndarray) -> np.ndarray:
    """The row numbers in the rows of a batch, of any number of members."""
    return rows if rows.ndim == 1 else rows[:, 0]


def _padded(array: np.ndarray, size: int, name: str) -> np.ndarray:
    """`array` with further rows: of zeros, in a label of −1."""
    further = np.full((size - len(array), *array.shape[1:]), -1 if name == "label" else 0, array.dtype)
    return np.concatenate([array, further])
