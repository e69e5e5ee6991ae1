"""Pairs as row numbers of a table of distinct texts or vectors: how they are built, kept apart, cut and limited."""

import hashlib
import sys
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from mrl_jax.data.base import SPLIT_SEED, DataConfig, PairDataset, Pairs, Ranking, StreamedTexts
from mrl_jax.errors import UserError

Held = Sequence[str] | np.ndarray  # t texts, or features float32 [t, d]
Table = Held | StreamedTexts
DOCUMENTS_PER_QUERY = 10  # of a ranking cut to `data.limit` queries


@overload
def take(table: Held, rows: np.ndarray) -> Held: ...
@overload
def take(table: StreamedTexts, rows: np.ndarray) -> StreamedTexts: ...
def take(table: Table, rows: np.ndarray) -> Table:
    """The table at these row numbers, in their order; those of streamed texts ascend."""
    if isinstance(table, StreamedTexts):
        return table.subset(rows)
    return table[rows] if isinstance(table, np.ndarray) else [table[row] for row in rows]


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


@overload
def compact(table: Held, rows: np.ndarray) -> tuple[Held, np.ndarray]: ...
@overload
def compact(table: StreamedTexts, rows: np.ndarray) -> tuple[StreamedTexts, np.ndarray]: ...
def compact(table: Table, rows: np.ndarray) -> tuple[Table, np.ndarray]:
    """The table without what `rows` (int, any shape) does not name, in its order, and the rows' new numbers, int32."""
    named = np.zeros(len(table), bool)
    named[rows] = True
    return take(table, np.flatnonzero(named)), (np.cumsum(named, dtype=np.int32) - 1)[rows]


def select(pairs: Pairs, rows: np.ndarray) -> Pairs:
    """The pairs at these row numbers or where this mask is true, over a table of just their texts."""
    table, columns = compact(pairs.table, pairs.columns[rows])
    return Pairs(table, columns, None if pairs.scores is None else pairs.scores[rows])


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
    return select(pairs, ~drop)


def assemble(dataset: PairDataset, config: DataConfig) -> PairDataset:
    """Apply `validation_fraction` (only if `dataset.validation` is empty) and `limit`."""
    if not len(dataset.validation):
        held_out = cut(dataset.train, config.validation_fraction)
        train = select(dataset.train, ~held_out) if held_out.any() else dataset.train
        dataset = replace(dataset, train=train, validation=select(dataset.train, held_out))
    if config.limit is not None:
        train, validation, test = dataset.train, dataset.validation, dataset.test
        dataset = replace(
            dataset,
            train=select(train, first(len(train), config.limit)),
            validation=select(validation, first(len(validation), config.limit)),
            test=first_queries(test, config.limit)
            if isinstance(test, Ranking)
            else select(test, first(len(test), config.limit)),
        )
    return dataset


def cut(pairs: Pairs, fraction: float) -> np.ndarray:
    """Which pairs to hold out, bool [n]: all those of the rounded fraction of the anchors, never of the last anchor.

    Depends on the pairs and the fraction only, so every run of a study has the same validation pairs.
    """
    anchors = np.random.default_rng(SPLIT_SEED).permutation(np.unique(pairs.columns[:, 0]))
    return np.isin(pairs.columns[:, 0], anchors[: min(round(fraction * len(anchors)), len(anchors) - 1)])


def first(count: int, limit: int) -> np.ndarray:
    """The first `limit` of `count` row numbers in an order that is the same in every run, sorted."""
    return np.sort(np.random.default_rng(SPLIT_SEED).permutation(count)[:limit])


def first_queries(ranking: Ranking, limit: int) -> Ranking:
    """The ranking with at most `limit` queries, their judged documents and, up to ten documents a query in all, the
    first others."""
    queries = first(len(ranking), limit)
    judgments = ranking.judgments[np.isin(ranking.judgments[:, 0], queries)]
    judged = np.unique(judgments[:, 1])
    others = np.setdiff1d(np.arange(len(ranking.document_ids)), judged, assume_unique=True)
    spare = max(DOCUMENTS_PER_QUERY * limit - len(judged), 0)
    documents = np.union1d(judged, others[:spare])
    columns = [np.searchsorted(queries, judgments[:, 0]), np.searchsorted(documents, judgments[:, 1]), judgments[:, 2]]
    return Ranking(
        take(ranking.queries, queries),
        take(ranking.documents, documents),
        np.stack(columns, axis=1).astype(np.int32),
        [ranking.query_ids[row] for row in queries],
        [ranking.document_ids[row] for row in documents],
    )
