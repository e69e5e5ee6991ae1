"""What every data source delivers, `Dataset` or `PairDataset`, and how their parts are cut.

Texts are a list of str, images uint8 `[n, h, w, c]`, features float32 `[n, d]`; labels are int32 `[n]`, indices into
`classes`. Images that exceed memory are a lazy object with `__len__`, `__getitem__(int array)` and `subset`; texts that
exceed it are `StreamedTexts`. Pairs are row numbers of a table of distinct texts or vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar

import numpy as np

from mrl_jax.data import cuts
from mrl_jax.data.config import DataConfig, Task
from mrl_jax.data.inputs import Inputs, LazyInputs, Table, compact, take
from mrl_jax.system.errors import UserError

DOCUMENTS_PER_QUERY = 10  # of a ranking that `data.limit` cuts


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    inputs: Inputs
    labels: np.ndarray  # int32 [n]

    contents: ClassVar = "classes"  # what a loss can learn from

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def raw(self) -> Inputs:
        """What a tokenizer learns from."""
        return self.inputs

    def take(self, rows: np.ndarray) -> "Split":
        """The split at these row numbers, in their order."""
        return replace(self, inputs=take(self.inputs, rows), labels=self.labels[rows])

    def cut(self, fraction: float, group_repeats: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers to train on and to validate on: of each class this fraction (see `cuts.cut`); with
        `group_repeats` all examples that count as the same (`cuts.keys`) on one side."""
        if not group_repeats:
            return cuts.cut(self.labels, fraction)
        if isinstance(self.inputs, LazyInputs) and not isinstance(self.inputs, np.ndarray):
            raise UserError("data.group_repeats=true is not for images that stay on disk; use false")
        return cuts.cut_whole_groups(self.labels, fraction, cuts.same(self.inputs), "example")

    def first(self, limit: int | None) -> "Split":
        """The first examples of each class, `limit` in all (see `cuts.first_per_class`); None: all examples."""
        return self if limit is None else self.take(cuts.first_per_class(self.labels, limit))


@dataclass(frozen=True)
class Dataset:
    """Labelled examples in three disjoint parts. `validation` may be empty; `test` is only ever evaluated on."""

    task: ClassVar[Task] = "classes"

    name: str
    kind: Literal["text", "image", "features"]
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    probes: Mapping[str, Split] = field(default_factory=dict)  # further examples that are only evaluated on

    def assemble(self, config: DataConfig) -> "Dataset":
        """Apply `validation_fraction` (only where `validation` is empty) and `limit`."""
        train, validation = cut_validation(self.train, self.validation, config)
        return replace(
            self,
            train=train.first(config.limit),
            validation=validation.first(config.limit),
            test=self.test.first(config.limit),
            probes={name: probe.first(config.limit) for name, probe in self.probes.items()},
        )

    def without_test(self) -> "Dataset":
        """The data set as a trial may see it: the validation split stands for the test split."""
        return replace(self, test=self.validation, probes={})


@dataclass(frozen=True)
class Pairs:
    """Texts (or feature vectors) that belong together, as row numbers of a table that holds every distinct one once.

    Without `scores` the first two columns are an anchor and its positive, further ones hard negatives of the anchor.
    With `scores` there are two columns, and a score says how similar they are.

    With prompts, a text that is both a query and a document has two rows, and `text_ids` says that they are one text.
    """

    table: Table  # of captions and pictures, `captioned.CaptionedImages`
    columns: np.ndarray  # int32 [n, c], c ≥ 2, rows of `table`
    scores: np.ndarray | None = None  # float32 [n]; larger is more similar, in the unit of the source
    text_ids: np.ndarray | None = None  # int32 [n, c], equal where texts are but for prompts; None: `columns`
    held_out_by: int = 0  # the column that validation is cut by: of captions and pictures 1, the pictures

    @property
    def contents(self) -> Literal["pairs", "scored pairs"]:
        """What a loss can learn from."""
        return "pairs" if self.scores is None else "scored pairs"

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def raw(self) -> Table:
        """What a tokenizer learns from: every distinct text once."""
        return self.table

    @property
    def anchors(self) -> Table:
        """The distinct anchors."""
        return compact(self.table, self.columns[:, 0])[0]

    def take(self, rows: np.ndarray) -> "Pairs":
        """The pairs at these row numbers, or where this mask is true, over a table of just their texts."""
        table, columns = compact(self.table, self.columns[rows])
        scores, text_ids = (None if array is None else array[rows] for array in (self.scores, self.text_ids))
        return Pairs(table, columns, scores, text_ids, self.held_out_by)

    def cut(self, fraction: float, group_repeats: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers to train on and to validate on: all pairs of this fraction of the anchors (rounded; at least one
        anchor stays in training) are held out; of captions and pictures, of the pictures.

        Depends on the pairs and the fraction only, so every run of a study has the same validation pairs. With
        `group_repeats` whole groups of anchors are held out, see `_groups`.
        """
        column = self.columns[:, self.held_out_by]
        anchors = np.unique(column)
        label = np.zeros(len(anchors), np.int32)
        if group_repeats:
            out = cuts.cut_whole_groups(label, fraction, self._groups(anchors), "anchor")[1]
        else:
            out = cuts.cut(label, fraction)[1]
        held_out = np.isin(column, anchors[out])
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def _groups(self, anchors: np.ndarray) -> np.ndarray:
        """The number of the group of each of these distinct anchors.

        Anchors that count as the same (`cuts.keys`) are of one group. So are the two texts of a pair, if it has a
        score: it is as similar whichever stands first. Without scores they are if the positive is an anchor, too, as
        the pair could stand on both sides, once reversed. Documents alone may be on both sides: a search knows them.
        """
        if self.held_out_by:
            raise UserError("data.group_repeats=true is not for pairs of captions and pictures; use false")
        text = cuts.same(self.table)
        a, b = text[self.columns[:, 0]], text[self.columns[:, 1]]
        joined = np.isin(b, a) | (self.scores is not None)
        groups: np.ndarray = cuts.connected(len(self.table), a[joined], b[joined])[text[anchors]]
        return groups

    def first(self, limit: int | None) -> "Pairs":
        """`limit` pairs, the same in every run, in their order; None: all pairs."""
        return self if limit is None else self.take(cuts.first_rows(len(self), limit))


@dataclass(frozen=True)
class Ranking:
    """Queries, the documents to search and the judgments (qrels) that say which documents are relevant."""

    queries: Sequence[str] | np.ndarray  # q texts, or features float32 [q, d]
    documents: Sequence[str] | np.ndarray  # d texts, or features
    judgments: np.ndarray  # int32 [j, 3]: row of the query, row of the document, gain ≥ 0; each pair once
    query_ids: Sequence[str]
    document_ids: Sequence[str]
    own: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    # int32 [m, 2]: row of a query, and of the document that is the query itself: the same id or, without ids, text

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def anchors(self) -> Sequence[str] | np.ndarray:
        """The queries, which no anchor of the training pairs may equal."""
        return self.queries

    def first(self, limit: int | None) -> "Ranking":
        """At most `limit` queries with their judged documents, filled up with the first others to `DOCUMENTS_PER_QUERY`
        documents per query; None: everything."""
        if limit is None:
            return self
        queries = cuts.first_rows(len(self), limit)
        judgments = self.judgments[np.isin(self.judgments[:, 0], queries)]
        judged = np.unique(judgments[:, 1])
        others = np.setdiff1d(np.arange(len(self.document_ids)), judged, assume_unique=True)
        spare = max(DOCUMENTS_PER_QUERY * limit - len(judged), 0)
        documents = np.union1d(judged, others[:spare])
        own = self.own[np.isin(self.own[:, 0], queries) & np.isin(self.own[:, 1], documents)]

        def renumber(rows: np.ndarray) -> np.ndarray:
            columns = [np.searchsorted(queries, rows[:, 0]), np.searchsorted(documents, rows[:, 1]), *rows.T[2:]]
            return np.stack(columns, axis=1).astype(np.int32)

        return Ranking(
            take(self.queries, queries),
            take(self.documents, documents),
            renumber(judgments),
            take(self.query_ids, queries),
            take(self.document_ids, documents),
            renumber(own),
        )


@dataclass(frozen=True)
class PairDataset:
    """Training pairs, validation pairs, and the test: a ranking, or pairs with scores.

    No anchor of the training pairs is an anchor of the validation pairs or the test (only `stsb` keeps its published
    parts, which share some); of captions and pictures, no picture is in two of them.
    """

    task: ClassVar[Task] = "pairs"

    name: str
    kind: Literal["text", "features", "image-text"]
    train: Pairs
    validation: Pairs
    test: Ranking | Pairs

    def assemble(self, config: DataConfig) -> "PairDataset":
        """Apply `validation_fraction` (only where `validation` is empty) and `limit`."""
        train, validation = cut_validation(self.train, self.validation, config)
        test = self.test.first(config.limit)
        return replace(self, train=train.first(config.limit), validation=validation.first(config.limit), test=test)

    def without_test(self) -> "PairDataset":
        """The data set as a trial may see it: the validation split stands for the test split."""
        return replace(self, test=self.validation)


Examples = TypeVar("Examples", Split, Pairs)


def cut_validation(train: Examples, validation: Examples, config: DataConfig) -> tuple[Examples, Examples]:
    """Training and validation examples: `validation` where there is any, else cut from `train`.

    Raises `UserError` where repeats are to be grouped and nothing is cut.
    """
    if len(validation):
        if config.group_repeats:
            raise UserError(
                f"data.group_repeats=true is only for a validation part that is cut from train; data={config.source} "
                "is given one"
            )
        return train, validation
    rows, held_out = train.cut(config.validation_fraction, config.group_repeats)
    return train.take(rows) if len(held_out) else train, train.take(held_out)
