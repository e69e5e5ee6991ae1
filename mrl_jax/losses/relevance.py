"""What is relevant to what among the texts of a batch of pairs, where each text has a number.

    relevant(i, j)  query i has the text of query j, or document j is a known positive of query i
    own(i, j)       document j is the text of query i, and not one of its positives

Neither is a negative: of two copies of a text one cannot be nearer than the other, and a query is nearest to itself.
The cells (i, i) of a pair are relevant. O(P) comparisons per cell, for P known positives per query.

    nearer(i, j)    another model, the guide, finds document j more similar to query i than the positive of query i

is taken for relevant too (Solatorio, 2024, arXiv:2402.16829). Whatever is relevant leaves both softmaxes: document j
is no negative of query i, and query i none of document j.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ROUNDING = 1e-6  # of a cosine in float32: documents that differ by less are equally near


class TextIds(NamedTuple):
    """The texts of B pairs: equal numbers are equal texts, whether of queries or of documents; none is negative."""

    queries: jax.Array  # int [B]
    documents: jax.Array  # int [N], N ≥ B: the positive of each query, then hard negatives
    known: jax.Array | None = None  # int [B, P]: further documents that are relevant to each query; −1 fills up

    def check(self, batch: int, candidates: int) -> None:
        """Raise `ValueError` on shapes that do not match."""
        shapes = [None if ids is None else ids.shape for ids in self]
        if shapes[:2] != [(batch,), (candidates,)] or (shapes[2] and (len(shapes[2]) != 2 or shapes[2][0] != batch)):
            expected = f"queries [{batch}], documents [{candidates}] and known [{batch}, P]"
            raise ValueError(f"ids must be of {expected}; got shapes {', '.join(map(str, shapes))}")

    def rows(self) -> "Rows":
        """What the rows of a Gram matrix have to know."""
        batch = len(self.queries)
        known = jnp.full((batch, 0), -1) if self.known is None else self.known
        positives = jnp.concatenate([self.documents[:batch, None], known], axis=1)
        return Rows(jnp.arange(batch), self.queries, positives)

    def columns(self) -> "Columns":
        """What the columns have to know."""
        hard = (0, len(self.documents) - len(self.queries))
        return Columns(jnp.pad(self.queries, hard, constant_values=-1), self.documents)


class Guide(NamedTuple):
    """What another model makes of the texts of B pairs: vectors of unit length."""

    queries: jax.Array  # float32 [B, G]
    documents: jax.Array  # float32 [N, G], N ≥ B: the positive of each query, then hard negatives
    margin: float = 0.0  # by how much a document may be less similar than the positive and still is no negative

    def check(self, batch: int, candidates: int) -> None:
        """Raise `ValueError` on shapes that do not match."""
        shapes = self.queries.shape, self.documents.shape
        if [len(shape) for shape in shapes] != [2, 2] or shapes != ((batch, shapes[0][1]), (candidates, shapes[0][1])):
            expected = f"queries [{batch}, G] and documents [{candidates}, G]"
            raise ValueError(f"a guide must have {expected}; got shapes {shapes[0]} and {shapes[1]}")

    def rows(self) -> "GuideRows":
        """What the rows of a Gram matrix have to know."""
        batch = len(self.queries)
        cosines = jnp.sum(self.queries * self.documents[:batch], axis=1)
        return GuideRows(jnp.arange(batch), self.queries, cosines - self.margin - ROUNDING)


def check_candidates(
    batch: int, candidates: int, valid: jax.Array | None, ids: TextIds | None, guide: Guide | None
) -> None:
    """Raise `ValueError` where what is known of B queries and N documents, the positives first, does not fit them."""
    if candidates < batch:
        raise ValueError(f"{batch} queries need as many documents, the positives first; got {candidates}")
    if valid is not None and valid.shape != (batch,):
        raise ValueError(f"valid must be [{batch}], one per query; got shape {valid.shape}")
    if ids is not None:
        ids.check(batch, candidates)
    if guide is not None:
        guide.check(batch, candidates)


class GuideRows(NamedTuple):
    """Some queries of a batch, as a guide sees them."""

    places: jax.Array  # int [R], their rows in the batch
    queries: jax.Array  # float32 [R, G]
    limits: jax.Array  # float32 [R], the largest cosine of a negative


def nearer(rows: GuideRows, documents: jax.Array) -> jax.Array:
    """Whether a guide finds each document [N, G] nearer than the positive of each query, bool [R, N]. A copy of the
    positive is as near, and no negative either."""
    cosines = jnp.matmul(rows.queries, documents.T, precision="highest")
    return (cosines > rows.limits[:, None]) & (rows.places[:, None] != jnp.arange(len(documents)))


class Rows(NamedTuple):
    """Some queries of a batch."""

    places: jax.Array  # int [R], their rows in the batch
    queries: jax.Array  # int [R]
    positives: jax.Array  # int [R, 1 + P]


class Columns(NamedTuple):
    """All documents of a batch."""

    queries: jax.Array  # int [N], the query whose positive it is; −1 for a hard negative
    documents: jax.Array  # int [N]


def relevant(rows: Rows, columns: Columns) -> jax.Array:
    """Whether each document is relevant to each query, bool [R, N]."""
    cells = rows.queries[:, None] == columns.queries
    for column in range(rows.positives.shape[1]):
        cells |= rows.positives[:, column, None] == columns.documents
    return cells


def own(rows: Rows, columns: Columns) -> jax.Array:
    """Whether each document is a query's own text, bool [R, N], relevant or not."""
    return rows.queries[:, None] == columns.documents


def left_out(rows: Rows, columns: Columns) -> jax.Array:
    """Whether each document is neither a negative of a query nor the positive of its pair, bool [R, N]."""
    cells = relevant(rows, columns) | own(rows, columns)
    return cells & (rows.places[:, None] != jnp.arange(len(columns.documents)))
