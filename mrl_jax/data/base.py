"""What every data source delivers (`Dataset`, `PairDataset`), what it is asked for (`DataConfig`), how parts are cut.

Texts are a list of str, images uint8 `[n, h, w, c]`, features float32 `[n, d]`; labels are int32 `[n]`, indices into
`classes`. Images that exceed memory are a lazy object with `__len__`, `__getitem__(int array)` and `subset`; texts that
exceed it are `StreamedTexts`. Pairs are row numbers of a table of distinct texts or vectors.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from mrl_jax.data import cuts
from mrl_jax.system.errors import UserError, limited

STREAMING_MIN_BYTES = 1 << 30  # a data.train of at least this size (uncompressed, if Parquet) stays on disk
DOCUMENTS_PER_QUERY = 10  # of a ranking that `data.limit` cuts

Task = Literal["classes", "pairs", "texts", "mixture"]


@runtime_checkable
class LazyInputs(Protocol):
    """Inputs that are read on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The inputs at these rows, `[len(rows), …]`."""
        ...

    def subset(self, rows: np.ndarray) -> "LazyInputs":
        """A view of these rows."""
        ...


@dataclass(frozen=True)
class StreamedTexts:
    """Texts that exceed memory: read from their source, in its order, each time they are iterated over."""

    read: Callable[[], Iterator[str]]  # yields every text of the source
    total: int  # number of texts of the source
    digest: str  # identifies the content of the source
    rows: np.ndarray | None = None  # int32, ascending: the selected texts of the source; None: all

    def __len__(self) -> int:
        return self.total if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[str]:
        if self.rows is None:
            return self.read()
        if not len(self.rows):
            return iter(())
        wanted = np.zeros(self.rows[-1] + 1, np.uint8)  # nothing is read beyond the last one
        wanted[self.rows] = 1
        return itertools.compress(self.read(), wanted.tobytes())

    def subset(self, rows: np.ndarray) -> "StreamedTexts":
        """A view of these rows, which must ascend."""
        rows = rows.astype(np.int32) if self.rows is None else self.rows[rows]
        return replace(self, rows=rows)

    @property
    def key(self) -> str:
        """SHA-256 that identifies these texts."""
        rows = b"" if self.rows is None else np.ascontiguousarray(self.rows).tobytes()
        return hashlib.sha256(f"{self.digest} {len(self)} ".encode() + rows).hexdigest()


Table = Sequence[str] | np.ndarray | StreamedTexts  # t texts, or features float32 [t, d]
Inputs = Table | LazyInputs

AnyInputs = TypeVar("AnyInputs", bound=Inputs)
AnyTable = TypeVar("AnyTable", bound=Table)


def take(inputs: AnyInputs, rows: np.ndarray) -> AnyInputs:
    """The inputs at these row numbers, in their order; row numbers of streamed texts must ascend."""
    if isinstance(inputs, np.ndarray):
        return inputs[rows]  # type: ignore[no-any-return]
    subset: Any = getattr(inputs, "subset", None)
    if subset is not None:  # of what is read on demand, or holds texts and images
        return subset(rows)  # type: ignore[no-any-return]
    texts: Any = inputs
    return [texts[row] for row in rows]  # type: ignore[return-value]


def compact(table: AnyTable, rows: np.ndarray) -> tuple[AnyTable, np.ndarray]:
    """The part of a table that is used.

    Args:
        table: t texts, or features [t, d].
        rows: the row numbers that are used, int of any shape.

    Returns:
        The used rows of the table in its order, and `rows` renumbered for it, int32.
    """
    used = np.zeros(len(table), bool)
    used[rows] = True
    return take(table, np.flatnonzero(used)), (np.cumsum(used, dtype=np.int32) - 1)[rows]


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

    def assemble(self, config: "DataConfig") -> "Dataset":
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
        return np.asarray(cuts.connected(len(self.table), a[joined], b[joined])[text[anchors]])

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

    def assemble(self, config: "DataConfig") -> "PairDataset":
        """Apply `validation_fraction` (only where `validation` is empty) and `limit`."""
        train, validation = cut_validation(self.train, self.validation, config)
        test = self.test.first(config.limit)
        return replace(self, train=train.first(config.limit), validation=validation.first(config.limit), test=test)

    def without_test(self) -> "PairDataset":
        """The data set as a trial may see it: the validation split stands for the test split."""
        return replace(self, test=self.validation)


@dataclass(frozen=True)
class DataConfig:
    """Which data to read."""

    source: str  # name of the data source, one of `mrl_jax.data.SOURCES`
    task: Task | None = None  # wordnet, features: whether to learn classes or pairs; null: classes
    path: str | None = None  # beir, cifar: folder, with corpus.jsonl, queries.jsonl and qrels/, or the .bin files
    name: str | None = None  # tfds: name in the TFDS catalogue, such as ag_news_subset or name/config
    train: str | None = None  # files, features, pairs, image_text: training file; images: folder; beir: your own pairs
    test: str | None = None  # files, features, pairs, image_text: test file; images: folder
    validation: str | None = None  # as data.test; null: cut from the training data
    train_labels: str | None = None  # features as .npy: file with the labels of data.train
    test_labels: str | None = None  # features as .npy: file with the labels of data.test
    validation_labels: str | None = None  # features as .npy: file with the labels of data.validation
    packed_bits: bool | None = None  # features: whether each byte packs eight binary coordinates; null: numbers
    validation_fraction: float = 0.1  # share of each class or the anchors held out; 0 if there is a validation part
    group_repeats: bool = False  # keep examples of equal texts (case and punctuation aside) on one side of that cut
    prompts: Mapping[str, str] | None = limited(
        None,
        "names with texts that UTF-8 can encode",
        lambda prompts: all(prompts) and all(_is_unicode(word) for word in [*prompts, *prompts.values()]),
    )  # before texts, by use: {query: "query: ", document: "passage: "} or {default: …}; null: those of the weights
    image_size: int | None = None  # tfds, images, image_text: side in pixels; null: as stored, or as the weights want
    cache_dir: str | None = None  # folder of downloads and prepared data; null: $MRL_JAX_CACHE, or ~/.cache/mrl_jax
    streaming: bool | None = None  # files, tfds, pairs, images, image_text: read from disk; null: only large data
    workers: int | None = limited(
        None, "at least 1, or null", lambda n: n >= 1
    )  # tfds, images: processes that decode what is read from disk; null: the threads of this one
    limit: int | None = None  # maximum number of examples (pairs, queries) per split, for smoke runs
    hold_out: tuple[str | int, ...] | None = None  # classes to leave out; their test examples are of unknown classes
    sources: Mapping[str, "SourceConfig"] | None = None  # mixture: by a name of yours, {name: {source: …, loss: {…}}}
    mixing: Literal["proportional", "uniform", "temperature"] | None = None  # mixture: steps of a source; null: by size
    mixing_temperature: float | None = limited(None, "at least 1", lambda t: t >= 1)  # mixture: T in size^(1/T)


@dataclass(frozen=True)
class SourceConfig(DataConfig):
    """One source of a mixture: the keys of `data` for it alone, and how it is learnt from."""

    loss: Mapping[str, Any] | None = None  # keys of `loss` that differ from the run's: {name: cosent}
    weight: float = limited(1.0, "more than 0", lambda w: w > 0)  # factor of its share of the steps


def _is_unicode(word: str) -> bool:
    return word == word.encode(errors="ignore").decode()


def check_numbers(config: DataConfig) -> None:
    """Raise `UserError` for a `validation_fraction` or `limit` out of range."""
    if not 0 <= config.validation_fraction < 1:
        raise UserError(f"data.validation_fraction={config.validation_fraction} must be at least 0 and less than 1")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"data.limit={config.limit} must be at least 1")


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


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels, sorted: as numbers if all are whole numbers (2 before 10), else as text."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):  # of any length: Python's int() has a limit
        return tuple(sorted(names, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name)))
    return tuple(sorted(names))
