"""What is relevant to what among paired texts: the one place that says so, for training, validation and the test.

A document is relevant to a query where some row pairs these two texts, and a query's own text is no candidate for it
unless a row pairs it with itself. So neither is a negative. Row numbers of a table of distinct texts stand for the
texts. `losses.relevance` applies the same rule to the cells of a batch.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

MIN_FURTHER = 4  # further positives per query that a batch has room for: few sizes, as each is compiled


class Search(NamedTuple):
    """Pairs as a search task."""

    queries: np.ndarray  # int [Q], table rows of the distinct anchors, in order of their ids
    documents: np.ndarray  # int [N], table rows of the distinct positives and negatives, in order of their ids
    judgments: np.ndarray  # int32 [j, 3]: row of the query, row of the document, gain 1
    own: np.ndarray  # int32 [m, 2]: row of a query, row of the document that is no candidate for it


def search_of(columns: np.ndarray, text_ids: np.ndarray | None = None) -> Search:
    """The search task of pairs int [n, c] without scores: every anchor is to find all of its positives.

    Args:
        columns: table rows, int [n, c].
        text_ids: as in `Pairs`, int [n, c].
    """
    ids = columns if text_ids is None else text_ids
    queries, query_at, query = np.unique(ids[:, 0], return_index=True, return_inverse=True)
    documents, document_at, document = np.unique(ids[:, 1:], return_index=True, return_inverse=True)
    judgments = binary_judgments(query, document.reshape(len(columns), -1)[:, 0])
    own = own_texts(queries, documents, judgments)
    return Search(columns[query_at, 0], columns[:, 1:].ravel()[document_at], judgments, own)


def binary_judgments(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The judgments that these documents are relevant: int32 [j, 3], each distinct pair once, with gain 1.

    Args:
        queries: row numbers of queries, int [n].
        documents: for each, the row number of a relevant document, int [n].
    """
    pairs = np.unique(np.stack([queries, documents], axis=1), axis=0).astype(np.int32)
    return np.concatenate([pairs, np.ones((len(pairs), 1), np.int32)], axis=1)


def own_documents(queries: Iterable[Hashable], documents: Iterable[Hashable]) -> np.ndarray:
    """Row of the query and of the document, int32 [m, 2], wherever their keys are equal; no two queries share a key."""
    row_of = {key: row for row, key in enumerate(queries)}
    rows = [(row_of[key], row) for row, key in enumerate(documents) if key in row_of]
    return np.array(rows, np.int32).reshape(-1, 2)


def own_texts(queries: Iterable[Hashable], documents: Iterable[Hashable], judgments: np.ndarray) -> np.ndarray:
    """As `own_documents`, of texts, without the documents that are judged relevant to a query of the same text."""
    relevant = {(int(query), int(document)) for query, document, gain in judgments if gain > 0}
    own = own_documents(queries, documents)
    return own[[(int(query), int(document)) not in relevant for query, document in own]]


class FurtherPositives:
    """The known positives of the queries of a batch that its own rows do not show.

    Rows with the same query, or the same positive, show by themselves that they are no negatives of each other. What is
    left are positives of the same query in another row that also stand beside another anchor, or as a hard negative.
    """

    def __init__(self, columns: np.ndarray) -> None:
        (anchors, positives), texts = columns[:, :2].T, int(columns.max(initial=-1)) + 1
        row, marked = np.empty(texts, np.int32), np.zeros((2, texts), bool)  # 6 bytes per text, for the time being
        several, shared = marked  # anchors of several rows; positives that are beside another anchor, too
        row[anchors] = np.arange(len(columns), dtype=np.int32)  # the last one of each
        several[anchors[row[anchors] != np.arange(len(columns))]] = True
        row[positives] = anchors
        shared[positives[row[positives] != anchors]] = True
        shared[columns[:, 2:]] = True
        rows = several[anchors] & shared[positives]
        pairs = np.unique((anchors[rows].astype(np.int64) << 32) | positives[rows])
        self.anchors, self.positives = pairs >> 32, pairs & 0xFFFFFFFF

    def labels(self, parts: list[np.ndarray]) -> np.ndarray | None:
        """What the loss has to know of the texts of several batches of pairs, int [B, c] each.

        Returns:
            int32 [batches, B, c + P]: the texts of each pair, then further positives of its anchor, filled up with −1.
            P is 0 where the data has none, else a power of two. None where every text is a negative of all others.
        """
        found = [self._in_batch(columns) for columns in parts]
        if all(len(np.unique(columns)) == columns.size for columns in parts) and not any(
            len(rows) for rows, _ in found
        ):
            return None
        counts = [np.bincount(rows, minlength=len(columns)) for (rows, _), columns in zip(found, parts, strict=True)]
        most = max((int(count.max(initial=0)) for count in counts), default=0)
        room = max(MIN_FURTHER, 1 << (most - 1).bit_length()) if len(self.anchors) else 0
        width = parts[0].shape[1]
        labels = np.full((len(parts), len(parts[0]), width + room), -1, np.int32)
        for label, columns, (rows, documents), count in zip(labels, parts, found, counts, strict=True):
            label[:, :width] = columns
            label[rows, width + np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)] = documents
        return labels

    def _in_batch(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a batch, ascending, and a further positive of each that the batch holds."""
        start, stop = (np.searchsorted(self.anchors, columns[:, 0], side) for side in ("left", "right"))
        count = stop - start
        rows = np.repeat(np.arange(len(columns)), count)
        documents = self.positives[np.arange(len(rows)) + np.repeat(start - np.cumsum(count) + count, count)]
        there = np.isin(documents, columns[:, 1:]) & (documents != columns[rows, 1])
        return rows[there], documents[there]
