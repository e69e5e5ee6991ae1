"""Pairs as row numbers of a table of distinct texts or vectors: how they are built, and how anchors are kept apart."""

import hashlib
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from mrl_jax.data.base import PairDataset, Pairs, Ranking
from mrl_jax.data.inputs import StreamedTexts, Table, take
from mrl_jax.data.relevance import search_of
from mrl_jax.system.errors import UserError

MemoryTable = Sequence[str] | np.ndarray  # t texts, or features float32 [t, d]


def row_keys(table: Table) -> Iterable[Hashable]:
    """One key per row, equal where the rows are: the text, or 128 bits of a vector's hash."""
    if not isinstance(table, np.ndarray):
        return table
    return (hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest() for row in table)  # + 0.0: −0 becomes 0


def deduplicate(table: MemoryTable) -> tuple[MemoryTable, np.ndarray]:
    """Keep every distinct row once.

    Args:
        table: n texts, or features [n, d].

    Returns:
        The distinct rows in order of first occurrence, and for each row of `table` its row number there, int32 [n].
    """
    index: dict[Hashable, int] = {}
    rows = np.fromiter((index.setdefault(key, len(index)) for key in row_keys(table)), np.int32, len(table))
    return take(table, np.unique(rows, return_index=True)[1]), rows


def build_pairs(columns: Sequence[MemoryTable], scores: np.ndarray | None = None) -> Pairs:
    """Pairs over a table of their distinct texts or vectors.

    Args:
        columns: at least two columns of n texts, or features [n, d], each: anchors, positives, negatives, …
        scores: float32 [n], of pairs with scores.
    """
    if isinstance(columns[0], np.ndarray):
        table, rows = deduplicate(np.concatenate(columns))
    else:
        table, rows = deduplicate([text for column in columns for text in column])
    return Pairs(table, np.ascontiguousarray(rows.reshape(len(columns), -1).T), scores)


def ranking(pairs: Pairs) -> Ranking:
    """The search task of unscored pairs, see `relevance.search_of`. Ids are row numbers."""
    assert not isinstance(pairs.table, StreamedTexts)
    found = search_of(pairs.columns)
    queries, documents = take(pairs.table, found.queries), take(pairs.table, found.documents)
    return Ranking(queries, documents, found.judgments, row_ids(queries), row_ids(documents), found.own)


def row_ids(table: MemoryTable) -> list[str]:
    """Row numbers as ids."""
    return [str(row) for row in range(len(table))]


def separate_anchors(dataset: PairDataset) -> PairDataset:
    """Drop from train the anchors of validation and test, and from validation those of the test, and say how many.

    Raises `UserError` if nothing is left to train on.
    """
    test = set(row_keys(dataset.test.anchors))
    validation = drop_anchors(dataset.validation, test, "validation", "the test")
    taken = test.union(row_keys(validation.anchors))
    train = drop_anchors(dataset.train, taken, "training", "validation or the test")
    if not len(train):
        raise UserError(f"{dataset.name} has no training pair whose anchor is not in validation or the test too")
    return replace(dataset, train=train, validation=validation)


def drop_anchors(pairs: Pairs, taken: set[Hashable], name: str, owner: str) -> Pairs:
    """The pairs whose anchor is not `taken` by `owner`; stderr gets the number of those that are dropped."""
    anchors = np.unique(pairs.columns[:, 0])
    is_taken = [key in taken for key in row_keys(take(pairs.table, anchors))]
    if not any(is_taken):
        return pairs
    drop = np.isin(pairs.columns[:, 0], anchors[is_taken])
    count = f"{sum(is_taken):,} of {len(anchors):,} anchors ({drop.sum():,} of {len(drop):,} pairs)"
    print(f"{name}: dropped {count}, which {owner} has too", file=sys.stderr, flush=True)
    return pairs.take(~drop)
