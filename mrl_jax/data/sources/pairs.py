"""A user's own pairs of texts: JSONL, CSV, TSV or Parquet files whose columns say what they are.

    {"anchor": "who wrote Emma?", "positive": "Jane Austen wrote Emma.", "negative": "Emma Thompson is an actor."}
    {"sentence1": "A plane is taking off.", "sentence2": "An air plane is taking off.", "score": 5.0}

    {"anchor": "who wrote Emma?", "positive": "Jane Austen wrote Emma.", "negatives": ["Emma is a film.", "Yes."]}

Hard negatives are optional, in any number, the same in every row: columns whose names begin with `negative`, each a
text or (in JSONL and Parquet) a list of them. Columns of other names are not read. `data.test` may be of another kind
than `data.train`: pairs without scores there are a search among all its positives and negatives. A large training file
stays on disk (`data.streaming`); only row numbers and scores of its pairs are held in memory.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrl_jax.data import disk_cache
from mrl_jax.data.base import PairDataset, Pairs
from mrl_jax.data.config import DataConfig
from mrl_jax.data.inputs import StreamedTexts
from mrl_jax.data.pair_ops import build_pairs, ranking, separate_anchors
from mrl_jax.data.readers.records import (
    FORMATS,
    Record,
    abbreviate,
    is_streamed,
    records,
    require_file,
    require_name,
    text_field,
)
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of

ROLES = (  # of a column, each with its allowed names; a file has at most one of them
    ("anchor", "query", "question"),
    ("positive", "document", "answer", "passage"),
    ("sentence1", "text1"),
    ("sentence2", "text2"),
)
ALLOWED = (
    "anchor (or query, question) and positive (or document, answer, passage), with negative, negative_2, … or a list "
    "negatives if there are any; or sentence1, sentence2 (or text1, text2) and score"
)
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Layout(NamedTuple):
    """The roles of a file's columns."""

    texts: tuple[str, ...]  # anchor, positive and negatives, or two sentences
    scored: bool

    @property
    def columns(self) -> list[str]:
        """The names of all columns to read."""
        return [*self.texts, "score"] if self.scored else [*self.texts]


def read(config: DataConfig) -> PairDataset:
    """Read `data.train`, `data.test` and, if given, `data.validation` (else validation is empty).

    Raises `UserError` naming the file and the line of the first thing that is wrong.
    """
    if is_streamed(config):
        train = scan_file("pairs", "data.train", config.train, config.cache_dir)
    else:
        train = read_file("pairs", "data.train", config.train)
    test = read_file("pairs", "data.test", config.test)
    validation = read_file("pairs", "data.validation", config.validation) if config.validation else no_pairs()
    dataset = PairDataset(
        name=Path(config.train or "").stem,
        kind="text",
        train=train,
        validation=validation,
        test=ranking(test) if test.scores is None else test,
    )
    return separate_anchors(dataset)


def no_pairs() -> Pairs:
    """An empty part."""
    return Pairs([], np.zeros((0, 2), np.int32))


def read_file(source: str, key: str, name: str | None) -> Pairs:
    """All pairs of a file, checked."""
    texts, scores = [], []
    for row, score in rows(source, key, name):
        texts.append(row)
        if score is not None:
            scores.append(score)
    if not texts:
        raise UserError(f"{key}={name} is empty")
    return build_pairs(list(zip(*texts, strict=True)), np.array(scores, np.float32) if scores else None)


def scan_file(source: str, key: str, name: str | None, cache_dir: str | None) -> Pairs:
    """As `read_file`, but texts stay in the file: the same table of distinct texts, in the same order."""
    path = require_file(key, require_name(source, key, name), FORMATS)
    digest = disk_cache.file_digest(path)
    place = disk_cache.folder(cache_dir, "pairs", digest)
    distinct = disk_cache.deduplicate(place, lambda: rows(source, key, name))
    if not len(distinct.columns):
        raise UserError(f"{key}={name} is empty")
    count, columns = distinct.columns.shape

    def texts() -> Iterator[str]:
        return (row[column] for column in range(columns) for row, _ in rows(source, key, name))

    table = StreamedTexts(texts, count * columns, digest, distinct.first)
    return Pairs(table, distinct.columns, distinct.scores)


def rows(source: str, key: str, name: str | None) -> Iterator[tuple[list[str], float | None]]:
    """The texts and, if there is one, the score of every pair of a file, checked."""
    name = require_name(source, key, name)
    path = path_of(key, name)
    layouts: dict[tuple[str, ...], Layout] = {}  # per combination of keys; only JSONL can have several
    count = 0  # texts per row
    for place, record in records(key, name, choose_columns):
        names = tuple(record)
        if names not in layouts:
            layouts[names] = layout(f"{path}, {place}", names)
        kind = layouts[names]
        expected = next(iter(layouts.values()))
        if kind != expected:
            here, before = ", ".join(kind.columns), ", ".join(expected.columns)
            raise UserError(f"{path}, {place}: the row has {here}; those before have {before}")
        texts = [text for column in kind.texts for text in check_texts(path, place, record, column)]
        if len(texts) != (count := count or len(texts)):
            raise UserError(
                f"{path}, {place}: the row has {len(texts) - 2} negatives, those before have {count - 2}; give every "
                "row the same number of them"
            )
        yield texts, check_score(path, place, record) if kind.scored else None


def choose_columns(path: Path, names: list[str]) -> list[str]:
    """The columns to read, of those that a file has."""
    return layout(str(path), names).columns


def layout(where: str, names: list[str] | tuple[str, ...]) -> Layout:
    """The roles of these columns; raises a `UserError` that names them and what is allowed if that is not clear."""
    roles = [[name for name in names if name in role] for role in ROLES]
    for same in roles:
        if len(same) > 1:
            raise UserError(f"{where} has the columns {same[0]} and {same[1]}, which mean the same; keep one of them")
    anchor, positive, first, second = roles
    negatives = sorted({name for name in names if name.startswith("negative")})
    if anchor and positive and not (first or second or "score" in names):
        return Layout((*anchor, *positive, *negatives), False)
    if first and second and "score" in names and not (anchor or positive or negatives):
        return Layout((*first, *second), True)
    raise UserError(f"{where} has the columns {', '.join(names)}; allowed are {ALLOWED}")


def check_texts(path: Path, place: str, record: Record, column: str) -> list[str]:
    """The text in a column, or the texts in a list of negatives; else a `UserError` that says what is there."""
    value = record.get(column)
    if not (isinstance(value, list) and column.startswith("negative")):
        return [check_text(path, place, record, column)]
    items = {f"{column}[{number}]": item for number, item in enumerate(value)}  # from 0, as in JSON
    return [check_text(path, place, items, item) for item in items]


def check_text(path: Path, place: str, record: Record, column: str) -> str:
    """The text in a column, or a `UserError` that says what is there."""
    text = text_field(path, place, record, column)
    if not text.strip():
        raise UserError(f"{path}, {place}: {column} is empty")
    return text


def check_score(path: Path, place: str, record: Record) -> float:
    """The score, or a `UserError` that says what is there."""
    value = record["score"]
    try:
        score = float("nan" if isinstance(value, bool) or value is None else value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not abs(score) <= FLOAT32_MAX:
        raise UserError(f"{path}, {place}: score must be a finite number, got {abbreviate(value)}")
    return score
