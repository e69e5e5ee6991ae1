"""Pairs as row numbers of a table of distinct texts or vectors: how they are built and kept apart."""

import hashlib
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from mrl_jax.data.base import PairDataset, Pairs, Ranking, StreamedTexts, Table, compact, take
from mrl_jax.errors import UserError

Held = Sequence[str] | np.ndarray  # t texts, or features float32 [t, d]


def keys(table: Table) -> Iterable[Hashable]:
    """One value a row that is equal where the rows are: the text, or 128 bits of a vector's hash."""
    if not isinstance(table, np.ndarray):
        return table
    return (hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest() for row in table)  # + 0.0: −0 becomes 0


def distinct(table: Held) -> tuple[Held, np.ndarray]:
    """The table with every distinct row once, in order of first occurrence, and for each row where it went, int32."""
    index: dict[Hashable, int] = {}
    rows = np.fromiter((index.setdefault(key, len(index)) for key in keys(table)), np.int32, len(table))
    return take(table, np.unique(rows, return_index=True)[1]), rows


def paired(columns: Sequence[Held], scores: np.ndarray | None = None) -> Pairs:
    """Pairs from at least two columns of n texts (or vectors) each: anchors, positives, negatives, …"""
    if isinstance(columns[0], np.ndarray):
        table, rows = distinct(np.concatenate(columns))
    else:
        table, rows = distinct([text for column in columns for text in column])
    return Pairs(table, np.ascontiguousarray(rows.reshape(len(columns), -1).T), scores)


def ranking(pairs: Pairs) -> Ranking:
    """The search task of unscored pairs: to find each distinct anchor's positives, each of gain 1, among all distinct
    positives and negatives. Ids are row numbers."""
    assert not isinstance(pairs.table, StreamedTexts)
    queries, of_query = compact(pairs.table, pairs.columns[:, 0])
    documents, of_document = compact(pairs.table, pairs.columns[:, 1:])
    couples = np.unique(np.stack([of_query, of_document[:, 0]], axis=1), axis=0)
    judgments = np.concatenate([couples, np.ones((len(couples), 1), np.int32)], axis=1)
    return Ranking(queries, documents, judgments, numbered(queries), numbered(documents))


def numbered(table: Held) -> list[str]:
    """Row numbers as ids."""
    return [str(row) for row in range(len(table))]


def held_apart(dataset: PairDataset) -> PairDataset:
    """Drop from train the anchors of validation and test, and from validation those of test, and say how many.

    Raises `UserError` if nothing is left to train on.
    """
    test = set(anchor_keys(dataset.test))
    validation = without(dataset.validation, test, "validation", "the test")
    train = without(dataset.train, test.union(anchor_keys(validation)), "training", "validation or the test")
    if not len(train):
        raise UserError(f"{dataset.name} has no training pair whose anchor is not in validation or the test too")
    return replace(dataset, train=train, validation=validation)


def anchor_keys(part: Pairs | Ranking) -> Iterable[Hashable]:
    """The keys of the anchors, or queries, of a part."""
    return keys(part.queries if isinstance(part, Ranking) else compact(part.table, part.columns[:, 0])[0])


def without(pairs: Pairs, taken: set[Hashable], name: str, where: str) -> Pairs:
    """The pairs whose anchor is not `taken`; what is dropped is counted on stderr."""
    anchors = np.unique(pairs.columns[:, 0])
    found = [key in taken for key in keys(take(pairs.table, anchors))]
    if not any(found):
        return pairs
    drop = np.isin(pairs.columns[:, 0], anchors[found])
    count = f"{sum(found):,} of {len(anchors):,} anchors ({drop.sum():,} of {len(drop):,} pairs)"
    print(f"{name}: dropped {count}, which {where} has too", file=sys.stderr, flush=True)
    return pairs.take(~drop)
